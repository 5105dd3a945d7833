"""A container's settings as an OCI configuration. Source: Docker Engine API, HostConfig; OCI runtime specification."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure
from longshore.engine.runtime import capabilities, seccomp
from longshore.engine.runtime import spec as oci
from longshore.engine.runtime.users import UnknownUser, User, resolve_user
from longshore.machinery.users import Owners

from . import mountspec
from .model import Container
from .namespaces import locked_options

Json = dict[str, Any]
INIT_PATH = "/sbin/docker-init"
_DEVICE_RULE = re.compile(r"^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$")


def environment(container: Container, linked: Sequence[str] = ()) -> list[str]:
    """PATH, HOSTNAME, TERM and what links tell under what the configuration says; a name without a value takes the
    variable away."""
    config = container.config
    base = {"PATH": f"PATH={oci.DEFAULT_PATH}", "HOSTNAME": f"HOSTNAME={config['Hostname']}"}
    if config["Tty"]:
        base["TERM"] = "TERM=xterm"
    for entry in linked:
        base[entry.partition("=")[0]] = entry
    for entry in config["Env"] or []:
        name, equals, _ = entry.partition("=")
        if equals:
            base[name] = entry
        else:
            base.pop(name, None)
    return list(base.values())


def cgroup_path(container: Container, parent: str) -> str:
    chosen = container.host["CgroupParent"] or parent
    return f"{chosen if chosen.startswith('/') else '/' + chosen}/{container.id}"


def resources(host: Json, *, devices: list[Json] | None = None) -> Json:
    """linux.resources of the limits in a HostConfig."""
    result: Json = {}
    if devices is not None:
        result["devices"] = devices
    memory: Json = {}
    if host["Memory"] > 0:
        memory["limit"] = host["Memory"]
    if host["MemoryReservation"] > 0:
        memory["reservation"] = host["MemoryReservation"]
    if host["MemorySwap"]:
        memory["swap"] = host["MemorySwap"]
    if host["MemorySwappiness"] is not None:
        memory["swappiness"] = host["MemorySwappiness"]
    if host["OomKillDisable"]:
        memory["disableOOMKiller"] = True
    if memory:
        result["memory"] = memory
    cpu: Json = {}
    if host["CpuShares"]:
        cpu["shares"] = host["CpuShares"]
    if host["NanoCpus"] > 0:
        cpu["period"] = 100_000
        cpu["quota"] = host["NanoCpus"] * 100_000 // 1_000_000_000
    if host["CpuPeriod"]:
        cpu["period"] = host["CpuPeriod"]
    if host["CpuQuota"]:
        cpu["quota"] = host["CpuQuota"]
    if host["CpusetCpus"]:
        cpu["cpus"] = host["CpusetCpus"]
    if host["CpusetMems"]:
        cpu["mems"] = host["CpusetMems"]
    if host["CpuRealtimePeriod"]:
        cpu["realtimePeriod"] = host["CpuRealtimePeriod"]
    if host["CpuRealtimeRuntime"]:
        cpu["realtimeRuntime"] = host["CpuRealtimeRuntime"]
    if cpu:
        result["cpu"] = cpu
    if host["PidsLimit"] is not None:
        result["pids"] = {"limit": host["PidsLimit"] if host["PidsLimit"] > 0 else -1}
    block: Json = {}
    if host["BlkioWeight"]:
        block["weight"] = host["BlkioWeight"]
    for field, name, what, limit in _BLOCK_LIMITS:
        entries = [{**_block_device(entry), limit: entry.get(what) or 0} for entry in host[field] or []]
        if entries:
            block[name] = entries
    if block:
        result["blockIO"] = block
    return result


_BLOCK_LIMITS = (
    ("BlkioWeightDevice", "weightDevice", "Weight", "weight"),
    ("BlkioDeviceReadBps", "throttleReadBpsDevice", "Rate", "rate"),
    ("BlkioDeviceWriteBps", "throttleWriteBpsDevice", "Rate", "rate"),
    ("BlkioDeviceReadIOps", "throttleReadIOPSDevice", "Rate", "rate"),
    ("BlkioDeviceWriteIOps", "throttleWriteIOPSDevice", "Rate", "rate"),
)


def _block_device(entry: Json) -> Json:
    """The numbers of the device that a limit is for. Raises SystemFailure."""
    path = entry.get("Path") or ""
    try:
        number = os.stat(path).st_rdev
    except OSError as error:
        raise SystemFailure(f"stat {path}: {(error.strerror or '').lower()}") from None
    return {"major": os.major(number), "minor": os.minor(number)}


def _devices(container: Container, spec: oci.Spec) -> None:
    host = container.host
    linux = spec["linux"]
    rules = linux["resources"]["devices"]
    for device in host["Devices"] or []:
        outside = device.get("PathOnHost") or ""
        try:
            pairs = oci.device(
                outside, device.get("PathInContainer") or outside, device.get("CgroupPermissions") or "rwm"
            )
        except OSError as error:
            raise SystemFailure(
                f'error gathering device information while adding custom device "{outside}": {(error.strerror or "").lower()}'
            ) from None
        except ValueError:
            raise SystemFailure(
                f'error gathering device information while adding custom device "{outside}": not a device node'
            ) from None
        for node, rule in pairs:
            linux["devices"] = [d for d in linux["devices"] if d["path"] != node["path"]] + [node]
            if not host["Privileged"]:
                rule["access"] = "".join(c for c in rule["access"] if c in "rwm") or "rwm"
                rules.append(rule)
    for text in host["DeviceCgroupRules"] or []:
        match = _DEVICE_RULE.match(text)
        if match is None:
            raise SystemFailure(f"invalid device cgroup rule format: '{text}'")
        rule = {"allow": True, "type": match[1], "access": match[4]}
        if match[2] != "*":
            rule["major"] = int(match[2])
        if match[3] != "*":
            rule["minor"] = int(match[3])
        rules.append(rule)


def _request_devices(container: Container, spec: oci.Spec, folders: Sequence[str] | None) -> None:
    """Give the devices that a driver knows. Source: moby daemon/devices.go, cdi.go. Raises SystemFailure."""
    for request in container.host["DeviceRequests"] or []:
        driver = request.get("Driver") or ""
        if driver != "cdi" or folders is None:
            names = request.get("Capabilities") or []
            shown = "[" + " ".join("[" + " ".join(group) + "]" for group in names) + "]"
            raise SystemFailure(f'could not select device driver "{driver}" with capabilities: {shown}')
        if not folders:
            raise SystemFailure("CDI device injection failed: no CDI specification directories specified")
        for member, what in (("Count", "count"), ("Options", "options")):
            if request.get(member):
                raise SystemFailure(f"unexpected {what} in CDI device request")
        from longshore.engine import cdi

        try:
            cdi.inject(spec, request.get("DeviceIDs") or [], [Path(folder) for folder in folders])
        except cdi.CdiError as error:
            raise SystemFailure(str(error)) from None
        oci.sort_mounts(spec)


def _rlimits(container: Container, spec: oci.Spec) -> None:
    limits = [
        {"type": f"RLIMIT_{u['Name'].upper()}", "soft": u.get("Soft") or 0, "hard": u.get("Hard") or 0}
        for u in container.host["Ulimits"] or []
    ]
    if limits:
        spec["process"]["rlimits"] = [{**x, "soft": x["soft"] % 2**64, "hard": x["hard"] % 2**64} for x in limits]


def user_of(container: Container, root: Path, user: str, groups: list[str] | None = None) -> User:
    """Resolve a user in the container. Raises SystemFailure with dockerd's text."""
    try:
        return resolve_user(root, user, groups or ())
    except UnknownUser as error:
        raise SystemFailure(str(error)) from None


