"""Start, end, restart and remove containers.

A container's lock is held while it is being started, cleaned up after its end, or removed; waiting for its end holds nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import Conflict, EngineError, InvalidParameter, NotFound, NotModified, SystemFailure
from longshore.engine.networks import model as network_model
from longshore.engine.networks.model import Endpoint
from longshore.engine.networks.service import remove_sandbox
from longshore.engine.runtime.runtime import ExitStatus, NoSuchContainer, NotRunning, RuntimeFailed
from longshore.machinery import mounts, rooted
from longshore.machinery.nftables import NftablesError

from . import files, health, logdrivers, mountspec, ocispec, signals
from .model import Container, format_time, new_id, now, parse_time

if TYPE_CHECKING:
    from .service import ContainerService

log = logging.getLogger("longshore.engine.containers")
Json = dict[str, Any]

_RESTART_FIRST, _RESTART_MOST, _RESTART_GOOD = 0.1, 60.0, 10.0
_OCI_FAILED = "failed to create task for container: failed to create shim task: OCI runtime create failed: "


class Lifecycle:
    """The life of containers. One a ContainerService."""

    def __init__(self, service: ContainerService) -> None:
        self._service = service
        self._runtime = service.runtime
        self._runtime.on_exit(self._on_exit)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("container task failed", exc_info=task.exception())

    # ------------------------------------------------------------------ start

    async def start(self, container: Container) -> None:
        """Start a container that does not run. Raises NotModified, Conflict, and what starting raises."""
        async with container.lock:
            state = container.state
            if state.paused:
                raise Conflict("cannot start a paused container, try unpause instead")
            if state.running and not state.restarting:
                raise NotModified("")
            if state.removing or state.dead or container.removed:
                raise Conflict("container is marked for removal and cannot be started")
            self._cancel_restart(container)
            container.manually_stopped = False
            container.restart_delay = 0.0
            container.restart_count = 0
            await self._start(container)

    async def _start(self, container: Container) -> None:
        state = container.state
        try:
            await self._run(container)
        except BaseException as error:
            text = error.message if isinstance(error, EngineError) else str(error)
            state.running = state.restarting = False
            state.pid = 0
            state.error = text
            code = 128
            if isinstance(error, InvalidParameter) and _OCI_FAILED in text:
                code = 126 if "permission denied" in text or "is a directory" in text else 127
            state.exit_code = code
            container.save()
            for future in container.pending_attach:
                if not future.done():
                    future.cancel()
            container.pending_attach.clear()
            self._wake(container)
            if container.host["AutoRemove"] and not container.removed:
                self._spawn(self._remove_after_failure(container))
            raise

    async def _remove_after_failure(self, container: Container) -> None:
        with contextlib.suppress(EngineError):
            await self.remove(container, force=True, volumes=True)

    async def _run(self, container: Container) -> None:
        service, host = self._service, container.host
        if host.get("Init") and not service.init_program:
            raise SystemFailure('exec: "docker-init": executable file not found in $PATH')
        before = {name: settings["NetworkID"] for name, settings in container.networks.items()}
        sandbox, plugs = self._reserve_network(container)
        merged: Path | None = None
        created = False
        shm: Path | None = None
        plugging: asyncio.Future[None] | None = None
        serving: asyncio.Future[None] | None = None
        try:
            merged = service.roots.mount(container)
            shm = self._make_shm(container)
            own_files = self._write_files(container)
            oci_mounts = self._prepare_mounts(container, merged)
            spec = ocispec.build(
                container,
                root=merged,
                merged=merged,
                sandbox=sandbox,
                mounts=oci_mounts,
                files=own_files,
                shm=shm,
                find=service.store.find,
                cgroup_parent=service.cgroup_parent,
                init_program=service.init_program,
            )
            self._check_log_options(container)
            if container.sandbox_id and sandbox is not None:
                # The runtime joins the namespace while its interfaces are still being made.
                await service.in_thread(service.networks.build, sandbox, [])
                if plugs:
                    plugging = service.in_thread(self._plug, container, sandbox, plugs)
                    if service.networks.resolvers is not None:
                        serving = asyncio.ensure_future(service.networks.resolvers.serve(container, sandbox))
            log_path = None if host["LogConfig"]["Type"] == "none" else container.log_path
            try:
                state_pid = await self._runtime.create(
                    container.id,
                    spec,
                    log_path=log_path,
                    terminal=container.tty,
                    stdin=container.config["OpenStdin"],
                    stdin_once=container.config["StdinOnce"],
                    labels={"owner": "docker"},
                    runtime=host["Runtime"],
                )
                created = True
            except RuntimeFailed as error:
                raise _start_error(str(error), container.path) from None
            if plugging is not None:
                await plugging
                plugging = None
            if plugs:
                bindings = self._bindings(container)
                if bindings:
                    container.ports = service.networks.publish(plugs[0][0], bindings)
            if serving is not None:
                await serving
                serving = None
            container.ended = asyncio.get_running_loop().create_future()
            state = container.state
            state.running, state.paused, state.restarting = True, False, False
            state.oom_killed = state.dead = False
            state.pid, state.exit_code, state.error = state_pid, 0, ""
            state.started_at = now()
            health.prepare(container)
            self._connect_attached(container)
            container.save()
            try:
                await self._runtime.start(container.id)
            except RuntimeFailed as error:
                raise _start_error(str(error), container.path) from None
        except BaseException as error:
            for pending in (plugging, serving):
                if pending is not None:
                    with contextlib.suppress(BaseException):
                        await pending
            await asyncio.shield(self._undo(container, sandbox, created))
            if _network_failure(error):
                raise type(error)(f"failed to set up container networking: {error}") from None
            for name, id in before.items():
                container.networks[name]["NetworkID"] = id
            if isinstance(error, NftablesError):
                raise SystemFailure(f"failed to set up container networking: {error}") from None
            if isinstance(error, OSError):
                raise SystemFailure(
                    f"{error.filename or container.id}: {(error.strerror or str(error)).lower()}"
                ) from None
            raise
        self._rotate_log(container)
        for name, settings in container.networks.items():
            if settings["EndpointID"]:
                network = service.networks.find(name)
                if network is not None:
                    service.networks.announce("connect", network, container.id)
        service.event(container, "start")
        health.start(service, container)

    def _rotate_log(self, container: Container) -> None:
        settings = container.host["LogConfig"]
        container.rotation = logdrivers.start_rotation(
            settings["Type"], settings["Config"], container.log_path, lambda: self._runtime.reopen_log(container.id)
        )

    async def _undo(self, container: Container, sandbox: Path | None, created: bool) -> None:
        container.state.running = False
        if created:
            with contextlib.suppress(Exception):
                await self._runtime.delete(container.id, force=True)
        await self._clean(container)

    def _plug(self, container: Container, sandbox: Path, plugs: list[tuple[Endpoint, str, bool]]) -> None:
        try:
            self._service.networks.build(sandbox, plugs, create=False)
        except OSError as error:
            raise SystemFailure(
                f"failed to create endpoint {container.name[1:]}: {(error.strerror or str(error)).lower()}"
            ) from None

    def _check_log_options(self, container: Container) -> None:
        options = container.host["LogConfig"]["Config"]
        try:
            if options.get("max-size"):
                logdrivers.parse_size(options["max-size"])
        except ValueError as error:
            container.log_path.touch(mode=0o640)
            raise SystemFailure(
                f"failed to create task for container: failed to initialize logging driver: {error}"
            ) from None

    def _reserve_network(self, container: Container) -> tuple[Path | None, list[tuple[Endpoint, str, bool]]]:
        """Choose the network namespace and take addresses. Returns its path (None: the host's) and what to plug in."""
        service, mode = self._service, container.network_mode
        networks = service.networks
        container.ports = {}
        if mode.startswith("container:"):
            name = mode.partition(":")[2]
            try:
                other = service.store.find(name)
            except NotFound as error:
                raise SystemFailure(f"joining network namespace of container: {error.message}") from None
            if not other.state.running or other.state.restarting:
                shown = name if len(name) < 64 else other.name.lstrip("/")
                raise Conflict(
                    f"cannot join network namespace of a non running container: container {shown} is {other.state.status}"
                )
            container.config["Hostname"] = other.config["Hostname"]
            container.config["Domainname"] = other.config["Domainname"]
            return Path(f"/proc/{other.state.pid}/ns/net"), []
        if mode == "host":
            container.sandbox_id = ""
            settings = container.networks.get("host")
            if settings is not None:
                settings["NetworkID"] = networks.resolve("host").id
                settings["EndpointID"] = new_id()
            return None, []
        container.sandbox_id = new_id()
        sandbox = networks.sandbox_path(container.sandbox_id)
        plugs: list[tuple[Endpoint, str, bool]] = []
        if mode == "none" or container.config.get("NetworkDisabled"):
            settings = container.networks.get("none")
            if settings is not None:
                settings["NetworkID"] = networks.resolve("none").id
                settings["EndpointID"] = new_id()
            return sandbox, plugs
        taken: list[Endpoint] = []
        try:
            for name, settings in list(container.networks.items()):
                network = networks.resolve(name)
                taken.append(networks.allocate(network, container, settings))
                settings["DNSNames"] = dns_names(container, settings) if network.user_defined else None
                taken[-1].names = settings["DNSNames"] or []
        except BaseException as error:
            for endpoint in taken:
                networks.release(endpoint)
            for settings in container.networks.values():
                network_model.clear(settings)
            container.sandbox_id = ""
            with contextlib.suppress(EngineError, OSError):
                self._write_files(container)
            if isinstance(error, EngineError):
                raise type(error)(f"failed to set up container networking: {error.message}") from None
            raise
        gateway = choose_gateway(container, taken)
        for number, endpoint in enumerate(taken):
            plugs.append((endpoint, endpoint.interface or f"eth{number}", endpoint is gateway))
        # The one with the default route is published through, so it comes first.
        plugs.sort(key=lambda plug: not plug[2])
        return sandbox, plugs

    def _bindings(self, container: Container) -> Json:
        """The ports to publish: exposed ones with their bindings; all exposed ones with PublishAllPorts."""
        bindings: Json = {}
        wanted = {(p if "/" in p else p + "/tcp"): b for p, b in (container.host["PortBindings"] or {}).items()}
        for port in container.config.get("ExposedPorts") or {}:
            number, _, protocol = port.partition("/")
            first, dash, last = number.partition("-")
            if not first.isdigit() or (dash and not last.isdigit()):
                first = last = "0"
            for each in range(int(first), int(last or first) + 1):
                key = f"{each}/{protocol or 'tcp'}"
                chosen = wanted.get(key)
                if container.host["PublishAllPorts"] and not chosen:
                    chosen = [{"HostIp": "", "HostPort": ""}]
                bindings[key] = chosen or None
        return bindings

    def _make_shm(self, container: Container) -> Path | None:
        """A /dev/shm that other containers may join; only where it was asked for, as it is a mount more."""
        mode = container.host["IpcMode"]
        if mode.startswith("container:"):
            other = self._service.store.find(mode.partition(":")[2])
            path = other.folder / "shm"
            return path if mounts.is_mounted(path) else Path(f"/proc/{other.state.pid}/root/dev/shm")
        if mode != "shareable":
            return None
        path = container.folder / "shm"
        path.mkdir(exist_ok=True)
        if not mounts.is_mounted(path):
            mounts.mount(
                "shm", path, "tmpfs", ["nosuid", "nodev", "noexec", "mode=1777", f"size={container.host['ShmSize']}"]
            )
        return path

    def _write_files(self, container: Container) -> dict[str, Path]:
        """Write hosts, hostname and resolv.conf; returns where they go."""
        service, host, config = self._service, container.host, container.config
        mode = container.network_mode
        if mode.startswith("container:"):
            other = service.store.find(mode.partition(":")[2])
            return {
                f"/etc/{n}": other.folder / n
                for n in ("hosts", "hostname", "resolv.conf")
                if (other.folder / n).exists()
            }
        names = config["Hostname"]
        if config["Domainname"]:
            names = f"{names}.{config['Domainname']} {names}"
        own = [(s["IPAddress"], names) for s in container.networks.values() if s["IPAddress"]]
        own += [(s["GlobalIPv6Address"], names) for s in container.networks.values() if s["GlobalIPv6Address"]]
        extra = []
        for entry in host["ExtraHosts"] or []:
            split = "=" if "=" in entry and (":" not in entry or entry.index("=") < entry.index(":")) else ":"
            name, _, address = entry.partition(split)
            if address == "host-gateway":
                address = service.host_gateway()
            extra.append((address.strip("[]"), name))
        for link in host["Links"] or []:
            target, _, alias = link.partition(":")
            with contextlib.suppress(EngineError):
                other = service.store.find(target.lstrip("/"))
                address = next((s["IPAddress"] for s in other.networks.values() if s["IPAddress"]), "")
                if address:
                    shown = [alias or other.name[1:], other.config["Hostname"], other.name[1:]]
                    extra.append((address, " ".join(dict.fromkeys(shown))))
        user_defined = any(s["DNSNames"] for s in container.networks.values())
        if mode == "host" and not extra and not own:
            content = Path("/etc/hosts").read_text() if Path("/etc/hosts").exists() else files.hosts([])
        else:
            content = files.hosts(own, extra)
        (container.folder / "hosts").write_text(content)
        (container.folder / "hostname").write_text(config["Hostname"] + "\n")
        files.check_nameservers(host["Dns"] or [])
        servers, search, options = files.resolver_of(
            host["Dns"] or [], host["DnsSearch"] or [], host["DnsOptions"] or [], host_network=mode == "host"
        )
        if user_defined and mode != "host" and service.networks.resolvers is not None:
            if not any(o.startswith("ndots:") for o in options):
                options = [*options, "ndots:0"]
            servers = [files.EMBEDDED_DNS]
        (container.folder / "resolv.conf").write_text(files.resolv_conf(servers, search, options))
        return {f"/etc/{n}": container.folder / n for n in ("hosts", "hostname", "resolv.conf")}

    def _prepare_mounts(self, container: Container, merged: Path) -> list[Json]:
        """The OCI mounts of volumes, binds, images and tmpfs; sources are made available."""
        service = self._service
        result: list[Json] = []
        tmpfs = {mount["Target"]: mount for mount in container.host.get("Mounts") or [] if mount.get("Type") == "tmpfs"}
        for point in container.mounts:
            kind, target = point["Type"], point["Destination"]
            if not target.startswith("/"):
                raise InvalidParameter(
                    f"{_OCI_FAILED}invalid mount {{Destination:{target}}}: mount destination {target} not absolute"
                )
            if kind == "tmpfs":
                options = ["noexec", "nosuid", "nodev"]
                for mount in tmpfs.values():
                    if os.path.normpath(mount["Target"]) == target:
                        options += mountspec.tmpfs_options(mount)
                result.append({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options})
                continue
            propagation = point["Propagation"] or "rprivate"
            options = ["bind" if point.get("_nonrecursive") else "rbind", propagation]
            if not point["RW"]:
                options.append("ro")
            if kind == "bind":
                source = point["Source"]
                if not os.path.lexists(source):
                    if not point.get("_create"):
                        raise InvalidParameter(
                            f'invalid mount config for type "bind": bind source path does not exist: {source}'
                        )
                    try:
                        os.makedirs(source, exist_ok=True)
                    except OSError as error:
                        raise SystemFailure(
                            f"error while creating mount source path '{source}': mkdir {source}: {(error.strerror or '').lower()}"
                        ) from None
            elif kind == "volume":
                folder = service.volumes.mount(point["Name"], container.id)
                source = str(folder)
                if point.get("_subpath"):
                    source = _subpath(folder, point["_subpath"])
            else:
                source = service.mount_image(container, point)
            result.append({"destination": target, "type": "bind", "source": source, "options": options})
        return result

    def _connect_attached(self, container: Container) -> None:
        for future in container.pending_attach:
            if not future.done():
                try:
                    future.set_result(self._runtime.attach(container.id, stdin=getattr(future, "wants_stdin", False)))
                except NotRunning:
                    future.cancel()
        container.pending_attach.clear()

    # ------------------------------------------------------------------ end

    def _on_exit(self, id: str, status: ExitStatus) -> None:
        container = self._service.store.get(id)
        if container is not None and container.state.running:
            self._spawn(self._exited(container, status))

    async def _exited(self, container: Container, status: ExitStatus) -> None:
        async with container.lock:
            state = container.state
            if not state.running or container.removed:
                return
            if not state.restarting:
                await self._settle(container, status)

    async def _settle(self, container: Container, status: ExitStatus) -> None:
        """Take note of an end, clean up, and go on as the restart policy says. The lock is held."""
        service, state = self._service, container.state
        ran = status.at - parse_time(state.started_at) / 1e9
        health.stop(container)
        if container.rotation is not None:
            container.rotation.close()
            container.rotation = None
        for session in container.execs.values():
            session.container_ended()
        await asyncio.gather(self._clean(container), self._delete_from_runtime(container))
        restart = self._should_restart(container, status.code, ran)
        state.pid = 0
        state.paused = False
        state.exit_code = status.code
        state.oom_killed = status.oom_killed
        state.finished_at = format_time(int(status.at * 1e9))
        state.running = state.restarting = restart
        if status.oom_killed:
            service.event(container, "oom")
        service.event(container, "die", {"exitCode": str(status.code), "execDuration": str(max(int(ran), 0))})
        if container.ended is not None and not container.ended.done():
            container.ended.set_result(None)
        if restart:
            container.restart_delay = (
                _RESTART_FIRST
                if ran > _RESTART_GOOD or not container.restart_delay
                else min(container.restart_delay * 2, _RESTART_MOST)
            )
            container.restart_count += 1
            container.restart_timer = asyncio.get_running_loop().call_later(
                container.restart_delay, lambda: self._spawn(self._restart_by_policy(container))
            )
        container.save()
        self._wake(container)
        if container.host["AutoRemove"] and not restart:
            await self._remove_locked(container, volumes=True)

    async def _delete_from_runtime(self, container: Container) -> None:
        with contextlib.suppress(NoSuchContainer, RuntimeFailed):
            await self._runtime.delete(container.id)

    async def _clean(self, container: Container) -> None:
        """Give back addresses, namespace, volumes and root. Safe to repeat."""
        service = self._service
        sandbox = service.networks.sandbox_path(container.sandbox_id) if container.sandbox_id else None
        if service.networks.resolvers is not None:
            service.networks.resolvers.stop(container.id)
        for name, settings in container.networks.items():
            network = service.networks.find(name)
            if network is not None and settings["EndpointID"]:
                endpoint = service.networks.connected(network, container)
                if endpoint is not None:
                    service.networks.release(endpoint)
                    service.networks.announce("disconnect", network, container.id)
            network_model.clear(settings)
        container.sandbox_id = ""
        container.ports = {}
        await service.in_thread(self._clean_mounts, container, sandbox)

    def _clean_mounts(self, container: Container, sandbox: Path | None) -> None:
        service = self._service
        if sandbox is not None:
            remove_sandbox(sandbox)
        service.roots.unmount(container)
        for point in container.mounts:
            if point["Type"] == "volume":
                service.volumes.unmount(point["Name"], container.id)
            elif point["Type"] == "image":
                service.unmount_image(container, point)
        shm = container.folder / "shm"
        if shm.exists():
            with contextlib.suppress(OSError):
                mounts.unmount(shm)

    def _should_restart(self, container: Container, code: int, ran: float) -> bool:
        if self._stopping or container.manually_stopped or container.stop_requested:
            return False
        policy = container.host["RestartPolicy"]
        name, most = policy["Name"], policy["MaximumRetryCount"]
        if name in ("always", "unless-stopped"):
            return True
        return name == "on-failure" and code != 0 and (most == 0 or container.restart_count < most)

    async def _restart_by_policy(self, container: Container) -> None:
        container.restart_timer = None
        async with container.lock:
            if not container.state.restarting or container.removed or self._stopping:
                return
            count = container.restart_count
            container.state.restarting = container.state.running = False
            try:
                await self._start(container)
            except Exception as error:
                log.warning("container %s could not be restarted: %s", container.short, error)
            container.restart_count = count

    def _cancel_restart(self, container: Container) -> None:
        if container.restart_timer is not None:
            container.restart_timer.cancel()
            container.restart_timer = None
        if container.state.restarting:
            container.state.restarting = container.state.running = False

    def _wake(self, container: Container) -> None:
        """Answer those that wait for the end."""
        answer: Json = {"StatusCode": container.state.exit_code}
        if container.state.error:
            answer["Error"] = {"Message": container.state.error}
        for future in container.exit_waiters:
            if not future.done():
                future.set_result(answer)
        container.exit_waiters.clear()

    # ------------------------------------------------------------------ signals

    async def kill(self, container: Container, number: int) -> None:
        """Send a signal; SIGKILL waits for the end. Raises Conflict when it does not run."""
        state = container.state
        if not state.running or state.restarting:
            if state.restarting:
                container.manually_stopped = True
                async with container.lock:
                    self._cancel_restart(container)
                    container.save()
                    self._wake(container)
                return
            raise Conflict(f"container {container.id} is not running")
        stop_signal = signals.parse(container.config.get("StopSignal") or "SIGTERM")
        if number in (signal.SIGKILL, stop_signal):
            container.manually_stopped = True
        ended = container.ended
        try:
            self._runtime.kill(container.id, number)
        except (NotRunning, NoSuchContainer):
            raise Conflict(f"container {container.id} is not running") from None
        if number == signal.SIGKILL:
            state.paused = False
        self._service.event(container, "kill", {"signal": str(number)})
        if number == signal.SIGKILL and ended is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await asyncio.shield(ended)

    async def stop(self, container: Container, timeout: float | None, signal_name: str = "") -> None:
        """Stop by signal, then by SIGKILL after `timeout` seconds (None: the container's own, -1: never).

        Raises NotModified when it does not run.
        """
        state = container.state
        if not state.running:
            raise NotModified("")
        if state.restarting:
            await self.kill(container, signal.SIGTERM)
            return
        number = signals.parse(signal_name or container.config.get("StopSignal") or "SIGTERM")
        if timeout is None:
            chosen = container.config.get("StopTimeout")
            timeout = 10 if chosen is None else chosen
        container.manually_stopped = container.stop_requested = True
        try:
            ended = container.ended
            with contextlib.suppress(Conflict):
                await self.kill(container, number)
            if ended is not None:
                try:
                    async with asyncio.timeout(None if timeout < 0 else timeout):
                        await asyncio.shield(ended)
                except TimeoutError:
                    with contextlib.suppress(Conflict):
                        await self.kill(container, signal.SIGKILL)
                    async with asyncio.timeout(10):
                        await asyncio.shield(ended)
            async with container.lock:
                pass
        except TimeoutError:
            raise SystemFailure(
                f"cannot stop container: {container.id}: tried to kill container, but did not receive an exit event"
            ) from None
        finally:
            container.stop_requested = False
        self._service.event(container, "stop")
        if not container.removed:
            container.save()

    async def restart(self, container: Container, timeout: float | None, signal_name: str = "") -> None:
        """Stop (when it runs) and start again; it is not removed in between."""
        auto, container.host["AutoRemove"] = container.host["AutoRemove"], False
        try:
            with contextlib.suppress(NotModified):
                await self.stop(container, timeout, signal_name)
        finally:
            container.host["AutoRemove"] = auto
        with contextlib.suppress(NotModified):
            await self.start(container)
        self._service.event(container, "restart")

    async def pause(self, container: Container) -> None:
        async with container.lock:
            state = container.state
            if not state.running:
                raise Conflict(f"container {container.id} is not running")
            if state.paused:
                raise Conflict(f"Container {container.id} is already paused")
            if state.restarting:
                raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
            try:
                await self._runtime.pause(container.id)
            except (RuntimeFailed, NotRunning) as error:
                raise SystemFailure(f"cannot pause container {container.id}: {error}") from None
            state.paused = True
            health.stop(container)
            container.save()
        self._service.event(container, "pause")

    async def unpause(self, container: Container) -> None:
        async with container.lock:
            if not container.state.paused:
                raise SystemFailure(f"Container {container.id} is not paused")
            try:
                await self._runtime.resume(container.id)
            except (RuntimeFailed, NotRunning) as error:
                raise SystemFailure(f"cannot resume container: {container.id}: {error}") from None
            container.state.paused = False
            health.start(self._service, container)
            container.save()
        self._service.event(container, "unpause")

    # ------------------------------------------------------------------ removal

    async def remove(
        self, container: Container, *, force: bool = False, volumes: bool = False, shown: str = ""
    ) -> None:
        """Remove a container; force ends it first. Raises Conflict."""
        shown = shown or container.name.lstrip("/")
        if container.state.removing:
            raise Conflict(f"removal of container {shown} is already in progress")
        if container.state.running:
            if not force:
                advice = "stop the container before removing or force remove"
                status = "restarting" if container.state.restarting else "running"
                raise Conflict(f'cannot remove container "{shown}": container is {status}: {advice}')
            container.manually_stopped = True
            ended = container.ended
            with contextlib.suppress(EngineError):
                await self.kill(container, signal.SIGKILL)
            if ended is not None and container.state.running and not container.state.restarting:
                async with asyncio.timeout(15):
                    await asyncio.shield(ended)
        async with container.lock:
            if not container.removed:
                await self._remove_locked(container, volumes=volumes)

    async def _remove_locked(self, container: Container, *, volumes: bool) -> None:
        service = self._service
        self._cancel_restart(container)
        container.state.removing = True
        try:
            with contextlib.suppress(NoSuchContainer):
                await self._runtime.delete(container.id, force=True)
            await service.in_thread(self._remove_files, container)
        except BaseException:
            container.state.removing = False
            container.state.dead = True
            raise
        container.removed = True
        service.store.remove(container)
        for point in container.mounts:
            if point["Type"] == "volume":
                service.volumes.release(point["Name"], container.id)
                if volumes and point.get("_anonymous"):
                    with contextlib.suppress(EngineError):
                        service.volumes.remove(point["Name"])
        for exec_id in container.execs:
            service.execs.pop(exec_id, None)
        service.event(container, "destroy")
        answer: Json = {"StatusCode": container.state.exit_code}
        for future in (*container.remove_waiters, *container.exit_waiters):
            if not future.done():
                future.set_result(answer)

    def _remove_files(self, container: Container) -> None:
        self._clean_mounts(container, None)
        self._service.roots.release(container)
        for point in container.mounts:
            if point["Type"] == "image":
                self._service.release_image_mount(container, point)
        shutil.rmtree(container.folder, ignore_errors=True)

    # ------------------------------------------------------------------ after a restart of the engine

    async def recover(self) -> None:
        """Take over what runs, note what ended meanwhile, restart what its policy says."""
        service = self._service
        known = set(self._runtime.ids())
        restart: list[Container] = []
        for container in service.store:
            state = container.state
            for point in container.mounts:
                if point["Type"] == "volume" and service.volumes.exists(point["Name"]):
                    service.volumes.use(point["Name"], container.id)
            held = self._runtime.state(container.id) if container.id in known else None
            if held is not None and held.status in ("running", "paused") and state.running:
                self._adopt(container, held.pid, held.status == "paused")
                continue
            if held is not None:
                if held.exit is not None and state.running:
                    state.exit_code, state.oom_killed = held.exit.code, held.exit.oom_killed
                    state.finished_at = format_time(int(held.exit.at * 1e9))
                with contextlib.suppress(Exception):
                    await self._runtime.delete(container.id, force=True)
            was_running = state.running
            if was_running and held is None and not state.restarting:
                # The machine was started anew: nobody saw how the container ended.
                state.exit_code, state.finished_at = 255, now()
            state.running = state.restarting = state.paused = state.removing = False
            state.pid = 0
            await self._clean(container)
            container.save()
            policy = container.host["RestartPolicy"]["Name"]
            if container.host["AutoRemove"] and (was_running or state.status == "exited"):
                await self.remove(container, force=True, volumes=True)
            elif policy == "always" or (policy == "unless-stopped" and not container.manually_stopped):
                if (
                    was_running
                    or (not container.manually_stopped and state.status == "exited")
                    or (policy == "always" and state.status == "exited")
                ):
                    restart.append(container)
            elif policy == "on-failure" and was_running and state.exit_code != 0:
                restart.append(container)
        for id in self._runtime.ids():
            if service.store.get(id) is None and self._runtime.state(id).labels.get("owner") == "docker":
                with contextlib.suppress(Exception):
                    await self._runtime.delete(id, force=True)
        service.networks.refresh_firewall(
            rule
            for n in service.networks.networks()
            for e in service.networks.endpoints(n).values()
            for rule in e.rules
        )
        for container in restart:
            self._spawn(self._start_again(container))

    async def _start_again(self, container: Container) -> None:
        try:
            async with container.lock:
                if not container.state.running and not container.removed:
                    await self._start(container)
        except Exception as error:
            log.warning("container %s could not be started again: %s", container.short, error)

    def _adopt(self, container: Container, pid: int, paused: bool) -> None:
        service = self._service
        container.ended = asyncio.get_running_loop().create_future()
        container.state.pid, container.state.paused = pid, paused
        container.state.restarting = False
        adopted: list[Endpoint] = []
        for name, settings in container.networks.items():
            network = service.networks.find(name)
            if network is not None and network.driver == "bridge":
                endpoint = service.networks.adopt(network, container, settings)
                if endpoint is not None:
                    adopted.append(endpoint)
        published = choose_gateway(container, adopted)
        if published is not None and container.ports:
            service.networks.republish(published, container.ports)
        if service.networks.resolvers is not None and container.sandbox_id:
            self._spawn(
                service.networks.resolvers.serve(container, service.networks.sandbox_path(container.sandbox_id))
            )
        self._rotate_log(container)
        if not paused:
            health.start(service, container)

    async def close(self) -> None:
        """The engine ends; containers go on."""
        self._stopping = True
        for container in self._service.store:
            health.stop(container)
            if container.restart_timer is not None:
                container.restart_timer.cancel()
        for task in list(self._tasks):
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2):
                    await task


