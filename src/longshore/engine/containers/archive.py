"""Files in and out of containers: docker cp.

Paths are resolved by the kernel beneath the container's root (openat2), so neither links nor ".." lead out of it, whatever
the container does meanwhile. A running container's own mounts are seen through its process. Source: Docker Engine API,
archive; the texts of errors are dockerd's.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import posixpath
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.errors import EngineError, InvalidParameter, NotFound, SystemFailure
from longshore.machinery import rooted, users
from longshore.wire import tar

from .model import Container

if TYPE_CHECKING:
    from longshore.engine.images.pack import Packer
    from longshore.machinery.users import Owners

    from .service import ContainerService

Json = dict[str, Any]
_LINKS = 40


class View:
    """A container's file system for the time of one copy: its mounted root with volumes and binds beneath it."""

    def __init__(self, service: ContainerService, container: Container) -> None:
        self._service = service
        self._container = container
        self._mounted = False
        self.root: Path = Path()
        self.owners = service.roots.owners_of(container)

    def __enter__(self) -> View:
        roots = self._service.roots
        self._mounted = not self._container.state.running
        self.root = roots.mount(self._container)
        return self

    def __exit__(self, *_: object) -> None:
        if self._mounted and not self._container.state.running:
            self._service.roots.unmount(self._container)

    def locate(self, path: str, *, follow: bool = False) -> tuple[Path, str, Json | None]:
        """(root to resolve beneath, path in it, mount point) of a path in the container. follow: also a link at its end."""
        clean = posixpath.normpath("/" + path)
        return self._at(posixpath.dirname(self._real(clean + "/x")) if follow else self._real(clean))

    def _real(self, path: str) -> str:
        """A path whose folders are no links, whichever of the container's mounts they lead through."""
        done, left = "/", [part for part in path.split("/") if part]
        for _ in range(_LINKS):
            while len(left) > 1:
                here = posixpath.join(done, left[0])
                root, inside, _point = self._at(here)
                target = ""
                with contextlib.suppress(OSError), rooted.opened(root, inside, os.O_PATH | os.O_NOFOLLOW) as fd:
                    if stat.S_ISLNK(os.fstat(fd).st_mode):
                        target = os.readlink("", dir_fd=fd)
                if target:
                    break
                done, left = here, left[1:]
            else:
                return posixpath.join(done, *left)
            whole = posixpath.normpath(posixpath.join(done, target, *left[1:]))
            done, left = "/", [part for part in whole.split("/") if part]
        return posixpath.normpath("/" + path)

    def _at(self, clean: str) -> tuple[Path, str, Json | None]:
        best: Json | None = None
        for point in self._container.mounts:
            where = point["Destination"]
            if point["Type"] == "tmpfs":
                continue
            if (clean == where or clean.startswith(where.rstrip("/") + "/")) and (
                best is None or len(where) > len(best["Destination"])
            ):
                best = point
        if best is None:
            for name in ("hosts", "hostname", "resolv.conf"):
                if clean == f"/etc/{name}" and (self._container.folder / name).exists():
                    return self._container.folder, f"/{name}", None
            return self.root, clean, None
        source = Path(best["Source"])
        inside = clean[len(best["Destination"]) :] or "/"
        if not source.is_dir():
            return source.parent, "/" + source.name, best
        return source, inside, best


def _failure(error: OSError, path: str, verb: str = "lstat") -> EngineError:
    if error.errno == errno.ENOENT:
        return NotFound(f"Could not find the file {path} in container ")
    return SystemFailure(f"{verb} {path}: {(error.strerror or '').lower()}")


def _open(root: Path, path: str, *, follow: bool) -> int:
    """An O_PATH descriptor; follow: of what a link points at."""
    return rooted.open_in(root, path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))


