"""Our manager on our API server reaches the end states that were recorded of upstream's (shared/golden/.../controllers).

What cannot be equal (uids, versions, hashes, random suffixes, times) is reduced to `*` on both sides; objects are then
compared kind by kind, events by what they say.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from live import Live

from longshore.client.resources import (
    BY_KIND,
    CERTIFICATE_SIGNING_REQUESTS,
    CONFIG_MAPS,
    CRON_JOBS,
    DAEMON_SETS,
    DEPLOYMENTS,
    HORIZONTAL_POD_AUTOSCALERS,
    JOBS,
    NAMESPACES,
    NODES,
    PERSISTENT_VOLUMES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    REPLICA_SETS,
    RESOURCE_QUOTAS,
    SERVICE_ACCOUNTS,
    SERVICES,
    STATEFUL_SETS,
)
from longshore.machinery.errors import StatusError

Object = dict[str, Any]
OLD = "2020-01-01T00:00:00Z"
LABELS = {"a": "b"}
# The API server's part, compared in its own tests; times and ids have no fixed value.
DROPPED = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "selfLink")


def template(image: str = "i:1", **spec: Any) -> Object:
    return {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "c", "image": image}], **spec}}


class Cluster:
    """The live cluster, two stand-in nodes, and the script that plays kubelet."""

    def __init__(self, live: Live) -> None:
        self.live, self.client = live, live.client

    async def start(self) -> None:
        await self.live.apiserver()
        await self.live.spawn("manager")
        for name in ("fake-0", "fake-1"):
            labels = {"kubernetes.io/hostname": name}
            await self.client.create(NODES, {"metadata": {"name": name, "labels": labels}})
            capacity = {"cpu": "8", "memory": "16Gi", "pods": "110"}
            ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
            status = {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}
            await self.client.patch(NODES, name, {"status": status}, kind="strategic", subresource="status")

    async def namespace(self, name: str) -> None:
        """Make a namespace and wait for its account, without which no pod may be made."""
        await self.client.create(NAMESPACES, {"metadata": {"name": name}})
        async with asyncio.timeout(20):
            while not (await self.client.list(SERVICE_ACCOUNTS, name))["items"]:
                await asyncio.sleep(0.02)

    async def play_kubelet(self, namespace: str) -> None:
        """Start what is bound, end what is being deleted."""
        for pod in (await self.client.list(PODS, namespace))["items"]:
            name, status = pod["metadata"]["name"], pod.get("status") or {}
            if pod["metadata"].get("deletionTimestamp"):
                try:
                    await self.client.delete(PODS, name, namespace, grace_seconds=0)
                except StatusError as error:
                    if error.code != 404:
                        raise
                continue
            if not pod["spec"].get("nodeName") or status.get("phase") != "Pending":
                continue
            image = pod["spec"]["containers"][0]["image"]
            body: Object = {"podIP": "10.244.0.5", "podIPs": [{"ip": "10.244.0.5"}], "startTime": OLD}
            container: Object = {"name": "c", "image": image, "imageID": "", "lastState": {}, "restartCount": 0}
            if image in ("done", "fail"):
                code = 0 if image == "done" else 1
                body["phase"] = "Failed" if code else "Succeeded"
                container.update(ready=False, state={"terminated": {"exitCode": code, "finishedAt": OLD}})
                ready = "False"
            else:
                body["phase"] = "Running"
                container.update(ready=True, started=True, state={"running": {"startedAt": OLD}})
                ready = "True"
            body["containerStatuses"] = [container]
            body["conditions"] = [
                {"type": t, "status": s, "lastTransitionTime": OLD}
                for t, s in (("Initialized", "True"), ("Ready", ready), ("ContainersReady", ready))
            ]
            await self.client.patch(PODS, name, {"status": body}, namespace, kind="strategic", subresource="status")

    async def until(self, namespace: str, check: Callable[[], Any], seconds: float = 40.0) -> None:
        """Play kubelet until the check (a coroutine function) holds, and a little longer."""
        async with asyncio.timeout(seconds):
            while True:
                await self.play_kubelet(namespace)
                try:
                    if await check():
                        break
                except (KeyError, IndexError):
                    pass
                await asyncio.sleep(0.05)
        for _ in range(3):
            await asyncio.sleep(0.1)
            await self.play_kubelet(namespace)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    found = Cluster(Live(tmp_path))
    try:
        await found.start()
        yield found
        log = found.live.log("manager")
        assert "Traceback" not in log and " is forbidden: User" not in log, log[-3000:]
    finally:
        await found.live.stop()


def stage(golden: Path, file: str, number: int) -> list[Object]:
    lines = (golden / "kubernetes" / "controllers" / f"{file}.jsonl").read_text().splitlines()
    return json.loads(lines[number])["objects"]  # type: ignore[no-any-return]


def reduce(value: Any) -> Any:
    """Without what never has a fixed value, names without their random parts."""
    if isinstance(value, list):
        return [reduce(v) for v in value]
    if isinstance(value, dict):
        return {k: reduce(v) for k, v in value.items() if k not in DROPPED}
    if isinstance(value, str):
        value = re.sub(r"<[a-z]+[0-9]*>", "*", value)
        value = re.sub(r"kube-api-access-\w+", "kube-api-access-*", value)
        if value != OLD and re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", value):
            return "*"
    return value


def reduced(objects: list[Object]) -> dict[str, list[Any]]:
    """Objects by kind, with every hash and suffix that occurs in them replaced by `*`."""
    random: set[str] = set()
    for obj in objects:
        meta = obj["metadata"]
        labels = meta.get("labels") or {}
        for label in ("pod-template-hash", "controller-revision-hash", "controller.kubernetes.io/hash"):
            if label in labels:
                random.add(labels[label].rsplit("-", 1)[-1])
        generated = meta.get("generateName")
        if generated and meta["name"].startswith(generated):
            random.add(meta["name"][len(generated) :])
        for key in ("batch.kubernetes.io/controller-uid", "controller-uid"):
            if key in labels:
                random.add(labels[key])
        if meta.get("uid"):
            random.add(meta["uid"])
        random.update(o["uid"] for o in meta.get("ownerReferences") or ())
        for address in (obj.get("spec") or {}).get("clusterIPs") or ():
            random.add(address)
        if obj["kind"] == "ControllerRevision":
            random.add(meta["name"].rsplit("-", 1)[-1])
    found: dict[str, list[Any]] = {}
    ordered = sorted((r for r in random if len(r) > 1 and not r.isdigit()), key=len, reverse=True)
    for obj in objects:
        text = json.dumps(reduce(obj))
        for word in ordered:
            text = text.replace(word, "*")
        found.setdefault(obj["kind"], []).append(json.loads(text))
    return found


def shape(obj: Any) -> Any:
    """A pod without what the API server, the kubelet and the choice of a node put in; the rest as it is."""
    if obj["kind"] == "Pod":
        spec = {k: v for k, v in obj["spec"].items() if k in ("affinity", "hostname", "subdomain", "restartPolicy")}
        text = json.dumps({"metadata": obj["metadata"], "spec": spec})
        return json.loads(re.sub(r"fake-[01]", "fake", text))
    if obj["kind"] in ("EndpointSlice", "Endpoints"):
        obj = json.loads(re.sub(r"fake-[01]", "fake", json.dumps(obj)))
        obj["metadata"].pop("generation", None)
    if obj["kind"] == "ControllerRevision":
        obj["metadata"]["labels"].pop("controller.kubernetes.io/hash", None)
    return obj


def compare(golden: list[Object], ours: list[Object], kinds: tuple[str, ...]) -> None:
    wanted, have = reduced(golden), reduced(ours)
    for kind in kinds:
        a = sorted(json.dumps(shape(o), sort_keys=True) for o in wanted.get(kind, []))
        b = sorted(json.dumps(shape(o), sort_keys=True) for o in have.get(kind, []))
        assert [json.loads(x) for x in b] == [json.loads(x) for x in a], kind


async def fetch(cluster: Cluster, namespace: str, kinds: tuple[str, ...]) -> list[Object]:
    result = []
    for kind in kinds:
        resource = next(r for (_, k), r in BY_KIND.items() if k == kind)
        for item in (await cluster.client.list(resource, namespace if resource.namespaced else ""))["items"]:
            result.append({"kind": kind, "apiVersion": resource.api_version, **item})
    return result


def said(objects: list[Object]) -> Counter[tuple[str, ...]]:
    """Events by who says what of which kind, without random parts; those that depend on timing left out."""
    result: Counter[tuple[str, ...]] = Counter()
    for event in objects:
        if event["kind"] != "Event" or event["reason"] in ("FailedScheduling", "NoPods"):
            continue
        message = re.sub(r"<[a-z]+[0-9]*>", "*", event.get("message") or "")
        message = re.sub(r"web-[a-z0-9]{10}\b", "web-*", message)
        message = re.sub(r"\b((?:web-\*|ds|job|pj|ij-\d|cron-\d+)-)[a-z0-9]{5}\b", r"\1*", message)
        message = re.sub(r"\b(ij-\d)-\*", r"\1-*", message)
        message = re.sub(r"fake-[01]", "fake", message)
        result[(event["type"], event["reason"], message, event["involvedObject"]["kind"])] += 1
    return result


async def test_deployment(cluster: Cluster, golden: Path) -> None:
    namespace = "ctl-deploy"
    await cluster.namespace(namespace)
    kinds = ("Deployment", "ReplicaSet", "Pod")
    body = {
        "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": LABELS}, "template": template()},
    }
    await cluster.client.create(DEPLOYMENTS, body, namespace)

    def rolled(generation: int, count: int = 2) -> Callable[[], Any]:
        async def check() -> bool:
            d = await cluster.client.get(DEPLOYMENTS, "web", namespace)
            s = d.get("status") or {}
            reason = next((c["reason"] for c in s.get("conditions", ()) if c["type"] == "Progressing"), "")
            pods = len((await cluster.client.list(PODS, namespace))["items"])
            numbers = [s.get(k, 0) for k in ("replicas", "updatedReplicas", "availableReplicas")]
            return (
                s.get("observedGeneration") == generation
                and numbers == [count] * 3
                and pods == count
                and reason == "NewReplicaSetAvailable"
                and s.get("terminatingReplicas") == 0
            )

        return check

    await cluster.until(namespace, rolled(1))
    compare(stage(golden, "deployment", 0), await fetch(cluster, namespace, kinds), kinds)
    for number, image in ((1, "i:2"), (2, "i:1")):
        patch = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}
        await cluster.client.patch(DEPLOYMENTS, "web", patch, namespace, kind="strategic")
        await cluster.until(namespace, rolled(number + 1))
        compare(stage(golden, "deployment", number), await fetch(cluster, namespace, kinds), kinds)
    await cluster.client.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 0}}, namespace)
    await cluster.until(namespace, rolled(4, 0))
    last = stage(golden, "deployment", 3)
    compare(last, await fetch(cluster, namespace, kinds), kinds)
    ours = said(await fetch(cluster, namespace, ("Event",)))
    assert ours == said(last)


async def test_daemon_set(cluster: Cluster, golden: Path) -> None:
    namespace = "ctl-ds"
    await cluster.namespace(namespace)
    body = {"metadata": {"name": "ds"}, "spec": {"selector": {"matchLabels": LABELS}, "template": template()}}
    await cluster.client.create(DAEMON_SETS, body, namespace)

    async def done() -> bool:
        ds = await cluster.client.get(DAEMON_SETS, "ds", namespace)
        return bool(ds["status"].get("numberAvailable") == 2)

    await cluster.until(namespace, done)
    kinds = ("DaemonSet", "ControllerRevision", "Pod")
    wanted = stage(golden, "daemonset", 0)
    compare(wanted, await fetch(cluster, namespace, kinds), kinds)
    assert said(await fetch(cluster, namespace, ("Event",))) == said(wanted)


async def test_stateful_set(cluster: Cluster, golden: Path) -> None:
    namespace = "ctl-sts"
    await cluster.namespace(namespace)
    for i in range(2):
        spec = {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "none",
            "hostPath": {"path": "/x"},
        }
        await cluster.client.create(PERSISTENT_VOLUMES, {"metadata": {"name": f"gpv{i}"}, "spec": spec})
    claim = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "none",
        },
    }
    spec = {
        "replicas": 2,
        "serviceName": "s",
        "selector": {"matchLabels": LABELS},
        "template": template(),
        "volumeClaimTemplates": [claim],
    }
    await cluster.client.create(STATEFUL_SETS, {"metadata": {"name": "sts"}, "spec": spec}, namespace)

    async def done() -> bool:
        s = await cluster.client.get(STATEFUL_SETS, "sts", namespace)
        return bool(s["status"].get("availableReplicas") == 2 and s["status"].get("currentReplicas") == 2)

    await cluster.until(namespace, done)
    kinds = ("StatefulSet", "ControllerRevision", "PersistentVolumeClaim", "PersistentVolume", "Pod")
    wanted = stage(golden, "statefulset", 0)
    ours = await fetch(cluster, namespace, kinds)
    for objects in (wanted, ours):
        # Which of two equal volumes goes to which claim is chance.
        for obj in objects:
            if obj["kind"] == "PersistentVolumeClaim":
                obj["spec"]["volumeName"] = "gpv"
            elif obj["kind"] == "PersistentVolume":
                obj["spec"]["claimRef"]["name"] = "data-sts"
    compare(wanted, ours, kinds)
    assert said(await fetch(cluster, namespace, ("Event",))) == said(wanted)


async def test_jobs(cluster: Cluster, golden: Path) -> None:
    namespace = "ctl-job"
    await cluster.namespace(namespace)
    never = {"restartPolicy": "Never"}

    def job(name: str, image: str, **spec: Any) -> Object:
        pod = {"spec": {"containers": [{"name": "c", "image": image}], **never}}
        return {"metadata": {"name": name}, "spec": {"template": pod, **spec}}

    await cluster.client.create(JOBS, job("job", "done", completions=2), namespace)
    await cluster.client.create(
        JOBS, job("ij", "done", completions=3, parallelism=3, completionMode="Indexed"), namespace
    )
    await cluster.client.create(JOBS, job("pj", "fail", backoffLimit=0), namespace)

    async def done() -> bool:
        items = (await cluster.client.list(JOBS, namespace))["items"]
        return all(len((j.get("status") or {}).get("conditions") or ()) == 2 for j in items)

    await cluster.until(namespace, done)
    kinds = ("Job", "Pod")
    wanted = stage(golden, "jobs", 0)
    compare(wanted, await fetch(cluster, namespace, kinds), kinds)
    ours, theirs = said(await fetch(cluster, namespace, ("Event",))), said(wanted)

    def plain(counts: Counter[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
        result: Counter[tuple[str, ...]] = Counter()
        for (type_, reason, message, kind), n in counts.items():
            result[(type_, reason, re.sub(r"(ij-\d)-[a-z0-9*]+", r"\1-*", message), kind)] += n
        return result

    assert plain(ours) == plain(theirs)


async def test_cron_job(cluster: Cluster, golden: Path) -> None:
    namespace = "ctl-cron"
    await cluster.namespace(namespace)
    template = {"spec": {"containers": [{"name": "c", "image": "done"}], "restartPolicy": "Never"}}
    spec = {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": template}}}
    if datetime.now(UTC).second > 45:  # one minute is recorded: do not begin at the end of one
        await asyncio.sleep(61 - datetime.now(UTC).second)
    await cluster.client.create(CRON_JOBS, {"metadata": {"name": "cron"}, "spec": spec}, namespace)
    before = (datetime.now(UTC) - timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    due = {"status": {"lastScheduleTime": before}}  # this minute's run is due at once
    await cluster.client.patch(CRON_JOBS, "cron", due, namespace, subresource="status")

    async def done() -> bool:
        items = (await cluster.client.list(CRON_JOBS, namespace))["items"]
        return bool(items[0]["status"].get("lastSuccessfulTime")) and not items[0]["status"].get("active")

    await cluster.until(namespace, done)
    wanted = stage(golden, "cronjob", 0)
    minute = (await cluster.client.list(JOBS, namespace))["items"][0]["metadata"]["name"].removeprefix("cron-")

    async def ours(*kinds: str) -> list[Object]:
        text = json.dumps(await fetch(cluster, namespace, kinds)).replace(minute, "<minute1>")
        return json.loads(text)  # type: ignore[no-any-return]

    kinds = ("CronJob", "Job")
    compare(wanted, await ours(*kinds), kinds)

    def plain(events: list[Object]) -> Counter[tuple[str, ...]]:
        return Counter(
            (type_, reason, re.sub(r"cron-[*]-[a-z0-9*]+", "cron-*-*", message), kind)
            for (type_, reason, message, kind), n in said(events).items()
            for _ in range(n)
        )

    assert plain(await ours("Event")) == plain(wanted)


async def test_service_budget_and_quota(cluster: Cluster, golden: Path) -> None:
    namespace = "ctl-svc"
    await cluster.namespace(namespace)
    body = {
        "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": LABELS}, "template": template()},
    }
    await cluster.client.create(DEPLOYMENTS, body, namespace)
    service = {"metadata": {"name": "svc"}, "spec": {"selector": LABELS, "ports": [{"port": 80, "targetPort": 8080}]}}
    await cluster.client.create(SERVICES, service, namespace)
    budget = {"metadata": {"name": "pdb"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": LABELS}}}
    await cluster.client.create(POD_DISRUPTION_BUDGETS, budget, namespace)
    hard = {"count/deployments.apps": "4", "pods": "5", "requests.cpu": "2", "services": "3"}

    async def ready() -> bool:
        b = await cluster.client.get(POD_DISRUPTION_BUDGETS, "pdb", namespace)
        return bool(b["status"].get("currentHealthy") == 2)

    await cluster.until(namespace, ready)
    await cluster.client.create(RESOURCE_QUOTAS, {"metadata": {"name": "q"}, "spec": {"hard": hard}}, namespace)

    async def counted() -> bool:
        q = await cluster.client.get(RESOURCE_QUOTAS, "q", namespace)
        return bool((q.get("status") or {}).get("used", {}).get("pods") == "2")

    await cluster.until(namespace, counted)
    kinds = ("Service", "Endpoints", "EndpointSlice", "PodDisruptionBudget", "ResourceQuota")
    # Pods and sets are fetched for their random names, which the endpoints refer to.
    ours = await fetch(cluster, namespace, (*kinds, "Pod", "ReplicaSet"))
    compare(stage(golden, "service-pdb-quota", 0), ours, kinds)


async def test_namespace_and_garbage(cluster: Cluster, golden: Path) -> None:
    await cluster.namespace("ctl-ns")

    async def published() -> bool:
        return len((await cluster.client.list(CONFIG_MAPS, "ctl-ns"))["items"]) == 1

    await cluster.until("ctl-ns", published)
    kinds = ("ServiceAccount", "ConfigMap")
    ours = await fetch(cluster, "ctl-ns", kinds)
    for obj in ours:
        if obj["kind"] == "ConfigMap":
            assert "BEGIN CERTIFICATE" in obj["data"]["ca.crt"]
            obj["data"]["ca.crt"] = "*"
    compare(stage(golden, "namespace", 0), ours, kinds)
    held = {"metadata": {"name": "held", "finalizers": ["example.com/f"]}}
    await cluster.client.create(CONFIG_MAPS, held, "ctl-ns")
    await cluster.client.delete(NAMESPACES, "ctl-ns")

    async def waits() -> bool:
        n = await cluster.client.get(NAMESPACES, "ctl-ns")
        return len(n["status"].get("conditions") or ()) == 5

    await cluster.until("ctl-ns", waits)
    ours = [{"kind": "Namespace", "apiVersion": "v1", **(await cluster.client.get(NAMESPACES, "ctl-ns"))}]
    compare(stage(golden, "namespace", 1), ours, ("Namespace",))
    await cluster.client.patch(CONFIG_MAPS, "held", {"metadata": {"finalizers": None}}, "ctl-ns")

    async def gone() -> bool:
        try:
            await cluster.client.get(NAMESPACES, "ctl-ns")
        except StatusError as error:
            return error.code == 404
        return False

    await cluster.until("default", gone)
    namespace = "ctl-gc"
    await cluster.namespace(namespace)
    body = {
        "metadata": {"name": "gcd"},
        "spec": {"replicas": 2, "selector": {"matchLabels": LABELS}, "template": template()},
    }
    await cluster.client.create(DEPLOYMENTS, body, namespace)

    async def ready() -> bool:
        sets = (await cluster.client.list(REPLICA_SETS, namespace))["items"]
        return bool(sets[0]["status"].get("availableReplicas") == 2)

    await cluster.until(namespace, ready)
    await cluster.client.delete(DEPLOYMENTS, "gcd", namespace, propagation="Orphan")

    async def orphaned() -> bool:
        sets = (await cluster.client.list(REPLICA_SETS, namespace))["items"]
        return not sets[0]["metadata"].get("ownerReferences")

    await cluster.until(namespace, orphaned)
    kinds = ("ReplicaSet", "Pod")
    compare(stage(golden, "garbage-collection", 0), await fetch(cluster, namespace, kinds), kinds)
    name = (await cluster.client.list(REPLICA_SETS, namespace))["items"][0]["metadata"]["name"]
    await cluster.client.delete(REPLICA_SETS, name, namespace, propagation="Foreground")

    async def empty() -> bool:
        left = await fetch(cluster, namespace, ("ReplicaSet", "Pod"))
        return not left

    await cluster.until(namespace, empty)


async def test_autoscaler_without_metrics(cluster: Cluster, golden: Path) -> None:
    namespace = "ctl-hpa"
    await cluster.namespace(namespace)
    body = {
        "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": LABELS}, "template": template()},
    }
    await cluster.client.create(DEPLOYMENTS, body, namespace)
    for name, target in (("h", "web"), ("nt", "nope")):
        ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}
        cpu = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}
        metrics = [{"type": "Resource", "resource": cpu}]
        spec = {"scaleTargetRef": ref, "minReplicas": 1, "maxReplicas": 3, "metrics": metrics}
        await cluster.client.create(HORIZONTAL_POD_AUTOSCALERS, {"metadata": {"name": name}, "spec": spec}, namespace)

    async def told() -> bool:
        items = (await cluster.client.list(HORIZONTAL_POD_AUTOSCALERS, namespace))["items"]
        return all((i.get("status") or {}).get("conditions") for i in items)

    await cluster.until(namespace, told)
    wanted, kinds = stage(golden, "hpa", 0), ("HorizontalPodAutoscaler",)
    compare(wanted, await fetch(cluster, namespace, kinds), kinds)
    ours = said(await fetch(cluster, namespace, ("Event",)))
    assert {k for k in ours if k[3] == "HorizontalPodAutoscaler"} == {
        k for k in said(wanted) if k[3] == "HorizontalPodAutoscaler"
    }


async def test_certificates(cluster: Cluster, golden: Path) -> None:
    wanted = stage(golden, "certificates", 0)
    for obj in wanted:
        spec = {k: obj["spec"][k] for k in ("request", "signerName", "usages")}
        made = await cluster.client.create(
            CERTIFICATE_SIGNING_REQUESTS, {"metadata": {"name": obj["metadata"]["name"]}, "spec": spec}
        )
        approved = {"type": "Approved", "status": "True", "reason": "R"}
        await cluster.client.update(
            CERTIFICATE_SIGNING_REQUESTS, {**made, "status": {"conditions": [approved]}}, subresource="approval"
        )

    async def answered() -> bool:
        items = (await cluster.client.list(CERTIFICATE_SIGNING_REQUESTS))["items"]
        return all(i["status"].get("certificate") or len(i["status"].get("conditions", ())) > 1 for i in items)

    await cluster.until("default", answered)
    ours = await fetch(cluster, "", ("CertificateSigningRequest",))
    for obj in ours:
        if "certificate" in obj["status"]:
            assert b"BEGIN CERTIFICATE" in base64.b64decode(obj["status"]["certificate"])
            obj["status"]["certificate"] = "*"
    for obj in (*wanted, *ours):
        for field in ("extra", "groups", "username", "uid"):
            obj["spec"].pop(field, None)
    compare(wanted, ours, ("CertificateSigningRequest",))
