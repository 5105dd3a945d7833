"""`longshore supervise`: the supervisor in the foreground, with the parts of this cluster."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from longshore.cli import certificates, hostnet
from longshore.cli.cluster import ClusterConfig, load
from longshore.cli.main import UserError, layout_of
from longshore.cli.supervisor import Part, Supervisor
from longshore.machinery.http import Client, client_context
from longshore.machinery.paths import Layout
from longshore.machinery.run import run_part

Health = Callable[[], Awaitable[str]]


def configure(parser: argparse.ArgumentParser) -> None:
    """No flags beyond the two folders: everything else stands in the cluster's file."""


def run(arguments: argparse.Namespace) -> int:
    layout = layout_of(arguments)
    config = load(layout)
    if config is None:
        raise UserError(f"no cluster in {layout.data}: `longshore up` makes one")

    async def main() -> None:
        hostnet.set_up(layout, config)
        keeper = asyncio.create_task(_keep_certificates(layout, config))
        try:
            await Supervisor(layout, parts(layout, config)).run()
        finally:
            keeper.cancel()

    return run_part(main)


async def _keep_certificates(layout: Layout, config: ClusterConfig) -> None:
    """Renew the parts' certificates: by the cluster's CA where it is here, else as the node that this machine is."""
    if config.remote:
        from longshore.cli import join

        await certificates.keep(join.part_files(layout), lambda: join.renew_parts(layout, config))
    else:
        files = certificates.files(layout, config)
        await certificates.keep(files, lambda: asyncio.to_thread(certificates.ensure, layout, config))


def _socket_health(socket: Path, path: str) -> Health:
    async def health() -> str:
        client = Client(unix=socket)
        try:
            answer = await client.request("GET", f"http://localhost{path}", timeout=3)
            await answer.read()
            return "ok" if answer.status == 200 else f"status {answer.status}"
        finally:
            await client.close()

    return health


def _api_health(layout: Layout, config: ClusterConfig) -> Health:
    async def health() -> str:
        pki = layout.pki
        context = client_context(ca=pki / "ca.crt", certificate=pki / "admin.crt", key=pki / "admin.key")
        client = Client(ssl=context)
        try:
            answer = await client.request("GET", f"{config.local_server}/readyz", timeout=3)
            await answer.read()
            return "ok" if answer.status == 200 else f"status {answer.status}"
        finally:
            await client.close()

    return health


def parts(layout: Layout, config: ClusterConfig) -> list[Part]:
    """Every process of the tree, in the order in which they are started."""
    command = [sys.executable, "-m", "longshore"]
    folders = ["--data-dir", str(layout.data), "--run-dir", str(layout.run)]
    pki = layout.pki
    single = len(config.nodes) == 1
    first = config.nodes[0]
    audit_policy = layout.data / "audit-policy.yaml"
    audit: list[str] = []
    rights = layout.data / "rbac.json"
    if audit_policy.exists():
        layout.audit.mkdir(parents=True, exist_ok=True)
        audit = ["--audit-policy-file", str(audit_policy), "--audit-log-path", str(layout.audit / "audit.log")]
    found = [
        Part(
            "apiserver",
            [
                *command,
                "apiserver",
                *("--data-dir", str(layout.store.parent)),
                *("--bind-address", "::" if 6 in config.families else "0.0.0.0"),
                *("--secure-port", str(config.secure_port)),
                *("--advertise-address", config.host_ip),
                *("--service-cluster-ip-range", config.service_cidr),
                *(["--bootstrap-rbac-file", str(rights)] if rights.exists() else []),
                *("--client-ca-file", str(pki / "ca.crt")),
                *("--tls-cert-file", str(pki / "apiserver.crt")),
                *("--tls-private-key-file", str(pki / "apiserver.key")),
                *("--service-account-key-file", str(pki / "sa.key")),
                *("--service-account-signing-key-file", str(pki / "sa.key")),
                *("--service-account-issuer", f"https://kubernetes.default.svc.{config.cluster_domain}"),
                *("--kubelet-client-certificate", str(pki / "apiserver-kubelet-client.crt")),
                *("--kubelet-client-key", str(pki / "apiserver-kubelet-client.key")),
                *("--kubelet-certificate-authority", str(pki / "ca.crt")),
                *("--requestheader-client-ca-file", str(pki / "front-proxy-ca.crt")),
                *("--proxy-client-cert-file", str(pki / "front-proxy-client.crt")),
                *("--proxy-client-key-file", str(pki / "front-proxy-client.key")),
                *audit,
            ],
            _api_health(layout, config),
        ),
        Part(
            "engine",
            [*command, "engine", *folders, "--docker", *(["--cri", "--node", first.name] if single else [])],
            _socket_health(layout.docker_socket, "/_ping"),
        ),
        Part("manager", [*command, "manager", *folders], _socket_health(layout.run / "manager.sock", "/healthz")),
    ]
    if config.remote:
        # What a cluster has once runs on the machine that this one has joined.
        found = [part for part in found if part.name == "engine"]
    # Images come to every node from where this machine finds its registries: its own loopback, resolver and routes.
    outside = ["--registry-netns", f"/proc/{os.getpid()}/ns/net"]
    resolvers = ["--resolver-netns", f"/proc/{os.getpid()}/ns/net"]
    for node in config.nodes:
        inside = hostnet.netns_path(layout, node)
        enter = ["nsenter", f"--net={inside}", "--"] if inside else []
        suffix = "" if single else f"-{node.name}"
        node_run = layout.node(node.name).run
        if not single:
            found.append(
                Part(
                    f"engine{suffix}",
                    [*enter, *command, "engine", *folders, "--cri", "--node", node.name, *outside],
                    _socket_health(node_run / "engine.sock", "/healthz"),
                )
            )
        found.append(
            Part(
                f"node{suffix}",
                [*enter, *command, "node", *folders, "--node", node.name, *(resolvers if inside else [])],
                _socket_health(node_run / "node.sock", "/healthz"),
            )
        )
    return found