def _go_mode(info: os.stat_result) -> int:
    """The mode as Go's fs.FileMode numbers it."""
    mode = info.st_mode & 0o777
    kinds = {
        stat.S_IFDIR: 1 << 31, stat.S_IFLNK: 1 << 27, stat.S_IFIFO: 1 << 25, stat.S_IFSOCK: 1 << 24, stat.S_IFBLK: 1 << 26,
        stat.S_IFCHR: (1 << 26) | (1 << 21),
    }  # fmt: skip
    mode |= kinds.get(stat.S_IFMT(info.st_mode), 0)
    if info.st_mode & stat.S_ISUID:
        mode |= 1 << 23
    if info.st_mode & stat.S_ISGID:
        mode |= 1 << 22
    if info.st_mode & stat.S_ISVTX:
        mode |= 1 << 20
    return mode


def _check(path: str) -> str:
    if not path:
        raise InvalidParameter("bad parameter: pathcannot be empty")
    return path


def path_stat(view: View, shown: str, path: str) -> tuple[str, Json]:
    """(X-Docker-Container-Path-Stat value, its content). shown: the container as the client named it. Raises NotFound, SystemFailure."""
    root, inside, point = view.locate(_check(path))
    try:
        fd = _open(root, inside + ("/" if path.endswith("/") and inside != "/" else ""), follow=path.endswith("/"))
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise NotFound(f"Could not find the file {path} in container {shown}") from None
        raise _failure(error, path) from None
    try:
        info = os.fstat(fd)
        target = ""
        if stat.S_ISLNK(info.st_mode):
            raw = os.readlink("", dir_fd=fd)
            target = (
                raw
                if raw.startswith("/")
                else posixpath.normpath(posixpath.join(posixpath.dirname(posixpath.normpath("/" + path)), raw))
            )
            if point is None:
                with contextlib.suppress(OSError):
                    target = rooted.real_path(root, inside)
    finally:
        os.close(fd)
    name = posixpath.basename(posixpath.normpath("/" + path)) or "/"
    zone = time.strftime("%z", time.localtime(info.st_mtime))
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(info.st_mtime))
    fraction = f".{info.st_mtime_ns % 10**9:09d}".rstrip("0") if info.st_mtime_ns % 10**9 else ""
    content: Json = {
        "name": name,
        "size": info.st_size,
        "mode": _go_mode(info),
        "mtime": stamp + fraction + ("Z" if zone == "+0000" else zone[:3] + ":" + zone[3:]),
        "linkTarget": target,
    }
    return base64.b64encode(orjson.dumps(content)).decode(), content


