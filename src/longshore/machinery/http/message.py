"""Requests as a handler sees them, and the three ways to answer one: whole, streaming, upgraded."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import orjson

from .flow import Duplex
from .headers import Headers

if TYPE_CHECKING:
    from .connection import Connection

REASONS: dict[int, str] = {s.value: s.phrase for s in HTTPStatus} | {
    413: "Request Entity Too Large",
    416: "Requested Range Not Satisfiable",
    422: "Unprocessable Entity",
}
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class BodyTooLarge(Exception):
    """A body is longer than the handler takes. Not caught, it is answered with 413 through the server's `error`."""


class RequestTimeout(Exception):
    """A body stopped coming. Not caught, it is answered with 408 through the server's `error`."""


class BadTarget(ValueError):
    """A request target with a broken escape."""


def unescape(text: str) -> str:
    """Percent-decoding; BadTarget where a `%` starts no escape (Go's net/url refuses those too)."""
    if "%" not in text:
        return text
    if found := _BAD_ESCAPE.search(text):
        raise BadTarget(f'invalid URL escape "{text[found.start() : found.start() + 3]}"')
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def parse_query(text: str) -> dict[str, list[str]]:
    """application/x-www-form-urlencoded pairs; broken ones and those with a `;` are left out, as Go's net/url does."""
    found: dict[str, list[str]] = {}
    for pair in text.split("&"):
        if not pair or ";" in pair:
            continue
        name, _, value = pair.partition("=")
        if "%" in pair or "+" in pair:
            try:
                name, value = unescape(name.replace("+", " ")), unescape(value.replace("+", " "))
            except BadTarget:
                continue
        found.setdefault(name, []).append(value)
    return found


@dataclass(slots=True)
class Peer:
    """Who is at the other end.

    address: (host, port) over TCP. certificate: ssl's getpeercert() when one was shown, verified unless the server's
    context accepts any (tls.accept_any_certificate); certificate_der the same as octets; chain: what came with it.
    uid, gid, pid: the credentials of the process at the other end of a unix socket (SO_PEERCRED).
    context: for the part that serves: whatever it keeps with a connection.
    """

    address: tuple[str, int] | None = None
    certificate: dict[str, Any] | None = None
    certificate_der: bytes | None = None
    chain: Sequence[bytes] = ()
    tls: bool = False
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    context: Any = None


@dataclass(slots=True)
class Response:
    """A whole answer. `body` may be pieces; they are joined into large writes."""

    status: int = 200
    body: bytes | Sequence[bytes] = b""
    headers: Sequence[tuple[str, str]] = field(default=())
    content_type: str | None = None

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> Response:
        """`value` as JSON."""
        return cls(status, orjson.dumps(value), headers, "application/json")


class Chunk:
    """Octets for the bodies of several streaming answers, framed once for all of them."""

    __slots__ = ("data", "framed")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.framed = b"%x\r\n%b\r\n" % (len(self.data), self.data)


class BodyWriter:
    """The body of a streaming answer: chunked, or raw where the length was given or the peer speaks HTTP/1.0."""

    __slots__ = ("_chunked", "_connection", "_finished", "_muted")

    def __init__(self, connection: Connection, chunked: bool, muted: bool) -> None:
        self._connection = connection
        self._chunked = chunked
        self._muted = muted  # HEAD, 204, 304
        self._finished = False

    @property
    def clear(self) -> bool:
        """Whether the peer is there and takes what is written: no need to drain first."""
        return not (self._connection.lost or self._connection.write_paused)

    def write(self, data: bytes) -> None:
        """Queues `data`; without effect when the peer has gone (drain tells)."""
        if not data or self._muted or self._finished or self._connection.lost:
            return
        transport = self._connection.transport
        if not self._chunked:
            transport.write(data)
        elif len(data) < 32768:
            transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            transport.writelines([b"%x\r\n" % len(data), data, b"\r\n"])

    def writelines(self, data: Sequence[bytes]) -> None:
        """Queues the pieces as one chunk."""
        self.write(data[0] if len(data) == 1 else b"".join(data))

    def send(self, chunk: Chunk) -> None:
        """Queues a chunk that other answers get too."""
        if not (self._muted or self._finished or self._connection.lost):
            self._connection.transport.write(chunk.framed if self._chunked else chunk.data)

    async def drain(self) -> None:
        """Back-pressure; raises ConnectionResetError when the peer has gone."""
        await self._connection.drain()

    async def send_file(self, file: int, offset: int, count: int) -> int:
        """Send `count` octets of a file from `offset` on; how many there were. The kernel sends them itself where the
        connection is a plain socket. Raises ConnectionResetError when the peer has gone.
        """
        if self._muted or self._finished:
            return 0
        from longshore.machinery.http.sending import send_file

        return await send_file(self, self._connection, file, offset, count, direct=not self._chunked)

    async def send_pieces(self, pieces: Iterator[bytes]) -> None:
        """Send what a blocking iterator gives; it runs in threads, one at a time. Raises what it raises,
        ConnectionResetError when the peer has gone.
        """
        if not self._muted and not self._finished:
            from longshore.machinery.http.sending import send_pieces

            await send_pieces(self, self._connection, pieces, chunked=self._chunked)

    async def finish(self) -> None:
        """Ends the body. The core calls it when the handler returns; an exception cuts the connection instead."""
        if not self._finished:
            self._finished = True
            if self._chunked and not self._muted and not self._connection.lost:
                self._connection.transport.write(b"0\r\n\r\n")


