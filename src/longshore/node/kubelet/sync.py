"""Making a pod's containers what its spec says: sandbox, images, containers, in upstream's order.

Source: kubernetes pkg/kubelet/kuberuntime (SyncPod, startContainer, doBackOff).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from longshore.machinery import rooted
from longshore.machinery.grpc import RpcError, Status
from longshore.node.kubelet import actions, podspec
from longshore.node.kubelet import runtime as rt
from longshore.node.kubelet.backoff import BackOff
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.devices import DeviceError, DeviceManager
from longshore.node.kubelet.dra import ClaimError, ClaimManager
from longshore.node.kubelet.env import ConfigError, Lookup, environment
from longshore.node.kubelet.expansion import expand, missing
from longshore.node.kubelet.images import ImageError, ImageManager, go_code
from longshore.node.kubelet.kill import HookFailed, Killer
from longshore.node.kubelet.placement.manager import Placement
from longshore.node.kubelet.probes import ProbeManager
from longshore.node.kubelet.runtime import EXITED, PodState, Runtime
from longshore.node.kubelet.userns import UserNamespaceError
from longshore.node.kubelet.volumes import MountedVolume, VolumeError, VolumeManager
from longshore.wire.cri import cri

log = logging.getLogger("longshore.kubelet.sync")
Pod = dict[str, Any]
PROPAGATION = {"HostToContainer": 1, "Bidirectional": 2}


@dataclass(slots=True)
class Outcome:
    """What a sync came to. again: seconds after which it must be tried anew, None: on the next event."""

    again: float | None = None
    changed: bool = False

    def retry(self, seconds: float) -> None:
        self.again = seconds if self.again is None else min(self.again, seconds)


@dataclass(slots=True)
class Services:
    """What the syncer needs of the kubelet around it."""

    config: Config
    runtime: Runtime
    images: ImageManager
    killer: Killer
    probes: ProbeManager
    volumes: VolumeManager
    lookup: Lookup
    event: Callable[[Pod, Mapping[str, Any] | None, str, str, str], None]
    service_objects: Callable[[], list[dict[str, Any]]]
    allocatable: Callable[[], Mapping[str, str]]
    memory_capacity: Callable[[], int]
    addresses: Callable[[Pod, list[str]], dict[str, Any]]
    runtime_handler: Callable[[Pod], str]
    resized: actions.Resized
    devices: DeviceManager
    users: Callable[[Pod], Any | None]
    claims: ClaimManager
    placement: Placement


@dataclass(slots=True)
class Syncer:
    """Carries out actions for pods, one sync a pod at a time."""

    services: Services
    backoff: BackOff = field(default_factory=BackOff)
    #: uid -> container -> (waiting reason, message) of the last failed start
    reasons: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)

    def forget(self, uid: str) -> None:
        self.reasons.pop(uid, None)
        self.services.images.forget(uid)

    async def sync(self, pod: Pod, state: PodState, volumes: dict[str, MountedVolume], cgroup: str) -> Outcome:
        """One round. Raises RpcError when the runtime fails in a way that concerns the whole pod."""
        services, uid = self.services, pod["metadata"]["uid"]
        outcome = Outcome()
        todo = actions.compute(pod, state, services.probes.result, services.resized)
        outcome.changed = not todo.nothing
        if todo.reset is not None:
            key = (uid, "", "")
            wait = self.backoff.remaining(key, todo.reset.finished_at / 1e9)
            if wait > 0:
                outcome.retry(wait)
                return outcome
            self.backoff.step(key, todo.reset.finished_at / 1e9)
            await asyncio.gather(*(services.killer.kill(pod, kill.container, kill.message) for kill in todo.kill))
            for known in state.containers:
                await services.runtime.call("RemoveContainer", container_id=known.id)
            state.containers.clear()
            todo = actions.compute(pod, state, services.probes.result, services.resized)
        if todo.create_sandbox and todo.sandbox_id:
            services.event(pod, None, "Normal", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")  # fmt: skip
        if todo.kill_pod:
            if state.sandboxes or state.running():
                await services.killer.kill_pod(pod, state)
            if todo.create_sandbox:
                await self._purge_init(pod, state)
        else:
            for kill in todo.kill:
                probe = {"LivenessProbe": "livenessProbe", "StartupProbe": "startupProbe"}.get(kill.reason, "")
                await services.killer.kill(pod, kill.container, kill.message, probe=probe)
        if not todo.create_sandbox and not (todo.start or todo.start_init or todo.start_ephemeral):
            return outcome
        sandbox_id = todo.sandbox_id
        ips = state.ips
        sandbox_config = podspec.sandbox_config(pod, todo.attempt, services.config, cgroup)
        try:
            owners = await asyncio.to_thread(services.users, pod)
        except UserNamespaceError as error:
            services.event(pod, None, "Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {error}")
            raise RpcError(Status.UNIMPLEMENTED, str(error)) from error
        if owners is not None:
            sandbox_config.linux.security_context.namespace_options.userns_options.CopyFrom(owners)
        if todo.create_sandbox:
            try:
                await services.claims.prepare(pod)
            except ClaimError as error:
                services.event(pod, None, "Warning", "FailedPrepareDynamicResources", f"Failed to prepare dynamic resources: {error}")  # fmt: skip
                raise RpcError(Status.UNAVAILABLE, str(error)) from error
            try:
                sandbox_id, ips = await self._make_sandbox(pod, sandbox_config)
            except RpcError as error:
                services.event(pod, None, "Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: rpc error: code = {go_code(error.status)} desc = {error.message}")  # fmt: skip
                raise
        reasons = self.reasons.setdefault(uid, {})
        hold = False
        try:
            volumes = await self._image_volumes(pod, volumes, sandbox_config)
        except ImageError as error:
            for container in (*todo.start_ephemeral, *todo.start_init, *todo.start):
                reasons[container["name"]] = (error.reason, error.message)
            outcome.retry(error.wait or 10.0)
            return outcome
        for container in (*todo.start_ephemeral, *todo.start_init, *todo.start):
            kind = "ephemeral" if container in todo.start_ephemeral else "init" if container in todo.start_init else ""
            wait = self._crash_loop(pod, container, state, kind)
            if wait > 0:
                outcome.retry(wait)
                continue
            try:
                await self._start(pod, container, state, sandbox_id, sandbox_config, ips, volumes)
            except ImageError as error:
                reasons[container["name"]] = (error.reason, error.message)
                outcome.retry(error.wait or 10.0)
                services.event(pod, container, "Warning", "Failed", f"Error: {error.reason}")
                hold = kind == "init"
            except StartError as error:
                reasons[container["name"]] = (error.reason, error.message)
                outcome.retry(error.wait)
                hold = kind == "init"
            else:
                reasons.pop(container["name"], None)
                outcome.changed = True
                await self._collect(state, container["name"])
            if hold:
                break
        return outcome

    async def _image_volumes(
        self, pod: Pod, volumes: dict[str, MountedVolume], sandbox_config: Any
    ) -> dict[str, MountedVolume]:
        """Have the images present that are volumes; the volumes with the references to mount. Raises ImageError."""
        found = dict(volumes)
        for name, volume in volumes.items():
            if volume.image is None:
                continue
            reference = str(volume.image.get("reference") or "")
            as_container = {"name": name, "image": reference, "imagePullPolicy": volume.image.get("pullPolicy")}
            secrets = await self._pull_secrets(pod)
            image = await self.services.images.ensure(pod, as_container, secrets, sandbox_config)
            found[name] = replace(volume, image={"reference": image, "asked": reference})
        return found

    async def _pull_secrets(self, pod: Pod) -> list[dict[str, Any]]:
        secrets = []
        for entry in pod["spec"].get("imagePullSecrets") or ():
            secret = await self.services.lookup("Secret", pod["metadata"]["namespace"], entry.get("name", ""))
            if secret is not None:
                secrets.append(secret)
        return secrets

    async def _collect(self, state: PodState, name: str) -> None:
        """Of a container that was started anew only the last dead one is kept, with its log."""
        for known in [c for c in state.containers if c.name == name and c.state == EXITED][1:]:
            with contextlib.suppress(RpcError, OSError):
                path = (await self.services.runtime.container(known.id)).log_path
                await self.services.runtime.call("RemoveContainer", container_id=known.id)
                if path:
                    Path(path).unlink(missing_ok=True)

    async def _purge_init(self, pod: Pod, state: PodState) -> None:
        """A new sandbox begins with the first init container: what ran in the old one must not count."""
        names = {c["name"] for c in pod["spec"].get("initContainers") or ()}
        for known in [c for c in state.containers if c.name in names]:
            await self.services.runtime.call("RemoveContainer", container_id=known.id)
            state.containers.remove(known)

    async def _make_sandbox(self, pod: Pod, config: Any) -> tuple[str, list[str]]:
        services = self.services
        os.makedirs(config.log_directory, 0o755, exist_ok=True)
        answer = await services.runtime.call(
            "RunPodSandbox", deadline=240.0, config=config, runtime_handler=services.runtime_handler(pod)
        )
        status = (await services.runtime.call("PodSandboxStatus", pod_sandbox_id=answer.pod_sandbox_id)).status
        ips = [status.network.ip] if status.network.ip else []
        return answer.pod_sandbox_id, ips + [a.ip for a in status.network.additional_ips]

    # -- back-off ----------------------------------------------------------------------------------------------------

    def _crash_loop(self, pod: Pod, container: Mapping[str, Any], state: PodState, kind: str) -> float:
        """Seconds that a container which ended has still to wait; tells CrashLoopBackOff."""
        known = next((c for c in state.containers if c.name == container["name"] and c.state == EXITED), None)
        if known is None:
            return 0.0
        uid = pod["metadata"]["uid"]
        key = (uid, container["name"], rt.container_hash(container))
        finished = known.finished_at / 1e9
        wait = self.backoff.remaining(key, finished)
        if wait > 0:
            metadata = pod["metadata"]
            shown = _go_duration(self.backoff.delay(key))
            full = f"{metadata['name']}_{metadata['namespace']}({uid})"
            self.services.event(pod, container, "Warning", "BackOff", f"Back-off restarting failed container {container['name']} in pod {full}")  # fmt: skip
            self.reasons.setdefault(uid, {})[container["name"]] = (
                "CrashLoopBackOff",
                f"back-off {shown} restarting failed container={container['name']} pod={full}",
            )
            return wait
        self.backoff.step(key, finished)
        return 0.0

    # -- one container -----------------------------------------------------------------------------------------------

    async def _start(
        self,
        pod: Pod,
        container: dict[str, Any],
        state: PodState,
        sandbox_id: str,
        sandbox_config: Any,
        ips: list[str],
        volumes: dict[str, MountedVolume],
    ) -> None:
        services = self.services
        secrets = await self._pull_secrets(pod)
        image = await services.images.ensure(pod, container, secrets, sandbox_config)
        try:
            config = await self._container_config(pod, container, state, image, ips, volumes, sandbox_config)
        except (ConfigError, VolumeError, OSError, ValueError) as error:
            services.event(pod, container, "Warning", "Failed", f"Error: {error}")
            raise StartError("CreateContainerConfigError", str(error), 10.0) from error
        try:
            answer = await services.runtime.call(
                "CreateContainer", pod_sandbox_id=sandbox_id, config=config, sandbox_config=sandbox_config
            )
        except RpcError as error:
            text = str(error.message)
            services.event(pod, container, "Warning", "Failed", f"Error: {text}")
            raise StartError("CreateContainerError", text, 10.0) from error
        container_id = answer.container_id
        services.event(pod, container, "Normal", "Created", "Container created")
        try:
            await services.runtime.call("StartContainer", container_id=container_id)
        except RpcError as error:
            text = str(error.message)
            services.event(pod, container, "Warning", "Failed", f"Error: {text}")
            raise StartError("RunContainerError", text, 1.0) from error
        services.event(pod, container, "Normal", "Started", "Container started")
        action = (container.get("lifecycle") or {}).get("postStart")
        if action:
            try:
                await services.killer.hook(pod, container, container_id, action)
            except HookFailed as error:
                services.event(pod, container, "Warning", "FailedPostStartHook", "PostStartHook failed")
                known = await services.runtime.container(container_id)
                await services.killer.kill(pod, known, "FailedPostStartHook")
                raise StartError("PostStartHookError", str(error), 1.0) from error

    async def _container_config(
        self,
        pod: Pod,
        container: dict[str, Any],
        state: PodState,
        image: str,
        ips: list[str],
        volumes: dict[str, MountedVolume],
        sandbox_config: Any,
    ) -> Any:
        services, metadata = self.services, pod["metadata"]
        config = services.config
        known = state.latest(container["name"])
        folder = config.pod_log_folder(metadata["namespace"], metadata["name"], metadata["uid"]) / container["name"]
        restarts = known.restart_count + 1 if known is not None else _restarts_in_logs(folder)
        user = await self._image_user(image)
        _check_non_root(pod, container, user)
        env = await environment(
            pod,
            container,
            status=services.addresses(pod, ips),
            services=services.service_objects(),
            allocatable=services.allocatable(),
            lookup=services.lookup,
            warn=lambda reason, text: services.event(pod, None, "Warning", reason, text),
            read_file=partial(_read_file, volumes),
        )
        target = ""
        if container.get("targetContainerName"):
            running = next((c for c in state.running() if c.name == container["targetContainerName"]), None)
            if running is None:
                raise ConfigError(f"unable to find target container {container['targetContainerName']}")
            target = running.id
        await asyncio.to_thread(folder.mkdir, 0o755, True, True)
        mounts = await asyncio.to_thread(self._mounts, pod, container, ips, volumes, env, target)
        found = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=container["name"], attempt=restarts),
            image=cri.ImageSpec(image=image, user_specified_image=container["image"]),
            command=[expand(c, env) for c in container.get("command") or ()],
            args=[expand(a, env) for a in container.get("args") or ()],
            working_dir=container.get("workingDir") or "",
            envs=[cri.KeyValue(key=k, value=v.encode("utf-8", "surrogateescape")) for k, v in env.items()],
            mounts=mounts,
            labels=podspec.container_labels(pod, container),
            annotations=podspec.container_annotations(pod, container, restarts),
            log_path=f"{container['name']}/{restarts}.log",
            stdin=bool(container.get("stdin")),
            stdin_once=bool(container.get("stdinOnce")),
            tty=bool(container.get("tty")),
        )
        for entry in container.get("volumeDevices") or ():
            volume = volumes.get(entry["name"])
            if volume is None:
                raise ConfigError(f'cannot find volume "{entry["name"]}" to pass into container "{container["name"]}"')
            access = "r" if volume.readonly else "mrw"
            found.devices.add(host_path=str(volume.path), container_path=entry["devicePath"], permissions=access)
        stop = (container.get("lifecycle") or {}).get("stopSignal")
        if stop:
            word = "SIGNAL_" + stop.replace("+", "PLUS").replace("-", "MINUS")
            found.stop_signal = cri.values.get(word, 0)
        found.linux.resources.CopyFrom(
            podspec.container_resources(
                pod, container, services.memory_capacity(), config.cpu_cfs_quota, config.swap_behavior
            )
        )
        own = services.placement.cpuset(metadata["uid"], container["name"])
        found.linux.resources.cpuset_cpus, found.linux.resources.cpuset_mems = own
        found.linux.security_context.CopyFrom(
            podspec.security_context(pod, container, config.root, image_user=user, target=target)
        )
        options = sandbox_config.linux.security_context.namespace_options
        if options.HasField("userns_options"):
            owners = options.userns_options
            found.linux.security_context.namespace_options.userns_options.CopyFrom(owners)
            for mount in found.mounts:
                mount.uidMappings.extend(owners.uids)
                mount.gidMappings.extend(owners.gids)
        try:
            await services.devices.add_to(found, pod, container)
            services.claims.add_to(found, pod, container)
        except (DeviceError, ClaimError) as error:
            raise ConfigError(str(error)) from error
        return found

    async def _image_user(self, image: str) -> tuple[int | None, str]:
        found = await self.services.images.user(image)
        if found is None:
            raise ConfigError(f'image "{image}" is not present')
        return found

    def _mounts(
        self,
        pod: Pod,
        container: Mapping[str, Any],
        ips: list[str],
        volumes: Mapping[str, MountedVolume],
        env: Mapping[str, str],
        target: str,
    ) -> list[Any]:
        """The container's mounts. Blocking. Raises ConfigError, VolumeError, OSError."""
        services, uid = self.services, pod["metadata"]["uid"]
        found: list[Any] = []
        for index, mount in enumerate(container.get("volumeMounts") or ()):
            volume = volumes.get(mount["name"])
            if volume is None:
                raise ConfigError(f'cannot find volume "{mount["name"]}" to mount into container "{container["name"]}"')
            path = mount.get("subPath") or ""
            if mount.get("subPathExpr"):
                path = _sub_path(mount["subPathExpr"], env)
            if path:
                _check_sub_path(path)
            entry = cri.Mount(
                container_path=mount["mountPath"] if mount["mountPath"].startswith("/") else f"/{mount['mountPath']}",
                readonly=bool(mount.get("readOnly")) or volume.readonly,
                propagation=PROPAGATION.get(mount.get("mountPropagation") or "", 0),
                recursive_read_only=mount.get("recursiveReadOnly") in ("Enabled", "IfPossible")
                and bool(mount.get("readOnly")),
            )
            if volume.image is not None:
                entry.image.image = str(volume.image.get("reference") or "")
                entry.image.user_specified_image = str(volume.image.get("asked") or "")
                entry.image_sub_path = path
            elif path:
                source = services.volumes.sub_path(uid, volume, container["name"], index, path)
                entry.host_path = str(source)
            else:
                entry.host_path = str(volume.path)
            found.append(entry)
        taken = {m.container_path.rstrip("/") for m in found}
        if "/etc/hosts" not in taken and (ips or podspec.host_network(pod)):
            hosts = services.config.pod_folder(uid) / "etc-hosts"
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(podspec.hosts_file(pod, ips, services.config))
            os.chmod(hosts, 0o644)
            found.append(cri.Mount(container_path="/etc/hosts", host_path=str(hosts)))
        message = container.get("terminationMessagePath")
        if message:
            path_on_node = podspec.termination_file(services.config, pod, container)
            found.append(cri.Mount(container_path=message, host_path=str(path_on_node)))
        return found


