"""Writes that go to a pod through its subresources binding and eviction.

Source: registry/core/pod/storage/storage.go (BindingREST) and eviction.go.
"""

from __future__ import annotations

from typing import Any

from longshore.api import times
from longshore.machinery.errors import Cause, StatusError, bad_request, conflict, not_found, too_many_requests
from longshore.machinery.http import Response
from longshore.master.apiserver import bodies, options, rendering
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.context import LOOPBACK
from longshore.master.apiserver.deletion import Deleter
from longshore.master.apiserver.keys import path
from longshore.master.apiserver.local import LocalAPI
from longshore.master.apiserver.scale import KindOnly
from longshore.master.apiserver.writes import Writer

Object = dict[str, Any]
_BINDING = KindOnly("", "v1", "Binding")
_EVICTION = KindOnly("policy", "v1", "Eviction")
_MAX_DISRUPTED = 2000


class PodWrites:
    """Handlers for pods/binding, bindings and pods/eviction."""

    def __init__(self, writer: Writer, deleter: Deleter, api: LocalAPI) -> None:
        self.writer = writer
        self.deleter = deleter
        self.api = api

    async def bind(self, call: Call) -> Response:
        """Assign a pod to a node."""
        chosen = options.write_options(call.request, "CreateOptions")
        binding = await bodies.read_object(call, _BINDING, "v1", chosen.validation)
        metadata, target = binding.get("metadata") or {}, binding.get("target") or {}
        name = call.name or metadata.get("name", "")
        if call.name and metadata.get("name", "") != call.name:
            raise bad_request("name in URL does not match name in Binding object")
        namespace = metadata.get("namespace")
        if namespace and namespace != call.namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        problems = []
        if target.get("kind") not in (None, "", "Node"):
            problems.append(f'target.kind: Unsupported value: "{target["kind"]}": supported values: "Node", "<empty>"')
        if not target.get("name"):
            problems.append("target.name: Required value")
        if problems:
            raise StatusError(500, "", problems[0] if len(problems) == 1 else "[" + ", ".join(problems) + "]")
        request = self.writer.admission.request(
            call, "CREATE", binding, None, chosen.as_object(), chosen.dry_run, ("", "v1", "Binding")
        )
        await self.writer.admission.admit(request)
        await self.writer.admission.validate(request)
        await self._assign(
            call, name, target["name"], (request.object or binding).get("metadata") or {}, chosen.dry_run
        )
        return rendering.status_success(call, status=201, code=201)

    async def _assign(self, call: Call, name: str, node: str, metadata: Object, dry_run: bool) -> None:
        uid = metadata.get("uid") or ""

        def change(pod: Object) -> None:
            if uid and uid != pod["metadata"].get("uid"):
                why = (
                    f"Precondition failed: UID in precondition: {uid}, UID in object meta: {pod['metadata'].get('uid')}"
                )
                raise conflict("", "pods/binding", name, why)
            version = metadata.get("resourceVersion")
            if version and version != pod["metadata"]["resourceVersion"]:
                raise conflict(
                    "", "pods/binding", name, f"Precondition failed: ResourceVersion in precondition: {version}"
                )
            if pod["metadata"].get("deletionTimestamp"):
                raise conflict("", "pods/binding", name, f"pod {name} is being deleted, cannot be assigned to a host")
            spec = pod["spec"]
            if spec.get("nodeName"):
                raise conflict("", "pods/binding", name, f'pod {name} is already assigned to node "{spec["nodeName"]}"')
            if spec.get("schedulingGates"):
                raise conflict("", "pods/binding", name, f"pod {name} has non-empty .spec.schedulingGates")
            spec["nodeName"] = node
            for field in ("annotations", "labels"):
                if metadata.get(field):
                    pod["metadata"].setdefault(field, {}).update(metadata[field])
            _set_condition(pod, "PodScheduled", "True")

        await self.writer.change_stored(self.api.endpoint("", "pods"), call.info.namespace, name, change, dry_run)

    async def evict(self, call: Call) -> Response:
        """Delete a pod if its disruption budgets allow it."""
        chosen = options.write_options(call.request, "CreateOptions")
        eviction = await bodies.read_object(call, _EVICTION, "v1", chosen.validation)
        metadata = eviction.get("metadata") or {}
        if metadata.get("name", "") != call.name:
            raise bad_request("name in URL does not match name in Eviction object")
        wanted = options.delete_options(eviction.get("deleteOptions") or {}, call.request)
        wanted.dry_run = wanted.dry_run or chosen.dry_run
        await self.writer.hub.fresh()
        pod = self._pod(call)
        request = self.writer.admission.request(
            call, "CREATE", eviction, None, chosen.as_object(), chosen.dry_run, ("policy", "v1", "Eviction")
        )
        await self.writer.admission.admit(request)
        await self.writer.admission.validate(request)
        if not _ignores_budgets(pod):
            budget = self._budget(pod)
            if budget is not None:
                await self._spend(call, pod, budget, wanted.dry_run)
                if wanted.version is None and wanted.uid is None:
                    wanted.uid = pod["metadata"]["uid"]
        if not wanted.dry_run:
            await self._mark(call, wanted.uid)
        info = call.info._replace(subresource="")
        inner = Call(call.request, info, call.endpoint, "delete", LOOPBACK, call.form, call.warnings, call.annotations)
        await self.deleter.delete_one(inner, wanted)
        return rendering.status_success(call, status=201, code=201)

    async def _mark(self, call: Call, uid: str | None) -> None:
        """Write into the pod's status why it goes: what a Job's failure policy and people look at."""

        def change(pod: Object) -> None:
            if uid and pod["metadata"].get("uid") != uid:
                why = (
                    f"Precondition failed: UID in precondition: {uid}, UID in object meta: {pod['metadata'].get('uid')}"
                )
                raise conflict("", "pods", call.name, why)
            _set_condition(pod, "DisruptionTarget", "True", "EvictionByEvictionAPI", "Eviction API: evicting")

        await self.writer.change_stored(self.api.endpoint("", "pods"), call.info.namespace, call.name, change, False)

    def _pod(self, call: Call) -> Object:
        cache = call.endpoint.cache
        assert cache is not None
        item = cache.items.get(path(call.namespace, call.name))
        if item is None:
            raise not_found("", "pods", call.name)
        return call.endpoint.present(item.decode())

    def _budget(self, pod: Object) -> Object | None:
        from longshore.client.selectors import matcher  # the whole client comes with it: with the first eviction

        labels = pod["metadata"].get("labels") or {}
        found = []
        for budget in self.api.list("policy", "poddisruptionbudgets", pod["metadata"]["namespace"]):
            selector = (budget.get("spec") or {}).get("selector")
            if selector is not None and matcher(selector)(labels):
                found.append(budget)
        if len(found) > 1:
            text = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            raise StatusError(500, "InternalError", f"Internal error occurred: {text}", {"causes": [{"message": text}]})
        return found[0] if found else None

    async def _spend(self, call: Call, pod: Object, budget: Object, dry_run: bool) -> None:
        """Take one allowed disruption out of a budget. 429 when there is none."""
        status, name = budget.get("status") or {}, budget["metadata"]["name"]
        if _healthy_unneeded(pod, budget):
            return
        if status.get("observedGeneration", 0) < budget["metadata"].get("generation", 0):
            raise _refused("Cannot evict pod as it would violate the pod's disruption budget.",
                           f"The disruption budget {name} is still being processed by the server.", 10)  # fmt: skip
        if status.get("disruptionsAllowed", 0) < 0:
            raise StatusError(403, "Forbidden", f'poddisruptionbudgets.policy "{name}" is forbidden: pdb disruptions allowed is negative', {"name": name, "group": "policy", "kind": "poddisruptionbudgets"})  # fmt: skip
        if len(status.get("disruptedPods") or {}) > _MAX_DISRUPTED:
            raise StatusError(403, "Forbidden", f'poddisruptionbudgets.policy "{name}" is forbidden: DisruptedPods map too big - too many evictions not confirmed by PDB controller', {"name": name, "group": "policy", "kind": "poddisruptionbudgets"})  # fmt: skip
        if status.get("disruptionsAllowed", 0) == 0:
            text = f"The disruption budget {name} needs {status.get('desiredHealthy', 0)} healthy pods and has {status.get('currentHealthy', 0)} currently"
            failed = next(
                (
                    c
                    for c in status.get("conditions") or ()
                    if c.get("type") == "DisruptionAllowed" and c.get("status") == "False"
                ),
                None,
            )
            if failed is not None and failed.get("reason") == "SyncFailed":
                text = f"The disruption budget {name} does not allow evicting pods currently because it failed sync: {failed.get('message', '')}"
            raise _refused("Cannot evict pod as it would violate the pod's disruption budget.", text, 0)
        if dry_run:
            return
        status = dict(status)
        status["disruptionsAllowed"] -= 1
        status["disruptedPods"] = {**(status.get("disruptedPods") or {}), pod["metadata"]["name"]: times.now()}
        budget["status"] = status
        try:
            await self.api.update("policy", "poddisruptionbudgets", pod["metadata"]["namespace"], budget, "status")
        except StatusError as error:
            if error.reason != "Conflict":
                raise
            raise _refused("Cannot evict pod as it would violate the pod's disruption budget.",
                           f"The disruption budget {name} is still being processed by the server.", 10) from None  # fmt: skip


