"""What a container needs before it can start: its network namespace, its files, its mounts.

A part of Lifecycle, kept apart for its size; nothing here changes a container's state.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import Conflict, EngineError, InvalidParameter, NotFound, SystemFailure
from longshore.engine.networks import model as network_model
from longshore.engine.networks.model import Endpoint
from longshore.machinery import mounts, rooted

from . import files, logdrivers, logoptions, mountspec
from .model import Container, new_id

if TYPE_CHECKING:
    from .service import ContainerService

Json = dict[str, Any]

_OCI_FAILED = "failed to create task for container: failed to create shim task: OCI runtime create failed: "


class Preparation:
    """The steps before a start. service: the ContainerService."""

    def __init__(self, service: ContainerService) -> None:
        self._service = service

    def _plug(self, container: Container, sandbox: Path, plugs: list[tuple[Endpoint, str, bool]]) -> None:
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
            if options.get("max-size"):
                logdrivers.parse_size(options["max-size"])
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
                    source = subpath(folder, point["_subpath"])
            else:
                source = service.mount_image(container, point)
            result.append({"destination": target, "type": "bind", "source": source, "options": options})
        return result


def network_failure(error: BaseException) -> bool:
    return isinstance(error, SystemFailure) and error.message.startswith(
        ("driver failed programming", "failed to create endpoint")
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


def choose_gateway(container: Container, endpoints: list[Endpoint]) -> Endpoint | None:
    """The endpoint that has the default route: the highest priority, then the first by name that is not internal."""
    candidates = [e for e in endpoints if not e.network.internal]
    if not candidates:
        return endpoints[0] if endpoints else None
    return min(candidates, key=lambda e: (-int(container.networks[e.network.name]["GwPriority"] or 0), e.network.name))


def subpath(folder: Path, inside: str) -> str:
    """A folder or file in a volume, found without leaving it. Raises SystemFailure, InvalidParameter."""
    try:
        return str(folder) + rooted.real_path(folder, "/" + inside)
    except FileNotFoundError:
        raise NotFound(f"cannot access path {folder}/{inside}: no such file or directory") from None
    except OSError as error:
        raise SystemFailure(f"cannot access path {folder}/{inside}: {(error.strerror or '').lower()}") from None
