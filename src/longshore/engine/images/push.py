"""Push: an image's layers, config and manifest to its registry, with dockerd's messages.

What the registry has is not sent; what it has in another repository is mounted. A layer that was pulled goes as it came;
one that was made here is compressed on the way. Source of messages and rules: moby distribution/push_v2.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.errors import EngineError, NotFound, SystemFailure, Unauthorized
from longshore.engine.images import manifests, references
from longshore.engine.images.distribution import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_LAYER,
    Session,
)
from longshore.engine.images.layers import Layer
from longshore.engine.images.manifests import IN_TOTO, Document, Entry
from longshore.engine.images.model import Image
from longshore.engine.images.progress import Meter
from longshore.engine.images.references import Reference
from longshore.engine.images.refusals import RegistryError
from longshore.engine.images.streams import pieces
from longshore.engine.images.variants import Index, entries_of, index_of, keep, manifest_annotations

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore, Progress

_PIECE = 1 << 20
_LEVEL = 1  # isal's levels end at 3; this one keeps up with a gigabit and a half on one core


async def push(
    store: ImageStore,
    reference: str | Reference,
    *,
    auth: dict[str, str] | None,
    progress: Progress,
    platform: str,
) -> None:
    """Push a tag, or without one all tags of the repository. Raises NotFound, SystemFailure, Unauthorized."""
    name = references.parse(reference) if isinstance(reference, str) else reference
    if platform and name.tag and store.find(str(name)) is not None:
        store.resolve(name.familiar, platform)
    progress({"status": f"The push refers to repository [{name.domain}/{name.path}]"})
    rows = store.database.all(
        "SELECT tag, image FROM names WHERE repository=? AND tag<>'' ORDER BY tag", name.repository
    )
    if not rows:
        raise NotFound(f"An image does not exist locally with the tag: {name.familiar_name}")
    if name.tag:
        rows = [row for row in rows if row[0] == name.tag]
        if not rows:
            raise NotFound(f"tag does not exist: {name.familiar}")
    session = await store.registries.session(name.domain, name.path, auth=auth, actions="pull,push", pull=False)
    for tag, image_id in rows:
        image = store.find(str(name.with_tag(tag)), platform)
        if image is None:
            raise NotFound(f"No such image: {image_id}")
        try:
            await _push_tag(store, session, image, name.with_tag(tag), progress, one=bool(platform))
        except Unauthorized as error:
            # The message of a push has no request in front.
            raise Unauthorized(error.message.rpartition('": ')[2]) from None
        store.event("push", image.id, name.with_tag(tag).familiar)


async def _push_tag(
    store: ImageStore, session: Session, image: Image, name: Reference, progress: Progress, *, one: bool
) -> None:
    """Push what a tag stands for. one: only this image of a tag of several platforms."""
    index = index_of(store, name)
    if index is not None and not one and index.whole:
        document = await _push_platforms(store, session, index, name, progress)
        _pushed(name, document.digest, len(document.body), progress)
        return
    stack = store.layers.stack(image.chain)
    kept = _kept_manifest(store, image, stack)
    meters = [Meter(progress, layer.diff.partition(":")[2][:12]) for layer in stack]
    for meter in meters:
        meter.say("Preparing")
    for meter in meters[store.registries.uploads :]:
        meter.say("Waiting")
    slots = asyncio.Semaphore(store.registries.uploads)
    tasks = [
        asyncio.ensure_future(_push_layer(store, session, layer, name, meter, slots, kept is not None))
        for layer, meter in zip(stack, meters, strict=True)
    ]
    with store.lease() as lease:
        lease.add(image.chain)
        try:
            descriptors = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
    await send_bytes(session, image.raw, image.id)
    if kept is not None:
        media, body = kept
    else:
        media = DOCKER_MANIFEST
        body = _manifest(image, list(reversed(descriptors)))
    digest = await session.put_manifest(name.tag, body, media)
    store.add_manifest(digest, media, body, image.id)
    store.add_digest(name, digest, image.id)
    _pushed(name, digest, len(body), progress)
    if index is not None and not one:
        chosen = {"mediaType": media, "digest": digest, "size": len(body)}
        told = {"manifestPushedInsteadOfIndex": True, "originalIndex": index.descriptor, "selectedManifest": chosen}
        progress({"progressDetail": {}, "aux": told})


def _pushed(name: Reference, digest: str, size: int, progress: Progress) -> None:
    progress({"status": f"{name.tag}: digest: {digest} size: {size}"})
    progress({"progressDetail": {}, "aux": {"Tag": name.tag, "Digest": digest, "Size": size}})


async def _push_platforms(
    store: ImageStore, session: Session, index: Index, name: Reference, progress: Progress
) -> Document:
    """Push all images of a tag; the index that the registry has now. One that came whole goes byte for byte as it came."""
    kept: dict[str, tuple[str, bytes]] = {}
    for member in index.members:
        found = _kept_manifest(store, member.image, store.layers.stack(member.image.chain), member.entry["digest"])
        if found is not None:
            kept[member.entry["digest"]] = found
    if len(kept) < len(index.members):
        notes = {"index": index.annotations, "manifest": manifest_annotations(store, index)}
        return await send_index(store, session, name, entries_of(store, index), notes, progress=progress)
    with store.lease() as lease:
        lease.add(*(member.image.chain for member in index.members))
        await _send_layers(store, session, name, [member.image for member in index.members], progress, exact=True)
        for member in index.members:
            await send_bytes(session, member.image.raw, member.image.id)
            media, body = kept[member.entry["digest"]]
            await session.put_manifest(member.entry["digest"], body, media)
        # What is attested does not come with a pull: an index without it is another one.
        top = Document(index.body, index.media)
        if len(kept) < len(index.entries):
            shown = orjson.loads(index.body) | {"manifests": [member.entry for member in index.members]}
            top = Document(orjson.dumps(shown), index.media)
            members = {member.entry["digest"]: member.image.id for member in index.members}
            store.add_index(top.digest, top.media, top.body, members)
        await session.put_manifest(name.tag, top.body, top.media)
    store.add_digest(name, top.digest, index.members[0].image.id)
    return top


async def _send_layers(
    store: ImageStore, session: Session, name: Reference, images: list[Image], progress: Progress, *, exact: bool
) -> dict[str, dict[str, Any]]:
    """Bring the layers of some images over, each once; descriptors by chain id."""
    layers = {layer.chain: layer for image in images for layer in store.layers.stack(image.chain)}
    meters = [Meter(progress, layer.diff.partition(":")[2][:12]) for layer in layers.values()]
    for meter in meters:
        meter.say("Preparing")
    slots = asyncio.Semaphore(store.registries.uploads)
    tasks = [
        asyncio.ensure_future(_push_layer(store, session, layer, name, meter, slots, exact))
        for layer, meter in zip(layers.values(), meters, strict=True)
    ]
    try:
        return dict(zip(layers, await asyncio.gather(*tasks), strict=True))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def push_index(
    store: ImageStore,
    name: Reference,
    entries: list[Entry],
    *,
    auth: dict[str, str] | None,
    annotations: Mapping[str, Mapping[str, str]] | None = None,
    single: bool = False,
) -> Document:
    """Push images of several platforms, and what is attested about them, under one name; the document of that name.

    single: one image without attestations goes without an index. Raises SystemFailure, Unauthorized.
    """
    session = await store.registries.session(name.domain, name.path, auth=auth, actions="pull,push", pull=False)
    top = await send_index(store, session, name, entries, annotations or {}, single=single)
    store.event("push", entries[0].image.id, name.familiar)
    return top


async def send_index(
    store: ImageStore,
    session: Session,
    name: Reference,
    entries: list[Entry],
    notes: Mapping[str, Mapping[str, str]],
    *,
    single: bool = False,
    progress: Progress = lambda _: None,
) -> Document:
    """As push_index, over a session that is open."""
    made: list[tuple[Entry, Document, Document | None]] = []
    with store.lease() as lease:
        lease.add(*(entry.image.chain for entry in entries))
        sent = await _send_layers(store, session, name, [entry.image for entry in entries], progress, exact=False)
        for entry in entries:
            layers = [sent[layer.chain] for layer in reversed(store.layers.stack(entry.image.chain))]
            shown = [
                {**layer, "mediaType": OCI_LAYER + "+gzip"} if layer["mediaType"] == DOCKER_LAYER else layer
                for layer in layers
            ]
            document = manifests.of_image(entry.image, shown, annotations=notes.get("manifest"))
            attested = manifests.of_statements(entry.statements, document.digest) if entry.statements else None
            made.append((entry, document, attested))
        lone = single and len(made) == 1 and made[0][2] is None
        for _, document, attested in made:
            for part in (document, attested):
                if part is None:
                    continue
                for digest, data in part.blobs.items():
                    await send_bytes(session, data, digest)
                if not lone:
                    await session.put_manifest(part.digest, part.body, part.media)
        top = made[0][1] if lone else manifests.of_index(made, notes.get("index"))
        await session.put_manifest(name.tag or top.digest, top.body, top.media)
    first = entries[0].image
    if lone:
        store.add_manifest(top.digest, top.media, top.body, first.id)
    else:
        keep(store, top, made)
    store.add_digest(name, top.digest, first.id)
    return top


def _kept_manifest(store: ImageStore, image: Image, stack: list[Layer], wanted: str = "") -> tuple[str, bytes] | None:
    """The manifest that the image came with (`wanted`: the one of this digest), when its layers are here byte for byte: its
    digest stays the same.
    """
    blobs = [layer.blob for layer in reversed(stack)]
    for digest, media, body in store.manifests(image.id):
        if media == IN_TOTO or (wanted and digest != wanted):
            continue
        manifest = orjson.loads(body)
        entries = manifest.get("layers")
        if not isinstance(entries, list) or [entry.get("digest") for entry in entries] != blobs:
            continue
        if all(store.blobs.has(blob) for blob in blobs):
            return media, body
    return None


def _manifest(image: Image, layers: list[dict[str, Any]]) -> bytes:
    """A Docker schema 2 manifest, indented as dockerd's (its digest covers the bytes)."""
    import json

    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": {"mediaType": DOCKER_CONFIG, "size": len(image.raw), "digest": image.id},
        "layers": layers,
    }
    return json.dumps(manifest, indent=3).encode()


