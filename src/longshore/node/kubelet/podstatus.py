"""A pod's whole status, from the spec, the runtime, probes, hooks' failures and resizes.

Source: kubernetes pkg/kubelet/kubelet_pods.go (generateAPIPodStatus).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longshore.node.kubelet import podspec, resourcehealth, resources, status
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.devices import DeviceManager
from longshore.node.kubelet.dra import ClaimManager
from longshore.node.kubelet.messages import TerminationMessages
from longshore.node.kubelet.probes import ProbeManager
from longshore.node.kubelet.resize import Allocations
from longshore.node.kubelet.resources import is_sidecar
from longshore.node.kubelet.runtime import PodState, Runtime
from longshore.node.kubelet.statuses import StatusManager
from longshore.node.kubelet.sync import Syncer

Pod = dict[str, Any]


class StatusMaker:
    """The part of the kubelet that makes statuses and knows pods' addresses."""

    config: Config
    runtime: Runtime
    statuses: StatusManager
    syncer: Syncer
    probes: ProbeManager
    messages: TerminationMessages
    allocations: Allocations
    disruptions: dict[str, str]
    devices: DeviceManager
    claims: ClaimManager

    def addresses(self, pod: Pod, ips: list[str]) -> dict[str, Any]:
        """hostIP, hostIPs, podIP, podIPs for a pod whose sandbox has these addresses."""
        host = self.config.node_ips
        own = host if podspec.host_network(pod) else ips
        return {
            "hostIP": host[0], "hostIPs": [{"ip": ip} for ip in host],
            "podIP": own[0] if own else "", "podIPs": [{"ip": ip} for ip in own],
        }  # fmt: skip

    def _known_addresses(self, pod: Pod) -> Mapping[str, Any]:
        made = self.statuses.get(pod["metadata"]["uid"]) or pod.get("status") or {}
        ips = [entry["ip"] for entry in made.get("podIPs") or ()]
        return self.addresses(pod, ips)

    def pod_ip(self, pod: Pod) -> str:
        """The pod's primary address as known now."""
        return str(self._known_addresses(pod)["podIP"])

    def make_status(
        self, pod: Pod, state: PodState, *, verdict: tuple[str, str, str] | None = None, terminal: bool = False
    ) -> tuple[dict[str, Any], str]:
        """(the pod's whole status as it is told now, the phase that it is in or about to be in)."""
        uid = pod["metadata"]["uid"]
        before = self.statuses.get(uid) or pod.get("status") or {}
        reasons = self.syncer.reasons.get(uid, {})
        lists: dict[str, list[dict[str, Any]]] = {}
        for kind, field in (("initContainers", "initContainerStatuses"), ("containers", "containerStatuses"),
                            ("ephemeralContainers", "ephemeralContainerStatuses")):  # fmt: skip
            lists[field] = status.container_statuses(
                pod, kind, state, runtime=self.runtime.name, reasons=reasons, previous=before.get(field) or (),
                message=self.messages.read,
            )  # fmt: skip
        self._mark_ready(pod, state, lists)
        resourcehealth.tell(pod, lists["containerStatuses"], self.devices, self.claims)
        everything = lists["initContainerStatuses"] + lists["containerStatuses"]
        ended = terminal or before.get("phase") in ("Succeeded", "Failed")
        phase = status.phase(pod, everything, ended)
        if before.get("phase") in ("Succeeded", "Failed"):
            phase = before["phase"]
        made: dict[str, Any] = {}
        if verdict is not None:
            phase = verdict[0]
            made["reason"], made["message"] = verdict[1], verdict[2]
        elif before.get("phase") == phase == "Failed":
            made.update({k: before[k] for k in ("reason", "message") if before.get(k)})
        told = phase
        if phase in ("Succeeded", "Failed") and not terminal and state.running():
            # The end is told when all containers have ended (sidecars end after the others).
            told = before.get("phase") or "Pending"
            made.pop("reason", None)
            made.pop("message", None)
        made["phase"] = told
        generation = pod["metadata"].get("generation")
        ours = (*status.OWNED, *status.OPTIONAL)
        others = [c for c in (pod.get("status") or {}).get("conditions") or () if c["type"] not in ours]
        sandbox = state.ready_sandbox
        reachable = sandbox is not None and (podspec.host_network(pod) or bool(sandbox.ips))
        fresh = [
            status.condition("PodReadyToStartContainers", reachable),
            status.initialized_condition(pod, lists["initContainerStatuses"] + lists["containerStatuses"], told),
            *status.ready_conditions(pod, everything, told, others),
            {"type": "PodScheduled", "status": "True"},
            *self._resize_conditions(uid),
            *(
                [status.condition("DisruptionTarget", True, "TerminationByKubelet", self.disruptions[uid])]
                if uid in self.disruptions
                else []
            ),
        ]
        kinds = {c["type"] for c in fresh}
        owned_before = [c for c in before.get("conditions") or () if c["type"] in kinds]
        made["conditions"] = status.merge_conditions(fresh, [*owned_before, *others], generation)
        made.update({k: v for k, v in self.addresses(pod, state.ips).items() if v})
        if not made.get("podIP") and before.get("podIP"):
            made["podIP"], made["podIPs"] = before["podIP"], before["podIPs"]
        made["startTime"] = before.get("startTime") or status.timestamp()
        made["qosClass"] = resources.compute_qos(pod)
        if generation:
            made["observedGeneration"] = generation
        made.update({k: v for k, v in lists.items() if v})
        return made, phase

    def _resize_conditions(self, uid: str) -> list[dict[str, Any]]:
        found = self.allocations.conditions.get(uid, ())
        return [status.condition(kind, True, reason, message) for kind, reason, message, _ in found]

    def _mark_ready(self, pod: Pod, state: PodState, lists: dict[str, list[dict[str, Any]]]) -> None:
        """started and ready, from probes."""
        for kind, field in (("initContainers", "initContainerStatuses"), ("containers", "containerStatuses")):
            by_name = {c["name"]: c for c in pod["spec"].get(kind) or ()}
            for entry in lists[field]:
                container = by_name[entry["name"]]
                if kind == "initContainers" and not is_sidecar(container):
                    continue
                known = state.latest(entry["name"])
                if known is None or "running" not in entry["state"]:
                    entry["started"] = entry["ready"] = False
                    continue
                started = not container.get("startupProbe") or self.probes.result("startup", known.id) is True
                ready = not container.get("readinessProbe") or self.probes.result("readiness", known.id) is True
                entry["started"], entry["ready"] = started, started and ready
        for entry in lists["ephemeralContainerStatuses"]:
            entry.pop("started", None)
            entry["ready"] = False
