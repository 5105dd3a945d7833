"""DaemonSets: one pod on every node that fits.

Source: kubernetes pkg/controller/daemon, described behaviour.
"""

from __future__ import annotations

import time

from longshore.client.objects import (
    copy,
    is_available,
    is_deleting,
    is_ready,
    phase,
    seconds,
    tolerates,
)
from longshore.client.resources import CONTROLLER_REVISIONS, DAEMON_SETS, NODES, PODS
from longshore.client.rest import is_namespace_terminating
from longshore.client.selectors import matcher, requirement
from longshore.client.store import Object, key_of, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers import history
from longshore.master.controllers import pods as pod_control
from longshore.master.controllers.adoption import claim
from longshore.master.controllers.daemonroll import Roll
from longshore.master.controllers.podowner import PodOwnerController
from longshore.master.controllers.rollout import percent

GENERATION = "deprecated.daemonset.template.generation"
TEMPLATE_GENERATION = "pod-template-generation"

KILL_PAUSE_MOST = 900.0  # seconds between two kills of failed pods on one node

TOLERATED = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)


def with_tolerations(spec: Object) -> Object:
    """A pod spec that stays on nodes in trouble, in place."""
    wanted = list(TOLERATED)
    if spec.get("hostNetwork"):
        wanted.append(("node.kubernetes.io/network-unavailable", "NoSchedule"))
    tolerations = spec.setdefault("tolerations", [])
    for key, effect in wanted:
        entry = {"key": key, "operator": "Exists", "effect": effect}
        if not any(
            (t.get("key"), t.get("effect"), t.get("operator")) == (key, effect, "Exists") and not t.get("value")
            for t in tolerations
        ):
            tolerations.append(entry)
    return spec


def bound_to(spec: Object, node: str) -> Object:
    """A pod spec whose required node affinity is exactly this node, in place."""
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    return spec


def target_node(pod: Object) -> str:
    """The node that a daemon pod is for, bound or not."""
    if pod["spec"].get("nodeName"):
        return str(pod["spec"]["nodeName"])
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for entry in term.get("matchFields") or ():
            if entry.get("key") == "metadata.name" and len(entry.get("values") or ()) == 1:
                return str(entry["values"][0])
    return ""


