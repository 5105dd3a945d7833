"""SPDY/3.1 sessions on the HTTP core: negotiation of both sides, streams opened by either.

Source: k8s.io/apimachinery/pkg/util/httpstream (Handshake, spdy).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import orjson

from longshore.machinery.errors import StatusError
from longshore.machinery.http import Client, Duplex, Request
from longshore.wire import spdy as wire

from .channel import ByteStream, Channel, Gate, linger, refuse

log = logging.getLogger("longshore.streams")
PROTOCOL_VERSION = "X-Stream-Protocol-Version"
ACCEPTED_VERSIONS = "X-Accepted-Stream-Protocol-Versions"
MAX_STREAMS = 4096
REPLY_TIMEOUT = 30.0
IDLE_TIMEOUT = 4 * 3600.0  # upstream's streamingConnectionIdleTimeout


class Stream(Channel):
    """One SPDY stream. `headers`: lower-case name to values, as the opener gave them."""

    def __init__(self, session: Session, id: int, headers: dict[str, list[str]], gate: Gate) -> None:
        super().__init__(gate)
        self.session = session
        self.id = id
        self.headers = headers
        self.replied: asyncio.Future[None] | None = None
        self._read_closed = False

    def header(self, name: str) -> str:
        return wire.first(self.headers, name)

    async def drain(self) -> None:
        await self.session.wire.drain()

    def _send(self, data: bytes) -> None:
        self.session.send(wire.data_frames(self.id, data))

    def _send_close(self) -> None:
        self.session.send(wire.data_frames(self.id, b"", fin=True))
        self._forget()

    def reset(self, status: int = wire.CANCEL) -> None:
        """Gives the stream up in both directions."""
        if not (self._write_closed and self._read_closed):
            self.session.send([wire.rst_stream(self.id, status)])
        self._write_closed = self._read_closed = True
        self._inbox.feed_eof()
        self._forget()

    # what the session hands in
    def _take(self, data: bytes, fin: bool) -> None:
        if self._read_closed:
            return
        if data:
            self._inbox.feed(data)
        if fin:
            self._read_closed = True
            self._inbox.feed_eof()
            self._forget()

    def _was_reset(self) -> None:
        self._write_closed = self._read_closed = True
        self._inbox.fail(ConnectionResetError("stream reset"))
        if self.replied is not None and not self.replied.done():
            self.replied.set_exception(ConnectionResetError("stream refused"))
        self._forget()

    def _session_gone(self) -> None:
        self._write_closed = self._read_closed = True
        self._inbox.feed_eof()
        if self.replied is not None and not self.replied.done():
            self.replied.set_exception(ConnectionResetError("connection closed"))

    def _forget(self) -> None:
        if self._write_closed and self._read_closed:
            self.session.streams.pop(self.id, None)


class Session:
    """One SPDY connection.

    on_open: called for each stream that the peer opens, before the reply goes out (so it must not write); it raises
    ValueError to refuse one. Without it all are refused.
    idle_timeout: seconds without any frame after which the session is closed.
    """

    def __init__(
        self,
        stream: ByteStream,
        *,
        client: bool,
        on_open: Callable[[Stream], None] | None = None,
        idle_timeout: float = IDLE_TIMEOUT,
    ) -> None:
        self.wire = stream
        self.streams: dict[int, Stream] = {}
        self._client = client
        self._on_open = on_open
        self._next = 1 if client else 2
        self._last_opened = 0
        self._sender = wire.Sender()
        self._gate = Gate()
        self._gone = False
        self._loop = asyncio.get_running_loop()
        self._idle_timeout = idle_timeout
        self._heard = self._loop.time()
        self._idle = self._loop.call_later(idle_timeout, self._check_idle)
        self.reader = self._loop.create_task(self._read())

    def send(self, frames: list[bytes]) -> None:
        if not self._gone:
            self.wire.writelines(frames)

    async def open(self, headers: wire.Fields) -> Stream:
        """Opens a stream and waits for the peer's reply; ConnectionResetError when it refuses or has gone."""
        if self._gone:
            raise ConnectionResetError("connection closed")
        id, self._next = self._next, self._next + 2
        values = {k.lower(): [v] if isinstance(v, str) else v for k, v in headers.items()}
        stream = self.streams[id] = Stream(self, id, values, self._gate)
        stream.replied = self._loop.create_future()
        self.send([self._sender.syn_stream(id, headers)])
        try:
            async with asyncio.timeout(REPLY_TIMEOUT):
                await stream.replied
        except TimeoutError:
            stream.reset()
            raise ConnectionResetError("timed out waiting for the stream's reply") from None
        return stream

    async def closed(self) -> None:
        """Returns when the peer has gone."""
        await asyncio.shield(self.reader)

    def close(self) -> None:
        """Closes at once, after what is queued."""
        if not self._gone:
            self.send([wire.goaway(self._last_opened)])
        self._end()
        self.wire.close()

    async def finish(self) -> None:
        """Ends every stream of ours and lets the peer go first."""
        for stream in list(self.streams.values()):
            stream.close()
        self._on_open = None
        for stream in list(self.streams.values()):
            stream._take(b"", True)  # what still comes is not wanted
        try:
            await linger(self.wire, self.reader)
        finally:
            self._end()

    # ---- what comes

    async def _read(self) -> None:
        receiver = wire.Receiver()
        try:
            while data := await self.wire.read(256 * 1024):
                self._heard = self._loop.time()
                for event in receiver.feed(data):
                    self._take(event)
                await self._gate.passed()
        except wire.SpdyError as error:
            log.debug("SPDY session ends: %s", error)
            self.send([wire.goaway(self._last_opened, wire.PROTOCOL_ERROR)])
            self.wire.close()
        except ConnectionError:
            pass
        finally:
            self._end()

    def _take(self, event: wire.Event) -> None:
        if isinstance(event, wire.Data):
            if stream := self.streams.get(event.stream):
                stream._take(event.data, event.fin)
        elif isinstance(event, wire.Opened):
            self._opened(event)
        elif isinstance(event, wire.Replied):
            if stream := self.streams.get(event.stream):
                if stream.replied is not None and not stream.replied.done():
                    stream.replied.set_result(None)
                stream._take(b"", event.fin)
        elif isinstance(event, wire.Reset):
            if stream := self.streams.get(event.stream):
                stream._was_reset()
        elif isinstance(event, wire.Pinged):
            if event.id % 2 != (1 if self._client else 0):
                self.send([wire.ping(event.id)])

    def _opened(self, event: wire.Opened) -> None:
        ours = event.stream % 2 == (1 if self._client else 0)
        if ours or event.stream <= self._last_opened:
            raise wire.SpdyError("stream id out of order")
        self._last_opened = event.stream
        if self._on_open is None or len(self.streams) >= MAX_STREAMS:
            self.send([wire.rst_stream(event.stream, wire.REFUSED_STREAM)])
            return
        stream = Stream(self, event.stream, event.headers, self._gate)
        self.streams[stream.id] = stream
        try:
            self._on_open(stream)
        except ValueError as error:
            log.warning("stream rejected: %s", error)
            self.streams.pop(stream.id, None)
            self.send([wire.rst_stream(stream.id, wire.REFUSED_STREAM)])
            return
        self.send([self._sender.syn_reply(stream.id)])
        stream._take(b"", event.fin)

    def _check_idle(self) -> None:
        left = self._heard + self._idle_timeout - self._loop.time()
        if left <= 0:
            self.close()
        else:
            self._idle = self._loop.call_later(left, self._check_idle)

    def _end(self) -> None:
        if not self._gone:
            self._gone = True
            self._idle.cancel()
            for stream in list(self.streams.values()):
                stream._session_gone()
            self.streams.clear()


