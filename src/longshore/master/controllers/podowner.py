"""What controllers share whose objects own pods: which object a pod's change concerns, and pods made and removed with
the expectations that keep a lagging cache from acting twice.

Sources: kubernetes pkg/controller/replicaset, daemon, job, statefulset (their pod handlers), described behaviour.
"""

from __future__ import annotations

from typing import ClassVar

from longshore.client.informer import Informer
from longshore.client.objects import controller_of, is_controlled_by, is_deleting
from longshore.client.resources import PODS, Resource
from longshore.client.rest import is_not_found
from longshore.client.selectors import Predicate, as_text, matcher
from longshore.client.store import Object, by_controller, key_of
from longshore.machinery.errors import StatusError
from longshore.master.controllers import pods as pod_control
from longshore.master.controllers.base import Controller
from longshore.master.controllers.expectations import Expectations


class PodOwnerController(Controller):
    """A controller whose keys are objects of one resource, each the owner of pods that its selector matches.

    A subclass calls `watch_pods` in `setup`; it may override what differs in its handlers.
    """

    resource: ClassVar[Resource]
    expectations: Expectations
    owners: Informer
    pods: Informer

    def watch_pods(self) -> None:
        """The informers of the owners and of all pods, with their handlers."""
        self.expectations = Expectations()
        self._uncertain: set[str] = set()
        self.owners = self.watch(
            self.resource,
            add=self.enqueue,
            update=self.enqueue_update,
            delete=self.owner_gone,
            indexers={"controller": by_controller},
        )
        self.pods = self.watch(
            PODS,
            add=self.pod_added,
            update=self.pod_changed,
            delete=self.pod_gone,
            indexers={"controller": by_controller},
        )

    def selector(self, obj: Object) -> Predicate:
        return matcher(obj["spec"].get("selector"))

    # -- what changes concern --------------------------------------------------------------------------------------------

    def owner(self, pod: Object) -> str | None:
        """The key of the object that controls a pod, while it is there."""
        ref = controller_of(pod)
        if ref is None or ref["kind"] != self.resource.kind:
            return None
        found = self.owners.store.named(pod["metadata"]["namespace"], ref["name"])
        return key_of(found) if found is not None and found["metadata"]["uid"] == ref["uid"] else None

    def owner_gone(self, obj: Object) -> None:
        self.expectations.forget(key_of(obj))
        self._uncertain.discard(key_of(obj))
        self.enqueue(obj)

    def pod_added(self, pod: Object) -> None:
        key = self.owner(pod)
        if key is not None:
            self.expectations.observed_creation(key, pod["metadata"]["name"])
            if is_deleting(pod):
                self.expectations.observed_deletion(key, pod["metadata"]["uid"])
            self.queue.add(key)
        elif controller_of(pod) is None and not is_deleting(pod):
            self.enqueue_matching(pod)

    def pod_changed(self, old: Object, pod: Object) -> None:
        before, after = self.owner(old), self.owner(pod)
        if before is not None and before != after:
            self.queue.add(before)
        if (
            after is None
            and controller_of(old) is None
            and old["metadata"].get("labels") == pod["metadata"].get("labels")
        ):
            return  # nobody's before and after, and no selector sees it otherwise
        self.pod_added(pod)

    def pod_gone(self, pod: Object) -> None:
        key = self.owner(pod)
        if key is not None:
            self.expectations.observed_deletion(key, pod["metadata"]["uid"])
            self.queue.add(key)

    def enqueue_matching(self, pod: Object) -> None:
        """Objects that may adopt a pod that nobody controls."""
        labels = pod["metadata"].get("labels") or {}
        for found in self.owners.store.list(pod["metadata"]["namespace"]) if labels else ():
            if self.selector(found)(labels):
                self.enqueue(found)

    # -- pods made and removed -------------------------------------------------------------------------------------------

    def candidates(self, obj: Object) -> list[Object]:
        """The pods that obj controls and those that nobody does."""
        return [
            *self.pods.store.index("controller", obj["metadata"]["uid"]),
            *self.pods.store.index("controller", "orphans/" + obj["metadata"]["namespace"]),
        ]

    async def caught_up(self, obj: Object, version: int | None = None) -> bool:
        """Whether the cache knows what we have done for obj; see Expectations.satisfied for version.

        After a creation that nobody answered (the API server went away) it is asked what there is: the pod may be there
        though the informer, which has just connected again, has not told of it.
        """
        key = key_of(obj)
        if key in self._uncertain:
            labels = obj["spec"]["template"].get("metadata", {}).get("labels")
            selector = as_text({"matchLabels": labels}) if labels else ""
            there = await self.client.list(PODS, obj["metadata"]["namespace"], label_selector=selector)
            self._uncertain.discard(key)
            for pod in there["items"]:
                if is_controlled_by(pod, obj) and self.pods.store.get(key_of(pod)) is None:
                    self.expectations.found(key, pod["metadata"]["name"])
        return self.expectations.satisfied(key, version)

    async def make_pod(self, obj: Object, pod: Object) -> Object:
        """Create a pod for obj and tell it. Raises what the API server answers."""
        key, made = key_of(obj), None
        self.expectations.creating(key)
        try:
            fresh = await pod_control.create(self.client, self.recorder, obj, pod)
            made = fresh["metadata"]["name"]
        except OSError:
            self._uncertain.add(key)
            raise
        finally:
            self.expectations.created(key, made)
        return fresh

    async def remove_pod(self, obj: Object, pod: Object) -> None:
        """Delete a pod of obj and tell it; that it has gone already is fine. Raises what the API server answers."""
        key, uid = key_of(obj), pod["metadata"]["uid"]
        self.expectations.deleting(key, uid)
        try:
            await pod_control.delete(self.client, self.recorder, obj, pod)
        except (StatusError, OSError) as error:
            self.expectations.observed_deletion(key, uid)
            if not is_not_found(error):
                raise