def belongs(ds: Object, node: Object) -> tuple[bool, bool]:
    """(a pod should run on the node, a pod that runs there may go on)."""
    spec = with_tolerations(copy(ds["spec"]["template"].get("spec") or {}))
    labels, name = node["metadata"].get("labels") or {}, node["metadata"]["name"]
    if spec.get("nodeName") not in (None, "", name):
        return False, False
    if any(labels.get(k) != v for k, v in (spec.get("nodeSelector") or {}).items()):
        return False, False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is not None and not any(_term(t, labels, name) for t in required.get("nodeSelectorTerms") or ()):
        return False, False
    taints = list(node["spec"].get("taints") or ())
    if node["spec"].get("unschedulable"):
        taints.append({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"})
    refused = [t for t in taints if not tolerates(spec["tolerations"], t)]
    if any(t.get("effect") == "NoExecute" for t in refused):
        return False, False
    if any(t.get("effect") == "NoSchedule" for t in refused):
        return False, True
    return True, True


def _term(term: Object, labels: dict[str, str], name: str) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    return all(requirement(e)(labels) for e in expressions) and all(
        requirement(f)({"metadata.name": name}) for f in fields
    )


class DaemonSetController(PodOwnerController):
    """Keeps one pod of each DaemonSet on each node that it belongs to."""

    name = "daemonset-controller"
    resource = DAEMON_SETS
    account = "daemon-set-controller"
    component = "daemonset-controller"

    def setup(self) -> None:
        self.pauses = pod_control.Pauses(KILL_PAUSE_MOST)
        self.revisions = self.watch_owned(CONTROLLER_REVISIONS)
        self.nodes = self.watch(NODES, add=self._node, update=self._node_changed, delete=self._node)
        self.watch_pods()

    def owner_gone(self, obj: Object) -> None:
        self.pauses.forget(key_of(obj))
        super().owner_gone(obj)

    def _node(self, node: Object) -> None:
        for ds in self.owners.store:
            if belongs(ds, node)[0]:
                self.enqueue(ds)

    def _node_changed(self, old: Object, new: Object) -> None:
        a = (old["metadata"].get("labels"), old["spec"].get("taints"), old["spec"].get("unschedulable"))
        b = (new["metadata"].get("labels"), new["spec"].get("taints"), new["spec"].get("unschedulable"))
        if a == b:
            return
        for ds in self.owners.store:
            if belongs(ds, old) != belongs(ds, new):
                self.enqueue(ds)

    # -- reconcile -------------------------------------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        ds = self.owners.store.named(namespace, name)
        if ds is None:
            self.expectations.forget(key)
            return None
        if ds["spec"].get("selector") == {}:
            message = "This daemon set is selecting all pods. A non-empty selector is required."
            self.event(ds, "Warning", "SelectingAll", message)
            return None
        if is_deleting(ds):
            return None
        revision, old = await self._revisions(ds)
        if revision is None:
            return 0.1
        letters = revision["metadata"]["labels"][history.REVISION_HASH]
        failure: BaseException | None = None
        wait: float | None = None
        if await self.caught_up(ds):
            by_node = await self._pods_by_node(ds)
            failure, wait = await self._manage(key, ds, by_node, letters)
            if failure is None and self.expectations.satisfied(key):
                if (ds["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate":
                    failure = await self._roll(key, ds, by_node, letters)
            live = {
                f"{name}-{(p['metadata'].get('labels') or {}).get(history.REVISION_HASH, '')}"
                for ps in by_node.values()
                for p in ps
            }
            live.add(revision["metadata"]["name"])
            await history.truncate(self.client, old, live, ds["spec"].get("revisionHistoryLimit", 10))
        again = await self._status(ds, letters)
        if failure is not None:
            raise failure
        return min((w for w in (again, wait) if w is not None), default=None)

    async def _revisions(self, ds: Object) -> tuple[Object | None, list[Object]]:
        namespace = ds["metadata"]["namespace"]
        candidates = [
            *self.revisions.store.index("controller", ds["metadata"]["uid"]),
            *self.revisions.store.index("controller", "orphans/" + namespace),
        ]
        selector = matcher(ds["spec"]["selector"])
        known = history.in_order(await claim(self.client, ds, DAEMON_SETS, CONTROLLER_REVISIONS, candidates, selector))
        wanted = history.data_of(ds["spec"]["template"])
        top = max((int(r.get("revision", 0)) for r in known), default=0)
        same = [r for r in known if r.get("data") == wanted]
        if same:
            current = same[-1]
            number = top if int(current.get("revision", 0)) == top else top + 1
            current = await history.renumber(self.client, current, number)
            return current, [r for r in known if r["metadata"]["name"] != current["metadata"]["name"]]
        collisions = int((ds.get("status") or {}).get("collisionCount") or 0)
        labels = (ds["spec"]["template"].get("metadata") or {}).get("labels") or {}
        fresh = history.new_revision(ds, ds["spec"]["template"], top + 1, collisions, labels, history.REVISION_HASH)
        made = await history.create(self.client, fresh)
        if made is None:
            status = {**(ds.get("status") or {}), "collisionCount": collisions + 1}
            await self.client.update(DAEMON_SETS, {**ds, "status": status}, subresource="status")
        return made, known

    async def _pods_by_node(self, ds: Object) -> dict[str, list[Object]]:
        result: dict[str, list[Object]] = {}
        for pod in await claim(self.client, ds, DAEMON_SETS, PODS, self.candidates(ds), self.selector(ds)):
            node = target_node(pod)
            if node:
                result.setdefault(node, []).append(pod)
        return result

    async def _manage(
        self, key: str, ds: Object, by_node: dict[str, list[Object]], letters: str
    ) -> tuple[BaseException | None, float | None]:
        """Make missing pods, remove those that should not be; first failure, and when to look again."""
        create: list[str] = []
        delete: list[Object] = []
        wait: float | None = None
        nodes = {n["metadata"]["name"]: n for n in self.nodes.store}
        surge = self._limits(ds)[0]
        for name, node in nodes.items():
            should, may_stay = belongs(ds, node)
            pods = by_node.get(name, [])
            if should and not pods:
                create.append(name)
            elif may_stay and pods:
                running = []
                for pod in pods:
                    if is_deleting(pod):
                        continue
                    if phase(pod) in ("Failed", "Succeeded"):
                        pause = self.pauses.left(key, name)
                        if pause > 0:
                            wait = min(wait or pause, pause)
                            continue
                        delete.append(pod)
                        how = ("Warning", "FailedDaemonPod", "failed") if phase(pod) == "Failed" else None
                        how = how or ("Normal", "SucceededDaemonPod", "succeeded")
                        message = f"Found {how[2]} daemon pod {key_of(pod)} on node {name}, will try to "
                        self.event(ds, how[0], how[1], message + ("kill it" if how[2] == "failed" else "delete it"))
                    else:
                        running.append(pod)
                delete.extend(self._excess(ds, running, letters, surge))
                if surge and should and not running:
                    create.append(name)  # while surging, what ends is not waited for
            elif pods:
                delete.extend(p for p in pods if not is_deleting(p))
        for name, pods in by_node.items():
            if name not in nodes:
                delete.extend(p for p in pods if not is_deleting(p) and not p["spec"].get("nodeName"))
        return await self._carry_out(key, ds, create, delete, letters), wait

    def _excess(self, ds: Object, running: list[Object], letters: str, surge: int) -> list[Object]:
        """Pods too many on one node: all but the oldest; with surge an old and a new one may be together for a while."""
        ordered = sorted(
            running, key=lambda p: (not p["spec"].get("nodeName"), seconds(p["metadata"].get("creationTimestamp")))
        )
        if not surge:
            return ordered[1:]
        new = [p for p in ordered if self._has(p, letters)]
        old = [p for p in ordered if not self._has(p, letters)]
        extra = [*new[1:], *old[1:]]
        if new and old and (not is_ready(old[0]) or is_available(new[0], self._min_ready(ds), time.time())):
            extra.append(old[0])
        return extra

    async def _carry_out(
        self, key: str, ds: Object, create: list[str], delete: list[Object], letters: str
    ) -> BaseException | None:
        names = iter(create[: pod_control.BURST])
        generation = (ds["metadata"].get("annotations") or {}).get(GENERATION)

        async def make() -> None:
            pod = pod_control.from_template(ds["spec"]["template"], ds)
            bound_to(with_tolerations(pod["spec"]), next(names))
            labels = pod["metadata"].setdefault("labels", {})
            labels[history.REVISION_HASH] = letters
            if generation is not None:
                labels[TEMPLATE_GENERATION] = generation
            try:
                await self.make_pod(ds, pod)
            except StatusError as error:
                if not is_namespace_terminating(error):
                    raise

        doomed = iter(delete[: pod_control.BURST])

        async def remove() -> None:
            await self.remove_pod(ds, next(doomed))

        _, failed = await pod_control.in_batches(min(len(create), pod_control.BURST), make)
        _, failed2 = await pod_control.in_batches(min(len(delete), pod_control.BURST), remove)
        return failed or failed2

    # -- rolling update --------------------------------------------------------------------------------------------------

    def _limits(self, ds: Object) -> tuple[int, int]:
        """(max surge, max unavailable) in nodes."""
        strategy = ds["spec"].get("updateStrategy") or {}
        if strategy.get("type", "RollingUpdate") != "RollingUpdate":
            return 0, 0
        rolling = strategy.get("rollingUpdate") or {}
        desired = sum(1 for n in self.nodes.store if belongs(ds, n)[0])
        surge = percent(rolling.get("maxSurge", 0), desired, up=True)
        unavailable = percent(rolling.get("maxUnavailable", 1), desired, up=True)
        if not surge and not unavailable:
            unavailable = 1
        return surge, unavailable

    @staticmethod
    def _has(pod: Object, letters: str) -> bool:
        return (pod["metadata"].get("labels") or {}).get(history.REVISION_HASH) == letters

    @staticmethod
    def _min_ready(ds: Object) -> int:
        return int(ds["spec"].get("minReadySeconds") or 0)

    async def _roll(self, key: str, ds: Object, by_node: dict[str, list[Object]], letters: str) -> BaseException | None:
        surge, allowed = self._limits(ds)
        at, wait = time.time(), self._min_ready(ds)
        roll = Roll(desired=0)
        for node in self.nodes.store:
            name = node["metadata"]["name"]
            runs = belongs(ds, node)[0]
            roll.desired += runs
            if not runs and name not in by_node:
                continue
            pods = [p for p in by_node.get(name, []) if not is_deleting(p)]
            new = [p for p in pods if self._has(p, letters)]
            old = [p for p in pods if not self._has(p, letters)]
            if len(new) > 1 or len(old) > 1:
                roll.busy += 1  # those too many go first
            elif surge:
                roll.surge(name, runs, new, old, lambda p: is_available(p, wait, at))
            else:
                roll.replace(new, old, lambda p: is_available(p, wait, at))
        create, delete = roll.with_surge(surge) if surge else roll.without_surge(allowed)
        return await self._carry_out(key, ds, create, delete, letters)

    # -- status ------------------------------------------------------------------------------------------------------------

    async def _status(self, ds: Object, letters: str) -> float | None:
        by_node: dict[str, list[Object]] = {}
        for pod in self.pods.store.index("controller", ds["metadata"]["uid"]):
            by_node.setdefault(target_node(pod), []).append(pod)
        desired = current = misplaced = ready = available = updated = 0
        at, wait = time.time(), self._min_ready(ds)
        for node in self.nodes.store:
            pods = by_node.get(node["metadata"]["name"], [])
            should = belongs(ds, node)[0]
            if not should:
                misplaced += bool(pods)
                continue
            desired += 1
            if not pods:
                continue
            current += 1
            pods.sort(key=lambda p: (is_deleting(p), seconds(p["metadata"].get("creationTimestamp"))))
            live = [p for p in pods if not is_deleting(p)]
            if any(is_ready(p) for p in live):
                ready += 1
                available += any(is_available(p, wait, at) for p in live)
            updated += any(self._has(p, letters) for p in live)
        status: Object = {
            "currentNumberScheduled": current,
            "numberMisscheduled": misplaced,
            "desiredNumberScheduled": desired,
            "numberReady": ready,
            "observedGeneration": ds["metadata"].get("generation", 0),
        }
        numbers = {
            "updatedNumberScheduled": updated,
            "numberAvailable": available,
            "numberUnavailable": desired - available,
        }
        status.update({k: v for k, v in numbers.items() if v})
        old = ds.get("status") or {}
        for kept in ("collisionCount", "conditions"):
            if kept in old:
                status[kept] = old[kept]
        if status != old:
            await self.client.update(DAEMON_SETS, {**ds, "status": status}, subresource="status")
        return pod_control.until_available([p for pods in by_node.values() for p in pods], wait, at)
