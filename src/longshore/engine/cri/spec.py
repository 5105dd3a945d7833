"""The OCI configuration of a pod's container, from its CRI configuration, its image and its sandbox.

Sources: CRI api.proto (what each field means); OCI runtime specification, config.md; containerd's documented defaults.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longshore.engine import cdi
from longshore.engine.runtime import capabilities, cgroups, seccomp, users
from longshore.engine.runtime import spec as oci
from longshore.machinery.grpc import RpcError, Status
from longshore.machinery.users import Owners
from longshore.wire.cri import cri

# runtime-spec process.user and process.oomScoreAdj need what the engine itself may do.
_SYS_RESOURCE = "CAP_SYS_RESOURCE"
_PROPAGATION = {0: "rprivate", 1: "rslave", 2: "rshared"}


@dataclass(slots=True)
class Place:
    """Where a container lives: its sandbox's namespaces and files, its root and cgroup.

    network, ipc, uts, pid: a namespace's path; "" the host's; pid may be None for one of its own. image_roots: mounted
    image volumes by their place in the configuration's mounts. owners: the pod's user namespace; owned(place, source):
    where a volume is shown with its owners mapped.
    """

    rootfs: Path
    cgroup: str
    hostname: str
    network: str
    ipc: str
    uts: str
    pid: str | None
    files: Mapping[str, Path]
    shm: Path
    image_roots: Mapping[int, Path] = field(default_factory=dict)
    owners: Owners | None = None
    owned: Callable[[int, str], str] | None = None


def invalid(message: str) -> RpcError:
    return RpcError(Status.INVALID_ARGUMENT, message)


def arguments(config: Any, image: Mapping[str, Any]) -> list[str]:
    """The command line: the configuration's, completed from the image's Entrypoint and Cmd."""
    command, args = list(config.command), list(config.args)
    if not command:
        if not args:
            args = list(image.get("Cmd") or ())
        command = list(image.get("Entrypoint") or ())
    if not command and not args:
        raise invalid("no command specified")
    return command + args


def environment(config: Any, image: Mapping[str, Any], hostname: str) -> list[str]:
    """PATH, HOSTNAME, the image's variables and the configuration's, later ones winning."""
    found: dict[bytes, bytes] = {b"PATH": oci.DEFAULT_PATH.encode()}
    if config.tty:
        found[b"TERM"] = b"xterm"
    found[b"HOSTNAME"] = hostname.encode()
    for entry in image.get("Env") or ():
        name, _, value = entry.encode("utf-8", "surrogateescape").partition(b"=")
        found[name] = value
    for pair in config.envs:
        found[pair.key.encode()] = pair.value
    return [(k + b"=" + v).decode("utf-8", "replace") for k, v in found.items()]


def user_of(config: Any, image: Mapping[str, Any], rootfs: Path) -> users.User:
    """Who the process runs as. Raises RpcError InvalidArgument."""
    context = config.linux.security_context
    if context.HasField("run_as_group") and not (context.HasField("run_as_user") or context.run_as_username):
        raise invalid("user group is specified without user")
    if context.HasField("run_as_user"):
        name = str(context.run_as_user.value)
    else:
        name = context.run_as_username
    if not name:
        name = str(image.get("User") or "")
    elif context.HasField("run_as_group"):
        name += f":{context.run_as_group.value}"
    try:
        # With a group named, only the explicit one counts; the image's memberships are merged below.
        found = users.resolve_user(rootfs, name)
        groups: set[int] = set()
        if context.supplemental_groups_policy != cri.Strict:
            groups.update(users.resolve_user(rootfs, name.partition(":")[0]).groups)
    except users.UnknownUser as error:
        raise invalid(str(error)) from error
    groups.update(context.supplemental_groups)
    groups.add(found.gid)
    return users.User(found.uid, found.gid, tuple(sorted(groups)), found.home)


def _capabilities(spec: dict[str, Any], context: Any) -> list[str]:
    wanted = context.capabilities
    basis = [n for n in capabilities.DEFAULT if n in capabilities.available()]
    add, drop = list(wanted.add_capabilities), list(wanted.drop_capabilities)
    try:
        for name in (*add, *drop, *wanted.add_ambient_capabilities):
            if name.upper() != "ALL" and "CAP_" + name.upper().removeprefix("CAP_") not in capabilities.NAMES:
                raise invalid(f'unknown capability "{name}"')
        # What the machine cannot give is left out rather than refused, as for a privileged container.
        usable = [n for n in add if n.upper() == "ALL" or "CAP_" + n.upper().removeprefix("CAP_") in capabilities.available()]  # fmt: skip
        if any(n.upper() == "ALL" for n in drop):
            basis = []
        if any(n.upper() == "ALL" for n in add):
            basis = list(capabilities.available())
        dropped = {"CAP_" + n.upper().removeprefix("CAP_") for n in drop}
        names = [n for n in basis if n not in dropped]
        for name in capabilities.normalize(n for n in usable if n.upper() != "ALL"):
            if name not in names:
                names.append(name)
        ambient = capabilities.normalize(wanted.add_ambient_capabilities)
    except capabilities.UnknownCapability as error:
        raise invalid(str(error)) from error
    oci.set_capabilities(spec, [*names, *(n for n in ambient if n not in names)], ambient=ambient)
    return names


def _seccomp(spec: dict[str, Any], context: Any, names: list[str]) -> None:
    spec["linux"].pop("seccomp", None)
    kind, path = cri.Unconfined, ""
    if context.HasField("seccomp"):
        kind, path = context.seccomp.profile_type, context.seccomp.localhost_ref
    if kind == cri.RuntimeDefault:
        spec["linux"]["seccomp"] = seccomp.default_profile(names)
    elif kind == cri.Localhost:
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise invalid(f"failed to load seccomp profile {path!r}: {error.strerror}") from error
        try:
            profile = seccomp.load_profile(text, names)
        except seccomp.BadProfile as error:
            raise invalid(str(error)) from error
        if profile is not None:
            spec["linux"]["seccomp"] = profile


def limits(wanted: Any) -> dict[str, Any]:
    """OCI linux.resources of CRI's LinuxContainerResources; only what is set."""
    result: dict[str, Any] = {}
    cpu: dict[str, Any] = {}
    for source, target in (("cpu_period", "period"), ("cpu_quota", "quota"), ("cpu_shares", "shares"),
                           ("cpuset_cpus", "cpus"), ("cpuset_mems", "mems")):  # fmt: skip
        if getattr(wanted, source):
            cpu[target] = getattr(wanted, source)
    if cpu:
        result["cpu"] = cpu
    memory: dict[str, Any] = {}
    if wanted.memory_limit_in_bytes:
        memory["limit"] = wanted.memory_limit_in_bytes
    if wanted.memory_swap_limit_in_bytes:
        memory["swap"] = wanted.memory_swap_limit_in_bytes
    if memory:
        result["memory"] = memory
    if wanted.hugepage_limits and _has_hugetlb():
        present = set(os.listdir("/sys/kernel/mm/hugepages")) if os.path.isdir("/sys/kernel/mm/hugepages") else set()
        sizes = {int(n.removeprefix("hugepages-").removesuffix("kB")) for n in present}
        units = {"KB": 1, "MB": 1024, "GB": 1024**2}
        found = [
            {"pageSize": h.page_size, "limit": h.limit}
            for h in wanted.hugepage_limits
            if h.page_size[-2:] in units and int(h.page_size[:-2]) * units[h.page_size[-2:]] in sizes
        ]
        if found:
            result["hugepageLimits"] = found
    if wanted.unified:
        result["unified"] = dict(wanted.unified)
    return result


