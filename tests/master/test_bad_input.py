"""What can never work is told by a condition and an event, and asked for ever more seldom: the real manager, counted."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from test_golden_controllers import Cluster, cluster  # noqa: F401

from longshore.client.resources import (
    DAEMON_SETS,
    DEPLOYMENTS,
    EVENTS,
    HORIZONTAL_POD_AUTOSCALERS,
    JOBS,
    NAMESPACES,
    REPLICA_SETS,
    REPLICATION_CONTROLLERS,
    RESOURCE_QUOTAS,
    STATEFUL_SETS,
    Resource,
)

Object = dict[str, Any]
WEBHOOKS = Resource(
    "admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", False
)


def workloads() -> list[tuple[Any, Object]]:
    """One of each kind that makes pods."""

    def spec(name: str, **more: Any) -> Object:
        template = {"metadata": {"labels": {"a": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}
        return {"metadata": {"name": name}, "spec": {"template": template, **more}}

    chosen = lambda name: {"selector": {"matchLabels": {"a": name}}}  # noqa: E731
    job = spec("job", completions=3, parallelism=3)
    job["spec"]["template"]["spec"]["restartPolicy"] = "Never"
    return [
        (DEPLOYMENTS, spec("web", replicas=3, **chosen("web"))),
        (STATEFUL_SETS, spec("sts", replicas=3, serviceName="s", **chosen("sts"))),
        (DAEMON_SETS, spec("ds", **chosen("ds"))),
        (REPLICATION_CONTROLLERS, spec("rc", replicas=3, selector={"a": "rc"})),
        (JOBS, job),
    ]


async def requests(cluster: Cluster) -> Counter[str]:  # noqa: F811
    """Writes that the API server has answered so far, by verb, resource and code; leases left out."""
    text = (await cluster.client.raw("GET", "/metrics")).decode()
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith("apiserver_request_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels["verb"] not in ("GET", "LIST", "WATCH") and labels["resource"] != "leases":
                found[f"{labels['verb']} {labels['resource']} {labels['code']}"] += int(float(line.rpartition(" ")[2]))
    return found


def condition(obj: Object, kind: str) -> Object:
    return next((c for c in obj["status"].get("conditions") or () if c["type"] == kind), {})


async def refused(cluster: Cluster, namespace: str, word: str) -> None:  # noqa: F811
    """Every workload is told that its pods are refused, and the API server is left in peace."""
    for resource, body in workloads():
        await cluster.client.create(resource, body, namespace)
    expected = {"Deployment": "ReplicaSet"}
    failing = {expected.get(r.kind, r.kind) for r, _ in workloads()}
    async with asyncio.timeout(30):
        while True:
            events = (await cluster.client.list(EVENTS, namespace))["items"]
            told = {
                e["involvedObject"]["kind"] for e in events if e["reason"] == "FailedCreate" and word in e["message"]
            }
            owners = [
                *(await cluster.client.list(DEPLOYMENTS, namespace))["items"],
                *(await cluster.client.list(REPLICA_SETS, namespace))["items"],
                *(await cluster.client.list(REPLICATION_CONTROLLERS, namespace))["items"],
            ]
            conditions = [condition(o, "ReplicaFailure") for o in owners]
            if told >= failing and len(owners) == 3 and all(c.get("reason") == "FailedCreate" for c in conditions):
                break
            await asyncio.sleep(0.1)
    assert all(word in c["message"] for c in conditions)
    await asyncio.sleep(1)
    before = await requests(cluster)
    await asyncio.sleep(3)
    more = (await requests(cluster)) - before
    # A try and its event for each of five workloads, once or twice in that time; never tens a second.
    assert more.total() < 60, more


async def test_a_template_that_is_never_admitted(cluster: Cluster) -> None:  # noqa: F811
    await cluster.namespace("strict")
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await cluster.client.patch(NAMESPACES, "strict", labels)
    await refused(cluster, "strict", "violates PodSecurity")


async def test_a_quota_that_is_used_up(cluster: Cluster) -> None:  # noqa: F811
    await cluster.namespace("full")
    await cluster.client.create(RESOURCE_QUOTAS, {"metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}}, "full")
    async with asyncio.timeout(20):
        while "hard" not in ((await cluster.client.get(RESOURCE_QUOTAS, "q", "full")).get("status") or {}):
            await asyncio.sleep(0.05)
    await refused(cluster, "full", "exceeded quota: q")


async def test_a_webhook_that_does_not_answer(cluster: Cluster) -> None:  # noqa: F811
    await cluster.namespace("hooked")
    hook = {
        "name": "no.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "hooked"}},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    await cluster.client.create(WEBHOOKS, {"metadata": {"name": "no"}, "webhooks": [hook]})
    await refused(cluster, "hooked", "failed calling webhook")


async def test_autoscalers_without_a_target(cluster: Cluster) -> None:  # noqa: F811
    await cluster.namespace("scaled")
    wanted = {
        "absent": ("apps/v1", "Deployment", 'deployments.apps "nope" not found'),
        "unknown": ("no/v1", "What", 'no matches for kind "What" in version "no/v1"'),
    }
    for name, (version, kind, _) in wanted.items():
        spec = {"scaleTargetRef": {"apiVersion": version, "kind": kind, "name": "nope"}, "maxReplicas": 3}
        await cluster.client.create(HORIZONTAL_POD_AUTOSCALERS, {"metadata": {"name": name}, "spec": spec}, "scaled")
    async with asyncio.timeout(30):
        while True:
            items = (await cluster.client.list(HORIZONTAL_POD_AUTOSCALERS, "scaled"))["items"]
            found = {i["metadata"]["name"]: condition({"status": {}, **i}, "AbleToScale") for i in items}
            events = (await cluster.client.list(EVENTS, "scaled"))["items"]
            told = {e["involvedObject"]["name"] for e in events if e["reason"] == "FailedGetScale"}
            if all(found.values()) and told == set(wanted):
                break
            await asyncio.sleep(0.1)
    for name, (_, _, words) in wanted.items():
        why = found[name]
        assert (why["status"], why["reason"]) == ("False", "FailedGetScale") and words in why["message"]
