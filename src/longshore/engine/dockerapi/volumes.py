"""Volumes: /volumes."""

from __future__ import annotations

from typing import Any

from longshore.engine.containers import filters
from longshore.engine.errors import EngineError, InvalidParameter, Unavailable
from longshore.engine.volumes.service import ANONYMOUS
from longshore.machinery.http import Response

from .router import Call, Router, empty, json_response

Json = dict[str, Any]
routes = Router()

_NOT_MANAGER = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'


@routes.route("GET", "/volumes")
async def list_volumes(call: Call) -> Response:
    wanted = call.filters()
    filters.check(wanted, ("dangling", "driver", "label", "name"))
    dangling = filters.boolean(wanted, "dangling", False) if "dangling" in wanted else None
    service = call.api.volumes
    chosen = []
    for name in sorted(service.list()):
        if wanted.get("name") and not filters.text_match(wanted["name"], name):
            continue
        if wanted.get("driver") and "local" not in wanted["driver"]:
            continue
        if wanted.get("label") and not filters.labels_match(wanted["label"], service.record(name)["labels"]):
            continue
        if dangling is not None and dangling == bool(service.users(name)):
            continue
        chosen.append(service.show(name))
    return json_response({"Volumes": chosen, "Warnings": None})


@routes.route("POST", "/volumes/create")
async def create(call: Call) -> Response:
    body = await call.json()
    if body.get("ClusterVolumeSpec") is not None:
        raise Unavailable(_NOT_MANAGER)
    for name in ("Name", "Driver"):
        if body.get(name) is not None and not isinstance(body[name], str):
            raise InvalidParameter(
                f"invalid JSON: json: cannot unmarshal value into Go struct field CreateOptions.{name} of type string"
            )
    for name in ("DriverOpts", "Labels"):
        value = body.get(name)
        if value is not None and not (isinstance(value, dict) and all(isinstance(v, str) for v in value.values())):
            raise InvalidParameter(
                f"invalid JSON: json: cannot unmarshal value into Go struct field CreateOptions.{name} of type map[string]string"
            )
    service = call.api.volumes
    made = service.create(
        body.get("Name") or "", body.get("Driver") or "", options=body.get("DriverOpts"), labels=body.get("Labels")
    )
    await call.api.containers.in_thread(service.keep, made)
    return json_response(service.show(made), 201)


@routes.route("POST", "/volumes/prune")
async def prune(call: Call) -> Response:
    wanted = call.filters()
    filters.check(wanted, ("all", "label", "label!"))
    everything = call.version < (1, 42)
    for text in wanted.get("all", []):
        if text not in ("1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"):
            raise InvalidParameter(f"invalid filter 'all': strconv.ParseBool: parsing \"{text}\": invalid syntax")
        everything = text.lower() in ("1", "t", "true")
    service = call.api.volumes
    gone, space = [], 0
    for name in sorted(service.list()):
        labels = service.record(name)["labels"] or {}
        if service.users(name) or (not everything and ANONYMOUS not in labels):
            continue
        if wanted.get("label") and not filters.labels_match(wanted["label"], labels):
            continue
        if any(filters.labels_match([entry], labels) for entry in wanted.get("label!", [])):
            continue
        size = await call.api.containers.in_thread(service.size, name)
        try:
            service.remove(name)
        except EngineError:
            continue
        gone.append(name)
        space += size
    call.api.events.emit("volume", "prune", "", {"reclaimed": str(space)})
    return json_response({"VolumesDeleted": gone, "SpaceReclaimed": space})


@routes.route("GET", "/volumes/{name:*}")
async def inspect(call: Call) -> Response:
    return json_response(call.api.volumes.show(call.path["name"]))


@routes.route("PUT", "/volumes/{name:*}")
async def update(call: Call) -> Response:
    raise Unavailable("volume update only valid for cluster volumes, but swarm is unavailable")


@routes.route("DELETE", "/volumes/{name:*}")
async def remove(call: Call) -> Response:
    call.api.volumes.remove(call.path["name"], force=call.flag("force"))
    return empty(204)
