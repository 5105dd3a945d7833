"""Records that outlive a lost power supply.

A record is replaced by renaming, at once and without waiting for the disk: that survives a killed engine. Before the change
is acknowledged its content is synced here, and the synced file gets a second name: should a later, unsynced replacement be
found empty after the power came back, the acknowledged one is still there. All functions block; call them in a thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_KEPT = ".kept"


def sync(path: Path) -> None:
    """fsync a file or a folder; what is gone meanwhile needs none."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def keep(record: Path) -> None:
    """Make a record and the names that lead to it durable (two folders up). Raises OSError when the disk fails."""
    second = record.with_name(f".{record.name}.{os.urandom(4).hex()}")
    try:
        os.link(record, second)
        sync(second)
        os.replace(second, record.with_name(record.name + _KEPT))
    except FileNotFoundError:  # removed meanwhile
        return
    finally:
        # Renaming a name of the same file onto another one leaves both.
        with contextlib.suppress(FileNotFoundError):
            second.unlink()
    sync(record.parent)
    sync(record.parent.parent)


def remove(record: Path) -> None:
    """Remove a record for good."""
    for path in (record, record.with_name(record.name + _KEPT)):
        path.unlink(missing_ok=True)
    sync(record.parent)


def copies(record: Path) -> Iterator[bytes]:
    """A record's content, then what was acknowledged last, for when the first cannot be read."""
    for path in (record, record.with_name(record.name + _KEPT)):
        with contextlib.suppress(OSError):
            yield path.read_bytes()
