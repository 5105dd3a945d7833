"""A manager against the API in memory, and hands that stand for scheduler and kubelet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from fake_api import FakeAPI
from longshore.client.resources import EVENTS, PODS
from longshore.master.controllers.base import Context, Controller
from longshore.master.controllers.options import Options
from longshore.master.controllers.registry import NAMES


class Manager:
    """Runs some controllers against one FakeAPI."""

    def __init__(self) -> None:
        self.api = FakeAPI()
        self.options = Options(service_accounts=False)
        self.context: Context | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.controllers: dict[str, Controller] = {}

    async def start(self, *names: str, options: Options | None = None) -> None:
        self.context = Context(self.api, options or self.options)
        for name in names:
            controller = NAMES[name](self.context)
            self.controllers[name] = controller
        self.context.informers.start()
        self.tasks = [asyncio.create_task(c.run()) for c in self.controllers.values()]
        await self.context.informers.wait_synced()

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.context is not None:
            await self.context.stop()
        self.tasks, self.controllers, self.context = [], {}, None

    def run_pods(self, *, ready: bool = True, phase: str = "Running", namespace: str = "default") -> int:
        """What a kubelet would do: start what is pending, finish what is being deleted."""
        changed = 0
        for pod in self.api.all(PODS, namespace):
            if pod["metadata"].get("deletionTimestamp"):
                self.api.drop(PODS, pod["metadata"]["name"], namespace)
                changed += 1
            elif (pod.get("status") or {}).get("phase") == "Pending":
                self.set_pod(pod, phase, ready)
                changed += 1
        return changed

    def set_pod(self, pod: dict[str, Any], phase: str = "Running", ready: bool = True) -> None:
        number = int(pod["metadata"]["uid"].split("-")[1])
        ip = f"10.244.{number // 250}.{number % 250 + 1}"
        status = "True" if ready else "False"
        pod["status"] = {
            **pod["status"],
            "phase": phase,
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": "2020-01-01T00:00:00Z"}],
        }
        pod["spec"].setdefault("nodeName", "n1")
        self.api.put(PODS, pod)

    async def settle(self, condition: Callable[[], Any], *, pods: bool = True, seconds: float = 10.0) -> Any:
        """Play kubelet until condition() holds."""
        async with asyncio.timeout(seconds):
            while True:
                if pods:
                    self.run_pods()
                try:
                    result = condition()
                except (KeyError, IndexError, StopIteration, TypeError):
                    result = None
                if result:
                    return result
                await asyncio.sleep(0.005)

    def events(self) -> list[str]:
        return [f"{e['reason']}: {e['message']}" for e in self.api.all(EVENTS)]


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    found = Manager()
    yield found
    await found.stop()
