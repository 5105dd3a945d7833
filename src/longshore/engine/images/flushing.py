"""Layers and a lost power supply: which of them may not be on the disk yet, and what becomes of those after a reboot.

Neither a layer's files nor its blob are synced one by one (that costs seconds a layer); its row is, with the name of its image.
The rows of new layers are marked until a syncfs(2) some seconds later, and a mark of an earlier boot tells the next start that
files may be empty or half there: the layer is unpacked again from its blob, or its digest is checked, and a broken one goes with
its images. A killed engine loses nothing by this: what it wrote is in the kernel's hands. dockerd keeps no such marks: a layer
that is broken stays so.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sqlite3
import threading
from pathlib import Path

from longshore.engine.images.database import Database

log = logging.getLogger("longshore.engine.images")

#: Seconds after a new layer until all of them are synced at once.
DELAY = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


def boot() -> str:
    """This boot's name; "" where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Flusher:
    """The marks of one store's layers."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self._folder = database, folder
        self._boot = boot()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def mark(self, connection: sqlite3.Connection, chain: str) -> None:
        """A layer is new, in the transaction that makes it known; afterwards schedule() is called."""
        connection.execute("INSERT OR REPLACE INTO unsynced VALUES(?,?)", (chain, self._boot))

    def schedule(self) -> None:
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(DELAY, self._run)
                self._timer.daemon = True
                self._timer.start()

    def _run(self) -> None:
        with self._lock:
            self._timer = None
        with contextlib.suppress(OSError, sqlite3.Error):
            self.sync()

    def sync(self) -> None:
        """Bring all layers to the disk, and take the marks of this boot away. Blocking. Raises OSError."""
        marked = self._database.all("SELECT chain FROM unsynced WHERE boot=?", self._boot)
        if not marked:
            return
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _libc.syncfs(fd) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(self._folder))
        finally:
            os.close(fd)
        self.settle([row[0] for row in marked])

    def settle(self, chains: list[str]) -> None:
        """These layers are whole on the disk, or gone."""
        with self._database.write(durable=False) as connection:
            connection.executemany("DELETE FROM unsynced WHERE chain=?", [(chain,) for chain in chains])

    def doubtful(self) -> list[str]:
        """The layers that an earlier boot may not have brought to the disk."""
        rows = self._database.all("SELECT chain FROM unsynced WHERE boot<>?", self._boot)
        return [row[0] for row in rows]

    def close(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
