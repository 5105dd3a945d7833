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
from longshore.master.controllers.hpametrics import MetricsError, request_of

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
    count, _, _ = hparules.from_ratio(current, group, figures, dict.fromkeys(everyone, 1000), 50, TOLERANCE)
    assert count == expected


@pytest.mark.parametrize(
    ("values", "requests", "target", "current", "expected", "present", "average"),
    [
        # Percentages are cut off before they are compared: 55.9 % of 50 is 1.1, not more.
        ([559, 559], 1000, 50, 2, 2, 55, 559),
        ([560, 560], 1000, 50, 2, 3, 56, 560),
        ([449, 449], 1000, 50, 2, 2, 44, 449),  # ceil(0.88 * 2)
        # ... and averages, too: 110 of 100.
        ([110, 111], None, 100, 2, 2, 110, 110),
        ([300, 500, 700], None, 300, 3, 5, 500, 500),
        ([10, 10, 10, 10, 10], None, 15, 5, 4, 10, 10),
        ([0, 0], None, 15, 2, 0, 0, 0),
    ],
)
def test_whole_numbers_decide(
    values: list[int], requests: int | None, target: int, current: int, expected: int, present: int, average: int
) -> None:
    group = groups(len(values))
    figures = {name: hparules.Figure(value) for name, value in zip(sorted(group.ready), values, strict=True)}
    asked = None if requests is None else dict.fromkeys(group.ready, requests)
    assert hparules.from_ratio(current, group, figures, asked, target, TOLERANCE) == (expected, present, average)


def test_pods_without_figures_say_nothing() -> None:
    with pytest.raises(hparules.NoFiguresError, match="did not receive metrics for targeted pods"):
        hparules.from_ratio(2, groups(0, unready=2), {}, None, 100, TOLERANCE)
    with pytest.raises(hparules.NoFiguresError, match="no metrics returned matched known pods"):
        hparules.from_ratio(1, groups(1), {"p0": hparules.Figure(5)}, {"other": 100}, 50, TOLERANCE)


@pytest.mark.parametrize(
    ("ready", "unready", "missing", "usage", "target", "expected"),
    [
        (3, 0, 1, 400, 300, 4),  # a missing one at nothing brings it down to 300: nothing to do
        (3, 0, 1, 700, 300, 7),
        (3, 0, 1, 100, 300, 2),  # on the way down it counts at the target: 150 on average
        (2, 0, 2, 250, 300, 4),
        (1, 2, 0, 300, 200, 3),  # unready ones count at nothing on the way up only
        (2, 1, 0, 100, 300, 1),
    ],
)
def test_who_is_missing_or_unready(
    ready: int, unready: int, missing: int, usage: int, target: int, expected: int
) -> None:
    group = groups(ready, unready, missing)
    figures = {name: hparules.Figure(usage) for name in group.ready | group.unready}
    count, _, _ = hparules.from_ratio(ready + unready + missing, group, figures, None, target, TOLERANCE)
    assert count == expected


def test_without_behaviour_a_step_is_at_most_double_or_four() -> None:
    limited = [hparules.plain_limits(current, 2, 30, wanted)[:2] for current, wanted in
               ((1, 9), (3, 9), (10, 25), (20, 99), (5, 1), (5, 7))]  # fmt: skip
    assert limited == [
        (4, "ScaleUpLimit"), (6, "ScaleUpLimit"), (20, "ScaleUpLimit"), (30, "TooManyReplicas"),
        (2, "TooFewReplicas"), (7, "DesiredWithinRange"),
    ]  # fmt: skip


def test_what_a_pod_requests() -> None:
    def made(whole: Any = None, **containers: str) -> Any:
        entries = [{"name": n, "resources": {"requests": {"cpu": v} if v else {}}} for n, v in containers.items()]
        spec = {"containers": entries, **({"resources": {"requests": whole}} if whole else {})}
        return {"metadata": {"name": "p"}, "spec": spec}

    assert request_of(made(a="1", b="500m"), "cpu", "") == 1500
    assert request_of(made(a="1", b="500m"), "cpu", "b") == 500
    assert request_of(made({"cpu": "3"}, a="1", b=""), "cpu", "") == 3000
    assert request_of(made({"cpu": "3"}, a="1"), "cpu", "a") == 1000  # a container's own counts before the pod's
    for pod, container, words in (
        (made(a="1", b=""), "", "missing request for cpu in container b of Pod p"),
        (made(a="1"), "x", "container x not found in Pod p"),
        (made({"memory": "1Gi"}, a=""), "", "missing pod-level request for cpu in Pod p"),
    ):
        with pytest.raises(MetricsError, match=words):
            request_of(pod, "cpu", container)


@given(st.integers(1, 50), st.integers(0, 5000), st.integers(1, 1000))
def test_scaling_goes_in_the_direction_of_the_figures(current: int, usage: int, target: int) -> None:
    group = groups(min(current, 50))
    figures = {n: hparules.Figure(usage) for n in group.ready}
    count, present, _ = hparules.from_ratio(len(group.ready), group, figures, None, target, TOLERANCE)
    if present > 1.1 * target:
        assert count > len(group.ready)
    elif present < 0.9 * target:
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
    spec = {"scaleTargetRef": ref, "minReplicas": 1, "maxReplicas": 4, "metrics": [metric]}
    await manager.start("horizontal-pod-autoscaler-controller")
    await api.create(HORIZONTAL_POD_AUTOSCALERS, {"metadata": {"name": "h", "namespace": "default"}, "spec": spec})
    await manager.settle(lambda: api.all(DEPLOYMENTS)[0]["spec"]["replicas"] == 4, pods=False)
    await manager.settle(lambda: api.all(HORIZONTAL_POD_AUTOSCALERS)[0]["status"]["desiredReplicas"] == 4, pods=False)
    status = api.all(HORIZONTAL_POD_AUTOSCALERS)[0]["status"]
    assert status["currentMetrics"][0]["resource"]["current"] == {"averageUtilization": 90, "averageValue": "900m"}
    assert {c["type"]: c["reason"] for c in status["conditions"]} == {
        "AbleToScale": "SucceededRescale",
        "ScalingActive": "ValidMetricFound",
        "ScalingLimited": "TooManyReplicas",
    }
    event = "SuccessfulRescale: New size: 4; reason: cpu resource utilization (percentage of request) above target"
    await manager.settle(lambda: event in manager.events(), pods=False)
    # Another autoscaler of the same pods: neither may act.
    await api.create(HORIZONTAL_POD_AUTOSCALERS, {"metadata": {"name": "i", "namespace": "default"}, "spec": spec})
    words = "AmbiguousSelector: pods by selector a=b are controlled by multiple HPAs: [{h default} {i default}]"
    await manager.settle(lambda: words in manager.events(), pods=False)
    second = next(o for o in api.all(HORIZONTAL_POD_AUTOSCALERS) if o["metadata"]["name"] == "i")
    assert ("ScalingActive", "AmbiguousSelector") in {(c["type"], c["reason"]) for c in second["status"]["conditions"]}


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
