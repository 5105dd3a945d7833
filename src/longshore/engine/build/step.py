"""A step of a build in its own root: mount, work, and what was written becomes a layer."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from longshore.engine.images.commit import EMPTY_LAYER
from longshore.engine.images.database import own_process
from longshore.engine.images.extract import OPAQUE_XATTR, remove_path
from longshore.engine.images.layers import Layer
from longshore.engine.images.overlay import RootFS
from longshore.engine.images.pack import hash_tree
from longshore.machinery import rooted

if TYPE_CHECKING:
    from longshore.engine.images.leases import Lease
    from longshore.engine.images.store import ImageStore
    from longshore.machinery.process import Process

Output = Callable[[int, bytes], None]

# What a container's root must have for the mounts that every container gets.
MOUNT_POINTS = (
    ("/dev", True), ("/proc", True), ("/sys", True), ("/etc/hosts", False), ("/etc/hostname", False),
    ("/etc/resolv.conf", False),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount of a step: source path on the host ("" for tmpfs), target in the root, options, type; folder: the target is one.

    root: the root of an image or stage that the source lies in; None for a plain folder or file.
    """

    source: str
    target: str
    options: tuple[str, ...] = ("rbind", "ro")
    kind: str = "bind"
    folder: bool = True
    root: RootFS | None = None


@dataclass(slots=True)
class Limits:
    """What a step may use, as the query of POST /build says it (0, "" : no limit)."""

    memory: int = 0
    memory_swap: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    shm_size: int = 0
    cgroup_parent: str = ""
    ulimits: Sequence[Mapping[str, object]] = ()


@dataclass(slots=True)
class RunStep:
    """A command to run in a mounted root. network: "default", "none", "host" or a network's name.

    overlay: what is mounted at the root. hosts: extra (name, address) lines of /etc/hosts. user: as a Dockerfile's USER. hostname: "" for one of ours.
    devices: CDI devices by their whole names.
    """

    id: str
    root: Path
    argv: Sequence[str]
    env: Sequence[str]
    cwd: str
    user: str = ""
    network: str = "default"
    mounts: Sequence[Mount] = ()
    hosts: Sequence[tuple[str, str]] = ()
    limits: Limits = field(default_factory=Limits)
    privileged: bool = False
    hostname: str = ""
    overlay: RootFS | None = None
    devices: Sequence[str] = ()


@dataclass(slots=True)
class Attached:
    """A process with descriptors of ours as its own (-1: /dev/null), which stay open here.

    tty: they are one terminal's. started: called with the process that holds it when the command runs; `pid` is the command's
    own by then, in the host's numbering.
    """

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    tty: bool = False
    started: Callable[[], None] = lambda: None
    holder: Process | None = None
    pid: int = 0


class Runner(Protocol):
    """Runs the commands of RUN. Raises EngineError when the command cannot be started."""

    @property
    def device_folders(self) -> Sequence[Path]:
        """Where CDI specifications are; none where commands get no devices."""
        ...

    def check(self, limits: Limits) -> None:
        """Raises InvalidParameter for limits that no container may have."""
        ...

    async def run(self, step: RunStep, output: Output, attached: Attached | None = None) -> int:
        """Run to the end; output(1 or 2, data) as it comes; the exit code. Cancelled: the command is killed.

        attached: where what it says goes instead (then output is told of its errors only if there is no such descriptor).
        """
        ...

    async def join(self, step: RunStep, attached: Attached) -> int:
        """Run a further command in the container of a step that runs (the same id and root); its exit code."""
        ...


class StepRoot:
    """A writable root over a stack of layers, for one step."""

    def __init__(self, store: ImageStore, chain: str) -> None:
        pid, start = own_process()
        self.store, self.chain = store, chain
        self.id = secrets.token_hex(32)
        stack = store.layers.stack(chain)
        self.root = RootFS(
            self.id,
            store.root / "builds" / f"step-{pid}-{start}-{self.id[:12]}",
            tuple(store.layers.diff_path(layer) for layer in stack),
            tuple(store.layers.link_path(layer) for layer in stack),
        )
        self._made: list[str] = []
        self._touched: dict[str, tuple[int, int, int]] = {}

    @property
    def merged(self) -> Path:
        return self.root.merged

    def mount(self) -> Path:
        """Make and mount it. Raises OSError."""
        self.root.make()
        return self.root.mount(volatile=bool(self.root.lowers))

    def add_mount_points(self, extra: Sequence[tuple[str, bool]] = ()) -> None:
        """Make what mounts need and the image lacks; finish() takes it away again, so that no layer shows it."""
        for path, folder in (*MOUNT_POINTS, *extra):
            try:
                with rooted.opened(self.merged, path, os.O_PATH):
                    continue
            except OSError:
                pass
            above = "/"
            missing: list[str] = []
            for part in path.strip("/").split("/")[:-1]:
                above = above.rstrip("/") + "/" + part
                try:
                    with rooted.opened(self.merged, above, os.O_PATH) as fd:
                        info = os.fstat(fd)
                        self._touched.setdefault(above, (info.st_mode, info.st_uid, info.st_gid))
                except OSError:
                    missing.append(above)
            self._made += missing
            parent = rooted.make_dirs(self.merged, path.rpartition("/")[0] or "/")
            try:
                name = path.rpartition("/")[2]
                with contextlib.suppress(FileExistsError):
                    if folder:
                        os.mkdir(name, 0o755, dir_fd=parent)
                    else:
                        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                        os.close(os.open(name, flags, 0o644, dir_fd=parent))
            finally:
                os.close(parent)
            self._made.append(path)

    def finish(self) -> None:
        """Unmount, and take away the mount points that nobody filled."""
        self.root.unmount()
        upper = os.open(self.root.upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for path in reversed(self._made):
                _remove_empty(upper, path)
            for path, before in sorted(self._touched.items(), reverse=True):
                # A folder that is in the upper one only because a mount point was made in it.
                _remove_empty(upper, path, before)
        finally:
            os.close(upper)

    def layer(self, lease: Lease) -> Layer | None:
        """What was written as a layer over the chain, None where nothing was. In a thread, after finish()."""
        if not os.listdir(self.root.upper):
            return None
        tree = hash_tree(self.root.upper)
        if tree.diff == EMPTY_LAYER:
            return None
        folder = self.store.layers.new_folder()
        os.rmdir(folder / "diff")
        os.rename(self.root.upper, folder / "diff")
        return self.store.layers.adopt_tree(folder, self.chain, tree, lease.id)

    def discard(self) -> None:
        """Unmount and remove what is left. In a thread."""
        self.root.unmount()
        remove_path(self.root.path)


def _remove_empty(upper: int, path: str, before: tuple[int, int, int] | None = None) -> None:
    name = path.strip("/")
    try:
        info = os.stat(name, dir_fd=upper, follow_symlinks=False)
        if before is not None and (info.st_mode, info.st_uid, info.st_gid) != before:
            return
        if stat.S_ISDIR(info.st_mode):
            with contextlib.suppress(OSError):
                if os.getxattr(f"/proc/self/fd/{upper}/{name}", OPAQUE_XATTR, follow_symlinks=False) == b"y" and before:
                    return
            os.rmdir(name, dir_fd=upper)
        elif stat.S_ISREG(info.st_mode) and info.st_size == 0 and before is None:
            os.unlink(name, dir_fd=upper)
    except OSError:
        return
