"""What a create request means at the API version that it was sent to: newer settings ignored, refused or moved.

Source: moby's api/server/router/container/container_routes.go; the texts are dockerd's.
"""

from __future__ import annotations

from typing import Any

from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.networks.plugging import SYSCTLS
from longshore.engine.runtime import cgroups

Json = dict[str, Any]
Version = tuple[int, int]

# Where the container-wide VolumeDriver does not reach.
_VOLUME_DRIVER = (
    "WARNING: the container-wide volume-driver configuration is ignored for volumes specified via 'mount'. "
    "Use '--mount type=volume,volume-driver=...' instead"
)
_MAC_ADDRESS = (
    "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."
)


def adapt(config: Json, host: Json, wanted: Json, version: Version) -> list[str]:
    """Change a create request in place into one of the newest version; returns warnings.

    config, host: every field (CONFIG_FIELDS, HOST_FIELDS). wanted: endpoint settings by network. Raises InvalidParameter,
    SystemFailure.
    """
    for name, settings in wanted.items():
        wanted[name] = dict(settings or {})
    if version < (1, 25):
        host["AutoRemove"] = False  # such a client removes the container itself
    if version < (1, 40):
        host.pop("KernelMemoryTCP", None)
        host["IpcMode"] = host["IpcMode"] or "shareable"
    if version < (1, 41) and not cgroups.unified():
        host["CgroupnsMode"] = host["CgroupnsMode"] or "host"
    if version < (1, 42):
        host["ConsoleSize"] = None
    if version < (1, 43):
        host.pop("Annotations", None)
    if version < (1, 44) and config.get("Healthcheck"):
        config["Healthcheck"].pop("StartInterval", None)
    _adapt_mounts(host.get("Mounts") or [], version)
    if version < (1, 44) and len(wanted) > 1:
        raise InvalidParameter(
            f"Container cannot be created with multiple network endpoints: {', '.join(sorted(wanted))}"
        )
    if version < (1, 48):
        for settings in wanted.values():
            settings.pop("GwPriority", None)
    if host["PidsLimit"] is not None and host["PidsLimit"] <= 0:
        host["PidsLimit"] = None
    found = (
        _check_volume_driver(host, version),
        _move_mac_address(config, host, wanted, version),
        _move_sysctls(host, wanted, version),
    )
    return [warning for warning in found if warning]


def _adapt_mounts(mounts: list[Json], version: Version) -> None:
    for mount in mounts:
        kind, bind = mount.get("Type") or "", mount.get("BindOptions")
        if version < (1, 42):
            for field, owner in (("VolumeOptions", "volume"), ("TmpfsOptions", "tmpfs")):
                if kind != owner:
                    mount.pop(field, None)
        if bind:
            if version < (1, 40):
                bind.pop("NonRecursive", None)
            if version < (1, 42):
                bind.pop("CreateMountpoint", None)
            if version < (1, 44) and kind == "bind" and bind.get("ReadOnlyForceRecursive"):
                raise InvalidParameter("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
        if version < (1, 45) and (mount.get("VolumeOptions") or {}).get("Subpath"):
            raise InvalidParameter("VolumeOptions.Subpath needs API v1.45 or newer")
        if version < (1, 48) and kind == "image":
            raise InvalidParameter('Mount type "Image" needs API v1.48 or newer')


def _check_volume_driver(host: Json, version: Version) -> str:
    if not host["VolumeDriver"] or version < (1, 48):
        return ""
    for mount in host.get("Mounts") or []:
        driver = (mount.get("VolumeOptions") or {}).get("DriverConfig") or {}
        if mount.get("Type") == "volume" and not driver.get("Name"):
            return _VOLUME_DRIVER
    return ""


def _bridged(mode: str) -> bool:
    return mode not in ("host", "none") and not mode.startswith("container:")


def _main_endpoint(mode: str, wanted: Json, version: Version) -> Json | None:
    """The settings, made where there are none, of the network that the network mode names; None: they cannot be told."""
    if not wanted:
        wanted[mode] = {}
    elif version < (1, 44):
        mode = next(iter(wanted))
    found: Json | None = wanted.get(mode)
    return found


_UNKNOWN_ENDPOINT = "HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks"


def _move_mac_address(config: Json, host: Json, wanted: Json, version: Version) -> str:
    """The container's own MacAddress was the way up to 1.43; then it is that of the main network's endpoint."""
    mac, mode = config.get("MacAddress") or "", host["NetworkMode"]
    if not mac:
        if version < (1, 44):
            for settings in wanted.values():
                settings.pop("MacAddress", None)
        return ""
    if version < (1, 44) and not _bridged(mode):
        raise InvalidParameter("conflicting options: mac-address and the network mode")
    if _bridged(mode):
        settings = _main_endpoint(mode, wanted, version)
        if settings is None:
            raise InvalidParameter(
                f"unable to migrate container-wide MAC address to a specific network: {_UNKNOWN_ENDPOINT}"
            )
        if version >= (1, 44) and settings.get("MacAddress") not in (None, "", mac):
            raise InvalidParameter(
                "the container-wide MAC address must match the endpoint-specific MAC address for the main network, "
                "or be left empty"
            )
        settings["MacAddress"] = mac
    config.pop("MacAddress")
    return "" if version < (1, 44) else _MAC_ADDRESS


def _move_sysctls(host: Json, wanted: Json, version: Version) -> str:
    """Sysctls of an interface cannot be set before there is one: those of eth0 go to the main network's endpoint."""
    mode, sysctls = host["NetworkMode"], host.get("Sysctls") or {}
    if mode == "host" or mode.startswith("container:"):
        return ""
    moved: dict[str, str] = {}
    for name, value in sysctls.items():
        parts = name.split(".", 4)
        if len(parts) != 5 or parts[0] != "net" or not parts[3].startswith("eth"):
            continue
        if version > (1, 47):
            raise SystemFailure(
                f"interface specific sysctl setting \"{name}\" must be supplied using driver option '{SYSCTLS}'"
            )
        if parts[3] != "eth0":
            raise SystemFailure(
                f"unable to determine network endpoint for sysctl {name}, use driver option '{SYSCTLS}' "
                "to set per-interface sysctls"
            )
        moved[name] = f"net.{parts[1]}.{parts[2]}.IFNAME.{parts[4]}={value}"
    if not moved:
        return ""
    settings = _main_endpoint(mode, wanted, version)
    if settings is None:
        raise SystemFailure(f"unable to find a network for sysctl {next(iter(moved))}: {_UNKNOWN_ENDPOINT}")
    text = ",".join(moved.values())
    options = dict(settings.get("DriverOpts") or {})
    options[SYSCTLS] = f"{text},{options[SYSCTLS]}" if SYSCTLS in options else text
    settings["DriverOpts"] = options
    host["Sysctls"] = {name: value for name, value in sysctls.items() if name not in moved}
    if not host["Sysctls"]:
        del host["Sysctls"]
    return f'Migrated sysctl "{",".join(moved)}" to DriverOpts{{"{SYSCTLS}":"{text}"}}.'
