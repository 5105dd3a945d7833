"""What work that ended with its process has left below the store: folders and mounts of builds, archives, blobs half there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from longshore.engine.images.database import process_start
from longshore.engine.images.extract import remove_path
from longshore.engine.images.overlay import RootFS

#: Seconds that a download which was cut off is kept for whoever goes on with it.
KEPT = 86400.0


def sweep(root: Path) -> None:
    """Remove what builds, loads and pulls of processes that are no more have left, mounts included."""
    sweep_ingest(root / "ingest", KEPT)
    for folder in (root / "builds", root / "tmp"):
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            parts = path.name.split("-")
            # Their names tell the process: KIND-PID-START-RANDOM.
            if len(parts) == 4 and parts[1].isdigit() and parts[2].isdigit():
                if process_start(int(parts[1])) == int(parts[2]):
                    continue
                RootFS(path.name, path, ()).unmount()
                remove_path(path)
            elif not _held(path):
                remove_path(path)


def sweep_ingest(folder: Path, kept: float) -> int:
    """Remove blobs on their way in that nobody is at work on; bytes freed.

    kept: the seconds without a change after which a download that was cut off goes too.
    """
    freed = 0
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            info = path.stat()
            kind, *owner = path.name.split("-")
            if kind == "new":
                gone = process_start(int(owner[0])) != int(owner[1])
            else:
                gone = info.st_mtime < time.time() - kept and not _held(path)
            if gone:
                path.unlink()
                freed += info.st_size
    return freed


def _held(path: Path) -> bool:
    """Does somebody hold the lock of a file or folder?"""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
