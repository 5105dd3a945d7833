"""Deployments: one ReplicaSet a template, and the walk from the old ones to the new.

Source: kubernetes pkg/controller/deployment, described behaviour. The arithmetic is in rollout.py.
"""

from __future__ import annotations

import time

from longshore.client.objects import (
    condition,
    controller_of,
    copy,
    is_deleting,
    is_terminal,
    now,
    owner_reference,
    seconds,
)
from longshore.client.resources import DEPLOYMENTS, PODS, REPLICA_SETS
from longshore.client.rest import is_already_exists, is_namespace_terminating, is_not_found
from longshore.client.selectors import matcher
from longshore.client.store import Object, by_controller, key_of, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers import rollout
from longshore.master.controllers.adoption import claim
from longshore.master.controllers.base import Controller
from longshore.master.controllers.pods import text


class DeploymentController(Controller):
    """Rolls each Deployment's pods from old templates to the present one."""

    name = "deployment-controller"
    component = "deployment-controller"
    workers = 10

    def setup(self) -> None:
        self.deployments = self.watch(DEPLOYMENTS, add=self.enqueue, update=self.enqueue_update, delete=self.enqueue)
        self.sets = self.watch(
            REPLICA_SETS,
            add=self._set_added,
            update=self._set_changed,
            delete=self._set_gone,
            indexers={"controller": by_controller},
        )
        self.pods = self.watch(PODS, delete=self._pod_gone, indexers={"controller": by_controller})

    # -- what changes concern ------------------------------------------------------------------------------------------

    def _owner(self, obj: Object) -> Object | None:
        ref = controller_of(obj)
        if ref is None or ref["kind"] != "Deployment":
            return None
        found = self.deployments.store.named(obj["metadata"]["namespace"], ref["name"])
        return found if found is not None and found["metadata"]["uid"] == ref["uid"] else None

    def _set_added(self, obj: Object) -> None:
        owner = self._owner(obj)
        if owner is not None:
            self.enqueue(owner)
        elif controller_of(obj) is None:
            self._enqueue_matching(obj)

    def _set_changed(self, old: Object, obj: Object) -> None:
        before, after = self._owner(old), self._owner(obj)
        if before is not None and (after is None or key_of(before) != key_of(after)):
            self.enqueue(before)
        if after is not None:
            self.enqueue(after)
        elif controller_of(obj) is None and (
            old["metadata"].get("labels") != obj["metadata"].get("labels") or controller_of(old) is not None
        ):
            self._enqueue_matching(obj)

    def _set_gone(self, obj: Object) -> None:
        owner = self._owner(obj)
        if owner is not None:
            self.enqueue(owner)

    def _enqueue_matching(self, obj: Object) -> None:
        labels = obj["metadata"].get("labels") or {}
        for d in self.deployments.store.list(obj["metadata"]["namespace"]) if labels else ():
            if matcher(d["spec"].get("selector"))(labels):
                self.enqueue(d)

    def _pod_gone(self, pod: Object) -> None:
        """A Recreate rollout goes on when the last old pod has gone."""
        ref = controller_of(pod)
        if ref is None or ref["kind"] != "ReplicaSet":
            return
        owner_set = self.sets.store.named(pod["metadata"]["namespace"], ref["name"])
        owner = self._owner(owner_set) if owner_set is not None else None
        if owner is not None and not rollout.is_rolling(owner):
            self.enqueue(owner)

    # -- reconcile -------------------------------------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        stored = self.deployments.store.named(namespace, name)
        if stored is None:
            return None
        d = copy(stored)
        selector = d["spec"].get("selector") or {}
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            self.event(
                d, "Warning", "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required."
            )
            if status_gen(d) < d["metadata"].get("generation", 0):
                d.setdefault("status", {})["observedGeneration"] = d["metadata"]["generation"]
                await self.client.update(DEPLOYMENTS, d, subresource="status")
            return None
        candidates = [
            *self.sets.store.index("controller", d["metadata"]["uid"]),
            *self.sets.store.index("controller", "orphans/" + namespace),
        ]
        sets = await claim(self.client, d, DEPLOYMENTS, REPLICA_SETS, candidates, matcher(selector))
        if is_deleting(d):
            return await self._sync_status(d, sets, rollout.find_new(d, sets))
        await self._paused_condition(d)
        if d["spec"].get("paused") or rollout.is_scaling(d, sets):
            return await self._scale_only(d, sets)
        if rollout.ROLLBACK in (d["metadata"].get("annotations") or {}):
            return await self._rollback(d, sets)
        if rollout.is_rolling(d):
            return await self._roll(d, sets)
        return await self._recreate(d, sets)

    async def _scale_only(self, d: Object, sets: list[Object]) -> float | None:
        new, old, sets = await self._new_set(d, sets, create=False)
        sets = await self._scale(d, new, old)
        new = rollout.find_new(d, sets)
        if d["spec"].get("paused"):
            await self._clean_up(d, [s for s in sets if s is not new])
        return await self._sync_status(d, sets, new)

    async def _roll(self, d: Object, sets: list[Object]) -> float | None:
        new, old, sets = await self._new_set(d, sets, create=True)
        if new is None:
            return None
        have, want = rollout.replicas(new), rollout.replicas(d)
        if have != want:
            size = want if have > want else rollout.new_set_replicas(d, sets, new)
            if size != have:
                new = await self._resize(d, new, size)
                return await self._sync_status(d, [new, *old], new)
        old, changed = await self._shrink_old(d, new, old)
        if not changed and rollout.is_complete(d, d.get("status") or {}):
            await self._clean_up(d, old)
        return await self._sync_status(d, [new, *old], new)

    async def _recreate(self, d: Object, sets: list[Object]) -> float | None:
        new, old, sets = await self._new_set(d, sets, create=False)
        shrunk = False
        for index, s in enumerate(old):
            if rollout.replicas(s) > 0:
                old[index] = await self._resize(d, s, 0)
                shrunk = True
        if shrunk or self._running(old):
            return await self._sync_status(d, [*old, *([new] if new else [])], new)
        if new is None:
            new, old, sets = await self._new_set(d, [*old], create=True)
            if new is None:
                return None
        if rollout.replicas(new) != rollout.replicas(d):
            new = await self._resize(d, new, rollout.replicas(d))
        if rollout.is_complete(d, d.get("status") or {}):
            await self._clean_up(d, old)
        return await self._sync_status(d, [new, *old], new)

    def _running(self, old: list[Object]) -> bool:
        return any(not is_terminal(p) for s in old for p in self.pods.store.index("controller", s["metadata"]["uid"]))

    async def _rollback(self, d: Object, sets: list[Object]) -> float | None:
        """The rollback of extensions/v1beta1, kept in an annotation: take an older set's template."""
        annotations = d["metadata"]["annotations"]
        asked = annotations.pop(rollout.ROLLBACK)
        number = int(asked) if asked.isdigit() else 0
        revisions = sorted({rollout.revision(s) for s in sets}, reverse=True)
        if number == 0:
            number = revisions[1] if len(revisions) > 1 else 0
        found = next((s for s in sets if number and rollout.revision(s) == number), None)
        if found is None:
            reason = "DeploymentRollbackRevisionNotFound"
            message = "Unable to find the revision to rollback to." if asked != "0" else "Unable to find last revision."
            self.event(d, "Warning", reason, message)
        elif rollout.same_template(found["spec"]["template"], d["spec"]["template"]):
            message = (
                f'The rollback revision contains the same template as current deployment "{d["metadata"]["name"]}"'
            )
            self.event(d, "Warning", "DeploymentRollbackTemplateUnchanged", message)
        else:
            template = copy(found["spec"]["template"])
            (template.get("metadata") or {}).get("labels", {}).pop(rollout.HASH_LABEL, None)
            d["spec"]["template"] = template
            message = f'Rolled back deployment "{d["metadata"]["name"]}" to revision {number}'
            self.event(d, "Normal", "DeploymentRollback", message)
        await self.client.update(DEPLOYMENTS, d)
        return None

    # -- sets --------------------------------------------------------------------------------------------------------------

    async def _new_set(
        self, d: Object, sets: list[Object], *, create: bool
    ) -> tuple[Object | None, list[Object], list[Object]]:
        """(new set or None, old sets, all of them), after bringing the new one's annotations up to date."""
        new = rollout.find_new(d, sets)
        old = [s for s in sets if s is not new]
        number = max((rollout.revision(s) for s in old), default=0) + 1
        if new is not None:
            changed = copy(new)
            wait = d["spec"].get("minReadySeconds") or 0
            differs = rollout.annotate_new(d, changed, number, exists=True)
            if (changed["spec"].get("minReadySeconds") or 0) != wait:
                changed["spec"]["minReadySeconds"] = wait
                differs = True
            if differs:
                new = await self.client.update(REPLICA_SETS, changed)
            self._adopt_revision(d, new)
            if condition(d, "Progressing") is None and rollout.deadline(d) is not None:
                message = f'Found new replica set "{new["metadata"]["name"]}"'
                self._progress(d, "True", "FoundNewReplicaSet", message)
        elif create:
            new = await self._create_set(d, old, number)
        return new, old, [*old, *([new] if new is not None else [])]

    async def _create_set(self, d: Object, old: list[Object], number: int) -> Object | None:
        collisions = rollout.status_number(d, "collisionCount")
        fresh = rollout.new_set(d, owner_reference(d), collisions)
        fresh["spec"]["replicas"] = size = rollout.new_set_replicas(d, old, None)
        rollout.annotate_new(d, fresh, number, exists=False)
        name = fresh["metadata"]["name"]
        made_here = True
        try:
            made = await self.client.create(REPLICA_SETS, fresh)
        except (StatusError, OSError) as error:
            if is_namespace_terminating(error):
                return None
            if not is_already_exists(error):
                message = f'Failed to create new replica set "{name}": {text(error)}'
                if rollout.deadline(d) is not None:
                    self._progress(d, "False", "ReplicaSetCreateError", message)
                    await self.client.update(DEPLOYMENTS, d, subresource="status")
                self.event(d, "Warning", "ReplicaSetCreateError", message)
                raise
            there = await self.client.get(REPLICA_SETS, name, d["metadata"]["namespace"])
            ref = controller_of(there)
            ours = ref is not None and ref["uid"] == d["metadata"]["uid"]
            if not ours or not rollout.same_template(there["spec"]["template"], d["spec"]["template"]):
                d.setdefault("status", {})["collisionCount"] = collisions + 1
                await self.client.update(DEPLOYMENTS, d, subresource="status")
                raise
            made, made_here = there, False
        if made_here and size > 0:
            self.event(d, "Normal", "ScalingReplicaSet", f"Scaled up replica set {name} from 0 to {size}")
        self._adopt_revision(d, made)
        if made_here and rollout.deadline(d) is not None:
            self._progress(d, "True", "NewReplicaSetCreated", f'Created new replica set "{name}"')
        return made

    @staticmethod
    def _adopt_revision(d: Object, new: Object) -> None:
        """The Deployment shows its new set's revision; the status write at the end stores it."""
        number = (new["metadata"].get("annotations") or {}).get(rollout.REVISION)
        if number is not None:
            d["metadata"].setdefault("annotations", {})[rollout.REVISION] = number

    async def _resize(self, d: Object, s: Object, size: int) -> Object:
        """Give a set its size and the annotations that tell what the Deployment wanted then."""
        have = rollout.replicas(s)
        annotations = rollout.replica_annotations(d)
        known = s["metadata"].get("annotations") or {}
        if have == size and all(known.get(k) == v for k, v in annotations.items()):
            return s
        changed = copy(s)
        changed["spec"]["replicas"] = size
        changed["metadata"].setdefault("annotations", {}).update(annotations)
        written = await self.client.update(REPLICA_SETS, changed)
        if have != size:
            way = "up" if size > have else "down"
            name = s["metadata"]["name"]
            self.event(d, "Normal", "ScalingReplicaSet", f"Scaled {way} replica set {name} from {have} to {size}")
        return written

    async def _scale(self, d: Object, new: Object | None, old: list[Object]) -> list[Object]:
        """Bring the sets to spec.replicas outside a rollout's steps. All sets as they are then."""
        sets = [*([new] if new is not None else []), *old]
        active = rollout.active(sets)
        if len(active) <= 1:
            only = active[0] if active else new
            if only is None and old:
                only = max(old, key=lambda s: seconds(s["metadata"].get("creationTimestamp")))
            if only is None:
                return sets
            if rollout.replicas(only) == rollout.replicas(d):
                return sets
            resized = await self._resize(d, only, rollout.replicas(d))
            return [resized if s is only else s for s in sets]
        if new is not None and self._saturated(d, new):
            return [new, *[await self._resize(d, s, 0) if rollout.replicas(s) else s for s in old]]
        if not rollout.is_rolling(d):
            return sets
        sizes = rollout.proportional_sizes(d, active)
        result = []
        for s in sets:
            size = sizes.get(s["metadata"]["name"])
            result.append(s if size is None else await self._resize(d, s, size))
        return result

    @staticmethod
    def _saturated(d: Object, new: Object) -> bool:
        desired = (new["metadata"].get("annotations") or {}).get(rollout.DESIRED, "")
        n = rollout.replicas(d)
        return (
            rollout.replicas(new) == n
            and desired.isdigit()
            and int(desired) == n
            and rollout.status_number(new, "availableReplicas") == n
        )

    async def _shrink_old(self, d: Object, new: Object, old: list[Object]) -> tuple[list[Object], bool]:
        """Take from the old sets what availability allows: unhealthy pods first. The old sets, and whether any changed."""
        if not rollout.wanted(old):
            return old, False
        least = rollout.min_available(d)
        unavailable = rollout.replicas(new) - rollout.status_number(new, "availableReplicas")
        spare = rollout.wanted([new, *old]) - least - unavailable
        if spare <= 0:
            return old, False
        sets = rollout.by_age(old)
        sizes = {s["metadata"]["name"]: rollout.replicas(s) for s in sets}
        for s in sets:  # pods that are not available cost nothing
            name = s["metadata"]["name"]
            sick = sizes[name] - rollout.status_number(s, "availableReplicas")
            if spare > 0 and sick > 0:
                cut = min(spare, sick)
                sizes[name] -= cut
                spare -= cut
        cleaned = [
            await self._resize(d, s, n) if (n := sizes[s["metadata"]["name"]]) != rollout.replicas(s) else s
            for s in sets
        ]
        extra = rollout.actual([new, *cleaned], "availableReplicas") - least
        result = []
        for s in cleaned:
            cut = min(rollout.replicas(s), max(extra, 0))
            extra -= cut
            result.append(await self._resize(d, s, rollout.replicas(s) - cut) if cut else s)
        changed = any(a is not b for a, b in zip(sets, result, strict=True))
        return result, changed

    async def _clean_up(self, d: Object, old: list[Object]) -> None:
        for s in rollout.expired_history(d, old):
            try:
                await self.client.delete(REPLICA_SETS, s["metadata"]["name"], s["metadata"]["namespace"])
            except StatusError as error:
                if not is_not_found(error):
                    raise

    # -- status ------------------------------------------------------------------------------------------------------------

    def _progress(self, d: Object, status: str, reason: str, message: str) -> None:
        conditions = (d.setdefault("status", {})).get("conditions") or []
        fresh = {"type": "Progressing", "status": status, "reason": reason, "message": message}
        d["status"]["conditions"] = rollout.put_condition(conditions, fresh, now())

    async def _paused_condition(self, d: Object) -> None:
        if rollout.deadline(d) is None:
            return
        known = condition(d, "Progressing")
        if known is not None and known["reason"] == "ProgressDeadlineExceeded":
            return
        shown = known is not None and known["reason"] == "DeploymentPaused"
        if bool(d["spec"].get("paused")) == shown:
            return
        if d["spec"].get("paused"):
            self._progress(d, "Unknown", "DeploymentPaused", "Deployment is paused")
        else:
            self._progress(d, "Unknown", "DeploymentResumed", "Deployment is resumed")
        written = await self.client.update(DEPLOYMENTS, d, subresource="status")
        d["metadata"]["resourceVersion"] = written["metadata"]["resourceVersion"]

    async def _sync_status(self, d: Object, sets: list[Object], new: Object | None) -> float | None:
        key = key_of(d)
        fresh = rollout.status(d, sets, new)
        conditions: list[Object] = list((d.get("status") or {}).get("conditions") or [])
        stamp = now()
        enough = fresh.get("availableReplicas", 0) >= rollout.min_available(d)
        available = {
            "type": "Available",
            "status": "True" if enough else "False",
            "reason": "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
            "message": f"Deployment {'has' if enough else 'does not have'} minimum availability.",
        }
        conditions = rollout.put_condition(conditions, available, stamp)
        known = condition(d, "Progressing")
        limit = rollout.deadline(d)
        if limit is None:
            conditions = [c for c in conditions if c["type"] != "Progressing"]
        else:
            settled = (
                fresh.get("replicas", 0) == fresh.get("updatedReplicas", 0)
                and known is not None
                and known["reason"] == "NewReplicaSetAvailable"
            )
            paused = d["spec"].get("paused") or is_deleting(d)
            if not settled and not paused:
                conditions = self._progress_conditions(d, fresh, conditions, new, limit, stamp)
        failures = [c for s in sets if (c := condition(s, "ReplicaFailure")) is not None and c["status"] == "True"]
        if new is not None and (own := condition(new, "ReplicaFailure")) is not None:
            failures.insert(0, own)
        if failures:
            first = {k: failures[0].get(k, "") for k in ("type", "status", "reason", "message")}
            conditions = rollout.put_condition(conditions, first, stamp)
        else:
            conditions = [c for c in conditions if c["type"] != "ReplicaFailure"]
        fresh["conditions"] = conditions
        stored = self.deployments.store.get(key)
        unchanged = (
            stored is not None
            and fresh == (stored.get("status") or {})
            and (stored["metadata"].get("annotations") or {}) == (d["metadata"].get("annotations") or {})
        )
        if not unchanged:
            d["status"] = fresh
            await self.client.update(DEPLOYMENTS, d, subresource="status")
            return None
        return self._look_again(d, fresh, limit)

    def _progress_conditions(
        self, d: Object, fresh: Object, conditions: list[Object], new: Object | None, limit: int, stamp: str
    ) -> list[Object]:
        subject = f'Deployment "{d["metadata"]["name"]}"'
        if new is not None:
            subject = f'ReplicaSet "{new["metadata"]["name"]}"'
        known = next((c for c in conditions if c["type"] == "Progressing"), None)
        if rollout.is_complete(d, fresh):
            words = ("True", "NewReplicaSetAvailable", f"{subject} has successfully progressed.")
        elif rollout.is_progressing(d, fresh):
            words = ("True", "ReplicaSetUpdated", f"{subject} is progressing.")
            # Progress is a fresh lastUpdateTime even when status and reason stay.
            rest = [c for c in conditions if c["type"] != "Progressing"]
            since = known["lastTransitionTime"] if known is not None and known["status"] == "True" else stamp
            keys = ("status", "reason", "message")
            entry = {"type": "Progressing", **dict(zip(keys, words, strict=True))}
            return [*rest, {**entry, "lastUpdateTime": stamp, "lastTransitionTime": since}]
        elif (
            known is not None
            and known["reason"] != "NewReplicaSetAvailable"
            and (
                known["reason"] == "ProgressDeadlineExceeded"
                or seconds(known.get("lastUpdateTime")) + limit < time.time()
            )
        ):
            words = ("False", "ProgressDeadlineExceeded", f"{subject} has timed out progressing.")
        else:
            return conditions
        entry = {"type": "Progressing", "status": words[0], "reason": words[1], "message": words[2]}
        return rollout.put_condition(conditions, entry, stamp)

    @staticmethod
    def _look_again(d: Object, fresh: Object, limit: int | None) -> float | None:
        """When a rollout that stands still will have missed its deadline."""
        known = condition({"metadata": {}, "status": fresh}, "Progressing")
        if limit is None or known is None or d["spec"].get("paused"):
            return None
        if rollout.is_complete(d, fresh) or known["reason"] in ("ProgressDeadlineExceeded", "NewReplicaSetAvailable"):
            return None
        return max(1.0, seconds(known.get("lastUpdateTime")) + limit - time.time() + 1)


def status_gen(obj: Object) -> int:
    return int((obj.get("status") or {}).get("observedGeneration") or 0)
