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
    EngineError,
    Forbidden,
    InvalidParameter,
    NotFound,
    SystemFailure,
)
from longshore.machinery import netns
from longshore.machinery.netlink import Netlink, NetlinkError
from longshore.machinery.nftables import NftablesError

from . import bridges, creation, default, ipam, plugging
from .firewall import BridgeRule, Firewall
from .model import Endpoint, Network
from .plugging import Plug
from .publishing import Publishing

log = logging.getLogger("longshore.engine.networks")
Json = dict[str, Any]


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
        #: Options of resolv.conf for containers that have none of their own.
        self.dns_options: Sequence[str] = self._configuration.dns_options
        data.mkdir(parents=True, exist_ok=True)
        run.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------ start and stop

    def start(self) -> None:
        """Read the networks back, make the predefined ones and what is missing of their interfaces and rules."""
        for network in Network.begun(self._data):
            # The engine was killed while it made this one; nobody has heard of it.
            self._unmake_interface(network)
            network.abandon(self._data)
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
        known = next((n for n in self._networks.values() if n.name == "bridge"), None)
        if known is not None and (self.bridgeless or not (self._configuration.bridge or known.own_bridge)):
            # None is wanted, or no longer the interface that was an administrator's.
            self._drop_default()
            known = None
        if self._configuration.bridge and not self.bridgeless:
            self._adopt_default(self._configuration.bridge)
        elif known is None and not self.bridgeless:
            network = Network(name="bridge", driver="bridge")
            network.options = {
                "com.docker.network.bridge.name": self._bridge or default.free_bridge_name(self._netlink)
            }
            self._configure_default(network)
            self._keep(network)
        elif known is not None and self._configuration != Configuration():
            self._configure_default(known)
            self._keep(known)
        with contextlib.suppress(OSError):
            netns.write_sysctl(None, "net/ipv4/ip_forward", "1")
        for network in self._networks.values():
            if network.driver in ("bridge", "macvlan", "ipvlan"):
                self._restore(network)
        self.publishing.refresh()

    @property
    def bridgeless(self) -> bool:
        """Whether the administrator wants no default network ("bridge": "none")."""
        return self._configuration.bridge == default.NO_BRIDGE

    def _drop_default(self) -> None:
        for network in [n for n in self._networks.values() if n.name == "bridge"]:
            self._unmake_interface(network)
            self._networks = {id: kept for id, kept in self._networks.items() if id != network.id}
            (self._data / f"{network.id}.json").unlink(missing_ok=True)

    def _adopt_default(self, bridge: str) -> None:
        """The default network on an interface of the administrator's, with its addresses. Raises SystemFailure."""
        found = default.adopted(self._netlink, bridge, self._configuration)
        known = next((n for n in self._networks.values() if n.name == "bridge"), None)
        if known is not None and (known.bridge != bridge or any(e not in known.ipam_config for e in found)):
            self._drop_default()
            known = None
        network = known or Network(name="bridge", driver="bridge")
        network.own_bridge = False
        network.options = default.options(self._configuration, bridge)
        network.enable_ipv6 = self._configuration.ipv6
        if known is None:
            self._assign_pools(network, {"Config": found})
        self._keep(network)

    def _restore(self, network: Network) -> None:
        try:
            network.make_pools()
            if network.driver == "bridge":
                bridges.make(self._netlink, network)
            else:
                plugging.make_parent(self._netlink, network)
        except (EngineError, NetlinkError) as error:
            log.warning("network %s (%s) is not as it was: %s", network.name, network.id[:12], error)

    def watch(self) -> None:
        """Put rules back that others take away, from now on; on the running loop."""
        self.publishing.watch()

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
            self._unmake_interface(network)

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
        others = list(self._networks.values())
        network, ipam = creation.asked(body, others, self._configuration)
        if network.config_only:
            network.ipam_driver = ipam.get("Driver") or "default"
            network.ipam_options = ipam.get("Options")
            network.ipam_config = ipam.get("Config") or []
        else:
            self._assign_pools(network, ipam)
            creation.check_conflicts(network, others)
            network.own_bridge = network.driver != "bridge" or self._netlink.link(network.bridge) is None
            network.begin(self._data)
            try:
                self._make_interface(network)
            except BaseException as error:
                self._unmake_interface(network)
                network.abandon(self._data)
                if isinstance(error, NetlinkError | NftablesError):
                    raise SystemFailure((getattr(error, "strerror", "") or str(error)).lower()) from None
                raise
        self._keep(network)
        self._announce("create", network)
        return network

    def _make_interface(self, network: Network) -> None:
        if network.driver == "bridge":
            bridges.make(self._netlink, network)
            self._firewall.add_bridge(BridgeRule.of(network))
        else:
            plugging.make_parent(self._netlink, network)

    def _unmake_interface(self, network: Network) -> None:
        if network.driver == "bridge":
            bridges.remove(self._netlink, network)
        elif network.driver in ("macvlan", "ipvlan"):
            plugging.remove_parent(self._netlink, network)

    def _assign_pools(self, network: Network, given: Json) -> None:
        """The ranges of a new network: those asked for, and of the address pools where none is. Raises EngineError classes."""
        held = [p.subnet for n in self._networks.values() for p in n.pools]
        network.ipam_driver = given.get("Driver") or "default"
        network.ipam_options = given.get("Options")
        config = [dict(entry) for entry in given.get("Config") or []]
        asked = {4: network.enable_ipv4, 6: network.enable_ipv6}
        for version in (version for version, wanted in asked.items() if wanted):
            own = [ipaddress.ip_network(e["Subnet"]) for e in config if (6 if ":" in e["Subnet"] else 4) == version]
            for subnet in own:
                if any(subnet.version == other.version and subnet.overlaps(other) for other in held):
                    raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")
                held.append(subnet)
            if network.driver == "bridge" and len(own) > 1:
                raise Forbidden("bridge driver doesn't support multiple subnets")
            if not own:
                config.append(self._free_range(network, version, held))
        network.ipam_config = config
        network.make_pools()

    def _free_range(self, network: Network, version: int, held: Sequence[ipam.Network]) -> Json:
        """IPAM.Config's entry of a range that nothing has: of another network, of the cluster, of the host's routes."""
        taken = [*held, *self._reserved]
        if version == 4:
            taken += [route.destination for route in self._netlink.routes(4) if route.destination.prefixlen]
            subnet: ipam.Network = ipam.choose_pool(taken, self._configuration.address_pools)
            network.auto_ipv4 = True
        else:
            subnet = ipam.choose_pool6(network.id)
            network.auto_ipv6 = True
        return {"Subnet": str(subnet), **({"Gateway": str(subnet[1])} if network.needs_gateway(version) else {})}

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
            raise Forbidden(f'error while removing network: configuration network "{network.name}" is in use')
        self._networks = {key: other for key, other in self._networks.items() if key != network.id}
        self._endpoints.pop(network.id, None)
        network.delete(self._data)
        self._unmake_interface(network)
        if network.driver == "bridge":
            try:
                self.publishing.refresh()
            except NftablesError as error:
                log.warning("the rules of network %s stay: %s", network.name, error)
        if not network.config_only:
            self._announce("destroy", network)

    # ------------------------------------------------------------------ sandboxes and endpoints

    def sandbox_path(self, sandbox_id: str) -> Path:
        return self._run / sandbox_id[:12]

    def forget_sandboxes(self, kept: Iterable[str]) -> None:
        """Unpin the namespaces that a killed engine left; kept: the ids of those in use. Blocking."""
        names = {sandbox_id[:12] for sandbox_id in kept}
        for path in self._run.iterdir():
            if path.name not in names:
                remove_sandbox(path)

    def allocate(self, network: Network, container: Any, settings: Json, *, ipv6: bool = True) -> Endpoint:
        """Take addresses for a container in a network and write them into its endpoint settings. Raises EngineError.

        ipv6: whether the container has IPv6 at all.
        """
        name = container.name.lstrip("/")
        if network.config_only:
            raise Forbidden("cannot create endpoint on configuration-only network")
        active = self.endpoints(network)
        if any(e.name == name for e in active.values()):
            raise Forbidden(f"endpoint with name {name} already exists in network {network.name}")
        endpoint = Endpoint(network, container.id, name)
        wanted = settings.get("IPAMConfig") or {}
        endpoint.link_local = tuple(wanted.get("LinkLocalIPs") or ())
        for text in endpoint.link_local:
            if not ipaddress.ip_address(text).is_link_local:
                raise InvalidParameter(f"invalid link local IP address: {text}")
        try:
            for version in {pool.subnet.version: None for pool in network.pools}:
                if version == 6 and not ipv6:
                    continue
                asked = wanted.get(f"IPv{version}Address")
                endpoint.addresses.append(network.take_address(version, asked or ""))
        except EngineError:
            self._free(endpoint)
            raise
        endpoint.mac = settings.get("_mac") or network.make_mac(endpoint)
        options = settings.get("DriverOpts") or {}
        endpoint.interface = options.get("com.docker.network.endpoint.ifname", "")
        endpoint.sysctls = options.get(plugging.SYSCTLS, "")
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
        for network in {endpoint.network for endpoint, _, _ in plugs if endpoint.network.driver == "bridge"}:
            self._mend(network)
        plugging.plug(sandbox, plugs)

    def join(self, sandbox: Path, endpoint: Endpoint) -> None:
        """Plug a further endpoint into a living namespace, without a default route. Blocking."""
        self.build(sandbox, [(endpoint, plugging.next_name(sandbox, endpoint), ())], create=False)

    def _mend(self, network: Network) -> None:
        """Make a bridge again that somebody deleted, with the interfaces that were in it."""
        with Netlink() as nl:
            if nl.link(network.bridge) is not None:
                return
            log.warning("bridge %s of network %s is gone; making it again", network.bridge, network.name)
            index = bridges.make(nl, network)
            for endpoint in list(self.endpoints(network).values()):
                link = nl.link(plugging.veth(endpoint))
                if link is not None:
                    nl.set_link(link.index, master=index)

    def route(self, sandbox: Path, gateways: Mapping[int, Endpoint]) -> None:
        """Set the default routes of a living namespace: IP version to the endpoint that has it. Blocking."""
        plugging.route(sandbox, gateways)

    def unplug(self, sandbox: Path, endpoint: Endpoint) -> None:
        """Take an endpoint's interface out of a living namespace. Blocking."""
        plugging.unplug(sandbox, endpoint)

    def release(self, endpoint: Endpoint) -> None:
        """Give addresses and ports of an endpoint back."""
        self.publishing.forget(endpoint)
        self._free(endpoint)
        self.endpoints(endpoint.network).pop(endpoint.id, None)

    def _free(self, endpoint: Endpoint) -> None:
        for address, _ in endpoint.addresses:
            for pool in endpoint.network.pools:
                if address in pool.subnet:
                    pool.release(address)

    def connected(self, network: Network, container: Any) -> Endpoint | None:
        return next((e for e in self.endpoints(network).values() if e.container == container.id), None)

    def announce(self, action: str, network: Network, container: str) -> None:
        self._announce(action, network, container)


def remove_sandbox(path: Path) -> None:
    """Unpin a namespace; its interfaces go with it. Blocking."""
    with contextlib.suppress(OSError):
        netns.delete(path)
