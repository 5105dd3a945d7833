"""What work under way holds, so that garbage collection leaves it alone: layers by chain id, blobs by digest, images by id.

A lease names its process by pid and start time: those of the dead do not count, and the next start takes them away.
"""

from __future__ import annotations

import secrets
import sqlite3
from typing import TYPE_CHECKING

from longshore.engine.images.database import Database, own_process, process_start

if TYPE_CHECKING:
    from longshore.engine.images.layers import Layers


def add_lease(connection: sqlite3.Connection, lease: str, key: str) -> None:
    pid, start = own_process()
    connection.execute("INSERT OR IGNORE INTO leases VALUES(?,?,?,?)", (lease, key, pid, start))


def leased(connection: sqlite3.Connection, key: str) -> bool:
    """Does living work hold a layer, a blob or an image?"""
    rows = connection.execute("SELECT pid, started FROM leases WHERE key=?", (key,)).fetchall()
    return any(process_start(pid) == start for pid, start in rows)


class Lease:
    """What one piece of work holds, until it is closed or its process is dead."""

    def __init__(self, database: Database, layers: Layers) -> None:
        self._database, self._layers = database, layers
        self.id = secrets.token_hex(8)

    def add(self, *keys: str) -> None:
        """Hold these, whether they are there yet or not."""
        with self._database.write(durable=False) as connection:
            for key in keys:
                add_lease(connection, self.id, key)

    def abandon(self) -> None:
        """The work came to nothing: what only it held goes. Blocking."""
        keys = [row[0] for row in self._database.all("SELECT key FROM leases WHERE lease=?", self.id)]
        self.__exit__()
        self._layers.give_back(keys)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        with self._database.write(durable=False) as connection:
            connection.execute("DELETE FROM leases WHERE lease=?", (self.id,))
