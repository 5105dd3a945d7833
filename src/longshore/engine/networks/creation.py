"""What a request for a network asks for: checked in dockerd's order, before anything of the machine is touched.

Source: Docker Engine API, NetworkCreate; the texts of errors are dockerd's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longshore.engine.configuration import Configuration
from longshore.engine.errors import Conflict, Forbidden, InvalidParameter, NotFound, SystemFailure

from . import plugging
from .model import Network
from .validation import check_bridge_options, check_ipam, check_template, enabled

Json = dict[str, Any]

_PREDEFINED = ("bridge", "host", "none", "default")
_DRIVERS = ("bridge", "host", "null", "macvlan", "ipvlan")
_NOT_MANAGER = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'


def asked(body: Json, others: Sequence[Network], configuration: Configuration) -> tuple[Network, Json]:
    """The network that a request's body describes, and its IPAM. others: all networks that there are.

    Raises EngineError classes.
    """
    name = body.get("Name") or ""
    if name in _PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {name} network ")
    driver = body.get("Driver") or "bridge"
    if driver == "overlay":
        raise Forbidden(_NOT_MANAGER)
    template = (body.get("ConfigFrom") or {}).get("Network") or ""
    own_options = {str(k): str(v) for k, v in (body.get("Options") or {}).items()}
    options = dict(own_options)
    if not template:
        options = {**configuration.network_options.get(driver, {}), **own_options}
    network = Network(name=name, driver=driver)
    network.enable_ipv4 = enabled(body, options, 4, True)
    network.enable_ipv6 = enabled(body, options, 6, False)
    network.options = dict(sorted(options.items()))
    ipam: Json = body.get("IPAM") or {}
    check_ipam(ipam.get("Config") or [], network.enable_ipv6)
    if not name.strip():
        raise InvalidParameter("invalid name: name is empty")
    if any(other.name == name for other in others):
        raise Conflict(f"network with name {name} already exists")
    network.scope = body.get("Scope") or ""
    network.internal = bool(body.get("Internal"))
    network.attachable = bool(body.get("Attachable"))
    network.config_only = bool(body.get("ConfigOnly"))
    network.config_from = template
    network.labels = {str(k): str(v) for k, v in sorted((body.get("Labels") or {}).items())}
    check_template(network, ipam, own_options)
    if network.config_only:
        network.driver, network.scope = "null", "local"
        return network, ipam
    if driver not in _DRIVERS:
        raise NotFound(f'plugin "{driver}" not found')
    if body.get("Ingress"):
        raise Forbidden("Ingress network can only be global scope network")
    if template:
        ipam = _apply(network, template, others)
    if network.scope == "swarm":
        raise Forbidden("cannot create a swarm scoped network when swarm is not active")
    network.scope = network.scope or "local"
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    if driver == "bridge":
        check_bridge_options(network)
    else:
        plugging.check_options(network)
        network.internal = network.internal or not network.options.get("parent")
    _check_ipam_driver(network, ipam)
    return network, ipam


def _apply(network: Network, template: str, others: Sequence[Network]) -> Json:
    """Take over the settings of a configuration-only network; returns its IPAM. Raises NotFound."""
    source = next((other for other in others if other.config_only and other.name == template), None)
    if source is None:
        raise NotFound(f'configuration network "{template}" does not exist')
    network.options, network.labels = dict(source.options), dict(source.labels)
    network.enable_ipv4, network.enable_ipv6 = source.enable_ipv4, source.enable_ipv6
    return {"Driver": source.ipam_driver, "Config": source.ipam_config, "Options": source.ipam_options}


def _check_ipam_driver(network: Network, ipam: Json) -> None:
    driver = ipam.get("Driver")
    if driver not in (None, "", "default", "null"):
        raise NotFound(f'plugin "{driver}" not found')
    if driver == "null" and (network.enable_ipv4 or network.enable_ipv6):
        if ipam.get("Config"):
            raise InvalidParameter("null ipam driver does not handle specific address pool requests")
        raise InvalidParameter(f"ipv{4 if network.enable_ipv4 else 6} pool is empty")
    if network.driver == "bridge":
        if not network.enable_ipv4 and not network.enable_ipv6:
            raise InvalidParameter("IPv4 or IPv6 must be enabled")
        try:
            mtu = network.mtu
        except ValueError:
            mtu = 0
        if mtu < 0:
            raise InvalidParameter(f"invalid MTU number: {mtu}")


def check_conflicts(network: Network, others: Sequence[Network]) -> None:
    """Raises Forbidden or SystemFailure where a network would take a bridge or a parent interface of another."""
    for other in others:
        if other.driver != network.driver or other.config_only:
            continue
        if network.driver == "bridge" and other.bridge == network.bridge:
            raise Forbidden(
                f"cannot create network {network.id} ({network.bridge}): conflicts with network {other.id} ({other.bridge}): "
                "networks have same bridge name"
            )
        parent = network.options.get("parent")
        if not parent or other.options.get("parent") != parent:
            continue
        if network.driver == "ipvlan":
            raise SystemFailure(f"network {plugging.parent_of(other)} is already using parent interface {parent}")
        if network.options.get("macvlan_mode") == "passthru":
            raise SystemFailure(
                f"cannot use mode passthru, macvlan network {other.id} is already using parent interface {parent}"
            )
        if other.options.get("macvlan_mode") == "passthru":
            raise SystemFailure(
                f"macvlan network {other.id} is already using parent interface {parent} in mode passthru"
            )
