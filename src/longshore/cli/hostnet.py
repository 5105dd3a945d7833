"""The host's side of a cluster's network: forwarding, fences round the cluster's ranges, nodes as namespaces on a bridge."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from longshore.cli.cluster import ClusterConfig, NodeConfig
from longshore.machinery.paths import Layout
from longshore.machinery.process import ProcessFailed, run

CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
#: Under any real route, above none: a packet for a pod or Service that does not exist goes nowhere.
FENCE_METRIC = 4278198272


async def ip(*lines: str, netns: Path | None = None, force: bool = False) -> None:
    """Run iproute2 commands in one process. force: go on past a line that fails (it is done already)."""
    enter = ["nsenter", f"--net={netns}", "--"] if netns else []
    flags = ["-force"] if force else []
    await run([*enter, "ip", *flags, "-batch", "-"], stdin="\n".join(lines).encode() + b"\n", check=not force)


def netns_path(layout: Layout, node: NodeConfig) -> Path | None:
    """Where a node's network namespace is pinned; None for the node that is the host itself."""
    return layout.run / "netns" / node.netns if node.netns else None


def _pin_new_namespace(path: Path) -> None:
    """Make a network namespace and bind it to a file, in this (short-lived) thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    path.touch()
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if libc.mount(b"/proc/thread-self/ns/net", os.fsencode(path), b"none", MS_BIND, None) != 0:
        raise OSError(ctypes.get_errno(), f"bind {path}")


def is_pinned(path: Path) -> bool:
    """Whether the file is a namespace (an nsfs mount) rather than the empty file that a reboot leaves."""
    try:
        return os.stat(path).st_dev != os.stat(path.parent).st_dev
    except FileNotFoundError:
        return False


async def set_up(layout: Layout, config: ClusterConfig) -> None:
    """Make what is missing; safe to repeat at any moment (after a crash, after a reboot)."""
    sysctl("net/ipv4/ip_forward", "1")
    sysctl("net/ipv6/conf/all/forwarding", "1")
    fences = [
        f"route replace unreachable {net} metric {FENCE_METRIC}" for net in (config.pod_cidr, config.service_cidr)
    ]
    await ip(*fences)
    if config.bridge is None:
        return
    prefix = config.node_cidr.split("/")[1]
    if not Path(f"/sys/class/net/{config.bridge}").exists():
        with contextlib.suppress(ProcessFailed):
            await ip(f"link add {config.bridge} type bridge forward_delay 0")
    await ip(f"addr replace {config.host_ip}/{prefix} dev {config.bridge}", f"link set {config.bridge} up")
    for index, node in enumerate(config.nodes, 1):
        path = netns_path(layout, node)
        if path is None or is_pinned(path):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(1) as thread:
            await asyncio.get_running_loop().run_in_executor(thread, _pin_new_namespace, path)
        port = f"{config.bridge[:9]}n{index}"
        await ip(
            f"link add {port} type veth peer name eth0 netns {path}",
            f"link set {port} master {config.bridge} up",
        )
        await ip(
            "link set lo up",
            f"addr add {node.ip}/{prefix} dev eth0",
            "link set eth0 up",
            f"route add default via {config.host_ip}",
            *fences,
            netns=path,
        )
        await run(["nsenter", f"--net={path}", "--", "sysctl", "-qw", "net.ipv4.ip_forward=1"])


def sysctl(name: str, value: str) -> None:
    """Set a kernel parameter by its path under /proc/sys, where it exists and differs."""
    path = Path("/proc/sys") / name
    if path.exists() and path.read_text().strip() != value:
        path.write_text(value)


async def tear_down(layout: Layout, config: ClusterConfig) -> None:
    """Take away all that `set_up` made. What is not there is no error."""
    for node in config.nodes:
        path = netns_path(layout, node)
        if path is None:
            continue
        if is_pinned(path):
            await run(["umount", "-l", str(path)], check=False)
        path.unlink(missing_ok=True)
    lines = [f"route del unreachable {net} metric {FENCE_METRIC}" for net in (config.pod_cidr, config.service_cidr)]
    if config.bridge:
        lines.append(f"link del {config.bridge}")
    await ip(*lines, force=True)
