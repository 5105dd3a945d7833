"""What a dockerd that is in no swarm says of swarms, and of plugins.

Source: recorded answers in ../shared/golden/docker (exchanges/system.jsonl).
"""

from __future__ import annotations

from longshore.engine.errors import InvalidParameter, NotFound, NotImplementedUpstream, SystemFailure, Unavailable
from longshore.machinery.http import Response

from .router import Call, Router, json_response

routes = Router()

NOT_MANAGER = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'


async def not_manager(call: Call) -> Response:
    raise Unavailable(NOT_MANAGER)


for _method, _path in (
    ("GET", "/swarm"), ("GET", "/swarm/unlockkey"), ("POST", "/swarm/update"), ("POST", "/swarm/unlock"),
    ("GET", "/nodes"), ("GET", "/nodes/{id}"), ("DELETE", "/nodes/{id}"), ("POST", "/nodes/{id}/update"),
    ("GET", "/services"), ("POST", "/services/create"), ("GET", "/services/{id}"), ("DELETE", "/services/{id}"),
    ("POST", "/services/{id}/update"), ("GET", "/services/{id}/logs"), ("GET", "/tasks"), ("GET", "/tasks/{id}"),
    ("GET", "/tasks/{id}/logs"), ("GET", "/secrets"), ("POST", "/secrets/create"), ("GET", "/secrets/{id}"),
    ("DELETE", "/secrets/{id}"), ("POST", "/secrets/{id}/update"), ("GET", "/configs"), ("POST", "/configs/create"),
    ("GET", "/configs/{id}"), ("DELETE", "/configs/{id}"), ("POST", "/configs/{id}/update"),
):  # fmt: skip
    routes.add(_method, _path, not_manager)


@routes.route("POST", "/swarm/leave")
async def leave(call: Call) -> Response:
    raise Unavailable("This node is not part of a swarm")


@routes.route("POST", "/swarm/join")
async def join(call: Call) -> Response:
    body = await call.json(required=True)
    address = body.get("ListenAddr") or ""
    if not address:
        raise InvalidParameter('invalid ListenAddr "": invalid empty address')
    raise NotImplementedUpstream("swarm mode is not supported by this engine")


@routes.route("POST", "/swarm/init")
async def init(call: Call) -> Response:
    body = await call.json(required=True)
    address = str(body.get("ListenAddr") or "")
    if not address:
        raise InvalidParameter('invalid ListenAddr "": invalid empty address')
    if address.count(":") > 1 and not address.startswith("["):
        raise InvalidParameter(f"could not parse listen address {address}")
    raise NotImplementedUpstream("swarm mode is not supported by this engine")


@routes.route("GET", "/plugins")
async def plugins(call: Call) -> Response:
    return json_response([])


async def no_plugin(call: Call) -> Response:
    raise NotFound(f'plugin "{call.path["name"]}" not found')


@routes.route("GET", "/plugins/privileges")
async def privileges(call: Call) -> Response:
    return json_response([])


@routes.route("POST", "/plugins/pull")
async def pull(call: Call) -> Response:
    remote = call.param("remote")
    shown = remote if ":" in remote.rpartition("/")[2] else f"{remote}:latest"
    raise NotFound(f"error resolving plugin reference: {shown}: not found")


@routes.route("POST", "/plugins/create")
async def create(call: Call) -> Response:
    raise SystemFailure("config not found")


for _method, _path in (
    ("GET", "/plugins/{name:*}/json"), ("POST", "/plugins/{name:*}/enable"), ("POST", "/plugins/{name:*}/disable"),
    ("POST", "/plugins/{name:*}/upgrade"), ("POST", "/plugins/{name:*}/push"), ("POST", "/plugins/{name:*}/set"),
    ("DELETE", "/plugins/{name:*}"),
):  # fmt: skip
    routes.add(_method, _path, no_plugin)
