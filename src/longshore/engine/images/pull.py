"""Pull: manifest, config and layers of an image from its registry into the store, with dockerd's messages.

Layers are downloaded three at a time and unpacked as they come, side by side: each has a folder of its own, and only
their registration goes in order. Source of messages and rules: moby distribution/pull_v2.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from longshore.engine.errors import EngineError, Forbidden, NotFound, SystemFailure
from longshore.engine.images import mediatypes, references
from longshore.engine.images.blobs import BlobWriter, DigestMismatch, digest_of
from longshore.engine.images.commit import disk_failure
from longshore.engine.images.compression import BrokenStream
from longshore.engine.images.distribution import (
    INDEXES,
    Session,
    not_found,
    whole,
)
from longshore.engine.images.extract import ExtractError
from longshore.engine.images.layers import Layer, chain_id
from longshore.engine.images.manifests import choose
from longshore.engine.images.model import Image, host_architecture
from longshore.engine.images.progress import Meter
from longshore.engine.images.references import Reference
from longshore.engine.images.refusals import RegistryError
from longshore.engine.images.streams import in_thread
from longshore.machinery.http.errors import ClientError
from longshore.wire.tar import TarError

if TYPE_CHECKING:
    from longshore.engine.images.leases import Lease
    from longshore.engine.images.store import ImageStore, Progress

_BATCH = 1 << 20
#: The unit of the pauses between attempts.
SECOND = 1.0
_LAYER_LIMIT = 127 * 4
_CONFIG_LIMIT = 16 << 20


async def pull(
    store: ImageStore,
    reference: str | Reference,
    *,
    auth: dict[str, str] | None,
    platform: str,
    progress: Progress,
    all_tags: bool,
    named: bool = True,
) -> Image:
    """Pull one image, or all tags of a repository (then the last one is returned).

    platform: "os/arch[/variant]", "" for this machine's. named: the image gets the name.
    Raises InvalidReference, NotFound, SystemFailure.
    """
    name = references.parse(reference) if isinstance(reference, str) else reference
    if name.path == "library/scratch" and name.domain == references.DEFAULT_DOMAIN:
        raise Forbidden("'scratch' is a reserved name")
    wanted = "" if all_tags else name.digest or name.with_default_tag().tag
    session = await store.registries.session(name.domain, name.path, auth=auth, actions="pull", wanted=wanted)
    if not all_tags:
        return await _pull_one(store, session, name.with_default_tag(), platform, progress, named)
    try:
        tags = await session.tags()
    except RegistryError as error:
        raise not_found(error, name) from None
    image: Image | None = None
    for tag in tags:
        image = await _pull_one(store, session, name.with_tag(tag), platform, progress)
    if image is None:
        raise NotFound(f"no tags for {name.familiar_name}")
    return image


async def _pull_one(
    store: ImageStore, session: Session, name: Reference, platform: str, progress: Progress, named: bool = True
) -> Image:
    wanted = name.digest or name.tag
    try:
        # The head first: a registry counts it less than a pull, and its refusal is what dockerd shows.
        if not name.digest and wanted not in session.seen:
            await session.head_manifest(wanted)
        body, media, digest = await session.manifest(wanted)
    except RegistryError as error:
        raise not_found(error, name) from None
    shown_path = name.path
    progress({"status": f"Pulling from {shown_path}", "id": name.familiar if name.digest else name.tag})
    before = store.find(str(name), platform) if _named(store, name) else None
    with store.lease() as lease:
        try:
            image, downloaded = await fetch_image(store, session, body, media, digest, platform, progress, str(name))
            lease.add(image.id)
            if store.get(image.id) is None:
                # Pruned before it was held; what is held now stays until it has its name.
                image, _ = await fetch_image(store, session, body, media, digest, platform, progress, str(name))
        except ClientError as error:
            raise SystemFailure(str(error.args[-1]) if error.args else str(error)) from None
        except OSError as error:
            raise disk_failure(error) from None
        if named:
            _remember(store, name, digest, image)
        else:
            store.sync(image.id)
    progress({"status": f"Digest: {digest}"})
    newer = downloaded or before is None or before.id != image.id
    text = "Downloaded newer image" if newer else "Image is up to date"
    progress({"status": f"Status: {text} for {name.familiar}"})
    store.event("pull", image.id, name.familiar)
    return image


def _named(store: ImageStore, name: Reference) -> bool:
    return store.database.one("SELECT 1 FROM names WHERE name=?", str(name)) is not None


def _remember(store: ImageStore, name: Reference, digest: str, image: Image) -> None:
    store.add_digest(name, digest, image.id, durable=not name.tag)
    if name.tag:
        store.tag(image, Reference(name.domain, name.path, name.tag), index=digest, brought=True)


def _decode(body: bytes) -> dict[str, Any]:
    try:
        loaded = orjson.loads(body)
    except ValueError:
        raise SystemFailure("invalid manifest: it is no JSON") from None
    if not isinstance(loaded, dict):
        raise SystemFailure("invalid manifest: it is no JSON object")
    return loaded


async def fetch_image(
    store: ImageStore,
    session: ImageSource,
    body: bytes,
    media: str,
    digest: str,
    platform: str,
    progress: Progress,
    name: str = "",
) -> tuple[Image, bool]:
    """The image that a manifest or index means here, and whether a layer had to come. name: for messages."""
    manifest = _decode(body)
    index: tuple[bytes, str, str] | None = None
    _check_kind(manifest, media)
    if media in INDEXES:
        index = body, media, digest
        entry = choose([m for m in manifest.get("manifests") or [] if isinstance(m, dict)], platform)
        if entry is None:
            shown = platform or f"linux/{host_architecture()}"
            raise NotFound(f"no matching manifest for {shown} in the manifest list entries")
        body, media, digest = await session.manifest(references.check_digest(str(entry.get("digest"))))
        manifest = _decode(body)
        _check_kind(manifest, media)
        if media in INDEXES or "layers" not in manifest:
            raise SystemFailure("invalid manifest list: an entry is no image manifest")
    if manifest.get("schemaVersion") == 1:
        raise mediatypes.schema_1(str(name))
    config_entry, layers = manifest.get("config"), manifest.get("layers")
    if not isinstance(config_entry, dict) or not isinstance(layers, list) or len(layers) > _LAYER_LIMIT:
        raise SystemFailure("invalid manifest: config and layers are missing")
    medias = [str(entry.get("mediaType") or "") for entry in (config_entry, *layers) if isinstance(entry, dict)]
    mediatypes.check(media, medias[0], medias[1:])
    config_digest = references.check_digest(str(config_entry.get("digest")))
    image = store.get(config_digest)
    downloaded = False
    if image is None:
        async with store.undertaking() as lease:
            image = await _fetch(store, session, config_digest, layers, lease, progress)
        downloaded = True
    store.add_manifest(digest, media, body, image.id)
    if index is not None:
        store.add_index(index[2], index[1], index[0], {digest: image.id})
    return image, downloaded


def _check_kind(manifest: dict[str, Any], media: str) -> None:
    """The media type decides, and the body must agree: a document that others may read as something else is refused.

    Source: CVE-2021-41190; distribution manifest/schema2. Raises SystemFailure.
    """
    if "manifests" in manifest and "layers" in manifest:
        raise SystemFailure("invalid manifest: both an index and an image manifest")
    said = manifest.get("mediaType")
    if said and said != media and manifest.get("schemaVersion") != 1:
        raise SystemFailure(f"mediaType in manifest should be '{media}' not '{said}'")


async def _config(session: BlobSource, digest: str) -> tuple[bytes, dict[str, Any]]:
    response = await session.blob(digest)
    raw = await whole(response, _CONFIG_LIMIT)
    if digest_of(raw) != digest:
        raise DigestMismatch(f"image config verification failed for digest {digest}")
    config = _decode(raw)
    diff_ids = (config.get("rootfs") or {}).get("diff_ids") or []
    for diff in diff_ids:
        references.check_digest(str(diff))
    return raw, config


async def _fetch(
    store: ImageStore,
    session: BlobSource,
    config_digest: str,
    entries: list[dict[str, Any]],
    lease: Lease,
    progress: Progress,
) -> Image:
    lease.add(config_digest)
    raw, config = await _config(session, config_digest)
    diff_ids: list[str] = list((config.get("rootfs") or {}).get("diff_ids") or [])
    if len(diff_ids) != len(entries):
        raise SystemFailure("layers from manifest don't match image configuration")
    chain = await fetch_layers(store, session, diff_ids, entries, lease, progress)
    return store.add(raw, chain, durable=False)


async def fetch_layers(
    store: ImageStore,
    session: BlobSource,
    diff_ids: list[str],
    entries: list[dict[str, Any]],
    lease: Lease,
    progress: Progress,
) -> str:
    """Bring layers (descriptors, lowest first) that are not here yet; the topmost one's chain id. Raises EngineError."""
    chains: list[str] = []
    chain = ""
    for diff in diff_ids:
        chain = chain_id(chain, diff)
        chains.append(chain)
    for entry in entries:
        references.check_digest(str(entry.get("digest")))
    lease.add(*chains, *(str(entry["digest"]) for entry in entries))
    slots = asyncio.Semaphore(store.registries.downloads)
    tasks: list[asyncio.Task[None]] = []
    ready: list[asyncio.Future[None]] = [asyncio.get_running_loop().create_future() for _ in entries]
    meters: list[tuple[int, Meter]] = []
    for position, entry in enumerate(entries):
        meter = Meter(progress, str(entry["digest"]).partition(":")[2][:12])
        if store.layers.get(chains[position]) is not None:
            meter.say("Already exists")
            ready[position].set_result(None)
            continue
        meter.say("Pulling fs layer")
        meters.append((position, meter))
    for waiting, (position, meter) in enumerate(meters):
        if waiting >= store.registries.downloads:
            meter.say("Waiting")
        work = _Layer(store, session, entries[position], diff_ids[position], lease, meter, slots)
        below = chains[position - 1] if position else ""
        after = ready[position - 1] if position else None
        tasks.append(asyncio.ensure_future(work.run(below, after, ready[position])))
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    return chains[-1] if chains else ""