def _has_hugetlb() -> bool:
    """Whether limits on huge pages can be set: the controller may be absent, or be on the hierarchy that runc leaves."""
    if cgroups.unified():
        return "hugetlb" in Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    return "hugetlb" in cgroups.mounts()


def oom_score(wanted: int) -> int:
    """The score that can be set: an engine without CAP_SYS_RESOURCE cannot go below its own."""
    if _SYS_RESOURCE in capabilities.available():
        return wanted
    return max(wanted, int(Path("/proc/self/oom_score_adj").read_text()))


def _mounts(spec: dict[str, Any], config: Any, place: Place) -> None:
    privileged = config.linux.security_context.privileged
    taken = {os.path.normpath(m.container_path) for m in config.mounts}
    readonly_root = config.linux.security_context.readonly_rootfs
    for destination, file in place.files.items():
        if destination not in taken:
            oci.add_mount(spec, file, destination, ["rbind", "rprivate", "ro" if readonly_root else "rw"])
    if "/dev/shm" not in taken:
        oci.add_mount(spec, place.shm, "/dev/shm", ["rbind", "rprivate", "rw"])
    for index, mount in enumerate(config.mounts):
        destination = os.path.normpath(mount.container_path)
        if not os.path.isabs(destination):
            destination = "/" + destination
        if mount.recursive_read_only and not mount.readonly:
            raise invalid("recursive_read_only requires readonly")
        if mount.recursive_read_only and mount.propagation != cri.PROPAGATION_PRIVATE:
            raise invalid("recursive_read_only requires private propagation")
        if index in place.image_roots:
            oci.add_mount(spec, place.image_roots[index], destination, ["rbind", "ro", "rprivate"])
            continue
        source = mount.host_path
        if not source:
            raise invalid(f"mount of {destination} has neither host_path nor image")
        if not os.path.lexists(source):
            os.makedirs(source, 0o755, exist_ok=True)
        try:
            source = os.path.realpath(source, strict=True)
        except OSError as error:
            raise invalid(f"failed to resolve symlink {mount.host_path!r}: {error.strerror}") from error
        if mount.uidMappings and place.owned is not None:
            source = place.owned(index, source)
        options = ["rbind", _PROPAGATION.get(mount.propagation, "rprivate")]
        if mount.recursive_read_only:
            options.append("rro")
        options.append("ro" if mount.readonly else "rw")
        if destination == "/sys/fs/cgroup" or destination.startswith("/dev/") or destination == "/dev":
            spec["mounts"] = [m for m in spec["mounts"] if m["destination"] != destination]
        oci.add_mount(spec, source, destination, options)
    if privileged:
        for entry in spec["mounts"]:
            if entry["type"] in ("sysfs", "cgroup"):
                entry["options"] = [o for o in entry["options"] if o != "ro"]
    oci.sort_mounts(spec)
    if any("rshared" in m["options"] for m in spec["mounts"]):
        spec["linux"]["rootfsPropagation"] = "rshared"
    elif any("rslave" in m["options"] for m in spec["mounts"]):
        spec["linux"]["rootfsPropagation"] = "rslave"


