"""The client: a keep-alive pool for each origin, streaming both ways, upgrades."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl as tls
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from longshore.machinery import renewal

from .client_connection import Connection, Head
from .errors import ClientError, ConnectError, ProtocolError
from .flow import Duplex
from .headers import Headers
from .heads import header_lines
from .message import BodyTooLarge

Origin = tuple[str, str, int]
_SAFE = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
CONTINUE_WAIT = 1.0
_CONTROL = re.compile(r"[\x00-\x20\x7f]")


class ClientResponse:
    """An answer. Read it to its end or close it, so that its connection can serve again."""

    __slots__ = ("_connection", "_deadline", "_inbox", "_sender", "headers", "reason", "status")

    def __init__(
        self, head: Head, connection: Connection, deadline: float | None, sender: asyncio.Task[None] | None
    ) -> None:
        self.status: int = head.status
        self.reason: str = head.reason
        self.headers: Headers = head.headers
        self._connection = connection
        # Its own: once the body has come whole the connection serves the next request, read or not.
        self._inbox = connection.inbox
        self._deadline = deadline
        self._sender = sender

    async def read(self, limit: int | None = None) -> bytes:
        """The whole body, within the request's timeout. BodyTooLarge past `limit`; ProtocolError when it is cut."""
        inbox = self._inbox
        if inbox is None:
            return b""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout_at(self._deadline):
                while data := await inbox.get():
                    size += len(data)
                    if limit is not None and size > limit:
                        raise BodyTooLarge(limit)
                    parts.append(data)
        except BaseException:
            self._give_up()
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, with back-pressure and without a time limit. Leaving early cuts the connection."""
        inbox = self._inbox
        if inbox is None:
            return
        try:
            while data := await inbox.get():
                yield data
        finally:
            self._give_up()

    async def close(self) -> None:
        """Gives the connection up, unless the whole body has come already."""
        if self._sender is not None and not self._sender.done():
            self._sender.cancel()
        self._give_up()

    def _give_up(self) -> None:
        """Cut the connection while it is still this answer's."""
        if self._inbox is None or not self._inbox.eof:
            self._connection.abort()

    async def __aenter__(self) -> ClientResponse:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class Client:
    """HTTP/1.1 requests.

    ssl: the context for https. unix: send everything through this socket (URLs keep their host for the Host field).
    headers: fields of every request. limit_per_host: connections to one origin at a time, 0 for no limit.
    idle_timeout: seconds that an unused connection is kept. server_hostname: the name to verify instead of the URL's.
    namespace: descriptor of the network namespace to look names up in and to connect from; None: our own.
    """

    def __init__(
        self,
        *,
        ssl: tls.SSLContext | None = None,
        unix: Path | None = None,
        headers: Sequence[tuple[str, str]] = (),
        limit_per_host: int = 0,
        idle_timeout: float = 90.0,
        idle_per_host: int = 32,
        connect_timeout: float = 30.0,
        server_hostname: str | None = None,
        namespace: int | None = None,
    ) -> None:
        self._ssl = ssl
        self._unix = unix
        self._headers = tuple(headers)
        self._limit = limit_per_host
        self._idle_timeout = idle_timeout
        self._idle_per_host = idle_per_host
        self._connect_timeout = connect_timeout
        self._server_hostname = server_hostname
        self._namespace = namespace
        self._idle: dict[Origin, deque[Connection]] = {}
        self._slots: dict[Origin, asyncio.Semaphore] = {}
        self._all: set[Connection] = set()
        self._closed = False
        if ssl is not None and (files := renewal.files_of(ssl)):
            renewal.hold(self, files, Client.drop)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | AsyncIterable[bytes] | None = None,
        timeout: float | None = None,
    ) -> ClientResponse:
        """Sends a request; returns when the answer's head has come.

        body: octets, or an iterable that is sent chunked (or raw where `headers` has Content-Length).
        timeout: seconds for everything up to the end of `read()`; TimeoutError past it.
        Raises ConnectError when there is no connection, ProtocolError when the answer is no HTTP or was cut.
        A request on a kept connection that turns out to be dead is sent again on a new one, when it is safe to
        (RFC 9110 section 9.2.2, as Go's Transport does).
        """
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        async with asyncio.timeout_at(deadline):
            response, _ = await self._exchange(method, url, headers, body, deadline, upgrading=False)
        return response

    async def upgrade(
        self,
        method: str,
        url: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        timeout: float | None = None,
    ) -> tuple[ClientResponse, Duplex | None]:
        """Sends a request that asks to leave HTTP (the caller gives Connection and Upgrade fields, or none for hijack).

        The Duplex is there after 101, or after a 200 without a length (docker's hijack); None for any other answer,
        which can be read as usual. timeout: seconds until the answer's head.
        """
        async with asyncio.timeout(timeout):
            return await self._exchange(method, url, headers, body, None, upgrading=True)

    def drop(self, *, under_way: bool = False) -> None:
        """Has requests to come open other connections: idle ones are closed (under_way: all), the others after their answer."""
        for connection in list(self._all):
            if under_way or connection.idle:
                connection.abort()
            else:
                connection.broken = True

    async def close(self) -> None:
        """Closes every connection."""
        self._closed = True
        for connection in list(self._all):
            connection.abort()
        self._idle.clear()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # ---- one exchange

    async def _exchange(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes | AsyncIterable[bytes] | None,
        deadline: float | None,
        *,
        upgrading: bool,
    ) -> tuple[ClientResponse, Duplex | None]:
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), parts.hostname
        if scheme not in ("http", "https") or not host:
            raise ValueError(f"unsupported URL {url!r}")
        origin = (scheme, host, parts.port or (443 if scheme == "https" else 80))
        head, streaming, chunked, expect = self._head(method, parts, headers, body)
        slot = await self._slot(origin)
        try:
            while True:
                connection, fresh = await self._connection(origin)
                try:
                    response = await self._once(
                        connection, method, head, body, streaming, chunked, expect, deadline, upgrading
                    )
                except ProtocolError:
                    stale = not fresh and not connection.heard
                    connection.abort()
                    if stale and method in _SAFE and not streaming:
                        continue
                    raise
                except BaseException:
                    connection.abort()
                    raise
                break
        except BaseException:
            if slot is not None:
                slot.release()
            raise
        found, keep = response
        duplex = connection.take_duplex()
        if slot is not None:
            connection.on_free = slot.release
        if duplex is None:
            connection.on_message_end(lambda: self._release(origin, connection, keep, found._sender))
        return found, duplex

    async def _slot(self, origin: Origin) -> asyncio.Semaphore | None:
        if not self._limit:
            return None
        slot = self._slots.get(origin)
        if slot is None:
            slot = self._slots[origin] = asyncio.Semaphore(self._limit)
        await slot.acquire()
        return slot

    def _head(
        self,
        method: str,
        parts: object,
        headers: Sequence[tuple[str, str]],
        body: bytes | AsyncIterable[bytes] | None,
    ) -> tuple[bytes, AsyncIterable[bytes] | None, bool, bool]:
        path = parts.path or "/"  # type: ignore[attr-defined]
        if parts.query:  # type: ignore[attr-defined]
            path += "?" + parts.query  # type: ignore[attr-defined]
        if _CONTROL.search(path):
            raise ValueError(f"invalid character in request target {path!r}")
        fields = [*self._headers, *headers]
        names = {name.lower() for name, _ in fields}
        if "host" not in names:
            netloc: str = parts.netloc  # type: ignore[attr-defined]
            fields.insert(0, ("Host", netloc.rpartition("@")[2]))
        streaming: AsyncIterable[bytes] | None = None
        chunked = False
        if body is None or isinstance(body, bytes):
            if "content-length" not in names and (body or method in ("POST", "PUT", "PATCH")):
                fields.append(("Content-Length", str(len(body or b""))))
        else:
            streaming = body
            chunked = "content-length" not in names
            if chunked:
                fields.append(("Transfer-Encoding", "chunked"))
        expect = "expect" in names
        head = f"{method} {path} HTTP/1.1\r\n".encode("utf-8", "surrogateescape") + header_lines(fields) + b"\r\n"
        return head, streaming, chunked, expect

    async def _once(
        self,
        connection: Connection,
        method: str,
        head: bytes,
        body: bytes | AsyncIterable[bytes] | None,
        streaming: AsyncIterable[bytes] | None,
        chunked: bool,
        expect: bool,
        deadline: float | None,
        upgrading: bool,
    ) -> tuple[ClientResponse, bool]:
        whole = body if isinstance(body, bytes) else None
        go = connection.expect_continue() if expect and streaming is not None else None
        answer = connection.begin(method, head, whole, upgrading=upgrading)
        sender: asyncio.Task[None] | None = None
        try:
            if go is not None:
                # an answer at once means: no body, please
                await asyncio.wait((go, answer), timeout=CONTINUE_WAIT, return_when=asyncio.FIRST_COMPLETED)
            if streaming is not None and not answer.done():
                sender = asyncio.get_running_loop().create_task(connection.send_body(streaming, chunked))
                await asyncio.wait((sender, answer), return_when=asyncio.FIRST_COMPLETED)
                if sender.done() and not sender.cancelled() and (error := sender.exception()) is not None:
                    if answer.done() and not answer.cancelled():
                        answer.exception()
                    raise error
            found = await answer
        except BaseException:
            if sender is not None:
                sender.cancel()
            raise
        if streaming is not None and sender is None:
            connection.broken = True  # the announced body was never sent
        return ClientResponse(found, connection, deadline, sender), found.keep_alive

    # ---- the pool

    async def _connection(self, origin: Origin) -> tuple[Connection, bool]:
        if self._closed:
            raise ClientError("the client is closed")
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            connection.idle = False
            if connection.idle_timer is not None:
                connection.idle_timer.cancel()
            if not connection.broken and not connection.lost and not connection.transport.is_closing():
                return connection, False
        connection = await self._connect(origin)
        self._all.add(connection)
        return connection, True

    async def _connect(self, origin: Origin) -> Connection:
        scheme, host, port = origin
        loop = asyncio.get_running_loop()

        def make() -> Connection:
            return Connection(lambda c: self._lost(origin, c))

        context: tls.SSLContext | None = None
        name: str | None = None
        if scheme == "https":
            if self._ssl is None:
                from .tls import client_context

                self._ssl = client_context()
            context, name = self._ssl, self._server_hostname or host
        where = f"unix {self._unix}" if self._unix is not None else f"tcp {f'[{host}]' if ':' in host else host}:{port}"
        try:
            async with asyncio.timeout(self._connect_timeout):
                if self._unix is not None:
                    _, protocol = await loop.create_unix_connection(
                        make, str(self._unix), ssl=context, server_hostname=name
                    )
                elif self._namespace is not None:
                    from longshore.machinery.netns import connect

                    there = await connect(self._namespace, host, port)
                    _, protocol = await loop.create_connection(make, sock=there, ssl=context, server_hostname=name)
                else:
                    _, protocol = await loop.create_connection(make, host, port, ssl=context, server_hostname=name)
        except TimeoutError:
            raise ConnectError(f"dial {where}: i/o timeout") from None
        except tls.SSLCertVerificationError as error:
            raise ConnectError(f"tls: failed to verify certificate: x509: {error.verify_message}") from error
        except tls.SSLError as error:
            if error.reason == "WRONG_VERSION_NUMBER":  # what answered speaks plain HTTP; Go's words
                raise ConnectError("http: server gave HTTP response to HTTPS client") from error
            raise ConnectError(f"tls: {error.reason or error}") from error
        except socket.gaierror as error:
            raise ConnectError(f"dial tcp: lookup {host}: no such host") from error
        except OSError as error:
            raise ConnectError(error.errno, f"dial {where}: connect: {_words(error)}") from error
        return protocol

    def _release(self, origin: Origin, connection: Connection, keep: bool, sender: asyncio.Task[None] | None) -> None:
        unsent = sender is not None and not sender.done()
        if unsent and sender is not None:
            sender.cancel()
        if self._closed or not keep or unsent or connection.broken or connection.lost:
            if not connection.lost:
                connection.broken = True
                connection.transport.close()
            return
        connection.free()
        connection.used += 1
        idle = self._idle.setdefault(origin, deque())
        connection.idle = True
        connection.idle_timer = connection.loop.call_later(self._idle_timeout, connection.abort)
        idle.append(connection)
        if len(idle) > self._idle_per_host:
            old = idle.popleft()
            old.idle = False
            if old.idle_timer is not None:
                old.idle_timer.cancel()
            old.abort()

    def _lost(self, origin: Origin, connection: Connection) -> None:
        self._all.discard(connection)
        if not connection.idle:
            return
        if connection.idle_timer is not None:
            connection.idle_timer.cancel()
        idle = self._idle.get(origin)
        if idle is not None:
            try:
                idle.remove(connection)
            except ValueError:
                pass
            if not idle:
                del self._idle[origin]


def _words(error: OSError) -> str:
    """Go's words for an errno: the kernel's text, lower-case."""
    import os

    number = error.errno
    if number is None or number not in errno.errorcode:
        # asyncio joins several attempts into one error without a number
        return "connection refused" if "refused" in str(error).lower() else str(error).lower()
    return os.strerror(number).lower()
