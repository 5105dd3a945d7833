"""Folders of the build cache that are no layers: those of `RUN --mount=type=cache`, and files fetched from URLs.

Each is a record of the cache, as a step is: shown, and pruned when no build uses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.images.extract import remove_path

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore

_SCHEMA = """
CREATE TABLE IF NOT EXISTS build_folders(
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, description TEXT NOT NULL, created INTEGER NOT NULL, used INTEGER NOT NULL,
    uses INTEGER NOT NULL) WITHOUT ROWID
"""
#: Kinds of records. Source: BuildKit client/diskusage.go.
CACHE_MOUNT, REGULAR = "exec.cachemount", "regular"
# Folders that builds of this process use at the moment.
_held: Counter[Path] = Counter()


class Folders:
    """The folders of one image store."""

    def __init__(self, store: ImageStore) -> None:
        self._store, self._root = store, store.root / "buildcache"
        if store.database.one("SELECT 1 FROM sqlite_master WHERE name='build_folders'") is None:
            with store.database.write() as connection:
                connection.execute(_SCHEMA)

    @contextlib.contextmanager
    def using(self, key: str, kind: str, description: str) -> Iterator[Path]:
        """The folder of a key (it may have to be made), held while the block lasts."""
        name = hashlib.sha256(key.encode()).hexdigest()
        path = self._root / name
        now = time.time_ns()
        with self._store.database.write(durable=False) as connection:
            connection.execute(
                "INSERT INTO build_folders VALUES(?,?,?,?,?,0) ON CONFLICT(name) DO UPDATE SET used=?, uses=uses+1",
                (name, kind, description[:200], now, now, now),
            )
        _held[path] += 1
        try:
            yield path
        finally:
            _held[path] -= 1
            if not _held[path]:
                del _held[path]

    def records(self) -> list[dict[str, Any]]:
        """What there is, as usage.records() has steps; sizes are counted. In a thread where folders may be big."""
        rows = self._store.database.all(
            "SELECT name, kind, description, created, used, uses FROM build_folders ORDER BY created"
        )
        found: list[dict[str, Any]] = []
        for name, kind, description, created, used, uses in rows:
            path = self._root / name
            if not path.is_dir():
                self._forget(name)
                continue
            found.append(
                {
                    "id": name[:25], "folder": name, "type": kind, "image": "", "description": description,
                    "size": _size(path), "created": created, "used": used, "uses": uses, "in_use": path in _held,
                    "shared": False, "mutable": kind == CACHE_MOUNT,
                }
            )  # fmt: skip
        return found

    def remove(self, name: str) -> bool:
        """Take a folder away; False where a build uses it. In a thread."""
        path = self._root / name
        if path in _held:
            return False
        # Out of the way first: a build that begins now makes it anew.
        gone = path.with_name(f"removed-{os.getpid()}-{name}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(gone)
        self._forget(name)
        remove_path(gone)
        return True

    def _forget(self, name: str) -> None:
        with self._store.database.write(durable=False) as connection:
            connection.execute("DELETE FROM build_folders WHERE name=?", (name,))


def _size(path: Path) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