def namespace_of(find: Callable[[str], Container], mode: str) -> Container:
    """The container that a mode "container:X" names. Raises as `find`."""
    return find(mode.partition(":")[2])


def build(
    container: Container,
    *,
    root: Path,
    merged: Path,
    sandbox: Path | None,
    users: Owners | None = None,
    mounts: list[Json],
    files: dict[str, Path],
    shm: Path | None,
    find: Callable[[str], Container],
    cgroup_parent: str,
    init_program: str = "",
    profile: str = "",
    linked: Sequence[str] = (),
    cdi_folders: Sequence[str] | None = (),
) -> oci.Spec:
    """The whole OCI configuration.

    root: the mounted root file system, as seen by the engine; merged: as the runtime is to find it. sandbox: its network
    namespace (None: the host's). users: the user namespace to join (None: the host's). mounts: ready OCI mounts for volumes, binds and tmpfs. files: path inside to the engine's file for hosts, hostname and resolv.conf.
    shm: a folder for /dev/shm that others may share. profile: the seccomp profile of containers that name none.
    linked: variables of links. cdi_folders: of CDI specifications; None: no such devices are given. Raises EngineError classes with dockerd's texts.
    """
    config, host = container.config, container.host
    args = [container.path, *container.args]
    spec = oci.default_spec(
        rootfs=merged,
        args=args,
        env=environment(container, linked),
        cwd=config["WorkingDir"] or "/",
        hostname=config["Hostname"],
        terminal=config["Tty"],
        readonly=host["ReadonlyRootfs"],
    )
    linux, process = spec["linux"], spec["process"]
    if config["Tty"] and any(host["ConsoleSize"]):
        process["consoleSize"] = {"height": host["ConsoleSize"][0], "width": host["ConsoleSize"][1]}
    # Devices first: they can be missing; then limits.
    privileged = host["Privileged"]
    if privileged:
        oci.make_privileged(spec)
        names = list(capabilities.available())
    else:
        try:
            names = capabilities.tweak(capabilities.DEFAULT, host["CapAdd"] or [], host["CapDrop"] or [])
        except capabilities.UnknownCapability as error:
            raise InvalidParameter(str(error)) from None
        oci.set_capabilities(spec, names)
    _devices(container, spec)
    rules = linux["resources"]["devices"]
    linux["resources"] = resources(host, devices=rules)
    _rlimits(container, spec)
    if host["OomScoreAdj"]:
        process["oomScoreAdj"] = host["OomScoreAdj"]
    user = user_of(container, root, config["User"], host["GroupAdd"])
    oci.set_user(spec, user.uid, user.gid, (user.gid, *user.groups))
    if not any(e.startswith("HOME=") for e in process["env"]):
        process["env"].append(f"HOME={user.home}")
    security = container.security_options
    process["noNewPrivileges"] = bool(security.get("no_new_privileges"))
    _seccomp(spec, privileged, security.get("seccomp") or "", names, profile)
    _namespaces(container, spec, sandbox, find)
    linux["sysctl"] = {**_sysctls(container, mapped=users is not None), **(host.get("Sysctls") or {})}
    if not privileged:
        linux["maskedPaths"] = host["MaskedPaths"] or []
        linux["readonlyPaths"] = host["ReadonlyPaths"] or []
    linux["cgroupsPath"] = cgroup_path(container, cgroup_parent)
    if host.get("Annotations"):
        spec["annotations"] = dict(host["Annotations"])
    _mounts(container, spec, mounts, files, shm)
    _request_devices(container, spec, cdi_folders)
    if users is not None:
        join_users(spec, users, asked="writable_cgroups" in security)
    if host.get("Init") and init_program:
        oci.add_mount(spec, init_program, INIT_PATH, ["bind", "ro"])
        process["args"] = [INIT_PATH, "--", *args]
    if oci.namespace(spec, "uts") is None:
        spec.pop("hostname", None)
    return spec


