"""DaemonSets, StatefulSets, Jobs, CronJobs against the API in memory."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.client.objects import seconds
from longshore.client.resources import (
    CONTROLLER_REVISIONS,
    CRON_JOBS,
    DAEMON_SETS,
    JOBS,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    REPLICA_SETS,
    STATEFUL_SETS,
)
from longshore.master.controllers import jobrules
from longshore.master.controllers.cronjob import last_due
from longshore.master.controllers.cronschedule import Schedule, ScheduleError
from longshore.master.controllers.daemonroll import Roll

LABELS = {"a": "b"}


def template(image: str = "i:1", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "c", "image": image}], **spec}}


def node(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {}}, "spec": spec}


def images(manager: Any) -> list[str]:
    return sorted(p["spec"]["containers"][0]["image"] for p in manager.api.all(PODS))


# -- DaemonSets


def daemon_set(**spec: Any) -> dict[str, Any]:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    annotations = {"deprecated.daemonset.template.generation": "1"}
    return {
        "metadata": {"name": "ds", "namespace": "default", "annotations": annotations},
        "spec": {"selector": {"matchLabels": LABELS}, "template": template(), "updateStrategy": strategy, **spec},
    }


def rolled(
    nodes: list[tuple[bool, str, str]], desired: int, surge: int, unavailable: int
) -> tuple[list[str], list[str]]:
    """(nodes to surge on, pods to delete); nodes as (should run, new pod, old pod), each "up", "down" or ""."""
    roll = Roll(desired)
    for number, (runs, new, old) in enumerate(nodes):
        fresh, stale = ([f"{n}{number}-{state}"] if state else [] for n, state in (("new", new), ("old", old)))
        is_up = lambda pod: pod.endswith("-up")  # noqa: E731
        if surge:
            roll.surge(f"n{number}", runs, fresh, stale, is_up)  # type: ignore[arg-type]
        else:
            roll.replace(fresh, stale, is_up)  # type: ignore[arg-type]
    create, delete = roll.with_surge(surge) if surge else roll.without_surge(unavailable)
    return create, [str(pod).partition("-")[0] for pod in delete]


@pytest.mark.parametrize(
    ("nodes", "desired", "surge", "unavailable", "create", "delete"),
    [
        # One at a time: the first old one goes; while a node is without an available pod, none does.
        ([(True, "", "up"), (True, "", "up")], 2, 0, 1, [], ["old0"]),
        ([(True, "down", ""), (True, "", "up")], 2, 0, 1, [], []),
        ([(True, "", ""), (True, "", "up"), (True, "", "up")], 3, 0, 2, [], ["old1"]),
        # An old one that serves nobody goes at once.
        ([(True, "", "down"), (True, "", "down"), (True, "", "up")], 3, 0, 1, [], ["old0", "old1"]),
        # Surging: a new one beside an old one, as many as may; beside those that serve nobody at once.
        ([(True, "", "up"), (True, "", "up")], 2, 1, 0, ["n0"], []),
        ([(True, "down", "up"), (True, "", "up")], 2, 1, 0, [], []),
        ([(True, "", "down"), (True, "", "down"), (True, "", "up")], 3, 1, 0, ["n0", "n1", "n2"], []),
        ([(True, "up", "up"), (True, "", "up")], 2, 1, 0, ["n1"], ["old0"]),
        # A node that should not run it any more gives its pod up when as many are available elsewhere.
        ([(False, "", "up"), (True, "", "")], 1, 1, 0, [], []),
        ([(False, "", "up"), (True, "up", "")], 1, 1, 0, [], ["old0"]),
        ([(False, "", "down"), (True, "", "")], 1, 1, 0, [], ["old0"]),
    ],
)
def test_a_step_of_a_daemon_sets_update(
    nodes: list[tuple[bool, str, str]], desired: int, surge: int, unavailable: int, create: list[str], delete: list[str]
) -> None:
    assert rolled(nodes, desired, surge, unavailable) == (create, delete)


async def test_daemon_set_as_recorded(manager: Any) -> None:
    manager.api.put(NODES, node("n1"))
    manager.api.put(NODES, node("n2"))
    manager.api.put(NODES, node("tainted", taints=[{"key": "k", "effect": "NoSchedule"}]))
    await manager.start("daemonset-controller")
    await manager.api.create(DAEMON_SETS, daemon_set())
    wanted = {
        "currentNumberScheduled": 2,
        "desiredNumberScheduled": 2,
        "numberAvailable": 2,
        "numberMisscheduled": 0,
        "numberReady": 2,
        "observedGeneration": 1,
        "updatedNumberScheduled": 2,
    }

    def bind() -> bool:
        for pod in manager.api.all(PODS):
            if not pod["spec"].get("nodeName"):
                terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
                pod["spec"]["nodeName"] = terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0]
                manager.set_pod(pod)
        return manager.api.all(DAEMON_SETS)[0].get("status") == wanted

    await manager.settle(bind, pods=False)
    pod = manager.api.all(PODS)[0]
    letters = manager.api.all(CONTROLLER_REVISIONS)[0]["metadata"]["labels"]["controller-revision-hash"]
    assert pod["metadata"]["labels"] == {**LABELS, "controller-revision-hash": letters, "pod-template-generation": "1"}
    assert [t["key"].split("/")[1] for t in pod["spec"]["tolerations"]] == [
        "not-ready",
        "unreachable",
        "disk-pressure",
        "memory-pressure",
        "pid-pressure",
        "unschedulable",
    ]
    await manager.api.patch(DAEMON_SETS, "ds", {"spec": {"template": template("i:2")}}, "default")
    await manager.settle(lambda: bind() is not None and images(manager) == ["i:2", "i:2"], pods=False)
    assert [r["revision"] for r in manager.api.all(CONTROLLER_REVISIONS)] == [1, 2]
    manager.api.put(NODES, node("n3"))
    await manager.settle(lambda: bind() is not None and len(manager.api.all(PODS)) == 3, pods=False)
    await manager.api.patch(NODES, "n3", {"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}})
    await manager.settle(lambda: len(manager.api.all(PODS)) == 2, pods=False)


# -- StatefulSets


def stateful_set(replicas: int = 2, **spec: Any) -> dict[str, Any]:
    claim = {"metadata": {"name": "data"}, "spec": {"resources": {"requests": {"storage": "1Gi"}}}}
    base = {
        "replicas": replicas,
        "serviceName": "s",
        "selector": {"matchLabels": LABELS},
        "template": template(),
        "podManagementPolicy": "OrderedReady",
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        "volumeClaimTemplates": [claim],
    }
    return {"metadata": {"name": "sts", "namespace": "default"}, "spec": {**base, **spec}}


def names(manager: Any) -> list[str]:
    return sorted(p["metadata"]["name"] for p in manager.api.all(PODS))


async def test_stateful_set_goes_in_order(manager: Any) -> None:
    await manager.start("statefulset-controller")
    await manager.api.create(STATEFUL_SETS, stateful_set(3))
    await manager.settle(lambda: names(manager) == ["sts-0"], pods=False)
    await asyncio.sleep(0.05)
    assert names(manager) == ["sts-0"]
    await manager.settle(lambda: manager.api.all(STATEFUL_SETS)[0]["status"].get("readyReplicas") == 3)
    assert names(manager) == ["sts-0", "sts-1", "sts-2"]
    pod = manager.api.all(PODS)[0]
    revision = manager.api.all(CONTROLLER_REVISIONS)[0]["metadata"]["name"]
    assert pod["metadata"]["labels"] == {
        **LABELS,
        "apps.kubernetes.io/pod-index": "0",
        "controller-revision-hash": revision,
        "statefulset.kubernetes.io/pod-name": "sts-0",
    }
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("sts-0", "s")
    assert [c["metadata"]["name"] for c in manager.api.all(PERSISTENT_VOLUME_CLAIMS)] == [
        f"data-sts-{i}" for i in range(3)
    ]
    status = manager.api.all(STATEFUL_SETS)[0]["status"]
    assert status == {
        "availableReplicas": 3,
        "collisionCount": 0,
        "currentReplicas": 3,
        "currentRevision": revision,
        "observedGeneration": 1,
        "readyReplicas": 3,
        "replicas": 3,
        "updateRevision": revision,
        "updatedReplicas": 3,
    }
    for text in (
        "Create Claim data-sts-1 Pod sts-1 in StatefulSet sts success",
        "Create Pod sts-1 in StatefulSet sts successful",
    ):
        assert "SuccessfulCreate: " + text in manager.events()
    await manager.api.patch(STATEFUL_SETS, "sts", {"spec": {"replicas": 1}}, "default")
    await manager.settle(lambda: names(manager) == ["sts-0"])
    assert len(manager.api.all(PERSISTENT_VOLUME_CLAIMS)) == 3


async def test_stateful_set_updates_from_the_last_down_to_the_partition(manager: Any) -> None:
    await manager.start("statefulset-controller")
    await manager.api.create(STATEFUL_SETS, stateful_set(3))
    await manager.settle(lambda: manager.api.all(STATEFUL_SETS)[0]["status"].get("readyReplicas") == 3)
    spec = {"template": template("i:2"), "updateStrategy": {"rollingUpdate": {"partition": 1}}}
    await manager.api.patch(STATEFUL_SETS, "sts", {"spec": spec}, "default")
    await manager.settle(lambda: images(manager) == ["i:1", "i:2", "i:2"] and names(manager)[2] == "sts-2")
    assert manager.api.all(PODS)[0]["spec"]["containers"][0]["image"] == "i:1"
    spec = {"updateStrategy": {"rollingUpdate": {"partition": 0}}}
    await manager.api.patch(STATEFUL_SETS, "sts", {"spec": spec}, "default")
    await manager.settle(lambda: images(manager) == ["i:2"] * 3)
    await manager.settle(
        lambda: (s := manager.api.all(STATEFUL_SETS)[0]["status"])["currentRevision"] == s["updateRevision"]
    )


async def test_an_update_mends_a_parallel_set_whose_first_pod_is_broken(manager: Any) -> None:
    await manager.start("statefulset-controller")
    await manager.api.create(STATEFUL_SETS, stateful_set(3, podManagementPolicy="Parallel"))
    await manager.settle(lambda: len(names(manager)) == 3, pods=False)

    def run() -> None:
        """All come up but a first pod of the old image."""
        manager.run_pods()
        for pod in manager.api.all(PODS):
            if pod["metadata"]["name"] == "sts-0" and pod["spec"]["containers"][0]["image"] == "i:1":
                manager.set_pod(pod, "Running", ready=False)

    await manager.settle(
        lambda: run() or manager.api.all(STATEFUL_SETS)[0]["status"].get("readyReplicas") == 2, pods=False
    )
    await manager.api.patch(STATEFUL_SETS, "sts", {"spec": {"template": template("i:2")}}, "default")
    await manager.settle(lambda: run() or images(manager) == ["i:2"] * 3, pods=False)


async def test_a_place_whose_pods_end_at_once_is_filled_with_growing_pauses(manager: Any) -> None:
    await manager.start("statefulset-controller")
    await manager.api.create(STATEFUL_SETS, stateful_set(1))

    def made() -> int:
        """A node that takes no pod, as one whose port is in use; how many pods it saw."""
        for pod in manager.api.all(PODS):
            if (pod.get("status") or {}).get("phase") == "Pending" and not pod["metadata"].get("deletionTimestamp"):
                manager.set_pod(pod, "Failed", ready=False)
        manager.run_pods()
        return manager.api.calls.count(("POST", "/api/v1/namespaces/default/pods"))

    await manager.settle(lambda: made() == 2, pods=False)
    for _ in range(60):
        await asyncio.sleep(0.005)
        assert made() == 2  # the first is replaced at once, the second a second later
    await manager.settle(
        lambda: any(
            e.startswith("RecreatingFailedPod: StatefulSet default/sts is recreating") for e in manager.events()
        ),
        pods=False,
    )


async def test_parallel_and_claims_that_go_with_the_set(manager: Any) -> None:
    await manager.start("statefulset-controller")
    policy = {"whenDeleted": "Delete", "whenScaled": "Retain"}
    body = stateful_set(4, podManagementPolicy="Parallel", persistentVolumeClaimRetentionPolicy=policy)
    await manager.api.create(STATEFUL_SETS, body)
    await manager.settle(lambda: len(names(manager)) == 4, pods=False)
    owners = {c["metadata"]["ownerReferences"][0]["kind"] for c in manager.api.all(PERSISTENT_VOLUME_CLAIMS)}
    assert owners == {"StatefulSet"}


# -- Jobs


def job(name: str = "job", completions: int | None = 2, parallelism: int = 1, **spec: Any) -> dict[str, Any]:
    labels = {"job": name}
    body = {
        "completions": completions,
        "parallelism": parallelism,
        "backoffLimit": 6,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c"}], "restartPolicy": "Never"}},
    }
    return {"metadata": {"name": name, "namespace": "default"}, "spec": {**body, **spec}}


def run_jobs(manager: Any, how: str = "Succeeded") -> None:
    for pod in manager.api.all(PODS):
        if pod["metadata"].get("deletionTimestamp"):
            pod["metadata"]["finalizers"] = []
            manager.api.drop(PODS, pod["metadata"]["name"], "default")
        elif pod["status"].get("phase") == "Pending":
            state = {"terminated": {"exitCode": 0 if how == "Succeeded" else 3, "finishedAt": "2020-01-01T00:00:00Z"}}
            pod["status"] = {"phase": how, "containerStatuses": [{"name": "c", "state": state}]}
            manager.api.put(PODS, pod)


def outcome(manager: Any, index: int = 0) -> list[str]:
    conditions = manager.api.all(JOBS)[index].get("status", {}).get("conditions") or []
    return [f"{c['type']}: {c['reason']}" for c in conditions]


async def test_job_completes_as_recorded(manager: Any) -> None:
    await manager.start("job-controller")
    await manager.api.create(JOBS, job())
    await manager.settle(lambda: run_jobs(manager) or len(outcome(manager)) == 2, pods=False)
    status = manager.api.all(JOBS)[0]["status"]
    assert outcome(manager) == ["SuccessCriteriaMet: CompletionsReached", "Complete: CompletionsReached"]
    assert {k: v for k, v in status.items() if not k.endswith("Time") and k != "conditions"} == {
        "ready": 0,
        "succeeded": 2,
        "terminating": 0,
        "uncountedTerminatedPods": {},
    }
    assert not any(p["metadata"].get("finalizers") for p in manager.api.all(PODS))
    await manager.settle(lambda: "Completed: Job completed" in manager.events(), pods=False)


async def test_failing_job_as_recorded(manager: Any) -> None:
    await manager.start("job-controller")
    await manager.api.create(JOBS, job("pj", 1, backoffLimit=0))
    await manager.settle(lambda: run_jobs(manager, "Failed") or len(outcome(manager)) == 2, pods=False)
    assert outcome(manager) == ["FailureTarget: BackoffLimitExceeded", "Failed: BackoffLimitExceeded"]
    assert manager.api.all(JOBS)[0]["status"]["failed"] == 1
    await manager.settle(
        lambda: "BackoffLimitExceeded: Job has reached the specified backoff limit" in manager.events(), pods=False
    )


async def test_indexed_job(manager: Any) -> None:
    await manager.start("job-controller")
    await manager.api.create(JOBS, job("ij", 3, 3, completionMode="Indexed"))
    await manager.settle(lambda: len(manager.api.all(PODS)) == 3, pods=False)
    assert sorted(p["spec"]["hostname"] for p in manager.api.all(PODS)) == ["ij-0", "ij-1", "ij-2"]
    await manager.settle(lambda: run_jobs(manager) or len(outcome(manager)) == 2, pods=False)
    assert manager.api.all(JOBS)[0]["status"]["completedIndexes"] == "0-2"


async def test_job_policies(manager: Any) -> None:
    await manager.start("job-controller")
    rule = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3]}}
    await manager.api.create(JOBS, job("policy", 1, podFailurePolicy={"rules": [rule]}))
    await manager.settle(lambda: run_jobs(manager, "Failed") or len(outcome(manager)) == 2, pods=False)
    assert outcome(manager)[1] == "Failed: PodFailurePolicy"
    message = manager.api.all(JOBS)[0]["status"]["conditions"][0]["message"]
    assert message.endswith("failed with exit code 3 matching FailJob rule at index 0")
    per_index = job("each", 2, 2, completionMode="Indexed", backoffLimitPerIndex=0)
    await manager.api.create(JOBS, per_index)
    await manager.settle(lambda: run_jobs(manager, "Failed") or len(outcome(manager, 1)) == 2, pods=False)
    assert outcome(manager, 1)[1] == "Failed: FailedIndexes"
    assert jobrules.parse_indexes(manager.api.all(JOBS)[1]["status"]["failedIndexes"]) == {0, 1}


async def test_suspended_job_waits(manager: Any) -> None:
    await manager.start("job-controller")
    await manager.api.create(JOBS, job(suspend=True))
    await manager.settle(lambda: outcome(manager) == ["Suspended: JobSuspended"], pods=False)
    assert not manager.api.all(PODS)
    await manager.api.patch(JOBS, "job", {"spec": {"suspend": False}}, "default")
    await manager.settle(lambda: run_jobs(manager) or len(outcome(manager)) == 3, pods=False)


async def test_what_the_controller_takes_away_is_no_failure(manager: Any) -> None:
    await manager.start("job-controller")
    await manager.api.create(JOBS, job(completions=4, parallelism=3, backoffLimit=0))
    await manager.settle(lambda: len(manager.api.all(PODS)) == 3, pods=False)
    await manager.api.patch(JOBS, "job", {"spec": {"parallelism": 1}}, "default")
    await manager.settle(lambda: len(manager.api.all(PODS)) == 1, pods=False)
    await manager.api.patch(JOBS, "job", {"spec": {"suspend": True}}, "default")
    await manager.settle(lambda: not manager.api.all(PODS), pods=False)
    await manager.settle(lambda: outcome(manager) == ["Suspended: JobSuspended"], pods=False)
    status = manager.api.all(JOBS)[0]["status"]
    assert "failed" not in status and "startTime" not in status
    await manager.api.patch(JOBS, "job", {"spec": {"suspend": False}}, "default")
    await manager.settle(lambda: run_jobs(manager) or len(outcome(manager)) == 3, pods=False)
    assert "Complete: CompletionsReached" in outcome(manager)


async def test_a_failed_index_keeps_its_pod_until_the_next(manager: Any) -> None:
    await manager.start("job-controller")
    rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    body = job("each", 1, 1, completionMode="Indexed", backoffLimitPerIndex=1, podFailurePolicy={"rules": [rule]})
    await manager.api.create(JOBS, body)
    await manager.settle(lambda: len(manager.api.all(PODS)) == 1, pods=False)

    def fail(**status: Any) -> str:
        pod = next(p for p in manager.api.all(PODS) if p["status"]["phase"] == "Pending")
        state = {"terminated": {"exitCode": 3, "finishedAt": "2020-01-01T00:00:00Z"}}
        pod["status"] = {"phase": "Failed", "containerStatuses": [{"name": "c", "state": state}], **status}
        manager.api.put(PODS, pod)
        return str(pod["metadata"]["name"])

    def counts() -> dict[str, str]:
        pod = next(p for p in manager.api.all(PODS) if p["status"]["phase"] == "Pending")
        return {k: v for k, v in pod["metadata"]["annotations"].items() if "failure-count" in k}

    assert counts() == {jobrules.FAILURES: "0"}
    first = fail(conditions=[{"type": "DisruptionTarget", "status": "True"}])
    await manager.settle(lambda: len(manager.api.all(PODS)) == 2, pods=False)
    assert counts() == {jobrules.FAILURES: "0", jobrules.IGNORED_FAILURES: "1"}

    def released(name: str) -> bool:
        pod = next(p for p in manager.api.all(PODS) if p["metadata"]["name"] == name)
        return not pod["metadata"].get("finalizers")

    await manager.settle(lambda: released(first), pods=False)
    fail()
    await manager.settle(lambda: len(manager.api.all(PODS)) == 3, pods=False)
    assert counts() == {jobrules.FAILURES: "1", jobrules.IGNORED_FAILURES: "1"}
    fail()
    await manager.settle(lambda: "Failed: FailedIndexes" in outcome(manager), pods=False)
    status = manager.api.all(JOBS)[0]["status"]
    assert (status["failedIndexes"], status["failed"]) == ("0", 2)


@pytest.mark.parametrize(
    ("rules", "done", "met"),
    [
        ([{"succeededIndexes": "0-2"}], {0, 1}, None),
        ([{"succeededIndexes": "0-2"}], {0, 1, 2, 5}, 0),
        ([{"succeededIndexes": "0-2", "succeededCount": 1}], {2}, 0),
        ([{"succeededIndexes": "0-2", "succeededCount": 2}], {2, 7}, None),
        ([{"succeededIndexes": "8-9"}, {"succeededCount": 2}], {0, 1}, 1),
        ([{"succeededIndexes": "20"}], {0}, None),  # past the completions: nothing is named
        ([{"succeededCount": 1}], set(), None),
    ],
)
def test_success_rules(rules: Any, done: set[int], met: int | None) -> None:
    spec = {"completions": 10, "successPolicy": {"rules": rules}}
    assert jobrules.success_rule({"spec": spec}, done) == met


def test_when_a_pod_ended() -> None:
    def ended(name: str, at: str) -> Any:
        return {"name": name, "state": {"terminated": {"exitCode": 0, "finishedAt": f"2026-01-01T00:00:{at}Z"}}}

    base = seconds("2026-01-01T00:00:00Z")
    spec = {"initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}], "containers": []}
    meta = {"creationTimestamp": "2026-01-01T00:00:01Z"}
    pod = {"metadata": meta, "spec": spec, "status": {"containerStatuses": [ended("c", "10")]}}
    assert jobrules.finished_at(pod) == base + 10
    pod["status"]["initContainerStatuses"] = [ended("s", "20"), ended("i", "30")]  # the sidecar counts, the other not
    assert jobrules.finished_at(pod) == base + 20
    ready = {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:40Z"}
    pod["status"] = {"conditions": [ready], "containerStatuses": [{"name": "c", "state": {"running": {}}}]}
    assert jobrules.finished_at(pod) == base + 40
    ready["status"] = "True"
    assert jobrules.finished_at(pod) == base + 1
    meta |= {"deletionTimestamp": "2026-01-01T00:00:50Z", "deletionGracePeriodSeconds": 30}
    assert jobrules.finished_at(pod) == base + 20


async def test_restarts_count_each_pod_once(manager: Any) -> None:
    await manager.start("job-controller")
    await manager.api.create(JOBS, job(completions=12, parallelism=4))
    for _ in range(4):
        await manager.settle(lambda: run_jobs(manager) or len(manager.api.all(PODS)) > 2, pods=False)
        await manager.stop()
        await manager.start("job-controller")
    await manager.settle(lambda: run_jobs(manager) or len(outcome(manager)) == 2, pods=False)
    assert manager.api.all(JOBS)[0]["status"]["succeeded"] == 12
    assert len(manager.api.all(PODS)) == 12


async def test_an_index_that_was_counted_is_not_run_again_while_the_jobs_cache_lags(manager: Any) -> None:
    """After the API server's restart pods may be told earlier than the Job's own status."""
    await manager.start("job-controller")
    await manager.api.create(JOBS, job(completions=2, parallelism=2, completionMode="Indexed"))
    await manager.settle(
        lambda: len(manager.api.all(PODS)) == 2 and manager.api.all(JOBS)[0]["status"]["active"] == 2, pods=False
    )
    manager.api.hold(JOBS)
    first = manager.api.all(PODS)[0]
    first["status"] = {"phase": "Succeeded"}
    manager.api.put(PODS, first)
    await manager.settle(lambda: not manager.api.all(PODS)[0]["metadata"].get("finalizers"), pods=False)
    await asyncio.sleep(0.1)
    assert len(manager.api.all(PODS)) == 2
    manager.api.release(JOBS)
    await manager.settle(lambda: run_jobs(manager) or len(outcome(manager)) == 2, pods=False)
    assert manager.api.all(JOBS)[0]["status"]["succeeded"] == 2 == len(manager.api.all(PODS))


@pytest.mark.parametrize("what", ["job", "replicaset"])
async def test_a_creation_that_nobody_answered_is_looked_for_before_another(
    manager: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The API server is killed after its write and before its answer: the pod is there."""
    call, lost = manager.api.call, []

    async def broken(method: str, path: str, *rest: Any, **more: Any) -> Any:
        answer = await call(method, path, *rest, **more)
        if method == "POST" and path.endswith("/pods") and not lost:
            lost.append(path)
            raise ConnectionResetError("EOF")
        return answer

    monkeypatch.setattr(manager.api, "call", broken)
    manager.api.hold(PODS)
    await manager.start(f"{what}-controller")
    if what == "job":
        await manager.api.create(JOBS, job(completions=1, parallelism=1, backoffLimit=0))
    else:
        spec = {"replicas": 1, "selector": {"matchLabels": LABELS}, "template": template()}
        await manager.api.create(REPLICA_SETS, {"metadata": {"name": "r", "namespace": "default"}, "spec": spec})
    await manager.settle(lambda: lost, pods=False)
    await asyncio.sleep(0.2)
    assert len(manager.api.all(PODS)) == 1
    manager.api.release(PODS)
    if what == "job":
        await manager.settle(lambda: run_jobs(manager) or len(outcome(manager)) == 2, pods=False)
        assert outcome(manager)[1] == "Complete: CompletionsReached"
    else:
        await manager.settle(lambda: manager.api.all(REPLICA_SETS)[0]["status"].get("readyReplicas") == 1)
    assert len(manager.api.all(PODS)) == 1


