"""Checks of a new container's (or an update's) settings, and the defaults that dockerd fills in.

The texts are dockerd's, as are the warnings. Source: Docker Engine API; recorded answers in ../shared/golden/docker.
"""

from __future__ import annotations

import ipaddress
import os
import posixpath
from collections.abc import Mapping
from functools import cache
from typing import Any

from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.networks import model as network_model
from longshore.engine.runtime import capabilities, cgroups

from . import logoptions, mountspec, signals
from .model import MASKED_PATHS

Json = dict[str, Any]

_MIN_MEMORY = 6 * 1024 * 1024
_MIN_DURATION = 1_000_000
LOG_DRIVERS = ("none", *logoptions.KNOWN)


# What limits of single devices need of the kernel, and what is said where it has it not.
_BLOCK_LIMITS = (
    ("BlkioWeightDevice", "weight_device", "Block I/O weight_device or the cgroup is not mounted. Weight-device discarded."),
    ("BlkioDeviceReadBps", "throttle", "BPS Block I/O read limit or the cgroup is not mounted. Block I/O BPS read limit discarded."),
    ("BlkioDeviceWriteBps", "throttle", "BPS Block I/O write limit or the cgroup is not mounted. Block I/O BPS write limit discarded."),
    ("BlkioDeviceReadIOps", "throttle", "IOPS Block read limit or the cgroup is not mounted. Block I/O IOPS read limit discarded."),
    ("BlkioDeviceWriteIOps", "throttle", "IOPS Block write limit or the cgroup is not mounted. Block I/O IOPS write limit discarded."),
)  # fmt: skip


@cache
def available_cpus() -> str:
    """The CPUs a container may be given, in the kernel's list form."""
    mounts = cgroups.mounts()
    for folder, name in ((mounts.get(""), "cpuset.cpus.effective"), (mounts.get("cpuset"), "cpuset.cpus")):
        if folder and (folder / name).exists():
            text = (folder / name).read_text().strip()
            if text:
                return text
    return f"0-{(os.cpu_count() or 1) - 1}" if (os.cpu_count() or 1) > 1 else "0"


@cache
def available_nodes() -> str:
    """The memory nodes a container may be given."""
    mounts = cgroups.mounts()
    for folder, name in ((mounts.get(""), "cpuset.mems.effective"), (mounts.get("cpuset"), "cpuset.mems")):
        if folder and (folder / name).exists():
            text = (folder / name).read_text().strip()
            if text:
                return text
    return "0"


def parse_list(text: str) -> set[int]:
    """The numbers of "0-2,4". Raises ValueError."""
    numbers: set[int] = set()
    if not text:
        return numbers
    for part in text.split(","):
        low, dash, high = part.partition("-")
        first = int(low)
        last = int(high) if dash else first
        if first < 0 or last < first or last > 8191:
            raise ValueError(text)
        numbers.update(range(first, last + 1))
    return numbers


def _features() -> dict[str, bool]:
    mounts = cgroups.mounts()
    if cgroups.unified():
        return {"blkio_weight": True, "weight_device": True, "throttle": True, "swap": True, "oom_disable": False, "swappiness": False}  # fmt: skip
    blkio = mounts.get("blkio")
    memory = mounts.get("memory")
    return {
        "blkio_weight": bool(blkio and any((blkio / name).exists() for name in ("blkio.weight", "blkio.bfq.weight"))),
        "weight_device": bool(
            blkio and any((blkio / name).exists() for name in ("blkio.weight_device", "blkio.bfq.weight_device"))
        ),
        "throttle": bool(blkio and (blkio / "blkio.throttle.read_bps_device").exists()),
        "swap": bool(memory and (memory / "memory.memsw.limit_in_bytes").exists()),
        "oom_disable": bool(memory and (memory / "memory.oom_control").exists()),
        "swappiness": bool(memory and (memory / "memory.swappiness").exists()),
    }


def check_config(config: Json) -> None:
    """Check a container's Config; the working directory is cleaned in place. Raises InvalidParameter."""
    if config["WorkingDir"]:
        if not config["WorkingDir"].startswith("/"):
            raise InvalidParameter(
                f"the working directory '{config['WorkingDir']}' is invalid, it needs to be an absolute path"
            )
        config["WorkingDir"] = posixpath.normpath(config["WorkingDir"])
    if config.get("StopSignal"):
        signals.parse(config["StopSignal"])
    for variable in config["Env"] or []:
        if not variable or variable.startswith("="):
            raise InvalidParameter(f"invalid environment variable: {variable}")
    check_health(config.get("Healthcheck"))


