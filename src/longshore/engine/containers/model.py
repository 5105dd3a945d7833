"""What the engine keeps of a container, in dockerd's own terms (Config, HostConfig, NetworkSettings), and times and names."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from longshore.engine import durable
from longshore.engine.errors import InvalidParameter
from longshore.engine.runtime import spec as ocispec

Json = dict[str, Any]

ZERO_TIME = "0001-01-01T00:00:00Z"
NAME = re.compile(r"^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$")

# dockerd's order of the masked paths.
MASKED_PATHS = [
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
    *(p for p in ocispec.masked_paths() if "thermal_throttle" in p),
]  # fmt: skip

# Config with its zero values, in dockerd's order; None marks those that are left out when empty.
CONFIG_FIELDS: list[tuple[str, Any, bool]] = [
    ("Hostname", "", True), ("Domainname", "", True), ("User", "", True), ("AttachStdin", False, True),
    ("AttachStdout", False, True), ("AttachStderr", False, True), ("ExposedPorts", None, False), ("Tty", False, True),
    ("OpenStdin", False, True), ("StdinOnce", False, True), ("Env", None, True), ("Cmd", None, True),
    ("Healthcheck", None, False), ("ArgsEscaped", False, False), ("Image", "", True), ("Volumes", None, True),
    ("WorkingDir", "", True), ("Entrypoint", None, True), ("NetworkDisabled", False, False), ("MacAddress", "", False),
    ("OnBuild", None, True), ("Labels", None, True), ("StopSignal", "", False), ("StopTimeout", None, False),
    ("Shell", None, False),
]  # fmt: skip

HOST_FIELDS: list[tuple[str, Any, bool]] = [
    ("Binds", None, True), ("ContainerIDFile", "", True), ("LogConfig", None, True), ("NetworkMode", "", True),
    ("PortBindings", None, True), ("RestartPolicy", None, True), ("AutoRemove", False, True), ("VolumeDriver", "", True),
    ("VolumesFrom", None, True), ("ConsoleSize", None, True), ("Annotations", None, False), ("CapAdd", None, True),
    ("CapDrop", None, True), ("CgroupnsMode", "", True), ("Dns", None, True), ("DnsOptions", None, True),
    ("DnsSearch", None, True), ("ExtraHosts", None, True), ("GroupAdd", None, True), ("IpcMode", "", True),
    ("Cgroup", "", True), ("Links", None, True), ("OomScoreAdj", 0, True), ("PidMode", "", True),
    ("Privileged", False, True), ("PublishAllPorts", False, True), ("ReadonlyRootfs", False, True),
    ("SecurityOpt", None, True), ("StorageOpt", None, False), ("Tmpfs", None, False), ("UTSMode", "", True),
    ("UsernsMode", "", True), ("ShmSize", 0, True), ("Sysctls", None, False), ("Runtime", "", True),
    ("Isolation", "", True), ("CpuShares", 0, True), ("Memory", 0, True), ("NanoCpus", 0, True),
    ("CgroupParent", "", True), ("BlkioWeight", 0, True), ("BlkioWeightDevice", None, True),
    ("BlkioDeviceReadBps", None, True), ("BlkioDeviceWriteBps", None, True), ("BlkioDeviceReadIOps", None, True),
    ("BlkioDeviceWriteIOps", None, True), ("CpuPeriod", 0, True), ("CpuQuota", 0, True), ("CpuRealtimePeriod", 0, True),
    ("CpuRealtimeRuntime", 0, True), ("CpusetCpus", "", True), ("CpusetMems", "", True), ("Devices", None, True),
    ("DeviceCgroupRules", None, True), ("DeviceRequests", None, True), ("KernelMemoryTCP", 0, False),
    ("MemoryReservation", 0, True), ("MemorySwap", 0, True), ("MemorySwappiness", None, True),
    ("OomKillDisable", None, True), ("PidsLimit", None, True), ("Ulimits", None, True), ("CpuCount", 0, True),
    ("CpuPercent", 0, True), ("IOMaximumIOps", 0, True), ("IOMaximumBandwidth", 0, True), ("Mounts", None, False),
    ("MaskedPaths", None, True), ("ReadonlyPaths", None, True), ("Init", None, False),
]  # fmt: skip

ENDPOINT_FIELDS: list[tuple[str, Any]] = [
    ("IPAMConfig", None), ("Links", None), ("Aliases", None), ("MacAddress", ""), ("DriverOpts", None),
    ("GwPriority", 0), ("NetworkID", ""), ("EndpointID", ""), ("Gateway", ""), ("IPAddress", ""), ("IPPrefixLen", 0),
    ("IPv6Gateway", ""), ("GlobalIPv6Address", ""), ("GlobalIPv6PrefixLen", 0), ("DNSNames", None),
]  # fmt: skip


_STRINGS, _MAP, _SET, _OBJECT, _OBJECTS, _PORTS = (
    "[]string",
    "map[string]string",
    "map[string]struct {}",
    "object",
    "[]object",
    "ports",
)
_KINDS = {
    "ExposedPorts": _SET, "Env": _STRINGS, "Cmd": "args", "Healthcheck": _OBJECT, "Volumes": _SET, "Entrypoint": "args",
    "OnBuild": _STRINGS, "Labels": _MAP, "StopTimeout": "int", "Shell": "args", "Binds": _STRINGS, "LogConfig": _OBJECT,
    "PortBindings": _PORTS, "RestartPolicy": _OBJECT, "VolumesFrom": _STRINGS, "ConsoleSize": "[]int", "Annotations": _MAP,
    "CapAdd": "args", "CapDrop": "args", "Dns": _STRINGS, "DnsOptions": _STRINGS, "DnsSearch": _STRINGS,
    "ExtraHosts": _STRINGS, "GroupAdd": _STRINGS, "Links": _STRINGS, "SecurityOpt": _STRINGS, "StorageOpt": _MAP,
    "Tmpfs": _MAP, "Sysctls": _MAP, "BlkioWeightDevice": _OBJECTS, "BlkioDeviceReadBps": _OBJECTS,
    "BlkioDeviceWriteBps": _OBJECTS, "BlkioDeviceReadIOps": _OBJECTS, "BlkioDeviceWriteIOps": _OBJECTS,
    "Devices": _OBJECTS, "DeviceCgroupRules": _STRINGS, "DeviceRequests": _OBJECTS, "MemorySwappiness": "int",
    "OomKillDisable": "bool", "PidsLimit": "int", "Ulimits": _OBJECTS, "Mounts": _OBJECTS, "MaskedPaths": _STRINGS,
    "ReadonlyPaths": _STRINGS, "Init": "bool",
}  # fmt: skip
_JSON_NAMES = {bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def _is(value: Any, kind: str) -> bool:
    if kind in ("string", "bool", "int"):
        return isinstance(value, {"string": str, "bool": bool, "int": int}[kind]) and (kind == "bool") == isinstance(
            value, bool
        )
    if kind == "args":
        return isinstance(value, str) or _is(value, _STRINGS)
    if kind in (_STRINGS, _OBJECTS, "[]int"):
        inner = {"[]string": str, "[]object": dict, "[]int": int}[kind]
        return isinstance(value, list) and all(isinstance(v, inner) for v in value)
    if not isinstance(value, dict):
        return False
    if kind == _MAP:
        return all(isinstance(v, str) for v in value.values())
    if kind == _PORTS:
        return all(
            v is None
            or (
                isinstance(v, list)
                and all(b is None or (isinstance(b, dict) and all(isinstance(t, str) for t in b.values())) for b in v)
            )
            for v in value.values()
        )
    return True


def check_type(name: str, value: Any, zero: Any) -> None:
    """Raises InvalidParameter, in the form of Go's decoder, for a value that is not of the field's type."""
    kind = _KINDS.get(name) or {str: "string", bool: "bool", int: "int"}[type(zero)]
    if not _is(value, kind):
        found = _JSON_NAMES.get(type(value), "value")
        wanted = {
            "int": "int64",
            "args": "[]string",
            _OBJECT: "struct",
            _OBJECTS: "[]struct",
            _PORTS: "nat.PortMap",
        }.get(kind, kind)
        raise InvalidParameter(
            f"invalid JSON: json: cannot unmarshal {found} into Go struct field .{name} of type {wanted}"
        )


def normalized(given: Json, fields: list[tuple[str, Any, bool]]) -> Json:
    """A JSON object as Go's decoder reads it: known fields whatever their case, null as the zero value, others dropped.

    Raises InvalidParameter for a value of the wrong type.
    """
    lower = {key.lower(): value for key, value in given.items()}
    result: Json = {}
    for name, zero, always in fields:
        value = given.get(name, lower.get(name.lower()))
        if value is None:
            value = zero
        else:
            check_type(name, value, zero)
        if always or (value is not None and value != zero and value != {} and value != []):
            result[name] = value
    return result


def endpoint(given: Json | None = None) -> Json:
    """Endpoint settings with every field."""
    lower = {key.lower(): value for key, value in (given or {}).items()}
    result: Json = {}
    for name, zero in ENDPOINT_FIELDS:
        value = lower.get(name.lower())
        result[name] = zero if value is None else value
    return result


def now() -> str:
    """The time in dockerd's form: RFC 3339 with nanoseconds without trailing zeros, UTC."""
    return format_time(time.time_ns())


