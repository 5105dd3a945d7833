"""Pods find nodes, or the reason why not; what changes brings them back."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scheduler_bench import node, pod

from fake_api import eventually
from longshore.client.resources import NODES, PODS
from longshore.machinery.errors import StatusError
from longshore.master.scheduler.configuration import ConfigurationError, read


async def test_a_pod_is_bound_and_told(bench: Any) -> None:
    bench.nodes(node("n1"))
    await bench.start()
    bench.pods(pod("p", cpu="100m"))
    await eventually(lambda: bench.where("p") == "n1")
    await eventually(lambda: bench.events() == ["Scheduled: Successfully assigned default/p to n1"])


async def test_reasons_are_counted(bench: Any) -> None:
    taint = {"key": "k", "value": "v", "effect": "NoSchedule"}
    bench.nodes(
        node("small", cpu="1"),
        node("full", pods="0"),
        node("tainted", spec={"taints": [taint]}),
        node("cordoned", spec={"unschedulable": True}),
    )
    await bench.start()
    bench.pods(pod("p", cpu="2"), pod("q", nodeSelector={"no": "where"}))
    why = await eventually(lambda: bench.why("p"))
    assert why.startswith(
        "0/4 nodes are available: 1 Insufficient cpu, 1 Too many pods, 1 node(s) had untolerated taint(s), "
        "1 node(s) were unschedulable."
    )
    why = await eventually(lambda: bench.why("q"))
    assert "2 node(s) didn't match Pod's node affinity/selector" in why
    assert await eventually(lambda: [e for e in bench.events() if e.startswith("FailedScheduling: 0/4")])


async def test_no_nodes(bench: Any) -> None:
    await bench.start()
    bench.pods(pod("p"))
    assert await eventually(lambda: bench.why("p")) == "no nodes available to schedule pods"
    bench.nodes(node("n1"))
    await eventually(lambda: bench.where("p") == "n1")


async def test_room_that_comes_free_is_used(bench: Any) -> None:
    bench.nodes(node("n1", cpu="1"))
    await bench.start()
    bench.pods(pod("a", cpu="800m"))
    await eventually(lambda: bench.where("a"))
    bench.pods(pod("b", cpu="800m"))
    await eventually(lambda: bench.why("b"))
    bench.api.drop(PODS, "a", "default")
    await eventually(lambda: bench.where("b") == "n1")


async def test_load_is_spread_and_never_overbooked(bench: Any) -> None:
    bench.nodes(*(node(f"n{i}", cpu="2") for i in range(5)))
    await bench.start()
    bench.pods(*(pod(f"p{i}", cpu="500m") for i in range(25)))
    await eventually(lambda: sum(1 for i in range(25) if bench.where(f"p{i}")) == 20)
    counts = Counter(bench.where(f"p{i}") for i in range(25))
    counts.pop("")
    assert set(counts.values()) == {4}


async def test_priority_goes_first(bench: Any) -> None:
    bench.nodes(node("n1", pods="1"))
    bench.pods(pod("low", priority=1), pod("high", priority=10))
    await bench.start()
    await eventually(lambda: bench.where("high") == "n1")
    assert not bench.where("low")


async def test_gates_hold(bench: Any) -> None:
    bench.nodes(node("n1"))
    await bench.start()
    bench.pods(pod("p", schedulingGates=[{"name": "g"}]))
    await asyncio.sleep(0.05)
    assert not bench.where("p") and not bench.why("p")
    await bench.api.patch(PODS, "p", {"spec": {"schedulingGates": None}}, "default")
    await eventually(lambda: bench.where("p") == "n1")


async def test_a_refused_binding_is_tried_again(bench: Any) -> None:
    refusals = iter(range(2))

    def fail(method: str, path: str, body: Any) -> StatusError | None:
        if path.endswith("/binding") and next(refusals, None) is not None:
            return StatusError(500, "InternalError", "no")
        return None

    bench.api.fail = fail
    bench.nodes(node("n1", pods="1"))
    await bench.start()
    bench.pods(pod("p"))
    await eventually(lambda: bench.where("p") == "n1")
    assert len(bench.scheduler.table.by_name["n1"].pods) == 1


async def test_labels_and_host_ports(bench: Any) -> None:
    bench.nodes(node("a", labels={"disk": "ssd"}), node("b"))
    await bench.start()
    port = {"container": {"ports": [{"hostPort": 80, "containerPort": 80}]}}
    bench.pods(pod("x", nodeSelector={"disk": "ssd"}, **port))
    await eventually(lambda: bench.where("x") == "a")
    bench.pods(pod("y", **port))
    await eventually(lambda: bench.where("y") == "b")
    bench.pods(pod("z", **port))
    assert "2 node(s) didn't have free ports for the requested pod ports" in await eventually(lambda: bench.why("z"))
    await bench.api.patch(NODES, "b", {"spec": {"unschedulable": True}})
    bench.api.drop(PODS, "x", "default")
    await eventually(lambda: bench.where("z") == "a")


async def test_preferred_affinity_and_taints(bench: Any) -> None:
    soft = {"key": "k", "effect": "PreferNoSchedule"}
    bench.nodes(node("a", spec={"taints": [soft]}), node("b"), node("c", labels={"zone": "1"}))
    await bench.start()
    term = {"weight": 10, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["1"]}]}}
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}
    bench.pods(*(pod(f"p{i}", affinity=affinity) for i in range(3)))
    await eventually(lambda: all(bench.where(f"p{i}") == "c" for i in range(3)))


async def test_a_plugin_of_a_user(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "even.py").write_text(
        """
from longshore.master.scheduler.framework import Plugin, Status

class EvenNodes(Plugin):
    name = "EvenNodes"

    def filter(self, state, pod, node):
        if int(node.name[-1]) % 2:
            return Status.unschedulable("node(s) were odd")
"""
    )
    (tmp_path / "config.yaml").write_text(
        """
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
pluginFiles: [even.py]
profiles:
- schedulerName: default-scheduler
  plugins: {multiPoint: {enabled: [{name: EvenNodes}]}}
- schedulerName: packing
  pluginConfig:
  - name: NodeResourcesFit
    args: {scoringStrategy: {type: MostAllocated}}
  plugins: {score: {disabled: [{name: NodeResourcesBalancedAllocation}]}}
"""
    )
    bench.nodes(*(node(f"n{i}") for i in range(4)))
    await bench.start(read(tmp_path / "config.yaml"))
    bench.pods(*(pod(f"p{i}", cpu="100m") for i in range(6)))
    await eventually(lambda: all(bench.where(f"p{i}") for i in range(6)))
    assert {bench.where(f"p{i}") for i in range(6)} == {"n0", "n2"}
    bench.pods(*(pod(f"q{i}", cpu="1500m", schedulerName="packing") for i in range(2)))
    await eventually(lambda: all(bench.where(f"q{i}") for i in range(2)))
    assert bench.where("q0") == bench.where("q1")
    (tmp_path / "bad.yaml").write_text("kind: Pod")
    with pytest.raises(ConfigurationError):
        read(tmp_path / "bad.yaml")
