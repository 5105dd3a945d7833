"""Commands in containers: /containers/NAME/exec, /exec."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from longshore.engine.containers import detach, execs, streams
from longshore.engine.errors import Conflict, EngineError, InvalidParameter
from longshore.machinery.http import Response

from .router import Call, Router, empty, json_response
from .streams import MULTIPLEXED, RAW, hijack, terminal_size

Json = dict[str, Any]
routes = Router()


@routes.route("POST", "/containers/{name:*}/exec")
async def exec_create(call: Call) -> Response:
    service = call.api.containers
    body = await call.json(required=True)
    container = service.find(call.path["name"])
    lower = {k.lower(): v for k, v in body.items()}
    settings = {
        name: lower.get(name.lower())
        for name in ("User", "Privileged", "Tty", "ConsoleSize", "AttachStdin", "AttachStderr", "AttachStdout", "DetachKeys",
                     "Env", "WorkingDir", "Cmd")
    }  # fmt: skip
    for name, kind in (("User", str), ("DetachKeys", str), ("WorkingDir", str), ("Privileged", bool), ("Tty", bool)):
        if settings[name] is not None and not isinstance(settings[name], kind):
            raise InvalidParameter(f"invalid JSON: json: cannot unmarshal value into Go struct field .{name}")
    for name in ("Env", "Cmd"):
        value = settings[name]
        if (
            value is not None
            and not isinstance(value, str)
            and not (isinstance(value, list) and all(isinstance(v, str) for v in value))
        ):
            raise InvalidParameter(
                f"invalid JSON: json: cannot unmarshal value into Go struct field .{name} of type []string"
            )
    if call.version < (1, 42):
        settings["ConsoleSize"] = None
    entry = await execs.create(service, container, settings, call.path["name"])
    return json_response({"Id": entry.id}, 201)


@routes.route("POST", "/exec/{id}/start")
async def exec_start(call: Call) -> Response | None:
    service = call.api.containers
    body = await call.json()
    entry = execs.find(service, call.path["id"])
    size = body.get("ConsoleSize")
    console = (
        (size[0], size[1])
        if call.version >= (1, 42)
        and body.get("Tty")
        and isinstance(size, list)
        and len(size) == 2
        and all(isinstance(n, int) for n in size)
        else None
    )
    if body.get("Detach"):
        await execs.start(service, entry, attach=False, console=console)
        return empty(200)
    if entry.running:
        raise Conflict(f"exec command {entry.id} is already running")
    # The start decides on framing, as in dockerd; clients say the same in both.
    tty = bool(body.get("Tty"))
    kind = MULTIPLEXED if call.version >= (1, 42) and not tty else RAW
    from longshore.wire import rawstream

    early: EngineError | None = None
    io = None
    # The head goes out before the process starts, as dockerd's does: docker-py looks for output on the bare socket and
    # loses what arrived together with the head.
    connection = await hijack(call, kind)
    try:
        io = await execs.start(service, entry, attach=True, console=console)
    except EngineError as error:
        early = error
    if early is not None:
        text = early.message.encode() + b"\r\n"
        connection.write(text if tty else rawstream.encode(1, text))
        await connection.drain()
        return None
    assert io is not None
    try:
        keys = detach.parse(entry.settings.get("DetachKeys") or "")
    except ValueError:
        keys = detach.DEFAULT
    stdin = bool(entry.settings.get("AttachStdin"))
    detached = await streams.carry(
        io,
        connection,
        tty=tty,
        stdin=stdin,
        stdout=bool(entry.settings.get("AttachStdout")),
        stderr=bool(entry.settings.get("AttachStderr")),
        keys=keys if tty else None,
    )
    if not detached and entry.session is not None:
        # A client asks for the exit code as soon as the stream ends; so it ends with the exit code known.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await entry.session.wait()
                await asyncio.sleep(0)
    return None


@routes.route("POST", "/exec/{id}/resize")
async def exec_resize(call: Call) -> Response:
    height, width = terminal_size(call)
    entry = execs.find(call.api.containers, call.path["id"])
    await execs.resize(entry, height, width)
    return empty(200)


@routes.route("GET", "/exec/{id}/json")
async def exec_inspect(call: Call) -> Response:
    return json_response(execs.find(call.api.containers, call.path["id"]).show())
