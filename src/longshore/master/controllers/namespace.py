"""Namespace deletion: everything in it goes, pods first, and the namespace says what it still waits for.

Source: kubernetes pkg/controller/namespace, described behaviour.
"""

from __future__ import annotations

from collections import Counter

from longshore.client.discovery import Served, discover
from longshore.client.objects import copy, is_deleting, now, set_condition
from longshore.client.resources import NAMESPACES, PODS
from longshore.client.rest import is_conflict, is_not_found
from longshore.client.store import Object, key_of
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller
from longshore.master.controllers.pods import text

FINALIZER = "kubernetes"
GENTLE_SECONDS = 2.0
MOST_SECONDS = 15.0  # upstream's estimate of what a finalizer takes

GOOD = {
    "NamespaceDeletionDiscoveryFailure": ("ResourcesDiscovered", "All resources successfully discovered"),
    "NamespaceDeletionGroupVersionParsingFailure": ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
    "NamespaceDeletionContentFailure": (
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    ),
    "NamespaceContentRemaining": ("ContentRemoved", "All content successfully removed"),
    "NamespaceFinalizersRemaining": ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
}


class NamespaceController(Controller):
    """Empties and finalizes namespaces that are being deleted."""

    name = "namespace-controller"
    component = "namespace-controller"
    workers = 10
    max_delay = 60.0

    def setup(self) -> None:
        self.namespaces = self.watch(
            NAMESPACES, add=self._namespace, update=lambda old, new: self._namespace(new), delete=self.enqueue
        )
        self.pods = self.watch(PODS, delete=self._pod_gone)
        self._pauses: dict[str, float] = {}  # before the next look, by namespace

    def _namespace(self, obj: Object) -> None:
        if is_deleting(obj):
            self.enqueue(obj)

    def _pod_gone(self, pod: Object) -> None:
        namespace = self.namespaces.store.get(pod["metadata"]["namespace"])
        if namespace is not None and is_deleting(namespace):
            self.enqueue(namespace)

    async def reconcile(self, key: str) -> float | None:
        namespace = self.namespaces.store.get(key)
        if namespace is None or not is_deleting(namespace):
            self._pauses.pop(key, None)
            return None
        try:
            # The cache may be behind: what is judged here is the namespace itself.
            namespace = await self.client.get(NAMESPACES, key)
        except StatusError as error:
            if is_not_found(error):
                return None
            raise
        if not is_deleting(namespace):
            return None
        if FINALIZER not in (namespace["spec"].get("finalizers") or ()):
            return None
        content = Content(self, key)
        await content.delete()
        namespace = await self._write_conditions(namespace, content)
        if content.undiscovered:
            # What cannot be listed may hold something: the namespace waits.
            raise StatusError(500, "InternalError", content.problems()["NamespaceDeletionDiscoveryFailure"][1])
        if content.errors:
            raise StatusError(500, "InternalError", content.errors[0])
        if content.remaining:
            # A pod that goes brings the namespace back at once: the pauses are for what tells nobody that it went.
            pause = self._pauses.get(key, GENTLE_SECONDS)
            self._pauses[key] = min(2 * pause, MOST_SECONDS)
            return max(pause, min(content.wait / 2 + 1, MOST_SECONDS) if content.wait else 0.0)
        finished = copy(namespace)
        finished["spec"]["finalizers"] = [f for f in finished["spec"]["finalizers"] if f != FINALIZER]
        try:
            await self.client.update(NAMESPACES, finished, subresource="finalize")
        except StatusError as error:
            if not is_not_found(error):
                raise
        return None

    async def _write_conditions(self, namespace: Object, content: Content) -> Object:
        old = (namespace.get("status") or {}).get("conditions") or []
        conditions = list(old)
        for type, (reason, message) in GOOD.items():
            bad = content.problems().get(type)
            entry = {"type": type, "status": "True" if bad else "False", "lastTransitionTime": now()}
            entry["reason"], entry["message"] = bad or (reason, message)
            known = next((c for c in conditions if c["type"] == type), None)
            if known is None:
                if bad or content.remaining or content.errors:
                    conditions.append(entry)
            elif (known["status"], known["message"]) != (entry["status"], entry["message"]):
                conditions = set_condition(conditions, entry)
        if conditions == old:
            return namespace
        status = {**(namespace.get("status") or {}), "phase": "Terminating", "conditions": conditions}
        try:
            return await self.client.update(NAMESPACES, {**namespace, "status": status}, subresource="status")
        except StatusError as error:
            if is_conflict(error):
                return await self.client.get(NAMESPACES, key_of(namespace))
            raise


