"""OCI runtime configuration (config.json) with Docker's defaults, and small functions that change one aspect each.

Source: OCI runtime specification 1.x, config.md and config-linux.md; Docker's documented defaults.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from . import capabilities, seccomp

Spec = dict[str, Any]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

# Character devices every container may use: null, zero, full, random, urandom, tty, console, ptmx and its ptys.
_ALLOWED_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None))


class UnsafeRoot(ValueError):
    """A root that would lead the runtime out of it."""


def check_root(spec: Spec) -> None:
    """Raises UnsafeRoot when what is mounted first lies on a symbolic link.

    runc makes /dev/fd and its like by name from outside, before the root is the process's own: with /dev as a link they
    would be made in a folder of the host.
    """
    root = spec["root"]["path"]
    for mount in spec["mounts"]:
        if mount["destination"] in ("/dev", "/proc", "/sys") and os.path.islink(root + mount["destination"]):
            raise UnsafeRoot(
                f'error mounting "{mount["source"]}" to rootfs at "{mount["destination"]}": '
                f'filesystem "{mount.get("type") or "bind"}" must be mounted on ordinary directory'
            )


@cache
def masked_paths() -> tuple[str, ...]:
    """What a container must not read under /proc and /sys."""
    paths = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
    paths += sorted(str(p) for p in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle"))
    return tuple(paths)


def default_mounts() -> list[dict[str, Any]]:
    """proc, dev, devpts, sysfs, cgroup, mqueue and shm, in this order."""

    def mount(destination: str, kind: str, source: str, options: str) -> dict[str, Any]:
        return {"destination": destination, "type": kind, "source": source, "options": options.split(",")}

    return [
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro,nosuid,noexec,nodev"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=67108864"),
    ]


def default_spec(
    *,
    rootfs: Path,
    args: Sequence[str],
    env: Sequence[str] = (),
    cwd: str = "/",
    hostname: str = "",
    terminal: bool = False,
    readonly: bool = False,
) -> Spec:
    """A container as `docker run` without options makes it: new mount, network, uts, pid and ipc namespaces
    (and cgroup namespace on unified cgroups), 14 capabilities, default seccomp profile, masked paths.

    rootfs: absolute folder of the mounted root. Change what differs with the functions below.
    """
    caps = [name for name in capabilities.DEFAULT if name in capabilities.available()]
    devices: list[dict[str, Any]] = [
        {"allow": False, "access": "rwm"},
        # mknod of any device is allowed, opening it is not.
        {"allow": True, "type": "c", "access": "m"},
        {"allow": True, "type": "b", "access": "m"},
    ]
    for major, minor in _ALLOWED_DEVICES:
        rule: dict[str, Any] = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        if minor is not None:
            rule["minor"] = minor
        devices.append(rule)
    spec: Spec = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": list(env),
            "cwd": cwd or "/",
            "capabilities": {},
        },
        "root": {"path": str(rootfs), "readonly": readonly},
        "hostname": hostname,
        "mounts": default_mounts(),
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc")],
            "resources": {"devices": devices},
            "devices": [],
            "maskedPaths": list(masked_paths()),
            "readonlyPaths": list(READONLY_PATHS),
        },
    }
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        spec["linux"]["namespaces"].append({"type": "cgroup"})
    set_capabilities(spec, caps)
    spec["linux"]["seccomp"] = seccomp.default_profile(caps)
    return spec


def set_capabilities(spec: Spec, names: Sequence[str], *, ambient: Sequence[str] = ()) -> None:
    """Bounding, permitted and effective sets; the inheritable set stays empty unless ambient ones are asked for."""
    caps: dict[str, list[str]] = {"bounding": list(names), "effective": list(names), "permitted": list(names)}
    if ambient:
        caps["inheritable"] = list(ambient)
        caps["ambient"] = list(ambient)
    spec["process"]["capabilities"] = caps


def set_user(spec: Spec, uid: int, gid: int, groups: Iterable[int] = ()) -> None:
    """Numeric ids of the process; groups: supplementary ones."""
    user: dict[str, Any] = {"uid": uid, "gid": gid}
    extra = sorted(set(groups))
    if extra:
        user["additionalGids"] = extra
    spec["process"]["user"] = user


def set_namespace(spec: Spec, kind: str, path: str | Path | None = None, *, host: bool = False) -> None:
    """Choose a namespace ("network", "pid", "ipc", "uts", "mount", "user", "cgroup"): a new one, the one at `path`, or the host's."""
    spaces = [n for n in spec["linux"]["namespaces"] if n["type"] != kind]
    if not host:
        spaces.append({"type": kind, "path": str(path)} if path else {"type": kind})
    spec["linux"]["namespaces"] = spaces


