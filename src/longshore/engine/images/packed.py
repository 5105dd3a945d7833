"""Layers as blobs of a wanted form: plain, gzip or zstd, made once each, in files of a folder.

Source of names and rules: BuildKit util/compression; OCI image-spec layer.md.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from longshore.engine.errors import InvalidParameter
from longshore.engine.images.distribution import OCI_LAYER

if TYPE_CHECKING:
    from longshore.engine.images.layers import Layer
    from longshore.engine.images.store import ImageStore

UNCOMPRESSED, GZIP, ZSTD = "uncompressed", "gzip", "zstd"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_PIECE = 1 << 20
# isal's levels end at 3; what is made at its first is what a push sends, byte for byte.
_ISAL, _LEVEL = 3, 1


@dataclass(frozen=True, slots=True)
class Form:
    """How layers are to be. level: the compressor's (None: its usual one); force: also those that came in another form;
    oci: media types of OCI, else Docker's."""

    kind: str = GZIP
    level: int | None = None
    force: bool = False
    oci: bool = True

    @property
    def usual(self) -> bool:
        """Is it what a push makes anyway?"""
        return self.kind == GZIP and self.level is None and not self.force and self.oci


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer in some form. content: opens its bytes."""

    media: str
    digest: str
    size: int
    content: Callable[[], Iterator[bytes]]

    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media, "digest": self.digest, "size": self.size}


class Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def compressor(kind: str, level: int | None = None) -> Compressor:
    """A compressor of a kind. Raises InvalidParameter for a level that there is not."""
    if kind == ZSTD:
        import zstandard

        made: Compressor = zstandard.ZstdCompressor(level=min(22, max(1, 3 if level is None else level))).compressobj()
        return made
    if level is not None and not -2 <= level <= 9:
        raise InvalidParameter(f"gzip: invalid compression level: {level}")
    if level is None or 0 < level <= _ISAL:
        from isal import isal_zlib

        packed: Compressor = isal_zlib.compressobj(_LEVEL if level is None else level, isal_zlib.DEFLATED, 31)
        return packed
    return zlib.compressobj(max(-1, level), zlib.DEFLATED, 31)


def media_type(kind: str, oci: bool) -> str:
    """The media type of a layer in a form. Docker has none for zstd."""
    if kind == UNCOMPRESSED:
        return OCI_LAYER if oci else _DOCKER_LAYER
    return f"{OCI_LAYER}+{kind}" if oci or kind == ZSTD else f"{_DOCKER_LAYER}.{kind}"


class Packed:
    """The layers of a store in one form. folder: where blobs are put that the store does not have; the caller's to remove."""

    def __init__(self, store: ImageStore, folder: Path, form: Form) -> None:
        self._store, self._folder, self.form = store, folder, form
        self._made: dict[str, Blob] = {}
        self._locks: dict[str, threading.Lock] = {}

    def blob(self, layer: Layer) -> Blob:
        """A layer as a blob. In a thread. Raises OSError, InvalidParameter."""
        with self._locks.setdefault(layer.diff, threading.Lock()):
            found = self._made.get(layer.diff)
            if found is None:
                found = self._made[layer.diff] = self._as_it_came(layer) or self._make(layer)
            return found

    def _as_it_came(self, layer: Layer) -> Blob | None:
        """The blob that a layer came as, where that will do."""
        if not layer.blob or not self._store.blobs.has(layer.blob):
            return None
        kind = next((kind for kind in (GZIP, ZSTD) if layer.media.endswith(kind)), UNCOMPRESSED)
        if self.form.force and kind != self.form.kind:
            return None
        path = self._store.blobs.path(layer.blob)
        return Blob(media_type(kind, self.form.oci), layer.blob, layer.blob_size, lambda: _pieces(path))

    def _make(self, layer: Layer) -> Blob:
        media = media_type(self.form.kind, self.form.oci)
        if self.form.kind == UNCOMPRESSED:
            size = layer.tar_size or sum(len(data) for data in self._store.layers.tar(layer))
            return Blob(media, layer.diff, size, lambda: self._store.layers.tar(layer))
        packer = compressor(self.form.kind, self.form.level)
        path = self._folder / layer.diff.replace(":", "-")
        digest, size = hashlib.sha256(), 0
        with open(path, "wb") as file:
            for data in _through(packer, self._store.layers.tar(layer)):
                digest.update(data)
                size += len(data)
                file.write(data)
        return Blob(media, f"sha256:{digest.hexdigest()}", size, lambda: _pieces(path))


def _through(packer: Compressor, source: Iterator[bytes]) -> Iterator[bytes]:
    for data in source:
        made = packer.compress(data)
        if made:
            yield made
    yield packer.flush()


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while data := file.read(_PIECE):
            yield data