class Content:
    """What is in one namespace, and what of it could not be deleted yet."""

    def __init__(self, controller: NamespaceController, namespace: str) -> None:
        self.client = controller.client
        self.namespace = namespace
        self.undiscovered: list[str] = []
        self.errors: list[str] = []
        self.remaining: Counter[str] = Counter()
        self.finalizers: Counter[str] = Counter()
        self.wait = 0.0

    async def delete(self) -> None:
        """Delete everything that can be deleted now: pods, and the rest when no pod is left."""
        found = await discover(self.client)
        self.undiscovered = [f"{where}: {why}" for where, why in found.failures.items()]
        kinds = [s for s in found.served if s.resource.namespaced and "list" in s.verbs and "delete" in s.verbs]
        first = [s for s in kinds if s.resource == PODS or (s.resource.group, s.resource.plural) == ("", "pods")]
        for served in first:
            await self._delete_kind(served)
        if self.remaining or self.errors:
            return
        for served in kinds:
            if served not in first:
                await self._delete_kind(served)

    async def _delete_kind(self, served: Served) -> None:
        resource, namespace = served.resource, self.namespace
        try:
            items = (await self.client.list(resource, namespace))["items"]
            if not items:
                return
            if "deletecollection" in served.verbs:
                await self.client.delete_collection(resource, namespace)
            else:
                for item in items:
                    await self.client.delete(resource, item["metadata"]["name"], namespace, propagation="Background")
            items = (await self.client.list(resource, namespace))["items"]
        except StatusError as error:
            if error.code not in (404, 405):
                self.errors.append(text(error))
            return
        if not items:
            return
        self.remaining[f"{resource.plural}.{resource.group}"] += len(items)
        for item in items:
            for name in item["metadata"].get("finalizers") or ():
                self.finalizers[name] += 1
            if resource.plural == "pods":
                self.wait = max(self.wait, float(item["metadata"].get("deletionGracePeriodSeconds") or 0))

    def problems(self) -> dict[str, tuple[str, str]]:
        """Reason and message by the type of the condition that is to be True."""
        result = {}
        if self.undiscovered:
            message = "Discovery failed for some groups, " + f"{len(self.undiscovered)} failing: "
            message += "unable to retrieve the complete list of server APIs: " + ", ".join(self.undiscovered)
            result["NamespaceDeletionDiscoveryFailure"] = ("DiscoveryFailed", message)
        if self.errors:
            message = (
                "Failed to delete all resource types, " + f"{len(self.errors)} remaining: " + ", ".join(self.errors)
            )
            result["NamespaceDeletionContentFailure"] = ("ContentDeletionFailed", message)
        if self.remaining:
            listed = ", ".join(sorted(f"{what} has {n} resource instances" for what, n in self.remaining.items()))
            result["NamespaceContentRemaining"] = ("SomeResourcesRemain", f"Some resources are remaining: {listed}")
        if self.finalizers:
            listed = ", ".join(sorted(f"{what} in {n} resource instances" for what, n in self.finalizers.items()))
            message = f"Some content in the namespace has finalizers remaining: {listed}"
            result["NamespaceFinalizersRemaining"] = ("SomeFinalizersRemain", message)
        return result
