"""The kubelet: pods from their sources to workers, workers' steps, and the clearing up of what nobody asked for.

Source: kubernetes pkg/kubelet/kubelet.go (syncLoop, SyncPod, SyncTerminatingPod, SyncTerminatedPod, HandlePodCleanups).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longshore.client.events import EventRecorder, reference
from longshore.client.informer import Informer
from longshore.client.resources import NODES, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS, SERVICES, Resource
from longshore.client.rest import Client, is_not_found
from longshore.machinery.errors import StatusError
from longshore.machinery.grpc import RpcError
from longshore.node.kubelet import admission, cgroups, podspec, resources, status
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.events_source import PodEvents
from longshore.node.kubelet.handlers import Handlers
from longshore.node.kubelet.images import ImageManager
from longshore.node.kubelet.kill import Killer
from longshore.node.kubelet.messages import TerminationMessages
from longshore.node.kubelet.objects import ObjectCache
from longshore.node.kubelet.probes import ProbeManager
from longshore.node.kubelet.resize import Allocations
from longshore.node.kubelet.resources import is_sidecar
from longshore.node.kubelet.runtime import PodState, Runtime
from longshore.node.kubelet.statuses import StatusManager
from longshore.node.kubelet.sync import Services, Syncer
from longshore.node.kubelet.tokens import TokenManager
from longshore.node.kubelet.volumes import VolumeError, VolumeManager
from longshore.node.kubelet.volumes.payload import Sources
from longshore.node.kubelet.worker import Worker

log = logging.getLogger("longshore.kubelet")
Pod = dict[str, Any]
RUNTIME_CLASSES = Resource("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", False)
TRUST_BUNDLES = Resource("certificates.k8s.io", "v1beta1", "clustertrustbundles", "ClusterTrustBundle", False)


class Kubelet:
    """The pods of one node."""

    def __init__(self, config: Config, client: Client, runtime: Runtime, recorder: EventRecorder) -> None:
        self.config, self.client, self.runtime, self.recorder = config, client, runtime, recorder
        self.pods: dict[str, Pod] = {}
        self.workers: dict[str, Worker] = {}
        self._waiting: dict[str, Pod] = {}
        self._synced = False
        #: set when every source has told its first list
        self.synced = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        #: uid -> readers of the pod's logs, to be woken when something of it has changed
        self.followers: dict[str, set[asyncio.Event]] = {}
        self.informer = Informer(client, PODS, field_selector=f"spec.nodeName={config.node_name}")
        self.services = Informer(client, SERVICES)
        self.node = Informer(client, NODES, field_selector=f"metadata.name={config.node_name}")
        self.allocatable: dict[str, str] = {}
        self.memory_capacity = _memory_total()
        self.network_problem = ""
        self.handlers = Handlers(runtime)
        self.probes = ProbeManager(self.handlers, changed=self.nudge, event=self.container_event, pod_ip=self.pod_ip)
        self.killer = Killer(runtime, self.handlers, self.container_event, self.pod_ip)
        self.objects = ObjectCache(client, self._objects_changed)
        self.tokens = TokenManager(client)
        self.statuses = StatusManager(client, api_pod=self.pods.get, finished=self.is_finished)
        self.volumes = VolumeManager(
            config.root,
            Sources(self.objects.get, self.tokens.get, self._known_addresses, lambda: self.allocatable, self._trust),
            self._claim,
            config.node_name,
            lambda: resources.amount(self.allocatable.get("memory", "0")),
        )
        self.messages = TerminationMessages()
        self.allocations = Allocations(config, runtime, lambda: self.memory_capacity, self.pod_event)
        self.syncer = Syncer(
            Services(
                config=config,
                runtime=runtime,
                images=ImageManager(runtime, self.container_event),
                killer=self.killer,
                probes=self.probes,
                volumes=self.volumes,
                lookup=self.objects.get,
                event=self.container_event,
                service_objects=lambda: list(self.services.store),
                allocatable=lambda: self.allocatable,
                memory_capacity=lambda: self.memory_capacity,
                addresses=self.addresses,
                runtime_handler=lambda pod: self._handlers_of.get(pod["metadata"]["uid"], ""),
                resized=self.allocations.restarts,
            )
        )
        self._handlers_of: dict[str, str] = {}
        self.pleg = PodEvents(runtime, self._runtime_changed, self._gap)

    # -- running -----------------------------------------------------------------------------------------------------

    def spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        """A background task that lives as long as the kubelet."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def run(self) -> None:
        """Work until cancelled. The node's cgroups must be there."""
        self.informer.on(self._added, self._updated, self._deleted)
        try:
            for informer in (self.informer, self.services, self.node):
                self.spawn(informer.run(), f"informer {informer.resource}")
            await asyncio.gather(self.informer.wait_synced(), self.services.wait_synced(), self.node.wait_synced())
            self._synced = True
            for pod in list(self._waiting.values()):
                self._added(pod)
            self._waiting.clear()
            self.synced.set()
            await self.clean_up()
            await self.pleg.run()
        finally:
            for worker in self.workers.values():
                worker.task.cancel()
            for task in list(self._tasks):
                task.cancel()
            await self.probes.close()
            await self.objects.close()
            await self.statuses.close()
            await self.handlers.close()

    # -- sources -----------------------------------------------------------------------------------------------------

    def _added(self, pod: Pod) -> None:
        uid = pod["metadata"]["uid"]
        if not self._synced:
            # Variables of Services and the node's labels must be known before the first pod starts.
            self._waiting[uid] = pod
            return
        self.pods[uid] = pod
        if resources.is_mirror(pod):
            return
        self.objects.register(pod)
        worker = self.workers.get(uid)
        if worker is not None:
            worker.update(pod)
            return
        phase = (pod.get("status") or {}).get("phase")
        self._start(pod)
        if phase in ("Succeeded", "Failed") or pod["metadata"].get("deletionTimestamp"):
            self.workers[uid].end()

    def _start(self, pod: Pod) -> None:
        self.workers[pod["metadata"]["uid"]] = Worker(self, pod, self._worker_finished)

    def _updated(self, old: Pod, new: Pod) -> None:
        uid = new["metadata"]["uid"]
        if not self._synced:
            self._waiting[uid] = new
            return
        self.pods[uid] = new
        if resources.is_mirror(new):
            return
        self.objects.register(new)
        worker = self.workers.get(uid)
        if worker is None:
            if new["metadata"].get("deletionTimestamp") and not old["metadata"].get("deletionTimestamp"):
                self.spawn(self._bury(new), f"remains of {uid}")
            return
        if _concerns_us(old, new):
            worker.update(new)
        else:
            worker.pod = new

    def _deleted(self, pod: Pod) -> None:
        uid = pod["metadata"]["uid"]
        self._waiting.pop(uid, None)
        self.pods.pop(uid, None)
        self.objects.unregister(uid)
        worker = self.workers.get(uid)
        if worker is not None:
            worker.removed = True
            worker.end(grace=None if worker.pod["metadata"].get("deletionTimestamp") else 1)
            worker.nudge()
        else:
            self.statuses.forget(uid)
            self.spawn(self._bury(pod), f"remains of {uid}")

    # -- events from below -------------------------------------------------------------------------------------------

    def nudge(self, uid: str) -> None:
        """Sync a pod soon, if it has a worker."""
        worker = self.workers.get(uid)
        if worker is not None:
            worker.nudge()

    def _objects_changed(self, uids: set[str]) -> None:
        for uid in uids:
            self.nudge(uid)

    def _runtime_changed(self, uid: str) -> None:
        for wake in self.followers.get(uid, ()):
            wake.set()
        if uid in self.workers:
            self.workers[uid].nudge()
        elif self._synced and uid not in self.pods:
            self.spawn(self._end_orphan(uid), f"orphan {uid}")

    def _gap(self) -> None:
        for worker in self.workers.values():
            worker.nudge()

    def set_network(self, problem: str) -> None:
        """Why pods cannot have a network now; "" when they can, and those that wait go on at once."""
        had, self.network_problem = self.network_problem, problem
        if had and not problem:
            self._gap()

    def unhealthy(self) -> str:
        """Why the kubelet cannot do its work now; "" when it can."""
        if not self._synced:
            return "the API server has not been heard of yet"
        silent = asyncio.get_running_loop().time() - self.pleg.last_heard
        if not self.pleg.streaming and silent > 180:
            return f"PLEG is not healthy: pleg was last seen active {silent:.0f}s ago; threshold is 3m0s"
        return ""

    # -- steps of the workers ----------------------------------------------------------------------------------------

    async def sync_pod(self, worker: Worker) -> tuple[bool, float | None]:
        """Make the pod as its spec says. (it has ended by itself, seconds until it must be looked at again)."""
        uid = worker.uid
        pod = self.allocations.effective(worker.pod, self._others(uid), self._node())
        metadata = pod["metadata"]
        state = await self.runtime.pod(uid, metadata["name"], metadata["namespace"])
        self.probes.sync(pod, state)
        made, phase = self.make_status(pod, state)
        if phase in ("Succeeded", "Failed"):
            self.statuses.set(pod, made)
            return True, None
        deadline = self._deadline(pod, made)
        if deadline is not None and deadline <= 0:
            text = "Pod was active on the node longer than the specified deadline"
            self.pod_event(pod, "Normal", "DeadlineExceeded", text)
            worker.verdict = ("Failed", "DeadlineExceeded", text)
            return True, None
        if not state.sandboxes:
            refusal = await self._admit(pod)
            if refusal is not None:
                self.pod_event(pod, "Warning", refusal[0], refusal[1])
                worker.verdict = ("Failed", *refusal)
                return True, None
        self.statuses.set(pod, made)
        if self.network_problem and not podspec.host_network(pod):
            self.pod_event(pod, "Warning", "NetworkNotReady", f"network is not ready: {self.network_problem}")
            return False, 1.0
        cgroup = await asyncio.to_thread(
            cgroups.ensure_pod, self.config.cgroup_root, pod, self.config.cgroups_per_qos, self.config.pod_pids_limit
        )
        await asyncio.to_thread(self._make_folders, uid)
        try:
            volumes = await self.volumes.prepare(pod)
        except VolumeError as error:
            for line in str(error).splitlines():
                self.pod_event(pod, "Warning", "FailedMount", line)
            return False, 2.0
        try:
            resized = await self.allocations.carry_out(pod, state, cgroup)
            outcome = await self.syncer.sync(pod, state, volumes, cgroup)
        except RpcError as error:
            log.info("pod %s/%s: %s", metadata["namespace"], metadata["name"], error.message)
            return False, 2.0
        if outcome.changed or resized or outcome.again is not None:
            state = await self.runtime.pod(uid, metadata["name"], metadata["namespace"])
            pod = self.allocations.given(worker.pod)
            if await self.allocations.carry_out(pod, state, cgroup):
                state = await self.runtime.pod(uid, metadata["name"], metadata["namespace"])
            self.probes.sync(pod, state)
            made, phase = self.make_status(pod, state)
            self.statuses.set(worker.pod, made)
            if phase in ("Succeeded", "Failed"):
                return True, None
        again = [t for t in (outcome.again, deadline) if t is not None]
        if uid in self.volumes.due:
            again.append(max(1.0, self.volumes.due[uid] - time.time()))
        return False, min(again) if again else None

    def _make_folders(self, uid: str) -> None:
        for name in ("volumes", "plugins"):
            (self.config.pod_folder(uid) / name).mkdir(parents=True, exist_ok=True, mode=0o750)

    def _deadline(self, pod: Pod, made: Mapping[str, Any]) -> float | None:
        """Seconds that a pod with activeDeadlineSeconds still has."""
        seconds = pod["spec"].get("activeDeadlineSeconds")
        if seconds is None or not made.get("startTime"):
            return None
        return float(seconds) - (time.time() - _seconds(made["startTime"]))

    async def _admit(self, pod: Pod) -> tuple[str, str] | None:
        name = pod["spec"].get("runtimeClassName")
        if name:
            try:
                found = await self.client.get(RUNTIME_CLASSES, name)
                self._handlers_of[pod["metadata"]["uid"]] = found.get("handler", "")
            except StatusError as error:
                if not is_not_found(error):
                    raise
                return "RuntimeClassNotFound", f'runtimeclass.node.k8s.io "{name}" not found'
        return admission.refusal(pod, self._others(pod["metadata"]["uid"]), self._node(), self.config)

    def _others(self, uid: str) -> list[Pod]:
        """The node's other pods, with the resources that they have been given."""
        return [self.allocations.given(w.pod) for w in self.workers.values() if w.uid != uid and not w.ending]

    def _node(self) -> dict[str, Any] | None:
        return self.node.store.named("", self.config.node_name)

    async def sync_terminating(self, worker: Worker) -> None:
        """End the pod's containers and tell how they ended."""
        pod, uid = worker.pod, worker.uid
        metadata = pod["metadata"]
        state = await self.runtime.pod(uid, metadata["name"], metadata["namespace"])
        self.probes.stop_liveness(uid)
        if not worker.removed:
            self.statuses.set(pod, self.make_status(pod, state, verdict=worker.verdict)[0])
        await self.killer.kill_pod(pod, state, override=worker.grace)
        self.probes.forget(uid)
        state = await self.runtime.pod(uid, metadata["name"], metadata["namespace"])
        if state.running():
            raise RuntimeError(f"containers still run: {', '.join(c.name for c in state.running())}")
        if not worker.removed:
            made, _ = self.make_status(worker.pod, state, verdict=worker.verdict, terminal=True)
            self.statuses.set(worker.pod, made)

    async def sync_terminated(self, worker: Worker) -> None:
        """Remove what the pod had on the node."""
        uid = worker.uid
        await asyncio.to_thread(self.volumes.remove, uid)
        path = cgroups.pod_path(self.config.cgroup_root, worker.pod, self.config.cgroups_per_qos)
        if self.config.cgroups_per_qos:
            await asyncio.to_thread(cgroups.remove, path)
        if worker.removed or worker.pod["metadata"].get("deletionTimestamp"):
            await self._remove_from_runtime(uid)

    async def _remove_from_runtime(self, uid: str) -> None:
        state = (await self.runtime.pods()).get(uid)
        if state is None:
            return
        for sandbox in state.sandboxes:
            await self.runtime.call("StopPodSandbox", pod_sandbox_id=sandbox.id)
            await self.runtime.call("RemovePodSandbox", pod_sandbox_id=sandbox.id)

    def _worker_finished(self, worker: Worker) -> None:
        uid = worker.uid
        self.workers.pop(uid, None)
        self.syncer.forget(uid)
        self.tokens.forget(uid)
        self.allocations.forget(uid)
        for other in self.allocations.waiting():
            self.nudge(other)
        self._handlers_of.pop(uid, None)
        self.followers.pop(uid, None)
        pod = self.pods.get(uid)
        if pod is not None:
            if pod["metadata"].get("deletionTimestamp"):
                self.statuses.finish(pod)
        else:
            self.statuses.forget(uid)
            self.objects.unregister(uid)
        if worker.removed or (pod is not None and pod["metadata"].get("deletionTimestamp")):
            self.spawn(self._remove_logs(worker.pod), f"logs of {uid}")

    async def _remove_logs(self, pod: Pod) -> None:
        import shutil

        metadata = pod["metadata"]
        folder = self.config.pod_log_folder(metadata["namespace"], metadata["name"], metadata["uid"])
        await asyncio.to_thread(shutil.rmtree, folder, True)

    async def _bury(self, pod: Pod) -> None:
        """Remove what is left of a pod that ended by itself and is deleted now: dead containers and logs."""
        uid = pod["metadata"]["uid"]
        await self._end_orphan(uid)
        await self._remove_logs(pod)
        if uid in self.pods:
            self.statuses.finish(pod)

    def is_finished(self, uid: str) -> bool:
        """Nothing of the pod is left on the node."""
        return uid not in self.workers

    # -- clearing up -------------------------------------------------------------------------------------------------

    async def clean_up(self) -> None:
        """End and remove what is here of pods that no source knows (they were deleted while we were away)."""
        try:
            present = await self.runtime.pods()
        except RpcError as error:
            log.warning("the runtime cannot be asked for leftovers: %s", error.message)
            present = {}
        for uid in present:
            if uid not in self.pods and uid not in self.workers:
                self.spawn(self._end_orphan(uid), f"orphan {uid}")
        for uid in self.volumes.known():
            if uid not in self.pods and uid not in self.workers and uid not in present:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self.volumes.remove, uid)
        for uid, path in cgroups.pods_present(self.config.cgroup_root).items():
            if uid not in self.pods and uid not in self.workers and uid not in present:
                await asyncio.to_thread(cgroups.remove, path)
        known = set(self.pods)
        if self.config.pod_logs.is_dir():
            for folder in list(self.config.pod_logs.iterdir()):
                uid = folder.name.rpartition("_")[2]
                if uid not in known and uid not in self.workers:
                    import shutil

                    await asyncio.to_thread(shutil.rmtree, folder, True)

    async def _end_orphan(self, uid: str) -> None:
        """End a pod that runs though nobody asks for it; what its containers carry tells how."""
        try:
            state = await self.runtime.pod(uid)
            if not state.sandboxes and not state.containers:
                return
            log.info("pod %s/%s (%s) is not wanted any more and is ended", state.namespace, state.name, uid)
            await self.killer.kill_pod(None, state, override=1)
            await self._remove_from_runtime(uid)
            await asyncio.to_thread(self.volumes.remove, uid)
            path = cgroups.pods_present(self.config.cgroup_root).get(uid)
            if path is not None:
                await asyncio.to_thread(cgroups.remove, path)
        except (RpcError, OSError) as error:
            log.warning("orphaned pod %s: %s", uid, error)

    # -- what pods see -----------------------------------------------------------------------------------------------

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

    async def _claim(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        resource = PERSISTENT_VOLUME_CLAIMS if kind == "PersistentVolumeClaim" else PERSISTENT_VOLUMES
        try:
            return await self.client.get(resource, name, namespace)
        except StatusError as error:
            if is_not_found(error):
                return None
            raise VolumeError(error.message) from error

    async def _trust(self, wanted: Mapping[str, Any]) -> bytes | None:
        try:
            if wanted.get("name"):
                found = await self.client.get(TRUST_BUNDLES, wanted["name"])
                return str(found["spec"]["trustBundle"]).encode()
        except StatusError as error:
            if not is_not_found(error):
                raise OSError(error.message) from error
        return None

    # -- status ------------------------------------------------------------------------------------------------------

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

    # -- events ------------------------------------------------------------------------------------------------------

    def pod_event(self, pod: Pod, kind: str, reason: str, message: str) -> None:
        """Tell an event about a pod."""
        if not pod["metadata"].get("name"):
            return
        self.recorder.event({"apiVersion": "v1", "kind": "Pod", **pod}, kind, reason, message)

    def container_event(
        self, pod: Pod, container: Mapping[str, Any] | None, kind: str, reason: str, message: str
    ) -> None:
        """Tell an event about a container of a pod (None: the pod itself)."""
        if not pod["metadata"].get("name"):
            return
        ref = reference({"apiVersion": "v1", "kind": "Pod", **pod})
        if container is not None:
            for group in ("initContainers", "containers", "ephemeralContainers"):
                if any(c["name"] == container["name"] for c in pod["spec"].get(group) or ()):
                    ref["fieldPath"] = f"spec.{group}{{{container['name']}}}"
        self.recorder.event(ref, kind, reason, message)


def _concerns_us(old: Pod, new: Pod) -> bool:
    """Whether a change is more than the echo of a status that we sent ourselves."""
    for name in ("labels", "annotations", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"):
        if old["metadata"].get(name) != new["metadata"].get(name):
            return True
    if old["spec"] != new["spec"]:
        return True
    gates = {g["conditionType"] for g in new["spec"].get("readinessGates") or ()}
    if gates:
        return _chosen(old, gates) != _chosen(new, gates)
    return False


def _chosen(pod: Pod, kinds: set[str]) -> list[Any]:
    return [c for c in (pod.get("status") or {}).get("conditions") or () if c["type"] in kinds]


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _memory_total() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0
