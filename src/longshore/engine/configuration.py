"""daemon.json: an administrator's settings of the engine, in dockerd's own file and under its names.

Read once, when the engine starts. A name that is none of dockerd's is an error with dockerd's text; one of dockerd's that
this engine has no use for is told in the log and passed over, so that a file that served dockerd serves here too.
Source: moby daemon/config/config.go and the dockerd reference ("Daemon configuration file").
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from longshore.engine.build.settings import BuilderSettings
from longshore.engine.build.settings import parse as parse_builder

if TYPE_CHECKING:
    from longshore.engine.images.registries import Registries

log = logging.getLogger("longshore.engine")

FILE = Path("/etc/docker/daemon.json")
DEFAULT_LOG_DRIVER = "json-file"
_SIZE_LIMIT = 1 << 20
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}

#: What dockerd knows and this engine passes over with a warning.
_UNUSED = frozenset(
    [
        "allow-direct-routing",
        "bridge",
        "cdi-spec-dirs",
        "containerd",
        "containerd-namespace",
        "containerd-plugins-namespace",
        "data-root",
        "debug",
        "exec-opts",
        "exec-root",
        "experimental",
        "features",
        "firewall-backend",
        "group",
        "hosts",
        "ip-forward",
        "ip-forward-no-drop",
        "ip6tables",
        "iptables",
        "live-restore",
        "log-format",
        "log-level",
        "metrics-addr",
        "min-api-version",
        "node-generic-resources",
        "pidfile",
        "proxies",
        "raw-logs",
        "shutdown-timeout",
        "storage-driver",
        "storage-opts",
        "swarm-default-advertise-addr",
        "tls",
        "tlscacert",
        "tlscert",
        "tlskey",
        "tlsverify",
        "userland-proxy-path",
        "validate",
    ]
)

#: What would let a container or a client do less than it can here: passing these over would be unsafe.
_REFUSED = frozenset(["authorization-plugins", "selinux-enabled"])


class ConfigurationError(ValueError):
    """A daemon.json that dockerd would refuse; the text says file and reason."""


@dataclass(frozen=True)
class Configuration:
    """The settings. log_options: of log_driver. ulimits: {"Name", "Hard", "Soft"} of containers that set none by that
    name. shm_size: bytes, 0 for dockerd's 64 MiB. labels: "key=value" of the engine. init: run docker-init in
    containers that do not say. init_program: in place of docker-init. cgroup_parent, no_new_privileges,
    userns_remap: see remapping.resolve. seccomp_profile (a file, "builtin" or "unconfined"): of containers that say nothing else. runtimes: name to program.
    bridge_address ("10.0.0.1/24"), bridge_range, gateway, the same for IPv6 (used when ipv6 is set), mtu, icc, masquerade,
    binding_address: of the default network; address_pools: (base, size) that networks take their subnets from;
    userland_proxy: whether ports are carried where they cannot be translated; network_options: driver to options of new networks. host_addresses: what the name host-gateway means.
    builder: see build.settings. userns_remap: see remapping.resolve."""

    registry_mirrors: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    downloads: int = 3
    uploads: int = 5
    attempts: int = 5
    labels: tuple[str, ...] = ()
    log_driver: str = DEFAULT_LOG_DRIVER
    log_options: Mapping[str, str] = field(default_factory=dict)
    dns: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    shm_size: int = 0
    ulimits: tuple[Mapping[str, Any], ...] = ()
    cgroup_namespace: str = ""
    ipc_mode: str = ""
    init: bool = False
    init_program: str = ""
    cgroup_parent: str = ""
    no_new_privileges: bool = False
    seccomp_profile: str = ""
    default_runtime: str = ""
    runtimes: Mapping[str, str] = field(default_factory=dict)
    bridge_address: str = ""
    bridge_range: str = ""
    gateway: str = ""
    ipv6: bool = False
    bridge_address6: str = ""
    bridge_range6: str = ""
    gateway6: str = ""
    userns_remap: str = ""
    network_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    host_addresses: tuple[str, ...] = ()
    address_pools: tuple[tuple[str, int], ...] = ()
    mtu: int = 0
    icc: bool = True
    masquerade: bool = True
    binding_address: str = ""
    userland_proxy: bool = True
    builder: BuilderSettings = field(default_factory=BuilderSettings)
    userns_remap: str = ""

    def registries(self, namespace: int | None = None) -> Registries:
        """Registries as the settings say. namespace: see Registries."""
        from longshore.engine.images.registries import Registries

        return Registries(
            mirrors=self.registry_mirrors,
            insecure=self.insecure_registries,
            downloads=self.downloads,
            uploads=self.uploads,
            attempts=self.attempts,
            namespace=namespace,
        )

    def seccomp(self) -> str:
        """The seccomp profile of containers that name none: its text, "unconfined", or "" for the built-in one.

        Raises ConfigurationError for a file that cannot be read.
        """
        if self.seccomp_profile in ("", "builtin", "unconfined"):
            return self.seccomp_profile.removeprefix("builtin")
        try:
            return Path(self.seccomp_profile).read_text()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"opening seccomp profile ({self.seccomp_profile}) failed: {error}") from None

    def fill(self, host: dict[str, Any]) -> None:
        """Put the settings into a HostConfig where it says nothing, in place. Source: moby daemon/create.go."""
        given = host["LogConfig"] or {}
        driver = given.get("Type") or self.log_driver
        options = dict(given.get("Config") or {})
        if driver == self.log_driver:
            options = {**self.log_options, **options}
        host["LogConfig"] = {"Type": driver, "Config": options}
        host["ShmSize"] = host["ShmSize"] or self.shm_size
        host["CgroupnsMode"] = host["CgroupnsMode"] or self.cgroup_namespace
        host["IpcMode"] = host["IpcMode"] or self.ipc_mode
        host["Runtime"] = host["Runtime"] or self.default_runtime
        if host.get("Init") is None and self.init:
            host["Init"] = True
        named = {limit.get("Name") for limit in host["Ulimits"] or []}
        missing = [dict(limit) for limit in self.ulimits if limit["Name"] not in named]
        if missing:
            host["Ulimits"] = [*(host["Ulimits"] or []), *missing]


def load(path: Path = FILE) -> Configuration:
    """Read a file; none there is no settings. Raises ConfigurationError."""
    try:
        text = path.read_bytes()[:_SIZE_LIMIT]
    except (FileNotFoundError, NotADirectoryError):
        return Configuration()
    except OSError as error:
        raise ConfigurationError(_refused(path, str(error))) from error
    return parse(text, path)


def parse(text: bytes, path: Path = FILE) -> Configuration:
    """Read a file's content; an empty one is no settings. Raises ConfigurationError."""
    if not text.strip():
        return Configuration()
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(_refused(path, str(error))) from None
    if not isinstance(loaded, dict):
        raise ConfigurationError(_refused(path, "it is no JSON object"))
    found: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in loaded.items():
        reader = _READERS.get(name)
        if reader is not None:
            attribute, read = reader
            try:
                found[attribute] = read(value)
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigurationError(_refused(path, f"{name}: {error}")) from None
        elif name in _REFUSED:
            if value:
                raise ConfigurationError(_refused(path, f"{name} is not supported by this engine"))
        elif name in _UNUSED:
            log.warning("%s: %s is not used by this engine", path, name)
        else:
            unknown.append(name)
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ConfigurationError(
            _refused(path, f"the following directives don't match any configuration option: {names}")
        )
    return replace(Configuration(), **found)