def is_spdy(request: Request) -> bool:
    return request.wants_upgrade and "spdy/3.1" in (request.headers.get("upgrade") or "").lower()


def negotiate(request: Request, protocols: Sequence[str]) -> str:
    """The protocol for a SPDY upgrade. Raises Refused in upstream's words (httpstream.Handshake, UpgradeResponse)."""
    offered = [p.strip() for v in request.headers.getall(PROTOCOL_VERSION) for p in v.split(",") if p.strip()]
    if not offered:
        raise refuse(400, f"unable to upgrade: {PROTOCOL_VERSION} is required")
    chosen = next((p for p in offered if p in protocols), "")
    if not chosen:
        message = (
            "unable to upgrade: unable to negotiate protocol: "
            f"client supports [{' '.join(offered)}], server accepts [{' '.join(protocols)}]"
        )
        raise refuse(403, message, tuple((ACCEPTED_VERSIONS, p) for p in protocols))
    if not is_spdy(request):
        raise refuse(400, "unable to upgrade: missing upgrade headers in request")
    return chosen


async def accept(request: Request, protocol: str, on_open: Callable[[Stream], None]) -> Session:
    """Upgrades a request whose protocol was negotiated."""
    duplex = await request.upgrade(
        101, [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), (PROTOCOL_VERSION, protocol)]
    )
    return Session(duplex, client=False, on_open=on_open)


async def upgrade(
    client: Client,
    url: str,
    protocols: Sequence[str],
    *,
    method: str = "POST",
    headers: Sequence[tuple[str, str]] = (),
    timeout: float | None = 30.0,
) -> tuple[Duplex, str]:
    """Asks a server for SPDY; gives the raw connection and the protocol chosen.

    Raises StatusError when the server answered with a Status, else UpgradeError with upstream's words.
    """
    fields = [
        *headers,
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        *((PROTOCOL_VERSION, p) for p in protocols),
    ]
    response, duplex = await client.upgrade(method, url, headers=fields, timeout=timeout)
    if duplex is not None and response.status == 101:
        if "spdy/3.1" not in (response.headers.get("upgrade") or "").lower():
            duplex.abort()
            raise UpgradeError("unable to upgrade connection: the server chose another protocol")
        chosen = response.headers.get(PROTOCOL_VERSION) or ""
        if chosen and chosen not in protocols:
            duplex.abort()
            raise UpgradeError(f"unable to upgrade connection: unknown protocol {chosen!r}")
        return duplex, chosen
    if duplex is not None:
        duplex.abort()
        raise UpgradeError(f"unable to upgrade connection: unexpected status {response.status}")
    try:
        body = await response.read(64 * 1024)
    except Exception:
        raise UpgradeError("unable to upgrade connection: unable to read error from server response") from None
    raise _refusal(response.status, body)


class UpgradeError(Exception):
    """A server did not give streams; the text is upstream's."""


def _refusal(code: int, body: bytes) -> Exception:
    try:
        value = orjson.loads(body)
    except ValueError:
        value = None
    if isinstance(value, dict) and value.get("kind") == "Status":
        return StatusError(
            int(value.get("code") or code),
            str(value.get("reason") or ""),
            str(value.get("message") or ""),
            value.get("details"),
        )
    return UpgradeError(f"unable to upgrade connection: {body.decode('utf-8', 'replace').strip()}")
