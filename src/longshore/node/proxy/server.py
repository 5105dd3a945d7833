"""The proxy as a process part: informers in, tables out, health and metrics served."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry

from longshore.client import Client, InformerFactory, resources
from longshore.machinery import netns
from longshore.machinery.http import Server
from longshore.machinery.nftables import Nftables, NftablesError
from longshore.node.proxy import node
from longshore.node.proxy.announce import Announcer
from longshore.node.proxy.health import HealthPorts, status_handler
from longshore.node.proxy.metrics import ProxyMetrics
from longshore.node.proxy.proxier import TABLE, Proxier
from longshore.node.proxy.rules import Dialect

logger = logging.getLogger("longshore.proxy")


def dialects(service_cidr: str, pod_cidr: str) -> list[Dialect]:
    """One per IP family that the Service range has; both ranges may be "v4,v6" lists."""
    found: list[Dialect] = []
    services = [part for part in service_cidr.split(",") if part]
    pods = [part for part in pod_cidr.split(",") if part]
    for family in (4, 6):
        mine = tuple(c for c in services if ipaddress.ip_network(c).version == family)
        if mine:
            found.append(Dialect(family, tuple(c for c in pods if ipaddress.ip_network(c).version == family), mine))
    return found


async def serve(
    *,
    client: Client,
    node_name: str,
    service_cidr: str = "10.96.0.0/12",
    pod_cidr: str = "10.244.0.0/16",
    node_ip: str = "",
    load_balancer_pool: str = "",
    informers: InformerFactory | None = None,
    node_local: Collection[str] = ("kube-system/kube-dns",),
    healthz: tuple[str, int] | None = ("127.0.0.1", 10256),
    metrics: CollectorRegistry | None = None,
    namespace: netns.Namespace | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Keep this node's Services in force until cancelled; the rules stay, so that connections go on meanwhile.

    service_cidr, pod_cidr: ranges of the cluster ("v4" or "v4,v6"). node_ip: the addresses ("v4,v6") from which the node
    itself talks to Services. load_balancer_pool: ranges of load balancer addresses that the nodes themselves serve. informers: shared with other parts of the process (None: of its own). node_local: Services that a process
    of this node answers itself. healthz: where /healthz, /metrics and /proxyMode are served (None: nowhere).
    ready: called when the first rules are in force. Raises NftablesUnavailable, PermissionError, NetlinkError.
    """
    families = dialects(service_cidr, pod_cidr)
    ranges = [part for part in f"{service_cidr},{load_balancer_pool}".split(",") if part]
    await asyncio.to_thread(node.prepare, ranges, source=node_ip, namespace=namespace)
    figures = ProxyMetrics(metrics)
    everywhere = "::" if any(dialect.family == 6 for dialect in families) else "0.0.0.0"
    ports = HealthPorts(lambda: proxier.synced.is_set(), host=everywhere)
    pools = [ipaddress.ip_network(text.strip()) for text in load_balancer_pool.split(",") if text.strip()]
    announcer = Announcer(pools, namespace=namespace)
    proxier = Proxier(
        node_name,
        families,
        node_local=node_local,
        namespace=namespace,
        metrics=figures,
        health_changed=ports.set,
        serves=announcer.set,
    )
    own = informers is None
    factory = InformerFactory(client) if informers is None else informers
    services = factory.informer(resources.SERVICES)
    slices = factory.informer(resources.ENDPOINT_SLICES)
    nodes = factory.informer(resources.NODES, field_selector=f"metadata.name={node_name}")
    services.on(proxier.service, lambda old, new: proxier.service(new), proxier.service_gone)
    slices.on(proxier.slice, lambda old, new: proxier.slice(new, old), proxier.slice_gone)
    nodes.on(proxier.node, lambda old, new: proxier.node(new))
    status: Server | None = None
    try:
        if own:
            factory.start()
        if healthz is not None:
            status = Server(status_handler(proxier.synced.is_set, lambda: proxier.last_sync, figures.registry))
            await status.listen_tcp(*healthz)
        await factory.wait_synced([services, slices])
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(ports.run(), name="proxy health ports")
            group.create_task(announcer.run(), name="proxy announcements")
            group.create_task(proxier.run(), name="proxy")
            await proxier.synced.wait()
            logger.info("%d Services in force after %.3f s", len(services.store), time.monotonic() - started)
            if ready is not None:
                ready()
    finally:
        if status is not None:
            await status.close()
        if own:
            await factory.stop()


def clean_up(*, namespace: netns.Namespace | None = None) -> None:
    """Remove every trace of the proxy from the node: tables, interface, routes."""
    node.clean_up(namespace=namespace)
    with Nftables(namespace) as nft:
        for family in ("ip", "ip6"):
            with contextlib.suppress(NftablesError):
                nft.run(f"delete table {family} {TABLE}")
