"""Content stores of the client's, as places where blobs and images come from and go to."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.errors import SystemFailure
from longshore.engine.images.blobs import digest_of
from longshore.engine.images.distribution import OCI_INDEX, OCI_MANIFEST
from longshore.engine.images.model import Image
from longshore.engine.images.pull import fetch_image
from longshore.engine.images.streams import pieces

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.session import Session
    from longshore.engine.images.store import ImageStore

_LIMIT = 64 << 20


class _Answer:
    """A blob as an answer of a registry would be."""

    status = 206
    headers: Mapping[str, str] = {}

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source

    def chunks(self) -> AsyncIterator[bytes]:
        return self._source

    async def read(self, limit: int) -> bytes:
        held = bytearray()
        async for data in self._source:
            held += data
            if len(held) > limit:
                raise SystemFailure("a document of the client's store is too long")
        return bytes(held)

    async def close(self) -> None:
        await self._source.aclose()  # type: ignore[attr-defined]


class ContentStore:
    """One of a session's stores. place: its id ("local:FOLDER", "oci:NAME", "export")."""

    def __init__(self, session: Session, place: str) -> None:
        self._session, self._place = session, place

    async def blob(self, digest: str, *, offset: int = 0) -> _Answer:
        """A blob from an offset on."""
        return _Answer(self._session.read_content(self._place, digest, offset))

    async def read(self, digest: str) -> bytes:
        """A small blob, verified. Raises SystemFailure."""
        data = await (await self.blob(digest)).read(_LIMIT)
        if digest_of(data) != digest:
            raise SystemFailure(f"digest mismatch of {digest}")
        return data

    async def manifest(self, digest: str) -> tuple[bytes, str, str]:
        """(body, media type, digest) of a manifest or index. Raises SystemFailure."""
        body = await self.read(digest)
        try:
            document = orjson.loads(body)
            media = document.get("mediaType") or (OCI_INDEX if "manifests" in document else OCI_MANIFEST)
        except (ValueError, AttributeError):
            raise SystemFailure(f"invalid manifest {digest}") from None
        return body, str(media), digest

    async def image(self, store: ImageStore, digest: str, platform: str) -> Image:
        """The image that a manifest or index of the store means for a platform, brought into ours. Raises EngineError."""
        body, media, _ = await self.manifest(digest)
        image, _ = await fetch_image(store, self, body, media, digest, platform, lambda _: None)
        return image

    async def write(self, digest: str, source: AsyncIterable[bytes]) -> None:
        """Put a blob there. digest "": the source tells it when it has ended."""
        await self._session.write_content(self._place, digest, source)

    async def write_bytes(self, digest: str, data: bytes) -> None:
        async def one() -> AsyncIterator[bytes]:
            yield data

        await self.write(digest, one())


class Digested:
    """A compressed layer as it is made; its digest is known at the end."""

    def __init__(self, packer: Any) -> None:
        self._packer = packer

    def __aiter__(self) -> AsyncIterator[bytes]:
        return pieces(iter(self._packer))

    @property
    def digest(self) -> str:
        return str(self._packer.digest)
