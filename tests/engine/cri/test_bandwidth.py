"""Bandwidth annotations: what is in force on the pod's interface, and what is refused."""

from __future__ import annotations

import subprocess

import pytest

from longshore.engine.cri import bandwidth
from longshore.engine.cri.network import host_interface
from longshore.machinery.grpc import RpcError

from .conftest import Engine


def test_rates() -> None:
    assert bandwidth.limits({}) == (0, 0)
    assert bandwidth.limits({bandwidth.INGRESS: "10M", bandwidth.EGRESS: "1Ki"}) == (10_000_000, 1024)
    for text in ("1", "2P", "fast", ""):
        with pytest.raises(bandwidth.BadBandwidth):
            bandwidth.limits({bandwidth.EGRESS: text})


@pytest.mark.root
async def test_limits_are_in_force(engine: Engine) -> None:
    pod = await engine.run_pod("narrow", annotations={bandwidth.INGRESS: "10M", bandwidth.EGRESS: "2M"})
    outer = subprocess.run(
        ["tc", "qdisc", "show", "dev", host_interface(pod[0])], capture_output=True, text=True, check=True
    ).stdout
    assert "tbf" in outer and "rate 10Mbit" in outer
    namespace = engine.server.sandboxes.folder(pod[0]) / "net"
    inner = subprocess.run(
        ["nsenter", f"--net={namespace}", "tc", "qdisc", "show", "dev", "eth0"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "tbf" in inner and "rate 2Mbit" in inner
    container = await engine.run(pod, "main", ["sleep", "1000"])
    assert "eth0" in await engine.sh(container, "ip addr")


@pytest.mark.root
async def test_a_rate_that_makes_no_sense_is_refused(engine: Engine) -> None:
    with pytest.raises(RpcError) as caught:
        await engine.run_pod("odd", annotations={bandwidth.INGRESS: "1"})
    assert "unreasonably small" in (caught.value.message or "")
    assert not (await engine.call("ListPodSandbox")).items