class BlobSource(Protocol):
    """Where layers come from: a registry's session, or another's content."""

    async def blob(self, digest: str, *, offset: int = 0) -> Any:
        """An answer (status, headers, chunks(), read(), close()) with a blob from an offset on."""
        ...


class ImageSource(BlobSource, Protocol):
    """Where images come from."""

    async def manifest(self, reference: str) -> tuple[bytes, str, str]:
        """(body, media type, digest) of a manifest by its digest, verified."""
        ...


class _Layer:
    """One layer on its way."""

    def __init__(
        self,
        store: ImageStore,
        session: BlobSource,
        entry: dict[str, Any],
        diff: str,
        lease: Lease,
        meter: Meter,
        slots: asyncio.Semaphore,
    ) -> None:
        self.store, self.session, self.lease, self.meter, self.slots = store, session, lease, meter, slots
        self.digest, self.media, self.diff = str(entry["digest"]), str(entry.get("mediaType") or ""), diff
        size = entry.get("size")
        self.size = size if isinstance(size, int) and size >= 0 else 0

    async def run(self, parent: str, after: asyncio.Future[None] | None, ready: asyncio.Future[None]) -> None:
        """Download, unpack, and register over `parent` once the layer below is there."""
        async with self.slots:
            await _download(self)
        folder = self.store.layers.new_folder()
        try:
            diff, size, length = await self._unpack(folder)
            if diff != self.diff:
                raise DigestMismatch(f"filesystem layer verification failed for digest {self.digest}")
            if after is not None:
                await after
            await in_thread(self._adopt, folder, parent, size, length)
        except BaseException:
            await asyncio.shield(in_thread(self.store.layers.discard, folder))
            raise
        self.meter.say("Pull complete")
        if not ready.done():
            ready.set_result(None)

    async def _unpack(self, folder: Any) -> tuple[str, int, int]:
        path = self.store.blobs.path(self.digest)
        total = self.size or path.stat().st_size
        done = 0
        loop = asyncio.get_running_loop()

        def work() -> tuple[str, int, int]:
            nonlocal done
            with open(path, "rb", buffering=0) as file:

                def read(limit: int) -> bytes:
                    nonlocal done
                    data = file.read(limit)
                    done += len(data)
                    if data:
                        loop.call_soon_threadsafe(self.meter.move, "Extracting", done, total)
                    return data

                return self.store.layers.extract(folder, read)

        try:
            result = await in_thread(work)
        except (TarError, BrokenStream, ExtractError) as error:
            raise SystemFailure(f"failed to register layer: {error}") from None
        except OSError as error:
            raise SystemFailure(
                f"failed to register layer: write {error.filename or ''}: {(error.strerror or str(error)).lower()}"
            ) from None
        self.meter.move("Extracting", total, total, last=True)
        return result

    def _adopt(self, folder: Any, parent: str, size: int, length: int) -> Layer:
        return self.store.layers.adopt(
            folder,
            parent,
            self.diff,
            size,
            tar_size=length,
            blob=self.digest,
            media=self.media,
            blob_size=self.store.blobs.size(self.digest),
            lease=self.lease.id,
        )