def get(view: View, shown: str, path: str) -> Iterator[bytes]:
    """A tar of a file or folder: members are named from the path's last part. Raises before the first piece."""
    from longshore.engine.images.pack import Packer

    root, inside, _ = view.locate(_check(path), follow=path.endswith(("/", "/.")))
    dot = posixpath.basename(path.rstrip("/")) == "."
    follow = path.endswith(("/", "/."))
    try:
        fd = _open(root, inside + ("/" if path.endswith("/") and inside != "/" else ""), follow=follow)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise NotFound(f"Could not find the file {path} in container {shown}") from None
        raise _failure(error, path) from None
    try:
        info = os.fstat(fd)
        if dot and not stat.S_ISDIR(info.st_mode):
            raise SystemFailure(f"lstat {path}: not a directory")
        name = "." if dot else posixpath.basename(posixpath.normpath("/" + path))
        if stat.S_ISDIR(info.st_mode):
            folder = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            packer = Packer(f"/proc/self/fd/{folder}", layer=False, ids=view.owners.inside if view.owners else None)
            return _folder_tar(folder, name, info, packer)
        try:
            parent = rooted.open_in(root, posixpath.dirname(inside) or "/", os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            # It went while it was looked at.
            raise NotFound(f"Could not find the file {path} in container {shown}: {error.strerror}") from None
        packer = Packer(f"/proc/self/fd/{parent}", layer=False, ids=view.owners.inside if view.owners else None)
        return _file_tar(parent, posixpath.basename(inside), name, info, packer)
    finally:
        os.close(fd)


def _folder_tar(folder: int, name: str, info: os.stat_result, packer: Packer) -> Iterator[bytes]:
    try:
        entry = packer.entry(folder, ".", name, info)
        if entry is not None:
            entry.name = name + "/"
            yield tar.header(entry)
        yield from packer._folder(folder, name + "/")
    finally:
        os.close(folder)
    yield tar.END


def _file_tar(parent: int, real: str, name: str, info: os.stat_result, packer: Packer) -> Iterator[bytes]:
    try:
        entry = packer.entry(parent, real, name, info)
        if entry is not None:
            yield tar.header(entry)
            if stat.S_ISREG(info.st_mode) and info.st_size:
                yield from packer._content(parent, real, info.st_size)
    finally:
        os.close(parent)
    yield tar.END


def check_put(view: View, container: Container, path: str, shown: str) -> tuple[int, str]:
    """An O_PATH descriptor of the folder to extract into, and its path. Raises EngineError classes."""
    root, inside, point = view.locate(_check(path), follow=True)
    if point is not None and not point["RW"]:
        raise InvalidParameter("mounted volume is marked read-only")
    if point is None and container.host["ReadonlyRootfs"]:
        raise InvalidParameter("container rootfs is marked read-only")
    try:
        fd = rooted.open_in(root, inside, os.O_PATH)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise NotFound(f"Could not find the file {path} in container {shown}") from None
        raise _failure(error, path) from None
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidParameter("extraction point is not a directory")
    return fd, "/" + posixpath.normpath("/" + path).lstrip("/")


def put(
    fd: int,
    read: Callable[[int], bytes],
    *,
    path: str,
    no_overwrite: bool,
    copy_owner: tuple[int, int] | None,
    owners: Owners | None = None,
) -> None:
    """Extract a tar (compressed or not) into the folder of the descriptor. Blocking. Raises EngineError classes.

    copy_owner: (uid, gid) in the container of all members. owners: the mapping of the container's ids.
    """
    from longshore.engine.images import compression
    from longshore.engine.images.extract import ExtractError, Extractor

    top = f"/proc/self/fd/{fd}"

    def allowed(entry: tar.Entry) -> bool:
        if no_overwrite:
            try:
                with rooted.opened(fd, "/" + entry.name, os.O_PATH | os.O_NOFOLLOW) as there:
                    is_dir = stat.S_ISDIR(os.fstat(there).st_mode)
            except OSError:
                return True
            if is_dir and not entry.name.endswith("/") and entry.type != "5":
                raise SystemFailure(f'cannot overwrite directory "{entry.name}" with non-directory "{path}"')
            if not is_dir and entry.type == "5":
                raise SystemFailure(f'cannot overwrite non-directory "{entry.name}" with directory "{path}"')
        return True

    try:
        reader = tar.TarReader(compression.reader(read))
        with (
            users.acting(owners.root) if owners is not None else contextlib.nullcontext(),
            Extractor(
                top,
                whiteouts="keep",
                owner=copy_owner,
                ids=owners.outside if owners else None,
                filter=allowed,
                keep_dirs=False,
            ) as extractor,
        ):
            extractor.extract(reader)
    except (tar.TarError, compression.BrokenStream) as error:
        text = str(error)
        raise SystemFailure("unexpected EOF" if "EOF" in text or "truncated" in text else text) from None
    except ExtractError as error:
        outside = re.fullmatch(r'invalid tar: (".*") is outside of the archive\'s root', str(error))
        raise SystemFailure(f"invalid entry name {outside[1]}" if outside else str(error)) from None
    except OSError as error:
        if error.errno == errno.EROFS:
            raise InvalidParameter("container rootfs is marked read-only") from None
        raise SystemFailure((error.strerror or str(error)).lower()) from None
