"""StatefulSets: pods with a name, a place in line, and volumes of their own.

Source: kubernetes pkg/controller/statefulset, described behaviour.
"""

from __future__ import annotations

import re
import time

from longshore.client.objects import controller_of, copy, is_available, is_deleting, is_ready, owner_reference, phase
from longshore.client.resources import CONTROLLER_REVISIONS, PERSISTENT_VOLUME_CLAIMS, PODS, STATEFUL_SETS
from longshore.client.rest import is_already_exists, is_namespace_terminating, is_not_found
from longshore.client.selectors import matcher
from longshore.client.store import Object, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers import history
from longshore.master.controllers.adoption import claim
from longshore.master.controllers.podowner import PodOwnerController
from longshore.master.controllers.pods import Pauses, text, until_available
from longshore.master.controllers.rollout import percent

POD_NAME = "statefulset.kubernetes.io/pod-name"
POD_INDEX = "apps.kubernetes.io/pod-index"
REMOVAL_PAUSE_MOST = 60.0  # seconds between two removals of one place's pods that end at once
_ORDINAL = re.compile(r"^(.*)-([0-9]+)$")


def ordinal(s: Object, pod: Object) -> int:
    """A pod's place in its set, -1 when its name says none."""
    found = _ORDINAL.match(pod["metadata"]["name"])
    return int(found[2]) if found is not None and found[1] == s["metadata"]["name"] else -1


def revision_of(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get(history.REVISION_HASH, ""))


def start_of(s: Object) -> int:
    return int((s["spec"].get("ordinals") or {}).get("start") or 0)


def claim_name(template: Object, s: Object, number: int) -> str:
    return f"{template['metadata']['name']}-{s['metadata']['name']}-{number}"


def make_pod(s: Object, template: Object, revision: str, number: int) -> Object:
    """The pod of a place, from a template."""
    name = f"{s['metadata']['name']}-{number}"
    source = template.get("metadata") or {}
    labels = {**(source.get("labels") or {}), POD_NAME: name, POD_INDEX: str(number), history.REVISION_HASH: revision}
    metadata: Object = {
        "name": name,
        "generateName": s["metadata"]["name"] + "-",
        "namespace": s["metadata"]["namespace"],
        "labels": labels,
        "ownerReferences": [owner_reference(s)],
    }
    for field in ("annotations", "finalizers"):
        if source.get(field):
            metadata[field] = copy(source[field])
    spec = copy(template.get("spec") or {})
    spec["hostname"] = name
    if s["spec"].get("serviceName"):
        spec["subdomain"] = s["spec"]["serviceName"]
    claims = {t["metadata"]["name"]: t for t in s["spec"].get("volumeClaimTemplates") or ()}
    volumes = [{"name": n, "persistentVolumeClaim": {"claimName": claim_name(t, s, number)}} for n, t in claims.items()]
    volumes.extend(v for v in spec.get("volumes") or () if v["name"] not in claims)
    if volumes:
        spec["volumes"] = volumes
    return {"metadata": metadata, "spec": spec}


class StatefulSetController(PodOwnerController):
    """Keeps each StatefulSet's places filled, in order."""

    name = "statefulset-controller"
    resource = STATEFUL_SETS
    component = "statefulset-controller"

    def setup(self) -> None:
        self.pauses = Pauses(REMOVAL_PAUSE_MOST)
        self.revisions = self.watch_owned(CONTROLLER_REVISIONS)
        self.claims = self.watch(PERSISTENT_VOLUME_CLAIMS)
        self.watch_pods()

    # -- reconcile -------------------------------------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        s = self.owners.store.named(namespace, name)
        if s is None:
            self.expectations.forget(key)
            self.pauses.forget(key)
            return None
        if not self.expectations.satisfied(key):
            return None  # pods have names here: what is not yet seen would be made again, and refused
        selector = matcher(s["spec"]["selector"])
        candidates = [p for p in self.candidates(s) if controller_of(p) is not None or ordinal(s, p) >= 0]
        pods = await claim(self.client, s, STATEFUL_SETS, PODS, candidates, selector)
        run = Run(self, key, copy(s), pods)
        failure: BaseException | None = None
        if not await run.find_revisions():
            return 0.1
        try:
            await run.update()
        except (StatusError, OSError) as error:
            failure = error
        await run.write_status()
        await run.truncate()
        if failure is not None and not is_namespace_terminating(failure):
            raise failure
        waits = (run.wait, until_available(pods, int(s["spec"].get("minReadySeconds") or 0), run.now))
        return min((w for w in waits if w is not None), default=None)


