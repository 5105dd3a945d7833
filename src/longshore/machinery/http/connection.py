"""One connection of a server: heads through httptools, bodies, answers in order, time limits."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING

from .body import Body, BodyError, LengthBody
from .flow import SLICE, Duplex, FlowProtocol, Inbox
from .heads import CONTINUE, HeadParser, RefusedRequest, date_line, header_lines, status_line
from .message import BodyTooLarge, BodyWriter, Peer, Request, RequestTimeout, Response
from .tls import intermediates

if TYPE_CHECKING:
    from .server import Server

log = logging.getLogger("longshore.http")
MAX_PIPELINED = 65536
MAX_DISCARD = 256 * 1024  # of a body that no handler read; Go's net/http reads over as much


class Connection(FlowProtocol):
    """Requests are handled one after another; what a client pipelines waits as octets.

    Only heads go through httptools, a whole one at a time: so it is known where each message ends, and octets after an
    upgrade or a hijack without an Upgrade field are never taken for a request.
    """

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self._pending = b""
        self._scanned = 0
        self._heads = HeadParser()
        self._request: Request | None = None
        self._body: Body | None = None
        self._discarding = -1  # octets of an unread body that may still be read over; -1: the handler reads
        self._writer: BodyWriter | None = None
        self._duplex: Duplex | None = None
        self._answered = False
        self._task: asyncio.Task[None] | None = None
        self._peer: Peer | None = None
        self._eof = False
        self._gone: list[asyncio.Future[None]] = []
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    # ---- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.server.connections.add(self)
        self._set_deadline(self.server.head_timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.server.connections.discard(self)
        self._heads.release()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._peer_gone()
        if self._duplex is not None:
            self._duplex.feed_eof()
        elif self._writer is not None and self._task is not None:
            self._task.cancel()  # nothing that a streaming handler makes can be delivered any more
        self._pending = b""

    def eof_received(self) -> bool:
        self._eof = True
        if self._duplex is not None:
            self._duplex.feed_eof()
            self.half_closed()
            return self.can_half_close()
        self._peer_gone()
        # half closed: a whole answer may still be wanted; a stream ends with its reader, as in Go
        return self._request is not None and self._writer is None and self.can_half_close()

    def data_received(self, data: bytes) -> None:
        if self._duplex is not None:
            self._duplex.feed(data)
            return
        if self._body is not None:
            data = self._feed_body(data)
            if not data:
                return
        self._pending = self._pending + data if self._pending else data
        if self._request is not None:
            if len(self._pending) > MAX_PIPELINED:
                self.pause_reading()
            return
        self._next()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._request is None and self._pending:
            self._next()

    # ---- heads

    def _next(self) -> None:
        """Takes requests out of what has come until one has to wait."""
        while self._request is None and self._body is None and self._pending:
            if self.lost or self.write_paused or self.transport.is_closing():
                return
            data = self._pending
            end = data.find(b"\r\n\r\n", self._scanned)
            if end < 0:
                if data[:2] == b"\r\n":
                    self._pending = data.lstrip(b"\r\n")
                    continue
                if len(data) > self.server.max_head:
                    return self._refuse(431, "Request Header Fields Too Large")
                if b"\n\n" in data or b"\n\r\n" in data or data[0] == 0x16:
                    # 0x16: a TLS hello; who asks a plain port for TLS first (container tools do) waits for this answer
                    return self._refuse(400, "Bad Request")
                if not self._scanned:
                    self._set_deadline(self.server.head_timeout)
                self._scanned = max(1, len(data) - 3)
                return
            self._scanned = 0
            head, self._pending = data[: end + 4], data[end + 4 :]
            if end > self.server.max_head:
                return self._refuse(431, "Request Header Fields Too Large")
            if head[:1] == b"\r":
                head = head.lstrip(b"\r\n")
                if not head:
                    continue
            try:
                request, self._body = self._heads.parse(self, head)
            except RefusedRequest as refused:
                return self._refuse(refused.status, refused.message)
            self._deadline = None
            self._discarding = -1
            self._request = request
            self._answered = False
            self._dispatch(request)

    # ---- bodies

    def _feed_body(self, data: bytes) -> bytes:
        """Takes octets of the body; gives what follows it."""
        body = self._body
        assert body is not None
        inbox = self._request._inbox if self._request is not None and self._discarding < 0 else None
        try:
            pieces, rest = body.feed(data)
        except BodyError as error:
            self.pause_reading()
            if inbox is not None:
                inbox.fail(RefusedRequest(400, f"Bad Request: {error}"))
                self.broken_body()
            else:
                self._body = None
                self.transport.close()
            return b""
        if inbox is not None:
            for piece in pieces:
                inbox.feed(piece)
        else:
            self._discarding -= sum(map(len, pieces))
            if self._discarding < 0:
                self._body = None
                self.transport.close()
                return b""
        if body.done:
            self._body = None
            if inbox is not None:
                inbox.feed_eof()
        return rest

    def broken_body(self) -> None:
        """Nothing after this can be understood: the connection closes after the answer."""
        self._body = None
        self._eof = True

    def whole_body(self, rest: bytes) -> None:
        """The body was read to its end past the transport. rest: what follows it."""
        self._body = None
        self._pending = rest

    async def next_body(self, request: Request, timeout: bool) -> bytes:
        inbox: Inbox = request._inbox
        if request._continue:
            request._continue = False
            if not self._answered and not inbox.chunks and not inbox.eof and not self.lost:
                self.transport.write(CONTINUE)
        if not timeout or inbox.chunks or inbox.eof:
            return await inbox.get()
        try:
            async with asyncio.timeout(self.server.body_timeout):
                return await inbox.get()
        except TimeoutError:
            raise RequestTimeout("the request's body stopped coming") from None

    # ---- handling and answers

    def _dispatch(self, request: Request) -> None:
        if self._body is not None and self._pending:
            data, self._pending = self._pending, b""
            self._pending = self._feed_body(data)
        try:
            result = self.server.handler(request)
        except Exception as error:
            result = self._failed(request, error)
        if isinstance(result, Response):
            if self._send(request, result):
                self._finish(request)
            else:
                self._task = self.loop.create_task(self._run_large(request, result))
        elif result is None:
            log.error("%s %s: the handler gave no answer", request.method, request.path)
            self._send(request, self.server.error(500, "Internal Server Error"))
            self._finish(request)
        else:
            self._task = self.loop.create_task(self._run(request, result))

    async def _run(self, request: Request, result: Awaitable[Response | None]) -> None:
        try:
            response = await result
            if response is None:
                if self._writer is not None:
                    await self._writer.finish()
                elif self._duplex is None:
                    log.error("%s %s: the handler gave no answer", request.method, request.path)
                    response = self.server.error(500, "Internal Server Error")
        except asyncio.CancelledError:
            self._task = None
            if not self.lost:
                self.transport.abort()
            return
        except Exception as error:
            if self._answered:
                if not isinstance(error, ConnectionError):
                    log.error("%s %s: failed after its answer began", request.method, request.path, exc_info=error)
                self._task = None
                if not self.lost:
                    self.transport.abort()  # a cut connection is how the peer learns that the body is not whole
                return
            response = self._failed(request, error)
        await self._conclude(request, response)

    async def _run_large(self, request: Request, response: Response) -> None:
        await self._conclude(request, response)

    async def _conclude(self, request: Request, response: Response | None) -> None:
        try:
            if response is not None and not self._answered and not self._send(request, response):
                await self._send_large(request, response)
        except (ConnectionError, asyncio.CancelledError):
            self._task = None
            if not self.lost:
                self.transport.abort()
            return
        self._task = None
        self._finish(request)
        self._next()

    def _failed(self, request: Request, error: Exception) -> Response:
        if isinstance(error, BodyTooLarge):
            return self.server.error(413, f"the request's body is longer than {error.args[0]} octets")
        if isinstance(error, RequestTimeout):
            request.keep_alive = False
            return self.server.error(408, "Request Timeout")
        if isinstance(error, RefusedRequest):
            request.keep_alive = False
            return self.server.error(error.status, error.message)
        if not (isinstance(error, ConnectionError) and (self.lost or self._eof)):
            log.error("%s %s failed", request.method, request.path, exc_info=error)
        return self.server.error(500, "Internal Server Error")

    def _closes(self, request: Request) -> bool:
        """Whether the connection ends with this answer; also settles what becomes of an unread body."""
        if not request.keep_alive or self._eof or self.server.closing:
            return True
        body = self._body
        if body is None:
            return False
        if request._continue:
            return True  # the client may send the body or not: there is no telling
        return isinstance(body, LengthBody) and body.remaining > MAX_DISCARD

    def _head(self, request: Request, status: int, headers: Sequence[tuple[str, str]], extra: bytes) -> bytes:
        if self._closes(request):
            request.keep_alive = False
            extra += b"Connection: close\r\n"
        elif request.version == "1.0":
            extra += b"Connection: keep-alive\r\n"
        return b"%b%b%b%b\r\n" % (status_line(status), header_lines(headers), date_line(), extra)

    def _send(self, request: Request, response: Response) -> bool:
        """Writes a whole answer; False when it is large and must be written in slices."""
        if self.lost:
            return True
        body = response.body
        status = response.status
        size = len(body) if isinstance(body, bytes) else sum(map(len, body))
        bare = request.method == "HEAD" or status in (204, 304)
        if size > SLICE and not bare:
            return False
        if status == 204 or (status == 304 and not size):
            extra = b""
        elif bare and any(name.lower() == "content-length" for name, _ in response.headers):
            extra = b""  # HEAD: the length that GET would have
        else:
            extra = b"Content-Length: %d\r\n" % size
        if response.content_type is not None:
            extra += b"Content-Type: %b\r\n" % response.content_type.encode()
        self._answered = True
        head = self._head(request, status, response.headers, extra)
        if bare or not size:
            self.transport.write(head)
        elif isinstance(body, bytes):
            self.transport.write(head + body)
        else:
            self.transport.write(b"".join((head, *body)))
        return True

    async def _send_large(self, request: Request, response: Response) -> None:
        body = response.body
        pieces = [body] if isinstance(body, bytes) else body
        extra = b"Content-Length: %d\r\n" % sum(map(len, pieces))
        if response.content_type is not None:
            extra += b"Content-Type: %b\r\n" % response.content_type.encode()
        self._answered = True
        batch = [self._head(request, response.status, response.headers, extra)]
        size = 0
        for piece in pieces:
            if len(piece) > SLICE:
                view = memoryview(piece)
                cut = SLICE - size
                batch.append(bytes(view[:cut]))
                await self._write_slice(batch)
                for start in range(cut, len(piece), SLICE):
                    await self._write_slice([view[start : start + SLICE]])
                batch, size = [], 0
                continue
            batch.append(piece)
            size += len(piece)
            if size >= SLICE:
                await self._write_slice(batch)
                batch, size = [], 0
        if batch:
            await self._write_slice(batch)

    async def _write_slice(self, batch: Sequence[bytes | memoryview]) -> None:
        if self.lost:
            raise ConnectionResetError("connection lost")
        self.transport.write(batch[0] if len(batch) == 1 else b"".join(batch))
        if self.write_paused:
            try:
                async with asyncio.timeout(self.server.write_timeout):
                    await self.drain()
            except TimeoutError:
                raise ConnectionResetError("the peer takes nothing") from None

    def start(self, request: Request, status: int, headers: Sequence[tuple[str, str]]) -> BodyWriter:
        if self._answered:
            raise RuntimeError("the request is answered already")
        sized = any(name.lower() == "content-length" for name, _ in headers)
        chunked = not sized and request.version == "1.1" and status not in (204, 304)
        if not sized and not chunked and status not in (204, 304):
            request.keep_alive = False  # HTTP/1.0: the end of the connection ends the body
        self._answered = True
        head = self._head(request, status, headers, b"Transfer-Encoding: chunked\r\n" if chunked else b"")
        if not self.lost:
            self.transport.write(head)
        self._writer = BodyWriter(self, chunked, request.method == "HEAD" or status in (204, 304))
        return self._writer

    async def upgrade(self, request: Request, status: int, headers: Sequence[tuple[str, str]]) -> Duplex:
        if self._answered:
            raise RuntimeError("the request is answered already")
        async for _ in request.chunks():
            pass
        if self.lost:
            raise ConnectionResetError("connection lost")
        fields = list(headers)
        names = {name.lower() for name, _ in fields}
        if status == 101:
            if "connection" not in names:
                fields.append(("Connection", "Upgrade"))
            if "upgrade" not in names:
                fields.append(("Upgrade", request.headers.get("upgrade") or "tcp"))
        self._answered = True
        self.transport.write(b"%b%b\r\n" % (status_line(status), header_lines(fields)))
        early, self._pending = self._pending, b""
        self._duplex = Duplex(self, early)
        if self._eof:
            self._duplex.feed_eof()
            self.half_closed()
        self.resume_reading()
        return self._duplex

    def _finish(self, request: Request) -> None:
        """After an answer: closes, or makes ready for the next request."""
        if self._duplex is not None:
            self._duplex.close()
            return
        if self.lost:
            return
        self._request = None
        self._writer = None
        if not request.keep_alive or self._eof or self.server.closing:
            self._close_gently()
            return
        if self._body is not None:
            self._discarding = MAX_DISCARD
        if self._read_paused:
            self.resume_reading()
        self._set_deadline(self.server.idle_timeout)

    def _refuse(self, status: int, message: str) -> None:
        """Answers what is no request, and closes."""
        response = self.server.error(status, message)
        body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
        fields = [*response.headers, ("Content-Length", str(len(body))), ("Connection", "close")]
        if response.content_type is not None:
            fields.append(("Content-Type", response.content_type))
        self.transport.write(b"%b%b%b\r\n%b" % (status_line(status), header_lines(fields), date_line(), body))
        self._pending = b""
        self._close_gently()

    def _close_gently(self) -> None:
        """Closes after the answer. Octets that still come are not read: over TCP, the answer goes out before a reset."""
        if self._body is None or not self.transport.can_write_eof():
            self.transport.close()
            return
        # the client is still sending: a close now would reset the connection and the answer could be lost
        self._discarding = 16 * MAX_DISCARD
        self.transport.write_eof()
        self._set_deadline(2.0)

    # ---- the peer

    @property
    def peer(self) -> Peer:
        found = self._peer
        if found is None:
            found = self._peer = self._find_peer()
        return found

    def _find_peer(self) -> Peer:
        get = self.transport.get_extra_info
        sock = get("socket")
        if sock is not None and sock.family == socket.AF_UNIX:
            pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return Peer(uid=uid, gid=gid, pid=pid)
        name = get("peername")
        session = get("ssl_object")
        address = (name[0], name[1]) if name else None
        if session is None:
            return Peer(address)
        certificate = get("peercert") or None
        if certificate is None:
            return Peer(address, tls=True)
        return Peer(address, certificate, session.getpeercert(True), intermediates(session), True)

    async def gone(self) -> None:
        if not self.lost and not self._eof:
            waiter = self.loop.create_future()
            self._gone.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._gone:
                    self._gone.remove(waiter)

    def _peer_gone(self) -> None:
        request = self._request
        if request is not None and request._inbox is not None and self._body is not None:
            request._inbox.fail(ConnectionResetError("unexpected EOF"))
        waiters, self._gone = self._gone, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # ---- time limits

    def _set_deadline(self, seconds: float) -> None:
        self._deadline = self.loop.time() + seconds
        timer = self._timer
        if timer is None or timer.when() > self._deadline:
            if timer is not None:
                timer.cancel()
            self._timer = self.loop.call_at(self._deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        deadline = self._deadline
        if self.lost or deadline is None:
            return
        if self.loop.time() < deadline:
            self._timer = self.loop.call_at(deadline, self._tick)
        elif self._request is None and self._pending and not self.write_paused:
            self._refuse(408, "Request Timeout")
        else:
            self.transport.abort() if self.write_paused or self._body is not None else self.transport.close()

    @property
    def busy(self) -> bool:
        """Whether a whole answer is under way."""
        return not self.lost and self._request is not None

    def shut(self) -> None:
        """The server closes: an idle connection and a stream go at once, a whole answer under way is waited for."""
        if self.lost:
            return
        if self._request is None:
            self.transport.close()
        elif self._writer is not None or self._duplex is not None:
            self.kill()

    def kill(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if not self.lost:
            self.transport.abort()
