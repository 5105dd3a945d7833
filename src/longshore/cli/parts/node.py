"""`longshore node`: what runs on one node beside its engine: kubelet, proxy, DNS, log collector, ways to other nodes."""

from __future__ import annotations

import argparse
import asyncio

from longshore.cli.cluster import load
from longshore.cli.main import UserError, layout_of
from longshore.cli.parts.health import healthy
from longshore.machinery.run import run_part


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", required=True, help="the node's name, as in the cluster's file")


def run(arguments: argparse.Namespace) -> int:
    layout = layout_of(arguments)
    config = load(layout)
    node = next((n for n in config.nodes if n.name == arguments.node), None) if config else None
    if config is None or node is None:
        raise UserError(f"no node {arguments.node!r} in {layout.data}: `longshore up` makes one")
    from longshore.client import config as client_config
    from longshore.client.informer import InformerFactory
    from longshore.client.resources import NODES
    from longshore.client.rest import Client
    from longshore.machinery.http import server_context
    from longshore.node.dns.server import serve as serve_dns
    from longshore.node.ingress.server import serve as serve_ingress
    from longshore.node.kubelet.server import serve as serve_kubelet
    from longshore.node.logs.server import serve as serve_logs
    from longshore.node.overlay.server import serve as serve_overlay
    from longshore.node.policy.server import serve as serve_policy
    from longshore.node.proxy.server import serve as serve_proxy

    folders = layout.node(node.name)
    pki = layout.pki
    certificate, key = pki / f"kubelet-server-{node.name}.crt", pki / f"kubelet-server-{node.name}.key"

    async def main() -> None:
        proxy = Client(client_config.load(layout.kubeconfig("proxy")), user_agent="longshore-proxy")
        dns = Client(client_config.load(layout.kubeconfig("dns")), user_agent="longshore-dns")
        ingress = Client(client_config.load(layout.kubeconfig("ingress")), user_agent="longshore-ingress")
        kubelet = Client(client_config.load(layout.kubeconfig(f"kubelet-{node.name}")), user_agent="longshore-logs")
        # The parts' own logs and the cluster's Events are kept once, by the first node.
        first = node.name == config.nodes[0].name
        events = None
        if first and layout.kubeconfig().exists():
            admin = client_config.load(layout.kubeconfig())
            admin.server = config.server
            events = Client(admin, user_agent="longshore-logs")
        shared = InformerFactory(proxy)
        shared.start()
        async with healthy(folders.run / "node.sock"), asyncio.TaskGroup() as tasks:
            tasks.create_task(
                serve_kubelet(
                    kubeconfig=layout.kubeconfig(f"kubelet-{node.name}"),
                    node_name=node.name,
                    node_ip=node.ip,
                    cri_endpoint=f"unix://{folders.cri_socket}",
                    root_dir=folders.kubelet,
                    pod_logs_dir=folders.pod_logs,
                    cluster_dns=[config.cluster_dns],
                    cluster_domain=config.cluster_domain,
                    client_ca=pki / "ca.crt",
                    certificate=certificate,
                    key=key,
                )
            )
            tasks.create_task(
                serve_proxy(
                    client=proxy,
                    node_name=node.name,
                    node_ip=node.ip,
                    service_cidr=config.service_cidr,
                    pod_cidr=config.pod_cidr,
                    load_balancer_pool=config.load_balancer_pool,
                    informers=shared,
                )
            )
            tasks.create_task(serve_policy(client=proxy, node_name=node.name))
            tasks.create_task(
                serve_ingress(
                    client=ingress,
                    host=node.ip,
                    http_port=config.ingress_http_port,
                    https_port=config.ingress_https_port,
                    informers=shared,
                )
            )
            tasks.create_task(
                serve_dns(client=dns, addresses=[config.cluster_dns], domain=config.cluster_domain, informers=shared)
            )
            tasks.create_task(
                serve_logs(
                    pods=folders.pod_logs,
                    folder=folders.log_store,
                    node=node.name,
                    tls=server_context(certificate, key, client_ca=pki / "ca.crt"),
                    client=kubelet,
                    pod_labels=True,
                    parts=layout.logs if first else None,
                    events=events,
                    forward=("127.0.0.1", 24224),
                    fluent_conf=layout.data / "fluent.conf",
                )
            )
            if len(config.nodes) > 1:
                tasks.create_task(serve_overlay(nodes=shared.informer(NODES), node_name=node.name, node_ip=node.ip))

    return run_part(main)
