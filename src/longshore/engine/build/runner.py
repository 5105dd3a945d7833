"""RUN's commands in a container: the OCI runtime in the foreground, its output through two pipes.

A step needs no monitor that outlives the engine: when the engine goes, the build is over. The process is started and
watched like any other program, which is what makes a step cheap.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build import mapping
from longshore.engine.build.step import Attached, Limits, Output, RunStep
from longshore.engine.containers import files
from longshore.engine.containers.namespaces import release as release_users
from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure
from longshore.engine.images.extract import remove_path
from longshore.engine.images.streams import in_thread
from longshore.engine.runtime import spec as oci
from longshore.engine.runtime.users import UnknownUser, resolve_user
from longshore.machinery import process
from longshore.machinery.inotify import Inotify, Mask

if TYPE_CHECKING:
    from longshore.engine.networks.service import NetworkService
    from longshore.machinery.users import Owners

_MINIMUM_MEMORY = 6 << 20
_FAILED = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
)
_MESSAGE, _GATHER = 32768, 0.02
_COMPLAINT = b"runc run failed: "


class _Endpoint:
    """What the network service and its resolvers want to know of a container."""

    def __init__(self, step_id: str) -> None:
        self.id, self.name = step_id, f"/build-{step_id[:12]}"
        self.networks: dict[str, dict[str, Any]] = {}
        self.host: dict[str, Any] = {"Dns": []}


class RuncRunner:
    """Runs steps with an OCI runtime.

    run: a folder for bundles (not kept over a reboot). owners: whose ids steps have (userns-remap), None: the host's;
    namespaces: the folder for their user namespaces. networks: the engine's networks (None: steps have loopback only,
    but for "host"). runtime: the program. cgroup: the parent of the steps' cgroups. joined: the network namespace of a container
    by its name.
    """

    def __init__(
        self,
        run: Path,
        networks: NetworkService | None = None,
        *,
        runtime: str = "runc",
        cgroup: str = "/longshore-build",
        owners: Owners | None = None,
        namespaces: Path | None = None,
        joined: Callable[[str], Path] | None = None,
        device_folders: Sequence[Path] = (),
    ) -> None:
        self.device_folders = device_folders
        self._joined = joined
        self._owners, self._namespaces = owners, namespaces or run / "userns"
        self._run, self._networks, self._runtime, self._cgroup = run, networks, runtime, cgroup

    async def sweep(self) -> None:
        """End and remove the steps of an engine that was killed. At its start, before any build."""
        if not self._run.is_dir():
            return
        arguments = [self._runtime, "--root", str(self._run / "state")]
        for bundle in self._run.iterdir():
            if bundle.name == "state":
                continue
            container = f"build-{bundle.name}"
            with contextlib.suppress(OSError, TimeoutError):
                await process.run([*arguments, "delete", "--force", container], check=False, timeout=20)
            sandbox = self._networks.sandbox_path(bundle.name) if self._networks is not None else None
            await in_thread(release_users, self._namespaces / bundle.name)
            await self._clean(bundle, sandbox, None)

    def check(self, limits: Limits) -> None:
        """See step.Runner."""
        if 0 < limits.memory < _MINIMUM_MEMORY:
            raise InvalidParameter("Minimum memory limit allowed is 6MB")

    async def run(self, step: RunStep, output: Output, attached: Attached | None = None) -> int:
        """See step.Runner."""
        bundle = self._run / step.id[:12]
        bundle.mkdir(mode=0o700, parents=True, exist_ok=True)
        sandbox: Path | None = None
        endpoint: Any = None
        held = contextlib.ExitStack()
        try:
            spec = self._spec(step, bundle)
            spec["process"]["terminal"] = attached is not None and attached.tty
            oci.check_root(spec)
            connected = step.network not in ("host", "none") and self._networks is not None
            if self._owners is not None:
                sandbox = self._networks.sandbox_path(step.id) if connected and self._networks is not None else None
                held.callback(
                    await in_thread(
                        partial(
                            mapping.enter, step, spec, self._owners, self._namespaces / step.id[:12], sandbox=sandbox
                        )
                    )
                )
            sandbox, endpoint = await self._network(step, spec, bundle)
            (bundle / "config.json").write_bytes(orjson.dumps(spec))
            if attached is not None:
                words = ["run", "--pid-file", str(bundle / "pid"), "--bundle", str(bundle)]
                return await self._attach(step, bundle / "pid", words, output, attached)
            return await self._execute(step, bundle, output)
        except oci.UnsafeRoot as error:
            raise SystemFailure(_FAILED + str(error)) from None
        finally:
            await asyncio.shield(self._clean(bundle, sandbox, endpoint))
            await asyncio.shield(in_thread(held.close))

    def _spec(self, step: RunStep, bundle: Path) -> dict[str, Any]:
        spec = oci.default_spec(
            rootfs=step.root,
            args=step.argv,
            env=[*_defaults(step.env), *step.env],
            cwd=step.cwd or "/",
            hostname=step.hostname or step.id[:12],
        )
        try:
            user = resolve_user(step.root, step.user)
        except UnknownUser as error:
            raise InvalidParameter(str(error)) from None
        oci.set_user(spec, user.uid, user.gid, user.groups)
        if not any(entry.startswith("HOME=") for entry in step.env):
            spec["process"]["env"].append(f"HOME={user.home}")
        for mount in step.mounts:
            oci.add_mount(spec, mount.source, mount.target, mount.options, mount.kind)
        limits = step.limits
        resources = spec["linux"]["resources"]
        memory = {"limit": limits.memory, "swap": limits.memory_swap}
        cpu = {
            "shares": limits.cpu_shares,
            "period": limits.cpu_period,
            "quota": limits.cpu_quota,
            "cpus": limits.cpuset_cpus,
            "mems": limits.cpuset_mems,
        }
        for name, values in (("memory", memory), ("cpu", cpu)):
            given = {key: value for key, value in values.items() if value}
            if given:
                resources[name] = given
        if limits.shm_size:
            for mount in spec["mounts"]:
                if mount["destination"] == "/dev/shm":
                    mount["options"] = [o for o in mount["options"] if not o.startswith("size=")]
                    mount["options"].append(f"size={limits.shm_size}")
        if limits.ulimits:
            spec["process"]["rlimits"] = [
                {"type": f"RLIMIT_{str(limit['Name']).upper()}", "soft": limit["Soft"], "hard": limit["Hard"]}
                for limit in limits.ulimits
            ]
        spec["linux"]["cgroupsPath"] = f"{limits.cgroup_parent or self._cgroup}/{step.id}"
        if step.privileged:
            oci.make_privileged(spec)
        if step.devices:
            from longshore.engine import cdi

            try:
                cdi.inject(spec, step.devices, self.device_folders)
            except cdi.CdiError as error:
                raise SystemFailure(str(error)) from None
        oci.sort_mounts(spec)
        return spec

    async def _network(self, step: RunStep, spec: dict[str, Any], bundle: Path) -> tuple[Path | None, Any]:
        """Connect the step, and write its hosts, hostname and resolv.conf."""
        sandbox: Path | None = None
        endpoint: Any = None
        own: list[tuple[str, str]] = []
        named = False
        if step.network == "host":
            oci.set_namespace(spec, "network", host=True)
        elif step.network.startswith("container:") and self._joined is not None:
            oci.set_namespace(spec, "network", self._joined(step.network.partition(":")[2]))
        elif step.network != "none" and self._networks is not None:
            networks = self._networks
            network = networks.resolve("bridge" if step.network in ("default", "") else step.network)
            sandbox = networks.sandbox_path(step.id)
            settings: dict[str, Any] = {}
            step_end = _Endpoint(step.id)
            endpoint = networks.allocate(network, step_end, settings)
            try:
                await in_thread(
                    lambda: networks.build(sandbox, [(endpoint, "eth0", (4, 6))], create=self._owners is None)
                )
                if network.user_defined and networks.resolvers is not None:
                    # The names of that network's containers are known to the step, as to any container in it.
                    settings["DNSNames"] = [step.id[:12]]
                    step_end.networks[network.name] = settings
                    await networks.resolvers.serve(step_end, sandbox)
                    named = True
            except BaseException:
                networks.release(endpoint)
                raise
            oci.set_namespace(spec, "network", sandbox)
            if settings.get("IPAddress"):
                own.append((str(settings["IPAddress"]), step.hostname or step.id[:12]))
        extra = [(address, name) for name, address in step.hosts]
        servers, search, options = files.resolver_of([], [], [], host_network=step.network == "host")
        if named:
            servers, options = [files.EMBEDDED_DNS], [*options, "ndots:0"]
        texts = {
            "hosts": files.hosts(own, extra),
            "hostname": (step.hostname or step.id[:12]) + "\n",
            "resolv.conf": files.resolv_conf(servers, search, options),
        }
        for name, text in texts.items():
            (bundle / name).write_text(text)
            oci.add_mount(spec, bundle / name, f"/etc/{name}", ("rbind", "rprivate"))
        return sandbox, endpoint

    async def join(self, step: RunStep, attached: Attached) -> int:
        """See step.Runner."""
        bundle = self._run / step.id[:12]
        if not (bundle / "pid").exists():
            raise SystemFailure(f"container {step.id} does not run")
        name = secrets.token_hex(6)
        described = self._spec(step, bundle)["process"] | {"terminal": attached.tty}
        (bundle / f"{name}.json").write_bytes(orjson.dumps(described))
        pid = bundle / f"{name}.pid"
        words = ["exec", "--pid-file", str(pid), "--process", str(bundle / f"{name}.json")]
        return await self._attach(step, pid, words, lambda _, __: None, attached)

    async def _attach(self, step: RunStep, pid: Path, words: list[str], output: Output, attached: Attached) -> int:
        """Run the runtime with descriptors of ours; the command's exit code. pid: the file that tells the command's."""
        log = pid.with_suffix(".log")
        container = f"build-{step.id[:12]}"
        arguments = ["--root", str(self._run / "state"), "--log", str(log), "--log-format", "json"]
        watch = Inotify()
        errors: asyncio.Task[None] | None = None
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stderr = attached.stderr
        try:
            if stderr < 0:
                reading, stderr = os.pipe2(os.O_CLOEXEC)
                errors = asyncio.ensure_future(_read(reading, 2, output))

            def begun(*_: object) -> None:
                if not attached.pid and pid.exists():
                    attached.pid = int(pid.read_text())
                    attached.started()

            watch.watch(pid.parent, Mask.MOVED_TO | Mask.CLOSE_WRITE, begun)
            try:
                child = process.spawn(
                    [self._runtime, *arguments, *words, container],
                    stdin=null if attached.stdin < 0 else attached.stdin,
                    stdout=null if attached.stdout < 0 else attached.stdout,
                    stderr=stderr,
                    new_session=True,
                )
            except OSError as error:
                raise SystemFailure(f"{self._runtime}: {error.strerror}") from None
            finally:
                if errors is not None:
                    os.close(stderr)
            attached.holder = child
            try:
                code = await child.wait()
                begun()
            except BaseException:
                child.kill()
                if attached.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(attached.pid, signal.SIGKILL)
                if words[0] == "run":
                    await asyncio.shield(self._delete(arguments, container))
                raise
            if errors is not None:
                await asyncio.wait([errors], timeout=10)
        finally:
            os.close(null)
            watch.close()
            if errors is not None:
                errors.cancel()
        failure = _failure(log) if code != 0 else ""
        if failure:
            raise SystemFailure(failure)
        return code if code >= 0 else 128 - code

    async def _delete(self, arguments: list[str], container: str) -> None:
        with contextlib.suppress(EngineError, process.ProcessFailed, OSError, TimeoutError):
            await process.run([self._runtime, *arguments, "delete", "--force", container], check=False, timeout=20)

    async def _execute(self, step: RunStep, bundle: Path, output: Output) -> int:
        log = bundle / "log.json"
        ends = [os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)]
        readers: list[asyncio.Task[None]] = []
        container = f"build-{step.id[:12]}"
        arguments = ["--root", str(self._run / "state"), "--log", str(log), "--log-format", "json"]
        try:
            try:
                child = process.spawn(
                    [self._runtime, *arguments, "run", "--bundle", str(bundle), container],
                    stdout=ends[0][1],
                    stderr=ends[1][1],
                    new_session=True,
                )
            except OSError as error:
                for reading, _ in ends:
                    os.close(reading)
                raise SystemFailure(f"{self._runtime}: {error.strerror}") from None
        finally:
            for _, writing in ends:
                os.close(writing)
        # The runtime's own complaint about a command that cannot start comes on the same pipe as the step's errors;
        # the log file tells which it is, so what comes first on stderr waits until it is known.
        readers = [asyncio.ensure_future(_read(reading, number, output)) for number, (reading, _) in enumerate(ends, 1)]
        try:
            code = await child.wait()
            await asyncio.wait(readers, timeout=10)
        except BaseException:
            child.kill()
            await asyncio.shield(self._delete(arguments, container))
            raise
        finally:
            for reader in readers:
                reader.cancel()
        if code != 0:
            failure = _failure(log)
            if failure:
                raise SystemFailure(failure)
        return code if code >= 0 else 128 - code

    async def _clean(self, bundle: Path, sandbox: Path | None, endpoint: Any) -> None:
        def work() -> None:
            from longshore.engine.networks.service import remove_sandbox

            if sandbox is not None:
                remove_sandbox(sandbox)
            remove_path(bundle)

        if endpoint is not None and self._networks is not None:
            if self._networks.resolvers is not None:
                self._networks.resolvers.stop(endpoint.container)
            self._networks.release(endpoint)
        await in_thread(work)


def _defaults(env: Any) -> list[str]:
    return [] if any(entry.startswith("PATH=") for entry in env) else [f"PATH={oci.DEFAULT_PATH}"]


async def _read(fd: int, number: int, output: Output) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 18)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb"))
    try:
        while data := await reader.read(_MESSAGE):
            # What a program writes in one go is told as one message: a little time for what follows at once.
            until = loop.time() + _GATHER
            while len(data) < _MESSAGE:
                try:
                    async with asyncio.timeout_at(until):
                        more = await reader.read(_MESSAGE)
                except TimeoutError:
                    break
                if not more:
                    break
                data += more
            # The runtime repeats its own complaint on stderr; it is told as the step's error instead.
            if number == 2 and _COMPLAINT in data:
                data = b"".join(line for line in data.splitlines(True) if _COMPLAINT not in line)
            if data:
                output(number, data)
    finally:
        transport.close()


def _failure(log: Path) -> str:
    """Why the runtime could not start the command, "" when it did start."""
    try:
        lines = log.read_bytes().splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = orjson.loads(line)
        except ValueError:
            continue
        text = str(entry.get("msg") or "")
        for verb in ("runc run failed: ", "exec failed: "):
            if entry.get("level") == "error" and text.startswith(verb):
                return _FAILED + text.removeprefix(verb)
    return ""
