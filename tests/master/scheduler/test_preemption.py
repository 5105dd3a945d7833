"""Victims: what is kept between equal pods is what would be found anew, and arithmetic agrees with the filters."""

from __future__ import annotations

import random
from typing import Any

import pytest
from scheduler_bench import node, pod

from fake_api import FakeAPI
from longshore.client.informer import InformerFactory
from longshore.master.scheduler.configuration import Configuration
from longshore.master.scheduler.core import Scheduler
from longshore.master.scheduler.framework import CycleState, Status
from longshore.master.scheduler.plugins.preemption import Candidate, DefaultPreemption
from longshore.master.scheduler.podinfo import PodInfo
from longshore.master.scheduler.profile import Profile

BUDGET = {
    "metadata": {"name": "b", "namespace": "default"},
    "spec": {"selector": {"matchLabels": {"a": "b"}}},
    "status": {"disruptionsAllowed": 1},
}


class Place:
    """A scheduler with a table of nodes, and nothing running."""

    def __init__(self, nodes: int) -> None:
        api = FakeAPI()
        self.scheduler = Scheduler(api, InformerFactory(api), Configuration().profiles)
        self.table = self.scheduler.table
        self.profile: Profile = self.scheduler.profiles["default-scheduler"]
        found = self.profile.by_name["DefaultPreemption"]
        assert isinstance(found, DefaultPreemption)
        self.plugin = found
        self.plugin.least = nodes  # all are looked at: the best is the best of all
        for i in range(nodes):
            self.table.set_node(node(f"n{i}", cpu="4", pods="6"))

    def add(self, name: str, where: str, **spec: Any) -> None:
        self.table.add_pod(PodInfo(pod(name, **spec)), where)

    def choose(self, info: PodInfo) -> tuple[Candidate | None, dict[str, int]]:
        state = CycleState()
        assert self.profile.pre_filter(state, info) is None
        chosen, reasons = self.plugin.choose(state, info, self.profile.diagnose(state, info).statuses)
        return chosen, {r: n for r, n in reasons.items() if n}


@pytest.mark.parametrize("seed", range(6))
def test_kept_answers_are_those_of_a_fresh_look(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    place = Place(12)
    monkeypatch.setattr(place.plugin.budgets, "store", [BUDGET] if seed % 2 else [])
    high = [
        PodInfo(pod(f"high{i}", cpu=cpu, priority=100, labels={"x": "y"})) for i, cpu in enumerate(("3", "2", "3", "4"))
    ]
    running: list[tuple[str, str]] = []
    for step in range(120):
        if running and chance.random() < 0.35:
            key, where = running.pop(chance.randrange(len(running)))
            place.table.remove_pod(key, where)
        else:
            where = f"n{chance.randrange(12)}"
            labels = {"a": "b"} if chance.random() < 0.3 else {"a": "c"}
            cpu = chance.choice(("500m", "1", "2"))
            place.add(f"low{step}", where, cpu=cpu, priority=chance.randrange(4), labels=labels)
            running.append((f"default/low{step}", where))
        if chance.random() < 0.2:
            place.scheduler._nominate(high[0], f"n{chance.randrange(12)}")
        elif chance.random() < 0.1:
            place.scheduler._unnominate(high[0].key)
        info = chance.choice(high)
        kept, reasons = place.choose(info)
        info.cls.cache.clear()
        fresh, fresh_reasons = place.choose(info)
        assert (kept and kept.harm) == (fresh and fresh.harm)
        assert reasons == fresh_reasons
        monkeypatch.setattr(place.scheduler.profiles["default-scheduler"], "only_room", lambda _state: False)
        tried, tried_reasons = place.choose(info)
        monkeypatch.undo()
        monkeypatch.setattr(place.plugin.budgets, "store", [BUDGET] if seed % 2 else [])
        assert (tried and tried.harm) == (fresh and fresh.harm)
        assert tried_reasons == fresh_reasons


def test_reasons_are_counted_as_rows_change() -> None:
    place = Place(3)
    info, state = PodInfo(pod("p", cpu="8")), CycleState()
    assert place.profile.pre_filter(state, info) is None
    assert place.profile.diagnose(state, info).message() == "0/3 nodes are available: 3 Insufficient cpu."
    for i in range(6):
        place.add(f"full{i}", "n0")
    place.table.remove_node("n1")
    found = place.profile.diagnose(state, info)
    assert found.message() == "0/2 nodes are available: 1 Too many pods, 2 Insufficient cpu."
    assert set(found.statuses) == {"n0", "n2"} and found.plugins == {"NodeResourcesFit"}
    place.table.set_node(node("n3", cpu="16"))
    assert "n3" not in place.profile.diagnose(state, info).statuses


def test_promised_room_counts() -> None:
    place = Place(1)
    place.scheduler._nominate(PodInfo(pod("first", cpu="3", priority=10)), "n0")
    state, second, small = CycleState(), PodInfo(pod("s", cpu="2")), PodInfo(pod("t", cpu="1"))
    for info, expected in ((second, 0), (small, 1)):
        assert place.profile.pre_filter(state, info) is None
        rows = place.scheduler._prefer_nominated(state, place.profile, info, place.profile.feasible(state, info))
        assert len(rows) == expected


def test_who_waits_for_its_victims_does_not_preempt_again() -> None:
    place = Place(1)
    mark = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    high = pod("high", cpu="3", priority=10)
    high["status"]["nominatedNodeName"] = "n0"
    info = PodInfo(high)

    def why(victim: dict[str, Any], status: Status | None = None) -> str:
        place.table.add_pod(PodInfo(victim), "n0")
        return place.plugin._not_eligible(info, {"n0": status} if status else {})

    going = pod("low", cpu="3")
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert why(going) == ""  # it goes for another reason
    going["status"]["conditions"] = [mark]
    assert why(going) == "not eligible due to a terminating pod on the nominated node."
    assert why(going, Status.unschedulable("Insufficient cpu"))
    assert why(going, Status.unresolvable("node(s) were unschedulable")) == ""
    high["spec"]["preemptionPolicy"] = "Never"
    assert place.plugin._not_eligible(PodInfo(high), {}) == "not eligible due to preemptionPolicy=Never."
