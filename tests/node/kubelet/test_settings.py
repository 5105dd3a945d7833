"""What a KubeletConfiguration sets, and what of it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longshore.machinery import cgroups
from longshore.node.kubelet import settings, swapping
from longshore.node.kubelet.config import Config
from longshore.wire.cri import cri

FILE = b"""
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
maxPods: 5
shutdownGracePeriod: 1m
shutdownGracePeriodCriticalPods: 10s
evictionSoft: {memory.available: 300Mi}
evictionSoftGracePeriod: {memory.available: 1m30s}
containerLogMaxSize: 1Mi
staticPodPath: /etc/pods
allowedUnsafeSysctls: ["kernel.msg*"]
syncFrequency: 1m
"""


def config() -> Config:
    return Config("n", ["127.0.0.1"], Path("/r"), Path("/l"))


def test_a_file(caplog: pytest.LogCaptureFixture) -> None:
    found = config()
    settings.apply(found, settings.read(FILE))
    assert (found.max_pods, found.container_log_max_size, found.static_pods) == (5, 2**20, Path("/etc/pods"))
    assert found.shutdown_periods == [(0, 50.0), (2_000_000_000, 10.0)]
    assert found.eviction_soft == {"memory.available": "300Mi"}
    assert found.eviction_soft_grace == {"memory.available": 90.0}
    assert found.allowed_unsafe_sysctls == ["kernel.msg*"]
    assert "syncFrequency has no effect here" in caplog.text
    assert (found.image_gc_high_percent, found.image_gc_low_percent) == (85, 80)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"maxPod": 1}, 'strict decoding error: unknown field "maxPod"'),
        ({"maxPods": "many"}, "maxPods: must be a number"),
        ({"evictionHard": {"memory": "1"}}, "unknown eviction signal memory"),
        ({"evictionSoft": {"memory.available": "1Gi"}}, "grace period must be specified for the soft eviction threshold"),
        ({"imageGCHighThresholdPercent": 70}, r"\(80\) must be less than imageGCHighThresholdPercent \(70\)"),
        ({"imageGCHighThresholdPercent": 170}, "must be between 0 and 100, inclusive"),
        ({"shutdownGracePeriod": "1s", "shutdownGracePeriodCriticalPods": "2s"}, "shutdownGracePeriod 1s must be >="),
        ({"shutdownGracePeriod": "soon"}, 'time: invalid duration "soon"'),
        ({"shutdownGracePeriod": "1s", "shutdownGracePeriodByPodPriority": [{"priority": 1, "shutdownGracePeriodSeconds": 1}]}, "Cannot specify both"),
    ],
)  # fmt: skip
def test_what_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings.apply(config(), fields)


def test_another_file() -> None:
    with pytest.raises(ValueError, match="not a KubeletConfiguration"):
        settings.read(b"apiVersion: v1\nkind: Pod\n")


def test_swap_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    found = config()
    settings.apply(found, {"memorySwap": {"swapBehavior": "LimitedSwap"}})
    assert found.swap_behavior == "LimitedSwap"
    with pytest.raises(ValueError, match="must be one of"):
        settings.apply(config(), {"memorySwap": {"swapBehavior": "Unlimited"}})

    def container(request: str, limit: str = "") -> dict[str, Any]:
        limits = {"limits": {"memory": limit}} if limit else {}
        return {"name": "c", "resources": {"requests": {"memory": request}, **limits}}

    def given(one: dict[str, Any], behavior: str, **metadata: Any) -> tuple[int, str]:
        pod = {"metadata": {"uid": "u", **metadata}, "spec": {"containers": [one]}}
        linux = cri.LinuxContainerResources(memory_limit_in_bytes=400)
        swapping.limit(linux, pod, one, behavior, 1000)
        return linux.memory_swap_limit_in_bytes, linux.unified["memory.swap.max"]

    monkeypatch.setattr(swapping, "available", lambda: True)
    monkeypatch.setattr(swapping, "capacity", lambda: 500)
    monkeypatch.setattr(cgroups, "unified", lambda: False)
    assert given(container("200", "400"), "NoSwap") == (400, "")
    assert given(container("200", "400"), "LimitedSwap") == (500, "")
    assert given(container("400", "400"), "LimitedSwap") == (400, "")
    monkeypatch.setattr(cgroups, "unified", lambda: True)
    assert given(container("200", "400"), "LimitedSwap") == (0, "100")
    assert given(container("200", "400"), "NoSwap") == (0, "0")
    static = {"annotations": {"kubernetes.io/config.source": "file"}}
    assert given(container("200", "400"), "LimitedSwap", **static) == (0, "0")
    monkeypatch.setattr(swapping, "available", lambda: False)
    assert given(container("200", "400"), "LimitedSwap") == (0, "")
