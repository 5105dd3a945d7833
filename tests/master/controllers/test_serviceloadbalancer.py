"""Load balancer addresses: given once, kept, given back; other implementations' Services left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from longshore.client.resources import SERVICES
from longshore.master.controllers.serviceloadbalancer import addresses_of

Object = dict[str, Any]


def service(name: str, **spec: Any) -> Object:
    return {"metadata": {"namespace": "default", "name": name}, "spec": {"type": "LoadBalancer", **spec}}


async def eventually(test: Callable[[], bool]) -> None:
    for _ in range(200):
        if test():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come true")


async def test_addresses(manager: Any) -> None:
    options = replace(manager.options, load_balancer_pool=("192.0.2.0/30",))
    await manager.start("service-lb-controller", options=options)
    api = manager.api

    def ips(name: str) -> list[str]:
        found = [s for s in api.all(SERVICES, "default") if s["metadata"]["name"] == name]
        return addresses_of(found[0]) if found else []

    await api.create(SERVICES, service("a"))
    await api.create(SERVICES, service("b", loadBalancerIP="192.0.2.2"))
    await api.create(SERVICES, service("foreign", loadBalancerClass="example.com/x"))
    await api.create(SERVICES, service("plain", type="ClusterIP"))
    await eventually(lambda: ips("a") == ["192.0.2.1"] and ips("b") == ["192.0.2.2"])
    await api.create(SERVICES, service("late"))
    await asyncio.sleep(0.05)
    assert ips("late") == [] and ips("foreign") == [] and ips("plain") == []
    await api.delete(SERVICES, "a", "default")
    await eventually(lambda: ips("late") == ["192.0.2.1"])
    await api.patch(SERVICES, "b", {"spec": {"type": "ClusterIP"}}, "default")
    await eventually(lambda: ips("b") == [])
    await api.create(SERVICES, service("again"))
    await eventually(lambda: ips("again") == ["192.0.2.2"])
    filled = service("filled")
    filled["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}
    await api.create(SERVICES, filled)
    await asyncio.sleep(0.05)
    assert ips("filled") == ["203.0.113.1"]
