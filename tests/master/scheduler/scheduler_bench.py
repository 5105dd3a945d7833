"""A scheduler against the API in memory."""

from __future__ import annotations

import asyncio
from typing import Any

from fake_api import FakeAPI
from longshore.client.informer import InformerFactory
from longshore.client.resources import EVENTS, NODES, PODS
from longshore.master.scheduler.configuration import Configuration
from longshore.master.scheduler.core import Scheduler
from longshore.master.scheduler.extender import Extender

Object = dict[str, Any]


def node(name: str, *, cpu: str = "4", memory: str = "8Gi", pods: str = "110", **fields: Any) -> Object:
    labels = {"kubernetes.io/hostname": name, **fields.pop("labels", {})}
    capacity = {"cpu": cpu, "memory": memory, "pods": pods, **fields.pop("more", {})}
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": fields.pop("spec", {}),
        "status": {"capacity": capacity, "allocatable": capacity, **fields},
    }


def pod(name: str, *, cpu: str = "", memory: str = "", labels: dict[str, str] | None = None, **spec: Any) -> Object:
    requests = {k: v for k, v in (("cpu", cpu), ("memory", memory)) if v}
    container: Object = {"name": "c", "image": "i:1", "resources": {"requests": requests} if requests else {}}
    container.update(spec.pop("container", {}))
    body: Object = {"containers": [container], "schedulerName": "default-scheduler", **spec}
    meta: Object = {"name": name, "namespace": "default"}
    if labels:
        meta["labels"] = labels
    return {"metadata": meta, "spec": body, "status": {"phase": "Pending"}}


class Bench:
    """One scheduler and its API."""

    def __init__(self) -> None:
        self.api = FakeAPI()
        self.scheduler: Scheduler | None = None
        self.tasks: list[asyncio.Task[Any]] = []
        self.factory: InformerFactory | None = None

    async def start(self, configuration: Configuration | None = None, *, backoff: float = 0.02) -> Scheduler:
        self.factory = InformerFactory(self.api)
        settings = configuration or Configuration()
        self.scheduler = Scheduler(
            self.api,
            self.factory,
            settings.profiles,
            extenders=[Extender(e) for e in settings.extenders],
            initial_backoff=backoff,
            max_backoff=backoff,
        )
        self.factory.start()
        self.tasks.append(asyncio.create_task(self.scheduler.run()))
        await self.factory.wait_synced()
        return self.scheduler

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.factory is not None:
            await self.factory.stop()

    def nodes(self, *nodes: Object) -> None:
        for each in nodes:
            self.api.put(NODES, each)

    def pods(self, *pods: Object) -> None:
        for each in pods:
            self.api.put(PODS, each)

    def get(self, name: str) -> Object:
        return next(p for p in self.api.all(PODS) if p["metadata"]["name"] == name)

    def where(self, name: str) -> str:
        return self.get(name)["spec"].get("nodeName", "")

    def why(self, name: str) -> str:
        conditions = self.get(name)["status"].get("conditions") or []
        return next((c["message"] for c in conditions if c["type"] == "PodScheduled" and c["status"] == "False"), "")

    def events(self) -> list[str]:
        return [f"{e['reason']}: {e['note']}" for e in self.api.all(EVENTS)]
