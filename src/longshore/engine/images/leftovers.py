"""What builds and loads left that ended with their process: folders and mounts below the store."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from longshore.engine.images.database import process_start
from longshore.engine.images.extract import remove_path
from longshore.engine.images.overlay import RootFS


def sweep(root: Path) -> None:
    """Remove what builds and loads of processes that are no more have left, mounts included."""
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


def _held(path: Path) -> bool:
    """Does somebody hold the lock of a folder?"""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
