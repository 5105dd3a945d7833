"""The engine as a whole: ping, version, info, events, disk usage. Source: Docker Engine API, System."""

from __future__ import annotations

import asyncio
import functools
import os
import platform
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import orjson

from longshore.engine import runtimes as runtimes_of
from longshore.engine.configuration import Configuration
from longshore.engine.containers import filters, inspect, logoptions
from longshore.engine.errors import InvalidParameter
from longshore.engine.runtime import cgroups
from longshore.machinery import process
from longshore.machinery.http import Response

from .router import ENGINE_VERSION, HEADERS, Call, Router, json_response
from .times import parse_unix

Json = dict[str, Any]
routes = Router()


def _ping_headers(call: Call) -> list[tuple[str, str]]:
    return [
        *HEADERS,
        ("Builder-Version", call.api.builder_version),
        ("Cache-Control", "no-cache, no-store, must-revalidate"),
        ("Pragma", "no-cache"),
        ("Swarm", "inactive"),
    ]


@routes.route("GET", "/_ping")
async def ping(call: Call) -> Response:
    return Response(200, b"OK", _ping_headers(call), "text/plain; charset=utf-8")


@routes.route("HEAD", "/_ping")
async def ping_head(call: Call) -> Response:
    return Response(200, b"", [*_ping_headers(call)], "text/plain; charset=utf-8")


@functools.cache
def _architecture() -> str:
    from longshore.engine.images.model import host_architecture

    return host_architecture()


async def _runtime_version(call: Call) -> tuple[str, str]:
    """(version, commit) of the default runtime; asked once."""
    if call.api.runtime_version is None:
        version, commit = "unknown", "unknown"
        done = await process.run([call.api.containers.runtime.runtimes["runc"], "--version"], check=False)
        for line in done.stdout.decode(errors="replace").splitlines():
            if line.startswith("runc version "):
                version = line.split()[2]
            elif line.startswith("commit: "):
                commit = line.split()[1]
        call.api.runtime_version = (version, commit)
    return call.api.runtime_version


@routes.route("GET", "/version")
async def version(call: Call) -> Response:
    from longshore import __version__

    runtime, commit = await _runtime_version(call)
    kernel, built = platform.release(), "1970-01-01T00:00:00.000000000+00:00"
    go = f"python{platform.python_version()}"
    details = {
        "ApiVersion": "1.51", "Arch": _architecture(), "BuildTime": built, "Experimental": "false",
        "GitCommit": f"longshore-{__version__}", "GoVersion": go, "KernelVersion": kernel, "MinAPIVersion": "1.24", "Os": "linux",
    }  # fmt: skip
    return json_response(
        {
            "Platform": {"Name": ""},
            "Components": [
                {"Name": "Engine", "Version": ENGINE_VERSION, "Details": details},
                {"Name": "containerd", "Version": f"longshore-{__version__}", "Details": {"GitCommit": ""}},
                {"Name": "runc", "Version": runtime, "Details": {"GitCommit": commit}},
                {"Name": "docker-init", "Version": "0.19.0", "Details": {"GitCommit": ""}},
            ],
            "Version": ENGINE_VERSION,
            "ApiVersion": "1.51",
            "MinAPIVersion": "1.24",
            "GitCommit": f"longshore-{__version__}",
            "GoVersion": go,
            "Os": "linux",
            "Arch": _architecture(),
            "KernelVersion": kernel,
            "BuildTime": built,
        }
    )


@functools.cache
def _os_release() -> tuple[str, str]:
    values = {}
    for file in ("/etc/os-release", "/usr/lib/os-release"):
        if Path(file).exists():
            for line in Path(file).read_text().splitlines():
                name, _, value = line.partition("=")
                values[name] = value.strip('"')
            break
    return values.get("PRETTY_NAME", "Linux"), values.get("VERSION_ID", "")


async def _cdi_devices(given: Configuration) -> tuple[list[str], list[str]]:
    """The devices of CDI specifications, and warnings of files that are none."""
    if not given.cdi or not given.cdi_folders:
        return [], []
    from longshore.engine import cdi

    found, wrong = await asyncio.to_thread(cdi.devices, [Path(folder) for folder in given.cdi_folders])
    return found, [f"CDI: Error associated with spec file {file}: {text}" for file, text in wrong.items()]


def engine_id(folder: Path) -> str:
    """The engine's id, made when it is first asked for."""
    file = folder / "engine-id"
    if not file.exists():
        file.write_text(str(uuid.uuid4()))
    return file.read_text().strip()


@functools.cache
def _filesystem(folder: str) -> str:
    from longshore.machinery import mounts

    best = max(
        (m for m in mounts.table() if folder == m.path or folder.startswith(m.path.rstrip("/") + "/")),
        key=lambda m: len(m.path),
    )
    return {"ext4": "extfs", "ext3": "extfs", "ext2": "extfs"}.get(best.kind, best.kind)