@given(st.sets(st.integers(0, 60)))
def test_index_lists_round_trip(numbers: set[int]) -> None:
    assert jobrules.parse_indexes(jobrules.format_indexes(numbers)) == numbers


# -- CronJobs


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "after", "due"),
    [
        ("* * * * *", "2024-01-01T00:00:30", "2024-01-01T00:01"),
        ("*/15 9-17 * * mon-fri", "2024-01-05T17:50", "2024-01-08T09:00"),
        ("0 0 29 2 *", "2024-03-01T00:00", "2028-02-29T00:00"),
        ("0 0 13 * 5", "2024-01-01T00:00", "2024-01-05T00:00"),
        ("@monthly", "2024-01-31T12:00", "2024-02-01T00:00"),
        ("30 4 1,15 * 0", "2024-01-01T05:00", "2024-01-07T04:30"),
        ("TZ=Europe/Berlin 0 12 * * *", "2024-07-01T00:00", "2024-07-01T10:00"),
    ],
)
def test_schedules(schedule: str, after: str, due: str) -> None:
    assert Schedule(schedule).after(utc(after)) == utc(due)


def test_clocks_that_change() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert Schedule("30 2 * * *", berlin).after(utc("2024-03-31T00:00")) == utc("2024-04-01T00:30")


