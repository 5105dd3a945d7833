"""Blobs on their way in: chunk after chunk, hashed as they come, resumable after a restart of the registry."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from longshore.registry.errors import RegistryError
from longshore.registry.storage import Storage

_libc = ctypes.CDLL(None)
_BATCH = 8 << 20
_PIECE = 1 << 20
_VECTOR = 1024
#: Uploads that are kept open, the last used; one that nobody goes on with is closed, and hashed again if somebody does.
_OPEN_LIMIT = 256
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


Room = Callable[[int], None]
#: Hands the pieces of what is uploaded to a function in a thread.
Source = Callable[[Callable[[Sequence[bytes | memoryview]], None]], Awaitable[None]]


class Upload:
    """One upload's file and its digest so far."""

    def __init__(self, path: Path, repository: str) -> None:
        self.path, self.repository = path, repository
        self.lock = asyncio.Lock()
        self.hash = hashlib.sha256()
        self.offset = 0
        self._begun = 0  # where what the disk was not told to write begins
        self.fd = -1

    def open(self) -> None:
        """Open the file; one that was begun before a restart is hashed again."""
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while data := os.read(self.fd, _PIECE):
            self.hash.update(data)
            self.offset += len(data)

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Add pieces at the end. In a thread."""
        for data in pieces:
            self.hash.update(data)
        left = list(pieces)
        while left:
            done = os.writev(self.fd, left[:_VECTOR])
            self.offset += done
            # What was taken whole goes; of one that was taken in part the rest stays.
            while left and done >= len(left[0]):
                done -= len(left[0])
                left.pop(0)
            if done:
                left[0] = left[0][done:]
        if self.offset - self._begun >= _BATCH:
            # The disk begins now: the sync at the end has less to wait for. See sync_file_range(2).
            length = ctypes.c_int64(self.offset - self._begun)
            _libc.sync_file_range(self.fd, ctypes.c_int64(self._begun), length, 2)
            self._begun = self.offset

    def digest(self, algorithm: str) -> str:
        """The content's digest; sha512 is computed when somebody wants it."""
        if algorithm == "sha256":
            return "sha256:" + self.hash.hexdigest()
        other = hashlib.new(algorithm)
        os.lseek(self.fd, 0, os.SEEK_SET)
        while data := os.read(self.fd, _PIECE):
            other.update(data)
        return f"{algorithm}:" + other.hexdigest()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Uploads:
    """All uploads of a registry, by id. quota: most bytes of one blob (None: no limit)."""

    def __init__(self, storage: Storage, *, limit: int | None = None) -> None:
        self._storage = storage
        self._limit = limit
        self._open: dict[str, Upload] = {}

    def begin(self, repository: str) -> str:
        """A new upload's id. It is remembered, so that it can be resumed after a restart."""
        raw = secrets.token_hex(16)
        upload_id = f"{raw[:8]}-{raw[8:12]}-4{raw[13:16]}-8{raw[17:20]}-{raw[20:]}"
        path = self._storage.uploads / upload_id
        upload = Upload(path, repository)
        upload.open()
        self._storage.begin_upload(upload_id, repository)
        self._hold(upload_id, upload)
        return upload_id

    def _hold(self, upload_id: str, upload: Upload) -> None:
        """Keep an upload open as the last used, and close the first that nobody works with where there are too many."""
        self._open.pop(upload_id, None)
        self._open[upload_id] = upload
        idle = (held for held, other in self._open.items() if not other.lock.locked() and other is not upload)
        if len(self._open) > _OPEN_LIMIT and (first := next(idle, None)) is not None:
            self._open.pop(first).close()

    async def get(self, repository: str, upload_id: str) -> Upload:
        """An upload under way. Raises RegistryError(BLOB_UPLOAD_UNKNOWN)."""
        found = self._open.get(upload_id)
        if found is None:
            path = self._storage.uploads / upload_id
            if not _ID.fullmatch(upload_id) or self._storage.upload_repository(upload_id) != repository:
                raise RegistryError("BLOB_UPLOAD_UNKNOWN")
            if not path.exists():
                raise RegistryError("BLOB_UPLOAD_UNKNOWN")
            found = Upload(path, repository)
            await asyncio.to_thread(found.open)
            other = self._open.get(upload_id)
            if other is not None:
                found.close()
                found = other
        if found.repository != repository or found.fd < 0:
            raise RegistryError("BLOB_UPLOAD_UNKNOWN")
        self._hold(upload_id, found)
        return found

    async def append(self, upload: Upload, source: Source, room: Room | None = None) -> None:
        """Add what comes to the upload's end. What came before a connection broke is kept, for a resume.

        source: hands pieces to the function that it is given, in a thread. room: refuses when the upload's length is more than
        its repository may take. Raises RegistryError.
        """

        def take(pieces: Sequence[bytes | memoryview]) -> None:
            total = upload.offset + sum(map(len, pieces))
            if self._limit is not None and total > self._limit:
                raise RegistryError("SIZE_INVALID", "the blob exceeds the registry's limit", status=413)
            if room is not None:
                room(total)
            upload.write(pieces)

        await source(take)

    async def finish(self, upload_id: str, upload: Upload, digest: str) -> int:
        """Verify and place the blob; its length. Raises RegistryError(DIGEST_INVALID), and the upload is gone then."""
        algorithm = digest.partition(":")[0]
        found = await asyncio.to_thread(upload.digest, algorithm)
        size = upload.offset
        try:
            if found != digest:
                raise RegistryError("DIGEST_INVALID", {"Digest": digest, "Reason": "content does not match"})
            await asyncio.to_thread(self._storage.place, upload.path, upload.fd, digest, upload.repository, size)
        finally:
            self.forget(upload_id, upload)
        return size

    def forget(self, upload_id: str, upload: Upload) -> None:
        """End an upload; what it has written under its own name goes."""
        self._open.pop(upload_id, None)
        upload.close()
        upload.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._storage.end_upload(upload_id)

    def close(self) -> None:
        for upload in self._open.values():
            upload.close()
        self._open.clear()