@routes.route("GET", "/info")
async def info(call: Call) -> Response:
    api = call.api
    service = api.containers
    states = [c.state for c in service.store]
    running = sum(1 for s in states if s.running and not s.paused)
    paused = sum(1 for s in states if s.paused)
    _, commit = await _runtime_version(call)
    features = await api.runtime_features()
    name, release = _os_release()
    v2 = cgroups.unified()
    runtimes: Json = {}
    for known in sorted({"runc", "io.containerd.runc.v2", *service.runtime.runtimes}):
        entry = runtimes_of.shown(service.configuration.runtimes, known)
        if features and known in runtimes_of.STOCK:
            entry["status"] = {"org.opencontainers.runtime-spec.features": features}
        runtimes[known] = entry
    general = service.configuration
    mirrors = [f"{mirror}/" for mirror in general.registry_mirrors]
    indexes: Json = {"docker.io": {"Mirrors": mirrors, "Name": "docker.io", "Official": True, "Secure": True}}
    insecure = ["::1/128", "127.0.0.0/8"]
    for registry in general.insecure_registries:
        if "/" in registry:
            insecure.append(registry)
        else:
            indexes[registry] = {"Mirrors": [], "Name": registry, "Official": False, "Secure": False}
    pools = [{"Base": base, "Size": size} for base, size in general.address_pools]
    security = [f"name=seccomp,profile={general.seccomp_profile or 'builtin'}"]
    if service.owners is not None:
        security.append("name=userns")
    if v2:
        security.append("name=cgroupns")
    if general.no_new_privileges:
        security.append("name=no-new-privileges")
    devices, wrong = await _cdi_devices(general)
    shown: Json = {
        "ID": engine_id(api.folder),
        "Containers": len(states),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(states) - running - paused,
        "Images": len(api.images.images()),
        "Driver": "overlay2",
        "DriverStatus": [
            ["Backing Filesystem", _filesystem(str(api.folder))],
            ["Supports d_type", "true"],
            ["Using metacopy", "false"],
            ["Native Overlay Diff", "true"],
            ["userxattr", "false"],
        ],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "ipvlan", "macvlan", "null", "overlay"],
            "Authorization": None,
            "Log": sorted(logoptions.KNOWN),
        },
        "MemoryLimit": True,
        "SwapLimit": True,
        "KernelMemoryTCP": True,
        "CpuCfsPeriod": True,
        "CpuCfsQuota": True,
        "CPUShares": True,
        "CPUSet": True,
        "PidsLimit": True,
        "IPv4Forwarding": True,
        "Debug": general.debug,
        "NFd": len(os.listdir("/proc/self/fd")),
        "OomKillDisable": not v2,
        "NGoroutines": 1,
        "SystemTime": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() % 10**9:09d}Z",
        "LoggingDriver": general.log_driver,
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": "2" if v2 else "1",
        "NEventsListener": api.events.listeners,
        "KernelVersion": platform.release(),
        "OperatingSystem": name,
        "OSVersion": release,
        "OSType": "linux",
        "Architecture": platform.machine(),
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "IndexConfigs": indexes,
            "InsecureRegistryCIDRs": insecure,
            "Mirrors": mirrors or None,
        },
        "NCPU": os.cpu_count() or 1,
        "MemTotal": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "GenericResources": None,
        "DockerRootDir": str(api.folder),
        "HttpProxy": os.environ.get("HTTP_PROXY", ""),
        "HttpsProxy": os.environ.get("HTTPS_PROXY", ""),
        "NoProxy": os.environ.get("NO_PROXY", ""),
        "Name": socket.gethostname(),
        "Labels": list(general.labels),
        "ExperimentalBuild": False,
        "ServerVersion": ENGINE_VERSION,
        "Runtimes": runtimes,
        "DefaultRuntime": general.default_runtime or service.runtime.default_runtime,
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": general.live_restore,
        "Isolation": "",
        "InitBinary": "docker-init",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": commit},
        "InitCommit": {"ID": ""},
        "SecurityOptions": security,
        **({"DefaultAddressPools": pools} if pools else {}),
        "FirewallBackend": {"Driver": "nftables"},
        "CDISpecDirs": list(general.cdi_folders) if general.cdi else [],
        "DiscoveredDevices": [{"Source": "cdi", "ID": name} for name in devices],
        "Containerd": {"Address": "", "Namespaces": {"Containers": "moby", "Plugins": "plugins.moby"}},
        "Warnings": [*api.warnings, *wrong] or None,
    }
    _adapt_info(shown, call.version)
    return json_response(shown)


