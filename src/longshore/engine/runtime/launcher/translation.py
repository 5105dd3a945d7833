"""From the OCI `process` and the container's configuration to what the launcher is asked; the one place that decides
what it carries.

Source: runtime-spec config.md and config-linux.md; runc's libcontainer (process_linux.go, setns_init_linux.go).
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping
from typing import Any

from longshore.engine.runtime import capabilities, cgroups
from longshore.engine.runtime.records import RuntimeFailed

from . import filters, kernel
from .request import NotCarried, Request

Json = Mapping[str, Any]

_NAMESPACES = {
    "mount": kernel.CLONE_NEWNS, "cgroup": kernel.CLONE_NEWCGROUP, "uts": kernel.CLONE_NEWUTS, "ipc": kernel.CLONE_NEWIPC,
    "user": kernel.CLONE_NEWUSER, "pid": kernel.CLONE_NEWPID, "network": kernel.CLONE_NEWNET,
}  # fmt: skip
_PROCESS = frozenset(
    (
        "terminal",
        "consoleSize",
        "user",
        "args",
        "env",
        "cwd",
        "capabilities",
        "rlimits",
        "noNewPrivileges",
        "oomScoreAdj",
    )
)
_USER = frozenset(("uid", "gid", "umask", "additionalGids", "username"))
_LINUX = frozenset(
    ("namespaces", "uidMappings", "gidMappings", "devices", "cgroupsPath", "resources", "rootfsPropagation", "seccomp",
     "sysctl", "maskedPaths", "readonlyPaths", "mountLabel")
)  # fmt: skip
_EMPTY: tuple[object, ...] = (None, "", {}, [], False)
_UMASK = 0o022
_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")


def request(id: str, spec: Json, process: Json, cgroup: str) -> Request:
    """What the launcher is asked for an exec.

    id: the container's. spec: its configuration. process: OCI `process` of the exec. cgroup: the container's group.
    Raises NotCarried, RuntimeFailed for what runc refuses as well.
    """
    linux, first = spec["linux"], spec["process"]
    if not kernel.known():
        raise NotCarried("the system calls of this machine")
    _only("process", process, _PROCESS)
    _only("user", process["user"], _USER)
    _only("linux", linux, _LINUX)
    if linux.get("mountLabel"):
        raise NotCarried("a mount label")
    if ":" in cgroup:
        raise NotCarried("a systemd slice")
    made = Request()
    made.args = [str(word) for word in process["args"]]
    made.env = _environment(process.get("env") or ())
    made.cwd = process.get("cwd") or "/"
    user = process["user"]
    made.uid, made.gid = user.get("uid", 0), user.get("gid", 0)
    made.groups = list(user.get("additionalGids") or ())
    umask = user.get("umask")
    made.umask = umask if umask is not None else (first["user"].get("umask") or _UMASK)
    made.namespaces = _namespaces(linux)
    made.cgroups = [str(folder) for folder in cgroups.folders(cgroup)]
    given = process.get("capabilities") or first.get("capabilities") or {}
    made.capabilities = [_mask(given.get(name) or ()) for name in _SETS]
    made.no_new_privileges = bool(process.get("noNewPrivileges"))
    limits = process.get("rlimits")
    made.limits = [_limit(limit) for limit in (first.get("rlimits") or () if limits is None else limits)]
    made.oom_score = first.get("oomScoreAdj")
    made.keyring = f"_ses.{id}"
    made.filter, made.filter_flags, made.filter_early = b"", 0, True
    if linux.get("seccomp"):
        try:
            made.filter, made.filter_flags, made.filter_early = filters.compiled(linux["seccomp"])
        except filters.Uncompilable as error:
            raise NotCarried(str(error)) from None
    made.terminal = bool(process.get("terminal"))
    size = process.get("consoleSize") or {}
    made.size = (size.get("height") or 0, size.get("width") or 0)
    return made


def _only(what: str, given: Json, known: Iterable[str]) -> None:
    """Every field that says something is one that is carried."""
    for name, value in given.items():
        if name not in known and value not in _EMPTY:
            raise NotCarried(f"{what}.{name}")


def _environment(entries: Iterable[str]) -> list[tuple[str, str]]:
    """Names and values, each name once, in the order of their first mention with what was said last."""
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            what = "environment variable name can't be empty" if equals else "invalid environment variable"
            raise RuntimeFailed(f'exec failed: unable to start container process: {what}: "{entry}"')
        found[name] = value
    return list(found.items())


def _namespaces(linux: Json) -> int:
    kinds = 0
    for space in linux.get("namespaces") or ():
        if space["type"] not in _NAMESPACES:
            raise NotCarried(f"a {space['type']} namespace")
        kinds |= _NAMESPACES[space["type"]]
    if not kinds & kernel.CLONE_NEWNS:
        raise NotCarried("no mount namespace")
    return kinds


def _mask(names: Iterable[str]) -> int:
    mask = 0
    for name in names:
        if name not in capabilities.NAMES:
            raise NotCarried(f"capability {name}")
        mask |= 1 << capabilities.NAMES.index(name)
    return mask


def _limit(given: Json) -> tuple[int, int, int]:
    number = getattr(resource, given["type"], None)
    if number is None:
        raise NotCarried(given["type"])
    # RLIM_INFINITY is -1 in Python, the greatest 64-bit number in the specification.
    soft, hard = (value if value < 2**63 else -1 for value in (given["soft"], given["hard"]))
    return number, soft, hard
