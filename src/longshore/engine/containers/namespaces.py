"""A container in a user namespace of its own: what is made before the runtime can join it, and shown to it.

The runtime makes the other namespaces inside; the network namespace is made here, as it is filled before the runtime
runs, and must belong to the user namespace (a sysfs of it, its sysctls, CAP_NET_ADMIN in it).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from longshore.machinery import mounts, netns, users
from longshore.machinery.users import Owners

#: What a bind mount may not lose in a user namespace: statvfs(3)'s flags and mount(8)'s words.
_LOCKED = (
    (os.ST_RDONLY, "ro"), (os.ST_NODEV, "nodev"), (os.ST_NOSUID, "nosuid"), (os.ST_NOEXEC, "noexec"),
    (os.ST_NOATIME, "noatime"), (os.ST_NODIRATIME, "nodiratime"), (os.ST_RELATIME, "relatime"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class UserNamespace:
    """What the runtime is told: owners (with the namespace to join) and a way to the root that its user may go."""

    owners: Owners
    root: Path


def make(
    folder: Path, owners: Owners, root: Path, *, sandbox: Path | None, joined: Path | None
) -> tuple[UserNamespace, Callable[[], None]]:
    """Make a container's user namespace; returns it and what unpins it once the runtime has joined it.

    folder: for the pins, and the way to the root, which the runtime needs as long as the container runs. owners: the mapping. root: the container's mounted root. sandbox: where its network namespace is
    to be pinned, None for one that belongs to another. joined: another container's user namespace, to be shared.
    Blocking. Raises OSError; nothing is left of a failed one.
    """

    def unpin() -> None:
        for kind in ("net", "user"):
            netns.delete(folder / kind)

    release(folder)
    try:
        folder.mkdir()
        folder.chmod(0o711)
        users.make(folder, ["net"] if sandbox is not None else [], owners.uids, owners.gids, within=joined)
        if sandbox is not None:
            netns.pin(folder / "net", sandbox)
            netns.call(sandbox, netns.raise_loopback)
        (folder / "root").mkdir()
        mounts.bind(root, folder / "root")
    except BaseException:
        release(folder)
        raise
    return UserNamespace(Owners(folder / "user", owners.uids, owners.gids), folder / "root"), unpin


def release(folder: Path) -> None:
    """Take away what `make` made, and what else is mounted in the folder. Nothing there: nothing to do. Blocking."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            path = folder / name
            while mounts.unmount(path):
                continue
            # Never by a walk: what is still mounted here is not ours to remove.
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        folder.rmdir()


def locked_options(source: str | os.PathLike[str]) -> list[str]:
    """The options of a mount that a bind of it in a user namespace must keep. Source: mount_namespaces(7)."""
    flags = os.statvfs(source).f_flag
    return [word for flag, word in _LOCKED if flags & flag]
