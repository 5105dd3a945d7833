"""Overlay mounts: an image's layers below, a container's own folder on top."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from longshore.machinery import mounts

# The kernel takes at most a page of mount options from mount(2).
_OPTIONS_LIMIT = 4096 - 1


@dataclass(frozen=True, slots=True)
class RootFS:
    """A container's root: `merged` once mounted; `diff` holds what the container wrote; `lowers` top first."""

    id: str
    path: Path
    lowers: tuple[Path, ...]
    links: tuple[str, ...] = ()

    @property
    def upper(self) -> Path:
        return self.path / "diff"

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def merged(self) -> Path:
        return self.path / "merged"

    def graph_driver(self) -> dict[str, object]:
        """dockerd's GraphDriver of a container."""
        data = {"MergedDir": str(self.merged), "UpperDir": str(self.upper), "WorkDir": str(self.work)}
        if self.lowers:
            data = {"LowerDir": ":".join(map(str, self.lowers)), **data}
        return {"Data": {"ID": self.id, **data}, "Name": "overlay2"}

    def make(self) -> None:
        """Make the folders (kept where they exist)."""
        for folder, mode in ((self.path, 0o710), (self.work, 0o700), (self.merged, 0o755)):
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
        if not self.upper.exists():
            self.upper.mkdir(mode=0o755)
            if self.lowers:
                # The root folder's own owner and mode come from the image: overlayfs shows the upper's.
                info = os.stat(self.lowers[0])
                os.chown(self.upper, info.st_uid, info.st_gid)
                os.chmod(self.upper, info.st_mode & 0o7777)

    def mounted(self) -> bool:
        try:
            return os.stat(self.merged).st_dev != os.stat(self.path).st_dev
        except FileNotFoundError:
            return False

    def mount(self, *, volatile: bool = False, readonly: bool = False) -> Path:
        """Mount at `merged` (at once returned when it is mounted already).

        volatile: sync calls inside are not carried out (for steps of a build, whose result is thrown away after a
        crash). readonly: no upper folder. Raises OSError.
        """
        if self.mounted():
            return self.merged
        if not self.lowers:
            mounts.bind(self.upper, self.merged, recursive=False)
            return self.merged
        fds: list[int] = []
        lowers = list(self.links) or [str(lower) for lower in self.lowers]
        try:
            tail = "" if readonly else f",upperdir={self.upper},workdir={self.work}"
            tail += ",index=off,metacopy=off,redirect_dir=off"
            if readonly and len(lowers) == 1:
                # overlayfs wants two lower folders where there is no upper one.
                lowers.append(str(self.upper))
            if volatile:
                tail += ",volatile"
            if len(":".join(lowers)) + len(tail) + 9 > _OPTIONS_LIMIT:
                fds = [os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for lower in self.lowers]
                lowers = [f"/proc/self/fd/{fd}" for fd in fds]
            if volatile:
                # A crash left this mark; the folder is only ever a build step's, which starts anew.
                mark = self.work / "work" / "incompat" / "volatile"
                if mark.exists():
                    os.rmdir(mark)
            mounts.mount("overlay", self.merged, "overlay", (f"lowerdir={':'.join(lowers)}{tail}",))
        finally:
            for fd in fds:
                os.close(fd)
        return self.merged

    def unmount(self) -> None:
        """Unmount; what is still used inside goes when its last user goes. Not mounted: nothing to do."""
        with contextlib.suppress(FileNotFoundError):
            mounts.unmount(self.merged)
