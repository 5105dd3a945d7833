"""Which of a port's endpoints traffic may go to from this node: readiness, traffic policies, hints.

Source: kubernetes.io "Virtual IPs and Service Proxies" (traffic policies, terminating endpoints), "Topology Aware
Routing", KEP-1669 (terminating endpoints), KEP-2433 and KEP-4444 (hints, traffic distribution).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from longshore.node.proxy.service import Endpoint, ServicePort


class Choice(NamedTuple):
    """cluster: for traffic under policy Cluster. local: on this node, for policy Local. any: there is one at all."""

    cluster: list[Endpoint]
    local: list[Endpoint]
    any: bool


def choose(port: ServicePort, endpoints: Sequence[Endpoint], node_name: str, zone: str) -> Choice:
    """Pick endpoints. zone: this node's topology.kubernetes.io/zone, "" when it has none."""
    ready = [e for e in endpoints if e.ready]
    cluster = by_hints(ready, node_name, zone)
    if not cluster:
        # Nothing is ready: what is being shut down but still answers is better than nothing.
        cluster = [e for e in endpoints if e.serving and e.terminating]
    local: list[Endpoint] = []
    if port.internal_local or port.external_local:
        local = [e for e in ready if e.local]
        if not local:
            local = [e for e in endpoints if e.local and e.serving and e.terminating]
    needs_cluster = not port.internal_local or (port.external and not port.external_local) or port.external_local
    return Choice(cluster if needs_cluster else [], local, bool(cluster or local))


def by_hints(ready: Sequence[Endpoint], node_name: str, zone: str) -> list[Endpoint]:
    """Those whose hints name this node, else this zone; all where hints are missing on one or lead nowhere."""
    if node_name and ready and all(e.nodes for e in ready):
        found = [e for e in ready if node_name in e.nodes]
        if found:
            return found
    if zone and ready and all(e.zones for e in ready):
        found = [e for e in ready if zone in e.zones]
        if found:
            return found
    return list(ready)