async def send_bytes(session: Session, data: bytes, digest: str) -> None:
    """A small blob (a config), unless the registry has it."""
    if await session.blob_size(digest) is not None:
        return
    location = await session.start_upload()
    assert location is not None
    await session.finish_upload(await session.send(location, data), digest)


def _descriptor(digest: str, size: int, media: str) -> dict[str, Any]:
    return {"mediaType": media or DOCKER_LAYER, "size": size, "digest": digest}


async def _push_layer(
    store: ImageStore,
    session: Session,
    layer: Layer,
    name: Reference,
    meter: Meter,
    slots: asyncio.Semaphore,
    exact: bool,
) -> dict[str, Any]:
    """Bring one layer over; its descriptor. exact: only the very blob that it came as will do."""
    async with slots:
        known: list[tuple[str, int, str, str]] = [
            tuple(row)
            for row in store.database.all(
                "SELECT digest, size, media, repository FROM sources WHERE diff=?", layer.diff
            )
        ]
        if layer.blob:
            known.insert(0, (layer.blob, layer.blob_size, layer.media, ""))
        if exact:
            known = [entry for entry in known if entry[0] == layer.blob]
        # Those that this repository had before are the likeliest.
        known.sort(key=lambda entry: entry[3] != name.repository)
        tried: set[str] = set()
        for digest, size, media, _ in known[:8]:
            if digest in tried:
                continue
            tried.add(digest)
            if await session.blob_size(digest) is not None:
                meter.say("Layer already exists")
                _note(store, layer, digest, size, media, name)
                return _descriptor(digest, size, _docker_media(media, exact))
        location: str | None = None
        domain = name.domain + "/"
        for digest, size, media, repository in known[:8]:
            if not repository.startswith(domain) or repository == name.repository:
                continue
            source = repository.removeprefix(domain)
            session.tokens.also_pull(source)
            with contextlib.suppress(RegistryError):
                location = await session.start_upload(mount=digest, source=source)
                if location is None:
                    meter.say(f"Mounted from {source}")
                    _note(store, layer, digest, size, media, name)
                    return _descriptor(digest, size, _docker_media(media, exact))
        if location is None:
            location = await session.start_upload()
        assert location is not None
        digest, size, media = await _upload(store, session, layer, location, meter)
        meter.say("Pushed")
        _note(store, layer, digest, size, media, name)
        return _descriptor(digest, size, _docker_media(media, exact))


