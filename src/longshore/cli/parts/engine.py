"""`longshore engine`: Docker Engine API, builds and registry, and CRI for one node."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from longshore.cli import hostnet
from longshore.cli.cluster import load, networks
from longshore.cli.main import UserError, layout_of
from longshore.cli.parts.health import healthy
from longshore.machinery.run import run_part

PODS, SERVICES = "10.244.0.0/16", "10.96.0.0/16"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", default="docker", help="the engine's name on this machine (default %(default)s)")
    parser.add_argument("--docker", action="store_true", help="serve the Docker Engine API and the registry")
    parser.add_argument("--docker-socket", type=Path, default=None, help="default: docker.sock in --run-dir")
    parser.add_argument(
        "--docker-host",
        "-H",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="serve the Docker Engine API here as well: tcp://HOST:PORT or unix://PATH; may be given several times",
    )
    parser.add_argument("--tls", action="store_true", help="TLS on tcp; implied by --tlsverify")
    parser.add_argument(
        "--tlsverify", action="store_true", help="TLS on tcp, and clients need a certificate of --tlscacert"
    )
    parser.add_argument("--tlscacert", type=Path, default=Path("~/.docker/ca.pem"), help="default: %(default)s")
    parser.add_argument("--tlscert", type=Path, default=Path("~/.docker/cert.pem"), help="default: %(default)s")
    parser.add_argument("--tlskey", type=Path, default=Path("~/.docker/key.pem"), help="default: %(default)s")
    parser.add_argument(
        "--group", "-G", default="docker", help="the group that owns the unix socket (default %(default)s)"
    )
    parser.add_argument("--cri", action="store_true", help="serve CRI v1 on the node's socket")
    parser.add_argument("--registry-port", type=int, default=None, help="default: the cluster's, or 5000; 0 for none")
    parser.add_argument(
        "--cni-conf-dir",
        type=Path,
        default=None,
        help="CNI configuration in place of the built-in network (default: cni in --data-dir)",
    )
    parser.add_argument(
        "--config-file",
        type=Path,
        default=None,
        help="settings in dockerd's form (default: daemon.json in --data-dir, or else /etc/docker/daemon.json)",
    )
    parser.add_argument(
        "--registry-mirror", action="append", default=[], metavar="URL", help="ask here before Docker Hub"
    )
    parser.add_argument(
        "--insecure-registry", action="append", default=[], metavar="HOST", help="a registry without (valid) TLS"
    )
    parser.add_argument(
        "--registry-netns",
        type=Path,
        default=None,
        metavar="PATH",
        help="the network namespace to reach registries from (default: this one)",
    )
    parser.add_argument("--runtime", default="runc", help="the OCI runtime's program (default %(default)s)")
    parser.add_argument(
        "--no-launcher", action="store_true", help="let the OCI runtime start commands in running containers, too"
    )


def run(arguments: argparse.Namespace) -> int:
    layout = layout_of(arguments)
    arguments.docker = arguments.docker or bool(arguments.docker_host)
    config = load(layout)
    folders = layout.node(arguments.node)
    port = arguments.registry_port if arguments.registry_port is not None else config.registry_port if config else 5000
    from longshore.engine.dockerapi.hosts import TLSFiles

    tls = None
    if arguments.tls or arguments.tlsverify:
        tls = TLSFiles(
            certificate=arguments.tlscert.expanduser(),
            key=arguments.tlskey.expanduser(),
            client_ca=arguments.tlscacert.expanduser() if arguments.tlsverify else None,
        )
    from longshore.engine import configuration, remapping

    own = layout.data / "daemon.json"

    def read() -> dict[str, Any]:
        """What daemon.json says, and the flags beside it."""
        found = configuration.read(arguments.config_file or (own if own.exists() else configuration.FILE))
        for name, given in (
            ("registry_mirrors", arguments.registry_mirror), ("insecure_registries", arguments.insecure_registry)
        ):  # fmt: skip
            if given:
                found[name] = (*found.get(name, ()), *given)
        if arguments.no_launcher:
            found["launcher"] = False
        return found

    try:
        settings = configuration.make(read())
        remapping.resolve(settings.userns_remap)
    except configuration.ConfigurationError as error:
        raise UserError(str(error)) from None
    runtime = {Path(arguments.runtime).name: arguments.runtime}
    from longshore.engine.server import serve as serve_engine

    beside: list[Callable[[], Coroutine[Any, Any, None]]] = []
    if arguments.docker and port:
        # Nodes that are namespaces reach the registry at the host's address on their bridge.
        hosts = ["127.0.0.1"] + (config.host_ips if config and config.bridge else [])
        beside = [lambda host=host: _registry(layout.registry, host, port) for host in hosts]  # type: ignore[misc]
    if arguments.docker and config is not None and len(config.nodes) > 1:
        # This engine is the process of the host's own network namespace that speaks nftables.
        members = config
        beside.append(lambda: hostnet.keep(members))

    async def main() -> None:
        async with healthy(folders.run / "engine.sock"):
            await serve_engine(
                layout=layout,
                node_layout=folders,
                docker_socket=(arguments.docker_socket or layout.docker_socket) if arguments.docker else None,
                cri_socket=folders.cri_socket if arguments.cri else None,
                node=arguments.node,
                cluster_cidrs=_ranges(config),
                runtimes=runtime,
                configuration=settings,
                reread=read,
                registry_namespace=arguments.registry_netns,
                # Not /etc/cni/net.d: what another engine (podman) keeps there is not meant for a cluster's pods.
                cni_folder=arguments.cni_conf_dir or layout.data / "cni",
                beside=beside,
                docker_hosts=arguments.docker_host if arguments.docker else (),
                docker_tls=tls,
                docker_group=arguments.group,
            )

    return run_part(main)


async def _registry(folder: Path, host: str, port: int) -> None:
    # Loaded when the engine answers already.
    from longshore.registry.server import serve

    await serve(data_dir=folder, host=host, port=port)


def _ranges(config: Any) -> tuple[str, ...]:
    """Ranges to which pods keep their own address: pods, Services and the nodes' bridge."""
    if config is None:
        return (PODS, SERVICES)
    nodes = f",{config.node_cidr}" if config.bridge or config.ways else ""
    return tuple(map(str, networks(f"{config.pod_cidr},{config.service_cidr}{nodes}")))