def _namespaces(spec: dict[str, Any], place: Place) -> None:
    for kind, path in (("network", place.network), ("ipc", place.ipc), ("uts", place.uts)):
        oci.set_namespace(spec, kind, path or None, host=not path)
    if place.owners is not None:
        oci.set_namespace(spec, "user", place.owners.namespace)
        for member, mappings in (("uidMappings", place.owners.uids), ("gidMappings", place.owners.gids)):
            spec["linux"][member] = [{"containerID": i, "hostID": h, "size": n} for i, h, n in mappings]
    if place.pid is not None:
        oci.set_namespace(spec, "pid", place.pid or None, host=not place.pid)
    if not place.network:
        # A new sysfs needs a network namespace of one's own.
        for mount in spec["mounts"]:
            if mount["destination"] == "/sys":
                mount.update(type="bind", source="/sys", options=["rbind", "ro"])
    if not place.ipc:
        spec["mounts"] = [m for m in spec["mounts"] if m["destination"] != "/dev/mqueue"]
        if os.path.isdir("/dev/mqueue"):
            oci.add_mount(spec, "/dev/mqueue", "/dev/mqueue", ["rbind"])


def build(config: Any, image: Mapping[str, Any], place: Place, user: users.User, annotations: Mapping[str, str]) -> dict[str, Any]:  # fmt: skip
    """The whole config.json. image: the `config` member of the image's configuration. Raises RpcError."""
    context = config.linux.security_context
    spec = oci.default_spec(
        rootfs=place.rootfs,
        args=arguments(config, image),
        env=environment(config, image, place.hostname),
        cwd=config.working_dir or image.get("WorkingDir") or "/",
        hostname="",
        terminal=config.tty,
        readonly=context.readonly_rootfs,
    )
    spec.pop("hostname", None)
    spec["annotations"] = dict(annotations)
    spec["process"]["noNewPrivileges"] = bool(context.no_new_privs)
    oci.set_user(spec, user.uid, user.gid, user.groups)
    _namespaces(spec, place)
    linux = spec["linux"]
    if context.privileged:
        oci.make_privileged(spec)
    else:
        names = _capabilities(spec, context)
        _seccomp(spec, context, names)
        linux["maskedPaths"] = list(context.masked_paths)
        linux["readonlyPaths"] = list(context.readonly_paths)
    for device in config.devices:
        try:
            for node, rule in oci.device(device.host_path, device.container_path, device.permissions or "rwm"):
                linux["devices"] = [d for d in linux["devices"] if d["path"] != node["path"]] + [node]
                if not context.privileged:
                    linux["resources"]["devices"].append(rule)
        except (OSError, ValueError) as error:
            raise invalid(f"failed to add device {device.host_path!r}: {error}") from error
    _mounts(spec, config, place)
    try:
        cdi.inject(spec, [d.name for d in config.CDI_devices])
    except cdi.CdiError as error:
        raise RpcError(Status.UNKNOWN, str(error)) from error
    wanted = config.linux.resources
    linux["resources"].update(limits(wanted))
    if config.linux.HasField("resources"):
        spec["process"]["oomScoreAdj"] = oom_score(wanted.oom_score_adj)
    linux["cgroupsPath"] = place.cgroup
    return spec