class Request:
    """One request. `raw_path` keeps its escapes, `path` has them decoded."""

    __slots__ = (
        "_connection",
        "_continue",
        "_inbox",
        "_length",
        "_query",
        "context",
        "headers",
        "keep_alive",
        "method",
        "on_start",
        "path",
        "raw_path",
        "raw_query",
        "target",
        "version",
    )

    def __init__(
        self, connection: Connection, method: str, target: str, headers: Headers, *, version: str, keep_alive: bool
    ) -> None:
        self._connection = connection
        self.method = method
        self.target = target
        self.headers = headers
        self.version = version  # "1.1" or "1.0"
        self.keep_alive = keep_alive
        path, _, self.raw_query = target.partition("?")
        if not path.startswith("/"):
            path = _origin_path(path)
        self.raw_path = path
        self.path = unescape(path) if "%" in path else path
        self._query: dict[str, list[str]] | None = None
        self._inbox: Any = None
        self._length: int | None = 0
        self._continue = False
        self.context: Any = None  # for the part that serves: whatever it keeps with a request
        # Told the status before the head of a streaming or upgraded answer is sent.
        self.on_start: Callable[[int], Awaitable[None]] | None = None

    @property
    def query(self) -> dict[str, list[str]]:
        """Query parameters, parsed on first use."""
        found = self._query
        if found is None:
            found = self._query = parse_query(self.raw_query) if self.raw_query else {}
        return found

    def param(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        values = self.query.get(name) if self.raw_query else None
        return values[0] if values else default

    @property
    def peer(self) -> Peer:
        return self._connection.peer

    @property
    def content_length(self) -> int | None:
        """The length of the body in octets; None when it is chunked."""
        return self._length

    @property
    def has_body(self) -> bool:
        """Whether the request came with a body that is not known to be empty."""
        return self._inbox is not None

    @property
    def wants_upgrade(self) -> bool:
        """Whether the client sent `Connection: Upgrade` with an `Upgrade` field."""
        return "upgrade" in self.headers and "upgrade" in self.headers.tokens("connection")

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises BodyTooLarge past `limit` octets, RequestTimeout when it stops coming."""
        if self._inbox is None:
            return b""
        if self._length is not None and self._length > limit:
            raise BodyTooLarge(limit)
        parts: list[bytes] = []
        size = 0
        while data := await self._connection.next_body(self, timeout=True):
            size += len(data)
            if size > limit:
                raise BodyTooLarge(limit)
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body piece by piece, with back-pressure and without a limit."""
        if self._inbox is not None:
            while data := await self._connection.next_body(self, timeout=False):
                yield data

    async def receive(self, sink: Callable[[Sequence[bytes | memoryview]], None]) -> None:
        """The body, handed in order to a function in a thread, some pieces at a time; they are its own until it returns.

        Raises what `sink` raises, ConnectionResetError when the peer goes: what came before has been handed over then.
        """
        if self._inbox is not None:
            from longshore.machinery.http.receiving import receive

            await receive(self, self._connection, sink)

    async def start(self, status: int, headers: Sequence[tuple[str, str]] = ()) -> BodyWriter:
        """Sends the head of a streaming answer. When the peer goes after this, the handler's task is cancelled."""
        if self.on_start is not None:
            await self.on_start(status)
        return self._connection.start(self, status, headers)

    async def upgrade(self, status: int = 101, headers: Sequence[tuple[str, str]] = ()) -> Duplex:
        """Leaves HTTP: sends the head (101, or 200 for docker's older hijack) and gives the raw connection.

        A body that was not read is read over first. The connection is closed when the handler returns.
        """
        if self.on_start is not None:
            await self.on_start(status)
        return await self._connection.upgrade(self, status, headers)

    async def disconnected(self) -> None:
        """Returns when the peer has gone or ended its side."""
        await self._connection.gone()


def _origin_path(path: str) -> str:
    """The path of a target in absolute form; `*` stays; BadTarget for anything else."""
    if path == "*":
        return path
    scheme, sep, rest = path.partition("://")
    if sep and scheme.lower() in ("http", "https"):
        _, slash, tail = rest.partition("/")
        return slash + tail or "/"
    raise BadTarget("invalid URI for request")


Answer = Response | None
Handler = Callable[[Request], Answer | Awaitable[Answer]]
