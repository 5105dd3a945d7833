"""Containers of pods: created from an image, started by the runtime, stopped, removed, found again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from longshore.engine.cri import spec
from longshore.engine.cri.records import Container, Records, Sandbox, now
from longshore.engine.cri.sandboxes import Sandboxes
from longshore.engine.errors import EngineError, NotFound
from longshore.engine.images import references
from longshore.engine.images.store import ImageStore, ImageUser
from longshore.engine.runtime.runtime import ExitStatus, NoSuchContainer, NotRunning, Runtime, RuntimeFailed
from longshore.machinery import mounts, rooted, users
from longshore.machinery.grpc import RpcError, Status
from longshore.machinery.users import Owners
from longshore.wire.cri import cri

log = logging.getLogger("longshore.engine.cri")
LABEL = "io.longshore.cri"
LOST_EXIT = 255
START_FAILED = 128
# A stopped container that the kernel will not let die (stuck in a device) is waited for no longer than this.
KILL_PATIENCE = 30.0


def _reachable(source: Path, target: Path) -> Path:
    """Show a container's root where the users of its user namespace may go. Blocking. Raises OSError."""
    target.mkdir(parents=True, exist_ok=True)
    if not mounts.is_mounted(target):
        mounts.bind(source, target)
    return target


def _owned(stage: Path, owners: Owners, place: int, source: str) -> str:
    """Show a volume with its owners mapped. Raises RpcError."""
    target = stage / str(place)
    if not mounts.is_mounted(target):
        stage.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(source):
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        namespace = os.open(owners.namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            users.mount(source, target, namespace, recursive=True)
        except OSError as error:
            raise RpcError(Status.UNKNOWN, f"failed to set MOUNT_ATTR_IDMAP on {source}: {error.strerror} (maybe the filesystem used doesn't support idmap mounts on this kernel?)") from error  # fmt: skip
        finally:
            os.close(namespace)
    return str(target)


class Containers:
    """All containers of one engine's pods."""

    def __init__(
        self,
        data: Path,
        *,
        runtime: Runtime,
        images: ImageStore,
        sandboxes: Sandboxes,
        changed: Callable[[Container, int], None],
    ) -> None:
        """data: a folder of their own. changed(container, event type)."""
        self.records: Records[Container] = Records(data, Container, "container")
        self.runtime, self.images, self.sandboxes, self._changed = runtime, images, sandboxes, changed
        self._locks: dict[str, asyncio.Lock] = {}
        self._starting: set[asyncio.Future[None]] = set()  # held, so that they live until they are done
        self._untold: set[str] = set()  # whose start nobody was told of yet
        runtime.on_exit(self._exited)

    def lock(self, container_id: str) -> asyncio.Lock:
        return self._locks.setdefault(container_id, asyncio.Lock())

    def image_users(self) -> list[ImageUser]:
        """Who uses which image, for the image store's conflicts."""
        return [ImageUser(c.id, c.image_id, c.state == cri.CONTAINER_RUNNING) for c in self.records]

    def of_sandbox(self, sandbox_id: str) -> list[Container]:
        """A sandbox's containers, oldest first."""
        return sorted((c for c in self.records if c.sandbox_id == sandbox_id), key=lambda c: c.created_at)

    # -- create ------------------------------------------------------------------------------------------------------

    async def create(self, sandbox: Sandbox, config: Any, sandbox_config: Any) -> Container:
        """Prepare a container: its root, configuration and record. Raises RpcError; nothing is left of a failed one."""
        if not config.metadata.name:
            raise spec.invalid("container metadata needs a name")
        if not sandbox.ready:
            raise RpcError(Status.UNKNOWN, f'sandbox container "{sandbox.id}" is not running')
        for other in self.of_sandbox(sandbox.id):
            if other.metadata == config.metadata:
                name = f"{config.metadata.name}_{sandbox.metadata.name}_{config.metadata.attempt}"
                raise RpcError(
                    Status.ALREADY_EXISTS,
                    f'failed to reserve container name "{name}": name "{name}" is reserved for "{other.id}"',
                )
        try:
            image = self.images.resolve(config.image.image)
        except EngineError as error:
            kind = Status.NOT_FOUND if isinstance(error, NotFound) else Status.INVALID_ARGUMENT
            raise RpcError(kind, f'failed to resolve image "{config.image.image}": {error.message}') from error
        container = Container(secrets.token_hex(32), config, sandbox_id=sandbox.id, image_id=image.id, created_at=now())
        container.image_ref = image.id
        digests = [str(n) for n in self.images.names(image.id) if n.digest]
        if digests:
            container.image_ref = digests[0]
        if config.log_path:
            folder = sandbox_config.log_directory or sandbox.config.log_directory
            container.log_path = os.path.join(folder, config.log_path) if folder else ""
        container.stop_signal = _stop_signal(config, image.run_config)
        try:
            # Made in this order: a root without a record is found and removed at the next start.
            root = self.images.prepare(container.id, image)
            await asyncio.to_thread(partial(root.mount, owners=self.sandboxes.owners(sandbox)))
            user = spec.user_of(config, image.run_config, root.merged)
            container.uid, container.gid, container.groups = user.uid, user.gid, list(user.groups)
            # Built once here, so that a wrong configuration is refused before a start.
            await self._spec(container, sandbox, image.run_config, root.merged)
        except BaseException as error:
            await asyncio.shield(asyncio.to_thread(self._release_roots, container))
            if isinstance(error, EngineError):
                raise RpcError(Status.UNKNOWN, f"failed to create container: {error.message}") from error
            if isinstance(error, OSError):
                raise RpcError(Status.UNKNOWN, f"failed to create container: {error}") from error
            raise
        self.records.save(container)
        self._changed(container, cri.CONTAINER_CREATED_EVENT)
        return container

    async def _spec(self, container: Container, sandbox: Sandbox, image: Mapping[str, Any], rootfs: Path) -> dict[str, Any]:  # fmt: skip
        config, boxes = container.config, self.sandboxes
        options = config.linux.security_context.namespace_options
        pid: str | None = None
        if options.pid == cri.NODE:
            pid = ""
        elif options.pid == cri.POD and sandbox.pause_pid:
            pid = f"/proc/{sandbox.pause_pid}/ns/pid"
        elif options.pid == cri.TARGET:
            target = self.records.get(options.target_id)
            if target.state != cri.CONTAINER_RUNNING or target.sandbox_id != sandbox.id:
                raise spec.invalid(f'target container "{options.target_id}" is not running in this sandbox')
            pid = f"/proc/{self.runtime.state(target.id).pid}/ns/pid"
        owners = boxes.owners(sandbox)
        stage = boxes.stage(sandbox.id, container.id)
        if owners is not None:
            rootfs = await asyncio.to_thread(_reachable, rootfs, stage / "root")
        place = spec.Place(
            rootfs=rootfs,
            cgroup=f"{boxes.cgroup_parent(sandbox)}/{container.id}",
            hostname=boxes.hostname(sandbox),
            network=boxes.pin(sandbox, "net"),
            ipc=boxes.pin(sandbox, "ipc"),
            uts=boxes.pin(sandbox, "uts"),
            pid=pid,
            files=boxes.files(sandbox),
            shm=boxes.shm(sandbox),
            image_roots=await self._image_volumes(container, owners),
            owners=owners,
            owned=partial(_owned, stage, owners) if owners is not None else None,
        )
        annotations = {
            **config.annotations,
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": sandbox.id,
            "io.kubernetes.cri.container-name": config.metadata.name,
        }
        from longshore.engine.runtime.users import User

        return spec.build(
            config, image, place, User(container.uid, container.gid, tuple(container.groups)), annotations
        )

    async def _image_volumes(self, container: Container, owners: Owners | None) -> dict[int, Path]:
        """Mount the images that are volumes of this container; read-only, each a root of its own."""
        found: dict[int, Path] = {}
        for index, mount in enumerate(container.config.mounts):
            name = mount.image.image if mount.HasField("image") else ""
            if not name:
                continue
            if not mount.readonly:
                raise spec.invalid(f'image volume "{mount.container_path}" must be read-only')
            key = f"{container.id}-image-{index}"
            try:
                root = self.images.rootfs(key)
            except NotFound:
                root = self.images.prepare(key, self.images.resolve(name))
                container.image_mounts.append(key)
            merged = await asyncio.to_thread(partial(root.mount, readonly=True, owners=owners))
            # KEP-5365: a status tells which image it really is.
            image = self.images.find(name)
            if image is not None and not mount.image.image_ref:
                mount.image.image_ref = image.id
            if mount.image_sub_path:
                try:
                    inner = rooted.real_path(merged, mount.image_sub_path)
                except OSError as error:
                    raise spec.invalid(
                        f'failed to get image subpath "{mount.image_sub_path}": {error.strerror}'
                    ) from error
                merged = merged / inner.lstrip("/")
            found[index] = merged
        return found

    def _release_roots(self, container: Container) -> None:
        stage = self.sandboxes.stage(container.sandbox_id, container.id)
        if stage.exists():
            mounts.unmount_below(stage)
        for key in (*container.image_mounts, container.id):
            self.images.release(key)

    # -- start and stop ----------------------------------------------------------------------------------------------

    async def start(self, container: Container) -> None:
        """Run a created container. One that cannot start has ended with code 128 and reason StartError.

        Goes to its end when the caller goes away: a kubelet that is killed in between finds its program running, not
        one whose start was broken off, which would count as the program's failure.
        """
        task = asyncio.ensure_future(self._start(container))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        await asyncio.shield(task)

    async def _start(self, container: Container) -> None:
        async with self.lock(container.id):
            if container.state != cri.CONTAINER_CREATED:
                name = cri.value_name("ContainerState", container.state)
                raise RpcError(Status.UNKNOWN, f'container "{container.id}" is in {name} state')
            sandbox = self.sandboxes.records.get(container.sandbox_id)
            if not sandbox.ready:
                raise RpcError(Status.UNKNOWN, f'sandbox container "{sandbox.id}" is not running')
            self._untold.add(container.id)
            try:
                await self._run(container, sandbox)
            except (RpcError, RuntimeFailed, EngineError, OSError, ValueError) as error:
                text = error.message if isinstance(error, RpcError) else str(error)
                container.started_at = container.finished_at = now()
                container.exit_code, container.reason = START_FAILED, "StartError"
                container.message = text
                self.records.note(container)
                self._untold.discard(container.id)
                with contextlib.suppress(NoSuchContainer, RuntimeFailed):
                    await self.runtime.delete(container.id, force=True)
                self._changed(container, cri.CONTAINER_STOPPED_EVENT)
                raise RpcError(Status.UNKNOWN, f"failed to start container {container.id!r}: {text}") from error
        self._tell_start(container)

    def _tell_start(self, container: Container) -> None:
        """Tell once that a container has started, before its end is told, however short its life."""
        if container.id in self._untold:
            self._untold.discard(container.id)
            self._changed(container, cri.CONTAINER_STARTED_EVENT)

    async def _run(self, container: Container, sandbox: Sandbox) -> None:
        image = self.images.get(container.image_id)
        run_config = image.run_config if image is not None else {}
        root = self.images.rootfs(container.id)
        merged = await asyncio.to_thread(partial(root.mount, owners=self.sandboxes.owners(sandbox)))
        built = await self._spec(container, sandbox, run_config, merged)
        config = container.config
        await self.runtime.create(
            container.id,
            built,
            log_path=Path(container.log_path) if container.log_path else None,
            terminal=config.tty,
            stdin=config.stdin,
            stdin_once=config.stdin_once,
            labels={LABEL: sandbox.id},
            runtime=sandbox.runtime_handler,
        )
        # Written before the program runs: a crash in between is seen as a container that has started.
        container.started_at = now()
        self.records.save(container)
        await self.runtime.start(container.id)

    def _exited(self, container_id: str, status: ExitStatus) -> None:
        container = self.records.find(container_id)
        if container is None or container.id != container_id or container.finished_at or not container.started_at:
            return
        self._tell_start(container)
        self._finish(container, status)
        self.records.note(container)
        self._changed(container, cri.CONTAINER_STOPPED_EVENT)

    @staticmethod
    def _finish(container: Container, status: ExitStatus) -> None:
        container.finished_at = max(int(status.at * 1e9), container.started_at + 1)
        container.exit_code = status.code
        if status.oom_killed:
            container.reason = "OOMKilled"
        else:
            container.reason = "Completed" if status.code == 0 else "Error"

    async def stop(self, container: Container, grace: float) -> None:
        """Stop signal, and after `grace` seconds SIGKILL; returns when it has ended. Stopped already: nothing to do."""
        if container.state == cri.CONTAINER_CREATED:
            return
        if container.state == cri.CONTAINER_EXITED:
            return
        if grace > 0:
            with contextlib.suppress(NotRunning, NoSuchContainer):
                self.runtime.kill(container.id, container.stop_signal)
            if await self._gone(container, grace):
                return
        shared = not self._own_pid_namespace(container)
        with contextlib.suppress(NotRunning, NoSuchContainer):
            self.runtime.kill(container.id, signal.SIGKILL)
            if shared:
                self.runtime.kill(container.id, signal.SIGKILL, all=True)
        if not await self._gone(container, KILL_PATIENCE):
            raise RpcError(Status.DEADLINE_EXCEEDED, f'container "{container.id}" did not end after SIGKILL')

    def _own_pid_namespace(self, container: Container) -> bool:
        return bool(container.config.linux.security_context.namespace_options.pid == cri.CONTAINER)

    async def _gone(self, container: Container, patience: float) -> bool:
        try:
            async with asyncio.timeout(patience):
                await self.runtime.wait(container.id)
                return True
        except TimeoutError:
            return False
        except NoSuchContainer:
            return True

    async def remove(self, container: Container) -> None:
        """Kill if need be, and forget. Gone already: nothing to do."""
        async with self.lock(container.id):
            if container.id not in self.records:
                return
            if container.state == cri.CONTAINER_RUNNING:
                await self.stop(container, 0)
            with contextlib.suppress(NoSuchContainer):
                await self.runtime.delete(container.id, force=True)
            await asyncio.to_thread(self._release_roots, container)
            self.records.remove(container.id)
        self._locks.pop(container.id, None)
        self._changed(container, cri.CONTAINER_DELETED_EVENT)

    async def update(self, container: Container, linux: Any) -> None:
        """New limits, in force at once for a running container and kept for the status."""
        if container.state == cri.CONTAINER_EXITED:
            raise RpcError(Status.UNKNOWN, f"cannot update stopped container {container.id}")
        merged = container.config.linux.resources
        for field, value in linux.ListFields():
            if field.name == "hugepage_limits":
                del merged.hugepage_limits[:]
                merged.hugepage_limits.extend(value)
            elif field.name == "unified":
                merged.unified.update(value)
            else:
                setattr(merged, field.name, value)
        if container.state == cri.CONTAINER_RUNNING:
            try:
                await self.runtime.update(container.id, spec.limits(linux))
            except (RuntimeFailed, NotRunning) as error:
                raise RpcError(Status.UNKNOWN, f"failed to update resources: {error}") from error
        self.records.save_config(container)

    # -- after a restart ---------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Read the records back and set each against what the runtime really has."""
        self.records.load()
        held = set(self.runtime.ids())
        for container in self.records:
            if not container.started_at or container.finished_at:
                if container.id in held and not container.started_at:
                    # Created in the runtime but never started: as if it had not been.
                    await self.runtime.delete(container.id, force=True)
                continue
            if container.id not in held:
                container.finished_at = max(now(), container.started_at + 1)
                container.exit_code, container.reason = LOST_EXIT, "Unknown"
                self.records.note(container)
                continue
            state = self.runtime.state(container.id)
            if state.status == "created":
                # The engine died between writing and starting: start it, the program has not run yet.
                with contextlib.suppress(RuntimeFailed):
                    await self.runtime.start(container.id)
            elif state.exit is not None:
                self._finish(container, state.exit)
                self.records.note(container)
        for container_id in held:
            if LABEL in self.runtime.state(container_id).labels and container_id not in self.records:
                await self.runtime.delete(container_id, force=True)

    # -- what is there -----------------------------------------------------------------------------------------------

    def select(self, wanted: Any) -> list[Container]:
        """The containers that a ContainerFilter lets through."""
        found = []
        for container in self.records.labelled(wanted.label_selector):
            if wanted.id and not container.id.startswith(wanted.id):
                continue
            if wanted.pod_sandbox_id and not container.sandbox_id.startswith(wanted.pod_sandbox_id):
                continue
            if wanted.HasField("state") and wanted.state.state != container.state:
                continue
            found.append(container)
        return found

    def image_spec(self, container: Container) -> Any:
        """The ImageSpec of a status: the image's first tag where it has one, else what was asked for."""
        tags = [str(n) for n in self.images.names(container.image_id) if n.tag]
        asked = container.config.image
        wanted = asked.user_specified_image or asked.image
        with contextlib.suppress(EngineError):
            parsed = references.parse_any(wanted)
            wanted = parsed if isinstance(parsed, str) else str(parsed.with_default_tag())
        name = wanted if wanted in tags or not tags else tags[0]
        return cri.ImageSpec(image=name, user_specified_image=asked.user_specified_image)

    def listed(self, container: Container) -> Any:
        """A Container message."""
        return cri.Container(
            id=container.id,
            pod_sandbox_id=container.sandbox_id,
            metadata=container.metadata,
            image=container.config.image,
            image_ref=container.image_ref,
            image_id=container.image_id,
            state=container.state,
            created_at=container.created_at,
            labels=container.config.labels,
            annotations=container.config.annotations,
        )

    def status(self, container: Container) -> Any:
        """A ContainerStatus message."""
        config = container.config
        return cri.ContainerStatus(
            id=container.id,
            metadata=container.metadata,
            state=container.state,
            created_at=container.created_at,
            started_at=container.started_at,
            finished_at=container.finished_at,
            exit_code=container.exit_code,
            image=self.image_spec(container),
            image_ref=container.image_ref,
            image_id=container.image_id,
            reason=container.reason,
            message=container.message,
            labels=config.labels,
            annotations=config.annotations,
            mounts=config.mounts,
            log_path=container.log_path,
            resources=cri.ContainerResources(linux=config.linux.resources),
            user=cri.ContainerUser(
                linux=cri.LinuxContainerUser(uid=container.uid, gid=container.gid, supplemental_groups=container.groups)
            ),
            stop_signal=config.stop_signal or _signal_value(container.stop_signal),
        )


def _stop_signal(config: Any, image: Mapping[str, Any]) -> int:
    """The signal that asks to stop: the pod's choice, the image's, SIGTERM."""
    if config.stop_signal:
        return _signal_number(cri.value_name("Signal", config.stop_signal).removeprefix("SIGNAL_"))
    word = str(image.get("StopSignal") or "")
    return _signal_number(word) if word else int(signal.SIGTERM)


def _signal_number(word: str) -> int:
    """The number of "SIGTERM", "TERM", "15", "SIGRTMIN+3" or CRI's "SIGRTMINPLUS3"; SIGTERM for what is none."""
    text = word.upper().replace("PLUS", "+").replace("MINUS", "-")
    if text.isdigit():
        return int(text)
    text = text.removeprefix("SIG")
    for base, number in (("RTMIN", int(signal.SIGRTMIN)), ("RTMAX", int(signal.SIGRTMAX))):
        if text.startswith(base):
            rest = text.removeprefix(base)
            with contextlib.suppress(ValueError):
                return number + int(rest or 0)
    found = signal.Signals.__members__.get("SIG" + text)
    return int(found) if found is not None else int(signal.SIGTERM)


def _signal_value(number: int) -> int:
    """CRI's enum value of a signal number."""
    with contextlib.suppress(ValueError):
        return int(cri.values.get("SIGNAL_" + signal.Signals(number).name, 0))
    return 0
