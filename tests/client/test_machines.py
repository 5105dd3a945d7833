"""Queue, store, selectors, leases, events: the parts of the client that need no wire."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_api import FakeAPI, eventually
from longshore.client import config, informer, metrics
from longshore.client.events import EventRecorder
from longshore.client.informer import InformerFactory, compact
from longshore.client.leader import LeaderElection
from longshore.client.objects import set_condition, tolerates
from longshore.client.resources import EVENTS, LEASES, PODS, SERVICES
from longshore.client.selectors import as_text, map_matcher, matcher
from longshore.client.store import Store, by_namespace, key_of
from longshore.client.workqueue import ShutDown, WorkQueue


async def test_queue_coalesces_and_serialises() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for key in ("a", "b", "a"):
        queue.add(key)
    assert await queue.get() == "a"
    queue.add("a")  # while it is worked on
    assert await queue.get() == "b"
    assert len(queue) == 0
    queue.done("a")
    assert await queue.get() == "a"
    queue.shut_down()
    with pytest.raises(ShutDown):
        await queue.get()


async def test_queue_delays_keep_the_earliest_and_back_off() -> None:
    queue: WorkQueue[str] = WorkQueue(base_delay=0.01)
    queue.add_after("a", 100)
    queue.add_after("a", 0.01)
    queue.add_after("a", 50)
    assert await asyncio.wait_for(queue.get(), 5) == "a"
    queue.done("a")
    assert queue.idle
    for _ in range(3):
        queue.add_rate_limited("b")
    assert queue.requeues("b") == 3
    queue.forget("b")
    assert queue.requeues("b") == 0


async def test_a_cancelled_getter_loses_nothing() -> None:
    queue: WorkQueue[str] = WorkQueue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    assert await asyncio.wait_for(second, 5) == "a"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.booleans())))
def test_store_indexes_stay_right(steps: list[tuple[str, str, bool]]) -> None:
    store = Store({"namespace": by_namespace, "label": lambda o: (o["label"],)})
    model: dict[str, str] = {}
    for name, label, remove in steps:
        obj = {"metadata": {"name": name, "namespace": "n"}, "label": label}
        if remove:
            store.remove(key_of(obj))
            model.pop(name, None)
        else:
            store.put(key_of(obj), obj)
            model[name] = label
    for label in "xyz":
        assert {o["metadata"]["name"] for o in store.index("label", label)} == {
            n for n, v in model.items() if v == label
        }
    assert len(store.list("n")) == len(model)


def test_selectors() -> None:
    assert not matcher(None)({}) and matcher({})({"a": "b"})
    expression = {"key": "a", "operator": "In", "values": ["x", "y"]}
    test = matcher({"matchLabels": {"k": "v"}, "matchExpressions": [expression]})
    assert test({"k": "v", "a": "y"}) and not test({"k": "v"})
    assert matcher({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["x"]}]})({})
    assert not map_matcher({})({}) and map_matcher({"a": "b"})({"a": "b", "c": "d"})
    assert as_text({"matchLabels": {"z": "1"}, "matchExpressions": [expression]}) == "a in (x,y),z=1"
    with pytest.raises(ValueError):
        matcher({"matchExpressions": [{"key": "a", "operator": "Near"}]})


def test_tolerations_and_conditions() -> None:
    taint = {"key": "k", "value": "v", "effect": "NoSchedule"}
    assert tolerates([{"operator": "Exists"}], taint)
    assert tolerates([{"key": "k", "value": "v"}], taint) and not tolerates([{"key": "k"}], taint)
    assert not tolerates([{"key": "k", "operator": "Exists", "effect": "NoExecute"}], taint)
    old = [{"type": "A", "status": "True", "lastTransitionTime": "t0"}]
    assert set_condition(old, {"type": "A", "status": "True", "reason": "R"})[0]["lastTransitionTime"] == "t0"
    assert set_condition(old, {"type": "A", "status": "False"})[0]["lastTransitionTime"] != "t0"


def test_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    (tmp_path / "config").write_text(
        """