class StartError(Exception):
    """A container could not be started. reason and message: its waiting state's; wait: seconds until the next try."""

    def __init__(self, reason: str, message: str, wait: float) -> None:
        super().__init__(message)
        self.reason, self.message, self.wait = reason, message, wait


def _read_file(volumes: Mapping[str, MountedVolume], volume: str, path: str) -> bytes | None:
    """A file of a volume, never one that a link in it leads to outside."""
    found = volumes.get(volume)
    try:
        return rooted.read_file(found.path, path, 64 * 1024) if found is not None else None
    except OSError:
        return None


def _check_non_root(pod: Pod, container: Mapping[str, Any], user: tuple[int | None, str]) -> None:
    context = podspec.effective_context(pod, container)
    if not context.get("runAsNonRoot"):
        return
    shown = f'(pod: "{pod["metadata"]["name"]}_{pod["metadata"]["namespace"]}({pod["metadata"]["uid"]})", container: {container["name"]})'  # fmt: skip
    if context.get("runAsUser") is not None:
        if context["runAsUser"] == 0:
            raise ConfigError(f"container's runAsUser breaks non-root policy {shown}")
        return
    if user[0] == 0:
        raise ConfigError(f"container has runAsNonRoot and image will run as root {shown}")
    if user[0] is None and user[1]:
        raise ConfigError(f"container has runAsNonRoot and image has non-numeric user ({user[1]}), cannot verify user is non-root {shown}")  # fmt: skip


def _sub_path(expression: str, env: Mapping[str, str]) -> str:
    lost = missing(expression, env)
    if lost:
        raise ConfigError(f"missing value for {lost[0]!r} in subPathExpr {expression!r}")
    return expand(expression, env)


def _check_sub_path(path: str) -> None:
    if os.path.isabs(path):
        raise ConfigError(f"error SubPath `{path}` must not be an absolute path")
    if ".." in path.split("/"):
        raise ConfigError(f"unable to provision SubPath `{path}`: must not contain '..'")


def _restarts_in_logs(folder: Path) -> int:
    """One more than the newest N.log of a container whose runtime forgot it; 0 without any."""
    try:
        names = os.listdir(folder)
    except OSError:
        return 0
    numbers = [int(m.group(1)) for n in names if (m := re.match(r"(\d+)\.log", n))]
    return max(numbers) + 1 if numbers else 0


def _go_duration(seconds: float) -> str:
    """Seconds as Go prints a duration of whole seconds ("10s", "1m20s", "5m0s")."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60}s"
