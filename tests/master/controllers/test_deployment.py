"""Deployments and ReplicaSets together: rollouts, scaling, history, conditions, events."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from longshore.client.resources import DEPLOYMENTS, PODS, REPLICA_SETS
from longshore.machinery.errors import StatusError
from longshore.master.controllers import rollout

BOTH = ("deployment-controller", "replicaset-controller")


def deployment(replicas: int = 2, image: str = "i:1", **spec: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]}}
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
    base = {
        "replicas": replicas,
        "selector": {"matchLabels": {"a": "b"}},
        "template": template,
        "strategy": rolling,
        "progressDeadlineSeconds": 600,
        "revisionHistoryLimit": 10,
    }
    return {"metadata": {"name": "web", "namespace": "default"}, "spec": {**base, **spec}}


def the(manager: Any) -> dict[str, Any]:
    return manager.api.all(DEPLOYMENTS)[0]


def complete(manager: Any, replicas: int = 2) -> bool:
    d = the(manager)
    status = d.get("status") or {}
    progressing = next((c for c in status.get("conditions", []) if c["type"] == "Progressing"), {})
    return (
        status.get("observedGeneration") == d["metadata"]["generation"]
        and status.get("updatedReplicas", 0)
        == status.get("availableReplicas", 0)
        == status.get("replicas", 0)
        == replicas
        and progressing.get("reason") == "NewReplicaSetAvailable"
    )


async def change(manager: Any, **spec: Any) -> None:
    await manager.api.patch(DEPLOYMENTS, "web", {"spec": spec}, "default")


def template(image: str) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "c", "image": image}]}}


async def test_rollout_and_back_as_recorded(manager: Any) -> None:
    await manager.start(*BOTH)
    await manager.api.create(DEPLOYMENTS, deployment())
    await manager.settle(lambda: complete(manager))
    first = manager.api.all(REPLICA_SETS)[0]
    assert the(manager)["metadata"]["annotations"] == {rollout.REVISION: "1"}
    assert the(manager)["metadata"]["generation"] == 1
    assert first["status"] == {
        "replicas": 2,
        "fullyLabeledReplicas": 2,
        "readyReplicas": 2,
        "availableReplicas": 2,
        "terminatingReplicas": 0,
        "observedGeneration": 1,
    }
    name = first["metadata"]["name"]
    assert [c["message"] for c in the(manager)["status"]["conditions"]] == [
        "Deployment has minimum availability.",
        f'ReplicaSet "{name}" has successfully progressed.',
    ]
    await change(manager, template=template("i:2"))
    await manager.settle(lambda: complete(manager) and len(manager.api.all(REPLICA_SETS)) == 2)
    await change(manager, template=template("i:1"))
    await manager.settle(lambda: complete(manager) and the(manager)["metadata"]["annotations"][rollout.REVISION] == "3")
    old = next(s for s in manager.api.all(REPLICA_SETS) if s["metadata"]["name"] == name)
    assert old["metadata"]["annotations"] == {
        rollout.DESIRED: "2",
        rollout.MAX: "3",
        rollout.REVISION: "3",
        rollout.REVISION_HISTORY: "1",
    }
    await manager.settle(lambda: f"ScalingReplicaSet: Scaled up replica set {name} from 0 to 2" in manager.events())
    events = manager.events()
    second = next(s["metadata"]["name"] for s in manager.api.all(REPLICA_SETS) if s["metadata"]["name"] != name)
    for text in (
        f"Scaled up replica set {second} from 0 to 1",
        f"Scaled down replica set {name} from 2 to 1",
        f"Scaled up replica set {second} from 1 to 2",
        f"Scaled down replica set {name} from 1 to 0",
    ):
        assert "ScalingReplicaSet: " + text in events
    await change(manager, replicas=0)
    await manager.settle(lambda: complete(manager, 0) and not manager.api.all(PODS))
    shown = the(manager)["status"]
    assert "replicas" not in shown and "availableReplicas" not in shown


async def test_recreate_waits_for_the_old_pods(manager: Any) -> None:
    await manager.start(*BOTH)
    await manager.api.create(DEPLOYMENTS, deployment(3, strategy={"type": "Recreate"}))
    await manager.settle(lambda: complete(manager, 3))
    most = 0

    def watch() -> bool:
        nonlocal most
        images = {p["spec"]["containers"][0]["image"] for p in manager.api.all(PODS)}
        most = max(most, len(images))
        return complete(manager, 3) and images == {"i:2"}

    await change(manager, template=template("i:2"))
    await manager.settle(watch)
    assert most == 1


async def test_availability_is_kept(manager: Any) -> None:
    await manager.start(*BOTH)
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    await manager.api.create(DEPLOYMENTS, deployment(4, strategy=rolling))
    await manager.settle(lambda: complete(manager, 4))
    seen: list[int] = []

    def watch() -> bool:
        pods = [p for p in manager.api.all(PODS) if not p["metadata"].get("deletionTimestamp")]
        seen.append(sum(1 for p in pods if p["status"].get("phase") == "Running"))
        assert len(pods) <= 5
        return complete(manager, 4) and all(p["spec"]["containers"][0]["image"] == "i:2" for p in pods)

    await change(manager, template=template("i:2"))
    await manager.settle(watch)
    assert min(seen) >= 4


async def test_restarts_in_the_middle_make_no_pod_twice(manager: Any) -> None:
    await manager.start(*BOTH)
    await manager.api.create(DEPLOYMENTS, deployment(6))
    for image in ("i:2", "i:3", "i:4"):
        await manager.settle(lambda: len(manager.api.all(PODS)) > 2)
        await manager.stop()
        await change(manager, template=template(image))
        await manager.start(*BOTH)
    await manager.settle(lambda: complete(manager, 6))
    pods = manager.api.all(PODS)
    assert len(pods) == 6 and {p["spec"]["containers"][0]["image"] for p in pods} == {"i:4"}


async def test_pause_scales_but_does_not_roll(manager: Any) -> None:
    await manager.start(*BOTH)
    await manager.api.create(DEPLOYMENTS, deployment(2))
    await manager.settle(lambda: complete(manager))
    await change(manager, paused=True, template=template("i:2"), replicas=3)
    await manager.settle(lambda: len(manager.api.all(PODS)) == 3)
    assert len(manager.api.all(REPLICA_SETS)) == 1
    reasons = {c["type"]: c["reason"] for c in the(manager)["status"]["conditions"]}
    assert reasons["Progressing"] == "DeploymentPaused"
    await change(manager, paused=False)
    await manager.settle(lambda: complete(manager, 3))


async def test_history_is_cut(manager: Any) -> None:
    await manager.start(*BOTH)
    await manager.api.create(DEPLOYMENTS, deployment(1, revisionHistoryLimit=1))
    for n in range(2, 5):
        await manager.settle(lambda: complete(manager, 1))
        await change(manager, template=template(f"i:{n}"))
    await manager.settle(lambda: complete(manager, 1) and len(manager.api.all(REPLICA_SETS)) == 2)


async def test_refused_pods_are_told_and_not_stormed(manager: Any) -> None:
    def fail(method: str, path: str, body: Any) -> StatusError | None:
        if method == "POST" and path.endswith("/pods"):
            return StatusError(403, "Forbidden", 'pods "x" is forbidden: exceeded quota: q')
        return None

    manager.api.fail = fail
    await manager.start(*BOTH)
    await manager.api.create(DEPLOYMENTS, deployment(50))
    failed = await manager.settle(
        lambda: next(c for c in the(manager)["status"]["conditions"] if c["type"] == "ReplicaFailure")
    )
    assert failed["reason"] == "FailedCreate" and "exceeded quota" in failed["message"]
    await asyncio.sleep(0.3)
    posts = sum(1 for method, path in manager.api.calls if method == "POST" and path.endswith("/pods"))
    assert posts < 20  # one a try, and the tries back off
    await manager.settle(
        lambda: any(e.startswith("FailedCreate: Error creating: pods") for e in manager.events()), pods=False
    )
    manager.api.fail = None
    await manager.settle(lambda: complete(manager, 50))


async def test_orphans_are_adopted_and_strangers_released(manager: Any) -> None:
    await manager.start("replicaset-controller")
    pod = {"metadata": {"name": "orphan", "labels": {"a": "b"}}, "spec": {}, "status": {"phase": "Pending"}}
    manager.api.put(PODS, pod)
    template_ = {"metadata": {"labels": {"a": "b"}}, "spec": {}}
    spec = {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template_}
    await manager.api.create(REPLICA_SETS, {"metadata": {"name": "rs", "namespace": "default"}, "spec": spec})
    await manager.settle(lambda: len(manager.api.all(PODS)) == 2)
    orphan = next(p for p in manager.api.all(PODS) if p["metadata"]["name"] == "orphan")
    assert orphan["metadata"]["ownerReferences"][0]["name"] == "rs"
    await manager.api.patch(PODS, "orphan", {"metadata": {"labels": {"a": "other"}}}, "default")
    await manager.settle(lambda: len(manager.api.all(PODS)) == 3)
    await manager.settle(
        lambda: (
            not next(p for p in manager.api.all(PODS) if p["metadata"]["name"] == "orphan")["metadata"].get(
                "ownerReferences"
            )
        )
    )


@given(
    st.integers(0, 200),
    st.lists(st.integers(1, 60), min_size=2, max_size=5),
    st.one_of(st.integers(0, 20), st.integers(0, 100).map(lambda p: f"{p}%")),
)
def test_proportional_scaling_adds_up(replicas: int, sizes: list[int], surge: Any) -> None:
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1}}
    d = deployment(replicas, strategy=rolling)
    before = sum(sizes)
    sets = [
        {
            "metadata": {
                "name": f"s{i}",
                "creationTimestamp": f"2020-01-01T00:00:{i:02d}Z",
                "annotations": {rollout.MAX: str(before)},
            },
            "spec": {"replicas": n},
        }
        for i, n in enumerate(sizes)
    ]
    result = rollout.proportional_sizes(d, sets)
    assert all(n >= 0 for n in result.values())
    allowed = replicas + rollout.max_surge(d) if replicas else 0
    assert sum(result.values()) == allowed
