"""docker load: images from an OCI layout or a docker-archive, in one tar or each alone.

Source: moby image/tarexport, daemon/containerd/image_exporter.go; OCI image-spec image-layout.md.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.errors import NotFound, SystemFailure
from longshore.engine.images import compression, references
from longshore.engine.images.blobs import DigestMismatch, digest_of
from longshore.engine.images.compression import BrokenStream
from longshore.engine.images.distribution import INDEXES, OCI_LAYER
from longshore.engine.images.extract import ExtractError, Extractor, remove_path
from longshore.engine.images.layers import Layer, chain_id
from longshore.engine.images.listing import platform_matches
from longshore.engine.images.model import Image
from longshore.engine.images.pack import Packer
from longshore.engine.images.progress import Meter
from longshore.engine.images.references import Reference
from longshore.engine.images.streams import consume, in_thread
from longshore.engine.images.variants import is_attestation, preferred
from longshore.machinery import rooted
from longshore.wire.tar import TarError, TarReader

if TYPE_CHECKING:
    from longshore.engine.images.leases import Lease
    from longshore.engine.images.store import ImageStore, Progress

_PIECE = 1 << 20
_JSON_LIMIT = 16 << 20
_DEPTH = 4


@dataclass(slots=True)
class _Several:
    """An index of an archive. manifests: the (descriptor, manifest, as an entry of manifest.json) of each image in it."""

    digest: str
    media: str
    body: bytes
    names: list[str] = field(default_factory=list)
    manifests: list[tuple[dict[str, Any], bytes, dict[str, Any]]] = field(default_factory=list)
    attested: list[dict[str, Any]] = field(default_factory=list)


async def load(
    store: ImageStore, source: AsyncIterable[bytes], *, progress: Progress, quiet: bool, platform: str = ""
) -> None:
    """Take images from an archive of either form (compressed or not). platform: only those of this one.

    Raises SystemFailure with dockerd's text, NotFound for want of the platform.
    """
    folder = store.root / "tmp" / f"docker-import-{secrets.randbelow(10**9)}"
    folder.mkdir(mode=0o700, parents=True)
    # The lock tells a starting engine that somebody is at work here.
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def unpack(read: Callable[[int], bytes]) -> None:
        space = os.statvfs(folder)
        with Extractor(
            folder, whiteouts="keep", keep_dirs=False, owner=(0, 0), limit=space.f_bavail * space.f_frsize
        ) as extractor:
            extractor.extract(TarReader(compression.reader(read)))

    try:
        await consume(source, unpack)
        await _Loader(store, folder, progress, quiet, platform).run()
    except (TarError, BrokenStream, ExtractError) as error:
        raise SystemFailure(str(error)) from None
    except OSError as error:
        raise SystemFailure(f"{error.filename or ''}: {(error.strerror or str(error)).lower()}") from None
    finally:
        await in_thread(remove_path, folder)
        os.close(lock)


def _json(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except ValueError:
        text = data.decode("utf-8", "replace").strip()
        if not text or text.count("{") + text.count("[") > text.count("}") + text.count("]"):
            raise SystemFailure("unexpected EOF") from None
        found = re.match(r"\s*(\S)", text)
        shown = found[1] if found else ""
        raise SystemFailure(f"invalid character '{shown}' looking for beginning of value") from None


class _Loader:
    def __init__(self, store: ImageStore, folder: Path, progress: Progress, quiet: bool, platform: str) -> None:
        self.store, self.folder, self.progress, self.quiet = store, folder, progress, quiet
        self.platform = platform
        self.parents: dict[str, str] = {}  # of the images that were loaded, as the archive tells

    def read(self, path: str) -> bytes:
        """A document of the archive. Raises SystemFailure."""
        try:
            return rooted.read_file(self.folder, path, _JSON_LIMIT)
        except FileNotFoundError:
            raise SystemFailure(f"open {self.folder}/{path}: no such file or directory") from None
        except OSError as error:
            raise SystemFailure(f"open {self.folder}/{path}: {(error.strerror or '').lower()}") from None

    def has(self, path: str) -> bool:
        return (self.folder / path).is_file()

    async def run(self) -> None:
        several: list[_Several] = []
        if self.has("index.json"):
            several, singles = self._layout()
        if self.has("manifest.json"):
            # What stands for an index is there once more, as the image of one platform.
            named = {self._name(text) for one in several for text in one.names}
            entries = _json(self.read("manifest.json"))
            if not isinstance(entries, list):
                raise SystemFailure("json: cannot unmarshal object into Go value of type []tarexport.manifestItem")
            if not all(isinstance(entry, dict) for entry in entries):
                raise SystemFailure("invalid manifest.json")
            kept = {str(path) for one in several for _, _, entry in one.manifests for path in (entry["Config"],)}
            singles = [entry for entry in entries if not self._among(entry, named, kept)]
        elif not self.has("index.json"):
            # The format before 1.10 would be told by this file; it is not read any more than others'.
            self.read("repositories")
            raise SystemFailure("the archive has neither manifest.json nor index.json")
        said: list[str] = []
        with self.store.lease() as lease:
            for one in several:
                said += await self._several(one, lease)
            for entry in singles:
                said += await self._image(entry, lease)
            self._link()
        if self.platform and not said and (several or singles):
            raise NotFound(f"requested platform(s) ([{self.platform}]) not found: image might be filtered out")
        for text in said:
            self.progress({"stream": text})

    def _name(self, text: str) -> str:
        return str(references.parse(text).with_default_tag())

    def _among(self, entry: dict[str, Any], named: set[str], kept: set[str]) -> bool:
        """Is an entry of manifest.json one of the images of an index?"""
        tags = [self._name(str(text)) for text in entry.get("RepoTags") or []]
        return str(entry.get("Config")) in kept and all(tag in named for tag in tags)

    # -- an OCI layout ---------------------------------------------------------------------------------------------

    def _layout(self) -> tuple[list[_Several], list[dict[str, Any]]]:
        """The layout's indexes that have several platforms, and its other images as entries of manifest.json."""
        index = _json(self.read("index.json"))
        if not isinstance(index, dict):
            raise SystemFailure("invalid index.json")
        several: dict[str, _Several] = {}
        singles: list[dict[str, Any]] = []
        for descriptor in filter(lambda one: isinstance(one, dict), index.get("manifests") or []):
            name = _annotated_name(descriptor)
            if descriptor.get("mediaType") not in INDEXES:
                singles.append(self._entry(_json(self._blob(descriptor)), name))
                continue
            digest = str(descriptor.get("digest"))
            if digest not in several:
                several[digest] = self._index(descriptor, 0)
            one = several[digest]
            if name:
                one.names.append(name)
        whole = [one for one in several.values() if len(one.manifests) + len(one.attested) > 1]
        for one in several.values():
            if one not in whole and one.manifests:
                singles.append({**one.manifests[0][2], "RepoTags": one.names or None})
        return whole, singles

    def _index(self, descriptor: dict[str, Any], depth: int) -> _Several:
        body = self._blob(descriptor)
        found = _Several(str(descriptor.get("digest")), str(descriptor.get("mediaType")), body)
        loaded = _json(body)
        if not isinstance(loaded, dict) or depth > _DEPTH:
            raise SystemFailure("invalid index.json")
        for entry in filter(lambda one: isinstance(one, dict), loaded.get("manifests") or []):
            # An archive may hold some platforms only.
            if not self.has(_blob_path(entry)):
                continue
            if entry.get("mediaType") in INDEXES:
                inner = self._index(entry, depth + 1)
                found.manifests += inner.manifests
            elif is_attestation(entry):
                found.attested.append(entry)
            else:
                manifest = self._blob(entry)
                made = self._entry(_json(manifest), "")
                if all(self.has(path) for path in (made["Config"], *made["Layers"])):
                    found.manifests.append((entry, manifest, made))
        return found

    def _entry(self, manifest: Any, name: str) -> dict[str, Any]:
        """A manifest as an entry of a docker-archive's manifest.json."""
        if not isinstance(manifest, dict):
            raise SystemFailure("invalid manifest")
        return {
            "Config": _blob_path(manifest.get("config") or {}),
            "RepoTags": [name] if name else None,
            "Layers": [_blob_path(layer) for layer in manifest.get("layers") or []],
        }

    def _blob(self, descriptor: dict[str, Any]) -> bytes:
        data = self.read(_blob_path(descriptor))
        if digest_of(data) != descriptor.get("digest"):
            raise DigestMismatch(f"digest mismatch of {descriptor.get('digest')}")
        return data

    def _link(self) -> None:
        """Tell the store which of the images were built on which. Raises SystemFailure for what cannot be so."""
        for image_id, parent_id in self.parents.items():
            if parent_id == image_id or parent_id not in self.parents:
                continue
            image, parent = self.store.get(image_id), self.store.get(parent_id)
            if image is None or parent is None:
                continue
            if image.diff_ids[: len(parent.diff_ids)] != parent.diff_ids:
                raise SystemFailure(f"image {parent_id} is not a valid parent for image {image_id}")
            self.store.set_parent(image_id, parent_id)

    # -- into the store --------------------------------------------------------------------------------------------

    async def _several(self, one: _Several, lease: Lease) -> list[str]:
        """Register the images of an index; what to tell the client at the end."""
        store = self.store
        members: dict[str, str] = {}
        for entry, manifest, described in one.manifests:
            image = await self._register(described, lease)
            if image is None:
                continue
            members[str(entry["digest"])] = image.id
            store.add_manifest(str(entry["digest"]), str(entry.get("mediaType")), manifest, image.id)
        if not members:
            return []
        for entry in one.attested:
            about = str((entry.get("annotations") or {}).get("vnd.docker.reference.digest"))
            if about in members:
                self._attested(entry, members[about])
        store.add_index(one.digest, one.media, one.body, members)
        own, _ = preferred(store, next(iter(members.values())), one.digest)
        names = [references.parse(text).with_default_tag() for text in one.names]
        for name in names:
            self._renaming(name, own)
            store.tag(own, name, index=one.digest, brought=True)
        store.event("load", own, own)
        return [f"Loaded image: {name.familiar}\n" for name in names] or [f"Loaded image ID: {own}\n"]

    def _attested(self, entry: dict[str, Any], image_id: str) -> None:
        body = self._blob(entry)
        self.store.add_manifest(str(entry["digest"]), str(entry.get("mediaType")), body, image_id)
        manifest = _json(body)
        for part in [manifest.get("config") or {}, *(manifest.get("layers") or [])]:
            if self.has(_blob_path(part)):
                self.store.add_manifest(str(part["digest"]), str(part.get("mediaType")), self._blob(part), image_id)

    def _renaming(self, name: Reference, image_id: str) -> None:
        old = self.store.find(str(name))
        if old is not None and old.id != image_id:
            words = f"The image {name.familiar} already exists, renaming the old one with ID {old.id} to empty string\n"
            self.progress({"stream": words})

    async def _image(self, entry: dict[str, Any], lease: Lease) -> list[str]:
        """Register one image under its names; what to tell the client at the end."""
        image = await self._register(entry, lease)
        if image is None:
            return []
        said: list[str] = []
        for text in entry.get("RepoTags") or []:
            name = references.parse(str(text)).with_default_tag()
            self._renaming(name, image.id)
            self.store.tag(image, name, brought=True)
            said.append(f"Loaded image: {name.familiar}\n")
        self.store.event("load", image.id, image.id)
        self.parents[image.id] = str(entry.get("Parent") or "")
        return said or [f"Loaded image ID: {image.id}\n"]

    async def _register(self, entry: dict[str, Any], lease: Lease) -> Image | None:
        """Add one image to the store; None when it is of another platform than the one that was asked for.

        lease: holds the image until it has its names.
        """
        raw = self.read(str(entry.get("Config") or ""))
        config = _json(raw)
        if not isinstance(config, dict):
            raise SystemFailure("invalid image config")
        if self.platform and not platform_matches(Image("", "", "", raw, 0, 0, 0), self.platform):
            return None
        diff_ids = [str(d) for d in (config.get("rootfs") or {}).get("diff_ids") or []]
        paths = [str(path) for path in entry.get("Layers") or []]
        if len(diff_ids) != len(paths):
            raise SystemFailure(f"invalid manifest, layers length mismatch: expected {len(diff_ids)}, got {len(paths)}")
        store = self.store
        lease.add(digest_of(raw))
        async with store.undertaking() as layers:
            chain = ""
            for diff, path in zip(diff_ids, paths, strict=True):
                references.check_digest(diff)
                below, chain = chain, chain_id(chain, diff)
                layers.add(chain)
                if store.layers.get(chain) is None:
                    await self._layer(path, diff, below, layers.id)
            return store.add(raw, chain)

    async def _layer(self, path: str, diff: str, parent: str, lease: str) -> Layer:
        meter = Meter(self.progress, diff[7:19])
        loop = asyncio.get_running_loop()
        store = self.store

        def work() -> Layer:
            made = store.layers.new_folder()
            try:
                try:
                    fd = rooted.open_in(self.folder, path, os.O_RDONLY | os.O_NONBLOCK)
                except OSError:
                    raise SystemFailure(f"open {self.folder}/{path}: no such file or directory") from None
                with open(fd, "rb", buffering=0) as file:
                    total, done = os.fstat(file.fileno()).st_size, 0

                    def read(limit: int) -> bytes:
                        nonlocal done
                        data = file.read(limit)
                        done += len(data)
                        if data and not self.quiet:
                            loop.call_soon_threadsafe(meter.move, "Loading layer", done, total)
                        return data

                    found, size, tar_size = store.layers.extract(made, read)
                    if found != diff:
                        raise SystemFailure(f'invalid diffID for layer: expected "{diff}", got "{found}"')
                    blob = self._keep(file.fileno(), made)
                return store.layers.adopt(
                    made,
                    parent,
                    diff,
                    size,
                    tar_size=tar_size,
                    blob=blob,
                    media=OCI_LAYER,
                    blob_size=total if blob else 0,
                    lease=lease,
                )
            except BaseException:
                store.layers.discard(made)
                raise

        layer = await in_thread(work)
        if not self.quiet:
            size = layer.tar_size
            meter.move("Loading layer", size, size, last=True)
        return layer

    def _keep(self, fd: int, made: Path) -> str:
        """Keep the layer's own tar, unless the one that we would write for its content is the same."""
        if _is_packed(fd, made / "diff"):
            return ""
        from longshore.engine.images.blobs import BlobWriter

        writer = BlobWriter(self.store.blobs)
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            while data := os.read(fd, _PIECE):
                writer.write(data)
            return writer.commit()
        except BaseException:
            writer.abort()
            raise


def _is_packed(fd: int, folder: Path) -> bool:
    """Is a tar (in any compression) byte for byte what we would write for a folder? The first difference ends it."""
    os.lseek(fd, 0, os.SEEK_SET)
    read = compression.reader(lambda limit: os.read(fd, limit))
    held = memoryview(b"")
    for ours in Packer(folder):
        wanted = memoryview(ours)
        while wanted:
            if not held:
                held = memoryview(read(_PIECE))
                if not held:
                    return False
            count = min(len(held), len(wanted))
            if held[:count] != wanted[:count]:
                return False
            held, wanted = held[count:], wanted[count:]
    return not held and not read(_PIECE)


def _blob_path(descriptor: dict[str, Any]) -> str:
    algorithm, _, text = str(descriptor.get("digest")).partition(":")
    references.check_digest(f"{algorithm}:{text}")
    return f"blobs/{algorithm}/{text}"


def _annotated_name(descriptor: dict[str, Any]) -> str:
    notes = descriptor.get("annotations") or {}
    if notes.get("io.containerd.image.name"):
        return str(notes["io.containerd.image.name"])
    name = str(notes.get("org.opencontainers.image.ref.name") or "")
    return name if ":" in name or "/" in name else ""
