"""Publishing: host ports of containers taken, and led to their endpoints by rules and by the sockets that hold the ports.

Source: Docker Engine API, HostConfig.PortBindings and NetworkSettings.Ports; the texts of errors are dockerd's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from longshore.engine.errors import SystemFailure
from longshore.machinery.nftables import ChangeMonitor, NftablesError

from . import ports
from .firewall import BridgeRule, Firewall, LinkRule, PortRule
from .model import Endpoint

log = logging.getLogger("longshore.engine.networks")
Json = dict[str, Any]

_REST = 1.0  # seconds from one repair of the tables to the next


class Publishing:
    """The published ports of one engine's endpoints. Calls block for a millisecond or two.

    firewall: where their rules are. endpoints, bridges: all that there are at the moment of asking; a table written anew
    holds what they have. carry: whether what netfilter cannot translate is carried by the engine.
    """

    def __init__(
        self,
        firewall: Firewall,
        endpoints: Callable[[], Iterable[Endpoint]],
        bridges: Callable[[], list[BridgeRule]],
        *,
        carry: bool = True,
    ) -> None:
        self._firewall = firewall
        self._endpoints = endpoints
        self._bridges = bridges
        self._ports = ports.Ports(carry=carry)
        self._monitor: ChangeMonitor | None = None
        self._ruling = threading.Lock()  # the rules that endpoints have are those in the table

    def publish(self, endpoint: Endpoint, bindings: Json) -> Json:
        """Take host ports and set the rules; returns NetworkSettings.Ports. Raises SystemFailure, nothing published."""
        shown: Json = {}
        if endpoint.network.driver != "bridge" or endpoint.network.internal:
            return shown
        try:
            for port, wanted in bindings.items():
                number, _, protocol = port.partition("/")
                protocol = protocol or "tcp"
                entries: list[Json] = []
                for binding in wanted or []:
                    entries += self._take(endpoint, protocol, dict(binding or {}))
                shown[f"{number}/{protocol}"] = entries or None
            self._open(endpoint, shown)
        except BaseException as error:
            self._ports.release(endpoint.id)
            if isinstance(error, SystemFailure):
                raise SystemFailure(
                    f"driver failed programming external connectivity on endpoint {endpoint.name} ({endpoint.id}): {error.message}"
                ) from None
            raise
        return shown

    def adopt(self, endpoint: Endpoint, shown: Json) -> None:
        """Take the ports of a container that ran on while the engine was away; `refresh` sets the rules."""
        for port, entries in shown.items():
            _, _, protocol = port.partition("/")
            for entry in entries or []:
                both = {**entry, "HostIp": "0.0.0.0"} in entries
                if (entry["HostIp"] == "::" and both) or not entry["HostPort"]:
                    continue
                with contextlib.suppress(SystemFailure):
                    self._ports.take(endpoint.id, protocol, entry)
        self._lead(endpoint, shown)

    def move(self, source: Endpoint, target: Endpoint, shown: Json) -> None:
        """Let another endpoint of the same container have its published ports; they stay the same at the host."""
        self._shut(source)
        self._ports.give(source.id, target.id)
        self._open(target, shown)

    def withdraw(self, endpoint: Endpoint) -> None:
        """Give the ports of an endpoint back."""
        self._shut(endpoint)
        self._ports.release(endpoint.id)

    def forget(self, endpoint: Endpoint) -> None:
        """Give back what an endpoint has and take links to it away: its address may soon be another's."""
        self.withdraw(endpoint)
        for other in self._endpoints():
            if other is endpoint or any(rule.target == endpoint.ipv4 for rule in other.links):
                self.link(other, [r for r in other.links if other is not endpoint and r.target != endpoint.ipv4])

    def refresh(self) -> None:
        """Write the tables anew, with all bridges and published ports. Raises NftablesError."""
        with self._ruling:
            endpoints = list(self._endpoints())
            rules: list[PortRule] = [rule for endpoint in endpoints for rule in endpoint.rules]
            links: list[LinkRule] = [rule for endpoint in endpoints for rule in endpoint.links]
            self._firewall.reset(self._bridges(), rules, links)

    def link(self, endpoint: Endpoint, rules: Sequence[LinkRule]) -> None:
        """Let an endpoint reach these ports of others in its bridge, and no other ones. Raises NftablesError."""
        with self._ruling:
            self._firewall.remove_links([rule for rule in endpoint.links if rule not in rules])
            self._firewall.add_links([rule for rule in rules if rule not in endpoint.links])
            endpoint.links = list(rules)

    def watch(self) -> None:
        """Put the tables back whenever somebody else takes of them; on the running loop."""
        loop = asyncio.get_running_loop()
        repair_at = -_REST

        def changed() -> None:
            # Whoever keeps taking them away does not keep the engine busy.
            nonlocal repair_at
            now = loop.time()
            if repair_at <= now:
                repair_at = max(now, repair_at + _REST)
                loop.call_at(repair_at, loop.run_in_executor, None, self._repair)

        self._monitor = self._firewall.watch(changed)

    def _repair(self) -> None:
        log.warning("the rules of Docker's networks were changed by someone else; restoring them")
        try:
            self.refresh()
        except NftablesError as error:
            log.error("the rules of Docker's networks cannot be restored: %s", error)

    def close(self) -> None:
        """Let go of the sockets that hold ports; rules stay."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        self._ports.close()

    def _take(self, endpoint: Endpoint, protocol: str, binding: Json) -> list[Json]:
        """One binding's entries of NetworkSettings.Ports; no port of the host is taken where a network is routed."""
        network = endpoint.network
        binding["HostIp"] = binding.get("HostIp") or network.binding_address
        routed = {version for version in (4, 6) if network.gateway_mode(version) == "routed"}
        asked = [binding["HostIp"]] if binding["HostIp"] not in ("", "0.0.0.0") else ["0.0.0.0", "::"]
        if all((6 if ":" in address else 4) in routed for address in asked):
            return [{"HostIp": address, "HostPort": ""} for address in asked]
        ip, host_port = self._ports.take(endpoint.id, protocol, binding)
        return [
            {"HostIp": address, "HostPort": "" if (6 if ":" in address else 4) in routed else str(host_port)}
            for address in ([ip] if ip else ["0.0.0.0", "::"])
        ]

    def _open(self, endpoint: Endpoint, shown: Json) -> None:
        with self._ruling:
            self._lead(endpoint, shown)
            try:
                self._firewall.add_ports(endpoint.rules)
            except NftablesError:
                endpoint.rules = []
                raise
        _forget_flows(endpoint.rules)

    def _shut(self, endpoint: Endpoint) -> None:
        with self._ruling:
            gone, endpoint.rules = endpoint.rules, []
            if gone:
                self._firewall.remove_ports(gone)
        _forget_flows(gone)

    def _lead(self, endpoint: Endpoint, shown: Json) -> None:
        """Let published ports lead to an endpoint: by rules, and what these cannot reach by the sockets that hold the ports."""
        endpoint.rules = ports.rules(shown, endpoint.ipv4, endpoint.ipv6)
        self._ports.lead(shown, endpoint.ipv4, endpoint.ipv6)


def _forget_flows(rules: Sequence[PortRule]) -> None:
    """Let datagrams that keep coming to these ports take the way of today's rules: a tracked flow keeps to its old one."""
    ports = {rule.host_port for rule in rules if rule.protocol == "udp" and rule.host_port}
    if not ports:
        return
    from longshore.machinery.conntrack import Conntrack

    with contextlib.suppress(OSError), Conntrack() as tracker:
        for family in {6 if ":" in rule.container_ip else 4 for rule in rules}:
            for flow in tracker.flows(family, "udp"):
                if flow.destination_port in ports:
                    tracker.delete(flow)
