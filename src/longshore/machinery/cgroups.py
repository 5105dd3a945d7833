"""Control groups on unified (v2), legacy (v1) and hybrid machines: where they are, members, freezing, removal.

A group's path ("/longshore/ID") is the same in every hierarchy. Figures and limits are their users' business.
Source: kernel documentation cgroup-v1 and cgroup-v2; OCI runtime specification, config-linux.md "Control groups".
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from functools import cache
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")
CONTROLLERS = frozenset(
    ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "net_cls", "net_prio",
     "perf_event", "rdma", "misc")
)  # fmt: skip


@cache
def unified() -> bool:
    """Whether /sys/fs/cgroup is the unified hierarchy (v2)."""
    return os.path.exists("/sys/fs/cgroup/cgroup.controllers")


def _mounted() -> list[tuple[str, Path, list[str]]]:
    """(cgroup or cgroup2, where, options) of every cgroup file system of this mount namespace."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            where = Path(_OCTAL.sub(lambda m: chr(int(m[1], 8)), left.split()[4]))
            found.append((kind, where, options.split(",")))
    return found


@cache
def mounts() -> dict[str, Path]:
    """Where each v1 controller is mounted ("" names the unified hierarchy of a v2 machine).

    On a hybrid machine "unified" is the v2 hierarchy beside: no controller we use is there, but runtimes make groups in
    it as well.
    """
    if unified():
        return {"": Path("/sys/fs/cgroup")}
    found: dict[str, Path] = {}
    for kind, where, options in _mounted():
        if kind == "cgroup2":
            found.setdefault("unified", where)
            continue
        for option in options:
            if option in CONTROLLERS or option.startswith("name="):
                found.setdefault(option.removeprefix("name="), where)
    return found


@cache
def everywhere() -> tuple[Path, ...]:
    """Every cgroup file system, also those whose figures concern nobody: runtimes make a group in all of them."""
    found = [where for _, where, _ in _mounted()]
    return tuple(dict.fromkeys([Path("/sys/fs/cgroup"), *found] if unified() else found))


def folders(path: str) -> list[Path]:
    """Every folder of the cgroup `path` that exists."""
    return [folder for top in everywhere() if (folder := top / path.lstrip("/")).is_dir()]


def folder(path: str, controller: str) -> Path | None:
    """The folder of the cgroup `path` where `controller` is, there or not; None without that controller."""
    where = mounts().get("" if unified() else controller)
    return where / path.lstrip("/") if where else None


def read(folder: Path | None, name: str) -> str:
    """A file of a cgroup; "" when there is none."""
    if folder is None:
        return ""
    try:
        return (folder / name).read_text()
    except OSError:
        return ""


def _members(top: Path) -> set[int]:
    pids: set[int] = set()
    for where, _, files in os.walk(top):
        if "cgroup.procs" in files:
            pids.update(int(pid) for pid in read(Path(where), "cgroup.procs").split())
    return pids


def processes(path: str) -> list[int]:
    """The pids in a cgroup and in those below it, in the order of their numbers."""
    where = folder(path, "pids") or folder(path, "memory")
    return sorted(_members(where)) if where is not None else []


def holds(path: str, pid: int) -> bool:
    """Whether a process is in the cgroup, or in one below it, of any hierarchy."""
    lines = read(Path(f"/proc/{pid}"), "cgroup").splitlines()
    groups = [line.split(":", 2)[2] for line in lines]
    return any(group == path or group.startswith(path.rstrip("/") + "/") for group in groups)


def kill_all(path: str) -> None:
    """SIGKILL to every process of a cgroup, whichever hierarchy has it."""
    if unified():
        with contextlib.suppress(OSError):
            (Path("/sys/fs/cgroup") / path.lstrip("/") / "cgroup.kill").write_text("1")
            return
    for pid in set().union(*map(_members, folders(path))):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _rmdir(path: str) -> bool:
    """Remove what is empty of a cgroup and those below it; whether nothing is left."""
    gone = True
    for top in folders(path):
        for where, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(where)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
    return gone


def remove(path: str, patience: float = 2.0) -> bool:
    """Remove a cgroup and those below it; processes still inside are killed first. Blocking: call from a thread.

    patience: seconds to wait for killed processes to leave. Returns whether it is gone.
    """
    deadline = time.monotonic() + patience
    pause = 0.001
    while not _rmdir(path):
        if time.monotonic() > deadline:
            return False
        thaw(path)
        kill_all(path)
        # The kernel tells nobody when a v1 cgroup has emptied; the wait is bounded and rarely more than a millisecond.
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    return True


def remove_empty(path: str) -> None:
    """Remove a cgroup, those below it and the one above, as far as they hold nothing; others' are left alone. Blocking."""
    _rmdir(path)
    above = os.path.dirname(path.rstrip("/"))
    if above not in ("", "/"):
        for where in folders(above):
            with contextlib.suppress(OSError):
                os.rmdir(where)


def frozen(path: str) -> bool:
    """Whether the cgroup is paused."""
    if unified():
        return read(folder(path, ""), "cgroup.freeze").strip() == "1"
    return read(folder(path, "freezer"), "freezer.state").strip() in ("FROZEN", "FREEZING")


def thaw(path: str) -> None:
    """Let a paused cgroup go on, so that signals reach its processes."""
    where = folder(path, "freezer")
    if where is None:
        return
    with contextlib.suppress(OSError):
        if unified():
            (where / "cgroup.freeze").write_text("0")
        else:
            (where / "freezer.state").write_text("THAWED")
