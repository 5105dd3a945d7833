"""What a container needs before it can start: its network namespace, its files, its mounts.

A part of Lifecycle, kept apart for its size; nothing here changes a container's state.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import Conflict, EngineError, InvalidParameter, NotFound, SystemFailure
from longshore.engine.networks import model as network_model
from longshore.engine.networks.model import Endpoint
from longshore.engine.networks.plugging import Plug, name_interfaces
from longshore.machinery import mounts, rooted

from . import files, links, logdrivers, logoptions, mountspec, namespaces
from .model import Container, new_id
from .namespaces import UserNamespace

if TYPE_CHECKING:
    from .service import ContainerService

Json = dict[str, Any]

SUBPATHS = "subpaths"
_OCI_FAILED = "failed to create task for container: failed to create shim task: OCI runtime create failed: "


class Preparation:
    """The steps before a start. service: the ContainerService."""

    def __init__(self, service: ContainerService) -> None:
        self._service = service

    def _plug(self, container: Container, sandbox: Path, plugs: list[Plug]) -> None:
        try:
            self._service.networks.build(sandbox, plugs, create=False)
        except OSError as error:
            raise SystemFailure(
                f"failed to create endpoint {container.name[1:]}: {(error.strerror or str(error)).lower()}"
            ) from None

    async def _open_log(self, container: Container) -> None:
        """Check the log's options and reach the driver's receiver, where there is one. Raises SystemFailure."""
        options = container.host["LogConfig"]["Config"]
        if container.forwarder is not None:
            # What is left of the last run goes on from the checkpoint.
            container.forwarder.close()
            container.forwarder = None
        try:
            logdrivers.check_file(container.host["LogConfig"]["Type"], options)
            if container.host["LogConfig"]["Type"] in logoptions.REMOTE:
                from . import forwarding

                forwarder = forwarding.make(container)
                if forwarder is not None and forwarding.waits_for_receiver(container):
                    await forwarder.connect()
                container.forwarder = forwarder
        except (ValueError, OSError) as error:
            container.log_path.touch(mode=0o640)
            raise SystemFailure(
                f"failed to create task for container: failed to initialize logging driver: {error}"
            ) from None

    def _reserve_network(self, container: Container) -> tuple[Path | None, list[Plug]]:
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
            if other is container:
                raise SystemFailure("cannot join own network namespace")
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
                settings["EndpointID"], settings["_sandbox"] = new_id(), new_id()
            return None, []
        container.sandbox_id = new_id()
        sandbox = networks.sandbox_path(container.sandbox_id)
        plugs: list[Plug] = []
        if networks.bridgeless and mode == "bridge":
            container.config["NetworkDisabled"] = True
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
                taken.append(networks.allocate(network, container, settings, ipv6=has_ipv6(container)))
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
        gateways = choose_gateways(container, taken)
        for endpoint, interface in zip(taken, name_interfaces(taken), strict=True):
            versions = {version for version, chosen in gateways.items() if chosen is endpoint}
            plugs.append((endpoint, interface, versions))
        # The one with the default route is published through, so it comes first.
        plugs.sort(key=lambda plug: min(plug[2], default=9))
        return sandbox, plugs

    def _join_users(
        self, container: Container, merged: Path, sandbox: Path | None, held: contextlib.ExitStack
    ) -> UserNamespace | None:
        """Make the container's user namespace, with the network namespace that is to be its; None: it has the host's.

        held: gets what undoes the pins, which are needed only until the runtime has joined. Blocking. Raises SystemFailure, OSError.
        """
        owners = self._service.roots.owners_of(container)
        if owners is None:
            return None
        # The runtime can join one user namespace: with several containers to join, it is that of the last, as with dockerd.
        others = [container.network_mode, container.host["IpcMode"], container.host["PidMode"]]
        names = [mode.partition(":")[2] for mode in others if mode.startswith("container:")]
        pids = [self._service.store.find(name).state.pid for name in names]
        joined, release = namespaces.make(
            self._service.namespaces / container.id,
            owners,
            merged,
            sandbox=sandbox if container.sandbox_id else None,
            joined=Path(f"/proc/{pids[-1]}/ns/user") if pids and pids[-1] else None,
        )
        held.callback(release)
        return joined

    def bindings(self, container: Container) -> Json:
        """The ports to publish: exposed ones with their bindings; with PublishAllPorts all, at any port where none is named."""
        bindings: Json = {}
        wanted = {(p if "/" in p else p + "/tcp"): b for p, b in (container.host["PortBindings"] or {}).items()}
        for port in container.config.get("ExposedPorts") or {}:
            number, _, protocol = port.partition("/")
            first, dash, last = number.partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
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
            owners = self._service.roots.owners_of(container)
            if owners is not None:
                os.chown(path, *owners.root)
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
        names = container.host_names
        own = [(s["IPAddress"], names) for s in container.networks.values() if s["IPAddress"]]
        own += [(s["GlobalIPv6Address"], names) for s in container.networks.values() if s["GlobalIPv6Address"]]
        extra = []
        for entry in host["ExtraHosts"] or []:
            split = "=" if "=" in entry and (":" not in entry or entry.index("=") < entry.index(":")) else ":"
            name, _, address = entry.partition(split)
            addresses = service.host_gateways() if address == "host-gateway" else [address.strip("[]")]
            extra += [(each, name) for each in addresses]
        extra += links.hosts(service, container)
        user_defined = any(s["DNSNames"] for s in container.networks.values())
        if mode == "host" and not extra and not own:
            content = Path("/etc/hosts").read_text() if Path("/etc/hosts").exists() else files.hosts([])
        else:
            content = files.hosts(own, extra, ipv6=has_ipv6(container))
        (container.folder / "hosts").write_text(content)
        (container.folder / "hostname").write_text(config["Hostname"] + "\n")
        files.check_nameservers(host["Dns"] or [])
        general = service.configuration
        servers, search, options = files.resolver_of(
            host["Dns"] or general.dns,
            host["DnsSearch"] or general.dns_search,
            host["DnsOptions"] or general.dns_options,
            host_network=mode == "host",
        )
        if user_defined and mode != "host" and service.networks.resolvers is not None:
            if not any(o.startswith("ndots:") for o in options):
                options = [*options, "ndots:0"]
            servers = [files.EMBEDDED_DNS]
        (container.folder / "resolv.conf").write_text(files.resolv_conf(servers, search, options))
        made = {f"/etc/{n}": container.folder / n for n in ("hosts", "hostname", "resolv.conf")}
        owners = service.roots.owners_of(container)
        if owners is not None:
            for file in made.values():
                os.chown(file, *owners.root)
        return made

    def _make_source(self, source: str) -> None:
        """Make the folder of a bind that is not there; it and the new ones above it belong to containers' root user."""
        missing = []
        above = source
        while not os.path.lexists(above):
            missing.append(above)
            above = os.path.dirname(above)
        os.makedirs(source, exist_ok=True)
        if self._service.owners is not None:
            for path in missing:
                os.chown(path, *self._service.owners.root)

    async def _recursive_readonly(self, container: Container) -> str:
        """Why read-only mounts of a container cannot be read-only below their top; "" when they can or there are none."""
        if all(point["RW"] or point.get("_readonly") == "top" for point in container.mounts):
            return ""
        release = os.uname().release.split(".")
        if (int(release[0]), int(release[1])) < (5, 12):
            return "rro is not supported: function not implemented (kernel is older than 5.12?)"
        runtime = container.host["Runtime"]
        if "rro" not in await self._service.runtime.mount_options(runtime):
            return f'rro is not supported by runtime "{runtime}"'
        return ""

    async def _mount_devices(self, container: Container) -> None:
        """Mount the volumes that are devices or other machines' folders, without keeping everybody waiting."""
        volumes = self._service.volumes
        for point in container.mounts:
            if point["Type"] == "volume" and volumes.has_device(point["Name"]):
                await self._service.in_thread(volumes.mount, point["Name"], container.id)

    def _prepare_mounts(self, container: Container, held: contextlib.ExitStack, recursive: str) -> list[Json]:
        """The OCI mounts of volumes, binds, images and tmpfs; sources are made available.

        held: gets what undoes that which is needed only until the runtime has made the mounts. recursive: why read-only mounts cannot be
        read-only below their top; "" when they can.
        """

        def inside(folder: Path, path: str) -> str:
            where = container.folder / SUBPATHS / str(len(result))
            held.callback(pin_subpath(folder, path, where))
            return str(where)

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
                depth = point.get("_readonly")
                if depth == "all" and recursive:
                    raise SystemFailure(recursive)
                options.append("ro" if depth == "top" or recursive else "rro")
            if kind == "bind":
                source = point["Source"]
                if not os.path.lexists(source):
                    if not point.get("_create"):
                        raise InvalidParameter(
                            f'invalid mount config for type "bind": bind source path does not exist: {source}'
                        )
                    try:
                        self._make_source(source)
                    except OSError as error:
                        raise SystemFailure(
                            f"error while creating mount source path '{source}': mkdir {source}: {(error.strerror or '').lower()}"
                        ) from None
                options[1] = mountspec.propagation(source, propagation, asked=not point.get("_guarded"))
            elif kind == "volume":
                folder = service.volumes.mount(point["Name"], container.id)
                service.volume_event(container, "mount", point)
                source = str(folder)
                if point.get("_subpath"):
                    source = inside(folder, point["_subpath"])
            else:
                folder = service.mount_image(container, point)
                source = inside(folder, point["_subpath"]) if point.get("_subpath") else str(folder)
            result.append({"destination": target, "type": "bind", "source": source, "options": options})
            if target == "/dev" and not container.host["Privileged"]:
                result += guard_devices(source)
        return result


