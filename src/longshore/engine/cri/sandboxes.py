"""Pod sandboxes: namespaces, network and files of a pod, made, found again and taken away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longshore.engine.cri import bandwidth, cni, namespaces
from longshore.engine.cri.cni import CniError, CniNetwork
from longshore.engine.cri.hostports import HostPorts
from longshore.engine.cri.network import BuiltinNetwork, NotReady
from longshore.engine.cri.records import Records, Sandbox, now
from longshore.machinery import mounts, users
from longshore.machinery.grpc import RpcError, Status
from longshore.machinery.nftables import NftablesError
from longshore.machinery.process import ProcessFailed
from longshore.machinery.users import Owners
from longshore.wire.cri import cri

log = logging.getLogger("longshore.engine.cri")
SHM_SIZE = 64 * 2**20
DEFAULT_CGROUP = "/longshore-pods"


class Sandboxes:
    """All sandboxes of one engine."""

    def __init__(
        self,
        data: Path,
        run: Path,
        *,
        network: BuiltinNetwork,
        hostports: HostPorts,
        cni_folder: Path = cni.CONFIG_FOLDER,
        handlers: Callable[[], list[str]],
        changed: Callable[[Sandbox, int], None],
    ) -> None:
        """data, run: folders of their own. handlers: names of OCI runtimes. changed(sandbox, event type)."""
        self.records: Records[Sandbox] = Records(data, Sandbox, "sandbox")
        self._run, self.network, self.hostports = run, network, hostports
        self.cni_folder, self._handlers, self._changed = cni_folder, handlers, changed
        self._locks: dict[str, asyncio.Lock] = {}
        run.mkdir(parents=True, exist_ok=True)

    # -- what a container needs of its sandbox -----------------------------------------------------------------------

    def folder(self, sandbox_id: str) -> Path:
        return self._run / sandbox_id

    def hostname(self, sandbox: Sandbox) -> str:
        """The name that the sandbox's containers see."""
        if sandbox.namespaces.network == cri.NODE:
            return sandbox.config.hostname or os.uname().nodename
        return str(sandbox.config.hostname or sandbox.id[:12])

    def pin(self, sandbox: Sandbox, kind: str) -> str:
        """The path of a pinned namespace ("net", "ipc", "uts"); "" for the host's."""
        options = sandbox.namespaces
        host = options.ipc == cri.NODE if kind == "ipc" else options.network == cri.NODE
        return "" if host else str(self.folder(sandbox.id) / kind)

    def owners(self, sandbox: Sandbox) -> Owners | None:
        """The sandbox's own user namespace and what it maps; None where it has the host's."""
        options = sandbox.namespaces.userns_options
        if not sandbox.namespaces.HasField("userns_options") or options.mode != cri.POD:
            return None
        uids, gids = (
            tuple((m.container_id, m.host_id, m.length) for m in kind) for kind in (options.uids, options.gids)
        )
        return Owners(self.folder(sandbox.id) / "user", uids, gids)

    def stage(self, sandbox_id: str, container_id: str) -> Path:
        """Where a container of a user namespace finds its root and volumes, on a way that its users may go."""
        return self.folder(sandbox_id) / "owned" / container_id

    def cgroup_parent(self, sandbox: Sandbox) -> str:
        return str(sandbox.config.linux.cgroup_parent or DEFAULT_CGROUP)

    def files(self, sandbox: Sandbox) -> dict[str, Path]:
        """Files that every container of the sandbox finds at these places."""
        folder = self.folder(sandbox.id)
        return {f"/etc/{name}": folder / name for name in ("hosts", "hostname", "resolv.conf")}

    def shm(self, sandbox: Sandbox) -> Path:
        return Path("/dev/shm") if sandbox.namespaces.ipc == cri.NODE else self.folder(sandbox.id) / "shm"

    def lock(self, sandbox_id: str) -> asyncio.Lock:
        return self._locks.setdefault(sandbox_id, asyncio.Lock())

    # -- life cycle --------------------------------------------------------------------------------------------------

    async def create(self, config: Any, handler: str) -> Sandbox:
        """Make a sandbox that is ready. Raises RpcError; nothing is left of one that failed."""
        metadata = config.metadata
        if not metadata.name or not metadata.uid:
            raise RpcError(Status.INVALID_ARGUMENT, "sandbox metadata needs a name and a uid")
        if handler and handler not in self._handlers():
            raise RpcError(Status.INVALID_ARGUMENT, f'no runtime for "{handler}" is configured')
        options = config.linux.security_context.namespace_options
        if options.HasField("userns_options") and options.userns_options.mode == cri.POD:
            if not users.supported():
                raise RpcError(Status.INVALID_ARGUMENT, "user namespaces are not supported on this machine")
            if not options.userns_options.uids or not options.userns_options.gids:
                raise RpcError(Status.INVALID_ARGUMENT, "a user namespace needs mappings of uids and of gids")
            if options.network == cri.NODE or options.ipc == cri.NODE or options.pid == cri.NODE:
                raise RpcError(
                    Status.INVALID_ARGUMENT, "a pod with a user namespace cannot share the host's namespaces"
                )
        for other in self.records:
            if other.metadata == metadata:
                name = f"{metadata.name}_{metadata.namespace}_{metadata.uid}_{metadata.attempt}"
                raise RpcError(
                    Status.ALREADY_EXISTS,
                    f'failed to reserve sandbox name "{name}": name "{name}" is reserved for "{other.id}"',
                )
        sandbox = Sandbox(secrets.token_hex(32), config, created_at=now(), runtime_handler=handler)
        custom = None
        if options.network != cri.NODE:
            try:
                custom = cni.load(self.cni_folder)
                if custom is None:
                    sandbox.ips = self.network.choose(self.records)
                    sandbox.network = {"kind": "builtin"}
                else:
                    sandbox.network = {"kind": "cni", "conf": custom}
            except (CniError, NotReady) as error:
                raise _network_failure(sandbox, error) from error
        # Known before anything of it exists, so that whatever a crash leaves is found and removed.
        self.records.save(sandbox)
        try:
            async with self.lock(sandbox.id):
                await asyncio.to_thread(self._make, sandbox)
                await self._connect(sandbox)
                sandbox.ready = sandbox.made = True
                self.records.save(sandbox)
        except BaseException as error:
            await asyncio.shield(self._discard(sandbox))
            if isinstance(error, (CniError, NotReady, NftablesError, bandwidth.BadBandwidth, ProcessFailed)):
                raise _network_failure(sandbox, error) from error
            if isinstance(error, OSError):
                raise RpcError(Status.UNKNOWN, f"failed to create sandbox: {error}") from error
            raise
        self._changed(sandbox, cri.CONTAINER_CREATED_EVENT)
        self._changed(sandbox, cri.CONTAINER_STARTED_EVENT)
        return sandbox

    def _make(self, sandbox: Sandbox) -> None:
        options = sandbox.namespaces
        folder = self.folder(sandbox.id)
        own_network, own_ipc = options.network != cri.NODE, options.ipc != cri.NODE
        hostname = self.hostname(sandbox)
        namespaces.make(
            folder,
            network=own_network,
            ipc=own_ipc,
            hostname=hostname if own_network else "",
            sysctls=dict(sandbox.config.linux.sysctls),
            owners=self.owners(sandbox),
        )
        self._write_files(sandbox, hostname)
        if own_ipc:
            self._mount_shm(folder)
        if options.pid == cri.POD:
            cgroup = f"{self.cgroup_parent(sandbox)}/{sandbox.id}"
            pid = namespaces.start_pause(
                folder,
                ipc=folder / "ipc" if own_ipc else None,
                cgroup=cgroup,
                user=folder / "user" if self.owners(sandbox) else None,
            )
            sandbox.pause_pid, sandbox.pause_start = pid, namespaces.start_time(pid)

    def _mount_shm(self, folder: Path) -> None:
        shm = folder / "shm"
        shm.mkdir(exist_ok=True)
        if os.stat(shm).st_dev == os.stat(folder).st_dev:
            mounts.mount("shm", shm, "tmpfs", ["nosuid", "noexec", "nodev", "mode=1777", f"size={SHM_SIZE}"])

    def _write_files(self, sandbox: Sandbox, hostname: str) -> None:
        folder = self.folder(sandbox.id)
        (folder / "hostname").write_text(hostname + "\n")
        if sandbox.namespaces.network == cri.NODE:
            shutil.copyfile("/etc/hosts", folder / "hosts")
        else:
            lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
            lines += [f"{ip}\t{hostname}" for ip in sandbox.ips]
            (folder / "hosts").write_text("\n".join(lines) + "\n")
        dns = sandbox.config.dns_config
        if sandbox.config.HasField("dns_config") and (dns.servers or dns.searches or dns.options):
            lines = []
            if dns.searches:
                lines.append("search " + " ".join(dns.searches))
            lines += [f"nameserver {server}" for server in dns.servers]
            if dns.options:
                lines.append("options " + " ".join(dns.options))
            (folder / "resolv.conf").write_text("\n".join(lines) + "\n")
        elif not sandbox.config.HasField("dns_config"):
            with contextlib.suppress(OSError):
                shutil.copyfile("/etc/resolv.conf", folder / "resolv.conf")
        if not (folder / "resolv.conf").exists():
            (folder / "resolv.conf").write_text("")

    async def _connect(self, sandbox: Sandbox) -> None:
        kind = sandbox.network.get("kind")
        namespace = self.folder(sandbox.id) / "net"
        rates = bandwidth.limits(sandbox.config.annotations)
        if kind == "builtin":
            await asyncio.to_thread(self.network.connect, sandbox, namespace)
            await bandwidth.limit(sandbox.id, namespace, rates)
            if any(m.host_port > 0 for m in sandbox.config.port_mappings):
                await asyncio.to_thread(self.hostports.change, sandbox, add=True)
        elif kind == "cni":
            arguments, capabilities = _cni_inputs(sandbox)
            result = await CniNetwork(sandbox.network["conf"]).add(
                sandbox.id, namespace, arguments=arguments, capabilities=capabilities
            )
            sandbox.network["result"] = result
            sandbox.ips = cni.addresses(result)
            if not sandbox.ips:
                raise CniError("the network gave no address")
            self._write_files(sandbox, self.hostname(sandbox))

    async def _disconnect(self, sandbox: Sandbox) -> None:
        kind = sandbox.network.get("kind")
        if kind == "builtin":
            await asyncio.to_thread(self.hostports.change, sandbox, add=False)
            await asyncio.to_thread(self.network.disconnect, sandbox)
        elif kind == "cni":
            namespace = self.folder(sandbox.id) / "net"
            arguments, capabilities = _cni_inputs(sandbox)
            try:
                await CniNetwork(sandbox.network["conf"]).delete(
                    sandbox.id,
                    namespace if namespaces.intact(self.folder(sandbox.id), ("net",)) else None,
                    arguments=arguments,
                    capabilities=capabilities,
                    result=sandbox.network.get("result"),
                )
            except CniError as error:
                raise RpcError(Status.UNKNOWN, f'failed to destroy network for sandbox "{sandbox.id}": {error}') from error  # fmt: skip

    async def stop(self, sandbox: Sandbox) -> None:
        """End the sandbox's network and namespaces; its containers have been stopped. Again: nothing to do."""
        async with self.lock(sandbox.id):
            was_ready = sandbox.ready
            if sandbox.network.get("kind") and not sandbox.network.get("gone"):
                await self._disconnect(sandbox)
                sandbox.network["gone"] = True
            await asyncio.to_thread(self._release, sandbox)
            sandbox.ready = False
            self.records.note(sandbox)
        if was_ready:
            self._changed(sandbox, cri.CONTAINER_STOPPED_EVENT)

    def _release(self, sandbox: Sandbox) -> None:
        folder = self.folder(sandbox.id)
        namespaces.end(sandbox.pause_pid, sandbox.pause_start)
        if sandbox.pause_pid:
            from longshore.engine.runtime import cgroups

            cgroups.remove(f"{self.cgroup_parent(sandbox)}/{sandbox.id}")
        sandbox.pause_pid = 0
        if folder.exists():
            namespaces.release(folder)
            if (folder / "shm").exists():
                mounts.unmount(folder / "shm")
            if (folder / "owned").exists():
                # Volumes are mounted there: nothing below may be taken for a file of ours.
                mounts.unmount_below(folder / "owned")
                if any(m.path.startswith(f"{folder.resolve()}/owned/") for m in mounts.table()):
                    raise OSError(16, "volumes are still mounted", str(folder / "owned"))

    async def remove(self, sandbox: Sandbox) -> None:
        """Forget a stopped sandbox and remove its files."""
        async with self.lock(sandbox.id):
            if sandbox.id not in self.records:
                return
            await asyncio.to_thread(self._release, sandbox)
            await asyncio.to_thread(shutil.rmtree, self.folder(sandbox.id), True)
            self.records.remove(sandbox.id)
        self._locks.pop(sandbox.id, None)
        self._changed(sandbox, cri.CONTAINER_DELETED_EVENT)

    async def _discard(self, sandbox: Sandbox) -> None:
        """Undo a creation that failed."""
        try:
            await self._disconnect(sandbox)
        except Exception as error:
            log.warning("sandbox %s: %s", sandbox.id, error)
        await asyncio.to_thread(self._release, sandbox)
        await asyncio.to_thread(shutil.rmtree, self.folder(sandbox.id), True)
        self.records.remove(sandbox.id)

    # -- after a restart ---------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Read the records back; what has lost its namespaces is not ready; leftovers without a record go."""
        self.records.load()
        for sandbox in self.records:
            if not sandbox.made:
                log.info("sandbox %s was cut short and is removed", sandbox.id)
                await self._discard(sandbox)
                continue
            if (sandbox.ready and not self._intact(sandbox)) or (
                sandbox.ready and sandbox.pause_pid and not namespaces.alive(sandbox.pause_pid, sandbox.pause_start)
            ):
                sandbox.ready = False
                self.records.note(sandbox)
        with contextlib.suppress(CniError):
            conf = cni.load(self.cni_folder)
            if conf is not None:
                mine = [s.id for s in self.records if s.network.get("kind") == "cni" and not s.network.get("gone")]
                await CniNetwork(conf).collect(mine)
        for folder in self._run.iterdir():
            if folder.name not in self.records:
                namespaces.release(folder)
                mounts.unmount_below(folder)
                await asyncio.to_thread(shutil.rmtree, folder, True)

    def _intact(self, sandbox: Sandbox) -> bool:
        kinds = [kind for kind in ("net", "ipc", "uts") if self.pin(sandbox, kind)]
        if self.owners(sandbox) is not None:
            kinds.append("user")
        return namespaces.intact(self.folder(sandbox.id), tuple(kinds))

    # -- what is there -----------------------------------------------------------------------------------------------

    def select(self, wanted: Any) -> list[Sandbox]:
        """The sandboxes that a PodSandboxFilter lets through."""
        found = []
        for sandbox in self.records.labelled(wanted.label_selector):
            if wanted.id and not sandbox.id.startswith(wanted.id):
                continue
            if wanted.HasField("state") and (wanted.state.state == cri.SANDBOX_READY) != sandbox.ready:
                continue
            found.append(sandbox)
        return found

    def listed(self, sandbox: Sandbox) -> Any:
        """A PodSandbox message."""
        return cri.PodSandbox(
            id=sandbox.id,
            metadata=sandbox.metadata,
            state=cri.SANDBOX_READY if sandbox.ready else cri.SANDBOX_NOTREADY,
            created_at=sandbox.created_at,
            labels=sandbox.config.labels,
            annotations=sandbox.config.annotations,
            runtime_handler=sandbox.runtime_handler,
        )

    def status(self, sandbox: Sandbox) -> Any:
        """A PodSandboxStatus message."""
        options = sandbox.namespaces
        ips = sandbox.ips if sandbox.ready else []
        return cri.PodSandboxStatus(
            id=sandbox.id,
            metadata=sandbox.metadata,
            state=cri.SANDBOX_READY if sandbox.ready else cri.SANDBOX_NOTREADY,
            created_at=sandbox.created_at,
            network=cri.PodSandboxNetworkStatus(
                ip=ips[0] if ips else "", additional_ips=[cri.PodIP(ip=ip) for ip in ips[1:]]
            ),
            linux=cri.LinuxPodSandboxStatus(namespaces=cri.Namespace(options=options)),
            labels=sandbox.config.labels,
            annotations=sandbox.config.annotations,
            runtime_handler=sandbox.runtime_handler,
        )