def _adapt_info(shown: Json, version: tuple[int, int]) -> None:
    """/info as an older client knows it. Source: moby api/server/router/system/system_routes.go."""
    if version < (1, 50):
        shown["BridgeNfIptables"] = shown["BridgeNfIp6tables"] = False
        shown.pop("DiscoveredDevices", None)
    if version < (1, 49):
        del shown["FirewallBackend"]
        for name in ("ContainerdCommit", "RuncCommit", "InitCommit"):
            if shown[name]["ID"]:
                shown[name]["Expected"] = shown[name]["ID"]
    if version < (1, 47):
        shown["RegistryConfig"] |= {
            "AllowNondistributableArtifactsCIDRs": None,
            "AllowNondistributableArtifactsHostnames": None,
        }
    if version < (1, 46):
        del shown["Containerd"]
    if version < (1, 44):
        for runtime in shown["Runtimes"].values():
            runtime.pop("status", None)
    if version < (1, 25):
        shown["SecurityOptions"] = [
            option.removeprefix("name=").partition(",")[0] for option in shown["SecurityOptions"]
        ]


def _without_tag(name: str) -> str:
    """ "registry:5000/image" of "registry:5000/image:tag" or of "registry:5000/image@sha256:..."."""
    folder, slash, last = name.partition("@")[0].rpartition("/")
    return folder + slash + last.partition(":")[0]


def matcher(wanted: filters.Filters) -> Any:
    """Whether an event passes the filters of /events; names that are no filters are passed over, as dockerd does."""

    def one(values: list[str], *candidates: str) -> bool:
        return any(v in candidates for v in values)

    def matches(event: Json) -> bool:
        attributes = event["Actor"]["Attributes"]
        kind, id = event["Type"], event["Actor"]["ID"]
        if wanted.get("type") and kind not in wanted["type"]:
            return False
        if wanted.get("event"):
            action = event["Action"]
            if not any(action == e or action.startswith(f"{e}:") for e in wanted["event"]):
                return False
        if wanted.get("scope") and event["scope"] not in wanted["scope"]:
            return False
        if wanted.get("label") and not filters.labels_match(wanted["label"], attributes):
            return False
        for name in ("container", "volume", "network", "daemon", "plugin", "service", "node", "secret", "config"):
            values = wanted.get(name)
            begins = tuple(values or ())
            if begins and not id.startswith(begins) and not attributes.get("name", "").startswith(begins):
                return False
        if wanted.get("image"):
            shown = attributes.get("name" if kind == "image" else "image", "")
            if not one(wanted["image"], id, shown, *map(_without_tag, (id, shown))):
                return False
        return True

    return matches


@routes.route("GET", "/events")
async def events(call: Call) -> Response | None:
    since_text, until_text = call.param("since"), call.param("until")
    since, until = parse_unix(since_text), parse_unix(until_text)
    if since_text and until_text and since > until:
        raise InvalidParameter(f"`since` time ({since_text}) cannot be after `until` time ({until_text})")
    wanted = call.filters()
    writer = await call.start(200)
    listener = call.api.events.listen(matcher(wanted), since if since_text or until_text else None, until)
    async for event in listener:
        if call.version < (1, 46) and event["Type"] == "image" and event["Action"] == "create":
            continue
        writer.write(orjson.dumps(event) + b"\n")
        await writer.drain()
    return None


@routes.route("GET", "/system/df")
async def disk_usage(call: Call) -> Response:
    api = call.api
    kinds = set(call.params("type")) if call.version >= (1, 42) else set()
    for kind in kinds:
        if kind not in ("container", "image", "volume", "build-cache"):
            raise InvalidParameter(f"unknown object type: {kind}")

    def work() -> Json:
        shown: Json = {"LayersSize": 0, "Images": None, "Containers": None, "Volumes": None, "BuildCache": None}
        if not kinds or "image" in kinds:
            shown["LayersSize"] = api.images.disk_usage()["layers"]
            shown["Images"] = api.images.list(all=False, filters={}, shared_size=True)
            for image in shown["Images"]:
                image["RepoDigests"] = image["RepoDigests"] or None
        if not kinds or "container" in kinds:
            service = api.containers
            shown["Containers"] = [inspect.list_entry(service, c, size=service.sizes(c)) for c in service.store.all()]
        if not kinds or "volume" in kinds:
            volumes = []
            for name in sorted(api.volumes.list()):
                entry = api.volumes.show(name)
                entry["UsageData"] = {"RefCount": len(api.volumes.users(name)), "Size": api.volumes.size(name)}
                volumes.append(entry)
            shown["Volumes"] = volumes
        if not kinds or "build-cache" in kinds:
            from longshore.engine.build.usage import shown_records

            shown["BuildCache"] = shown_records(api.images)
        return shown

    shown = await api.containers.in_thread(work)
    if call.version < (1, 44):
        for image in shown["Images"] or []:
            image["VirtualSize"] = image["Size"]
    if call.version < (1, 42):
        shown["BuilderSize"] = sum(record["Size"] for record in shown["BuildCache"] or [])
    return json_response(shown)