def has_ipv6(container: Container) -> bool:
    """Whether a container's own settings leave IPv6 on."""
    return str((container.host.get("Sysctls") or {}).get("net.ipv6.conf.all.disable_ipv6")) != "1"


def network_failure(error: BaseException) -> bool:
    return isinstance(error, SystemFailure) and error.message.startswith(
        (
            "driver failed programming",
            "failed to create endpoint",
            "error renaming interface",
            "/proc/sys/",
            "unable to write to",
        )
    )


def start_error(text: str, command: str) -> EngineError:
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


def choose_gateways(container: Container, endpoints: list[Endpoint]) -> dict[int, Endpoint]:
    """The endpoints that have the default routes, by IP version: the highest priority, then the first by name, among those
    that have an address of that version and whose networks have a gateway of it."""

    def rank(endpoint: Endpoint) -> tuple[int, str]:
        return -int(container.networks[endpoint.network.name]["GwPriority"] or 0), endpoint.network.name

    chosen = {}
    for version in (4, 6):
        addressed = [e for e in endpoints if (e.ipv4 if version == 4 else e.ipv6)]
        candidates = [e for e in addressed if e.network.gateway(version) is not None]
        if candidates:
            chosen[version] = min(candidates, key=rank)
    return chosen


def subpath(folder: Path, inside: str) -> int:
    """A folder or file in a volume, found without leaving it: an O_PATH descriptor, which nothing can redirect later.

    Raises NotFound, InvalidParameter (it leads out), SystemFailure.
    """
    try:
        return rooted.open_beneath(folder, inside, os.O_PATH)
    except FileNotFoundError:
        raise NotFound(f"cannot access path {folder}/{inside}: no such file or directory") from None
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise InvalidParameter(
                f"path concatenation escapes the base directory, base: {folder}, subpath: {inside}"
            ) from None
        raise SystemFailure(f"cannot access path {folder}/{inside}: {(error.strerror or '').lower()}") from None