@pytest.mark.parametrize(
    "bad", ["", "* * * *", "60 * * * *", "* * * * mon-", "*/0 * * * *", "5-1 * * * *", "@sometimes"]
)
def test_bad_schedules(bad: str) -> None:
    with pytest.raises(ScheduleError):
        Schedule(bad)


def test_missed_times_are_counted_and_skipped() -> None:
    since, until = utc("2020-01-01T00:00").timestamp(), utc("2024-01-01T00:00:30").timestamp()
    due, count = last_due(Schedule("* * * * *"), since, until)
    assert due == utc("2024-01-01T00:00").timestamp() and count > 100
    assert last_due(Schedule("@yearly"), until, until + 5) == (None, 0)


async def test_cron_job_starts_and_clears(manager: Any) -> None:
    await manager.start("cronjob-controller")
    spec = {
        "schedule": "* * * * *",
        "concurrencyPolicy": "Forbid",
        "successfulJobsHistoryLimit": 1,
        "jobTemplate": {"spec": {"template": {"spec": {}}}},
    }
    meta = {"name": "cron", "namespace": "default", "creationTimestamp": "2024-01-01T00:00:10Z"}
    manager.api.put(CRON_JOBS, {"metadata": meta, "spec": spec, "status": {"lastScheduleTime": "2024-01-01T00:00:00Z"}})
    await manager.settle(lambda: len(manager.api.all(JOBS)) == 1, pods=False)
    made = manager.api.all(JOBS)[0]
    minute = made["metadata"]["name"].removeprefix("cron-")
    assert abs(int(minute) * 60 - datetime.now(UTC).timestamp()) < 130
    assert made["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"]
    await manager.settle(lambda: manager.api.all(CRON_JOBS)[0]["status"].get("active"), pods=False)
    done = {"type": "Complete", "status": "True"}
    manager.api.put(JOBS, {**made, "status": {"conditions": [done], "completionTime": "2024-01-01T00:00:30Z"}})
    await manager.settle(lambda: "active" not in manager.api.all(CRON_JOBS)[0]["status"], pods=False)
    assert manager.api.all(CRON_JOBS)[0]["status"]["lastSuccessfulTime"] == "2024-01-01T00:00:30Z"
    name = made["metadata"]["name"]
    await manager.settle(
        lambda: f"SawCompletedJob: Saw completed job: {name}, condition: Complete" in manager.events(), pods=False
    )