def check_health(health: Json | None) -> None:
    if not health:
        return
    for name in ("Interval", "Timeout", "StartPeriod", "StartInterval"):
        value = health.get(name) or 0
        if value and value < _MIN_DURATION:
            raise InvalidParameter(f"{name} in Healthcheck cannot be less than 1ms")
        if name == "Timeout" and (health.get("Retries") or 0) < 0:
            raise InvalidParameter("Retries in Healthcheck cannot be negative")


def check_restart_policy(policy: Json) -> None:
    """Check a RestartPolicy. Raises InvalidParameter."""
    name, count = policy.get("Name") or "", policy.get("MaximumRetryCount") or 0
    if name in ("always", "unless-stopped", "no"):
        if count != 0:
            text = "invalid restart policy: maximum retry count can only be used with 'on-failure'"
            if count < 0:
                text += " and cannot be negative"
            raise InvalidParameter(text)
    elif name == "on-failure":
        if count < 0:
            raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    elif name == "":
        if count != 0:
            raise InvalidParameter(
                "invalid restart policy: maximum retry count can only be used with 'on-failure'"
                + (" and cannot be negative" if count < 0 else "")
            )
    else:
        raise InvalidParameter(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )


def check_host(host: Json) -> None:
    """The checks common to all platforms. Raises InvalidParameter."""
    policy = host["RestartPolicy"] or {}
    if host["AutoRemove"] and (policy.get("Name") or "no") != "no":
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")
    for mount in host.get("Mounts") or []:
        mountspec.check_mount(mount)
    for entry in host["ExtraHosts"] or []:
        check_extra_host(entry)
    for port, bindings in (host["PortBindings"] or {}).items():
        check_port(port, bindings)
    check_restart_policy(policy)
    for field in ("CapAdd", "CapDrop"):
        try:
            capabilities.normalize(host[field] or [])
        except capabilities.UnknownCapability as error:
            raise InvalidParameter(f"invalid {field}: {error}") from None
    if host["Isolation"].lower() not in ("", "default"):
        raise InvalidParameter(f"invalid isolation ({host['Isolation']}): linux only supports 'default'")
    for key in host.get("Annotations") or {}:
        if key == "":
            raise InvalidParameter("invalid Annotations: the empty string is not permitted as an annotation key")


def check_extra_host(text: str) -> None:
    """Check "name:address" or "name=address". Raises InvalidParameter."""
    name, separator, address = text.partition(":")
    if "=" in text and text.index("=") < (text.index(":") if ":" in text else len(text)):
        name, separator, address = text.partition("=")
    if not separator or not name:
        raise InvalidParameter(f'bad format for add-host: "{text}"')
    if address == "host-gateway":
        return
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise InvalidParameter(f'invalid IP address in add-host: "{address}"') from None


def parse_port_range(text: str) -> tuple[int, int]:
    """ "80" or "80-90" as (first, last). Raises ValueError."""
    low, dash, high = text.partition("-")
    first = int(low)
    last = int(high) if dash else first
    if not (low.isdigit() and (not dash or high.isdigit())) or not 0 <= first <= last <= 65535:
        raise ValueError(text)
    return first, last


def check_port(port: str, bindings: list[Json] | None) -> None:
    number = port.partition("/")[0]
    try:
        first, _ = parse_port_range(number)
    except ValueError:
        raise InvalidParameter(f'invalid port specification: "{number}"') from None
    if first == 0:
        raise InvalidParameter(f'invalid port specification: "{number}"')
    for binding in bindings or []:
        host_port = (binding or {}).get("HostPort") or ""
        if host_port:
            try:
                parse_port_range(host_port)
            except ValueError:
                raise InvalidParameter(f'invalid port specification: "{host_port}"') from None