class Run:
    """One reconciliation of one StatefulSet."""

    def __init__(self, controller: StatefulSetController, key: str, s: Object, pods: list[Object]) -> None:
        self.c, self.key, self.s, self.pods = controller, key, s, pods
        self.client = controller.client
        self.old_status: Object = s.get("status") or {}
        self.revisions: list[Object] = []
        self.current: Object = {}
        self.latest: Object = {}
        self.collisions = int(self.old_status.get("collisionCount") or 0)
        self.start, self.replicas = start_of(s), int(s["spec"].get("replicas", 1))
        self.ordered = s["spec"].get("podManagementPolicy", "OrderedReady") != "Parallel"
        self.now = time.time()
        self.wait: float | None = None  # seconds until an ended pod may be replaced

    def available(self, pod: Object) -> bool:
        return is_available(pod, int(self.s["spec"].get("minReadySeconds") or 0), self.now)

    # revisions

    async def find_revisions(self) -> bool:
        """Find (or make) the revision of the present template, and the one that pods come from. False: try again."""
        s, store = self.s, self.c.revisions.store
        namespace = s["metadata"]["namespace"]
        candidates = [
            *store.index("controller", s["metadata"]["uid"]),
            *store.index("controller", "orphans/" + namespace),
        ]
        selector = matcher(s["spec"]["selector"])
        self.revisions = history.in_order(
            await claim(self.client, s, STATEFUL_SETS, CONTROLLER_REVISIONS, candidates, selector)
        )
        data = history.data_of(s["spec"]["template"])
        top = max((int(r.get("revision", 0)) for r in self.revisions), default=0)
        same = [r for r in self.revisions if r.get("data") == data]
        if same:
            number = top if int(same[-1].get("revision", 0)) == top else top + 1
            self.latest = await history.renumber(self.client, same[-1], number)
        else:
            labels = (s["spec"]["selector"].get("matchLabels")) or {}
            fresh = history.new_revision(s, s["spec"]["template"], top + 1, self.collisions, labels, history.HASH)
            made = await history.create(self.client, fresh)
            if made is None:
                status = {"replicas": 0, **self.old_status, "collisionCount": self.collisions + 1}
                await self.client.update(STATEFUL_SETS, {**s, "status": status}, subresource="status")
                return False
            self.latest = made
            self.revisions.append(made)
        named = self.old_status.get("currentRevision")
        self.current = next((r for r in self.revisions if r["metadata"]["name"] == named), self.latest)
        return True

    async def truncate(self) -> None:
        live = {revision_of(p) for p in self.pods} | {self.current["metadata"]["name"], self.latest["metadata"]["name"]}
        await history.truncate(self.client, self.revisions, live, self.s["spec"].get("revisionHistoryLimit", 10))

    # the walk over the places

    def _partition(self) -> int:
        strategy = self.s["spec"].get("updateStrategy") or {}
        return int((strategy.get("rollingUpdate") or {}).get("partition") or 0)

    def _fresh_pod(self, number: int) -> Object:
        """The pod for an empty place: of the current revision below the partition, of the update revision above."""
        rolling = (self.s["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate"
        revision = self.latest
        if rolling and self.current is not self.latest and number < self.start + self._partition():
            revision = self.current
        return make_pod(self.s, history.template_of(revision), revision["metadata"]["name"], number)

    async def update(self) -> None:
        """Take the next steps: as many as the policy allows at a time."""
        s = self.s
        if is_deleting(s):
            return
        places: dict[int, Object] = {}
        condemned: list[Object] = []
        for pod in self.pods:
            number = ordinal(s, pod)
            if self.start <= number < self.start + self.replicas:
                places[number] = pod
            elif number >= 0:
                condemned.append(pod)
        await self._claim_owners(places, condemned)
        condemned.sort(key=lambda p: ordinal(s, p), reverse=True)
        for number in range(self.start, self.start + self.replicas):
            if not await self._fill(number, places) and self.ordered:
                return
        unhealthy = [p for p in (*(places[n] for n in sorted(places)), *reversed(condemned)) if not self._up(p)]
        for pod in condemned:
            if is_deleting(pod):
                if self.ordered:
                    return
                continue
            if self.ordered and not self._up(pod) and pod is not unhealthy[0]:
                return
            await self._delete(pod)
            if self.ordered:
                return
        if (s["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate":
            await self._roll(places)

    def _healthy(self, pod: Object) -> bool:
        return phase(pod) == "Running" and is_ready(pod) and not is_deleting(pod)

    def _up(self, pod: Object) -> bool:
        """Whether a pod serves, and has for long enough."""
        return self._healthy(pod) and self.available(pod)

    async def _fill(self, number: int, places: dict[int, Object]) -> bool:
        """See to one place; whether the next may be looked at in ordered mode."""
        pod = places.get(number)
        if pod is not None and phase(pod) in ("Failed", "Succeeded"):
            name = pod["metadata"]["name"]
            pause = 0.0 if is_deleting(pod) else self.c.pauses.left(self.key, name)
            if pause:
                self.wait = min(self.wait or pause, pause)
                return False
            if phase(pod) == "Failed":
                message = f"StatefulSet {self.key} is recreating failed Pod {name}"
                self.c.event(self.s, "Warning", "RecreatingFailedPod", message)
            else:
                message = f"StatefulSet {self.key} is recreating terminated Pod {name}"
                self.c.event(self.s, "Normal", "RecreatingTerminatedPod", message)
            if not is_deleting(pod):
                await self._delete(pod)
            return False
        if pod is None:
            await self._create(number)
            return False
        if is_deleting(pod):
            return False
        if phase(pod) == "Pending":
            await self._make_claims(pod, number)
        await self._repair(pod, number)
        return self._up(pod)

    async def _roll(self, places: dict[int, Object]) -> None:
        """Replace pods of other revisions from the last place down, as many at a time as may be unavailable."""
        latest = self.latest["metadata"]["name"]
        rolling = (self.s["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
        allowed = max(1, percent(rolling.get("maxUnavailable", 1), self.replicas, up=True))
        if allowed == 1:
            await self._roll_one(places)
            return
        down = sum(1 for p in places.values() if not self._up(p))
        down += self.replicas - len(places)
        for number in sorted(places, reverse=True):
            if number < self.start + self._partition():
                return
            pod = places[number]
            well = self._up(pod)
            if revision_of(pod) != latest and not is_deleting(pod):
                if well and down >= allowed:
                    return
                await self._delete(pod)
                down += well
                if down >= allowed:
                    return
            elif not well and down >= allowed:
                return

    async def _roll_one(self, places: dict[int, Object]) -> None:
        """Replace the last pod of another revision, unless one after it is not up yet. What is wrong before it does not hold it
        back: the update may be what mends that."""
        for number in range(self.start + self.replicas - 1, self.start + self._partition() - 1, -1):
            pod = places.get(number)
            if pod is not None and revision_of(pod) != self.latest["metadata"]["name"] and not is_deleting(pod):
                await self._delete(pod)
                return
            if pod is None or not self._up(pod):
                return

    # pods and claims

    async def _create(self, number: int) -> None:
        pod = self._fresh_pod(number)
        name = pod["metadata"]["name"]
        await self._make_claims(pod, number)
        self.c.expectations.creating(self.key)
        made: str | None = None
        try:
            await self.client.create(PODS, pod)
            made = name
        except StatusError as error:
            if is_already_exists(error):
                return
            if not is_namespace_terminating(error):
                message = f"Create Pod {name} in StatefulSet {self.s['metadata']['name']} failed error: {text(error)}"
                self.c.event(self.s, "Warning", "FailedCreate", message)
            raise
        finally:
            self.c.expectations.created(self.key, made)
        message = f"Create Pod {name} in StatefulSet {self.s['metadata']['name']} successful"
        self.c.event(self.s, "Normal", "SuccessfulCreate", message)

    async def _delete(self, pod: Object) -> None:
        meta = pod["metadata"]
        where = f"Pod {meta['name']} in StatefulSet {self.s['metadata']['name']}"
        self.c.expectations.deleting(self.key, meta["uid"])
        try:
            await self.client.delete(PODS, meta["name"], meta["namespace"], uid=meta["uid"])
        except (StatusError, OSError) as error:
            self.c.expectations.observed_deletion(self.key, meta["uid"])
            if is_not_found(error):
                return
            self.c.event(self.s, "Warning", "FailedDelete", f"Delete {where} failed error: {text(error)}")
            raise
        self.c.event(self.s, "Normal", "SuccessfulDelete", f"Delete {where} successful")

    async def _repair(self, pod: Object, number: int) -> None:
        """Labels that give a pod its identity come back when somebody takes them off."""
        name, labels = pod["metadata"]["name"], pod["metadata"].get("labels") or {}
        wanted = {POD_NAME: name, POD_INDEX: str(number)}
        if any(labels.get(k) != v for k, v in wanted.items()):
            patch = {"metadata": {"uid": pod["metadata"]["uid"], "labels": wanted}}
            await self.client.patch(PODS, name, patch, pod["metadata"]["namespace"])

    async def _make_claims(self, pod: Object, number: int) -> None:
        """The place's claims, where missing."""
        s = self.s
        for template in s["spec"].get("volumeClaimTemplates") or ():
            name = claim_name(template, s, number)
            known = self.c.claims.store.named(s["metadata"]["namespace"], name)
            if known is not None:
                if is_deleting(known):
                    raise StatusError(409, "Conflict", f"pvc {name} is being deleted", None)
                continue
            source = template["metadata"]
            matching = s["spec"]["selector"].get("matchLabels") or {}
            metadata: Object = {
                "name": name,
                "namespace": s["metadata"]["namespace"],
                "labels": {**(source.get("labels") or {}), **matching},
            }
            if source.get("annotations"):
                metadata["annotations"] = source["annotations"]
            if self._retention()[0] == "Delete":
                metadata["ownerReferences"] = [self._set_reference()]
            where = f"Claim {name} Pod {pod['metadata']['name']} in StatefulSet {s['metadata']['name']}"
            try:
                await self.client.create(PERSISTENT_VOLUME_CLAIMS, {"metadata": metadata, "spec": template["spec"]})
            except StatusError as error:
                if is_already_exists(error):
                    continue
                if not is_namespace_terminating(error):
                    self.c.event(s, "Warning", "FailedCreate", f"Create {where} failed error: {text(error)}")
                raise
            self.c.event(s, "Normal", "SuccessfulCreate", f"Create {where} success")

    def _retention(self) -> tuple[str, str]:
        """(when the set is deleted, when it is scaled down)."""
        policy = self.s["spec"].get("persistentVolumeClaimRetentionPolicy") or {}
        return policy.get("whenDeleted", "Retain"), policy.get("whenScaled", "Retain")

    def _set_reference(self) -> Object:
        return {**owner_reference(self.s), "controller": True, "blockOwnerDeletion": True}

    async def _claim_owners(self, places: dict[int, Object], condemned: list[Object]) -> None:
        """Who takes a claim away with itself: the set, the condemned pod, or nobody."""
        when_deleted, when_scaled = self._retention()
        if not self.s["spec"].get("volumeClaimTemplates"):
            return
        for number, pod, leaving in (
            *((n, p, False) for n, p in places.items()),
            *((ordinal(self.s, p), p, True) for p in condemned),
        ):
            for template in self.s["spec"]["volumeClaimTemplates"]:
                name = claim_name(template, self.s, number)
                known = self.c.claims.store.named(self.s["metadata"]["namespace"], name)
                if known is None:
                    continue
                owners = known["metadata"].get("ownerReferences") or []
                mine = {self.s["metadata"]["uid"], pod["metadata"]["uid"]}
                kept = [o for o in owners if o["uid"] not in mine]
                if leaving and when_scaled == "Delete":
                    kept.append({**owner_reference({**pod, "kind": "Pod", "apiVersion": "v1"})})
                elif when_deleted == "Delete":
                    kept.append(self._set_reference())
                if {o["uid"] for o in kept} != {o["uid"] for o in owners}:
                    await self.client.update(
                        PERSISTENT_VOLUME_CLAIMS,
                        {**known, "metadata": {**known["metadata"], "ownerReferences": kept}},
                    )

    # status

    async def write_status(self) -> None:
        """Count from what is there now (the cache may have moved on during the walk)."""
        s = self.s
        pods = self.c.pods.store.index("controller", s["metadata"]["uid"])
        current, latest = self.current["metadata"]["name"], self.latest["metadata"]["name"]
        there = [p for p in pods if phase(p)]
        standing = [p for p in there if not is_deleting(p)]
        ready = [p for p in there if phase(p) == "Running" and is_ready(p)]
        counts = {
            "replicas": len(there),
            "readyReplicas": len(ready),
            "availableReplicas": sum(1 for p in ready if self.available(p)),
            "currentReplicas": sum(1 for p in standing if revision_of(p) == current),
            "updatedReplicas": sum(1 for p in standing if revision_of(p) == latest),
        }
        rolling = (s["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate"
        if rolling and counts["updatedReplicas"] == counts["replicas"] == counts["readyReplicas"] == self.replicas:
            current, counts["currentReplicas"] = latest, counts["updatedReplicas"]
        status: Object = {k: v for k, v in counts.items() if v or k in ("replicas", "availableReplicas")}
        status["currentRevision"], status["updateRevision"] = current, latest
        status["collisionCount"] = self.collisions
        status["observedGeneration"] = s["metadata"].get("generation", 0)
        if "conditions" in self.old_status:
            status["conditions"] = self.old_status["conditions"]
        if status != self.old_status:
            await self.client.update(STATEFUL_SETS, {**s, "status": status}, subresource="status")