def namespace(spec: Spec, kind: str) -> dict[str, Any] | None:
    """The entry of a namespace; None: the host's."""
    return next((n for n in spec["linux"]["namespaces"] if n["type"] == kind), None)


def add_mount(
    spec: Spec, source: str | Path, destination: str, options: Iterable[str] = (), kind: str = "bind"
) -> None:
    """Add a mount, in the place of one at the same destination. For a bind give "bind" or "rbind" among the options."""
    spec["mounts"] = [m for m in spec["mounts"] if m["destination"] != destination]
    spec["mounts"].append({"destination": destination, "type": kind, "source": str(source), "options": list(options)})


def sort_mounts(spec: Spec) -> None:
    """Order mounts so that none hides another: parents before children, otherwise as they came."""
    spec["mounts"].sort(key=lambda m: len([part for part in m["destination"].split("/") if part]))


def device(
    path_on_host: str | Path, path_in_container: str = "", access: str = "rwm"
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The (device node, cgroup rule) pairs for a host device, or for every device in a host folder.

    Raises OSError when the path is missing, ValueError when it is neither a device nor a folder of devices.
    """
    host = Path(path_on_host).resolve()
    inside = path_in_container or str(path_on_host)
    info = os.stat(host)
    if stat.S_ISDIR(info.st_mode):
        pairs = []
        for child in sorted(host.rglob("*")):
            mode = child.lstat().st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                pairs += device(child, os.path.join(inside, str(child.relative_to(host))), access)
        if not pairs:
            raise ValueError("not a device node")
        return pairs
    if not (stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        raise ValueError("not a device node")
    kind = "c" if stat.S_ISCHR(info.st_mode) else "b"
    major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
    node = {
        "path": inside,
        "type": kind,
        "major": major,
        "minor": minor,
        "fileMode": stat.S_IMODE(info.st_mode),
        "uid": info.st_uid,
        "gid": info.st_gid,
    }
    return [(node, {"allow": True, "type": kind, "major": major, "minor": minor, "access": access})]


def host_devices() -> list[dict[str, Any]]:
    """Every device node under /dev, as a privileged container gets them (ptys, shm, mqueue and console left out)."""
    nodes: list[dict[str, Any]] = []
    for folder, names, files in os.walk("/dev"):
        if folder == "/dev":
            names[:] = [n for n in names if n not in ("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev")]
        for name in files:
            path = os.path.join(folder, name)
            if name == "console":
                continue
            try:
                info = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
                nodes += [node for node, _ in device(path)]
    return nodes


def make_privileged(spec: Spec) -> None:
    """All capabilities that this machine can give, all devices, no seccomp, nothing masked, /sys and cgroups writable."""
    caps = list(capabilities.available())
    set_capabilities(spec, caps)
    linux = spec["linux"]
    linux.pop("seccomp", None)
    linux["maskedPaths"] = []
    linux["readonlyPaths"] = []
    linux["devices"] = host_devices()
    linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    for mount in spec["mounts"]:
        if mount["type"] in ("sysfs", "cgroup"):
            mount["options"] = [o for o in mount["options"] if o != "ro"]