def _refused(message: str, cause: str, retry_after: int) -> StatusError:
    return too_many_requests(message, retry_after, [Cause("DisruptionBudget", cause)])


def _ignores_budgets(pod: Object) -> bool:
    """Pods that have not started, have ended or are going anyway."""
    phase = (pod.get("status") or {}).get("phase")
    return phase in ("Succeeded", "Failed", "Pending") or bool(pod["metadata"].get("deletionTimestamp"))


def _healthy_unneeded(pod: Object, budget: Object) -> bool:
    """Whether an unhealthy pod may go without spending (unhealthyPodEvictionPolicy)."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    if any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions):
        return False
    if (budget.get("spec") or {}).get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
        return True
    status = budget.get("status") or {}
    return bool(status.get("currentHealthy", 0) >= status.get("desiredHealthy", 0) > 0)


def _set_condition(pod: Object, kind: str, value: str, reason: str = "", message: str = "") -> None:
    conditions = pod.setdefault("status", {}).setdefault("conditions", [])
    condition = next((c for c in conditions if c.get("type") == kind), None)
    if condition is None:
        condition = {"type": kind, "lastProbeTime": None}
        conditions.append(condition)
    if condition.get("status") != value:
        condition["lastTransitionTime"] = times.now()
    condition["status"] = value
    for field, words in (("reason", reason), ("message", message)):
        condition.pop(field, None)
        if words:
            condition[field] = words
