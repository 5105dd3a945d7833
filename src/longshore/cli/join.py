"""`longshore join`: make this machine a node of another machine's cluster, or start it again as one."""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from longshore.cli import cluster, control, hostnet, joining
from longshore.cli.addons import SHARED_FACTS
from longshore.cli.cluster import ClusterConfig, NodeConfig
from longshore.cli.main import UserError, complete, layout_of, need_root, progress
from longshore.cli.up import start_supervisor
from longshore.machinery import pki
from longshore.machinery.paths import Layout

#: What of the cluster's facts a machine that joins takes over.
SHARED = (
    *SHARED_FACTS,
    "pool",
)
Say = Callable[[str], None]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address", nargs="?", default="", help="HOST:PORT of the API server; none: start again what has joined already"
    )
    parser.add_argument("--token", default="", help="from `longshore token create`")
    parser.add_argument(
        "--discovery-token-ca-cert-hash", action="append", default=[], metavar="sha256:HEX", help="the CA's public key"
    )
    parser.add_argument(
        "--discovery-token-unsafe-skip-ca-verification", action="store_true", help="trust what the token signs"
    )
    parser.add_argument("--node-name", default=None, help="default: this machine's name")
    parser.add_argument("--node-ip", default=None, help="default: the address from which the API server is reached")
    parser.add_argument("--registry-port", type=int, default=5000, help="this machine's registry (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=90.0, help="seconds to wait for Ready (default %(default)s)")
    parser.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")


def run(arguments: argparse.Namespace) -> int:
    need_root("join")
    return complete(join(layout_of(arguments), arguments))


async def join(layout: Layout, arguments: argparse.Namespace) -> int:
    """Learn the cluster, get certificates, start the parts, wait until the node is Ready. Raises UserError."""
    say = progress(arguments.quiet)
    config = cluster.load(layout)
    if config is not None and not config.remote:
        raise UserError(f"{layout.data} holds a cluster of its own: another --data-dir, or `longshore down --purge`")
    if config is None:
        if not arguments.address or not arguments.token:
            raise UserError("which cluster? `longshore token create` there prints the whole command")
        config = await _learn(layout, arguments, say)
    elif arguments.address and _server(arguments.address) != config.remote:
        raise UserError(f"this machine has joined {config.remote} already: `longshore leave` comes first")
    await renew(layout, config)
    if await control.is_running(layout):
        say("the supervisor runs already")
    else:
        hostnet.set_up(layout, config)
        start_supervisor(layout)
        say("supervisor started: engine, node")
    identity = joining.node_identity(layout, config.nodes[0].name)
    try:
        async with asyncio.timeout(arguments.timeout):
            await control.wait_nodes(layout, config, identity, say)
    except TimeoutError:
        raise UserError(f"not Ready after {arguments.timeout:g} s. The parts' own words are in {layout.logs}") from None
    say(f"joined {config.remote}")
    return 0


def _server(address: str) -> str:
    """The URL of "host", "host:port" or "https://host:port"."""
    plain = address.removeprefix("https://").rstrip("/")
    if plain.endswith("]") or (plain.count(":") != 1 and "]" not in plain):
        plain = f"[{plain}]:6443" if plain.count(":") > 1 and not plain.startswith("[") else f"{plain}:6443"
    return f"https://{plain}"


async def _learn(layout: Layout, arguments: argparse.Namespace, say: Say) -> ClusterConfig:
    """Discovery and the first certificates; the cluster's file is written last, so that a failure leaves nothing begun."""
    server = _server(arguments.address)
    trusted = await joining.discover(
        server,
        arguments.token,
        arguments.discovery_token_ca_cert_hash,
        unsafe=arguments.discovery_token_unsafe_skip_ca_verification,
    )
    facts = await joining.facts(trusted)
    say(f"the cluster at {server} is who the token says")
    name = arguments.node_name or cluster.host_name()
    if await joining.is_taken(trusted, name):
        raise UserError(f"the cluster has a node {name!r} already that is Ready: --node-name chooses another name")
    machine = await asyncio.to_thread(_resolve, server)
    families = [network.version for network in cluster.networks(facts["service_cidr"])]
    config = _config(server, machine, facts, name, _own_addresses(arguments.node_ip, families, machine), arguments)
    pki.write_file(layout.pki / "ca.crt", trusted.ca or b"", 0o644)
    user = f"system:node:{name}"
    pair = await joining.certificate(trusted, user, signer=joining.KUBELET_SIGNER, organizations=["system:nodes"])
    joining.keep_kubeconfig(layout.kubeconfig(f"kubelet-{name}"), trusted, user, pair)
    say(f"the cluster has signed the certificate of node {name}")
    await renew(layout, config)
    cluster.save(layout, config)
    return config


def _resolve(server: str) -> str:
    host, _, port = server.removeprefix("https://").rpartition(":")
    try:
        return str(socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise UserError(f"{host}: {error.strerror}") from None


def _own_addresses(given: str | None, families: Sequence[int], machine: str) -> list[str]:
    """This machine's addresses, the primary first: the one from which the API server is reached, where none is given."""
    if given:
        return [text.strip() for text in given.split(",") if text.strip()]
    version = 6 if ":" in machine else 4
    first = cluster.default_host_ip(version, machine)
    if first is None:
        raise UserError(f"no route to {machine}")
    others = [cluster.default_host_ip(family) for family in families if family != version]
    return [first, *(address for address in others if address)]


def _config(
    server: str, machine: str, facts: joining.Object, name: str, ips: list[str], arguments: argparse.Namespace
) -> ClusterConfig:
    """The cluster as this machine sees it."""
    inside = [facts["host_ip"], *facts.get("host_also", ())]
    # Nodes that are namespaces, and a machine whose own address is on their bridge, are behind the machine we talk to.
    behind = bool(facts.get("bridge")) and machine not in inside
    return ClusterConfig(
        [NodeConfig(name, ips[0], also=ips[1:])],
        ips[0],
        None,
        host_also=ips[1:],
        registry_port=arguments.registry_port,
        remote=server,
        ways=[facts["node_cidr"], machine] if behind else [],
        **{key: facts[key] for key in SHARED if key in facts},
    )


async def renew(layout: Layout, config: ClusterConfig) -> None:
    """Have what is missing or near its end signed, as the node that this machine is."""
    node = config.nodes[0]
    user = f"system:node:{node.name}"
    identity = joining.node_identity(layout, node.name)
    own = layout.kubeconfig(f"kubelet-{node.name}")
    if not pki.covers(identity.certificate or b"", ()):
        pair = await joining.certificate(identity, user, signer=joining.KUBELET_SIGNER, organizations=["system:nodes"])
        joining.keep_kubeconfig(own, identity, user, pair)
    names = [node.name, *node.ips]
    serving = layout.pki / f"kubelet-server-{node.name}.crt"
    if not _is_good(serving, names):
        pair = await joining.certificate(
            identity, user, signer=joining.SERVING_SIGNER, organizations=["system:nodes"], names=names
        )
        pair.write(serving, serving.with_suffix(".key"))
    await renew_parts(layout, config)


async def renew_parts(layout: Layout, config: ClusterConfig) -> None:
    """Have the certificates of the parts beside the kubelet signed, where missing or near their end. Raises UserError."""
    identity = joining.node_identity(layout, config.nodes[0].name)
    for who, part in joining.PARTS.items():
        file = layout.pki / f"{who}.crt"
        if _is_good(file, ()) or not await joining.may_have(identity, part):
            continue
        pair = await joining.certificate(identity, part.user, signer=joining.CLIENT_SIGNER)
        pair.write(file, file.with_suffix(".key"))
        joining.keep_kubeconfig(layout.kubeconfig(who), identity, part.user, pair)


def part_files(layout: Layout) -> list[Path]:
    """The certificates of this machine's parts that are there."""
    return [file for who in joining.PARTS if (file := layout.pki / f"{who}.crt").exists()]


def _is_good(file: Path, names: list[str] | tuple[str, ...]) -> bool:
    return file.exists() and file.with_suffix(".key").exists() and pki.covers(file.read_bytes(), names)
