"""`longshore up`: lay out the cluster (once), start the supervisor, wait until every node is Ready."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

import orjson

from longshore.cli import addons, certificates, cluster, control, hostnet
from longshore.cli.main import UserError, complete, layout_of, need_root, progress
from longshore.machinery.paths import Layout
from longshore.machinery.pki import write_file
from longshore.machinery.process import spawn


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, default=None, help="how many nodes on this machine (default 1)")
    parser.add_argument("--node-ip", default=None, help="the address to advertise (default: that of the default route)")
    parser.add_argument("--secure-port", type=int, default=6443, help="the API server's port (default %(default)s)")
    parser.add_argument("--registry-port", type=int, default=5000, help="the registry's port (default %(default)s)")
    for scheme, port in (("http", 80), ("https", 443)):
        words = (
            f"every node's {scheme} port for Ingresses, opened with the first one; -1 for none (default %(default)s)"
        )
        parser.add_argument(f"--ingress-{scheme}-port", type=int, default=port, help=words)
    parser.add_argument(
        "--ip-family", choices=list(cluster.FAMILIES), default="ipv4", help="IP families (default %(default)s)"
    )
    for what, place in (("pod", 0), ("service", 1), ("node", 2)):
        words = ", ".join(ranges[place] for ranges in cluster.RANGES.values())
        parser.add_argument(
            f"--{what}-cidr", default=None, help=f"{what} addresses, a range a family (default {words})"
        )
    parser.add_argument(
        "--apiserver-cert-extra-sans", default="", help="further names and addresses of the API server, comma-separated"
    )
    parser.add_argument(
        "--node-monitor-grace-period",
        type=float,
        default=50.0,
        help="seconds of silence after which a node is unknown (default %(default)s)",
    )
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for Ready (default %(default)s)")
    parser.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")


def run(arguments: argparse.Namespace) -> int:
    need_root("up")
    return complete(up(layout_of(arguments), arguments))


async def up(layout: Layout, arguments: argparse.Namespace) -> int:
    """Start what does not run, wait, tell where it is."""
    say = progress(arguments.quiet)
    config = cluster.load(layout)
    if config is not None and config.remote:
        raise UserError(
            f"the node in {layout.data} belongs to the cluster of {config.remote}: `longshore join` starts it"
        )
    if config is None:
        config = cluster.plan(
            nodes=arguments.nodes or 1,
            host_ip=arguments.node_ip,
            secure_port=arguments.secure_port,
            registry_port=arguments.registry_port,
            ingress_http_port=arguments.ingress_http_port,
            ingress_https_port=arguments.ingress_https_port,
            extra_names=[name.strip() for name in arguments.apiserver_cert_extra_sans.split(",") if name.strip()],
            node_monitor_grace_period=arguments.node_monitor_grace_period,
            **ranges_of(arguments),
        )
        cluster.save(layout, config)
        say(f"a new cluster in {layout.data}: {len(config.nodes)} node(s)")
    elif arguments.nodes and arguments.nodes != len(config.nodes):
        raise UserError(
            f"the cluster in {layout.data} has {len(config.nodes)} node(s): `longshore down --purge` first, or another --data-dir"
        )
    certificates.ensure(layout, config)
    write_file(layout.data / "rbac.json", orjson.dumps(addons.rights(config)), 0o644)
    if await control.is_running(layout):
        say("the supervisor runs already")
    else:
        hostnet.set_up(layout, config)
        start_supervisor(layout)
    say("supervisor started: apiserver, engine, manager, node")
    try:
        async with asyncio.timeout(arguments.timeout):
            await control.wait_ready(layout, config, say)
    except TimeoutError:
        status = await control.status(layout)
        parts = "; ".join(f"{p['name']}: {p['health']}" for p in status["parts"]) if status else "no supervisor"
        raise UserError(
            f"not Ready after {arguments.timeout:g} s ({parts}). The parts' own words are in {layout.logs}"
        ) from None
    say(f"Ready: {config.server}")
    if not arguments.quiet:
        command = os.path.basename(sys.argv[0]) if sys.argv[0].startswith("/usr") else sys.argv[0]
        print(f'\nTo point kubectl and docker at it:  eval "$({command} env)"')
    return 0


def ranges_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The ranges that were asked for, with the families' own where none was. Raises UserError."""
    names = ("pod_cidr", "service_cidr", "node_cidr")
    try:
        given = {name: cluster.networks(getattr(arguments, name) or "") for name in names}
    except ValueError as error:
        raise UserError(f"not a range of addresses: {error}") from None
    asked = next((found for found in (given["service_cidr"], given["pod_cidr"]) if found), None)
    families = [network.version for network in asked] if asked else list(cluster.FAMILIES[arguments.ip_family])
    made = dict(zip(names, cluster.default_ranges(families), strict=True))
    for name, found in given.items():
        if found and [network.version for network in found] != families:
            raise UserError("pods, Services and nodes need a range of each IP family, in the same order")
        if found:
            made[name] = ",".join(map(str, found))
    return made


def start_supervisor(layout: Layout) -> None:
    """Run `longshore supervise` in a session of its own, its words in the log folder."""
    layout.logs.mkdir(parents=True, exist_ok=True)
    output = os.open(layout.logs / "supervisor.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640)
    try:
        spawn(
            [
                *(sys.executable, "-m", "longshore", "supervise"),
                *("--data-dir", str(layout.data), "--run-dir", str(layout.run)),
            ],
            stdout=output,
            stderr=output,
            new_session=True,
        )
    finally:
        os.close(output)
