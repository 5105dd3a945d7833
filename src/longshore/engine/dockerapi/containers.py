"""Containers: /containers, /commit."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from longshore.engine.containers import archive, detach, filters, inspect, signals, stats
from longshore.engine.containers.model import Container
from longshore.engine.errors import EngineError, InvalidParameter, NotImplementedUpstream
from longshore.machinery.http import Response

from .router import HEADERS, Call, Router, empty, json_response
from .times import parse_until

Json = dict[str, Any]
routes = Router()


@routes.route("GET", "/containers/json")
async def list_containers(call: Call) -> Response:
    service = call.api.containers
    limit = call.number("limit")
    chosen = filters.select(service, call.filters(), all=call.flag("all"), limit=limit)
    answer = []
    for container in chosen:
        size = await service.in_thread(service.sizes, container) if call.flag("size") else None
        answer.append(inspect.list_entry(service, container, size=size, version=call.version))
    return json_response(answer)


@routes.route("POST", "/containers/create")
async def create(call: Call) -> Response:
    name = call.param("name")
    if "name" in call.request.query and len(name) == 0:
        name = ""
    body = await call.json(required=True)
    container, warnings = await call.api.containers.create(
        body, name=name, platform=call.param("platform") if call.version >= (1, 41) else "", version=call.version
    )
    return json_response({"Id": container.id, "Warnings": warnings}, 201)


@routes.route("POST", "/containers/prune")
async def prune(call: Call) -> Response:
    wanted = call.filters()
    filters.check(wanted, ("label", "label!", "until"))
    until = parse_until(wanted.get("until", []))

    def accept(container: Container) -> bool:
        from longshore.engine.containers.model import parse_time

        labels = container.config["Labels"]
        if until and parse_time(container.created) > until:
            return False
        if wanted.get("label") and not filters.labels_match(wanted["label"], labels):
            return False
        return not any(filters.labels_match([entry], labels) for entry in wanted.get("label!", []))

    gone, space = await call.api.containers.prune(accept)
    call.api.events.emit("container", "prune", "", {"reclaimed": str(space)})
    return json_response({"ContainersDeleted": gone or None, "SpaceReclaimed": space})


@routes.route("GET", "/containers/{name:*}/json")
async def inspect_container(call: Call) -> Response:
    service = call.api.containers
    container = service.find(call.path["name"])
    size = await service.in_thread(service.sizes, container) if call.flag("size") else None
    return json_response(inspect.inspect(service, container, size=size, version=call.version))


@routes.route("POST", "/containers/{name:*}/start")
async def start(call: Call) -> Response:
    if call.request.has_body and (call.request.content_length or 0) != 0:
        raw = await call.request.read(65536)
        if raw.strip() not in (b"", b"{}", b"null"):
            raise InvalidParameter(
                "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24"
            )
    if call.param("checkpoint"):
        raise InvalidParameter("checkpoint is only supported in experimental mode")
    service = call.api.containers
    keys = call.param("detachKeys")
    if keys:
        try:
            detach.parse(keys)
        except ValueError as error:
            raise InvalidParameter(str(error)) from None
    await service.lifecycle.start(service.find(call.path["name"]))
    return empty(204)


def _timeout(call: Call) -> float | None:
    text = call.param("t")
    if not text:
        return None
    return float(call.number("t"))


@routes.route("POST", "/containers/{name:*}/stop")
async def stop(call: Call) -> Response:
    service = call.api.containers
    timeout = _timeout(call)
    signal = call.param("signal") if call.version >= (1, 42) else ""
    await service.lifecycle.stop(service.find(call.path["name"]), timeout, signal)
    return empty(204)


@routes.route("POST", "/containers/{name:*}/restart")
async def restart(call: Call) -> Response:
    service = call.api.containers
    timeout = _timeout(call)
    signal = call.param("signal") if call.version >= (1, 42) else ""
    await service.lifecycle.restart(service.find(call.path["name"]), timeout, signal)
    return empty(204)


@routes.route("POST", "/containers/{name:*}/kill")
async def kill(call: Call) -> Response:
    name = call.path["name"]
    try:
        service = call.api.containers
        text = call.param("signal")
        number = signals.parse(text) if text else 9
        container = service.find(name)
        if not signals.known(number):
            raise InvalidParameter(f"the linux daemon does not support signal {number}")
        await service.lifecycle.kill(container, number)
    except EngineError as error:
        raise type(error)(f"cannot kill container: {name}: {error.message}") from None
    return empty(204)


@routes.route("POST", "/containers/{name:*}/pause")
async def pause(call: Call) -> Response:
    service = call.api.containers
    await service.lifecycle.pause(service.find(call.path["name"]))
    return empty(204)


@routes.route("POST", "/containers/{name:*}/unpause")
async def unpause(call: Call) -> Response:
    service = call.api.containers
    await service.lifecycle.unpause(service.find(call.path["name"]))
    return empty(204)


@routes.route("POST", "/containers/{name:*}/rename")
async def rename(call: Call) -> Response:
    service = call.api.containers
    container = service.find(call.path["name"])
    service.rename(container, call.param("name"))
    await service.keep(container)
    return empty(204)


@routes.route("POST", "/containers/{name:*}/update")
async def update(call: Call) -> Response:
    service = call.api.containers
    body = await call.json()
    container = service.find(call.path["name"])
    warnings = await service.update(container, body, call.version)
    await service.keep(container)
    return json_response({"Warnings": warnings or None})


@routes.route("POST", "/containers/{name:*}/wait")
async def wait(call: Call) -> Response | None:
    service = call.api.containers
    if call.version < (1, 30):
        return json_response(await service.wait(service.find(call.path["name"]), "not-running"))
    condition = call.param("condition") or "not-running"
    if condition not in ("not-running", "next-exit", "removed"):
        raise InvalidParameter(f'invalid condition: "{condition}"')
    container = service.find(call.path["name"])
    waiting = asyncio.ensure_future(service.wait(container, condition))
    # The head goes out at once: a client starts the container when it knows that its wait is heard.
    await asyncio.sleep(0)
    writer = await call.start(200)
    try:
        writer.write(orjson.dumps(await waiting) + b"\n")
    finally:
        waiting.cancel()
    return None


@routes.route("DELETE", "/containers/{name:*}")
async def remove(call: Call) -> Response:
    service = call.api.containers
    name = call.path["name"]
    if call.flag("link"):
        await service.unlink(name)
        return empty(204)
    container = service.find(name)
    await service.lifecycle.remove(container, force=call.flag("force"), volumes=call.flag("v"), shown=name)
    return empty(204)


async def experimental(call: Call) -> Response:
    """Checkpoints, as of a dockerd that is not in its experimental mode."""
    raise NotImplementedUpstream(
        "This experimental feature is disabled by default. Start the Docker daemon in experimental mode in order to enable it."
    )


for _method, _path in (("GET", ""), ("POST", ""), ("DELETE", "/{checkpoint}")):
    routes.add(_method, f"/containers/{{name:*}}/checkpoints{_path}", experimental)


@routes.route("GET", "/containers/{name:*}/top")
async def top(call: Call) -> Response:
    service = call.api.containers
    container = service.find(call.path["name"])
    answer = await stats.top(service, container, call.param("ps_args"))
    service.event(container, "top")
    return json_response(answer)


@routes.route("GET", "/containers/{name:*}/changes")
async def changes(call: Call) -> Response:
    service = call.api.containers
    container = service.find(call.path["name"])
    found = await service.in_thread(service.images.changes, container.id)
    answer = [{"Path": c.path, "Kind": c.kind} for c in found]
    return json_response(answer or None)


@routes.route("GET", "/containers/{name:*}/stats")
async def container_stats(call: Call) -> Response | None:
    service = call.api.containers
    stream = call.flag("stream", True)
    one_shot = call.flag("one-shot") if call.version >= (1, 41) else False
    if stream and one_shot:
        raise InvalidParameter("cannot have stream=true and one-shot=true")
    container = service.find(call.path["name"])
    if not container.state.running and not stream:
        return json_response(stats.empty(container))
    if not stream:
        first = None
        if not one_shot:
            first = await service.in_thread(stats.sample, service, container)
            await asyncio.sleep(1)
        return json_response(
            await service.in_thread(lambda: stats.sample(service, container, first, named=not one_shot))
        )
    writer = await call.start(200)
    previous: Json | None = None
    while not container.removed:
        if container.state.running:
            previous = await service.in_thread(stats.sample, service, container, previous)
            writer.write(orjson.dumps(previous) + b"\n")
        else:
            writer.write(orjson.dumps(stats.empty(container)) + b"\n")
        await writer.drain()
        await asyncio.sleep(1)
    return None


@routes.route("HEAD", "/containers/{name:*}/archive")
async def archive_head(call: Call) -> Response:
    service = call.api.containers
    try:
        container = service.find(call.path["name"])
        with archive.View(service, container) as view:
            value, _ = archive.path_stat(view, call.path["name"], call.param("path"))
    except EngineError as error:
        return Response(error.status, b"", HEADERS)
    return Response(200, b"", [*HEADERS, ("X-Docker-Container-Path-Stat", value)])


@routes.route("GET", "/containers/{name:*}/archive")
async def archive_get(call: Call) -> Response | None:
    service = call.api.containers
    container = service.find(call.path["name"])
    with archive.View(service, container) as view:
        value, _ = archive.path_stat(view, call.path["name"], call.param("path"))
        source = archive.get(view, call.path["name"], call.param("path"))
        service.event(container, "archive-path")
        writer = await call.start(200, "application/x-tar", [("X-Docker-Container-Path-Stat", value)])
        await writer.send_pieces(source)
    return None


@routes.route("PUT", "/containers/{name:*}/archive")
async def archive_put(call: Call) -> Response:
    import os

    from longshore.engine.images.streams import consume

    service = call.api.containers
    path = call.param("path")
    container = service.find(call.path["name"])
    with archive.View(service, container) as view:
        fd, clean = archive.check_put(view, container, path, call.path["name"])
        try:
            owner = None
            if call.flag("copyUIDGID") and container.config["User"]:
                from longshore.engine.containers import ocispec

                user = ocispec.user_of(container, view.root, container.config["User"])
                owner = (user.uid, user.gid)
            if call.request.has_body:
                no_overwrite = call.flag("noOverwriteDirNonDir")
                await consume(
                    call.request.chunks(),
                    lambda read: archive.put(
                        fd, read, path=clean, no_overwrite=no_overwrite, copy_owner=owner, owners=view.owners
                    ),
                )
        finally:
            os.close(fd)
    service.event(container, "extract-to-dir")
    return empty(200)


@routes.route("GET", "/containers/{name:*}/export")
async def export(call: Call) -> Response | None:
    from longshore.engine.images.pack import Packer

    service = call.api.containers
    container = service.find(call.path["name"])
    with archive.View(service, container) as view:
        writer = await call.start(200, "application/octet-stream")
        await writer.send_pieces(iter(Packer(view.root, layer=False, ids=view.owners.inside if view.owners else None)))
    service.event(container, "export")
    return None


@routes.route("POST", "/commit")
async def commit(call: Call) -> Response:
    from .commit import commit as work

    body = await call.json()
    image_id = await work(call, body)
    return json_response({"Id": image_id}, 201)