def format_time(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{rest:09d}".rstrip("0").rstrip(".") + "Z"


def parse_time(text: str) -> int:
    """Nanoseconds since 1970 of format_time's form; 0 for the zero time."""
    if text == ZERO_TIME or not text:
        return 0
    from longshore.wire.crilog import parse_time as parse

    return parse(text.encode())


def new_id() -> str:
    """64 hexadecimal digits; the first twelve are never a number alone, as they may become a host name."""
    while True:
        text = secrets.token_hex(32)
        if not text[:12].isdigit():
            return text


@dataclass(slots=True)
class State:
    """dockerd's State."""

    running: bool = False
    paused: bool = False
    restarting: bool = False
    oom_killed: bool = False
    dead: bool = False
    removing: bool = False
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    started_at: str = ZERO_TIME
    finished_at: str = ZERO_TIME
    health: Json | None = None

    @property
    def status(self) -> str:
        """created, running, paused, restarting, removing, exited or dead."""
        if self.running:
            if self.paused:
                return "paused"
            return "restarting" if self.restarting else "running"
        if self.removing:
            return "removing"
        if self.dead:
            return "dead"
        return "created" if self.started_at == ZERO_TIME else "exited"

    def show(self) -> Json:
        """As inspect gives it."""
        shown: Json = {
            "Status": self.status,
            "Running": self.running,
            "Paused": self.paused,
            "Restarting": self.restarting,
            "OOMKilled": self.oom_killed,
            "Dead": self.dead,
            "Pid": self.pid,
            "ExitCode": self.exit_code,
            "Error": self.error,
            "StartedAt": self.started_at,
            "FinishedAt": self.finished_at,
        }
        if self.health is not None:
            shown["Health"] = self.health
        return shown


_SAVED = (
    "id", "name", "created", "path", "args", "config", "host", "image_id", "platform", "networks", "mounts", "restart_count",
    "manually_stopped", "sandbox_id", "ports", "init_lower", "security_options", "number", "links",
    "image_manifest",
)  # fmt: skip


@dataclass(eq=False)
class Container:
    """One container. `config` and `host` are dockerd's Config and HostConfig; `networks` maps names to endpoint settings,
    `links` aliases to the ids of containers (see links.py).

    What begins with an underscore or has no place in `_SAVED` lives only while the engine runs.
    """

    id: str
    name: str
    folder: Path
    created: str
    path: str
    args: list[str]
    config: Json
    host: Json
    image_id: str = ""
    platform: str = "linux"
    networks: dict[str, Json] = field(default_factory=dict)
    mounts: list[Json] = field(default_factory=list)
    restart_count: int = 0
    manually_stopped: bool = False
    sandbox_id: str = ""
    ports: Json = field(default_factory=dict)
    init_lower: str = ""
    security_options: Json = field(default_factory=dict)
    number: int = 0
    links: dict[str, str] = field(default_factory=dict)
    image_manifest: Json = field(default_factory=dict)
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        self.lock = asyncio.Lock()
        self.execs: dict[str, Any] = {}
        self.stop_requested = False
        self.exit_waiters: list[asyncio.Future[Json]] = []
        self.remove_waiters: list[asyncio.Future[Json]] = []
        self.pending_attach: list[asyncio.Future[Any]] = []
        self.restart_timer: asyncio.TimerHandle | None = None
        self.restart_delay = 0.0
        self.ended: asyncio.Future[object] | None = None
        self.health_task: asyncio.Task[None] | None = None
        self.removed = False
        self.rotation: Any = None
        self.forwarder: Any = None

    @property
    def short(self) -> str:
        return self.id[:12]

    @property
    def host_names(self) -> str:
        """The container's own names for /etc/hosts: the full one, and its first part."""
        full = str(self.config["Hostname"])
        if self.config["Domainname"]:
            full += f".{self.config['Domainname']}"
        first, dot, _ = full.partition(".")
        return f"{full} {first}" if dot and first else full

    @property
    def log_path(self) -> Path:
        return self.folder / f"{self.id}-json.log"

    @property
    def tty(self) -> bool:
        return bool(self.config["Tty"])

    def save(self) -> None:
        """Write what must outlive the engine; a reader sees the old or the new record, never half of one."""
        kept: Json = {name: getattr(self, name) for name in _SAVED}
        kept["state"] = {name: getattr(self.state, name) for name in State.__dataclass_fields__}
        temporary = self.folder / ".container.json.new"
        temporary.write_bytes(orjson.dumps(kept))
        os.replace(temporary, self.folder / "container.json")

    def keep(self) -> None:
        """Make the record survive a lost power supply. Blocking."""
        durable.keep(self.folder / "container.json")

    @classmethod
    def load(cls, folder: Path) -> Container:
        """Read a record back. Raises OSError, ValueError or KeyError when it is damaged."""
        error: Exception = KeyError("no record")
        for data in durable.copies(folder / "container.json"):
            try:
                kept = orjson.loads(data)
                state = State(**kept.pop("state"))
                return cls(folder=folder, state=state, **kept)
            except (ValueError, KeyError, TypeError, AttributeError) as damaged:
                error = damaged
        raise error

    @property
    def network_mode(self) -> str:
        mode = str(self.host["NetworkMode"])
        return "bridge" if mode in ("", "default") else mode
