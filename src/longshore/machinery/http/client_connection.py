"""One connection of a client: a request out, its answer in, then the next or raw octets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Any

import httptools

from .body import Body, BodyError, ChunkedBody, EOFBody, LengthBody
from .errors import ProtocolError
from .flow import SLICE, Duplex, FlowProtocol, Inbox
from .headers import Headers

MAX_HEAD = 256 * 1024


class Head:
    """Status line and fields of an answer."""

    __slots__ = ("headers", "keep_alive", "reason", "status")

    def __init__(self, status: int, reason: str, headers: Headers, keep_alive: bool) -> None:
        self.status, self.reason, self.headers, self.keep_alive = status, reason, headers, keep_alive


class Connection(FlowProtocol):
    def __init__(self, on_lost: Callable[[Connection], None]) -> None:
        super().__init__()
        self._on_lost = on_lost
        self.used = 0  # answers had on this connection
        self.idle = False
        self._pending = b""
        self._method = ""
        self._upgrading = False
        self._parser: Any = None
        self._status_text = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._head: asyncio.Future[Head] | None = None
        self.heard = False  # any octet of the present answer came
        self._continue: asyncio.Future[None] | None = None
        self._body: Body | None = None
        self.inbox: Inbox | None = None
        self._duplex: Duplex | None = None
        self.broken = False
        self._finished: Callable[[], None] | None = None
        self.idle_timer: asyncio.TimerHandle | None = None
        self.on_free: Callable[[], None] | None = None

    # ---- the transport's calls

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.broken = True
        self._end(exc)
        self.free()
        self._on_lost(self)

    def eof_received(self) -> bool:
        if self._duplex is not None:
            self._duplex.feed_eof()
            return self.can_half_close()
        self.broken = True
        self._end(None)
        return False

    def _end(self, exc: BaseException | None) -> None:
        if self._duplex is not None:
            self._duplex.feed_eof()
            return
        if self._head is not None and not self._head.done():
            text = f"{type(exc).__name__}: {exc}" if exc is not None else "EOF"
            if isinstance(exc, ConnectionResetError):
                text = "read: connection reset by peer"
            self._head.set_exception(ProtocolError(text))
        if self._body is not None and self.inbox is not None:
            if isinstance(self._body, EOFBody) and exc is None:
                self._body = None
                self.inbox.feed_eof()
                self._message_end()
            else:
                self.inbox.fail(ProtocolError("unexpected EOF"))

    def data_received(self, data: bytes) -> None:
        if self._duplex is not None:
            self._duplex.feed(data)
            return
        if self._body is not None:
            self._feed_body(data)
            return
        if self._head is None or self._head.done():
            # octets that nobody asked for: this connection is out of step
            self.broken = True
            self.transport.abort()
            return
        self.heard = True
        start = max(0, len(self._pending) - 3)
        self._pending = data = self._pending + data if self._pending else data
        while not self._head.done():
            end = data.find(b"\r\n\r\n", start)
            start = 0
            if end < 0:
                if len(data) > MAX_HEAD or (len(data) > 8 and not data.startswith(b"HTTP/")):
                    self._malformed(data)
                return
            head, data = data[: end + 4], data[end + 4 :]
            self._pending = data
            self._take_head(head)

    def _malformed(self, data: bytes) -> None:
        self.broken = True
        if self._head is not None and not self._head.done():
            line = data[:40].split(b"\n")[0].decode("latin-1")
            self._head.set_exception(
                ProtocolError(f'net/http: HTTP/1.x transport connection broken: malformed HTTP response "{line}"')
            )
        self.transport.abort()

    # ---- heads

    def on_status(self, status: bytes) -> None:
        self._status_text += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def _take_head(self, head: bytes) -> None:
        assert self._head is not None
        self._status_text, self._fields = b"", []
        parser = self._parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError:
            return self._malformed(head)
        status = parser.get_status_code()
        self._parser = None
        headers = Headers.of_wire(self._fields)
        if 100 <= status < 200 and status != 101:
            if status == 100 and self._continue is not None and not self._continue.done():
                self._continue.set_result(None)
            return
        first = headers.first()
        keep = b"close" not in first.get(b"connection", b"").lower() and head[5:8] == b"1.1"
        result = Head(status, self._status_text.decode("utf-8", "replace"), headers, keep)
        hijack = (
            self._upgrading
            and status == 200
            and b"content-length" not in first
            and b"transfer-encoding" not in first
            and self._method != "HEAD"
        )
        if status == 101 or hijack:
            if not self._upgrading:
                return self._malformed(head)
            self._duplex = Duplex(self, self._pending)
            self._pending = b""
            self._head.set_result(result)
            return
        body: Body
        if self._method == "HEAD" or status in (204, 304):
            body = LengthBody(0)
        elif b"chunked" in first.get(b"transfer-encoding", b"").lower():
            body = ChunkedBody()
        elif b"content-length" in first:
            length = first[b"content-length"].strip()
            if not length.isdigit():
                return self._malformed(head)
            body = LengthBody(int(length))
        else:
            body = EOFBody()
            result.keep_alive = False
        self.inbox = Inbox(self.pause_reading, self.resume_reading)
        if body.done:
            self.inbox.feed_eof()
            self._head.set_result(result)
            self._message_end()
            return
        self._body = body
        self._head.set_result(result)
        if self._pending:
            data, self._pending = self._pending, b""
            self._feed_body(data)

    def _feed_body(self, data: bytes) -> None:
        body, inbox = self._body, self.inbox
        assert body is not None and inbox is not None
        try:
            pieces, rest = body.feed(data)
        except BodyError as error:
            self.broken = True
            self._body = None
            inbox.fail(ProtocolError(str(error)))
            self.transport.abort()
            return
        for piece in pieces:
            inbox.feed(piece)
        if body.done:
            if rest:
                self.broken = True
            self._body = None
            inbox.feed_eof()
            self._message_end()

    def _message_end(self) -> None:
        if self.inbox is not None:
            self.inbox.unthrottle()  # what is read of this answer no longer concerns the connection
        finished, self._finished = self._finished, None
        if finished is not None:
            finished()

    # ---- one exchange

    def begin(self, method: str, head: bytes, body: bytes | None, *, upgrading: bool) -> asyncio.Future[Head]:
        """Sends a head (and a whole body where given); the future gives the answer's head."""
        self._method, self._upgrading = method, upgrading
        self._head = self.loop.create_future()
        self._pending = b""
        self.heard = False
        self.inbox = None
        if self.lost:
            self._head.set_exception(ProtocolError("EOF"))
        elif not body:
            self.transport.write(head)
        elif len(body) <= SLICE:
            self.transport.write(head + body)
        else:
            self.transport.writelines([head, body])
        return self._head

    def expect_continue(self) -> asyncio.Future[None]:
        self._continue = self.loop.create_future()
        return self._continue

    async def send_body(self, body: AsyncIterable[bytes], chunked: bool) -> None:
        """Sends a streaming body; what the iterable raises cuts the connection, so that the peer takes no half body."""
        try:
            async for piece in body:
                if not piece:
                    continue
                if self.lost:
                    return
                if chunked:
                    self.transport.writelines([b"%x\r\n" % len(piece), piece, b"\r\n"])
                else:
                    self.transport.write(piece)
                await self.drain()
            if chunked and not self.lost:
                self.transport.write(b"0\r\n\r\n")
        except ConnectionError:
            pass  # the answer, if any, tells why
        except BaseException:
            self.broken = True
            if not self.lost:
                self.transport.abort()
            raise

    def on_message_end(self, call: Callable[[], None]) -> None:
        """`call` runs when the answer's body has come whole; at once if it has."""
        if self._body is None:
            call()
        else:
            self._finished = call

    def free(self) -> None:
        """The exchange no longer counts against its origin's limit."""
        call, self.on_free = self.on_free, None
        if call is not None:
            call()

    def take_duplex(self) -> Duplex | None:
        return self._duplex

    def abort(self) -> None:
        self.broken = True
        self._finished = None
        if not self.lost:
            self.transport.abort()
