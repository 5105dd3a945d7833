"""`NetworkService`: Docker's networks and the endpoints of containers in them.

Drivers: bridge, macvlan, ipvlan, host, null. A container's namespace (sandbox) is a pinned network namespace; plugging an endpoint in makes a
veth pair whose far end is born inside it. Source: Docker Engine API, Network; the texts of errors are dockerd's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longshore.engine import durable
from longshore.engine.configuration import Configuration
from longshore.engine.errors import (
    Conflict,
    EngineError,
    Forbidden,
    InvalidParameter,
    NotFound,
    SystemFailure,
)
from longshore.machinery import netns
from longshore.machinery.netlink import Netlink, NetlinkError
from longshore.machinery.nftables import NftablesError

from . import bridges, default, ipam, plugging
from .firewall import BridgeRule, Firewall
from .model import Endpoint, Network, check_endpoint, enabled, ipam_errors
from .plugging import Plug
from .publishing import Publishing

log = logging.getLogger("longshore.engine.networks")
Json = dict[str, Any]

_NOT_MANAGER = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'


class NetworkService:
    """Networks kept under `data`, namespaces pinned under `run`.

    bridge: interface of the default network; "": docker0, or longshore0 and so on where something else has that name.
    emit: takes events. The engine's own network namespace is where bridges lie.
    """

    def __init__(
        self,
        data: Path,
        run: Path,
        emit: Callable[[str, str, str, Mapping[str, str]], None],
        *,
        bridge: str = "",
        reserved: Iterable[str] = (),
        name: str = "engine",
        configuration: Configuration | None = None,
    ) -> None:
        """reserved: ranges that no network may get (those of pods and Services). configuration: what daemon.json says."""
        self._data = data
        self._run = run
        self._emit = emit
        self._bridge = bridge
        self._configuration = configuration or Configuration()
        self._reserved = [ipaddress.ip_network(r) for r in reserved]
        #: Replaced and not changed: the event loop looks at it while a thread makes or removes a network.
        self._networks: dict[str, Network] = {}
        self._changing = threading.RLock()  # two networks that are made at once must not choose the same addresses
        self._endpoints: dict[str, dict[str, Endpoint]] = {}
        self._firewall = Firewall(name)
        self.publishing = Publishing(
            self._firewall, self._all_endpoints, self._bridge_rules, carry=self._configuration.userland_proxy
        )
        self._netlink = Netlink()
        self.resolvers: Any = None
        #: Where names go that no network knows, for containers that name no resolver; none: the host's own.
        self.nameservers: Sequence[str] = ()
        data.mkdir(parents=True, exist_ok=True)
        run.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------ start and stop

    def start(self) -> None:
        """Read the networks back, make the predefined ones and what is missing of their interfaces and rules."""
        for file in sorted(self._data.glob("*.json")):
            try:
                network = Network.load(file)
            except (OSError, ValueError, KeyError):
                log.warning("network record %s is damaged", file)
                continue
            self._networks[network.id] = network
        for name, driver in (("none", "null"), ("host", "host")):
            if not any(n.name == name for n in self._networks.values()):
                self._keep(Network(name=name, driver=driver))
        if not any(n.name == "bridge" for n in self._networks.values()):
            network = Network(name="bridge", driver="bridge")
            network.options = {
                "com.docker.network.bridge.name": self._bridge or default.free_bridge_name(self._netlink)
            }
            self._configure_default(network)
            self._keep(network)
        elif self._configuration != Configuration():
            network = self.resolve("bridge")
            self._configure_default(network)
            self._keep(network)
        with contextlib.suppress(OSError):
            netns.write_sysctl(None, "net/ipv4/ip_forward", "1")
        for network in self._networks.values():
            if network.driver == "bridge":
                network.make_pools()
                bridges.make(self._netlink, network)
            elif network.driver in ("macvlan", "ipvlan"):
                network.make_pools()
                with contextlib.suppress(NetlinkError, SystemFailure):
                    plugging.make_parent(self._netlink, network)
        self.publishing.refresh()

    def close(self) -> None:
        """Let go of sockets; networks stay as they are."""
        if self.resolvers is not None:
            self.resolvers.close()
        self.publishing.close()
        self._firewall.close()
        self._netlink.close()

    def remove_everything(self) -> None:
        """Take interfaces, routes and rules away (for `longshore down`)."""
        self._firewall.remove()
        for network in self._networks.values():
            if network.driver == "bridge":
                bridges.remove(self._netlink, network)
            elif network.driver in ("macvlan", "ipvlan"):
                plugging.remove_parent(self._netlink, network)

    def _keep(self, network: Network) -> None:
        self._networks = {**self._networks, network.id: network}
        self._endpoints.setdefault(network.id, {})
        network.save(self._data)
        if not network.predefined:
            durable.keep(self._data / f"{network.id}.json")

    # ------------------------------------------------------------------ bridges

    def _configure_default(self, network: Network) -> None:
        """The default network as daemon.json has it; its subnets stay where none are named."""
        given = self._configuration
        network.options = default.options(given, network.bridge)
        network.enable_ipv6 = given.ipv6
        config = default.subnets(given, network.ipam_config)
        if config and config == network.ipam_config and len(config) == 1 + given.ipv6:
            return
        network.make_pools()
        bridges.forget_ranges(self._netlink, network)
        default.forget_addresses(self._netlink, network, config)
        network.ipam_config, network.pools = [], []
        self._assign_pools(network, {"Config": config})

    def _bridge_rules(self) -> list[BridgeRule]:
        return [BridgeRule.of(n) for n in self._networks.values() if n.driver == "bridge" and not n.config_only]

    # ------------------------------------------------------------------ networks

    def networks(self) -> list[Network]:
        return list(self._networks.values())

    def resolve(self, term: str) -> Network:
        """By id, name or an id's beginning, in this order. Raises NotFound, InvalidParameter."""
        if term in self._networks:
            return self._networks[term]
        for network in self._networks.values():
            if network.name == term:
                return network
        found = [n for n in self._networks.values() if term and n.id.startswith(term)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidParameter(f"network {term} is ambiguous ({len(found)} matches found based on ID prefix)")
        raise NotFound(f"network {term} not found")

    def find(self, term: str) -> Network | None:
        """As resolve; None when there is none."""
        try:
            return self.resolve(term)
        except EngineError:
            return None

    def endpoints(self, network: Network) -> dict[str, Endpoint]:
        """The endpoints in a network, by endpoint id."""
        return self._endpoints.setdefault(network.id, {})

    def _all_endpoints(self) -> list[Endpoint]:
        return [endpoint for group in list(self._endpoints.values()) for endpoint in list(group.values())]

    def create(self, body: Json) -> Network:
        """Make a network from the API's body. Raises EngineError classes."""
        with self._changing:
            return self._create(body)

    def _create(self, body: Json) -> Network:
        name = body.get("Name") or ""
        if not name.strip():
            raise InvalidParameter("invalid name: name is empty")
        if name in ("bridge", "host", "none", "default"):
            raise Forbidden(f"operation is not permitted on predefined {name} network ")
        driver = body.get("Driver") or "bridge"
        if driver == "overlay" or body.get("Scope") == "swarm":
            raise Forbidden(_NOT_MANAGER)
        if any(n.name == name for n in self._networks.values()):
            raise Conflict(f"network with name {name} already exists")
        if body.get("Ingress"):
            raise Forbidden("Ingress network can only be global scope network")
        network = Network(name=name, driver=driver)
        network.scope = body.get("Scope") or "local"
        network.internal = bool(body.get("Internal"))
        network.attachable = bool(body.get("Attachable"))
        network.config_only = bool(body.get("ConfigOnly"))
        network.config_from = (body.get("ConfigFrom") or {}).get("Network") or ""
        options = {str(k): str(v) for k, v in (body.get("Options") or {}).items()}
        if not network.config_from:
            options = {**self._configuration.network_options.get(driver, {}), **options}
        network.labels = {str(k): str(v) for k, v in sorted((body.get("Labels") or {}).items())}
        network.enable_ipv4 = enabled(body, options, 4, True)
        network.enable_ipv6 = enabled(body, options, 6, False)
        network.options = dict(sorted(options.items()))
        given = body.get("IPAM") or {}
        problems = ipam_errors(given.get("Config") or [], network.enable_ipv6)
        for entry in given.get("Config") or []:
            if entry.get("Gateway") and not entry.get("Subnet"):
                raise InvalidParameter(f"no matching subnet for gateway {entry['Gateway']}")
        if problems:
            raise InvalidParameter("invalid network config:\n" + "\n".join(problems))
        if network.config_from:
            source = self.resolve(network.config_from)
            if not source.config_only:
                raise Forbidden("configuration network must be configuration-only")
            network.options, network.labels = dict(source.options), dict(source.labels)
            network.internal, network.enable_ipv6 = source.internal, source.enable_ipv6
            given = {"Driver": source.ipam_driver, "Config": source.ipam_config, "Options": source.ipam_options}
        if network.config_only:
            network.driver = "null"
            network.ipam_driver = given.get("Driver") or "default"
            network.ipam_options = given.get("Options")
            network.ipam_config = given.get("Config") or []
            self._keep(network)
            self._announce("create", network)
            return network
        if driver in ("host", "null"):
            raise Forbidden(f'only one instance of "{driver}" network is allowed')
        if driver in ("macvlan", "ipvlan"):
            return self._create_vlan(network, given)
        if driver != "bridge":
            raise NotFound(f'plugin "{driver}" not found')
        if not network.enable_ipv4 and not network.enable_ipv6:
            raise InvalidParameter("IPv4 or IPv6 must be enabled")
        if given.get("Driver") not in (None, "", "default", "null"):
            raise NotFound(f'plugin "{given["Driver"]}" not found')
        if given.get("Driver") == "null":
            raise InvalidParameter("ipv4 pool is empty")
        network.check_options()
        if "isolated" in (network.gateway_mode(4), network.gateway_mode(6)) and not network.internal:
            raise InvalidParameter("gateway mode 'isolated' can only be used for an internal network")
        other = next((n for n in self._networks.values() if n.driver == "bridge" and n.bridge == network.bridge), None)
        if other is not None:
            raise Forbidden(
                f"cannot create network {network.id} ({network.bridge}): conflicts with network {other.id} ({other.bridge}): "
                "networks have same bridge name"
            )
        self._assign_pools(network, given)
        try:
            bridges.make(self._netlink, network)
            self._firewall.add_bridge(BridgeRule.of(network))
        except Exception as error:
            bridges.remove(self._netlink, network)
            raise SystemFailure(f"failed to create network {name}: {error}") from None
        self._keep(network)
        self._announce("create", network)
        return network

    def _create_vlan(self, network: Network, given: Json) -> Network:
        """A network whose containers' interfaces lie on an interface of the host: macvlan, ipvlan."""
        plugging.mode_of(network)
        parent = network.options.get("parent", "")
        shared = next((n for n in self._networks.values() if parent and n.options.get("parent") == parent), None)
        if shared is not None and "passthru" in (
            shared.options.get("macvlan_mode"),
            network.options.get("macvlan_mode"),
        ):
            raise Forbidden(f"network {shared.id} is already using parent interface {parent}")
        try:
            plugging.make_parent(self._netlink, network)
        except NetlinkError as error:
            raise SystemFailure((error.strerror or str(error)).lower()) from None
        try:
            self._assign_pools(network, given)
        except EngineError:
            plugging.remove_parent(self._netlink, network)
            raise
        if not parent:
            network.internal = True
        self._keep(network)
        self._announce("create", network)
        return network

    def _assign_pools(self, network: Network, given: Json) -> None:
        taken = [p.subnet for n in self._networks.values() for p in n.pools] + self._reserved
        taken += [route.destination for route in self._netlink.routes(4) if route.destination.prefixlen]
        network.ipam_driver = given.get("Driver") or "default"
        network.ipam_options = given.get("Options")
        config = [dict(c) for c in given.get("Config") or [] if c]
        for entry in config:
            if entry.get("Subnet"):
                subnet = ipaddress.ip_network(entry["Subnet"])
                if any(
                    subnet.version == t.version and subnet.overlaps(t)
                    for t in (p.subnet for n in self._networks.values() for p in n.pools)
                ):
                    raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")
        if network.driver == "bridge" and len([c for c in config if c.get("Subnet") and ":" not in c["Subnet"]]) > 1:
            raise Forbidden("bridge driver doesn't support multiple subnets")
        if network.enable_ipv4 and not any(c.get("Subnet") and ":" not in c["Subnet"] for c in config):
            pool = ipam.choose_pool(taken, self._configuration.address_pools)
            free: Json | None = next(
                (c for c in config if not c.get("Subnet") and (c.get("Gateway") or c.get("IPRange"))), None
            )
            if free is None:
                config.append({"Subnet": str(pool), "Gateway": str(pool[1])})
            else:
                free["Subnet"] = str(pool)
            network.auto_ipv4 = True
        if network.enable_ipv6 and not any(c.get("Subnet") and ":" in c["Subnet"] for c in config):
            pool6 = ipam.choose_pool6(network.id)
            config.append({"Subnet": str(pool6), "Gateway": str(pool6[1])})
            network.auto_ipv6 = True
        network.ipam_config = config
        network.make_pools()

    def _announce(self, action: str, network: Network, container: str = "") -> None:
        attributes = {"name": network.name, "type": network.driver}
        if container:
            attributes["container"] = container
        self._emit("network", action, network.id, attributes)

    def remove(self, network: Network) -> None:
        """Remove a network without endpoints. Raises Forbidden."""
        with self._changing:
            self._remove(network)

    def _remove(self, network: Network) -> None:
        if network.predefined:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        active = self.endpoints(network)
        if active:
            shown = ", ".join(f'name:"{e.name}" id:"{e.id[:12]}"' for e in active.values())
            raise Forbidden(f"error while removing network: network {network.name} has active endpoints ({shown})")
        if network.config_only and any(n.config_from == network.name for n in self._networks.values()):
            raise Forbidden(f"configuration network {network.name!r} is in use")
        self._networks = {key: other for key, other in self._networks.items() if key != network.id}
        self._endpoints.pop(network.id, None)
        network.delete(self._data)
        if network.driver in ("macvlan", "ipvlan"):
            plugging.remove_parent(self._netlink, network)
        if network.driver == "bridge":
            bridges.remove(self._netlink, network)
            try:
                self.publishing.refresh()
            except NftablesError as error:
                log.warning("the rules of network %s stay: %s", network.name, error)
        self._announce("destroy", network)

    # ------------------------------------------------------------------ sandboxes and endpoints

    def sandbox_path(self, sandbox_id: str) -> Path:
        return self._run / sandbox_id[:12]

    def allocate(self, network: Network, container: Any, settings: Json) -> Endpoint:
        """Take addresses for a container in a network and write them into its endpoint settings. Raises EngineError."""
        name = container.name.lstrip("/")
        active = self.endpoints(network)
        if any(e.name == name for e in active.values()):
            raise Forbidden(f"endpoint with name {name} already exists in network {network.name}")
        endpoint = Endpoint(network, container.id, name)
        wanted = settings.get("IPAMConfig") or {}
        try:
            for pool in network.pools:
                asked = wanted.get("IPv4Address" if pool.subnet.version == 4 else "IPv6Address")
                if asked:
                    address = ipaddress.ip_address(asked)
                    pool.reserve(address)
                else:
                    address = pool.allocate()
                endpoint.addresses.append((address, pool.subnet.prefixlen))
        except EngineError:
            self._free(endpoint)
            raise
        endpoint.mac = settings.get("_mac") or network.make_mac(endpoint)
        options = settings.get("DriverOpts") or {}
        endpoint.interface = options.get("com.docker.network.endpoint.ifname", "")
        endpoint.sysctls = options.get(plugging.SYSCTLS, "")
        endpoint.link_local = tuple(wanted.get("LinkLocalIPs") or ())
        endpoint.fill(settings)
        active[endpoint.id] = endpoint
        return endpoint

    def adopt(self, network: Network, container: Any, settings: Json) -> Endpoint | None:
        """Take over the endpoint of a container that ran on while the engine was away."""
        if not settings.get("EndpointID"):
            return None
        endpoint = Endpoint(network, container.id, container.name.lstrip("/"), id=settings["EndpointID"])
        for text, prefix in (
            (settings["IPAddress"], settings["IPPrefixLen"]),
            (settings["GlobalIPv6Address"], settings["GlobalIPv6PrefixLen"]),
        ):
            if text:
                address = ipaddress.ip_address(text)
                endpoint.addresses.append((address, prefix))
                for pool in network.pools:
                    if address in pool.subnet:
                        with contextlib.suppress(EngineError):
                            pool.reserve(address)
        endpoint.mac = settings["MacAddress"]
        endpoint.names = (settings["DNSNames"] or []) if network.user_defined else []
        self.endpoints(network)[endpoint.id] = endpoint
        return endpoint

    def build(self, sandbox: Path, plugs: list[Plug], *, create: bool = True) -> None:
        """Make a namespace (create) and plug endpoints in. Blocking."""
        if create:
            netns.create(sandbox)
        if not plugs:
            return
        plugging.plug(sandbox, plugs)

    def route(self, sandbox: Path, gateways: Mapping[int, Endpoint]) -> None:
        """Set the default routes of a living namespace: IP version to the endpoint that has it. Blocking."""
        plugging.route(sandbox, gateways)

    def unplug(self, sandbox: Path, endpoint: Endpoint) -> None:
        """Take an endpoint's interface out of a living namespace. Blocking."""
        plugging.unplug(sandbox, endpoint)

    def release(self, endpoint: Endpoint) -> None:
        """Give addresses and ports of an endpoint back."""
        self.publishing.withdraw(endpoint)
        self._free(endpoint)
        self.endpoints(endpoint.network).pop(endpoint.id, None)

    def _free(self, endpoint: Endpoint) -> None:
        for address, _ in endpoint.addresses:
            for pool in endpoint.network.pools:
                if address in pool.subnet:
                    pool.release(address)

    def check_settings(self, network: Network | None, mode_name: str, settings: Json) -> list[str]:
        """What is wrong with asked endpoint settings, in dockerd's words."""
        return check_endpoint(network, mode_name, settings)

    def connected(self, network: Network, container: Any) -> Endpoint | None:
        return next((e for e in self.endpoints(network).values() if e.container == container.id), None)

    def announce(self, action: str, network: Network, container: str) -> None:
        self._announce(action, network, container)


def remove_sandbox(path: Path) -> None:
    """Unpin a namespace; its interfaces go with it. Blocking."""
    with contextlib.suppress(OSError):
        netns.delete(path)