async def send_layer(store: ImageStore, session: Session, layer: Layer, name: Reference) -> dict[str, Any]:
    """Bring one layer over without telling anybody; its descriptor."""
    meter = Meter(lambda _: None, layer.diff.partition(":")[2][:12])
    return await _push_layer(store, session, layer, name, meter, asyncio.Semaphore(1), False)


def compressed_layer(store: ImageStore, layer: Layer) -> _Compressed:
    """A layer's tar through gzip: its bytes, then `digest` and `size`."""
    return _Compressed(store.layers.tar(layer))


def _docker_media(media: str, exact: bool) -> str:
    """The layer's media type in a manifest of ours: Docker's for gzip; zstd has only OCI's."""
    return media if exact or "zstd" in media else DOCKER_LAYER


def _note(store: ImageStore, layer: Layer, digest: str, size: int, media: str, name: Reference) -> None:
    with store.database.write(durable=False) as connection:
        connection.execute(
            "INSERT OR REPLACE INTO sources VALUES(?,?,?,?,?)", (layer.diff, digest, size, media, name.repository)
        )


class _Compressed:
    """A layer's tar through gzip, hashed and counted. Always the same bytes for the same content."""

    def __init__(self, source: Iterator[bytes]) -> None:
        from isal import isal_zlib

        self._source = source
        self._gzip = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, 31)
        self._hash = hashlib.sha256()
        self.size = self.read = 0

    def __iter__(self) -> Iterator[bytes]:
        held: list[bytes] = []
        size = 0
        for data in self._source:
            self.read += len(data)
            packed = self._gzip.compress(data)
            if packed:
                held.append(packed)
                size += len(packed)
            if size >= _PIECE // 4:
                yield self._count(b"".join(held))
                held, size = [], 0
        held.append(self._gzip.flush())
        yield self._count(b"".join(held))

    def _count(self, data: bytes) -> bytes:
        self._hash.update(data)
        self.size += len(data)
        return data

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def _file(path: Any) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while data := file.read(_PIECE):
            yield data


