"""Networks: /networks."""

from __future__ import annotations

from typing import Any

from longshore.engine.containers import filters
from longshore.engine.errors import EngineError, InvalidParameter, NotFound, SystemFailure
from longshore.engine.networks.model import Network
from longshore.machinery.http import Response

from .router import Call, Router, empty, json_response
from .times import parse_until

Json = dict[str, Any]
routes = Router()


def _show(call: Call, network: Network) -> Json:
    return network.show(call.api.networks.endpoints(network))


def _order(networks: list[Network]) -> list[Network]:
    return sorted(networks, key=lambda n: n.created, reverse=True)


@routes.route("GET", "/networks")
@routes.route("GET", "/networks/")
async def list_networks(call: Call) -> Response:
    wanted = call.filters()
    filters.check(wanted, ("dangling", "driver", "id", "label", "name", "scope", "type"))
    service = call.api.networks
    for kind in wanted.get("type", []):
        if kind not in ("builtin", "custom"):
            raise SystemFailure(f"invalid filter: 'type'='{kind}'")
    dangling: bool | None = None
    if "dangling" in wanted:
        values = set(wanted["dangling"])
        if values <= {"1", "true"} and values:
            dangling = True
        elif values <= {"0", "false"} and values:
            dangling = False
        else:
            raise InvalidParameter(
                'invalid value for filter \'dangling\', must be "true" (or "1"), or "false" (or "0")'
            )
    chosen = []
    for network in _order(service.networks()):
        if wanted.get("driver") and network.driver not in wanted["driver"]:
            continue
        if wanted.get("id") and not any(network.id.startswith(i) or i in network.id for i in wanted["id"]):
            continue
        if wanted.get("name") and not filters.text_match(wanted["name"], network.name):
            continue
        if wanted.get("label") and not filters.labels_match(wanted["label"], network.labels):
            continue
        if wanted.get("scope") and network.scope not in wanted["scope"]:
            continue
        if wanted.get("type") and ("builtin" if network.predefined else "custom") not in wanted["type"]:
            continue
        if dangling is not None and dangling != (not network.predefined and not service.endpoints(network)):
            continue
        shown = _show(call, network)
        if call.version >= (1, 28):
            shown["Containers"] = {}
        chosen.append(shown)
    return json_response(chosen)


@routes.route("POST", "/networks/create")
async def create(call: Call) -> Response:
    body = await call.json(required=True)
    api = call.api
    check_body(body)
    if call.version < (1, 48):
        body.pop("EnableIPv4", None)
    network = await api.containers.in_thread(api.networks.create, body)
    return json_response({"Id": network.id, "Warning": ""}, 201)


def check_body(body: Json) -> None:
    """Raises InvalidParameter where a field is of the wrong type."""
    kinds: dict[str, Any] = {
        "Name": str, "Driver": str, "Scope": str, "Internal": bool, "Attachable": bool, "Ingress": bool, "ConfigOnly": bool,
        "EnableIPv6": bool, "EnableIPv4": bool, "Options": dict, "Labels": dict, "IPAM": dict, "ConfigFrom": dict,
    }  # fmt: skip
    for name, kind in kinds.items():
        if body.get(name) is not None and not isinstance(body[name], kind):
            raise InvalidParameter(
                f"invalid JSON: json: cannot unmarshal value into Go struct field CreateRequest.{name}"
            )
    config = (body.get("IPAM") or {}).get("Config")
    if config is not None and not (isinstance(config, list) and all(isinstance(c, dict) for c in config)):
        raise InvalidParameter("invalid JSON: json: cannot unmarshal value into Go struct field IPAM.Config")
    for entry in config or []:
        texts = [entry.get(name) for name in ("Subnet", "IPRange", "Gateway")]
        extra = entry.get("AuxiliaryAddresses") or {}
        if not all(isinstance(text, str | None) for text in texts) or not (
            isinstance(extra, dict) and all(isinstance(text, str) for text in extra.values())
        ):
            raise InvalidParameter("invalid JSON: json: cannot unmarshal value into Go struct field IPAMConfig")


@routes.route("POST", "/networks/prune")
async def prune(call: Call) -> Response:
    wanted = call.filters()
    filters.check(wanted, ("label", "label!", "until"))
    until = parse_until(wanted.get("until", []))
    service = call.api.networks
    used = {name for c in call.api.containers.store for name in c.networks}
    gone = []
    from longshore.wire.crilog import parse_time

    for network in service.networks():
        if network.predefined or network.config_only or service.endpoints(network) or network.name in used:
            continue
        if until and parse_time(network.created.encode()) > until:
            continue
        if wanted.get("label") and not filters.labels_match(wanted["label"], network.labels):
            continue
        if any(filters.labels_match([entry], network.labels) for entry in wanted.get("label!", [])):
            continue
        try:
            await call.api.containers.in_thread(service.remove, network)
        except EngineError:
            continue
        gone.append(network.name)
    call.api.events.emit("network", "prune", "", {"reclaimed": "0"})
    return json_response({"NetworksDeleted": gone or None})


@routes.route("GET", "/networks/{id:*}")
async def inspect(call: Call) -> Response:
    network = call.api.networks.resolve(call.path["id"])
    scope = call.param("scope")
    if scope and scope != network.scope:
        raise NotFound(f"network {call.path['id']} not found")
    return json_response(_show(call, network))


@routes.route("DELETE", "/networks/{id:*}")
async def remove(call: Call) -> Response:
    api = call.api
    await api.containers.in_thread(api.networks.remove, api.networks.resolve(call.path["id"]))
    return empty(204)


@routes.route("POST", "/networks/{id:*}/connect")
async def connect(call: Call) -> Response:
    body = await call.json(required=True)
    api = call.api
    network = api.networks.resolve(call.path["id"])
    container = api.containers.find(str(body.get("Container") or ""))
    settings = body.get("EndpointConfig") or {}
    if not isinstance(settings, dict):
        raise InvalidParameter("invalid JSON: json: cannot unmarshal value into Go struct field .EndpointConfig")
    await api.containers.connect(network, container, settings)
    await api.containers.keep(container)
    return empty(200)


@routes.route("POST", "/networks/{id:*}/disconnect")
async def disconnect(call: Call) -> Response:
    body = await call.json(required=True)
    api = call.api
    network = api.networks.resolve(call.path["id"])
    container = api.containers.find(str(body.get("Container") or ""))
    await api.containers.disconnect(network, container)
    await api.containers.keep(container)
    return empty(200)