def join_users(spec: oci.Spec, owners: Owners, *, asked: bool) -> None:
    """Join a user namespace, whose root cannot change what is locked on the host's mounts. Raises SystemFailure.

    asked: writable or read-only control groups were asked for. Source: moby daemon/oci_linux.go.
    """
    if asked:
        raise SystemFailure("option WritableCgroups conflicts with user namespaces and rootless mode")
    oci.set_namespace(spec, "user", owners.namespace)
    for member, mappings in (("uidMappings", owners.uids), ("gidMappings", owners.gids)):
        spec["linux"][member] = [{"containerID": i, "hostID": h, "size": n} for i, h, n in mappings]
    for mount in spec["mounts"]:
        if mount["type"] == "cgroup":
            mount["options"] = [option for option in mount["options"] if option != "ro"]
        elif {"bind", "rbind"} & set(mount["options"]):
            locked = locked_options(mount["source"])
            mount["options"] += [option for option in locked if option not in mount["options"]]


def _sysctls(container: Container, *, mapped: bool) -> dict[str, str]:
    """What needs no capability in a network namespace of the container's own; the NIS domain name.

    mapped: in a user namespace, where groups that are not mapped cannot be named.
    """
    mode, chosen = container.network_mode, {}
    if mode != "host" and not mode.startswith("container:"):
        for name, value in (("ping_group_range", "0 2147483647"), ("ip_unprivileged_port_start", "0")):
            if (name != "ping_group_range" or not mapped) and os.path.exists(f"/proc/sys/net/ipv4/{name}"):
                chosen[f"net.ipv4.{name}"] = value
    if container.config["Domainname"] and container.host["UTSMode"] != "host":
        chosen["kernel.domainname"] = container.config["Domainname"]
    return chosen


