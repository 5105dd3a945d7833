"""The kubelet: pods from their sources to workers, and the clearing up of what nobody asked for.

Source: kubernetes pkg/kubelet/kubelet.go (Run, HandlePodCleanups).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from longshore.client.events import EventRecorder
from longshore.client.informer import Informer
from longshore.client.resources import NODES, PODS, SERVICE_ACCOUNTS, SERVICES
from longshore.client.rest import Client
from longshore.node.kubelet import resources, shutdown
from longshore.node.kubelet.cleanup import Cleaner
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.devices import DeviceManager
from longshore.node.kubelet.dra import ClaimError, ClaimManager
from longshore.node.kubelet.events_source import PodEvents
from longshore.node.kubelet.handlers import Handlers
from longshore.node.kubelet.images import ImageManager
from longshore.node.kubelet.kill import Killer
from longshore.node.kubelet.messages import TerminationMessages
from longshore.node.kubelet.objects import ObjectCache
from longshore.node.kubelet.placement.manager import placement
from longshore.node.kubelet.plugins import Plugins
from longshore.node.kubelet.podresources import PodResources
from longshore.node.kubelet.podsources import PodSources
from longshore.node.kubelet.podsteps import PodSteps
from longshore.node.kubelet.probes import ProbeManager
from longshore.node.kubelet.pulls.keyring import Keyring
from longshore.node.kubelet.pulls.providers import providers
from longshore.node.kubelet.pulls.records import PullRecords
from longshore.node.kubelet.resize import Allocations
from longshore.node.kubelet.runtime import Runtime
from longshore.node.kubelet.static import Mirrors
from longshore.node.kubelet.statuses import StatusManager
from longshore.node.kubelet.sync import Services, Syncer
from longshore.node.kubelet.tokens import DEFAULT_SECONDS, TokenManager
from longshore.node.kubelet.userns import UserNamespaces
from longshore.node.kubelet.volumes import VolumeManager
from longshore.node.kubelet.volumes.cluster import ClusterVolumes
from longshore.node.kubelet.volumes.csi import CsiVolumes
from longshore.node.kubelet.volumes.payload import Sources
from longshore.node.kubelet.worker import Worker

log = logging.getLogger("longshore.kubelet")
Pod = dict[str, Any]
_FLUSH_SECONDS = 5.0


class Kubelet(PodSources, PodSteps):
    """The pods of one node."""

    def __init__(self, config: Config, client: Client, runtime: Runtime, recorder: EventRecorder) -> None:
        self.config, self.client, self.runtime, self.recorder = config, client, runtime, recorder
        self.pods: dict[str, Pod] = {}
        self.workers: dict[str, Worker] = {}
        self._waiting: dict[str, Pod] = {}
        self._synced = False
        self.shutting_down = False
        #: uid -> why the kubelet itself has ended the pod (its DisruptionTarget condition)
        self.disruptions: dict[str, str] = {}
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
        self.probes = ProbeManager(
            self.handlers, changed=self.nudge, event=self.container_event, pod_ip=self.pod_ip, told=self._told
        )
        self.killer = Killer(runtime, self.handlers, self.container_event, self.pod_ip)
        self.objects = ObjectCache(client, self._nudge_all)
        self.tokens = TokenManager(client)
        self.statuses = StatusManager(client, api_pod=self.api_pod, finished=self.is_finished)
        #: told when the node's devices or its readiness are others; set by whoever keeps the node's status
        self.devices_changed: Callable[[], None] = lambda: None
        self.devices = DeviceManager(config.root, self._devices_changed)
        self.csi = CsiVolumes(client, config.node_name, config.root, self._driver_came, self.tokens.get)
        self.claims = ClaimManager(config.root, client)
        self.claims.arrived = self._return_claims
        self.claims.pods_changed = self._nudge_all
        self.placement = placement(config, self.devices)
        self.pod_resources = PodResources(config.root, self._running_pods, self.devices, self.claims, self.placement)
        self.plugins = Plugins(config.root / "plugins_registry", {"CSIPlugin": self.csi, "DRAPlugin": self.claims})
        cluster = ClusterVolumes(client, config.node_name, self.pod_event)
        self.volumes = VolumeManager(
            config.root,
            Sources(self.objects.get, self.tokens.get, self._known_addresses, lambda: self.allocatable, cluster.trust),
            cluster.claim,
            config.node_name,
            lambda: resources.amount(self.allocatable.get("memory", "0")),
            self.csi,
            cluster.grown,
        )
        self.users = UserNamespaces(config)
        #: handler of a RuntimeClass ("": the default one) -> whether it can make user namespaces
        self.supports_users: Callable[[str], bool] = lambda _: False
        self.messages = TerminationMessages()
        self.mirrors = Mirrors(client, self._node)
        self.allocations = Allocations(config, runtime, lambda: self.memory_capacity, self.pod_event)
        if self.placement.cpus is not None:
            self.allocations.pinned = self.placement.cpus.pinned
        self.pull_records = PullRecords(config.root, config.image_verification, config.preloaded_allowlist)
        self.syncer = Syncer(
            Services(
                config=config,
                runtime=runtime,
                images=ImageManager(runtime, self.container_event, self._keyring(), self.pull_records),
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
                devices=self.devices,
                users=self._users_of,
                claims=self.claims,
                placement=self.placement,
            )
        )
        self._handlers_of: dict[str, str] = {}
        self.cleaner = Cleaner(config, runtime, self.killer, self.volumes, self.is_wanted)
        self.pleg = PodEvents(runtime, self._runtime_changed, self._gap)

    def _release(self, uid: str) -> None:
        """What was the pod's alone is free."""
        if self.placement.release(uid) and self.placement.cpus is not None:
            self.spawn(self._share_cpus(), "shared CPUs")

    def _keyring(self) -> Keyring:
        config, folder = self.config.credential_providers, self.config.credential_provider_folder
        if config is None or folder is None:
            return Keyring(self.config.root)

        async def token(pod: Pod, audience: str) -> str:
            return (await self.tokens.get(pod, audience, DEFAULT_SECONDS))[0]

        async def account(namespace: str, name: str) -> Mapping[str, Any]:
            return await self.client.get(SERVICE_ACCOUNTS, name, namespace)

        return Keyring(self.config.root, providers(config, folder, token, account))

    def _running_pods(self) -> list[Pod]:
        return [worker.pod for worker in self.workers.values() if not worker.ending]

    def _users_of(self, pod: Pod) -> Any | None:
        handler = self._handlers_of.get(pod["metadata"]["uid"], "")
        return self.users.options(pod, handler, self.supports_users(handler))

    def _return_claims(self) -> None:
        """Give back what drivers prepared for pods that were deleted while the kubelet was away, or its driver was."""

        async def back(uid: str) -> None:
            try:
                await self.claims.unprepare(uid)
            except ClaimError as error:
                log.warning("claims of the pod %s that has gone: %s", uid, error)

        if self._synced:
            for uid in self.claims.users():
                if not self.is_wanted(uid):
                    self.spawn(back(uid), f"claims of {uid}")

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
            self._start_static()
            self.spawn(self.plugins.run(), "plugins")
            self.devices.keep(set(self.pods))
            self._return_claims()
            for uid in self.placement.users() - set(self.pods):
                self._release(uid)
            self.spawn(self.devices.run(), "device plugins")
            self.spawn(self.pod_resources.run(), "pod resources")
            await self.cleaner.everything()
            await self.pleg.run()
        finally:
            for worker in self.workers.values():
                worker.task.cancel()
            for task in list(self._tasks):
                task.cancel()
            await self.probes.close()
            await self.objects.close()
            self.claims.health.close()
            await self.statuses.close()
            await self.handlers.close()

    def _start(self, pod: Pod) -> None:
        self.workers[pod["metadata"]["uid"]] = Worker(self, pod, self._worker_finished)

    # -- events from below -------------------------------------------------------------------------------------------

    def nudge(self, uid: str) -> None:
        """Sync a pod soon, if it has a worker."""
        worker = self.workers.get(uid)
        if worker is not None:
            worker.nudge()

    def _nudge_all(self, uids: set[str]) -> None:
        for uid in uids:
            self.nudge(uid)

    def _devices_changed(self, resource: str) -> None:
        self.devices_changed()
        self._nudge_all(self.devices.users(resource))

    def _runtime_changed(self, uid: str) -> None:
        for wake in self.followers.get(uid, ()):
            wake.set()
        if uid in self.workers:
            self.workers[uid].nudge()
        elif self._synced and uid not in self.pods:
            self.spawn(self.cleaner.orphan(uid), f"orphan {uid}")

    def _driver_came(self) -> None:
        self._gap()
        self.spawn(self.cleaner.volumes(), "volumes of former pods")

    def _gap(self) -> None:
        for worker in self.workers.values():
            worker.nudge()

    def set_network(self, problem: str) -> None:
        """Why pods cannot have a network now; "" when they can, and those that wait go on at once."""
        had, self.network_problem = self.network_problem, problem
        if had and not problem:
            self._gap()

    async def shut_down(self) -> None:
        """End all pods, those of low priority first, and tell so; no pod is taken any more."""
        self.shutting_down = True
        self.devices_changed()
        await shutdown.end_pods(self.workers, self.config.shutdown_periods, self.disruptions)
        await self.statuses.flush(_FLUSH_SECONDS)

    def unhealthy(self) -> str:
        """Why the kubelet cannot do its work now; "" when it can."""
        if self.shutting_down:
            return shutdown.PROBLEM
        if not self._synced:
            return "the API server has not been heard of yet"
        silent = asyncio.get_running_loop().time() - self.pleg.last_heard
        if not self.pleg.streaming and silent > 180:
            return f"PLEG is not healthy: pleg was last seen active {silent:.0f}s ago; threshold is 3m0s"
        return ""

    def _worker_finished(self, worker: Worker) -> None:
        uid = worker.uid
        self.workers.pop(uid, None)
        self.syncer.forget(uid)
        self.tokens.forget(uid)
        self._release(uid)
        self.allocations.forget(uid)
        self.users.forget(uid)
        self.disruptions.pop(uid, None)
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
            self.spawn(self.cleaner.logs(worker.pod), f"logs of {uid}")

    async def _bury(self, pod: Pod) -> None:
        """Remove what is left of a pod that ended by itself and is deleted now: dead containers and logs."""
        uid = pod["metadata"]["uid"]
        await self.cleaner.orphan(uid)
        await self.cleaner.logs(pod)
        if uid in self.pods:
            self.statuses.finish(pod)

    def is_wanted(self, uid: str) -> bool:
        """Whether a source asks for the pod, or it is being ended in order."""
        return uid in self.pods or uid in self.workers

    def is_finished(self, uid: str) -> bool:
        """Nothing of the pod is left on the node."""
        return uid not in self.workers


def _memory_total() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0
