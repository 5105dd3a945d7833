"""Two clusters of one machine whose nodes have the same names: nothing of one is the other's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.cluster import Cluster, eventually
from support.machines import IMAGE, Machine, busybox

pytestmark = [pytest.mark.root, pytest.mark.timeout(200)]

POD = """
apiVersion: v1
kind: Pod
metadata: {{name: same}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: main, image: {image}, command: [sh, -c, "hostname; exec sleep 1000"], resources: {{limits: {{memory: 64Mi}}}}}}
"""


def node_names(cluster: Cluster) -> list[str]:
    return sorted(n["metadata"]["name"] for n in json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"])


def groups(cluster: Cluster) -> set[str]:
    """Control groups of the processes whose root file systems are of this cluster's engines."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if (folder / "cmdline").read_bytes().startswith(b"sleep\x001000"):
                    mounts = (folder / "mounts").read_text()
                    if str(cluster.data) in mounts or str(cluster.run_dir) in mounts:
                        lines = (folder / "cgroup").read_text().splitlines()
                        found.update(
                            line.split(":", 2)[2] for line in lines if ":memory:" in line or line.startswith("0::")
                        )
            except OSError:
                continue
    return found - {"/"}


def test_two_clusters_with_the_same_node_names_do_not_meet():
    one, two = Cluster("--nodes", "2"), Machine("--nodes", "2")
    try:
        for cluster in (one, two):
            cluster.up()
            busybox(cluster)
            node = node_names(cluster)[0]
            cluster.kubectl("apply", "-f", "-", stdin=POD.format(node=node, image=IMAGE))
        assert node_names(one) == node_names(two)
        for cluster in (one, two):
            cluster.kubectl("wait", "--for=condition=ready", "pod/same", "--timeout=40s")
        assert groups(one) and groups(two) and not groups(one) & groups(two)
        before = json.loads(two.kubectl("get", "pod", "same", "-o", "json"))["status"]["containerStatuses"][0]
        # Nodes that start again clear away what is not theirs: not the other cluster's pods.
        for name in ("node", "engine"):
            one.kill(f"{name}-{node_names(one)[0]}")
        eventually(lambda: one.kubectl("exec", "same", "--", "hostname").strip() == "same")
        one.down("--purge")
        after = json.loads(two.kubectl("get", "pod", "same", "-o", "json"))["status"]["containerStatuses"][0]
        assert after["containerID"] == before["containerID"] and after["restartCount"] == 0 and after["ready"]
        assert two.kubectl("exec", "same", "--", "hostname").strip() == "same"
        assert all(part["health"] == "ok" for part in two.status()["parts"])
    finally:
        try:
            two.destroy()
        finally:
            one.destroy()
