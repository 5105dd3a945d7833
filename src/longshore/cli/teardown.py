"""What stays on the machine when the parts have ended, and its removal: containers, mounts, rules, control groups."""

from __future__ import annotations

import contextlib

from longshore.cli.cluster import ClusterConfig, networks
from longshore.engine.runtime import cgroups
from longshore.engine.server import tear_down
from longshore.machinery import mounts
from longshore.machinery.paths import Layout
from longshore.node.dns.server import disown_address
from longshore.node.kubelet.server import default_cgroup_root
from longshore.node.overlay.server import clean_up as clean_up_ways
from longshore.node.policy.server import clean_up as clean_up_policies
from longshore.node.proxy.server import clean_up

#: The engine that serves Docker alone, where every node has an engine of its own.
DOCKER_ENGINE = "docker"


async def take_away(layout: Layout, config: ClusterConfig | None) -> None:
    """End the containers of stopped engines and remove what they and the node parts made. Safe to repeat."""
    if config is not None:
        single = len(config.nodes) == 1
        names = [node.name for node in config.nodes] + ([] if single else [DOCKER_ENGINE])
        for name in names:
            await tear_down(
                layout=layout,
                node_layout=layout.node(name),
                node=name,
                network=single or name == DOCKER_ENGINE,
                cluster_cidrs=tuple(map(str, networks(f"{config.pod_cidr},{config.service_cidr}"))),
            )
        if single:
            clean_up()
            clean_up_ways()
            clean_up_policies()
            for address in config.dns_addresses:
                disown_address(address)
        for name in names:
            cgroups.remove(default_cgroup_root(name, layout.node(name).kubelet))
            cgroups.remove(layout.node(name).cgroup)
        for shared in cgroups.folders("/longshore"):
            with contextlib.suppress(OSError):
                shared.rmdir()  # another cluster's engines may be in it
    mounts.unmount_below(layout.run)
    mounts.unmount_below(layout.data)
