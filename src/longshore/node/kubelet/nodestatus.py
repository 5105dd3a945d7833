"""The Node object: registered, kept true, and the Lease that says the node lives.

Sources: kubernetes pkg/kubelet/kubelet_node_status.go, pkg/kubelet/nodestatus/setters.go, component-helpers/apimachinery/lease.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longshore.client.events import EventRecorder
from longshore.client.resources import LEASES, NODES
from longshore.client.rest import Client, is_not_found
from longshore.machinery import quantity
from longshore.machinery.errors import StatusError
from longshore.machinery.grpc import RpcError
from longshore.node.kubelet import swapping
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.runtime import Runtime
from longshore.wire.cri import cri

log = logging.getLogger("longshore.kubelet.node")
LEASE_NAMESPACE = "kube-node-lease"
_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
MAX_IMAGES = 50
DECLARED_FEATURES = [
    "RestartAllContainersOnContainerExits"
]  # what not every kubelet can: pods that need it come only here


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def capacity(config: Config) -> dict[str, str]:
    """What the machine has: cpu, memory, ephemeral-storage, huge pages, pods."""
    memory = next(
        (int(line.split()[1]) for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal:")), 0
    )
    config.root.mkdir(parents=True, exist_ok=True)
    disk = os.statvfs(config.root)
    found = {
        "cpu": str(os.cpu_count() or 1),
        "memory": f"{memory}Ki",
        "ephemeral-storage": f"{disk.f_blocks * disk.f_frsize // 1024}Ki",
        "pods": str(config.max_pods),
    }
    pages = Path("/sys/kernel/mm/hugepages")
    for folder in sorted(pages.iterdir()) if pages.is_dir() else ():
        kilobytes = int(folder.name.removeprefix("hugepages-").removesuffix("kB"))
        count = int(_read(str(folder / "nr_hugepages")) or 0)
        found[f"hugepages-{quantity.from_number(kilobytes * 1024, quantity.BINARY)}"] = str(
            quantity.from_number(count * kilobytes * 1024, quantity.BINARY)
        )
    return found


def _is_extended(name: str) -> bool:
    """Whether a resource is one that the node itself knows nothing of."""
    return "/" in name and "kubernetes.io/" not in name and not name.startswith("requests.")


def allocatable(config: Config, have: Mapping[str, str]) -> dict[str, str]:
    """Capacity less what is kept for the system, the kubelet and hard eviction."""
    found = {}
    for name, text in have.items():
        value = quantity.parse(text)
        taken = sum(quantity.parse(r[name]).nanos for r in (config.kube_reserved, config.system_reserved) if name in r)
        signal = {"memory": "memory.available", "ephemeral-storage": "nodefs.available"}.get(name, "")
        threshold = config.eviction_hard.get(signal, "")
        if threshold.endswith("%"):
            taken += int(value.nanos * float(threshold[:-1]) / 100)
        elif threshold:
            taken += quantity.parse(threshold).nanos
        left = max(0, value.nanos - taken)
        whole = left // quantity.NANO * quantity.NANO if name != "cpu" else left
        found[name] = str(quantity.Quantity(whole, value.format)) if taken else text
    if "ephemeral-storage" in found:
        found["ephemeral-storage"] = str(quantity.parse(found["ephemeral-storage"]).value)
    return found


def node_info(runtime: Runtime, config: Config) -> dict[str, Any]:
    os_name = "Linux"
    for line in _read("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            os_name = line.partition("=")[2].strip('"')
    return {
        "machineID": _read("/etc/machine-id"),
        "systemUUID": _read("/sys/class/dmi/id/product_uuid") or _read("/etc/machine-id"),
        "bootID": _read("/proc/sys/kernel/random/boot_id"),
        "kernelVersion": platform.release(),
        "osImage": os_name,
        "containerRuntimeVersion": f"{runtime.name}://{runtime.version}",
        "kubeletVersion": config.version,
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": _ARCH.get(platform.machine(), platform.machine()),
        **({"swap": {"capacity": swap}} if (swap := swapping.capacity()) else {}),
    }


class NodeStatus:
    """Registers the node and keeps its status and lease."""

    def __init__(
        self,
        config: Config,
        client: Client,
        runtime: Runtime,
        recorder: EventRecorder,
        *,
        healthy: Callable[[], str],
        pressures: Callable[[], Mapping[str, tuple[bool, str, str]]],
        devices: Callable[[], tuple[Mapping[str, str], Mapping[str, str]]] = lambda: ({}, {}),
        volumes: Callable[[], list[str]] = list,
    ) -> None:
        """healthy(): why the node is not ready, "" when it is. pressures(): condition type -> (is so, reason, message).
        devices(): capacity and allocatable of what device plugins offer. volumes(): attached volumes in use."""
        self._devices, self._volumes = devices, volumes
        self.config, self.client, self.runtime, self.recorder = config, client, runtime, recorder
        self._healthy, self._pressures = healthy, pressures
        self.capacity = capacity(config)
        self.allocatable = allocatable(config, self.capacity)
        self._others: dict[str, str | None] = {}  # allocatable of resources that others manage; None: to be taken out
        self.runtime_problem = "container runtime status check may not have completed yet"
        self.network_problem = ""
        self._handlers: list[dict[str, Any]] = []
        self._features: dict[str, Any] = {}
        self._images: list[dict[str, Any]] = []
        self._last: dict[str, Any] | None = None
        self._reported = 0.0
        self._nudged = asyncio.Event()
        self._conditions: dict[str, dict[str, Any]] = {}
        self._lease: dict[str, Any] | None = None
        self.node: dict[str, Any] | None = None

    def nudge(self) -> None:
        """Something about the node may be new."""
        self._nudged.set()

    # -- the runtime's side ------------------------------------------------------------------------------------------

    async def ask_runtime(self) -> None:
        """Learn whether the runtime and its network are ready."""
        try:
            if not self.runtime.version:
                await self.runtime.hello()
            answer = await self.runtime.call("Status", deadline=10.0)
        except RpcError as error:
            self.runtime_problem = f"container runtime is down: {error.message}"
            return
        conditions = {c.type: c for c in answer.status.conditions}
        ready, network = conditions.get("RuntimeReady"), conditions.get("NetworkReady")
        self.runtime_problem = (
            "" if ready is not None and ready.status else f"container runtime not ready: {ready and ready.message}"
        )
        self.network_problem = ""
        if network is None or not network.status:
            reason, message = (network.reason, network.message) if network is not None else ("", "")
            self.network_problem = f"container runtime network not ready: NetworkReady=false reason:{reason} message:{message}"  # fmt: skip
        self._handlers = [
            {
                "name": h.name,
                "features": {
                    "recursiveReadOnlyMounts": h.features.recursive_read_only_mounts,
                    "userNamespaces": h.features.user_namespaces,
                },
            }
            for h in answer.runtime_handlers
        ]
        self._features = {"supplementalGroupsPolicy": answer.features.supplemental_groups_policy}

    def supports_users(self, handler: str) -> bool:
        """Whether the runtime can give pods of this handler a user namespace of their own."""
        return any(h["name"] == handler and h["features"]["userNamespaces"] for h in self._handlers)

    async def ask_images(self) -> None:
        """Learn which images are there, for the scheduler's preference."""
        try:
            answer = await self.runtime.image_call("ListImages")
        except RpcError:
            return
        images = sorted(answer.images, key=lambda i: -i.size)[:MAX_IMAGES]
        self._images = [
            {"names": [*i.repo_digests, *i.repo_tags][:5], "sizeBytes": i.size}
            for i in images
            if i.repo_digests or i.repo_tags
        ]

    # -- the object --------------------------------------------------------------------------------------------------

    def labels(self) -> dict[str, str]:
        arch = _ARCH.get(platform.machine(), platform.machine())
        return {
            "kubernetes.io/hostname": self.config.node_name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": arch,
            "beta.kubernetes.io/os": "linux",
            "beta.kubernetes.io/arch": arch,
            **self.config.node_labels,
        }

    def conditions(self) -> list[dict[str, Any]]:
        """Pressures and Ready, with heartbeat and transition times."""
        fresh: dict[str, tuple[str, str, str]] = {}
        normal = {
            "MemoryPressure": ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            "DiskPressure": ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            "PIDPressure": ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        }
        pressures = self._pressures()
        for kind, (reason, message) in normal.items():
            found = pressures.get(kind)
            if found is not None and found[0]:
                fresh[kind] = ("True", found[1], found[2])
            else:
                fresh[kind] = ("False", reason, message)
        problems = [p for p in (self.runtime_problem, self.network_problem, self._healthy()) if p]
        if problems:
            text = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
            fresh["Ready"] = ("False", "KubeletNotReady", text)
        else:
            fresh["Ready"] = ("True", "KubeletReady", "kubelet is posting ready status")
        now = _stamp()
        result = []
        for kind, (value, reason, message) in fresh.items():
            last = self._conditions.get(kind)
            changed = last is None or last["status"] != value
            entry = {
                "type": kind, "status": value, "reason": reason, "message": message, "lastHeartbeatTime": now,
                "lastTransitionTime": now if changed or last is None else last["lastTransitionTime"],
            }  # fmt: skip
            if changed and (last is not None or kind == "Ready"):
                self._tell(kind, value)
            self._conditions[kind] = entry
            result.append(entry)
        return result

    def _tell(self, kind: str, value: str) -> None:
        words = {
            ("Ready", "True"): "NodeReady", ("Ready", "False"): "NodeNotReady",
            ("MemoryPressure", "True"): "NodeHasInsufficientMemory", ("MemoryPressure", "False"): "NodeHasSufficientMemory",
            ("DiskPressure", "True"): "NodeHasDiskPressure", ("DiskPressure", "False"): "NodeHasNoDiskPressure",
            ("PIDPressure", "True"): "NodeHasInsufficientPID", ("PIDPressure", "False"): "NodeHasSufficientPID",
        }  # fmt: skip
        reason = words[kind, value]
        self.event("Normal", reason, f"Node {self.config.node_name} status is now: {reason}")

    def event(self, kind: str, reason: str, message: str) -> None:
        """Tell an event about the node."""
        name = self.config.node_name
        self.recorder.event({"kind": "Node", "name": name, "uid": name, "apiVersion": "v1"}, kind, reason, message)

    def status(self) -> dict[str, Any]:
        """The whole status."""
        addresses = [{"type": "InternalIP", "address": ip} for ip in self.config.node_ips]
        addresses.append({"type": "Hostname", "address": self.config.node_name})
        capacity, allocatable = self._devices()
        found: dict[str, Any] = {
            "capacity": {**self.capacity, **capacity},
            "allocatable": {**self.allocatable, **allocatable, **self._others},
            "conditions": self.conditions(),
            "addresses": addresses,
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.config.port}},
            "nodeInfo": node_info(self.runtime, self.config),
            "images": self._images,
            "declaredFeatures": DECLARED_FEATURES,
        }
        volumes = self._volumes()
        if volumes or (self._last or {}).get("volumesInUse"):
            found["volumesInUse"] = volumes
        if self._handlers:
            found["runtimeHandlers"] = self._handlers
        if self._features:
            found["features"] = self._features
        return found

    async def register(self) -> None:
        """Make the Node, or bring an old one up to date; tried until it succeeds."""
        pause = 0.2
        while True:
            try:
                await self._register()
                return
            except (StatusError, OSError, TimeoutError) as error:
                log.log(logging.INFO if pause < 1 else logging.DEBUG, "node cannot be registered yet: %s", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 7.0)

    async def _register(self) -> None:
        name = self.config.node_name
        try:
            node = await self.client.get(NODES, name)
        except StatusError as error:
            if not is_not_found(error) or not self.config.register_node:
                raise
            spec: dict[str, Any] = {}
            if self.config.register_with_taints:
                spec["taints"] = self.config.register_with_taints
            node = await self.client.create(
                NODES,
                {
                    "metadata": {
                        "name": name,
                        "labels": self.labels(),
                        "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
                    },
                    "spec": spec,
                    "status": self.status(),
                },
            )
        self.node = node
        self._conditions = {c["type"]: c for c in (node.get("status") or {}).get("conditions") or ()}
        labels = node["metadata"].get("labels") or {}
        change = {k: v for k, v in self.labels().items() if labels.get(k) != v}
        if change:
            await self.client.patch(NODES, name, {"metadata": {"labels": change}}, kind="strategic")
        self.event("Normal", "Starting", "Starting kubelet.")
        await self.report(force=True)

    def seen(self, node: Mapping[str, Any]) -> None:
        """The Node as the API server has it: where somebody else has called us silent meanwhile, say again how we are."""
        told = {c["type"]: c["status"] for c in (node.get("status") or {}).get("conditions") or ()}
        if any(told.get(kind) != condition["status"] for kind, condition in self._conditions.items() if kind in told):
            self._last = None
            self.nudge()
        self._others_resources(node.get("status") or {})

    def _others_resources(self, status: Mapping[str, Any]) -> None:
        """Extended resources that somebody wrote into the capacity can be allocated; those taken out of it cannot.

        Source: kubernetes pkg/kubelet/nodestatus/setters.go MachineInfo.
        """
        capacity, allocatable = status.get("capacity") or {}, status.get("allocatable") or {}
        own = {*self.capacity, *self._devices()[0]}
        self._others = {k: v for k, v in capacity.items() if _is_extended(k) and k not in own}
        gone = [k for k in allocatable if _is_extended(k) and k not in own and k not in capacity]
        self._others.update(dict.fromkeys(gone))
        if any(allocatable.get(k) != v for k, v in self._others.items()):
            self.nudge()

    async def report(self, force: bool = False) -> None:
        """Tell the API server what is new, or everything. Raises StatusError, OSError, TimeoutError."""
        made = self.status()
        plain = {**made, "conditions": [{k: v for k, v in c.items() if k != "lastHeartbeatTime"} for c in made["conditions"]]}  # fmt: skip
        late = time.monotonic() - self._reported > self.config.status_report_seconds
        if not force and not late and plain == self._last:
            return
        patch: dict[str, Any] = {"status": made}
        # Addresses are merged by type and address otherwise: an old one would stay.
        made["addresses"] = [*made["addresses"], {"$patch": "replace"}]
        await self.client.patch(NODES, self.config.node_name, patch, kind="strategic", subresource="status")
        self._last, self._reported = plain, time.monotonic()

    async def run(self) -> None:
        """Report changes at once and everything now and then, until cancelled."""
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self.config.status_update_seconds):
                    await self._nudged.wait()
            except TimeoutError:
                pass
            self._nudged.clear()
            await self.ask_runtime()
            try:
                await self.report()
                failures = 0
            except StatusError as error:
                if is_not_found(error):
                    await self.register()
                else:
                    log.info("node status: %s", error)
            except (OSError, TimeoutError) as error:
                failures += 1
                log.log(logging.INFO if failures == 1 else logging.DEBUG, "node status: %s", error)

    # -- lease -------------------------------------------------------------------------------------------------------

    async def renew_forever(self) -> None:
        """Renew the node's lease at a quarter of its length, until cancelled."""
        period = self.config.lease_seconds / 4
        while True:
            begin = time.monotonic()
            pause = 0.2
            while True:
                try:
                    async with asyncio.timeout(period):
                        await self._renew()
                    break
                except (StatusError, OSError, TimeoutError) as error:
                    self._lease = None
                    log.debug("lease: %s", error)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, 7.0)
            await asyncio.sleep(max(0.0, begin + period * (1 + 0.04 * (time.time_ns() % 100) / 100) - time.monotonic()))

    async def _renew(self) -> None:
        name = self.config.node_name
        when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": name, "leaseDurationSeconds": self.config.lease_seconds, "renewTime": when}
        if self._lease is None:
            try:
                self._lease = await self.client.get(LEASES, name, LEASE_NAMESPACE)
            except StatusError as error:
                if not is_not_found(error):
                    raise
                metadata: dict[str, Any] = {"name": name, "namespace": LEASE_NAMESPACE}
                if self.node is not None:
                    metadata["ownerReferences"] = [
                        {"apiVersion": "v1", "kind": "Node", "name": name, "uid": self.node["metadata"]["uid"]}
                    ]
                self._lease = await self.client.create(LEASES, {"metadata": metadata, "spec": spec}, LEASE_NAMESPACE)
                return
        lease = {**self._lease, "spec": {**self._lease["spec"], **spec}}
        self._lease = await self.client.update(LEASES, lease)

    # -- the pods' range ---------------------------------------------------------------------------------------------

    async def give_pod_cidr(self, node: Mapping[str, Any]) -> None:
        """Tell the runtime the node's pod ranges, once the controller has chosen them."""
        spec = node.get("spec") or {}
        ranges = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
        if not ranges:
            return
        config = cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr=",".join(ranges)))
        await self.runtime.call("UpdateRuntimeConfig", runtime_config=config)
        self.nudge()
