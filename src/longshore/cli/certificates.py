"""The cluster's certificates and kubeconfigs, under the names that kubeadm gives them. Made when missing."""

from __future__ import annotations

from longshore.cli.cluster import ClusterConfig, default_host_ip, host_name
from longshore.machinery import pki
from longshore.machinery.paths import Layout


def _kubeconfig(
    layout: Layout, ca: pki.KeyPair, who: str, server: str, user: str, organizations: tuple[str, ...] = ()
) -> None:
    """A client certificate and the kubeconfig that holds it: pki/<who>.kubeconfig."""
    certificate = pki.ensure_issued(layout.pki, who, ca, user, organizations=organizations, client=True)
    content = pki.kubeconfig(server, ca.certificate, user=user, client=certificate)
    path = layout.kubeconfig(who)
    if not path.exists() or path.read_bytes() != content:
        pki.write_kubeconfig(path, content)


def ensure(layout: Layout, config: ClusterConfig) -> None:
    """Make what is missing or near its end."""
    domain = config.cluster_domain
    ca = pki.ensure_ca(layout.pki)
    front_proxy = pki.ensure_ca(layout.pki, "front-proxy-ca", "front-proxy-ca")
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{domain}"]
    names += [
        "localhost",
        host_name(),
        "127.0.0.1",
        "::1",
        config.api_service_ip,
        *config.host_ips,
        # As other machines see this one, also where its nodes are namespaces on a bridge of their own.
        *filter(None, map(default_host_ip, (4, 6))),
        *config.extra_names,
    ]
    pki.ensure_issued(layout.pki, "apiserver", ca, "kube-apiserver", names=list(dict.fromkeys(names)), server=True)
    pki.ensure_issued(
        layout.pki,
        "apiserver-kubelet-client",
        ca,
        "kube-apiserver-kubelet-client",
        organizations=["system:masters"],
        client=True,
    )
    pki.ensure_issued(layout.pki, "front-proxy-client", front_proxy, "front-proxy-client", client=True)
    pki.ensure_key(layout.pki / "sa.key")
    _kubeconfig(layout, ca, "admin", config.local_server, "kubernetes-admin", ("system:masters",))
    _kubeconfig(layout, ca, "controller-manager", config.local_server, "system:kube-controller-manager")
    _kubeconfig(layout, ca, "scheduler", config.local_server, "system:kube-scheduler")
    _kubeconfig(layout, ca, "proxy", config.server, "system:kube-proxy")
    _kubeconfig(layout, ca, "ingress", config.server, "longshore:ingress")
    _kubeconfig(layout, ca, "metrics-server", config.local_server, "system:metrics-server")
    pki.ensure_issued(
        layout.pki,
        "metrics-server-tls",
        ca,
        "metrics-server",
        names=["metrics-server.kube-system.svc", "localhost", "127.0.0.1", *config.host_ips],
        server=True,
    )
    _kubeconfig(layout, ca, "dns", config.server, "system:coredns")
    _kubeconfig(layout, ca, "logs", config.server, "longshore:logs")
    for node in config.nodes:
        user = f"system:node:{node.name}"
        _kubeconfig(layout, ca, f"kubelet-{node.name}", config.server, user, ("system:nodes",))
        pki.ensure_issued(
            layout.pki,
            f"kubelet-server-{node.name}",
            ca,
            user,
            organizations=["system:nodes"],
            names=[node.name, *node.ips, "127.0.0.1", "localhost"],
            server=True,
        )
