"""One pod after the other: choose a node, assume the pod on it, bind it while the next is being chosen.

Source: kubernetes pkg/scheduler (schedule_one, eventhandlers), described behaviour.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from longshore.client import metrics
from longshore.client.events import EventRecorder
from longshore.client.informer import Informer, InformerFactory
from longshore.client.objects import is_deleting, is_terminal, now
from longshore.client.resources import NAMESPACES, NODES, PODS, Resource
from longshore.client.rest import Client, is_not_found
from longshore.client.store import Object, key_of
from longshore.machinery.errors import StatusError
from longshore.master.scheduler.counters import Counters
from longshore.master.scheduler.extender import Extender, ExtenderError
from longshore.master.scheduler.framework import Action, ClusterEvent, Code, CycleState, Handle, Status
from longshore.master.scheduler.nodes import NodeRow, NodeTable, Rows
from longshore.master.scheduler.podinfo import PodInfo, start_time
from longshore.master.scheduler.profile import Diagnosis, Profile
from longshore.master.scheduler.queue import SchedulingQueue
from longshore.master.scheduler.room import Room

log = logging.getLogger("longshore.scheduler")

BINDINGS_AT_ONCE = 128
SLICE_SECONDS = 0.004  # how long pods are chosen for before the network gets its turn


class Scheduler:
    """Schedules the pods of its profiles. make_profiles is given the Handle for their plugins."""

    def __init__(
        self,
        client: Client,
        informers: InformerFactory,
        make_profiles: Callable[[Handle], dict[str, Profile]],
        *,
        extenders: Sequence[Extender] = (),
        initial_backoff: float = 1.0,
        max_backoff: float = 10.0,
    ) -> None:
        self.extenders = list(extenders)
        self.client, self.informers = client, informers
        self.table = NodeTable()
        self.counters = Counters(self.table, self._namespace_labels)
        self.queue = SchedulingQueue(
            self._pre_enqueue, self._hint, initial_backoff=initial_backoff, max_backoff=max_backoff
        )
        self.placed: dict[str, str] = {}  # pod key -> node, bound or assumed
        self.assumed: dict[str, PodInfo] = {}
        self.nominations: dict[str, dict[str, PodInfo]] = {}  # node -> pods that will run there
        self._nominated_to: dict[str, str] = {}
        self._recorders: dict[str, EventRecorder] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(BINDINGS_AT_ONCE)
        self.attempts: Counter[tuple[str, str]] = Counter()  # (profile, result)
        self.durations = metrics.Histogram(metrics.ATTEMPT_BUCKETS)
        self._watched: dict[Resource, Informer] = {}
        self.namespaces = self._inform(NAMESPACES)
        self.handle = handle = Handle(client, informers, self.table, self.counters, self._watch_events)
        handle.only_room = lambda state, pod: self.profiles[pod.cls.scheduler].only_room(state)
        handle.event, handle.nominated = self.event, self.nominated
        handle.tell = self.queue.event
        handle.preempters = lambda pod: [e for e in self.extenders if e.preempt_verb and e.wants(pod)]
        handle.fits_with = lambda pod, node, add, remove: self.fits_with(
            self.profiles[pod.cls.scheduler], pod, node, add=add, remove=remove
        )
        self.profiles = make_profiles(handle)
        self.namespaces.on(update=self._namespace_changed)
        self.nodes = self._inform(NODES)
        self.nodes.on(self._node_added, self._node_changed, self._node_gone)
        self.pods = self._inform(PODS)
        self.pods.on(self._pod_added, self._pod_changed, self._pod_gone)

    # -- informers ---------------------------------------------------------------------------------------------------------

    def _inform(self, resource: Resource) -> Informer:
        found = self._watched.get(resource)
        if found is None:
            found = self._watched[resource] = self.informers.informer(resource)
        return found

    def _watch_events(self, resource: Resource) -> Informer:
        """An informer for a plugin; its changes become cluster events."""
        known = resource in self._watched
        informer = self._inform(resource)
        if not known:
            informer.on(
                lambda o: self._changed(resource.kind, Action.ADD, None, o),
                lambda a, b: self._changed(resource.kind, Action.UPDATE, a, b),
                lambda o: self._changed(resource.kind, Action.DELETE, o, None),
            )
        return informer

    def _changed(self, kind: str, action: Action, old: Object | None, new: Object | None) -> None:
        self.handle.changes += 1
        self.queue.event(ClusterEvent(kind, action, old, new))

    def _namespace_labels(self, name: str) -> dict[str, str]:
        found = self.namespaces.store.get(name)
        return (found["metadata"].get("labels") or {}) if found is not None else {}

    def _namespace_changed(self, old: Object, new: Object) -> None:
        if old["metadata"].get("labels") != new["metadata"].get("labels"):
            self.counters.forget_namespaces()
            self.queue.event(ClusterEvent("Namespace", Action.UPDATE, old, new))

    def _node_added(self, node: Object) -> None:
        self.table.set_node(node)
        self.queue.event(ClusterEvent("Node", Action.ADD, None, node))

    def _node_changed(self, old: Object, new: Object) -> None:
        a, b = old.get("status") or {}, new.get("status") or {}
        relevant = (
            a.get("allocatable") != b.get("allocatable")
            or a.get("declaredFeatures") != b.get("declaredFeatures")
            or old["metadata"].get("labels") != new["metadata"].get("labels")
            or (old["spec"].get("taints"), old["spec"].get("unschedulable"))
            != (new["spec"].get("taints"), new["spec"].get("unschedulable"))
        )
        if relevant or a.get("images") != b.get("images"):
            self.table.set_node(new)
        if relevant:
            self.queue.event(ClusterEvent("Node", Action.UPDATE, old, new))

    def _node_gone(self, node: Object) -> None:
        self.table.remove_node(node["metadata"]["name"])
        self.queue.event(ClusterEvent("Node", Action.DELETE, node, None))

    def _is_ours(self, pod: Object) -> bool:
        return (pod["spec"].get("schedulerName") or "default-scheduler") in self.profiles

    def _pod_added(self, pod: Object) -> None:
        if is_terminal(pod):
            return
        if pod["spec"].get("nodeName"):
            self._place(pod)
        elif self._is_ours(pod) and not is_deleting(pod):
            info = PodInfo(pod)
            self._nominate(info)
            self.queue.add(info)

    def _pod_changed(self, old: Object, new: Object) -> None:
        if old["metadata"].get("uid") != new["metadata"].get("uid"):
            self._pod_gone(old)
            self._pod_added(new)
            return
        if is_terminal(new):
            if not is_terminal(old):
                self._pod_gone(old)
            return
        if new["spec"].get("nodeName"):
            self._place(new)
            return
        if not self._is_ours(new):
            return
        key = key_of(new)
        if is_deleting(new):
            self.queue.delete(key)
            self._unnominate(key)
        elif key not in self.assumed:
            info = PodInfo(new)
            self._nominate(info)
            self.queue.update(info)

    def _pod_gone(self, pod: Object) -> None:
        key = key_of(pod)
        self.queue.delete(key)
        had_nomination = key in self._nominated_to
        self._unnominate(key)
        node = self.placed.pop(key, None)
        self.assumed.pop(key, None)
        if node is not None:
            self.table.remove_pod(key, node)
        if node is not None or had_nomination:
            self.queue.event(ClusterEvent("Pod", Action.DELETE, pod, None))

    def _place(self, pod: Object) -> None:
        """A pod has a node, by us or by another hand."""
        key, node = key_of(pod), pod["spec"]["nodeName"]
        assumed = self.assumed.pop(key, None)
        confirmed = assumed is not None
        info = assumed.as_bound(pod) if assumed is not None else PodInfo(pod)
        self._unnominate(key)
        before = self.placed.get(key)
        old: PodInfo | None = None
        if before is not None:
            row = self.table.by_name.get(before)
            old = row.pods.get(key) if row is not None else None
            if before == node and old is not None and row is not None and old.cls is info.cls:
                if is_deleting(old.pod) == is_deleting(pod):
                    if start_time(old.pod) != start_time(pod):
                        self.table.touch(node)  # preemption spares who has run longest
                    old.pod = pod
                    if confirmed:
                        self.queue.event(ClusterEvent("Pod", Action.ADD, None, pod))
                    return
            self.table.remove_pod(key, before)
        self.placed[key] = node
        self.table.add_pod(info, node)
        if before is None or confirmed:
            self.queue.delete(key)
            self.queue.event(ClusterEvent("Pod", Action.ADD, None, pod))
        elif old is not None:
            self.queue.event(ClusterEvent("Pod", Action.UPDATE, old.pod, pod))

    # -- nominations -------------------------------------------------------------------------------------------------------

    def nominated(self, node: str) -> list[PodInfo]:
        """Pods that preemption made room for on a node."""
        return list(self.nominations.get(node, {}).values())

    def _nominate(self, info: PodInfo, node: str = "") -> None:
        node = node or info.nominated
        self._unnominate(info.key)
        if node:
            self.nominations.setdefault(node, {})[info.key] = info
            self._nominated_to[info.key] = node
            self.table.touch(node)

    def _unnominate(self, key: str) -> None:
        node = self._nominated_to.pop(key, None)
        if node is not None:
            self.nominations[node].pop(key, None)
            if not self.nominations[node]:
                del self.nominations[node]
            self.table.touch(node)

    def _without_nominated(self, state: CycleState, profile: Profile, pod: PodInfo, rows: list[int]) -> list[int]:
        """Rows that still fit when pods of the same or a higher priority that are nominated there run there too."""
        result = []
        only_room = not pod.cls.ports and profile.only_room(state)
        for index in rows:
            row = self.table.rows[index]
            others = [
                p
                for p in self.nominated(row.name if row is not None else "")
                if p.key != pod.key and p.priority >= pod.priority and p.key not in self.placed
            ]
            if row is None or not others:
                result.append(index)
            elif only_room:
                if Room(self.table, pod, row, others).enough:
                    result.append(index)
            elif self.fits_with(profile, pod, row, add=others):
                result.append(index)
        return result

    def fits_with(
        self,
        profile: Profile,
        pod: PodInfo,
        row: NodeRow,
        *,
        add: Sequence[PodInfo] = (),
        remove: Sequence[PodInfo] = (),
    ) -> bool:
        """Whether the pod would fit on a node with other pods there, or without some that are."""
        name = row.name
        for other in remove:
            self.table.remove_pod(other.key, name)
        for other in add:
            self.table.add_pod(other, name)
        try:
            state = CycleState()
            return profile.pre_filter(state, pod) is None and profile.fits(state, pod, row) is None
        finally:
            for other in add:
                self.table.remove_pod(other.key, name)
            for other in remove:
                self.table.add_pod(other, name)

    # -- plugins' say in the queue -----------------------------------------------------------------------------------------

    def _pre_enqueue(self, pod: PodInfo) -> Status | None:
        profile = self.profiles.get(pod.cls.scheduler)
        for plugin in profile.pre_enqueue if profile is not None else ():
            status = plugin.pre_enqueue(pod)
            if status is not None:
                return status
        return None

    def _hint(self, pod: PodInfo, event: ClusterEvent) -> bool:
        profile = self.profiles.get(pod.cls.scheduler)
        if profile is None:
            return False
        if not pod.unschedulable_by:
            return True
        for name in pod.unschedulable_by:
            plugin = profile.by_name.get(name)
            if plugin is None:
                return True
            if event.kind in plugin.wants and plugin.queue_hint(pod, event):
                return True
        return False

    # -- the cycle ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Schedule until cancelled."""
        for informer in self._watched.values():
            await informer.wait_synced()
        loop = asyncio.get_running_loop()
        try:
            turn = loop.time()
            while True:
                info = await self.queue.pop()
                begun = loop.time()
                try:
                    self.schedule(info)
                    self.durations.observe(loop.time() - begun)
                except Exception as error:
                    log.exception("scheduling %s", info.key)
                    self._spawn(self._failed(info, "SchedulerError", str(error)))
                if self._slots.locked():
                    async with self._slots:
                        pass
                if loop.time() - turn > SLICE_SECONDS:
                    await asyncio.sleep(0)
                    turn = loop.time()
        finally:
            self.queue.close()
            for task in self._tasks:
                task.cancel()
            for recorder in self._recorders.values():
                await recorder.stop()

    def schedule(self, info: PodInfo) -> str:
        """One attempt: the name of the chosen node (its binding under way), or "" (the failure being told)."""
        fresh = self.pods.store.get(info.key)
        if fresh is None or is_deleting(fresh) or fresh["spec"].get("nodeName") or info.key in self.placed:
            self.queue.done(info.key)
            return ""
        profile = self.profiles[info.cls.scheduler]
        state = CycleState()
        diagnosis = profile.pre_filter(state, info) if len(self.table.by_name) else Diagnosis()
        if diagnosis is None:
            rows = profile.feasible(state, info)
            if self.nominations and len(rows):
                rows = self._prefer_nominated(state, profile, info, rows)
            interested = [e for e in self.extenders if e.wants(info)] if len(rows) else []
            if interested:
                self._spawn(self._extended(state, profile, info, rows, interested))
                return ""
            if len(rows):
                index = profile.choose(state, info, rows)
                row = self.table.rows[index]
                assert row is not None
                return self._assume(state, profile, info, row)
            diagnosis = profile.diagnose(state, info)
        self._spawn(self._refused(profile, state, info, diagnosis))
        return ""

    async def _extended(
        self, state: CycleState, profile: Profile, info: PodInfo, rows: Rows, extenders: list[Extender]
    ) -> None:
        """Go on with a pod that extenders have a say in. They are asked over the network; others go on meanwhile."""
        left = [row for i in rows.tolist() if (row := self.table.rows[i]) is not None]
        refused: dict[str, Status] = {}
        scores: dict[str, float] = {}
        for extender in extenders:
            try:
                left, more = await extender.filter(info, left)
                refused.update(more)
                if len(left) > 1:
                    for name, score in (await extender.prioritize(info, left)).items():
                        scores[name] = scores.get(name, 0.0) + score
            except ExtenderError as error:
                if not extender.ignorable:
                    await self._failed(info, "SchedulerError", str(error))
                    return
                log.warning("%s is ignored: %s", extender.prefix, error)
        if self.pods.store.get(info.key) is None or info.key in self.placed:
            self.queue.done(info.key)
            return
        # What fitted when we asked may not fit any more.
        left = [row for row in left if row.node is not None and self.fits_with(profile, info, row)]
        if not left:
            diagnosis = profile.diagnose(state, info)
            statuses = {**diagnosis.statuses, **refused}
            await self._refused(profile, state, info, Diagnosis(statuses, "", frozenset(), diagnosis.nodes))
            return
        row = profile.choose_with(state, info, left, scores)
        self._assume(state, profile, info, row)

    def _prefer_nominated(self, state: CycleState, profile: Profile, info: PodInfo, rows: Rows) -> Rows:
        if len(rows) < len(self.nominations):
            touched = {
                i for i in rows.tolist() if (row := self.table.rows[i]) is not None and row.name in self.nominations
            }
        else:
            touched = {self.table.by_name[n].index for n in self.nominations if n in self.table.by_name}
        own = self.table.by_name.get(self._nominated_to.get(info.key, ""))
        if own is not None and own.index in rows and self._without_nominated(state, profile, info, [own.index]):
            return rows[rows == own.index]
        bad = touched.intersection(rows.tolist())
        good = set(self._without_nominated(state, profile, info, sorted(bad)))
        gone = bad - good
        return rows[[i not in gone for i in rows.tolist()]] if gone else rows

    def _assume(self, state: CycleState, profile: Profile, info: PodInfo, row: NodeRow) -> str:
        node = row.name
        self.table.add_pod(info, node)
        self.placed[info.key] = node
        self.assumed[info.key] = info
        self._unnominate(info.key)
        for plugin in profile.reserves:
            status = plugin.reserve(state, info, node)
            if status is not None:
                self._forget(state, profile, info, node)
                info.unschedulable_by = frozenset({plugin.name})
                self._spawn(self._failed(info, "SchedulerError", status.message))
                return ""
        self._spawn(self._bind(state, profile, info, node))
        return node

    def _forget(self, state: CycleState, profile: Profile, info: PodInfo, node: str) -> None:
        for plugin in reversed(profile.reserves):
            plugin.unreserve(state, info, node)
        if self.assumed.pop(info.key, None) is not None:
            self.placed.pop(info.key, None)
            self.table.remove_pod(info.key, node)
            self.queue.event(
                ClusterEvent("Pod", Action.DELETE, {**info.pod, "spec": {**info.pod["spec"], "nodeName": node}}, None)
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bind(self, state: CycleState, profile: Profile, info: PodInfo, node: str) -> None:
        status: Status | None = None
        try:
            # Pods that are held back take none of the places for bindings: others may be what they wait for.
            if profile.permits:
                status = await self._permit(state, profile, info, node)
            if status is None:
                async with self._slots:
                    status = await self._binding_cycle(state, profile, info, node)
        except (OSError, TimeoutError, StatusError) as error:
            status = Status.error(str(error))
        except Exception as error:
            log.exception("binding %s", info.key)
            status = Status.error(str(error))
        if status is None:
            self.queue.done(info.key)
            self.attempts[profile.name, "scheduled"] += 1
            for plugin in profile.post_binds:
                plugin.post_bind(state, info, node)
            message = f"Successfully assigned {info.key} to {node}"
            self.event(info.pod, "Normal", "Scheduled", message, action="Binding")
            return
        self._forget(state, profile, info, node)
        if status.code in (Code.UNSCHEDULABLE, Code.UNRESOLVABLE):
            info.unschedulable_by = frozenset({status.plugin} if status.plugin else ())
            await self._tell(info, "Unschedulable", status.message)
            self.queue.refused(info)
            self.queue.done(info.key)
        else:
            await self._failed(info, "SchedulerError", status.message)

    @staticmethod
    async def _permit(state: CycleState, profile: Profile, info: PodInfo, node: str) -> Status | None:
        for plugin in profile.permits:
            status = await plugin.permit(state, info, node)
            if status is not None:
                return Status(status.code, status.reasons, plugin.name)
        return None

    async def _binding_cycle(self, state: CycleState, profile: Profile, info: PodInfo, node: str) -> Status | None:
        for plugin in profile.pre_binds:
            status = await plugin.pre_bind(state, info, node)
            if status is not None:
                return Status(status.code, status.reasons, plugin.name)
        for extender in self.extenders:
            if extender.bind_verb and extender.wants(info):
                return await extender.bind(info, node)
        for plugin in profile.binds:
            status = await plugin.bind(state, info, node)
            if status is None:
                return None
            if status.code is not Code.SKIP:
                return Status(status.code, status.reasons, plugin.name)
        return Status.error("no binder took the pod")

    # -- failures ----------------------------------------------------------------------------------------------------------

    async def _refused(self, profile: Profile, state: CycleState, info: PodInfo, diagnosis: Diagnosis) -> None:
        info.unschedulable_by = diagnosis.plugins
        reasons, nominee = [], ""
        if diagnosis.pre_filter:
            reasons.append("not found")  # what upstream's preemption says when no node was looked at
        for plugin in profile.post_filters if diagnosis.nodes and not diagnosis.pre_filter else ():
            try:
                node, status = await plugin.post_filter(state, info, diagnosis.statuses)
            except (OSError, TimeoutError, StatusError) as error:
                node, status = "", Status.error(str(error))
            if status is None:
                nominee = node
                break
            if status.reasons:
                reasons.append(status.message)
        if nominee:
            self._nominate(info, nominee)
        await self._tell(info, "Unschedulable", diagnosis.message(", ".join(reasons)), nominee=nominee)
        if self.pods.store.get(info.key) is not None and info.key not in self.placed:
            self.queue.refused(info)
        self.queue.done(info.key)

    async def _failed(self, info: PodInfo, reason: str, message: str) -> None:
        await self._tell(info, reason, message)
        if self.pods.store.get(info.key) is not None and info.key not in self.placed:
            self.queue.failed(info)
        self.queue.done(info.key)

    async def _tell(self, info: PodInfo, reason: str, message: str, *, nominee: str = "") -> None:
        """The pod's condition and an event say why it has no node."""
        self.attempts[info.cls.scheduler, "unschedulable" if reason == "Unschedulable" else "error"] += 1
        self.event(info.pod, "Warning", "FailedScheduling", message, action="Scheduling")
        current = self.pods.store.get(info.key)
        if current is None:
            return
        status = current.get("status") or {}
        known: Object = next((c for c in status.get("conditions") or () if c["type"] == "PodScheduled"), {})
        wanted = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
        patch: Object = {}
        if any(known.get(k) != v for k, v in wanted.items()):
            moved = known.get("status") != "False"
            wanted["lastTransitionTime"] = now() if moved else known.get("lastTransitionTime") or now()
            patch["conditions"] = [{**wanted, "observedGeneration": current["metadata"].get("generation", 0)}]
        if nominee and status.get("nominatedNodeName") != nominee:
            patch["nominatedNodeName"] = nominee
        if not patch:
            return
        try:
            await self.client.patch(
                PODS, info.name, {"status": patch}, info.namespace, kind="strategic", subresource="status"
            )
        except (StatusError, OSError, TimeoutError) as error:
            if not is_not_found(error):
                log.info("condition of %s: %s", info.key, error)

    def samples(self) -> Iterator[metrics.Sample]:
        """The scheduler's figures under upstream's names."""
        for (profile, result), count in self.attempts.items():
            text = "Number of attempts to schedule pods, by the result"
            labels = {"profile": profile, "result": result}
            yield metrics.Sample("scheduler_schedule_attempts", "counter", text, labels, count)
        text = "Scheduling algorithm latency in seconds"
        yield metrics.Sample("scheduler_scheduling_algorithm_duration_seconds", "histogram", text, {}, self.durations)
        for queue, count in self.queue.counts().items():
            text = "Number of pending pods, by the queue type"
            yield metrics.Sample("scheduler_pending_pods", "gauge", text, {"queue": queue}, count)

    def event(
        self, obj: Object, type: str, reason: str, message: str, *, action: str, related: Object | None = None
    ) -> None:
        """An event in the name of the pod's scheduler."""
        name = (obj.get("spec") or {}).get("schedulerName") or "default-scheduler"
        recorder = self._recorders.get(name)
        if recorder is None:
            recorder = self._recorders[name] = EventRecorder(self.client, name, series=True)
        recorder.event(obj, type, reason, message, action=action, related=related)
