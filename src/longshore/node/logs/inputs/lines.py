"""Inputs of lines: syslog over UDP and TCP, and plain lines over TCP."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from typing import Any

from longshore.node.logs.inputs.emit import Emit
from longshore.node.logs.inputs.stream import READ_SIZE, Backlog, Listener
from longshore.wire import syslog
from longshore.wire.forward import Event

log = logging.getLogger("longshore.logs.lines")

#: A line's text to its event; None: it is not one. Raises ValueError.
ParseLine = Callable[[bytes], Event | None]
LONGEST_LINE = 2**20


class SyslogInput:
    """RFC 5424 and RFC 3164, told apart message by message; the tag is `TAG.FACILITY.SEVERITY` as Fluentd makes it."""

    def __init__(
        self,
        emit: Emit,
        *,
        tag: str = "syslog",
        host: str = "127.0.0.1",
        port: int = 5140,
        udp: bool = True,
        tcp: bool = True,
        tls: ssl.SSLContext | None = None,
        shared: bool = False,
    ) -> None:
        self._emit = emit
        self._tag = tag
        self._host = host
        self.port = port
        self._udp, self._tcp, self._tls = udp, tcp, tls
        self._listener = Listener(shared=shared)
        self.backlog = Backlog(self._take)

    async def start(self) -> None:
        """Listen. Raises OSError."""
        if self._tcp:
            self.port = await self._listener.tcp(self._serve, self._host, self.port, self._tls)
        if self._udp:
            socket = await self._listener.udp(self._datagram, self._host, self.port)
            self.port = int(socket.get_extra_info("sockname")[1])

    def _datagram(self, data: bytes, _peer: tuple[str, int]) -> None:
        self.backlog.add(data)

    async def _serve(self, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        framer = syslog.Framer()
        while data := await reader.read(READ_SIZE):
            await self._take(framer.feed(data))
        if rest := framer.rest():
            await self._take([rest])

    async def _take(self, messages: list[bytes]) -> None:
        by_tag: dict[str, list[Event]] = {}
        for raw in messages:
            try:
                parsed = syslog.parse(raw)
            except syslog.SyslogError as error:
                log.debug("not a syslog message (%s): %r", error, raw[:80])
                by_tag.setdefault(f"{self._tag}.unparsed", []).append(
                    (time.time_ns(), {"message": raw.decode("utf-8", "replace")})
                )
                continue
            tag = f"{self._tag}.{parsed.facility}.{parsed.severity}"
            by_tag.setdefault(tag, []).append((parsed.time or time.time_ns(), record_of(parsed)))
        for tag, events in by_tag.items():
            await self._emit(tag, events, durable=False)

    async def close(self) -> None:
        await self._listener.close()
        await self.backlog.close()


def record_of(message: syslog.Message) -> dict[Any, Any]:
    """A syslog message's record, with Fluentd's keys."""
    record: dict[Any, Any] = {"host": message.host, "ident": message.ident, "pid": message.pid}
    if message.msgid:
        record["msgid"] = message.msgid
    record = {key: value for key, value in record.items() if value}
    if message.data:
        record["extradata"] = message.data
    record["message"] = message.message
    return record


def whole_line(raw: bytes) -> Event:
    """A line as it is: `{"message": LINE}`, now."""
    return time.time_ns(), {"message": raw.decode("utf-8", "replace")}


class TCPInput:
    """Lines over TCP under one tag, each read by `parse`."""

    def __init__(
        self,
        emit: Emit,
        *,
        tag: str = "tcp",
        host: str = "127.0.0.1",
        port: int = 5170,
        delimiter: bytes = b"\n",
        parse: ParseLine = whole_line,
        tls: ssl.SSLContext | None = None,
        shared: bool = False,
    ) -> None:
        self._emit = emit
        self._tag = tag
        self._host = host
        self.port = port
        self._delimiter = delimiter
        self._parse = parse
        self._tls = tls
        self._listener = Listener(shared=shared)

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self.port = await self._listener.tcp(self._serve, self._host, self.port, self._tls)

    async def _serve(self, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        rest = b""
        while data := await reader.read(READ_SIZE):
            *lines, rest = (rest + data).split(self._delimiter)
            if len(rest) > LONGEST_LINE:
                raise ValueError("a line is too long")
            await self._take(lines)
        await self._take([rest])

    async def _take(self, lines: list[bytes]) -> None:
        events: list[Event] = []
        for line in lines:
            line = line.rstrip(b"\r")
            if not line:
                continue
            try:
                event = self._parse(line)
            except ValueError:
                event = None
            if event is None:
                log.warning("pattern not matched: %r", line[:200])
            else:
                events.append(event)
        if events:
            await self._emit(self._tag, events, durable=False)

    async def close(self) -> None:
        await self._listener.close()
