"""Carry a container's stdio to and from a hijacked connection, and its log into the API's stream.

Source: Docker Engine API, "Attach to a container" (stream format), "Get container logs".
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

from longshore.engine.runtime import logs
from longshore.engine.runtime.attachment import Attachment
from longshore.wire import crilog, rawstream

from . import detach, logdrivers
from .model import Container, parse_time

Json = dict[str, Any]
_SETTLE_SECONDS = 0.1


class Connection(Protocol):
    """What carries a container's stdio to a client: a connection that has left HTTP, or a WebSocket."""

    async def read(self) -> bytes:
        """Input; b"" at its end."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None:
        """Back-pressure. Raises ConnectionError."""

    async def closed(self) -> None:
        """Returns when the client has gone."""


class Detached(Exception):
    """The client typed its detach keys."""


async def carry(
    io: Attachment,
    connection: Connection,
    *,
    tty: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    keys: bytes | None,
    prefix: bytes = b"",
) -> bool:
    """Both ways until the process ends, or the client goes or detaches. Returns whether it detached.

    tty: bytes go through as they are; otherwise each piece is framed. keys: the detach sequence; None: there is none.
    prefix: sent first (the log, for attach with logs=1).
    """

    async def output() -> None:
        if prefix:
            connection.write(prefix)
        while (piece := await io.read()) is not None:
            stream, data = piece
            if not (stdout if stream == 1 else stderr):
                continue
            connection.write(data if tty else rawstream.encode(stream, data))
            await connection.drain()

    async def input() -> None:
        watcher = detach.Watcher(keys) if keys else None
        while data := await connection.read():
            over = False
            if watcher is not None:
                data, over = watcher.feed(data)
            if data and stdin:
                await io.write(data)
            if over:
                raise Detached
        if stdin:
            io.close_input()

    async def gone() -> None:
        await connection.closed()

    out = asyncio.ensure_future(output())
    given = asyncio.ensure_future(input() if stdin else gone())
    detached = False
    try:
        await asyncio.wait({out, given}, return_when=asyncio.FIRST_COMPLETED)
        if not out.done():
            error = given.exception()
            if isinstance(error, Detached):
                detached = True
            elif stdin and (error is None or isinstance(error, BrokenPipeError)):
                # The client's input has ended, or the process reads no more; its output goes on while the client listens.
                closed = asyncio.ensure_future(gone())
                try:
                    await asyncio.wait({out, closed}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    closed.cancel()
        if out.done():
            with contextlib.suppress(ConnectionError):
                out.result()
    finally:
        for task in (out, given):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        io.close(keep_input=True if detached else None)
    return detached


def log_text(
    container: Container,
    batch: list[Any],
    *,
    stdout: bool,
    stderr: bool,
    timestamps: bool,
    attributes: str,
    raw: bool | None = None,
) -> bytes:
    """A batch of log lines in the form of the API's stream; raw (None: for a terminal), else a frame a line."""
    tty = container.tty if raw is None else raw
    parts: list[bytes] = []
    prefix = attributes.encode() + b" " if attributes else b""
    for line in batch:
        number = 1 if line.stream == b"stdout" else 2
        if not (stdout if number == 1 else stderr):
            continue
        text = line.message + b"\n" if line.full else line.message
        if prefix:
            text = prefix + text
        if timestamps:
            text = _stamp(line.time) + b" " + text
        parts.append(text if tty else rawstream.head(number, len(text)) + text)
    return b"".join(parts)


def _stamp(nanoseconds: int) -> bytes:
    """RFC 3339 with nine digits, as docker logs --timestamps prints it."""
    return crilog.format_time(nanoseconds)


def attributes_of(container: Container) -> str:
    """What --details shows of a container: "name=value" pairs joined by commas."""
    found = logdrivers.details(
        container.host["LogConfig"]["Config"], container.config["Labels"] or {}, container.config["Env"] or []
    )
    return ",".join(f"{name}={value}" for name, value in found.items())


# From this size on a block of one stream goes out as one frame: a line costs a tenth of what a frame costs.
_BULK = 32768


def _bulk(block: bytes, tty: bool, stdout: bool, stderr: bool) -> bytes | None:
    """A large block whose records are of one stream, rendered at once; None: take it line by line."""
    if len(block) < _BULK:
        return None
    found = crilog.text_of(block)
    if found is None:
        return None
    stream, text = found
    number = 1 if stream == b"stdout" else 2
    if not (stdout if number == 1 else stderr):
        return b""
    return text if tty else rawstream.head(number, len(text)) + text


async def _settle(container: Container) -> None:
    """Give a container that has just started, and has said nothing yet, the time to say its first words and end.

    dockerd's own start takes that long, and scripts ask for the log at once after it (docker-py's tests do).
    """
    left = parse_time(container.state.started_at) / 1e9 + _SETTLE_SECONDS - time.time()
    if container.ended is None or not 0 < left <= _SETTLE_SECONDS:
        return
    with contextlib.suppress(OSError):
        if container.log_path.stat().st_size:
            return
    await asyncio.wait([container.ended], timeout=left)


async def read_log(
    container: Container,
    *,
    stdout: bool,
    stderr: bool,
    since: int = 0,
    until: int = 0,
    tail: int = -1,
    follow: bool = False,
    timestamps: bool = False,
    attributes: str = "",
    raw: bool | None = None,
) -> AsyncIterator[bytes]:
    """The container's log in the form of the API's stream; following ends with the container.

    A line of a running container comes with its end of line (or after 16 KiB of it), as dockerd's drivers get it; what is
    unfinished when the container ends comes then, without one.
    since, until, tail, follow: as runtime.logs.read. attributes: put before each line (--details). raw: as log_text.
    """
    raw = container.tty if raw is None else raw
    if not follow:
        await _settle(container)
    ended: asyncio.Future[object] | None = container.ended
    running = container.state.running and not container.state.restarting
    if not container.state.running and not container.state.restarting:
        follow = False
    joiner = logs.Joiner()
    plain = not (since or until or timestamps or attributes)

    def render(batch: list[Any]) -> bytes:
        return log_text(
            container, batch, stdout=stdout, stderr=stderr, timestamps=timestamps, attributes=attributes, raw=raw
        )

    async for block in logs.blocks(
        container.log_path, tail=tail, follow=follow, until=until, ended=ended, whole=running
    ):
        if plain and joiner.empty:
            text = _bulk(block, raw, stdout, stderr)
            if text is not None:
                yield text
                continue
        batch, done = logs.select(joiner.push(block), since, until)
        if batch:
            yield render(batch)
        if done:
            return
    left = joiner.flush()
    if running and (ended is None or not ended.done()):
        # An earlier run's is as finished as it will ever be.
        began = parse_time(container.state.started_at)
        left = [line for line in left if line.time < began]
    batch, _ = logs.select(left, since, until)
    if batch:
        yield render(batch)
