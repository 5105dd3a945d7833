"""A container's streams: logs, attach (raw connections and WebSockets), the size of its terminal.

Source: Docker Engine API, "Attach to a container", "Get container logs"; moby api/server/router/container.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from longshore.engine.containers import detach, logoptions, streams
from longshore.engine.containers.model import Container
from longshore.engine.errors import Conflict, EngineError, InvalidParameter, NotImplementedUpstream
from longshore.engine.runtime.attachment import Attachment
from longshore.machinery.http import Duplex, Response

from .router import HEADERS, Call, Router, empty
from .times import parse_timestamp

routes = Router()

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"


def _stream_type(call: Call, container: Container) -> str:
    return MULTIPLEXED if call.version >= (1, 42) and not container.tty else RAW


@routes.route("POST", "/containers/{name:*}/resize")
async def resize(call: Call) -> Response:
    height, width = terminal_size(call)
    service = call.api.containers
    container = service.find(call.path["name"])
    if not container.state.running or container.state.restarting:
        raise Conflict(f"container {container.id} is not running")
    with contextlib.suppress(Exception):
        service.runtime.resize(container.id, height, width)
    service.event(container, "resize", {"height": str(height), "width": str(width)})
    return empty(200)


def terminal_size(call: Call) -> tuple[int, int]:
    result = []
    for name, what in (("h", "height"), ("w", "width")):
        text = call.param(name)
        if not re.fullmatch(r"\d+", text):
            raise InvalidParameter(f'invalid resize {what} "{text}": invalid syntax')
        if int(text) > 2**32 - 1:
            raise InvalidParameter(f'invalid resize {what} "{text}": value out of range')
        result.append(min(int(text), 1000))
    return result[0], result[1]


@routes.route("GET", "/containers/{name:*}/logs")
async def logs(call: Call) -> Response | None:
    service = call.api.containers
    stdout, stderr = call.flag("stdout"), call.flag("stderr")
    if not stdout and not stderr:
        raise InvalidParameter("Bad parameters: you must choose at least one stream")
    container = service.find(call.path["name"])
    settings = container.host["LogConfig"]
    if settings["Type"] == "none" or logoptions.cache_disabled(settings["Type"], settings["Config"]):
        raise NotImplementedUpstream("configured logging driver does not support reading")
    since, until = parse_timestamp(call.param("since")), parse_timestamp(call.param("until"))
    wanted = call.param("tail")
    tail = int(wanted) if re.fullmatch(r"\d+", wanted) else -1
    attributes = streams.attributes_of(container) if call.flag("details") else ""
    timestamps = call.flag("timestamps")
    writer = await call.start(200, _stream_type(call, container))
    async for text in streams.read_log(
        container,
        stdout=stdout,
        stderr=stderr,
        since=since,
        until=until,
        tail=tail,
        follow=call.flag("follow"),
        timestamps=timestamps,
        attributes=attributes,
    ):
        writer.write(text)
        await writer.drain()
    return None


@routes.route("POST", "/containers/{name:*}/attach")
async def attach(call: Call) -> Response | None:
    try:
        container, keys = _check_attach(call)
    except EngineError as error:
        return plain_failure(error)
    wanted = Wanted(
        call.flag("stdin"), call.flag("stdout"), call.flag("stderr"), call.flag("logs"), call.flag("stream")
    )
    await _attach(call, container, keys, wanted, lambda: hijack(call, _stream_type(call, container)), raw=container.tty)
    return None


@routes.route("GET", "/containers/{name:*}/attach/ws")
async def attach_websocket(call: Call) -> Response | None:
    from .websocket import WebSocket, accept

    container, keys = _check_attach(call)
    names = ("stdin", "stdout", "stderr")
    stdin, stdout, stderr = (call.flag(name) if call.version >= (1, 42) else True for name in names)
    taken: list[WebSocket] = []

    async def connect() -> WebSocket:
        taken.append(await accept(call))
        return taken[0]

    wanted = Wanted(stdin, stdout, stderr, call.flag("logs"), call.flag("stream"))
    try:
        await _attach(call, container, keys, wanted, connect, raw=True)
    finally:
        for connection in taken:
            connection.close()
    return None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an attach asks for: which streams, the log first, and then what comes."""

    stdin: bool
    stdout: bool
    stderr: bool
    logs: bool
    stream: bool


