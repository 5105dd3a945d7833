"""A log file that is set aside when it is full, with old ones removed or compressed.

Names, times and order are those of the library that upstream uses: audit.log, audit-2026-11-22T10-00-00.000.log[.gz].
Source: gopkg.in/natefinch/lumberjack.v2.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

log = logging.getLogger("longshore.apiserver.audit")
_STAMP = "%Y-%m-%dT%H-%M-%S"


class RotatingFile:
    """size: in octets, 0: never set aside; age: days that old files are kept; backups: how many (0: no limit)."""

    def __init__(self, file: Path, *, size: int = 0, age: int = 0, backups: int = 0, compress: bool = False) -> None:
        self._file, self._limit = file, size
        self._age, self._backups, self._compress = age, backups, compress
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._open()
        self._tidy_later()

    def _open(self) -> None:
        self._fd = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, data: bytes) -> None:
        """Appends whole lines. OSError; ValueError for more than fits into a file."""
        if self._limit:
            if len(data) > self._limit:
                raise ValueError(f"write length {len(data)} exceeds maximum file size {self._limit}")
            if self._size + len(data) > self._limit:
                self._rotate()
        self._size += len(data)
        while data:
            data = data[os.write(self._fd, data) :]

    def _rotate(self) -> None:
        now = datetime.now(UTC)
        aside = self._file.with_name(
            f"{self._file.stem}-{now.strftime(_STAMP)}.{now.microsecond // 1000:03}{self._file.suffix}"
        )
        os.rename(self._file, aside)
        os.close(self._fd)
        self._open()
        self._tidy_later()

    def _tidy_later(self) -> None:
        if self._limit and (self._age or self._backups or self._compress):
            threading.Thread(target=self._tidy, name="audit-log", daemon=True).start()

    def _tidy(self) -> None:
        """Removes and compresses old files. Runs in a thread: files may be large."""
        with self._lock:
            try:
                old = self._old()
                kept = set(sorted({s for s, _ in old}, reverse=True)[: self._backups or None])
                since = datetime.now(UTC) - timedelta(days=self._age)
                for stamp, file in old:
                    if stamp not in kept or (self._age and stamp < since):
                        file.unlink(missing_ok=True)
                    elif self._compress and file.suffix != ".gz":
                        _compress(file)
            except OSError as error:
                log.warning("old audit logs: %s", error)

    def _old(self) -> list[tuple[datetime, Path]]:
        """The files that were set aside, with their times."""
        pattern = re.compile(
            re.escape(self._file.stem) + r"-(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d)\.(\d{3})" + re.escape(self._file.suffix)
            + r"(\.gz)?"
        )  # fmt: skip
        out = []
        for file in self._file.parent.iterdir():
            if found := pattern.fullmatch(file.name):
                with contextlib.suppress(ValueError):
                    stamp = datetime.strptime(found[1], _STAMP).replace(microsecond=int(found[2]) * 1000, tzinfo=UTC)
                    out.append((stamp, file))
        return out

    def close(self) -> None:
        os.close(self._fd)


def _compress(file: Path) -> None:
    import gzip

    made = file.with_name(file.name + ".gz")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with file.open("rb") as source, open(fd, "wb") as out, gzip.GzipFile(fileobj=out, mode="wb") as packed:
        shutil.copyfileobj(source, packed, 1 << 20)
    file.unlink()