def _seccomp(spec: oci.Spec, privileged: bool, chosen: str, names: list[str], otherwise: str) -> None:
    if chosen == "unconfined" or (privileged and not chosen):
        spec["linux"].pop("seccomp", None)
        return
    chosen = chosen or otherwise
    if chosen == "unconfined":
        spec["linux"].pop("seccomp", None)
    elif chosen in ("", "builtin"):
        spec["linux"]["seccomp"] = seccomp.default_profile(names)
    else:
        try:
            profile = seccomp.load_profile(chosen, names)
        except seccomp.BadProfile as error:
            raise SystemFailure(str(error)) from None
        spec["linux"].pop("seccomp", None)
        if profile is not None:
            spec["linux"]["seccomp"] = profile


def _namespaces(container: Container, spec: oci.Spec, sandbox: Path | None, find: Callable[[str], Container]) -> None:
    host = container.host

    def joined(mode: str, kind: str, what: str) -> str:
        prefix = f"failed to join {what} namespace: "
        try:
            other = namespace_of(find, mode)
        except EngineError as error:
            raise SystemFailure(prefix + error.message) from None
        if not other.state.running or not other.state.pid:
            raise SystemFailure(f"{prefix}container {other.id} is not running")
        if kind == "ipc" and other.host["IpcMode"] not in ("shareable", "host"):
            raise SystemFailure(
                f"{prefix}container {other.id}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)"
            )
        return f"/proc/{other.state.pid}/ns/{kind}"

    if sandbox is None:
        oci.set_namespace(spec, "network", host=True)
    else:
        oci.set_namespace(spec, "network", sandbox)
    if host["PidMode"] == "host":
        oci.set_namespace(spec, "pid", host=True)
    elif host["PidMode"].startswith("container:"):
        oci.set_namespace(spec, "pid", joined(host["PidMode"], "pid", "PID"))
    if host["IpcMode"] == "host":
        oci.set_namespace(spec, "ipc", host=True)
    elif host["IpcMode"].startswith("container:"):
        oci.set_namespace(spec, "ipc", joined(host["IpcMode"], "ipc", "IPC"))
    if host["UTSMode"] == "host":
        oci.set_namespace(spec, "uts", host=True)
    if host["CgroupnsMode"] == "private":
        oci.set_namespace(spec, "cgroup")
    else:
        oci.set_namespace(spec, "cgroup", host=True)


