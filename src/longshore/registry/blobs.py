"""The endpoints of blobs: their content, and their way in. Source: distribution-spec spec.md, "Pulling blobs", "Pushing a blob"."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from longshore.machinery.http import Request, Response
from longshore.registry import mirror
from longshore.registry.auth import Access
from longshore.registry.errors import AnswerCut, RegistryError
from longshore.registry.storage import Storage, is_digest
from longshore.registry.uploads import Room, Upload, Uploads
from longshore.registry.upstream import Upstream
from longshore.registry.urls import VERSION, base_url

Answer = Response | None


@dataclass(frozen=True, slots=True)
class Quota:
    """Repositories whose names fit a glob may each hold blobs of `size` bytes."""

    repository: str
    size: int


class BlobEndpoints:
    """Answers about blobs and uploads; each method gets the repository's name and what the path names besides.

    upstream: where blobs that are not here come from. limit: most bytes of one blob.
    """

    def __init__(
        self,
        storage: Storage,
        access: Access,
        *,
        upstream: Upstream | None,
        limit: int | None,
        quotas: Sequence[Quota],
        metrics: CollectorRegistry,
    ) -> None:
        self.storage, self.access, self.upstream = storage, access, upstream
        self.uploads = Uploads(storage, limit=limit)
        self._quotas = tuple(quotas)
        self._received = Counter("registry_storage_blob_bytes_received", "Bytes of blobs taken in.", registry=metrics)
        self.sent = Counter("registry_storage_blob_bytes_sent", "Bytes of blobs handed out.", registry=metrics)

    # -- content -------------------------------------------------------------------------------------------------

    async def get(self, request: Request, name: str, digest: str) -> Answer:
        if not is_digest(digest):
            raise RegistryError("DIGEST_INVALID", {"digest": digest[:200]})
        size = self.storage.blob_size(name, digest, touch=request.method == "HEAD")
        if size is None and self.upstream is not None:
            return await mirror.blob(self, self.upstream, request, name, digest)
        if size is None:
            raise RegistryError("BLOB_UNKNOWN", {"digest": digest})
        headers = [
            ("Docker-Content-Digest", digest),
            ("ETag", f'"{digest}"'),
            ("Accept-Ranges", "bytes"),
            ("Cache-Control", "max-age=31536000"),
            ("Content-Type", "application/octet-stream"),
            VERSION,
        ]
        if f'"{digest}"' in (request.headers.get("If-None-Match") or ""):
            return Response(304, b"", headers[:2])
        first, last, status = 0, size - 1, 200
        wanted = request.headers.get("Range")
        if wanted:
            span = parse_range(wanted, size)
            if span is not None:
                first, last = span
                status = 206
                headers.append(("Content-Range", f"bytes {first}-{last}/{size}"))
        headers.append(("Content-Length", str(last - first + 1)))
        writer = await request.start(status, headers)
        if request.method == "HEAD":
            return None
        fd = os.open(self.storage.blob_path(digest), os.O_RDONLY | os.O_CLOEXEC)
        try:
            wanted_size = last + 1 - first
            sent = await writer.send_file(fd, first, wanted_size)
            self.sent.inc(sent)
            if sent < wanted_size:
                raise AnswerCut(f"blob {digest} is shorter than it should be")
        finally:
            os.close(fd)
        return None

    async def delete(self, request: Request, name: str, digest: str) -> Answer:
        if not is_digest(digest):
            raise RegistryError("DIGEST_INVALID", {"digest": digest[:200]})
        if not self.storage.unlink(name, digest):
            raise RegistryError("BLOB_UNKNOWN", {"digest": digest})
        return Response(202)

    # -- uploads -------------------------------------------------------------------------------------------------

    async def begin(self, request: Request, name: str, _: Any) -> Answer:
        mount = request.param("mount")
        if mount:
            source = request.param("from")
            if not is_digest(mount):
                raise RegistryError("DIGEST_INVALID", {"digest": mount[:200]})
            room = self._room(name)
            if room is not None and self.storage.blob_size(name, mount) is None:
                room(self.storage.size_of(mount))
            if await self._may_mount(request, source) and self.storage.mount(name, source, mount):
                headers = [("Location", f"/v2/{name}/blobs/{mount}"), ("Docker-Content-Digest", mount)]
                return Response(201, b"", headers)
        digest = request.param("digest")
        if digest and not is_digest(digest):
            raise RegistryError("DIGEST_INVALID", {"digest": digest[:200]})
        upload_id = self.uploads.begin(name)
        if not digest:
            return self._accepted(name, upload_id, 0)
        upload = await self.uploads.get(name, upload_id)
        return await self._complete(request, name, upload_id, upload, digest)

    async def _may_mount(self, request: Request, source: str) -> bool:
        """Blobs of repositories that the user may not read are not to be had by mounting them."""
        if self.access.open:
            return True
        if not source:
            return False
        try:
            await self.access.check(request, source, ("pull",), base_url(request))
        except RegistryError:
            return False
        return True

    @staticmethod
    def _accepted(name: str, upload_id: str, offset: int, status: int = 202) -> Response:
        return Response(
            status,
            b"",
            (
                ("Location", f"/v2/{name}/blobs/uploads/{upload_id}"),
                ("Range", f"0-{max(0, offset - 1)}"),
                ("Docker-Upload-UUID", upload_id),
            ),
        )

    async def status(self, request: Request, name: str, upload_id: str) -> Answer:
        upload = await self.uploads.get(name, upload_id)
        return self._accepted(name, upload_id, upload.offset, 204)

    async def append(self, request: Request, name: str, upload_id: str) -> Answer:
        upload = await self.uploads.get(name, upload_id)
        async with upload.lock:
            self._in_order(request, name, upload_id, upload.offset)
            before = upload.offset
            try:
                await self._append(request, upload_id, upload)
            finally:
                self._received.inc(upload.offset - before)
            length = request.content_length
            if length is not None and upload.offset - before != length:
                raise RegistryError("SIZE_INVALID")
        return self._accepted(name, upload_id, upload.offset)

    async def _append(self, request: Request, upload_id: str, upload: Upload) -> None:
        """Add the request's body. What a broken connection left is kept for a resume, what a full disk left is not."""
        try:
            await self.uploads.append(upload, request.receive, self._room(upload.repository))
        except RegistryError as error:
            if error.code == "DENIED":
                self.uploads.forget(upload_id, upload)
            raise
        except ConnectionError:
            raise
        except OSError:
            self.uploads.forget(upload_id, upload)
            raise

    def _room(self, name: str) -> Room | None:
        """A check of an upload's length against its repository's quota; None where it has none."""
        quota = next((quota for quota in self._quotas if fnmatch.fnmatchcase(name, quota.repository)), None)
        if quota is None:
            return None
        used = self.storage.usage(name)

        def check(size: int) -> None:
            if used + size > quota.size:
                detail = {"repository": name, "quota": quota.size, "used": used}
                raise RegistryError("DENIED", detail, message=f"quota of {quota.size} bytes exceeded")

        return check

    def _in_order(self, request: Request, name: str, upload_id: str, offset: int) -> None:
        """A chunk that does not begin where the upload ends is refused, with where it ends. Raises RegistryError."""
        text = request.headers.get("Content-Range")
        if not text:
            return
        found = re.fullmatch(r"(?:bytes\s+)?(\d+)-(\d+)(?:/(?:\d+|\*))?", text.strip())
        length = request.content_length
        good = found is not None and int(found[1]) == offset and int(found[2]) >= int(found[1]) - 1
        if good and found is not None and length is not None and length != int(found[2]) - int(found[1]) + 1:
            raise RegistryError("SIZE_INVALID")
        if not good:
            raise RegistryError("RANGE_INVALID", headers=tuple(self._accepted(name, upload_id, offset).headers))

    async def finish(self, request: Request, name: str, upload_id: str) -> Answer:
        upload = await self.uploads.get(name, upload_id)
        digest = request.param("digest")
        if not is_digest(digest):
            raise RegistryError("DIGEST_INVALID", {"digest": digest[:200] or "missing"})
        return await self._complete(request, name, upload_id, upload, digest)

    async def _complete(self, request: Request, name: str, upload_id: str, upload: Upload, digest: str) -> Answer:
        async with upload.lock:
            self._in_order(request, name, upload_id, upload.offset)
            before = upload.offset
            await self._append(request, upload_id, upload)
            self._received.inc(upload.offset - before)
            room = self._room(name)
            if room is not None:
                # Others may have come to their end meanwhile.
                try:
                    room(upload.offset)
                except RegistryError:
                    self.uploads.forget(upload_id, upload)
                    raise
            await self.uploads.finish(upload_id, upload, digest)
        headers = [("Location", f"/v2/{name}/blobs/{digest}"), ("Docker-Content-Digest", digest)]
        return Response(201, b"", headers)

    async def cancel(self, request: Request, name: str, upload_id: str) -> Answer:
        upload = await self.uploads.get(name, upload_id)
        async with upload.lock:
            self.uploads.forget(upload_id, upload)
        return Response(204)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """(first, last) of one byte range; None: send all (several ranges, another unit). Raises RegistryError(416)."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", text.strip())
    if not found or not (found[1] or found[2]):
        return None
    if found[1]:
        first = int(found[1])
        last = min(int(found[2]), size - 1) if found[2] else size - 1
    else:
        first, last = max(0, size - int(found[2])), size - 1
    if first >= size or last < first:
        raise RegistryError("RANGE_INVALID", headers=(("Content-Range", f"bytes */{size}"),))
    return first, last