_running: dict[tuple[str, str], asyncio.Future[None]] = {}


async def _download(layer: _Layer) -> None:
    """Bring a layer's blob into the content store; two pulls of one blob share one download."""
    key = (str(layer.store.root), layer.digest)
    while True:
        if layer.store.blobs.has(layer.digest):
            layer.meter.say("Download complete")
            return
        other = _running.get(key)
        if other is None:
            break
        await asyncio.wait([other])
    mark: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    _running[key] = mark
    try:
        await _download_alone(layer)
    finally:
        del _running[key]
        mark.set_result(None)


def _open(layer: _Layer) -> BlobWriter:
    """The ingest of a blob: what a cut-off pull left is gone on with, unless another process is at it."""
    name = "pull-" + layer.digest.partition(":")[2]
    path = layer.store.blobs.ingest / name
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink == 0:
            raise BlockingIOError  # somebody took it away in between
    except BlockingIOError:
        os.close(fd)
        return BlobWriter(layer.store.blobs)
    writer = BlobWriter(layer.store.blobs, name=name, resume=True)
    writer.lock = fd
    return writer


async def _download_alone(layer: _Layer) -> None:
    writer = await in_thread(_open, layer)
    attempts = layer.store.registries.attempts
    try:
        for attempt in range(1, attempts + 1):
            try:
                await _transfer(layer, writer)
                break
            except (ClientError, TimeoutError, RegistryError, SystemFailure) as error:
                wait = error.wait if isinstance(error, RegistryError) else 0.0
                if isinstance(error, RegistryError) and 400 <= error.http < 500 and error.http != 408 and not wait:
                    raise
                if isinstance(error, DigestMismatch) or attempt == attempts:
                    raise error if isinstance(error, EngineError) else SystemFailure(str(error)) from None
                for left in range(int(wait) or 5 * attempt, 0, -1):
                    layer.meter.say(f"Retrying in {left} second{'s' if left != 1 else ''}")
                    await asyncio.sleep(SECOND)
        layer.meter.say("Verifying Checksum")
        await in_thread(writer.commit, layer.digest)
        layer.meter.say("Download complete")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            writer.abort()  # what a full disk needs is room
        raise
    finally:
        writer.keep()


