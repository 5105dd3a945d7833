"""Files that change all at once: a folder of links into a versioned folder that one rename replaces.

Source: kubernetes pkg/volume/util/atomic_writer.go.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

DATA = "..data"


@dataclass(frozen=True, slots=True)
class File:
    """One file of a payload: its bytes and its mode; uid and gid None: root's."""

    data: bytes
    mode: int = 0o644
    uid: int | None = None


class BadPath(ValueError):
    """A path of a payload that leaves its folder or is otherwise refused."""


def check(path: str) -> None:
    """Refuse absolute paths, "..", what begins with "..", and overlong ones. Raises BadPath."""
    if not path or os.path.isabs(path):
        raise BadPath(f"invalid path: must be relative path: {path}")
    parts = path.split("/")
    if ".." in parts:
        raise BadPath(f"invalid path: must not contain '..': {path}")
    if parts[0].startswith(".."):
        raise BadPath(f"invalid path: must not start with '..': {path}")
    if len(path) > 4096 or any(len(part.encode()) > 255 for part in parts):
        raise BadPath(f"invalid path: too long: {path}")


def _same(folder: Path, payload: Mapping[str, File]) -> bool:
    """Whether the present version holds exactly this payload."""
    present: set[str] = set()
    for where, _, names in os.walk(folder):
        present.update(os.path.relpath(os.path.join(where, n), folder) for n in names)
    if present != set(payload):
        return False
    for path, file in payload.items():
        full = folder / path
        try:
            if full.read_bytes() != file.data:
                return False
        except OSError:
            return False
    return True


def write(folder: Path, payload: Mapping[str, File], gid: int | None = None) -> bool:
    """Make `folder` show exactly the payload. gid: the pod's fsGroup. Returns whether anything changed. Raises OSError.

    A crash at any point leaves the old or the new files, never a mixture.
    """
    normal = {os.path.normpath(path): file for path, file in payload.items()}
    for path in payload:
        check(path)
    link = folder / DATA
    old = os.readlink(link) if os.path.islink(link) else ""
    if old and _same(folder / old, normal):
        _links(folder, normal)
        return False
    stamp = datetime.now(UTC).strftime("..%Y_%m_%d_%H_%M_%S.")
    fresh = Path(tempfile.mkdtemp(prefix=stamp, dir=folder))
    os.chmod(fresh, 0o755)
    for path, file in normal.items():
        target = fresh / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.data)
        if file.uid is not None:
            os.chown(target, file.uid, -1)
        os.chmod(target, file.mode)
    if gid is not None:
        own(fresh, gid, readonly=True)
    temporary = folder / "..data_tmp"
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(fresh.name)
    os.replace(temporary, link)
    _links(folder, normal)
    if old:
        shutil.rmtree(folder / old, ignore_errors=True)
    for name in os.listdir(folder):
        # Versions that a crash left.
        if name.startswith("..2") and name != fresh.name:
            shutil.rmtree(folder / name, ignore_errors=True)
    return True


def _links(folder: Path, payload: Mapping[str, File]) -> None:
    wanted = {path.split("/", 1)[0] for path in payload}
    for name in wanted:
        visible = folder / name
        if not os.path.islink(visible):
            visible.symlink_to(f"{DATA}/{name}")
    for name in os.listdir(folder):
        if not name.startswith("..") and name not in wanted:
            (folder / name).unlink(missing_ok=True)


def own(folder: Path, gid: int, *, readonly: bool) -> None:
    """Give a tree to a group: readable (and writable) by it, new files inherit it. Source: volume_linux.go."""
    mask = 0o440 if readonly else 0o660
    for where, names, files in os.walk(folder):
        entries = [(os.path.join(where, n), False) for n in files]
        entries += [(os.path.join(where, n), not os.path.islink(os.path.join(where, n))) for n in names]
        for path, is_folder in entries:
            with contextlib.suppress(FileNotFoundError):
                _own_one(path, gid, mask, is_folder)
    _own_one(str(folder), gid, mask, True)


def _own_one(path: str, gid: int, mask: int, is_folder: bool) -> None:
    os.lchown(path, -1, gid)
    if os.path.islink(path):
        return
    mode = os.lstat(path).st_mode & 0o7777
    os.chmod(path, mode | mask | (0o2110 if is_folder else 0))
