"""Content by its digest: what was pulled or loaded as it came over the wire.

A blob is written to `ingest/`, hashed on the way and renamed to `blobs/sha256/HEX`: under a good name there is never anything
but the content that the name says (after a lost power supply the next start makes sure of it, see flushing.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from longshore.engine.errors import SystemFailure
from longshore.engine.images.database import own_process
from longshore.engine.images.streams import passed


class DigestMismatch(SystemFailure):
    """The content is not what its digest says."""


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class BlobWriter:
    """One blob on its way in. write() in a thread; commit() or abort() at the end.

    name: of an ingest that others may go on with; without one it is this process's own. resume: begin with what it holds
    already (`offset`).
    """

    def __init__(self, blobs: Blobs, *, name: str = "", resume: bool = False) -> None:
        self._blobs = blobs
        self.path = blobs.ingest / (name or "new-{}-{}-{}".format(*own_process(), secrets.token_hex(8)))
        self._hash = hashlib.sha256()
        self.offset = 0
        self.lock = -1  # a descriptor that holds the ingest's lock, if its name is shared with other processes
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if resume else os.O_TRUNC)
        self._fd = os.open(self.path, flags, 0o600)
        if resume:
            while data := os.read(self._fd, 1 << 20):
                self._hash.update(data)
                self.offset += len(data)

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()

    def write(self, pieces: bytes | Iterable[bytes]) -> None:
        for data in (pieces,) if isinstance(pieces, bytes) else pieces:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            self._hash.update(data)
            self.offset += len(data)
            passed(len(data))

    def restart(self) -> None:
        """Begin again from nothing (the other side cannot go on from the middle)."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash, self.offset = hashlib.sha256(), 0

    def commit(self, expected: str = "") -> str:
        """Verify and name the blob; its digest. Raises DigestMismatch (and the ingest is gone).

        It is not synced: the layer that it becomes is marked until it is (see flushing.py).
        """
        digest = self.digest
        if expected and digest != expected:
            self.abort()
            raise DigestMismatch(f"filesystem layer verification failed for digest {expected}")
        os.close(self._fd)
        self._fd = -1
        os.rename(self.path, self._blobs.path(digest))
        self.keep()
        return digest

    def keep(self) -> None:
        """Close and leave what is there for a later resume."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def abort(self) -> None:
        self.keep()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


class Blobs:
    """The content store below `root`."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "blobs" / "sha256"
        self.ingest = root / "ingest"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ingest.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        return self.folder / digest.partition(":")[2]

    def has(self, digest: str) -> bool:
        return bool(digest) and self.path(digest).exists()

    def size(self, digest: str) -> int:
        return self.path(digest).stat().st_size

    def remove(self, digest: str) -> int:
        """Take a blob away; its size (0 when it was not there)."""
        path = self.path(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size