current-context: c
contexts: [{name: c, context: {cluster: k, user: u, namespace: n}}]
clusters: [{name: k, cluster: {server: "https://h:1/", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {tokenFile: token}}]
"""
    )
    loaded = config.load(tmp_path / "config")
    assert (loaded.server, loaded.namespace, loaded.authorization()) == ("https://h:1", "n", "Bearer abc")
    for text in ("[", "[]", "{}", "current-context: x", "current-context: 3\ncontexts: [7]"):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(config.ConfigError):
            config.load(tmp_path / "bad")


async def test_leader_election_hands_over() -> None:
    api = FakeAPI()
    order: list[str] = []

    async def lead(name: str) -> None:
        election = LeaderElection(api, "l", name, lease_duration=0.5, renew_deadline=0.3, retry_period=0.02)

        async def work() -> None:
            order.append(name)
            await asyncio.sleep(3600)

        await election.run(work)

    first = asyncio.create_task(lead("a"))
    await eventually(lambda: order == ["a"])
    second = asyncio.create_task(lead("b"))
    await asyncio.sleep(0.1)
    assert order == ["a"]
    first.cancel()
    await eventually(lambda: order == ["a", "b"])
    lease = api.all(LEASES)[0]
    assert lease["spec"]["holderIdentity"] == "b" and lease["spec"]["leaseTransitions"] >= 1
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)


async def test_events_count_and_combine() -> None:
    api = FakeAPI()
    recorder = EventRecorder(api, "test-controller")
    pod = api.put(PODS, {"metadata": {"name": "p"}})
    for _ in range(3):
        recorder.event(pod, "Normal", "Same", "same")
    for i in range(12):
        recorder.event(pod, "Warning", "Many", f"message {i}")
    await recorder.flush()
    events = {e["message"]: e for e in api.all(EVENTS)}
    assert events["same"]["count"] == 3 and events["same"]["source"] == {"component": "test-controller"}
    combined = [m for m in events if m.startswith("(combined from similar events): ")]
    assert len(combined) == 1 and events[combined[0]]["count"] == 3
    assert "message 8" in events and "message 9" not in events


async def test_events_are_limited_per_object() -> None:
    api = FakeAPI()
    recorder = EventRecorder(api, "c")
    service = api.put(SERVICES, {"metadata": {"name": "s"}})
    for _ in range(60):
        recorder.event(service, "Normal", "R", "m")
    await recorder.flush()
    assert [e["count"] for e in api.all(EVENTS)] == [25]


def test_pods_of_one_controller_share_what_is_equal() -> None:
    def made(number: int) -> dict[str, Any]:
        owner = {"uid": "rs", "controller": True, "kind": "ReplicaSet"}
        mounts = [{"name": f"token-{number}", "mountPath": "/x"}, {"name": "data", "mountPath": "/y"}]
        container = {
            "name": "c",
            "image": "registry.example/app:1",
            "env": [{"name": "A", "value": "B"}],
            "volumeMounts": mounts,
        }
        meta = {"name": f"p{number}", "ownerReferences": [owner], "labels": {"a": "b"}, "managedFields": [{}]}
        return {"metadata": meta, "spec": {"containers": [container], "nodeName": f"n{number}"}, "status": {}}

    first, second = compact(orjson.loads(orjson.dumps(made(1)))), compact(orjson.loads(orjson.dumps(made(2))))
    expected = made(2)
    del expected["metadata"]["managedFields"]
    assert second == expected
    one, two = first["spec"]["containers"][0], second["spec"]["containers"][0]
    assert one["env"] is two["env"] and one["volumeMounts"][1] is two["volumeMounts"][1]
    assert first["metadata"]["labels"] is second["metadata"]["labels"]


def test_pods_in_different_states_share_with_their_like() -> None:
    """A new pod between two running ones takes nothing from them, and does not keep them from sharing."""
    owner = {"uid": "rs-states", "controller": True, "kind": "ReplicaSet", "name": "r"}

    def made(number: int, running: bool) -> dict[str, Any]:
        labels = {"app": "x", "zone": f"z{number % 2}"}
        pod: dict[str, Any] = {
            "metadata": {"name": f"p{number}", "ownerReferences": [owner], "labels": labels, "managedFields": [{}]},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Pending"},
        }
        if running:
            pod["spec"]["nodeName"] = "n"
            ready = {"type": "Ready", "status": "True", "lastTransitionTime": "t"}
            pod["status"] = {"phase": "Running", "hostIP": f"10.0.0.{number}", "conditions": [ready]}
        return pod

    kept = [compact(orjson.loads(orjson.dumps(made(n, n % 2 == 0)))) for n in range(6)]
    for number, pod in enumerate(kept):
        plain = made(number, number % 2 == 0)
        del plain["metadata"]["managedFields"]
        assert pod == plain and list(pod["spec"]) == list(plain["spec"])
    assert kept[0]["status"]["conditions"] is kept[4]["status"]["conditions"]
    assert kept[1]["status"] is kept[5]["status"] and kept[0]["metadata"]["labels"] is kept[2]["metadata"]["labels"]
    assert kept[0]["spec"]["containers"] is not kept[1]["spec"]["containers"]


async def test_pods_that_are_gone_are_not_kept_for_their_siblings() -> None:
    """A cluster where controllers come and go all day (tests, jobs) must not hold a pod of each that ever was."""
    api = FakeAPI()
    factory = InformerFactory(api)
    pods = factory.informer(PODS)
    factory.start()
    await factory.wait_synced()
    before = dict(informer._siblings)
    for number in range(20):
        owner = {"uid": f"gone-{number}", "controller": True, "kind": "Job", "name": "j", "apiVersion": "batch/v1"}
        meta = {"name": f"p{number}", "uid": f"pod-{number}", "namespace": "d", "ownerReferences": [owner]}
        for phase in ("Pending", "Running", "Succeeded"):
            pod = {"metadata": dict(meta), "spec": {"nodeName": "n"}, "status": {"phase": phase}}
            api.put(PODS, pod, "d")
            await eventually(lambda phase=phase, n=number: phase_of(pods.store.named("d", f"p{n}")) == phase)
        assert set(informer._siblings) - set(before) == {f"gone-{number}"}
        api.drop(PODS, f"p{number}", "d")
        await eventually(lambda: len(pods.store) == 0)
    assert informer._siblings == before
    await factory.stop()


def phase_of(pod: Any) -> str:
    return str(pod["status"]["phase"]) if pod else ""


def test_parts_that_nobody_has_any_more_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "PARTS", 8)
    monkeypatch.setattr(informer, "_parts", {})
    monkeypatch.setattr(informer, "_older_parts", {})
    often = informer._one_for_all({"often": True})
    for number in range(100):
        informer._one_for_all({"n": number})
        assert informer._one_for_all({"often": True}) is often, "what is asked for stays the same one"
    assert len(informer._parts) + len(informer._older_parts) <= 2 * 8


async def test_figures_are_shown_in_prometheus_form() -> None:
    from prometheus_client import generate_latest

    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.done(await queue.get())
    queue.add_rate_limited("b")
    labels = {"name": "test"}

    def samples() -> list[metrics.Sample]:
        return [
            metrics.Sample("workqueue_adds", "counter", "h", labels, queue.adds),
            metrics.Sample("workqueue_retries", "counter", "h", labels, queue.retries),
            metrics.Sample("workqueue_work_duration_seconds", "histogram", "h", labels, queue.worked),
        ]

    hide = metrics.register(samples)
    text = generate_latest().decode()
    hide()
    assert 'workqueue_adds_total{name="test"} 1.0' in text and 'workqueue_retries_total{name="test"} 1.0' in text
    assert 'workqueue_work_duration_seconds_count{name="test"} 1.0' in text
    assert "workqueue_adds" not in generate_latest().decode()