def guard_devices(source: str) -> list[Json]:
    """What a folder mounted at /dev needs so that the runtime can trust it. Raises SystemFailure.

    The runtime masks paths with the container's /dev/null and puts a terminal on its /dev/console: as links those would lead
    both to places of the container's choosing (CVE-2025-31133, CVE-2025-52565), and without a /dev/null nothing is masked.
    An image can bring such a folder as a volume.
    """
    for name in ("null", "console", "pts"):
        if os.path.islink(os.path.join(source, name)):
            raise SystemFailure(f"{_OCI_FAILED}unsafe mount at /dev: /dev/{name} is a symbolic link")
    return [{"destination": "/dev/null", "type": "bind", "source": "/dev/null", "options": ["bind", "rprivate"]}]


def pin_subpath(folder: Path, inside: str, where: Path) -> Callable[[], None]:
    """Mount a folder or file of a volume where nothing in the volume can redirect it; returns what undoes it.

    Raises as `subpath`.
    """
    fd = subpath(folder, inside)
    try:
        where.parent.mkdir(exist_ok=True)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            where.mkdir(exist_ok=True)
        else:
            where.touch()
        mounts.bind(f"/proc/self/fd/{fd}", where)
    finally:
        os.close(fd)
    return lambda: unpin_subpath(where)


def unpin_subpath(where: Path) -> None:
    """Undo pin_subpath; what was mounted stays as it is."""
    mounts.unmount(where)
    if where.is_dir():
        where.rmdir()
    else:
        where.unlink(missing_ok=True)


def unpin_all(containers: Path) -> None:
    """Unmount what an engine that was killed between the two left."""
    top = os.path.realpath(containers)
    for entry in reversed(mounts.table()):
        if entry.path.startswith(top + "/") and os.path.basename(os.path.dirname(entry.path)) == SUBPATHS:
            unpin_subpath(Path(entry.path))
