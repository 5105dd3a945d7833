"""Groups of pods: all get their nodes, or none does."""

from __future__ import annotations

import asyncio
from typing import Any

from scheduler_bench import node, pod

from fake_api import eventually
from longshore.client.resources import PODS
from longshore.master.scheduler.configuration import Configuration
from longshore.master.scheduler.plugins.coscheduling import LABEL, POD_GROUPS

PROFILE = {
    "schedulerName": "default-scheduler",
    "plugins": {"multiPoint": {"enabled": [{"name": "Coscheduling"}]}},
    "pluginConfig": [{"name": "Coscheduling", "args": {"permitWaitingTimeSeconds": 30}}],
}


def member(group: str, number: int, cpu: str = "1") -> dict[str, Any]:
    return pod(f"{group}-{number}", cpu=cpu, labels={LABEL: group})


def group(bench: Any, name: str, members: int, **spec: Any) -> None:
    bench.api.put(POD_GROUPS, {"metadata": {"name": name}, "spec": {"minMember": members, **spec}})


def placed(bench: Any, group: str) -> int:
    return sum(bool(p["spec"].get("nodeName")) for p in bench.api.all(PODS) if p["metadata"]["name"].startswith(group))


async def test_a_group_waits_until_it_is_complete(bench: Any) -> None:
    bench.nodes(node("n1"), node("n2"))
    group(bench, "g", 3)
    await bench.start(Configuration(documents=[PROFILE]))
    bench.pods(member("g", 0), member("g", 1), pod("alone"))
    await eventually(lambda: bench.where("alone"))
    words = "cannot find enough sibling pods, current pods number: 2, minMember of group: 3"
    await eventually(lambda: words in bench.why("g-0"))
    assert placed(bench, "g-") == 0
    bench.pods(member("g", 2))
    await eventually(lambda: placed(bench, "g-") == 3)


async def test_two_groups_that_do_not_fit_together_do_not_block_each_other(bench: Any) -> None:
    bench.nodes(node("n1", cpu="4"))
    group(bench, "a", 3)
    group(bench, "b", 3)
    await bench.start(Configuration(documents=[PROFILE]))
    bench.pods(*(member(g, i) for i in range(3) for g in "ab"))
    await eventually(lambda: {placed(bench, "a-"), placed(bench, "b-")} == {0, 3})
    await asyncio.sleep(0.1)
    assert {placed(bench, "a-"), placed(bench, "b-")} == {0, 3}
    winner = "a" if placed(bench, "a-") else "b"
    for i in range(3):
        bench.api.drop(PODS, f"{winner}-{i}", "default")
    await eventually(lambda: placed(bench, "ab".replace(winner, "") + "-") == 3)


async def test_a_group_larger_than_the_bindings_at_once(bench: Any) -> None:
    bench.nodes(node("n1", cpu="400", pods="400"))
    group(bench, "g", 200)
    await bench.start(Configuration(documents=[PROFILE]))
    bench.pods(*(member("g", i) for i in range(200)))
    await eventually(lambda: placed(bench, "g-") == 200)


async def test_time_is_over(bench: Any) -> None:
    bench.nodes(node("n1", cpu="2"))
    group(bench, "g", 2, scheduleTimeoutSeconds=0.1)
    await bench.start(Configuration(documents=[PROFILE]), backoff=5)
    gated = member("g", 1)
    gated["spec"]["schedulingGates"] = [{"name": "later"}]
    bench.pods(member("g", 0), gated)
    await eventually(lambda: "rejected due to timeout after waiting 0.1s at plugin Coscheduling" in bench.why("g-0"))
    assert placed(bench, "g-") == 0


async def test_a_group_that_does_not_exist(bench: Any) -> None:
    bench.nodes(node("n1"))
    await bench.start(Configuration(documents=[PROFILE]))
    bench.pods(member("g", 0))
    await eventually(lambda: 'PodGroup "g" not found' in bench.why("g-0"))
    group(bench, "g", 1)
    await eventually(lambda: placed(bench, "g-") == 1)