def _refused(path: Path, why: str) -> str:
    return f"unable to configure the Docker daemon with file {path}: {why}"


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of texts is wanted")
    return tuple(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is wanted")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is wanted")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"invalid max: {value}")
    return value


def _mirrors(value: Any) -> tuple[str, ...]:
    """Source: moby registry/config.go, ValidateMirror."""
    found = []
    for item in _texts(value):
        parts = urlsplit(item)
        if parts.scheme not in ("http", "https"):
            raise ValueError(f'invalid mirror: unsupported scheme "{parts.scheme}" in "{item}"')
        if parts.query or parts.fragment:
            raise ValueError(f'invalid mirror: query or fragment at end of the URI "{item}"')
        if parts.username is not None:
            raise ValueError("invalid mirror: username/password not allowed in URI")
        found.append(item.rstrip("/"))
    return tuple(found)


def _size(value: Any) -> int:
    """A number of bytes, or a text with a unit ("64M", "1gb"). Source: docker/go-units RAMInBytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = _text(value).strip().lower().removesuffix("b").removesuffix("i")
    unit = text[-1:] if text[-1:].isalpha() else ""
    if unit not in _UNITS:
        raise ValueError(f"invalid size: '{value}'")
    return int(float(text.removesuffix(unit)) * (1 << _UNITS[unit]))


def _options(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError("texts by name are wanted")
    return dict(value)


def _interface(version: int) -> Callable[[Any], str]:
    """Reads an address with its prefix, as bip and fixed-cidr have it."""

    def read(value: Any) -> str:
        text = _text(value)
        try:
            if "/" not in text or ipaddress.ip_interface(text).version != version:
                raise ValueError(text)
        except ValueError:
            raise ValueError(f"invalid CIDR address: {text}") from None
        return text

    return read


def _address(value: Any) -> str:
    return str(ipaddress.ip_address(_text(value)))


def _addresses(value: Any) -> tuple[str, ...]:
    """At most one of each family."""
    found = tuple(map(_address, [value] if isinstance(value, str) else _texts(value)))
    if len({":" in address for address in found}) != len(found):
        raise ValueError("only one IPv4 and one IPv6 address can be given")
    return found


def _network_options(value: Any) -> dict[str, dict[str, str]]:
    if not isinstance(value, dict):
        raise ValueError("options by driver are wanted")
    return {driver: _options(options) for driver, options in value.items()}


def _pools(value: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, list):
        raise ValueError("a list of pools is wanted")
    found = []
    for entry in value:
        base, size = ipaddress.ip_network(entry["base"]), entry["size"]
        if not isinstance(size, int) or not base.prefixlen <= size <= base.max_prefixlen:
            raise ValueError(f"invalid pool size {size} of {base}")
        found.append((str(base), size))
    return tuple(found)


def _ulimits(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, dict):
        raise ValueError("limits by name are wanted")
    return tuple(
        {"Name": name, "Hard": int(limit["Hard"]), "Soft": int(limit["Soft"])} for name, limit in value.items()
    )


def _runtimes(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("runtimes by name are wanted")
    return {name: _text(entry["path"]) for name, entry in value.items()}


def _builder(value: Any) -> BuilderSettings:
    return parse_builder(value, _size, _flag)


_READERS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "registry-mirrors": ("registry_mirrors", _mirrors),
    "insecure-registries": ("insecure_registries", _texts),
    "max-concurrent-downloads": ("downloads", _count),
    "max-concurrent-uploads": ("uploads", _count),
    "max-download-attempts": ("attempts", _count),
    "labels": ("labels", _texts),
    "log-driver": ("log_driver", _text),
    "log-opts": ("log_options", _options),
    "dns": ("dns", _texts),
    "dns-opts": ("dns_options", _texts),
    "dns-search": ("dns_search", _texts),
    "default-shm-size": ("shm_size", _size),
    "default-ulimits": ("ulimits", _ulimits),
    "default-cgroupns-mode": ("cgroup_namespace", _text),
    "default-ipc-mode": ("ipc_mode", _text),
    "init": ("init", _flag),
    "default-runtime": ("default_runtime", _text),
    "runtimes": ("runtimes", _runtimes),
    "init-path": ("init_program", _text),
    "cgroup-parent": ("cgroup_parent", _text),
    "no-new-privileges": ("no_new_privileges", _flag),
    "seccomp-profile": ("seccomp_profile", _text),
    "userns-remap": ("userns_remap", _text),
    "bip": ("bridge_address", _interface(4)),
    "fixed-cidr": ("bridge_range", _interface(4)),
    "default-gateway": ("gateway", _address),
    "ipv6": ("ipv6", _flag),
    "bip6": ("bridge_address6", _interface(6)),
    "fixed-cidr-v6": ("bridge_range6", _interface(6)),
    "default-gateway-v6": ("gateway6", _address),
    "default-network-opts": ("network_options", _network_options),
    "host-gateway-ip": ("host_addresses", _addresses),
    "host-gateway-ips": ("host_addresses", _addresses),
    "default-address-pools": ("address_pools", _pools),
    "mtu": ("mtu", _count),
    "icc": ("icc", _flag),
    "ip-masq": ("masquerade", _flag),
    "ip": ("binding_address", _address),
    "userland-proxy": ("userland_proxy", _flag),
    "builder": ("builder", _builder),
    "userns-remap": ("userns_remap", _text),
}
