"""A container's root: the overlay mount with the layer of mount points that no image needs to have, and its volumes.

Paths inside a container's root are only ever opened beneath it (machinery.rooted): an image may hold any links it likes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import SystemFailure
from longshore.machinery import rooted, users
from longshore.machinery.users import Owners

if TYPE_CHECKING:
    from longshore.engine.images.overlay import RootFS
    from longshore.engine.images.store import ImageStore

    from .model import Container

Json = dict[str, Any]

_INIT_ENTRIES = (
    ("/dev/pts", "dir"), ("/dev/shm", "dir"), ("/proc", "dir"), ("/sys", "dir"), ("/.dockerenv", "file"),
    ("/etc/resolv.conf", "file"), ("/etc/hosts", "file"), ("/etc/hostname", "file"), ("/dev/console", "file"),
    ("/etc/mtab", "/proc/mounts"),
)  # fmt: skip


class Roots:
    """Makes and mounts containers' roots.

    state: the image store's folder for containers of this engine. owners: whose ids containers have, None: the host's.
    """

    def __init__(self, images: ImageStore, state: Path, owners: Owners | None = None) -> None:
        self._images = images
        self._owners = owners
        self._state = state
        self._ready: set[str] = set()

    def prepare(self, container: Container, image: Any) -> None:
        """Make the folders of a new container's root over an image (None: empty)."""
        root = self._images.prepare(container.id, image)
        name = "init-" + hashlib.sha256("\n".join(map(str, root.lowers)).encode()).hexdigest()[:24]
        if name not in self._ready:
            self._make_init(name, root)
            self._ready.add(name)
        with contextlib.suppress(FileExistsError):
            os.symlink(name, self._state / f"{container.id}-init")

    def _make_init(self, name: str, root: RootFS) -> None:
        """The layer with the mount points that an image lacks: made once for all containers of the image."""
        from longshore.engine.images.overlay import RootFS

        folder = self._state / name
        if (folder / "diff").exists():
            return
        temporary = self._state / f".{name}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        layer = RootFS(name, temporary, root.lowers, root.links)
        layer.make()
        merged = layer.mount()
        try:
            for path, kind in _INIT_ENTRIES:
                self._add_entry(merged, path, kind)
        finally:
            layer.unmount()
        shutil.rmtree(temporary / "work", ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(temporary / "merged")
        try:
            os.rename(temporary, folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)

    @staticmethod
    def _add_entry(merged: Path, path: str, kind: str) -> None:
        parent, name = os.path.split(path)
        try:
            with rooted.opened(merged, path, os.O_PATH):
                return
        except OSError:
            pass
        with contextlib.suppress(OSError):
            folder = rooted.make_dirs(merged, parent)
            try:
                if kind == "dir":
                    os.mkdir(name, 0o755, dir_fd=folder)
                elif kind == "file":
                    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o755, dir_fd=folder)
                    os.fchmod(fd, 0o755)
                    os.close(fd)
                else:
                    os.symlink(kind, name, dir_fd=folder)
            finally:
                os.close(folder)

    def root(self, container: Container) -> RootFS:
        """The root with the layer of mount points between the image and the container. Raises NotFound."""
        root = self._images.rootfs(container.id)
        init = self._state / f"{container.id}-init" / "diff"
        if not init.is_dir():
            return root
        return dataclasses.replace(
            root, lowers=(init, *root.lowers), links=(str(init), *(root.links or map(str, root.lowers)))
        )

    def owners_of(self, container: Container) -> Owners | None:
        """The mapping of a container's ids; None for one that has the host's."""
        return None if container.host["UsernsMode"] == "host" else self._owners

    def make_workdir(self, container: Container, root: Path, path: str) -> None:
        """Make the working directory in a container's mounted root. Raises SystemFailure when a file is in the way."""
        owners = self.owners_of(container)
        if owners is None:
            make_workdir(root, path)
        else:
            with users.acting(owners.root):
                make_workdir(root, path, *owners.root)

    def mount(self, container: Container) -> Path:
        """Mount the root (again) and give its folder. Raises SystemFailure."""
        try:
            return self.root(container).mount(owners=self.owners_of(container))
        except OSError as error:
            raise SystemFailure(
                f"error creating overlay mount to {error.filename}: {(error.strerror or '').lower()}"
            ) from None

    def unmount(self, container: Container) -> None:
        with contextlib.suppress(Exception):
            self.root(container).unmount()

    def release(self, container: Container) -> None:
        """Remove a container's root. Blocking."""
        self._images.release(container.id)
        (self._state / f"{container.id}-init").unlink(missing_ok=True)

    def graph_driver(self, container: Container) -> Json:
        """GraphDriver of inspect."""
        return dict(self.root(container).graph_driver())


def copy_up(root: Path, inside: str, volume: Path) -> None:
    """Fill an empty volume with what the image has at its place. Blocking.

    root: the mounted root; inside: the path in it. The source is opened beneath the root; what is no folder is no source.
    """
    from longshore.engine.images.extract import Extractor
    from longshore.engine.images.pack import Packer
    from longshore.wire.tar import TarReader

    if any(os.scandir(volume)):
        return
    try:
        fd = rooted.open_in(root, inside, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        info = os.fstat(fd)
        source = iter(Packer(f"/proc/self/fd/{fd}", layer=False))
        with Extractor(volume) as extractor:
            extractor.extract(TarReader(lambda _: next(source, b"")))
        os.chown(volume, info.st_uid, info.st_gid)
        os.chmod(volume, stat.S_IMODE(info.st_mode))
    finally:
        os.close(fd)


def make_workdir(root: Path, path: str, uid: int = 0, gid: int = 0) -> None:
    """Make the working directory in a container's root. Raises SystemFailure when a file is in the way."""
    try:
        os.close(rooted.make_dirs(root, path, 0o755, uid, gid))
    except NotADirectoryError:
        raise SystemFailure(f"Cannot mkdir: {path} is not a directory") from None
    except FileExistsError:
        raise SystemFailure(f"Cannot mkdir: {path} is not a directory") from None
    except OSError as error:
        raise SystemFailure(f"mkdir {path}: {(error.strerror or '').lower()}") from None