async def _attach(
    call: Call,
    container: Container,
    keys: bytes,
    wanted: Wanted,
    connect: Callable[[], Awaitable[streams.Connection]],
    *,
    raw: bool,
) -> None:
    """Carry a container's stdio over the connection that `connect` takes. raw: output has no frames."""
    service = call.api.containers
    # Ask for the stdio before the head goes out: the client starts the container when it has seen that.
    waiting = asyncio.ensure_future(service.attachment(container, stdin=wanted.stdin)) if wanted.stream else None
    connected = False
    try:
        await asyncio.sleep(0)
        prefix = b""
        if wanted.logs and container.host["LogConfig"]["Type"] != "none":
            # Before the client can send anything that would be answered into the log as well.
            async for text in streams.read_log(container, stdout=wanted.stdout, stderr=wanted.stderr, raw=raw):
                prefix += text
        connection = await connect()
        if prefix:
            # docker-py reads the head through a buffer and then the bare connection: what comes with the head is lost.
            await asyncio.sleep(0.05)
        service.event(container, "attach")
        io = await _attached(waiting, connection) if waiting is not None else None
        connected = io is not None
    finally:
        if waiting is not None and not connected:
            await _give_up(waiting)
    if io is None:
        connection.write(prefix)
        with contextlib.suppress(ConnectionError):
            await connection.drain()
        return
    ended = container.ended
    detached = await streams.carry(
        io,
        connection,
        tty=raw,
        stdin=wanted.stdin and container.config["OpenStdin"],
        stdout=wanted.stdout,
        stderr=wanted.stderr,
        keys=keys if container.tty else None,
        prefix=prefix,
    )
    if detached:
        service.event(container, "detach")
    elif ended is not None and not ended.done():
        # Who asks after the end of the output finds the exit code.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.25):
                await asyncio.shield(ended)


async def _attached(waiting: asyncio.Future[Attachment], connection: streams.Connection) -> Attachment | None:
    """The stdio when there is some; None: the client has gone, or the container does not start."""
    gone = asyncio.ensure_future(connection.closed())
    either: set[asyncio.Future[Any]] = {waiting, gone}
    try:
        done, _ = await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # A WebSocket's end is found by reading it, and there may be one reader only.
        gone.cancel()
        await asyncio.wait({gone})
    if waiting not in done or waiting.cancelled():
        return None
    try:
        return waiting.result()
    except EngineError:
        return None


async def _give_up(waiting: asyncio.Future[Attachment]) -> None:
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError, EngineError):
        (await waiting).close()


def _check_attach(call: Call) -> tuple[Container, bytes]:
    try:
        keys = detach.parse(call.param("detachKeys"))
    except ValueError:
        raise InvalidParameter(f"Invalid detach keys ({call.param('detachKeys')}) provided") from None
    container = call.api.containers.find(call.path["name"])
    if container.state.paused:
        raise Conflict(f"container {call.path['name']} is paused, unpause the container before attach")
    if container.state.restarting:
        raise Conflict(f"container {call.path['name']} is restarting, wait until the container is running")
    return container, keys


def plain_failure(error: EngineError) -> Response:
    """Attach and exec tell failures in plain text on what may become a raw connection."""
    return Response(error.status, error.message.encode() + b"\r\n", HEADERS, "application/vnd.docker.raw-stream")


async def hijack(call: Call, content_type: str) -> Duplex:
    """Take the connection over: 101 for clients that asked to upgrade, 200 (whose type never tells) for older ones."""
    # dockerd goes by the field alone; some clients send no `Connection: Upgrade` with it.
    if "upgrade" in call.request.headers:
        headers = [("Content-Type", content_type), ("Connection", "Upgrade"), ("Upgrade", "tcp")]
        return await call.request.upgrade(101, headers)
    return await call.request.upgrade(200, [("Content-Type", RAW)])
