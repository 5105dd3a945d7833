"""Overlay mounts: an image's layers below, a container's own folder on top."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from longshore.engine.images.extract import remove_path
from longshore.machinery import mounts, users
from longshore.machinery.users import Owners

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

    def mount(self, *, volatile: bool = False, readonly: bool = False, owners: Owners | None = None) -> Path:
        """Mount at `merged` (at once returned when it is mounted already).

        volatile: sync calls inside are not carried out (for steps of a build, whose result is thrown away after a
        crash). readonly: no upper folder. owners: the user namespace that the container is in, whose ids the layers'
        owners become; the folders below keep the container's own. Raises OSError.
        """
        if self.mounted():
            return self.merged
        if owners is not None:
            return self._mount_owned(owners, volatile=volatile, readonly=readonly)
        return self._mount(list(self.links), self.lowers, self.path, volatile=volatile, readonly=readonly)

    def _mount_owned(self, owners: Owners, *, volatile: bool, readonly: bool) -> Path:
        """The layers and the own folder shown with other owners; overlayfs keeps them once it is mounted.

        So a layer is stored once whoever uses it, and what a container wrote can become one as it is.
        """
        stage = self.path / "owned"
        shown: list[Path] = []
        namespace = os.open(owners.namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for number, folder in enumerate([self.path, *self.lowers]):
                place = stage / str(number)
                place.mkdir(parents=True, exist_ok=True)
                users.mount(folder, place, namespace, recursive=False)
                shown.append(place)
            # overlayfs works in the upper folder as who mounts it, and the host's root is nobody there.
            with users.acting(owners.root):
                return self._mount([], tuple(shown[1:]), shown[0], volatile=volatile, readonly=readonly)
        finally:
            os.close(namespace)
            for folder in shown:
                mounts.unmount(folder)
                folder.rmdir()
            if stage.exists():
                stage.rmdir()

    def _mount(self, links: list[str], below: tuple[Path, ...], own: Path, *, volatile: bool, readonly: bool) -> Path:
        upper, work = own / self.upper.name, own / self.work.name
        if not below:
            mounts.bind(upper, self.merged, recursive=False)
            return self.merged
        fds: list[int] = []
        lowers = links or [str(lower) for lower in below]
        try:
            tail = "" if readonly else f",upperdir={upper},workdir={work}"
            tail += ",index=off,metacopy=off,redirect_dir=off"
            if readonly and len(lowers) == 1:
                # overlayfs wants two lower folders where there is no upper one.
                lowers.append(str(upper))
            if volatile:
                tail += ",volatile"
            if len(":".join(lowers)) + len(tail) + 9 > _OPTIONS_LIMIT:
                fds = [os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for lower in below]
                lowers = [f"/proc/self/fd/{fd}" for fd in fds]
            if volatile:
                # The mark of an earlier mount; the folder is only ever a build step's, which starts anew after a crash.
                remove_path(self.work / "work" / "incompat" / "volatile")
            mounts.mount("overlay", self.merged, "overlay", (f"lowerdir={':'.join(lowers)}{tail}",))
        finally:
            for fd in fds:
                os.close(fd)
        return self.merged

    def unmount(self) -> None:
        """Unmount; what is still used inside goes when its last user goes. Not mounted: nothing to do."""
        with contextlib.suppress(FileNotFoundError):
            mounts.unmount(self.merged)
