"""daemon.json: an administrator's settings of the engine, in dockerd's own file and under its names.

Read once, when the engine starts. A name that is none of dockerd's is an error with dockerd's text; one of dockerd's that
this engine has no use for is told in the log and passed over, so that a file that served dockerd serves here too.
Source: moby daemon/config/config.go and the dockerd reference ("Daemon configuration file").
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine import runtimes, settings
from longshore.engine.build.settings import BuilderSettings
from longshore.engine.build.settings import parse as parse_builder
from longshore.engine.runtime import cgroups

if TYPE_CHECKING:
    from longshore.engine.images.registries import Registries

log = logging.getLogger("longshore.engine")

FILE = Path("/etc/docker/daemon.json")
DEFAULT_LOG_DRIVER = "json-file"
CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")
SELINUX = Path("/sys/fs/selinux/enforce")
_SIZE_LIMIT = 1 << 20

#: What dockerd knows and this engine passes over with a warning.
_UNUSED = frozenset(
    [
        "allow-direct-routing",
        "containerd",
        "containerd-namespace",
        "containerd-plugins-namespace",
        "data-root",
        "exec-opts",
        "exec-root",
        "experimental",
        "firewall-backend",
        "group",
        "hosts",
        "ip-forward",
        "ip-forward-no-drop",
        "ip6tables",
        "iptables",
        "log-format",
        "log-level",
        "metrics-addr",
        "min-api-version",
        "node-generic-resources",
        "pidfile",
        "proxies",
        "raw-logs",
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


class ConfigurationError(ValueError):
    """A daemon.json that dockerd would refuse; the text says file and reason."""


@dataclass(frozen=True)
class Configuration:
    """The settings. log_options: of log_driver. ulimits: {"Name", "Hard", "Soft"} of containers that set none by that
    name. shm_size: bytes, 0 for dockerd's 64 MiB. labels: "key=value" of the engine. init: run docker-init in
    containers that do not say. init_program: in place of docker-init. cgroup_parent, no_new_privileges,
    seccomp_profile (a file, "builtin" or "unconfined"): of containers that say nothing else. runtimes: see runtimes.check.
    bridge: the interface of the default network, "none" for no such network. bridge_address ("10.0.0.1/24"), bridge_range, gateway, the same for IPv6 (used when ipv6 is set), mtu, icc, masquerade,
    binding_address: of the default network; address_pools: (base, size) that networks take their subnets from;
    userland_proxy: whether ports are carried where they cannot be translated; network_options: driver to options of new networks. host_addresses: what the name host-gateway means.
    builder: see build.settings. userns_remap: see remapping.resolve.
    launcher: whether execs are the launcher's (runtime.launcher) or the OCI runtime's; a setting of this engine alone. features: by dockerd's names. cdi_folders: of CDI
    specifications. live_restore: containers go on when the engine ends; shutdown_timeout: else the seconds that all of
    them have to stop, -1 for no end."""

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
    runtimes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    bridge_address: str = ""
    bridge_range: str = ""
    gateway: str = ""
    ipv6: bool = False
    bridge_address6: str = ""
    bridge_range6: str = ""
    gateway6: str = ""
    bridge: str = ""
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
    launcher: bool = True
    features: Mapping[str, bool] = field(default_factory=dict)
    cdi_folders: tuple[str, ...] = CDI_FOLDERS
    debug: bool = False
    live_restore: bool = True
    shutdown_timeout: int = 15

    def check(self) -> None:
        """What is wrong with the settings together. Raises ConfigurationError."""
        if self.default_runtime and self.default_runtime not in (*runtimes.STOCK, *self.runtimes):
            raise ConfigurationError(f"specified default runtime '{self.default_runtime}' does not exist")
        if self.bridge and (self.bridge_address or self.bridge_address6):
            raise ConfigurationError("You specified -b & --bip, mutually exclusive options. Please specify only one")

    @property
    def cdi(self) -> bool:
        """Whether devices of CDI specifications can be asked for."""
        return self.features.get("cdi", True)

    @property
    def default_cgroup_namespace(self) -> str:
        """Of containers that say nothing."""
        return self.cgroup_namespace or ("private" if cgroups.unified() else "host")

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
        if cgroups.unified() or not host.get("Privileged"):
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
    return make(read(path))


def read(path: Path = FILE) -> dict[str, Any]:
    """What a file says, by the names of Configuration; none there says nothing. Raises ConfigurationError."""
    try:
        text = path.read_bytes()[:_SIZE_LIMIT]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigurationError(_refused(path, str(error))) from error
    return _values(text, path)


def parse(text: bytes, path: Path = FILE) -> Configuration:
    """Read a file's content; an empty one is no settings. Raises ConfigurationError."""
    return make(_values(text, path))