def _network_failure(error: BaseException) -> bool:
    return isinstance(error, SystemFailure) and error.message.startswith(
        ("driver failed programming", "failed to create endpoint")
    )


def _start_error(text: str, command: str) -> EngineError:
    """dockerd's form and class of a runtime's refusal."""
    message = _OCI_FAILED + text
    lowered = text.lower()
    if command in text and any(
        word in lowered
        for word in (
            "executable file not found",
            "no such file or directory",
            "permission denied",
            "is a directory",
            "not a directory",
            "operation not permitted",
        )
    ):
        return InvalidParameter(message)
    return SystemFailure(message)


def dns_names(container: Container, settings: Json) -> list[str]:
    """The names under which others in a user-defined network find a container."""
    names = [container.name.lstrip("/"), *(settings["Aliases"] or []), container.short]
    hostname = container.config["Hostname"]
    if hostname and hostname != container.short:
        names.append(hostname)
    return list(dict.fromkeys(names))


def choose_gateway(container: Container, endpoints: list[Endpoint]) -> Endpoint | None:
    """The endpoint that has the default route: the highest priority, then the first by name that is not internal."""
    candidates = [e for e in endpoints if not e.network.internal]
    if not candidates:
        return endpoints[0] if endpoints else None
    return min(candidates, key=lambda e: (-int(container.networks[e.network.name]["GwPriority"] or 0), e.network.name))


def _subpath(folder: Path, inside: str) -> str:
    """A folder or file in a volume, found without leaving it. Raises SystemFailure, InvalidParameter."""
    try:
        return str(folder) + rooted.real_path(folder, "/" + inside)
    except FileNotFoundError:
        raise NotFound(f"cannot access path {folder}/{inside}: no such file or directory") from None
    except OSError as error:
        raise SystemFailure(f"cannot access path {folder}/{inside}: {(error.strerror or '').lower()}") from None
