"""Scheduler extenders: somebody else's say over HTTP in filtering, scoring, preemption and binding.

Source: k8s.io/kube-scheduler extender/v1 (field names as Go writes them) and config/v1 Extender, described behaviour.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from longshore.client.store import Object
from longshore.machinery.http import Client, client_context
from longshore.master.scheduler.framework import Code, Status
from longshore.master.scheduler.nodes import NodeRow
from longshore.master.scheduler.podinfo import PodInfo

MAX_PRIORITY = 10
ANSWER_LIMIT = 32 << 20
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


class ExtenderError(Exception):
    """The extender did not answer, or not well."""


def seconds(text: Any, default: float) -> float:
    """A Go duration in seconds."""
    parts = _DURATION.findall(str(text or ""))
    if not parts:
        return default
    return sum(float(n) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[u] for n, u in parts)


class Extender:
    """One extender of the configuration."""

    def __init__(self, document: Object) -> None:
        self.prefix: str = str(document.get("urlPrefix") or "").rstrip("/")
        self.filter_verb: str = document.get("filterVerb") or ""
        self.prioritize_verb: str = document.get("prioritizeVerb") or ""
        self.preempt_verb: str = document.get("preemptVerb") or ""
        self.bind_verb: str = document.get("bindVerb") or ""
        self.weight = int(document.get("weight") or 1)
        self.names_only = bool(document.get("nodeCacheCapable"))
        self.ignorable = bool(document.get("ignorable"))
        self.timeout = seconds(document.get("httpTimeout"), 30.0)
        self.resources = frozenset(r["name"] for r in document.get("managedResources") or ())
        tls = document.get("tlsConfig") or {}
        context = None
        if self.prefix.startswith("https:"):
            context = client_context(
                ca=tls.get("caFile"),
                certificate=tls.get("certFile"),
                key=tls.get("keyFile"),
                verify=not tls.get("insecure"),
            )
        self._http = Client(ssl=context)

    def wants(self, pod: PodInfo) -> bool:
        """Whether the pod is any of this extender's business."""
        if not self.resources:
            return True
        containers = [*(pod.pod["spec"].get("containers") or ()), *(pod.pod["spec"].get("initContainers") or ())]
        for container in containers:
            resources = container.get("resources") or {}
            if self.resources & ({*(resources.get("requests") or ())} | {*(resources.get("limits") or ())}):
                return True
        return False

    async def _post(self, verb: str, body: Object) -> Any:
        url = f"{self.prefix}/{verb}"
        headers = [("content-type", "application/json"), ("accept", "application/json")]
        try:
            response = await self._http.request(
                "POST", url, headers=headers, body=orjson.dumps(body), timeout=self.timeout
            )
            data = await response.read(ANSWER_LIMIT)
        except (OSError, TimeoutError) as error:
            raise ExtenderError(f"extender {self.prefix}: {error or 'timed out'}") from error
        if response.status != 200:
            raise ExtenderError(f"failed {verb} with extender at URL {self.prefix}, code {response.status}")
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise ExtenderError(f"extender {self.prefix}: the answer is not JSON") from error

    def _arguments(self, pod: PodInfo, rows: list[NodeRow]) -> Object:
        if self.names_only:
            return {"Pod": pod.pod, "Nodes": None, "NodeNames": [r.name for r in rows]}
        return {"Pod": pod.pod, "Nodes": {"metadata": {}, "items": [r.node for r in rows]}, "NodeNames": None}

    async def filter(self, pod: PodInfo, rows: list[NodeRow]) -> tuple[list[NodeRow], dict[str, Status]]:
        """(rows that are left, why the others are not). Raises ExtenderError."""
        if not self.filter_verb:
            return rows, {}
        answer = await self._post(self.filter_verb, self._arguments(pod, rows))
        if not isinstance(answer, dict):
            raise ExtenderError(f"extender {self.prefix}: the answer is no filter result")
        if answer.get("Error"):
            raise ExtenderError(str(answer["Error"]))
        if self.names_only:
            left = set(answer.get("NodeNames") or ())
        else:
            left = {n["metadata"]["name"] for n in (answer.get("Nodes") or {}).get("items") or ()}
        refused = {
            name: Status(Code.UNSCHEDULABLE, (str(why),)) for name, why in (answer.get("FailedNodes") or {}).items()
        }
        for name, why in (answer.get("FailedAndUnresolvableNodes") or {}).items():
            refused[name] = Status(Code.UNRESOLVABLE, (str(why),))
        return [r for r in rows if r.name in left], refused

    async def prioritize(self, pod: PodInfo, rows: list[NodeRow]) -> dict[str, float]:
        """Scores by node, weighted, on the scale of the plugins'. Raises ExtenderError."""
        if not self.prioritize_verb:
            return {}
        answer = await self._post(self.prioritize_verb, self._arguments(pod, rows))
        if not isinstance(answer, list):
            raise ExtenderError(f"extender {self.prefix}: the answer is no list of scores")
        factor = self.weight * 100 / MAX_PRIORITY
        return {str(e.get("Host")): float(e.get("Score") or 0) * factor for e in answer if isinstance(e, dict)}

    async def preempt(
        self, pod: PodInfo, victims: dict[str, tuple[list[PodInfo], int]]
    ) -> dict[str, tuple[list[str], int]]:
        """Which nodes stay candidates, with whose departure: by node, the uids of pods and how many budgets they break.

        victims: what the scheduler would do, by node. Raises ExtenderError.
        """
        if self.names_only:
            known = {n: [{"UID": v.uid} for v in pods] for n, (pods, _) in victims.items()}
            field = "NodeNameToMetaVictims"
        else:
            known = {n: [v.pod for v in pods] for n, (pods, _) in victims.items()}
            field = "NodeNameToVictims"
        told = {n: {"Pods": pods, "NumPDBViolations": victims[n][1]} for n, pods in known.items()}
        answer = await self._post(self.preempt_verb, {"Pod": pod.pod, field: told})
        if not isinstance(answer, dict):
            raise ExtenderError(f"extender {self.prefix}: the answer is no preemption result")
        left = answer.get("NodeNameToMetaVictims") or {}
        return {
            str(node): ([str(p.get("UID")) for p in entry.get("Pods") or ()], int(entry.get("NumPDBViolations") or 0))
            for node, entry in left.items()
            if isinstance(entry, dict)
        }

    async def bind(self, pod: PodInfo, node: str) -> Status | None:
        """Bind the pod in our place."""
        body = {"PodName": pod.name, "PodNamespace": pod.namespace, "PodUID": pod.uid, "Node": node}
        try:
            answer = await self._post(self.bind_verb, body)
        except ExtenderError as error:
            return Status.error(str(error))
        problem = answer.get("Error") if isinstance(answer, dict) else "the answer is no binding result"
        return Status.error(str(problem)) if problem else None
