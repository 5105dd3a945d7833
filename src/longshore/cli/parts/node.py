"""`longshore node`: what runs on one node beside its engine: kubelet, proxy, DNS, log collector, ways to other nodes."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from longshore.cli.cluster import authority, load
from longshore.cli.main import UserError, layout_of
from longshore.cli.parts.health import healthy
from longshore.machinery.run import run_part


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", required=True, help="the node's name, as in the cluster's file")
    parser.add_argument(
        "--resolver-netns",
        type=Path,
        default=None,
        metavar="PATH",
        help="the network namespace to reach the host's resolvers from (default: this one)",
    )
    parser.add_argument(
        "--config", type=Path, help="a KubeletConfiguration (default DATA-DIR/kubelet.yaml, where it is)"
    )
    for flag, what in (("config", "a CredentialProviderConfig, or a folder of them"), ("bin-dir", "its programs")):
        help_text = f"{what} (default DATA-DIR/credential-providers/{'config.yaml' if flag == 'config' else 'bin'})"
        parser.add_argument(f"--image-credential-provider-{flag}", type=Path, metavar="PATH", help=help_text)
    for flag, (_, form) in _FLAGS.items():
        parser.add_argument(f"--{flag}", metavar=form, help="as upstream's kubelet; goes before the file")


#: Certificates are renewed unless the file says otherwise: the cluster's own approver agrees.
ROTATION = {"rotateCertificates": True, "serverTLSBootstrap": True}
#: upstream's flag -> (field of the KubeletConfiguration, form of its value)
_FLAGS = {
    "allowed-unsafe-sysctls": ("allowedUnsafeSysctls", "A,B"),
    "container-log-max-files": ("containerLogMaxFiles", "N"),
    "container-log-max-size": ("containerLogMaxSize", "SIZE"),
    "cpu-manager-policy": ("cpuManagerPolicy", "none|static"),
    "cpu-manager-policy-options": ("cpuManagerPolicyOptions", "OPTION=true,..."),
    "eviction-hard": ("evictionHard", "SIGNAL<AMOUNT,..."),
    "eviction-soft": ("evictionSoft", "SIGNAL<AMOUNT,..."),
    "eviction-soft-grace-period": ("evictionSoftGracePeriod", "SIGNAL=DURATION,..."),
    "image-gc-high-threshold": ("imageGCHighThresholdPercent", "N"),
    "image-gc-low-threshold": ("imageGCLowThresholdPercent", "N"),
    "kube-reserved": ("kubeReserved", "RESOURCE=AMOUNT,..."),
    "max-pods": ("maxPods", "N"),
    "memory-manager-policy": ("memoryManagerPolicy", "None|Static"),
    "pod-manifest-path": ("staticPodPath", "FOLDER"),
    "pod-max-pids": ("podPidsLimit", "N"),
    "reserved-cpus": ("reservedSystemCPUs", "0-2,7"),
    "reserved-memory": ("reservedMemory", "NODE:KIND=AMOUNT,..."),
    "shutdown-grace-period": ("shutdownGracePeriod", "DURATION"),
    "shutdown-grace-period-critical-pods": ("shutdownGracePeriodCriticalPods", "DURATION"),
    "system-reserved": ("systemReserved", "RESOURCE=AMOUNT,..."),
    "topology-manager-policy": ("topologyManagerPolicy", "none|best-effort|restricted|single-numa-node"),
    "topology-manager-policy-options": ("topologyManagerPolicyOptions", "OPTION=VALUE,..."),
    "topology-manager-scope": ("topologyManagerScope", "container|pod"),
}


def _value(form: str, text: str) -> Any:
    """A flag's value as its field is written in a file. Raises ValueError."""
    if form == "N":
        return int(text)
    if form == "A,B":
        return [part.strip() for part in text.split(",") if part.strip()]
    if form.startswith("NODE:"):
        return _reservations(text)
    if "=" in form or "<" in form:
        sign = "=" if "=" in form else "<"
        pairs = [part.partition(sign) for part in text.split(",") if part.strip()]
        if not all(found for _, found, _ in pairs):
            raise ValueError(f"{text!r} is not {form}")
        return {name.strip(): value.strip() for name, _, value in pairs}
    return text


def _reservations(text: str) -> list[dict[str, Any]]:
    """ "0:memory=1Gi,hugepages-2Mi=4Mi;1:memory=1Gi" as reservedMemory. Raises ValueError."""
    found = []
    for part in filter(None, text.split(";")):
        node, _, amounts = part.partition(":")
        found.append({"numaNode": int(node), "limits": _value("KIND=AMOUNT,...", amounts)})
    return found


