"""Containers as inspect and list give them. Source: Docker Engine API; field order and zero values are dockerd's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from . import links
from .model import ENDPOINT_FIELDS, Container, parse_time

if TYPE_CHECKING:
    from .service import ContainerService

Json = dict[str, Any]


def mount_points(container: Container) -> list[Json]:
    shown = []
    for point in container.mounts:
        entry: Json = {"Type": point["Type"]}
        if point["Type"] in ("volume", "image"):
            entry["Name"] = point["Name"]
        entry["Source"] = point["Source"]
        entry["Destination"] = point["Destination"]
        if point["Type"] == "volume":
            entry["Driver"] = point["Driver"]
        entry["Mode"], entry["RW"], entry["Propagation"] = point["Mode"], point["RW"], point["Propagation"]
        shown.append(entry)
    return shown


def endpoints(container: Container, *, full: bool = True) -> Json:
    result: Json = {}
    for name, settings in container.networks.items():
        entry = {field: settings.get(field) for field, _ in ENDPOINT_FIELDS}
        if not full:
            entry["DNSNames"] = None
        result[name] = entry
    return result


def network_settings(service: ContainerService, container: Container) -> Json:
    main = container.networks.get("bridge", {})
    sandbox = container.sandbox_id if container.state.running else ""
    if container.network_mode == "host" and container.state.running:
        sandbox = str(container.networks.get("host", {}).get("_sandbox", ""))
        key = "/var/run/docker/netns/default"
    else:
        key = str(service.networks.sandbox_path(sandbox)) if sandbox else ""
    return {
        "Bridge": "",
        "SandboxID": sandbox,
        "SandboxKey": key,
        "Ports": container.ports,
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": main.get("EndpointID", ""),
        "Gateway": main.get("Gateway", ""),
        "GlobalIPv6Address": main.get("GlobalIPv6Address", ""),
        "GlobalIPv6PrefixLen": main.get("GlobalIPv6PrefixLen", 0),
        "IPAddress": main.get("IPAddress", ""),
        "IPPrefixLen": main.get("IPPrefixLen", 0),
        "IPv6Gateway": main.get("IPv6Gateway", ""),
        "MacAddress": main.get("MacAddress", ""),
        "Networks": endpoints(container),
    }


def _host_config(service: ContainerService, container: Container) -> Json:
    shown = {k: v for k, v in container.host.items() if not k.startswith("_")}
    shown["Links"] = links.shown(service, container)
    return shown


def inspect(
    service: ContainerService,
    container: Container,
    *,
    size: tuple[int, int] | None = None,
    version: tuple[int, int] = (1, 51),
) -> Json:
    """The whole inspect answer. size: (SizeRw, SizeRootFs)."""
    started = container.state.started_at != "0001-01-01T00:00:00Z" or (container.folder / "hosts").exists()
    folder = container.folder
    running_execs = [e.id for e in container.execs.values() if e.running]
    shown: Json = {
        "Id": container.id,
        "Created": container.created,
        "Path": container.path,
        "Args": container.args,
        "State": container.state.show(),
        "Image": container.image_id,
        "ResolvConfPath": str(folder / "resolv.conf") if started else "",
        "HostnamePath": str(folder / "hostname") if started else "",
        "HostsPath": str(folder / "hosts") if started else "",
        "LogPath": str(container.log_path)
        if started and container.host["LogConfig"]["Type"] == "json-file" and container.log_path.exists()
        else "",
        "Name": container.name,
        "RestartCount": container.restart_count,
        "Driver": "overlay2",
        "Platform": container.platform,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": container.security_options.get("apparmor") or "",
        "ExecIDs": running_execs or None,
        "HostConfig": _host_config(service, container),
        "GraphDriver": service.graph_driver(container),
    }
    if size is not None:
        shown["SizeRw"], shown["SizeRootFs"] = size
    if container.image_manifest and version >= (1, 48):
        shown["ImageManifestDescriptor"] = container.image_manifest
    shown["Mounts"] = mount_points(container)
    shown["Config"] = container.config
    shown["NetworkSettings"] = network_settings(service, container)
    if version < (1, 45):
        # The short id and the host name were aliases of their own before there were DNSNames.
        own = (container.short, container.config["Hostname"])
        for name, entry in shown["NetworkSettings"]["Networks"].items():
            if name not in ("bridge", "host", "none", "default"):
                entry["Aliases"] = list(dict.fromkeys((*(entry["Aliases"] or ()), *own)))
    return shown


def human_duration(seconds: float) -> str:
    """As docker writes how long ago something was (go-units HumanDuration)."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"


def status_text(container: Container) -> str:
    """The Status column of docker ps."""
    state = container.state
    now = time.time()
    if state.running:
        up = human_duration(now - parse_time(state.started_at) / 1e9)
        if state.paused:
            return f"Up {up} (Paused)"
        if state.restarting:
            ago = human_duration(now - parse_time(state.finished_at) / 1e9)
            return f"Restarting ({state.exit_code}) {ago} ago"
        if state.health is not None:
            status = state.health["Status"]
            return f"Up {up} ({'health: starting' if status == 'starting' else status})"
        return f"Up {up}"
    if state.removing:
        return "Removal In Progress"
    if state.dead:
        return "Dead"
    if state.started_at == "0001-01-01T00:00:00Z":
        return "Created"
    if not parse_time(state.finished_at):
        return ""
    return f"Exited ({state.exit_code}) {human_duration(now - parse_time(state.finished_at) / 1e9)} ago"


def command_text(container: Container) -> str:
    """Path and arguments; those with spaces in quotes, as dockerd writes them."""
    args = [f"'{a}'" if " " in a else a for a in container.args]
    return " ".join([container.path, *args]) if args else container.path


def list_ports(container: Container) -> list[Json]:
    """The Ports of a list entry."""
    shown = []
    for port, bindings in container.ports.items():
        number, _, protocol = port.partition("/")
        if not bindings:
            shown.append({"PrivatePort": int(number), "Type": protocol})
        for binding in bindings or []:
            entry: Json = {"IP": binding["HostIp"], "PrivatePort": int(number)}
            if binding["HostPort"]:
                entry["PublicPort"] = int(binding["HostPort"])
            shown.append({**entry, "Type": protocol})
    return shown


def list_entry(
    service: ContainerService,
    container: Container,
    *,
    size: tuple[int, int] | None = None,
    version: tuple[int, int] = (1, 51),
) -> Json:
    """One entry of the container list."""
    host: Json = {"NetworkMode": container.host["NetworkMode"]}
    if container.host.get("Annotations") and version >= (1, 46):
        host["Annotations"] = container.host["Annotations"]
    entry: Json = {
        "Id": container.id,
        "Names": [container.name, *links.names(service, container)],
        "Image": service.shown_image(container),
        "ImageID": container.image_id,
        "Command": command_text(container),
        "Created": parse_time(container.created) // 1_000_000_000,
        "Ports": list_ports(container),
    }
    if size is not None:
        if size[0]:
            entry["SizeRw"] = size[0]
        if size[1]:
            entry["SizeRootFs"] = size[1]
    entry.update(
        {
            "Labels": container.config["Labels"] or {},
            "State": container.state.status,
            "Status": status_text(container),
            "HostConfig": host,
            "NetworkSettings": {"Networks": endpoints(container, full=False)},
            "Mounts": mount_points(container),
        }
    )
    return entry