async def _upload(
    store: ImageStore, session: Session, layer: Layer, location: str, meter: Meter
) -> tuple[str, int, str]:
    """Send a layer; (digest, size, media type) of the blob that the registry has now."""
    if layer.blob and store.blobs.has(layer.blob) and "tar" in layer.media and not layer.media.endswith(".tar"):
        sent = 0

        async def as_it_came() -> AsyncIterator[bytes]:
            nonlocal sent
            async for data in pieces(_file(store.blobs.path(layer.blob))):
                yield data
                sent += len(data)
                meter.move("Pushing", sent, layer.blob_size)

        location = await session.send(location, as_it_came())
        await session.finish_upload(location, layer.blob)
        return layer.blob, layer.blob_size, layer.media
    packer = _Compressed(store.layers.tar(layer))

    async def compressed() -> AsyncIterator[bytes]:
        async for data in pieces(iter(packer)):
            yield data
            meter.move("Pushing", packer.read, layer.size)

    try:
        location = await session.send(location, compressed())
    except EngineError:
        raise
    except OSError as error:
        raise SystemFailure(str(error)) from None
    meter.move("Pushing", packer.read, layer.size, last=True)
    await session.finish_upload(location, packer.digest)
    return packer.digest, packer.size, DOCKER_LAYER
