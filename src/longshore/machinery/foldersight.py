"""What a folder holds, seen at two moments: the names that are new, changed and gone between them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Changes(NamedTuple):
    """Names inside a folder, sorted; "" stands for a watched file itself."""

    new: list[str]
    changed: list[str]
    gone: list[str]


_Stamp = tuple[int, int, int]


class Sight:
    """A folder (or one file) as it was when it was last looked at."""

    def __init__(self, path: Path, *, folder: bool = False) -> None:
        """folder: only a folder will do. Raises FileNotFoundError, NotADirectoryError."""
        self._path = path
        self._folder = folder or path.is_dir()
        self._inode = os.stat(path).st_ino
        self._seen = self._look()

    def changes(self) -> Changes:
        """What has changed since the last look. Raises FileNotFoundError: it is gone, or another is in its place."""
        if os.stat(self._path).st_ino != self._inode:
            raise FileNotFoundError(self._path)
        before, self._seen = self._seen, self._look()
        return Changes(
            sorted(name for name, stamp in self._seen.items() if name not in before or before[name][0] != stamp[0]),
            sorted(
                n for n, stamp in self._seen.items() if n in before and before[n] != stamp and before[n][0] == stamp[0]
            ),
            sorted(before.keys() - self._seen.keys()),
        )

    def _look(self) -> dict[str, _Stamp]:
        if not self._folder:
            return {"": _stamp(os.stat(self._path))}
        found = {}
        with os.scandir(self._path) as entries:
            for entry in entries:
                try:
                    found[entry.name] = _stamp(entry.stat(follow_symlinks=False))
                except FileNotFoundError:  # gone meanwhile
                    continue
        return found


def _stamp(info: os.stat_result) -> _Stamp:
    return info.st_ino, info.st_size, info.st_mtime_ns