def check_resources(host: Json, *, update: bool = False) -> list[str]:
    """Check limits; those that this machine cannot keep are taken out with a warning. Raises InvalidParameter."""
    warnings: list[str] = []
    have = _features()
    memory, swap, reservation = host["Memory"], host["MemorySwap"], host["MemoryReservation"]
    if host["MemorySwappiness"] == -1:
        host["MemorySwappiness"] = None
    if memory != 0 and memory < _MIN_MEMORY:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    if memory > 0 and swap != -1 and not have["swap"]:
        warnings.append(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap."
        )
        swap = host["MemorySwap"] = -1
    if memory > 0 and 0 < swap < memory:
        raise InvalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
    if memory == 0 and swap > 0 and not update:
        raise InvalidParameter("You should always set the Memory limit when using Memoryswap limit, see usage")
    if host["MemorySwappiness"] is not None and not have["swappiness"]:
        warnings.append(
            "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded."
        )
        host["MemorySwappiness"] = None
    if host["MemorySwappiness"] is not None and not 0 <= host["MemorySwappiness"] <= 100:
        raise InvalidParameter(f"Invalid value: {host['MemorySwappiness']}, valid memory swappiness range is 0-100")
    if 0 < reservation < _MIN_MEMORY:
        raise InvalidParameter("Minimum memory reservation allowed is 6MB")
    if memory > 0 and 0 < memory < reservation:
        raise InvalidParameter("Minimum memory limit can not be less than memory reservation limit, see usage")
    if host["OomKillDisable"] is not None and not have["oom_disable"]:
        if host["OomKillDisable"]:
            warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        host["OomKillDisable"] = None
    if host["OomKillDisable"] and memory == 0:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources."
        )
    nano, period, quota = host["NanoCpus"], host["CpuPeriod"], host["CpuQuota"]
    if nano > 0 and period > 0:
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if nano > 0 and quota > 0:
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    cpus = len(os.sched_getaffinity(0))
    if nano != 0 and not 0 < nano <= cpus * 1_000_000_000:
        raise InvalidParameter(f"range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available")
    if host["CpuShares"] < 0:
        raise InvalidParameter(f"invalid CPU shares ({host['CpuShares']}): value must be a positive integer")
    if period != 0 and not 1000 <= period <= 1_000_000:
        raise InvalidParameter("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < quota < 1000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if host["CpuPercent"] > 0:
        warnings.append("linux does not support CPU percent. Percent discarded.")
        host["CpuPercent"] = 0
    for field, have_text, what, named in (
        ("CpusetCpus", available_cpus(), "CPUs", "cpuset cpus"),
        ("CpusetMems", available_nodes(), "memory nodes", "cpuset mems"),
    ):
        wanted = host[field]
        try:
            numbers = parse_list(wanted)
        except ValueError:
            raise InvalidParameter(f"Invalid value {wanted} for {named}: failed to parse cpuset {wanted}") from None
        if not numbers <= parse_list(have_text):
            raise InvalidParameter(f"Requested {what} are not available - requested {wanted}, available: {have_text}")
    if host["BlkioWeight"] > 0 and not have["blkio_weight"]:
        warnings.append("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.")
        host["BlkioWeight"] = 0
    if host["BlkioWeight"] > 0 and not 10 <= host["BlkioWeight"] <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    if host["IOMaximumBandwidth"] or host["IOMaximumIOps"]:
        raise InvalidParameter("Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps")
    for field, feature, warning in _BLOCK_LIMITS:
        if host[field] and not have[feature]:
            warnings.append(f"Your kernel does not support {warning}")
            host[field] = []
    return warnings


def _mode(value: str, plain: set[str], joins: bool = True) -> bool:
    if value in plain:
        return True
    return joins and value.startswith("container:") and len(value) > len("container:")


def check_platform(host: Json, runtimes: Mapping[str, str], *, update: bool = False) -> list[str]:
    """The checks of Linux; returns warnings. Raises InvalidParameter."""
    warnings = check_resources(host, update=update)
    if not _mode(host["IpcMode"], {"", "none", "host", "private", "shareable"}):
        raise InvalidParameter(f"invalid IPC mode: {host['IpcMode']}")
    if not _mode(host["PidMode"], {"", "host"}):
        raise InvalidParameter(f"invalid PID mode: {host['PidMode']}")
    if host["ShmSize"] < 0:
        raise InvalidParameter("SHM size can not be less than 0")
    if host["UTSMode"] not in ("", "host"):
        raise InvalidParameter(f"invalid UTS mode: {host['UTSMode']}")
    if not -1000 <= host["OomScoreAdj"] <= 1000:
        raise InvalidParameter(f"Invalid value {host['OomScoreAdj']}, range for oom score adj is [-1000, 1000]")
    if host["NetworkMode"] == "host" and host["PortBindings"]:
        warnings.append("Published ports are discarded when using host network mode")
    if host["Runtime"] not in runtimes:
        raise InvalidParameter(f"unknown or invalid runtime name: {host['Runtime']}")
    for destination in host.get("Tmpfs") or {}:
        mountspec.check_tmpfs(destination)
    if host["CgroupnsMode"] not in ("", "private", "host"):
        raise InvalidParameter(f"invalid cgroup namespace mode: {host['CgroupnsMode']}")
    return warnings


def check_remapped(host: Json) -> None:
    """What a container in a user namespace cannot have. Raises InvalidParameter. Source: moby daemon/daemon_unix.go."""
    if host["UsernsMode"] == "host":
        return
    if host["Privileged"]:
        raise InvalidParameter(
            "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode"
        )
    if host["NetworkMode"] == "host":
        raise InvalidParameter("cannot share the host's network namespace when user namespaces are enabled")
    if host["PidMode"] == "host":
        raise InvalidParameter("cannot share the host PID namespace when user namespaces are enabled")


def check_modes(config: Json, host: Json, *, hostname_given: bool) -> None:
    """Conflicts between a namespace mode and other settings. Raises InvalidParameter."""
    mode = host["NetworkMode"]
    if mode in ("container", "container:"):
        raise InvalidParameter("invalid network mode: invalid container format container:<name|id>")
    shares = mode.startswith("container:")
    if hostname_given and host["UTSMode"] == "host":
        raise InvalidParameter("conflicting options: hostname and the UTS mode")
    if mode == "host" and host["Links"]:
        raise InvalidParameter(
            "conflicting options: host type networking can't be used with links. This would result in undefined behavior"
        )
    if not shares:
        return
    for wrong, what in (
        (hostname_given, "hostname"),
        (bool(host["Links"]), "links"),
        (bool(host["Dns"]), "dns"),
        (bool(host["ExtraHosts"]), "custom host-to-IP mapping"),
    ):
        if wrong:
            if what == "links":
                raise InvalidParameter(
                    "conflicting options: container type network can't be used with links. This would result in undefined behavior"
                )
            raise InvalidParameter(f"conflicting options: {what} and the network mode")
    if config.get("MacAddress"):
        raise InvalidParameter("conflicting options: mac-address and the network mode")
    if host["PortBindings"] or host["PublishAllPorts"]:
        raise InvalidParameter("conflicting options: port publishing and the container type network mode")
    if config.get("ExposedPorts"):
        raise InvalidParameter("conflicting options: port exposing and the container type network mode")


def check_log(host: Json) -> None:
    """Check the log driver and its options. Raises InvalidParameter."""
    driver, options = host["LogConfig"]["Type"], host["LogConfig"]["Config"]
    if driver not in LOG_DRIVERS:
        raise InvalidParameter(f'error looking up logging plugin {driver}: plugin "{driver}" not found')
    try:
        logoptions.check(driver, options)
    except logoptions.OptionError as error:
        raise InvalidParameter(str(error)) from None


def fill_host(host: Json) -> None:
    """dockerd's defaults, in place."""
    for bindings in (host["PortBindings"] or {}).values():
        for number, binding in enumerate(bindings or []):
            bindings[number] = {
                "HostIp": (binding or {}).get("HostIp") or "",
                "HostPort": (binding or {}).get("HostPort") or "",
            }
    if host["Memory"] > 0 and host["MemorySwap"] == 0:
        host["MemorySwap"] = host["Memory"] * 2
    host["ShmSize"] = host["ShmSize"] or 64 * 1024 * 1024
    host["IpcMode"] = host["IpcMode"] or "private"
    if not host["CgroupnsMode"]:
        host["CgroupnsMode"] = "private" if cgroups.unified() else "host"
    host["Runtime"] = host["Runtime"] or "runc"
    if host["OomKillDisable"] is None and _features()["oom_disable"]:
        host["OomKillDisable"] = False
    policy = host["RestartPolicy"] or {}
    host["RestartPolicy"] = {
        "Name": policy.get("Name") or "no",
        "MaximumRetryCount": policy.get("MaximumRetryCount") or 0,
    }
    log = host["LogConfig"] or {}
    host["LogConfig"] = {"Type": log.get("Type") or "json-file", "Config": log.get("Config") or {}}
    host["ConsoleSize"] = host["ConsoleSize"] or [0, 0]
    if host["MaskedPaths"] is None and not host["Privileged"]:
        host["MaskedPaths"] = list(MASKED_PATHS)
    if host["ReadonlyPaths"] is None and not host["Privileged"]:
        host["ReadonlyPaths"] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def parse_security_options(options: list[str] | None, *, no_new_privileges: bool = False) -> Json:
    """--security-opt as {"no_new_privileges", "seccomp", "apparmor", "writable_cgroups"}; no_new_privileges: what holds
    where the options do not say. Raises SystemFailure."""
    result: Json = {"no_new_privileges": no_new_privileges, "seccomp": "", "apparmor": ""}
    for option in options or []:
        if option == "no-new-privileges":
            result["no_new_privileges"] = True
            continue
        if option == "writable-cgroups":
            result["writable_cgroups"] = True
            continue
        if option == "disable":
            continue
        name, separator, value = option.partition("=")
        if not separator:
            name, separator, value = option.partition(":")
        if not separator:
            raise SystemFailure(f'invalid --security-opt 1: "{option}"')
        if name == "label":
            continue
        if name == "apparmor":
            result["apparmor"] = value
        elif name == "seccomp":
            result["seccomp"] = value
        elif name == "no-new-privileges":
            result["no_new_privileges"] = _truth(option, value)
        elif name == "writable-cgroups":
            result["writable_cgroups"] = _truth(option, value)
        else:
            raise SystemFailure(f'invalid --security-opt 2: "{option}"')
    return result


def _truth(option: str, value: str) -> bool:
    if value not in network_model.TRUE + network_model.FALSE:
        raise SystemFailure(f'invalid --security-opt 2: "{option}"')
    return value in network_model.TRUE


def check_storage_options(options: Json | None) -> None:
    """Nothing of StorageOpt can be kept on overlay without quotas. Raises SystemFailure."""
    for name in options or {}:
        if name.lower() != "size":
            raise SystemFailure(f"Unknown option {name}")
        raise SystemFailure("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")


def merge_image_config(config: Json, image: Json) -> None:
    """Fill a container's Config with what its image says, in place. Source: Docker's documented precedence."""
    config["User"] = config["User"] or image.get("User") or ""
    ports = image.get("ExposedPorts") or {}
    if ports:
        config["ExposedPorts"] = {**ports, **(config.get("ExposedPorts") or {})}
    environment = list(config["Env"] or [])
    names = {entry.split("=", 1)[0] for entry in environment}
    environment += [entry for entry in image.get("Env") or [] if entry.split("=", 1)[0] not in names]
    config["Env"] = environment if environment or config["Env"] is not None or image.get("Env") else None
    config["Labels"] = {**(image.get("Labels") or {}), **(config["Labels"] or {})}
    if not config["Entrypoint"]:
        if not config["Cmd"]:
            config["Cmd"] = image.get("Cmd")
        if config["Entrypoint"] is None:
            config["Entrypoint"] = image.get("Entrypoint")
    mine, theirs = config.get("Healthcheck"), image.get("Healthcheck")
    if theirs:
        if not mine:
            config["Healthcheck"] = dict(theirs)
        else:
            if not mine.get("Test"):
                mine["Test"] = theirs.get("Test")
            for name in ("Interval", "Timeout", "StartPeriod", "StartInterval", "Retries"):
                mine[name] = mine.get(name) or theirs.get(name) or 0
    config["WorkingDir"] = config["WorkingDir"] or image.get("WorkingDir") or ""
    volumes = image.get("Volumes") or {}
    if volumes:
        config["Volumes"] = {**volumes, **(config["Volumes"] or {})}
    if not config.get("StopSignal") and image.get("StopSignal"):
        config["StopSignal"] = image["StopSignal"]
    if not config.get("Shell") and image.get("Shell"):
        config["Shell"] = image["Shell"]