def make(found: Mapping[str, Any]) -> Configuration:
    """The settings that a file names, and dockerd's own for the rest. Raises ConfigurationError."""
    settings = replace(Configuration(), **found)
    settings.check()
    return settings


def _values(text: bytes, path: Path) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(_refused(path, str(error))) from None
    if not isinstance(loaded, dict):
        raise ConfigurationError(_refused(path, "it is no JSON object"))
    found: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in loaded.items():
        if value is None:
            # As Go reads it: as if it were not there.
            continue
        reader = _READERS.get(name)
        if reader is not None:
            attribute, read = reader
            try:
                found[attribute] = read(value)
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigurationError(_refused(path, f"{name}: {error}")) from None
        elif name == "authorization-plugins":
            for plugin in value or ():
                # There are no plugins, so none is found: a client must not be allowed what one would forbid.
                raise ConfigurationError(f'failed to validate authorization plugin: plugin "{plugin}" not found')
        elif name == "selinux-enabled":
            if value and SELINUX.exists():
                raise ConfigurationError(_refused(path, f"{name} is not supported by this engine"))
            if value:
                log.warning("Docker could not enable SELinux on the host system")
        elif name in _UNUSED:
            log.warning("%s: %s is not used by this engine", path, name)
        else:
            unknown.append(name)
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ConfigurationError(
            _refused(path, f"the following directives don't match any configuration option: {names}")
        )
    return found


def _refused(path: Path, why: str) -> str:
    return f"unable to configure the Docker daemon with file {path}: {why}"


def _builder(value: Any) -> BuilderSettings:
    return parse_builder(value, settings.size, settings.flag)


_READERS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "registry-mirrors": ("registry_mirrors", settings.mirrors),
    "insecure-registries": ("insecure_registries", settings.texts),
    "max-concurrent-downloads": ("downloads", settings.most(3)),
    "max-concurrent-uploads": ("uploads", settings.most(5)),
    "max-download-attempts": ("attempts", settings.most(5)),
    "labels": ("labels", settings.texts),
    "log-driver": ("log_driver", settings.text),
    "log-opts": ("log_options", settings.options),
    "dns": ("dns", settings.texts),
    "dns-opts": ("dns_options", settings.texts),
    "dns-search": ("dns_search", settings.texts),
    "default-shm-size": ("shm_size", settings.size),
    "default-ulimits": ("ulimits", settings.ulimits),
    "default-cgroupns-mode": ("cgroup_namespace", settings.cgroup_namespace),
    "default-ipc-mode": ("ipc_mode", settings.ipc_mode),
    "init": ("init", settings.flag),
    "default-runtime": ("default_runtime", settings.text),
    "runtimes": ("runtimes", runtimes.check),
    "init-path": ("init_program", settings.text),
    "cgroup-parent": ("cgroup_parent", settings.text),
    "no-new-privileges": ("no_new_privileges", settings.flag),
    "seccomp-profile": ("seccomp_profile", settings.text),
    "bridge": ("bridge", settings.text),
    "bip": ("bridge_address", settings.interface(4)),
    "fixed-cidr": ("bridge_range", settings.interface(4)),
    "default-gateway": ("gateway", settings.address),
    "ipv6": ("ipv6", settings.flag),
    "bip6": ("bridge_address6", settings.interface(6)),
    "fixed-cidr-v6": ("bridge_range6", settings.interface(6)),
    "default-gateway-v6": ("gateway6", settings.address),
    "default-network-opts": ("network_options", settings.network_options),
    "host-gateway-ip": ("host_addresses", settings.addresses),
    "host-gateway-ips": ("host_addresses", settings.addresses),
    "default-address-pools": ("address_pools", settings.pools),
    "mtu": ("mtu", settings.count),
    "icc": ("icc", settings.flag),
    "ip-masq": ("masquerade", settings.flag),
    "ip": ("binding_address", settings.address),
    "userland-proxy": ("userland_proxy", settings.flag),
    "builder": ("builder", _builder),
    "features": ("features", settings.features),
    "cdi-spec-dirs": ("cdi_folders", settings.folders),
    "debug": ("debug", settings.flag),
    "live-restore": ("live_restore", settings.flag),
    "shutdown-timeout": ("shutdown_timeout", settings.seconds),
    "userns-remap": ("userns_remap", settings.text),
    "launcher": ("launcher", settings.flag),
}