def _network_failure(sandbox: Sandbox, error: Exception) -> RpcError:
    return RpcError(Status.UNKNOWN, f'failed to setup network for sandbox "{sandbox.id}": {error}')


def _cni_inputs(sandbox: Sandbox) -> tuple[dict[str, str], dict[str, Any]]:
    metadata = sandbox.metadata
    arguments = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": metadata.namespace,
        "K8S_POD_NAME": metadata.name,
        "K8S_POD_INFRA_CONTAINER_ID": sandbox.id,
        "K8S_POD_UID": metadata.uid,
    }
    names = {cri.TCP: "tcp", cri.UDP: "udp", cri.SCTP: "sctp"}
    capabilities: dict[str, Any] = {
        "portMappings": [
            {
                "hostPort": m.host_port,
                "containerPort": m.container_port,
                "protocol": names[m.protocol],
                "hostIP": m.host_ip,
            }
            for m in sandbox.config.port_mappings
            if m.host_port > 0
        ],
        "io.kubernetes.cri.pod-annotations": dict(sandbox.config.annotations),
    }
    with contextlib.suppress(bandwidth.BadBandwidth):  # told when the sandbox was to be made
        capabilities["bandwidth"] = bandwidth.capability(sandbox.config.annotations)
    dns = sandbox.config.dns_config
    if dns.servers or dns.searches or dns.options:
        capabilities["dns"] = {
            "servers": list(dns.servers), "searches": list(dns.searches), "options": list(dns.options)
        }  # fmt: skip
    return arguments, capabilities
