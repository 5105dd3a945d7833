"""The cluster's certificates and kubeconfigs, under the names that kubeadm gives them. Made when missing or near their end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from longshore.cli.cluster import ClusterConfig, default_host_ip, host_name
from longshore.machinery import pki
from longshore.machinery.paths import Layout

log = logging.getLogger("longshore.certificates")
#: A machine that sleeps stops the clock that sleeping tasks go by: look at dates at least so often.
LONGEST_SECONDS = 3600.0
RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Leaf:
    """One certificate: pki/<file>.crt and .key, and pki/<file>.kubeconfig where a server is given.

    user: its common name. names: DNS names and addresses of a serving certificate; a client's has none.
    """

    file: str
    user: str
    organizations: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    server: str = ""
    authority: str = "ca"


def leaves(config: ClusterConfig) -> list[Leaf]:
    """Every certificate that a cluster of this machine has."""
    domain = config.cluster_domain
    names = [
        *("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{domain}"),
        *("localhost", host_name(), "127.0.0.1", "::1"),
        config.api_service_ip,
        *config.host_ips,
        # As other machines see this one, also where its nodes are namespaces on a bridge of their own.
        *filter(None, map(default_host_ip, (4, 6))),
        *config.extra_names,
    ]
    metrics = ("metrics-server.kube-system.svc", "localhost", "127.0.0.1", *config.host_ips)
    masters, local, server = ("system:masters",), config.local_server, config.server
    found = [
        Leaf("apiserver", "kube-apiserver", names=tuple(dict.fromkeys(names))),
        Leaf("apiserver-kubelet-client", "kube-apiserver-kubelet-client", masters),
        Leaf("front-proxy-client", "front-proxy-client", authority="front-proxy-ca"),
        Leaf("admin", "kubernetes-admin", masters, server=local),
        Leaf("controller-manager", "system:kube-controller-manager", server=local),
        Leaf("scheduler", "system:kube-scheduler", server=local),
        Leaf("metrics-server", "system:metrics-server", server=local),
        Leaf("metrics-server-tls", "metrics-server", names=metrics),
        Leaf("proxy", "system:kube-proxy", server=server),
        Leaf("ingress", "longshore:ingress", server=server),
        Leaf("dns", "system:coredns", server=server),
        Leaf("logs", "longshore:logs", server=server),
    ]
    for node in config.nodes:
        user, nodes = f"system:node:{node.name}", ("system:nodes",)
        found.append(Leaf(f"kubelet-{node.name}", user, nodes, server=server))
        own = (node.name, *node.ips, "127.0.0.1", "localhost")
        found.append(Leaf(f"kubelet-server-{node.name}", user, nodes, own))
    return found


def ensure(layout: Layout, config: ClusterConfig) -> None:
    """Make what is missing or near its end. Blocking."""
    authorities = {
        "ca": pki.ensure_ca(layout.pki),
        "front-proxy-ca": pki.ensure_ca(layout.pki, "front-proxy-ca", "front-proxy-ca"),
    }
    pki.ensure_key(layout.pki / "sa.key")
    for leaf in leaves(config):
        ca = authorities[leaf.authority]
        pair = pki.ensure_issued(
            layout.pki,
            leaf.file,
            ca,
            leaf.user,
            organizations=leaf.organizations,
            names=leaf.names,
            server=bool(leaf.names),
            client=not leaf.names,
        )
        if not leaf.server:
            continue
        content = pki.kubeconfig(leaf.server, ca.certificate, user=leaf.user, client=pair)
        path = layout.kubeconfig(leaf.file)
        if not path.exists() or path.read_bytes() != content:
            pki.write_kubeconfig(path, content)


def files(layout: Layout, config: ClusterConfig) -> list[Path]:
    """Where the cluster's certificates are."""
    return [layout.pki / f"{leaf.file}.crt" for leaf in leaves(config)]


def due(certificates: Iterable[Path]) -> float:
    """When the first of these is to be renewed, seconds since 1970; one that cannot be read is at once."""
    return min(map(_due, certificates))


def _due(certificate: Path) -> float:
    try:
        return pki.due(certificate.read_bytes())
    except (OSError, ValueError):
        return 0.0


async def keep(certificates: Iterable[Path], renew: Callable[[], Awaitable[None]]) -> None:
    """Have certificates renewed before they end, until cancelled. Parts read them anew by themselves.

    renew: makes what is due; what it raises is logged and it is called again after a minute.
    """
    watched = list(certificates)
    while True:
        await asyncio.sleep(min(max(due(watched) - time.time(), 0.0), LONGEST_SECONDS))
        if due(watched) > time.time():
            continue
        try:
            await renew()
        except Exception as error:  # the supervisor goes on whatever a cluster answers
            log.warning("certificates are not renewed: %s", error)
        if due(watched) <= time.time():
            await asyncio.sleep(RETRY_SECONDS)
