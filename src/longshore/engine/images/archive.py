"""docker save and docker load: an OCI layout and a docker-archive in one tar.

Source: moby image/tarexport; OCI image-spec image-layout.md.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from collections.abc import AsyncIterable, Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.errors import NotFound, SystemFailure
from longshore.engine.images import compression, references
from longshore.engine.images.blobs import DigestMismatch, digest_of
from longshore.engine.images.compression import BrokenStream
from longshore.engine.images.distribution import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from longshore.engine.images.extract import ExtractError, Extractor, remove_path
from longshore.engine.images.layers import Layer, chain_id
from longshore.engine.images.listing import platform_matches
from longshore.engine.images.model import Image
from longshore.engine.images.pack import Packer
from longshore.engine.images.progress import Meter
from longshore.engine.images.references import Reference
from longshore.engine.images.streams import consume, in_thread, passed
from longshore.machinery import rooted
from longshore.wire import tar
from longshore.wire.tar import TarError, TarReader

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore, Progress

_PIECE = 1 << 20
_JSON_LIMIT = 16 << 20


# -- save ----------------------------------------------------------------------------------------------------------


def select(store: ImageStore, names: list[str]) -> list[tuple[Image, list[Reference]]]:
    """The images that names mean, each once, with the tags to save. Raises NotFound, InvalidReference."""
    found: dict[str, tuple[Image, list[Reference]]] = {}
    for text in names:
        parsed = references.parse_any(text)
        tags: list[Reference] = []
        images: list[Image] = []
        if not isinstance(parsed, str) and not parsed.tag and not parsed.digest:
            rows = store.database.all(
                "SELECT name, image FROM names WHERE repository=? AND tag<>'' ORDER BY tag", parsed.repository
            )
            for name, image_id in rows:
                image = store.get(image_id)
                if image is not None:
                    found.setdefault(image.id, (image, []))[1].append(references.parse_stored(name))
            if rows:
                continue
        one = store.find(text)
        if one is None:
            raise NotFound(f"No such image: {text}")
        images.append(one)
        if not isinstance(parsed, str) and parsed.tag:
            tags.append(parsed)
        for image in images:
            known = found.setdefault(image.id, (image, []))[1]
            known += [tag for tag in tags if tag not in known]
    return list(found.values())


def save(store: ImageStore, names: list[str], platform: str) -> Generator[bytes]:
    """The archive of some images, piece by piece. Raises (before the first piece) NotFound, SystemFailure."""
    chosen = select(store, names)
    for image, _ in chosen:
        if platform and not platform_matches(image, platform):
            raise SystemFailure(f"no suitable export target found for platform {platform}")
    lease = store.lease()
    lease.add(*(image.chain for image, _ in chosen if image.chain))
    return _archive(store, chosen, lease)


def _archive(store: ImageStore, chosen: list[tuple[Image, list[Reference]]], lease: Any) -> Generator[bytes]:
    now = int(time.time()) * 10**9
    with lease:
        yield tar.header(tar.Entry("blobs/", tar.DIRECTORY, 0o755, mtime=now))
        yield tar.header(tar.Entry("blobs/sha256/", tar.DIRECTORY, 0o755, mtime=now))
        index: list[dict[str, Any]] = []
        manifest: list[dict[str, Any]] = []
        repositories: dict[str, dict[str, str]] = {}
        written: set[str] = set()
        for image, tags in chosen:
            stack = list(reversed(store.layers.stack(image.chain)))
            descriptors: list[dict[str, Any]] = []
            for layer in stack:
                size = layer.tar_size or sum(len(data) for data in store.layers.tar(layer))
                descriptors.append({"mediaType": OCI_LAYER, "digest": layer.diff, "size": size})
                if layer.diff not in written:
                    written.add(layer.diff)
                    yield from member(f"blobs/sha256/{layer.diff[7:]}", size, store.layers.tar(layer), image.created)
            config = {"mediaType": OCI_CONFIG, "digest": image.id, "size": len(image.raw)}
            body = orjson.dumps(
                {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": descriptors}
            )
            digest = digest_of(body)
            for name, data in ((image.id, image.raw), (digest, body)):
                if name not in written:
                    written.add(name)
                    yield from member(f"blobs/sha256/{name[7:]}", len(data), iter((data,)), image.created)
            entry: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(body)}
            if not tags:
                index.append(entry)
            for tag in tags:
                notes = {"io.containerd.image.name": str(tag), "org.opencontainers.image.ref.name": tag.tag}
                index.append({**entry, "annotations": notes})
                if stack:
                    repositories.setdefault(tag.familiar_name, {})[tag.tag] = stack[-1].chain[7:]
            manifest.append(
                {
                    "Config": f"blobs/sha256/{image.id[7:]}",
                    "RepoTags": [tag.familiar for tag in tags] or None,
                    "Layers": [f"blobs/sha256/{layer.diff[7:]}" for layer in stack],
                    "LayerSources": {d["digest"]: d for d in descriptors},
                }
            )
        documents: list[tuple[str, Any]] = [
            ("index.json", {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index}),
            ("manifest.json", manifest),
            ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
        ]
        if repositories:
            documents.append(("repositories", repositories))
        for name, document in documents:
            data = orjson.dumps(document)
            yield from member(name, len(data), iter((data,)), 0)
        yield tar.END


def member(name: str, size: int, content: Iterator[bytes], mtime: int) -> Iterator[bytes]:
    """One file of an archive, in the pieces of its content. mtime: nanoseconds."""
    yield tar.header(tar.Entry(name, tar.REGULAR, 0o644, size=size, mtime=mtime // 10**9 * 10**9))
    for data in content:
        yield data
        passed(len(data))
    yield tar.padding(size)


# -- load ----------------------------------------------------------------------------------------------------------


async def load(store: ImageStore, source: AsyncIterable[bytes], *, progress: Progress, quiet: bool) -> None:
    """Take images from an archive of either form (compressed or not). Raises SystemFailure with dockerd's text."""
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
        await _Loader(store, folder, progress, quiet).run()
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
    def __init__(self, store: ImageStore, folder: Path, progress: Progress, quiet: bool) -> None:
        self.store, self.folder, self.progress, self.quiet = store, folder, progress, quiet

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
        if self.has("manifest.json"):
            entries = _json(self.read("manifest.json"))
            if not isinstance(entries, list):
                raise SystemFailure("json: cannot unmarshal object into Go value of type []tarexport.manifestItem")
        elif self.has("index.json"):
            entries = self._layout()
        else:
            # The format before 1.10 would be told by this file; it is not read any more than others'.
            self.read("repositories")
            raise SystemFailure("the archive has neither manifest.json nor index.json")
        said: list[str] = []
        for entry in entries:
            if not isinstance(entry, dict):
                raise SystemFailure("invalid manifest.json")
            said += await self._image(entry)
        for text in said:
            self.progress({"stream": text})

    def _layout(self) -> list[dict[str, Any]]:
        """An OCI layout's images as entries of a docker-archive's manifest.json."""
        entries: list[dict[str, Any]] = []
        for descriptor in self._manifests(_json(self.read("index.json")), 0):
            manifest = _json(self._blob(descriptor))
            notes = descriptor.get("annotations") or {}
            name = notes.get("io.containerd.image.name") or ""
            if not name:
                name = notes.get("org.opencontainers.image.ref.name") or ""
                name = name if ":" in name or "/" in name else ""
            entries.append(
                {
                    "Config": _blob_path(manifest.get("config") or {}),
                    "RepoTags": [name] if name else None,
                    "Layers": [_blob_path(layer) for layer in manifest.get("layers") or []],
                }
            )
        return entries

    def _manifests(self, index: Any, depth: int) -> list[dict[str, Any]]:
        from longshore.engine.images.pull import choose

        if not isinstance(index, dict) or depth > 4:
            raise SystemFailure("invalid index.json")
        found: list[dict[str, Any]] = []
        for descriptor in index.get("manifests") or []:
            if "index" in str(descriptor.get("mediaType")) or "manifest.list" in str(descriptor.get("mediaType")):
                nested = _json(self._blob(descriptor))
                chosen = choose([m for m in nested.get("manifests") or [] if isinstance(m, dict)], "")
                if chosen is None:
                    continue
                found.append({**chosen, "annotations": descriptor.get("annotations")})
            else:
                found.append(descriptor)
        return found

    def _blob(self, descriptor: dict[str, Any]) -> bytes:
        data = self.read(_blob_path(descriptor))
        if digest_of(data) != descriptor.get("digest"):
            raise DigestMismatch(f"digest mismatch of {descriptor.get('digest')}")
        return data

    async def _image(self, entry: dict[str, Any]) -> list[str]:
        """Register one image; what to tell the client at the end."""
        raw = self.read(str(entry.get("Config") or ""))
        config = _json(raw)
        if not isinstance(config, dict):
            raise SystemFailure("invalid image config")
        diff_ids = [str(d) for d in (config.get("rootfs") or {}).get("diff_ids") or []]
        paths = [str(path) for path in entry.get("Layers") or []]
        if len(diff_ids) != len(paths):
            raise SystemFailure(f"invalid manifest, layers length mismatch: expected {len(diff_ids)}, got {len(paths)}")
        store = self.store
        with store.lease() as lease:
            chain = ""
            for diff, path in zip(diff_ids, paths, strict=True):
                references.check_digest(diff)
                below, chain = chain, chain_id(chain, diff)
                lease.add(chain)
                if store.layers.get(chain) is None:
                    await self._layer(path, diff, below, lease.id)
            image = store.add(raw, chain)
        said: list[str] = []
        for text in entry.get("RepoTags") or []:
            name = references.parse(str(text)).with_default_tag()
            old = store.find(str(name))
            if old is not None and old.id != image.id:
                self.progress(
                    {
                        "stream": f"The image {name.familiar} already exists, renaming the old one with ID {old.id} to empty string\n"
                    }
                )
            store.tag(image, name)
            said.append(f"Loaded image: {name.familiar}\n")
        store.event("load", image.id, image.id)
        return said or [f"Loaded image ID: {image.id}\n"]

    async def _layer(self, path: str, diff: str, parent: str, lease: str) -> Layer:
        import asyncio

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