def _mounts(container: Container, spec: oci.Spec, mounts: list[Json], files: dict[str, Path], shm: Path | None) -> None:
    host = container.host
    if host["IpcMode"] == "none":
        spec["mounts"] = [m for m in spec["mounts"] if m["destination"] != "/dev/shm"]
    elif host["IpcMode"] == "host":
        oci.add_mount(spec, "/dev/shm", "/dev/shm", ["rbind", "rprivate"])
    elif shm is not None:
        oci.add_mount(spec, shm, "/dev/shm", ["rbind", "rprivate"])
    else:
        size = f"size={host['ShmSize']}"
        for mount in spec["mounts"]:
            if mount["destination"] == "/dev/shm":
                mount["options"] = [o for o in mount["options"] if not o.startswith("size=")] + [size]
    writable = container.security_options.get("writable_cgroups", host["Privileged"])
    for mount in spec["mounts"]:
        if mount["type"] == "cgroup":
            others = [option for option in mount["options"] if option != "ro"]
            mount["options"] = others if writable else ["ro", *others]
    for destination, options in (host.get("Tmpfs") or {}).items():
        try:
            words = mountspec.tmpfs_data(options or "")
        except ValueError as error:
            raise SystemFailure(str(error)) from None
        spec["mounts"] = [m for m in spec["mounts"] if m["destination"] != posixpath.normpath(destination)]
        oci.add_mount(spec, "tmpfs", destination, words, "tmpfs")
    taken = {posixpath.normpath(m["destination"]) for m in mounts}
    # A /dev of the user's own brings what is below it.
    covered = ("/dev/",) if "/dev" in taken else ()
    spec["mounts"] = [
        m
        for m in spec["mounts"]
        if posixpath.normpath(m["destination"]) not in taken and not m["destination"].startswith(covered or "//")
    ]
    for inside, file in files.items():
        if inside not in taken:
            oci.add_mount(spec, file, inside, ["rbind", "rprivate", *(["ro"] if host["ReadonlyRootfs"] else [])])
    spec["mounts"] += mounts
    # A mount gets events only where the root it was made in gets them. Source: moby daemon/oci_linux.go.
    asked = {option for mount in mounts for option in mount["options"]}
    if asked & {"shared", "rshared"}:
        spec["linux"]["rootfsPropagation"] = "shared"
    elif asked & {"slave", "rslave"}:
        spec["linux"]["rootfsPropagation"] = "rslave"
    oci.sort_mounts(spec)
    # A read-only root with read-only devices still needs the console.
    if host["ReadonlyRootfs"]:
        for mount in spec["mounts"]:
            if mount["destination"] == "/dev/shm" and mount["type"] == "tmpfs":
                mount["options"] = [o for o in mount["options"] if o != "ro"]


def exec_process(
    container: Container,
    base: oci.Spec,
    *,
    args: list[str],
    env: list[str],
    cwd: str,
    user: User | None,
    privileged: bool,
    tty: bool,
    console: tuple[int, int] | None,
) -> Json:
    """The OCI process of an exec in a running container; base: the container's configuration."""
    process = dict(base["process"])
    merged = {entry.partition("=")[0]: entry for entry in process["env"]}
    if tty:
        merged["TERM"] = "TERM=xterm"
    elif container.tty and not any(entry.startswith("TERM=") for entry in container.config["Env"] or []):
        merged.pop("TERM", None)
    for entry in env:
        name, equals, _ = entry.partition("=")
        if equals:
            merged[name] = entry
        else:
            merged.pop(name, None)
    if user is not None:
        ids: Json = {"uid": user.uid, "gid": user.gid}
        ids["additionalGids"] = sorted({user.gid, *user.groups})
        process["user"] = ids
        if not any(e.startswith("HOME=") for e in (container.config["Env"] or []) + env):
            merged["HOME"] = f"HOME={user.home}"
    process.pop("consoleSize", None)
    if tty and console:
        process["consoleSize"] = {"height": console[0], "width": console[1]}
    process.update(args=args, env=list(merged.values()), cwd=cwd or process["cwd"], terminal=tty)
    if privileged:
        names = list(capabilities.available())
        process["capabilities"] = {"bounding": names, "effective": names, "permitted": names}
    return process
