"""Pull-through: manifests and blobs of the upstream, kept on the way."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

import orjson

from longshore.machinery.http import pour
from longshore.registry import manifests
from longshore.registry.errors import AnswerCut, RegistryError
from longshore.registry.storage import Manifest, digest_of
from longshore.registry.urls import VERSION

if TYPE_CHECKING:
    from longshore.machinery.http import Request, Response
    from longshore.registry.blobs import BlobEndpoints
    from longshore.registry.service import Service
    from longshore.registry.upstream import Upstream

log = logging.getLogger("longshore.registry")
_LIMIT = 4 << 20


async def manifest(
    service: Service, upstream: Upstream, name: str, reference: str, held: Manifest | None
) -> Manifest | None:
    """A manifest as the upstream has it now; what is held serves where that is the same, or nobody answers.

    Raises RegistryError.
    """
    try:
        if held is not None:
            head = await upstream.get(name, f"manifests/{reference}", method="HEAD", timeout=10)
            await head.read(0)
            if head.headers.get("Docker-Content-Digest") == held.digest:
                return held
        response = await upstream.get(name, f"manifests/{reference}", timeout=60)
        body = await response.read(_LIMIT)
    except RegistryError as error:
        if held is not None and error.code in ("UNAVAILABLE", "TOOMANYREQUESTS"):
            return held
        raise
    media = (response.headers.get("Content-Type") or "").partition(";")[0].strip()
    facts = manifests.read(body, media)
    by_digest = ":" in reference
    digest = digest_of(body, reference.partition(":")[0] if by_digest else "sha256")
    if by_digest and digest != reference:
        raise RegistryError("DIGEST_INVALID", {"Digest": reference})
    found = Manifest(digest, facts.media, body)
    service.storage.put_manifest(
        name,
        [] if by_digest else [reference],
        found,
        blobs=facts.blobs,
        manifests=facts.manifests,
        subject=facts.subject,
        artifact=facts.artifact,
        annotations=orjson.dumps(facts.annotations) if facts.annotations else b"",
        sparse=True,
    )
    return found


async def blob(
    endpoints: BlobEndpoints, upstream: Upstream, request: Request, name: str, digest: str
) -> Response | None:
    """Hand a blob on while it is kept. A digest that does not fit cuts the answer, and nothing is kept."""
    if request.method == "HEAD":
        head = await upstream.get(name, f"blobs/{digest}", method="HEAD", timeout=30)
        await head.read(0)
        length = head.headers.get("Content-Length") or "0"
    else:
        response = await upstream.get(name, f"blobs/{digest}")
        length = response.headers.get("Content-Length") or ""
    headers = [
        ("Docker-Content-Digest", digest),
        ("ETag", f'"{digest}"'),
        ("Content-Type", "application/octet-stream"),
        VERSION,
    ]
    if length:
        headers.append(("Content-Length", length))
    writer = await request.start(200, headers)
    if request.method == "HEAD":
        return None
    upload_id = endpoints.uploads.begin(name)
    upload = await endpoints.uploads.get(name, upload_id)
    unkept: list[Exception] = []

    async def handed_on() -> AsyncIterator[bytes]:
        async for data in response.chunks():
            writer.write(data)
            await writer.drain()
            endpoints.sent.inc(len(data))
            yield data

    def leniently(
        take: Callable[[Sequence[bytes | memoryview]], None],
    ) -> Callable[[Sequence[bytes | memoryview]], None]:
        """A full disk keeps nothing, and nothing from the client."""

        def keep(pieces: Sequence[bytes | memoryview]) -> None:
            if not unkept:
                try:
                    take(pieces)
                except (OSError, RegistryError) as error:
                    unkept.append(error)

        return keep

    try:
        async with upload.lock:
            await endpoints.uploads.append(upload, lambda take: pour(handed_on(), leniently(take)))
            if unkept:
                log.warning("%s is not kept: %s", digest, unkept[0])
                endpoints.uploads.forget(upload_id, upload)
                return None
            await endpoints.uploads.finish(upload_id, upload, digest)
    except BaseException as error:
        endpoints.uploads.forget(upload_id, upload)
        await response.close()
        if isinstance(error, RegistryError | OSError) and not isinstance(error, ConnectionError):
            raise AnswerCut(f"blob {digest} from the upstream: {error}") from None
        raise
    return None