def kubelet_settings(arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """The KubeletConfiguration's fields of the file, with those of flags over them. Raises UserError."""
    from longshore.node.kubelet import settings
    from longshore.node.kubelet.config import Config

    file = arguments.config or data / "kubelet.yaml"
    try:
        fields: dict[str, Any] = dict(ROTATION)
        if arguments.config or file.exists():
            fields |= settings.read(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"failed to load kubelet config file, path: {file}, error: {error}") from error
    for flag, (name, form) in _FLAGS.items():
        text = getattr(arguments, flag.replace("-", "_"))
        if text is not None:
            try:
                fields[name] = _value(form, text)
            except ValueError as error:
                raise UserError(f"invalid argument {text!r} for --{flag}: {error}") from error
    try:
        settings.apply(Config("", [], data, data), fields)
    except ValueError as error:
        raise UserError(str(error)) from error
    return fields


def credential_providers(arguments: argparse.Namespace, data: Path) -> tuple[Path | None, Path | None]:
    """The configuration of image credential providers and the folder of their programs; none where nobody asks for them."""
    folder = data / "credential-providers"
    config: Path | None = arguments.image_credential_provider_config
    programs: Path | None = arguments.image_credential_provider_bin_dir
    if config is None and (folder / "config.yaml").exists():
        config = folder / "config.yaml"
    return config, (programs or folder / "bin") if config else None


def run(arguments: argparse.Namespace) -> int:
    layout = layout_of(arguments)
    config = load(layout)
    node = next((n for n in config.nodes if n.name == arguments.node), None) if config else None
    if config is None or node is None:
        raise UserError(f"no node {arguments.node!r} in {layout.data}: `longshore up` makes one")
    settings = kubelet_settings(arguments, layout.data)
    providers, programs = credential_providers(arguments, layout.data)
    from longshore.client import config as client_config
    from longshore.client.informer import InformerFactory
    from longshore.client.resources import NODES
    from longshore.client.rest import Client
    from longshore.machinery import renewal
    from longshore.machinery.http import Client as HTTPClient
    from longshore.machinery.http import client_context, server_context
    from longshore.node.dns.server import serve as serve_dns
    from longshore.node.ingress.server import serve as serve_ingress
    from longshore.node.kubelet.certificates import show_newest
    from longshore.node.kubelet.server import serve as serve_kubelet
    from longshore.node.logs.journald import folder_of as journal_folder
    from longshore.node.logs.server import DEFAULT_PORT as LOGS_PORT
    from longshore.node.logs.server import serve as serve_logs
    from longshore.node.overlay.server import serve as serve_overlay
    from longshore.node.policy.server import serve as serve_policy
    from longshore.node.proxy.server import serve as serve_proxy

    folders = layout.node(node.name)
    everywhere = "::" if 6 in config.families else "0.0.0.0"
    pki = layout.pki
    certificate, key = pki / f"kubelet-server-{node.name}.crt", pki / f"kubelet-server-{node.name}.key"

    async def main() -> None:
        proxy = Client(client_config.load(layout.kubeconfig("proxy")), user_agent="longshore-proxy")
        dns = Client(client_config.load(layout.kubeconfig("dns")), user_agent="longshore-dns")
        logs = Client(client_config.load(layout.kubeconfig("logs")), user_agent="longshore-logs")
        peers = HTTPClient(
            ssl=client_context(ca=pki / "ca.crt", certificate=pki / "logs.crt", key=pki / "logs.key"),
            connect_timeout=5.0,
        )
        logs_tls = server_context(client_ca=pki / "ca.crt")
        show_newest(logs_tls, folders.kubelet / "pki", certificate, key)
        # What the machine and the cluster have once is kept by the first node.
        first = node.name == config.nodes[0].name
        shared = InformerFactory(proxy)
        shared.start()
        async with healthy(folders.run / "node.sock"), asyncio.TaskGroup() as tasks:
            tasks.create_task(renewal.follow())
            tasks.create_task(
                serve_kubelet(
                    kubeconfig=layout.kubeconfig(f"kubelet-{node.name}"),
                    node_name=node.name,
                    node_ip=node.ips,
                    address=everywhere,
                    cri_endpoint=f"unix://{folders.cri_socket}",
                    root_dir=folders.kubelet,
                    pod_logs_dir=folders.pod_logs,
                    cluster_dns=[config.cluster_dns],
                    cluster_domain=config.cluster_domain,
                    client_ca=pki / "ca.crt",
                    certificate=certificate,
                    key=key,
                    settings=settings,
                    image_credential_provider_config=providers,
                    image_credential_provider_bin_dir=programs,
                )
            )
            tasks.create_task(
                serve_proxy(
                    client=proxy,
                    node_name=node.name,
                    node_ip=",".join(node.ips),
                    service_cidr=config.service_cidr,
                    pod_cidr=config.pod_cidr,
                    load_balancer_pool=config.load_balancer_pool,
                    informers=shared,
                )
            )
            tasks.create_task(serve_policy(client=proxy, node_name=node.name))
            if layout.kubeconfig("ingress").exists():
                # It may read every Secret: a machine that has joined has it where its cluster lets nodes have it.
                ingress = Client(client_config.load(layout.kubeconfig("ingress")), user_agent="longshore-ingress")
                tasks.create_task(
                    serve_ingress(
                        client=ingress,
                        host=",".join(node.ips),
                        http_port=config.ingress_http_port,
                        https_port=config.ingress_https_port,
                        informers=shared,
                    )
                )
            tasks.create_task(
                serve_dns(
                    client=dns,
                    addresses=config.dns_addresses,
                    domain=config.cluster_domain,
                    informers=shared,
                    resolver_namespace=arguments.resolver_netns,
                )
            )
            tasks.create_task(
                serve_logs(
                    pods=folders.pod_logs,
                    folder=folders.log_store,
                    node=node.name,
                    tls=logs_tls,
                    client=logs,
                    pod_labels=True,
                    parts=layout.logs if first else None,
                    audit=layout.audit if first else None,
                    journald=journal_folder() if first else None,
                    events=logs if first and not config.remote else None,
                    peers=peers,
                    addresses=lambda: {
                        n.name: f"https://{authority(n.ip, LOGS_PORT)}" for n in config.nodes if n.name != node.name
                    },
                    forward=("127.0.0.1", 24224),
                    host=everywhere,
                    fluent_conf=layout.data / "fluent.conf",
                )
            )
            tasks.create_task(serve_overlay(nodes=shared.informer(NODES), node_name=node.name, node_ip=node.ip))

    return run_part(main)