async def _transfer(layer: _Layer, writer: BlobWriter) -> None:
    if layer.size and writer.offset == layer.size:
        return
    response = await layer.session.blob(layer.digest, offset=writer.offset)
    try:
        if writer.offset and response.status != 206:
            writer.restart()
        length = int(response.headers.get("Content-Length") or 0)
        total = layer.size or writer.offset + length
        held: list[bytes] = []
        size = 0
        received = writer.offset
        writing: asyncio.Future[None] | None = None
        try:
            async for data in response.chunks():
                held.append(data)
                size += len(data)
                received += len(data)
                # An answer longer than the manifest says is an attack on the disk.
                if layer.size and received > layer.size:
                    raise DigestMismatch(f"filesystem layer verification failed for digest {layer.digest}")
                if size >= _BATCH:
                    # One batch is hashed and written while the next one comes.
                    if writing is not None:
                        await writing
                    writing = asyncio.ensure_future(in_thread(writer.write, held))
                    held, size = [], 0
                    layer.meter.move("Downloading", received, total)
        finally:
            if writing is not None:
                await asyncio.shield(writing)
            # What came before a cut is kept too: the next attempt goes on behind it.
            if held and not (layer.size and received > layer.size):
                await asyncio.shield(in_thread(writer.write, held))
        if total and writer.offset < total:
            raise SystemFailure("unexpected EOF")
        layer.meter.move("Downloading", writer.offset, total or writer.offset, last=True)
    finally:
        with contextlib.suppress(Exception):
            await response.close()


async def distribution_inspect(store: ImageStore, reference: str, *, auth: dict[str, str] | None) -> dict[str, Any]:
    """GET /distribution/NAME/json: the descriptor and the platforms that a registry has. Raises as pull()."""
    name = references.parse(reference).with_default_tag()
    session = await store.registries.session(name.domain, name.path, auth=auth, actions="pull")
    wanted = name.digest or name.tag
    try:
        if not name.digest and wanted not in session.seen:
            await session.head_manifest(wanted)
        body, media, digest = await session.manifest(wanted)
    except RegistryError as error:
        raise not_found(error, name) from None
    manifest = _decode(body)
    platforms: list[dict[str, Any]] = []
    if media in INDEXES:
        platforms = [
            dict(m["platform"]) for m in manifest.get("manifests") or [] if isinstance(m.get("platform"), dict)
        ]
    elif isinstance(manifest.get("config"), dict):
        response = await session.blob(str(manifest["config"].get("digest")))
        config = _decode(await whole(response))
        platforms = [{key: config[key] for key in ("architecture", "os", "variant") if config.get(key)}]
    return {"Descriptor": {"mediaType": media, "digest": digest, "size": len(body)}, "Platforms": platforms}
