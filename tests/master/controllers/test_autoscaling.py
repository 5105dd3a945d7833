"""Autoscaling arithmetic, and the controller with figures from a stand-in metrics API; certificates and tokens."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.client.resources import DEPLOYMENTS, HORIZONTAL_POD_AUTOSCALERS, PODS, SECRETS
from longshore.master.controllers import certificates, hparules
from longshore.master.controllers.bootstraptokens import detached_signature

TOLERANCE = hparules.Tolerance()


def groups(ready: int, unready: int = 0, missing: int = 0) -> hparules.Groups:
    names = iter(f"p{i}" for i in range(100))
    take = lambda n: {next(names) for _ in range(n)}  # noqa: E731
    return hparules.Groups(take(ready), take(unready), take(missing), set())


@pytest.mark.parametrize(
    ("current", "group", "usage", "expected"),
    [
        (3, groups(3), 100, 6),  # twice the target
        (3, groups(3), 50, 3),  # on target
        (3, groups(3), 54, 3),  # within tolerance
        (4, groups(4), 10, 1),
        (4, groups(2, missing=2), 100, 4),  # the missing ones count as idle on the way up
        (4, groups(2, missing=2), 10, 4),  # and as at their request on the way down
        (3, groups(1, unready=2), 150, 3),
    ],
)
def test_replicas_from_utilization(current: int, group: hparules.Groups, usage: int, expected: int) -> None:
    figures = {n: hparules.Figure(usage * 10) for n in group.ready | group.unready}
    everyone = group.ready | group.unready | group.missing
    count, _ = hparules.from_ratio(current, group, figures, dict.fromkeys(everyone, 1000), 50.0, TOLERANCE)
    assert count == expected


@given(st.integers(1, 50), st.integers(0, 5000), st.integers(1, 1000))
def test_scaling_goes_in_the_direction_of_the_figures(current: int, usage: int, target: int) -> None:
    group = groups(min(current, 50))
    figures = {n: hparules.Figure(usage) for n in group.ready}
    count, ratio = hparules.from_ratio(len(group.ready), group, figures, None, target, TOLERANCE)
    if ratio > 1.1:
        assert count > len(group.ready)
    elif ratio < 0.9:
        assert count <= len(group.ready)


def test_behaviour_limits_a_step() -> None:
    up = hparules.DEFAULT_UP
    assert hparules.up_limit(up, 3, [], [], 100.0) == 7  # four pods, or twice as many
    assert hparules.up_limit(up, 10, [], [], 100.0) == 20
    recent = [hparules.Change(4, 95.0)]
    assert hparules.up_limit(up, 7, recent, [], 100.0) == 7
    one = {"selectPolicy": "Min", "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}
    assert hparules.down_limit(one, 5, [], [], 100.0) == 4
    assert hparules.down_limit({"selectPolicy": "Disabled"}, 5, [], [], 100.0) == 5


async def test_a_deployment_is_scaled(manager: Any) -> None:
    api = manager.api
    usage = {"cpu": "900m"}
    original = api.call

    async def call(method: str, path: str, query: Any = None, body: Any = None, **rest: Any) -> Any:
        if path.startswith("/apis/metrics.k8s.io"):
            pods = [p["metadata"]["name"] for p in api.all(PODS)]
            containers = [{"name": "c", "usage": usage}]
            return {
                "items": [
                    {"metadata": {"name": n}, "timestamp": "2030-01-01T00:00:00Z", "containers": containers}
                    for n in pods
                ]
            }
        if path.endswith("/scale") and method == "GET":
            d = api.all(DEPLOYMENTS)[0]
            meta = {"name": "web", "namespace": "default"}
            return {"metadata": meta, "spec": {"replicas": d["spec"]["replicas"]}, "status": {"selector": "a=b"}}
        return await original(method, path, query, body, **rest)

    api.call = call
    api.put(DEPLOYMENTS, {"metadata": {"name": "web"}, "spec": {"replicas": 2}})
    for i in range(2):
        container = {"name": "c", "resources": {"requests": {"cpu": "1"}}}
        made = api.put(
            PODS,
            {"metadata": {"name": f"p{i}", "labels": {"a": "b"}}, "spec": {"containers": [container]}, "status": {}},
        )
        manager.set_pod(made)
        made["status"]["startTime"] = "2020-01-01T00:00:00Z"
        api.put(PODS, made)
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    metric = {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 30}},
    }
    spec = {"scaleTargetRef": ref, "minReplicas": 1, "maxReplicas": 5, "metrics": [metric]}
    await manager.start("horizontal-pod-autoscaler-controller")
    await api.create(HORIZONTAL_POD_AUTOSCALERS, {"metadata": {"name": "h", "namespace": "default"}, "spec": spec})
    await manager.settle(lambda: api.all(DEPLOYMENTS)[0]["spec"]["replicas"] == 5, pods=False)
    await manager.settle(lambda: api.all(HORIZONTAL_POD_AUTOSCALERS)[0]["status"]["desiredReplicas"] == 5, pods=False)
    status = api.all(HORIZONTAL_POD_AUTOSCALERS)[0]["status"]
    assert status["currentMetrics"][0]["resource"]["current"] == {"averageUtilization": 90, "averageValue": "900m"}
    assert {c["type"]: c["reason"] for c in status["conditions"]} == {
        "AbleToScale": "SucceededRescale",
        "ScalingActive": "ValidMetricFound",
        "ScalingLimited": "TooManyReplicas",
    }
    event = "SuccessfulRescale: New size: 5; reason: cpu resource utilization (percentage of request) above target"
    await manager.settle(lambda: event in manager.events(), pods=False)


def test_signers_refuse_what_does_not_fit() -> None:
    class Plain:
        common_name, organizations = "system:node:n", ["system:nodes"]
        dns: list[str] = []
        addresses: list[str] = []
        emails: list[str] = []
        uris: list[str] = []

    request: Any = Plain()
    assert not certificates.unfit(request, certificates.KUBELET_CLIENT, {"client auth", "digital signature"})
    assert certificates.unfit(request, certificates.KUBELET_CLIENT, {"server auth"})
    assert (
        certificates.unfit(request, certificates.KUBELET_SERVING, {"server auth"})
        == "DNS or IP subjectAltName is required"
    )
    assert not certificates.unfit(request, certificates.CLIENT, {"client auth"})
    request.organizations = []
    assert (
        certificates.unfit(request, certificates.KUBELET_SERVING, set()) == "subject organization is not system:nodes"
    )


async def test_expired_bootstrap_tokens_go(manager: Any) -> None:
    await manager.start("token-cleaner-controller")
    for name, expiration in (("old", "2020-01-01T00:00:00Z"), ("new", "2090-01-01T00:00:00Z")):
        data = {"expiration": base64.b64encode(expiration.encode()).decode()}
        meta = {"name": f"bootstrap-token-{name}", "namespace": "kube-system"}
        manager.api.put(SECRETS, {"metadata": meta, "type": "bootstrap.kubernetes.io/token", "data": data})
    await manager.settle(lambda: len(manager.api.all(SECRETS)) == 1, pods=False)
    header, empty, mac = detached_signature("kubeconfig", "abcdef", "0123456789abcdef").split(".")
    assert header and not empty and mac
