"""Cache of steps elsewhere: exported to and imported from a registry, a client's folder, or an image itself (inline).

The cache's manifest and media types are BuildKit's, so that registries and clients handle it as theirs. What is in it are
the steps: each one's key, its image's configuration byte for byte, and which layers that has, so that the same build
elsewhere finds the very same images. Source of the forms: BuildKit cache/remotecache, docs "Cache storage backends".
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from longshore.engine.build.buildkit import stores
from longshore.engine.build.buildkit.contents import ContentStore, Digested
from longshore.engine.build.buildkit.progress import Progress, Vertex
from longshore.engine.build.buildkit.session import Session
from longshore.engine.build.cache import BuildCache
from longshore.engine.build.context import new_folder
from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure
from longshore.engine.images import references
from longshore.engine.images.blobs import digest_of
from longshore.engine.images.distribution import DOCKER_LIST, INDEXES, OCI_INDEX, OCI_MANIFEST
from longshore.engine.images.extract import remove_path
from longshore.engine.images.layers import Layer
from longshore.engine.images.model import Image, encode
from longshore.engine.images.packed import Form, Packed
from longshore.engine.images.pull import fetch_layers
from longshore.engine.images.push import compressed_layer, send_bytes, send_layer
from longshore.engine.images.refusals import RegistryError
from longshore.engine.images.streams import in_thread

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore

CONFIG = "application/vnd.buildkit.cacheconfig.v0"
INLINE = "moby.buildkit.cache.v0"
_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
_LIMIT = 64 << 20
# Images of an index that are looked into.
_PLATFORMS = 32
_TRUE = ("1", "t", "true", "True", "TRUE")


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what it told, its image's config, its layers (descriptor each, lowest first)."""

    told: str
    config: bytes
    layers: tuple[dict[str, Any], ...]


# -- import --------------------------------------------------------------------------------------------------------------


class Imported:
    """The steps of another cache; their layers come when a build needs them."""

    def __init__(self, store: ImageStore, source: Any, document: Any, layers: list[dict[str, Any]]) -> None:
        self._store, self._source = store, source
        self._locks: dict[str, asyncio.Lock] = {}
        self.steps: dict[str, Step] = {}
        by_digest = {str(layer.get("digest")): layer for layer in layers}
        ours = document.get("longshore") if isinstance(document, dict) else None
        for entry in (ours or {}).get("steps") or []:
            raw = base64.b64decode(entry["config"])
            if "count" in entry:
                chosen = layers[: int(entry["count"])]
            else:
                chosen = [by_digest[digest] for digest in entry["layers"]]
            self.steps[str(entry["key"])] = Step(str(entry.get("told") or ""), raw, tuple(chosen))

    async def close(self) -> None:
        """The build has ended: nothing more is asked of the place."""
        close = getattr(self._source, "close", None)
        if close is not None:
            await close()

    async def get(self, key: str, parent: str) -> Image | None:
        """The image of a step; it and its layers are brought here, and the step is remembered. None: not in this cache."""
        step = self.steps.get(key)
        if step is None:
            return None
        async with self._locks.setdefault(key, asyncio.Lock()):
            try:
                return await self._bring(key, step, parent)
            except EngineError:
                # A cache that cannot be read any more is none.
                self.steps.pop(key, None)
                return None

    async def _bring(self, key: str, step: Step, parent: str) -> Image:
        config = orjson.loads(step.config)
        diffs = [references.check_digest(str(diff)) for diff in (config.get("rootfs") or {}).get("diff_ids") or []]
        if len(diffs) != len(step.layers):
            raise SystemFailure("cached step does not match its layers")
        with self._store.lease() as lease:
            chain = await fetch_layers(self._store, self._source, diffs, list(step.layers), lease, lambda _: None)
            image = self._store.add(step.config, chain, parent=parent)
        BuildCache(self._store).put(key, image.id, step.told, 0)
        return image


async def load(
    store: ImageStore, session: Session, wanted: Iterable[tuple[str, dict[str, str]]], progress: Progress
) -> list[Imported]:
    """Read other caches' descriptions; those that cannot be read are left out (and told). Raises InvalidParameter."""
    found: list[Imported] = []
    for kind, attributes in wanted:
        if kind not in ("registry", "local", *stores.KINDS):
            raise InvalidParameter(f'unknown cache importer: "{kind}"')
        shown = attributes.get("ref") or f"{kind}:{attributes.get('digest', '')}"
        vertex = progress.vertex(f"importing cache manifest from {shown}")
        try:
            with vertex:
                if kind == "registry":
                    found += await _from_registry(store, session, attributes)
                elif kind == "local":
                    found.append(await _from_client(store, session, attributes))
                else:
                    found += await _from_objects(store, stores.open_store(kind, attributes))
        except (EngineError, ValueError, KeyError, TypeError):
            continue
    return found


async def _from_registry(store: ImageStore, session: Session, attributes: Mapping[str, str]) -> list[Imported]:
    """The cache under a name of a registry; several where it is inside the images of an index."""
    name = references.parse(attributes.get("ref", "")).with_default_tag()
    auth = await session.credentials(name.domain)
    wanted = name.digest or name.tag
    registry = await store.registries.session(name.domain, name.path, auth=auth, actions="pull", wanted=wanted)

    async def read(digest: str) -> bytes:
        response = await registry.blob(references.check_digest(digest))
        data: bytes = await response.read(_LIMIT)
        return data

    body, media, _ = await registry.manifest(wanted)
    manifest = orjson.loads(body)
    entries = [entry for entry in manifest.get("manifests") or [] if isinstance(entry, dict)]
    if media not in INDEXES or any(entry.get("mediaType") == CONFIG for entry in entries):
        return [await _described(store, registry, manifest, read)]
    found: list[Imported] = []
    for entry in entries[:_PLATFORMS]:
        if (entry.get("platform") or {}).get("os") == "unknown":
            continue
        body, _, _ = await registry.manifest(references.check_digest(str(entry.get("digest"))))
        found.append(await _described(store, registry, orjson.loads(body), read))
    return found


async def _from_client(store: ImageStore, session: Session, attributes: Mapping[str, str]) -> Imported:
    source = ContentStore(session, f"local:{attributes.get('src', '')}")
    manifest = orjson.loads(await source.read(references.check_digest(attributes.get("digest", ""))))
    return await _described(store, source, manifest, source.read)


async def _from_objects(store: ImageStore, source: stores.Store) -> list[Imported]:
    """The caches that an object store holds: their layers are described in the documents themselves."""
    found: list[Imported] = []
    for data in await source.load():
        document = orjson.loads(data)
        layers = [{"digest": layer["blob"], **layer["annotations"]} for layer in document.get("layers") or []]
        found.append(Imported(store, source, document, layers))
    return found


async def _described(store: ImageStore, source: Any, manifest: Any, read: Any) -> Imported:
    """The cache that a manifest describes: an index or a manifest with a cache config, or an image with one inside."""
    entries = manifest.get("manifests")
    if entries is not None:
        config = next(entry for entry in entries if entry.get("mediaType") == CONFIG)
        layers = [entry for entry in entries if entry is not config]
        return Imported(store, source, orjson.loads(await read(config["digest"])), layers)
    config, layers = manifest["config"], manifest.get("layers") or []
    document = orjson.loads(await read(config["digest"]))
    if config.get("mediaType") != CONFIG:
        document = orjson.loads(base64.b64decode(document[INLINE]))
    return Imported(store, source, document, layers)


# -- export --------------------------------------------------------------------------------------------------------------


def _line(store: ImageStore, images: Iterable[Image]) -> set[str]:
    """The images and those that they were built on."""
    found: set[str] = set()
    for image in images:
        current: Image | None = image
        while current is not None and current.id not in found:
            found.add(current.id)
            current = store.get(current.parent) if current.parent else None
    return found


def _chosen(
    store: ImageStore, records: Mapping[str, tuple[str, str]], images: Iterable[Image], mode: str
) -> list[tuple[str, str, Image]]:
    """(key, words, image) of the steps to export: those of the result, with mode max all."""
    line = _line(store, images)
    found: list[tuple[str, str, Image]] = []
    for key, (image_id, told) in records.items():
        image = store.get(image_id)
        if image is not None and (mode == "max" or image_id in line):
            found.append((key, told, image))
    return found


def with_inline(store: ImageStore, image: Image, records: Mapping[str, tuple[str, str]]) -> bytes:
    """An image's config with the cache of its steps inside."""
    steps = [
        {
            "key": key,
            "told": told,
            "config": base64.b64encode(step.raw).decode(),
            "count": len(step.diff_ids),
        }
        for key, told, step in _chosen(store, records, [image], "min")
    ]
    document = {"layers": [], "records": [], "longshore": {"steps": steps}}
    config = dict(image.config)
    config[INLINE] = base64.b64encode(orjson.dumps(document)).decode()
    return encode(config)


async def export(
    store: ImageStore,
    session: Session,
    progress: Progress,
    kind: str,
    attributes: Mapping[str, str],
    records: Mapping[str, tuple[str, str]],
    images: list[Image],
) -> dict[str, str]:
    """Export the steps of a build. kind: "registry", "local" or an object store's (inline caches go with the image).

    Raises InvalidParameter for another kind, EngineError (unless ignore-error=true).
    """
    if kind == "inline":
        return {}
    target: _Target
    if kind == "registry":
        target = _Registry(store, session, attributes)
    elif kind == "local":
        target = _Folder(store, session, attributes)
    elif kind in stores.KINDS:
        target = _Objects(store, stores.open_store(kind, attributes))
    else:
        raise InvalidParameter(f'unknown cache exporter: "{kind}"')
    try:
        with progress.vertex(f"exporting cache to {target.shown}") as vertex:
            return await _export(store, target, vertex, attributes, records, images)
    except EngineError:
        if attributes.get("ignore-error") in _TRUE:
            return {}
        raise
    finally:
        await target.close()


async def _export(
    store: ImageStore,
    target: _Target,
    vertex: Vertex,
    attributes: Mapping[str, str],
    records: Mapping[str, tuple[str, str]],
    images: list[Image],
) -> dict[str, str]:
    mode = attributes.get("mode", "min")
    if mode not in ("min", "max"):
        raise InvalidParameter(f"unsupported cache export mode {mode}")
    await target.open()
    vertex.status("preparing build cache for export", done=True)
    sent: dict[str, dict[str, Any]] = {}
    steps: list[dict[str, Any]] = []
    with store.lease() as lease:
        for key, told, image in _chosen(store, records, images, mode):
            lease.add(image.chain)
            digests: list[str] = []
            for layer in reversed(store.layers.stack(image.chain)):
                if layer.diff not in sent:
                    sent[layer.diff] = await target.layer(layer)
                    vertex.status(f"writing layer {sent[layer.diff]['digest']}", done=True)
                digests.append(sent[layer.diff]["digest"])
            config = base64.b64encode(image.raw).decode()
            steps.append({"key": key, "told": told, "config": config, "layers": digests})
    layers = list(sent.values())
    document = orjson.dumps(
        {
            "layers": [
                {
                    "blob": layer["digest"],
                    "parent": -1,
                    "annotations": {"mediaType": layer["mediaType"], "diffID": diff, "size": layer["size"]},
                }
                for diff, layer in sent.items()
            ],
            "records": [],
            "longshore": {"steps": steps},
        }
    )
    entry = {"mediaType": CONFIG, "digest": digest_of(document), "size": len(document)}
    await target.document(document, str(entry["digest"]))
    vertex.status(f"writing config {entry['digest']}", done=True)
    oci = attributes.get("oci-mediatypes", "true") in _TRUE
    if attributes.get("image-manifest", "true") in _TRUE:
        if not oci:
            raise InvalidParameter(
                "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format"
            )
        media = OCI_MANIFEST
        manifest: dict[str, Any] = {"schemaVersion": 2, "mediaType": media, "config": entry, "layers": layers}
    else:
        media = OCI_INDEX if oci else DOCKER_LIST
        manifest = {"schemaVersion": 2, "mediaType": media, "manifests": [*layers, entry]}
    body = orjson.dumps(manifest)
    digest = digest_of(body)
    await target.manifest(body, media, digest)
    vertex.status(f"writing cache manifest {digest}", done=True)
    return {"cache.manifest": orjson.dumps({"mediaType": media, "digest": digest, "size": len(body)}).decode()}


class _Target(Protocol):
    """What takes a cache. Raises EngineError."""

    shown: str

    async def open(self) -> None: ...
    async def layer(self, layer: Layer) -> dict[str, Any]:
        """Bring a layer there; its descriptor."""
        ...

    async def document(self, data: bytes, digest: str) -> None: ...
    async def manifest(self, body: bytes, media: str, digest: str) -> None: ...
    async def close(self) -> None: ...


class _Registry:
    """A registry that takes a cache."""

    def __init__(self, store: ImageStore, session: Session, attributes: Mapping[str, str]) -> None:
        if not attributes.get("ref"):
            raise InvalidParameter("registry cache exporter requires ref")
        self._store, self._client = store, session
        self._name = references.parse(attributes["ref"]).with_default_tag()
        self.shown = "registry"
        self._session: Any = None

    async def open(self) -> None:
        name = self._name
        auth = await self._client.credentials(name.domain)
        self._session = await self._store.registries.session(
            name.domain, name.path, auth=auth, actions="pull,push", pull=False
        )

    async def layer(self, layer: Layer) -> dict[str, Any]:
        found = await send_layer(self._store, self._session, layer, self._name)
        media = _GZIP if "gzip" in found["mediaType"] else found["mediaType"]
        # In the order of the other target's: the same cache has the same manifest.
        return {"mediaType": media, "digest": found["digest"], "size": found["size"]}

    async def document(self, data: bytes, digest: str) -> None:
        await send_bytes(self._session, data, digest)

    async def manifest(self, body: bytes, media: str, digest: str) -> None:
        try:
            await self._session.put_manifest(self._name.tag or digest, body, media)
        except RegistryError as error:
            raise SystemFailure(f"error writing manifest blob: {error.message}") from None

    async def close(self) -> None:
        return


class _Folder:
    """A folder of the client's that takes a cache, as a content store in its session."""

    def __init__(self, store: ImageStore, session: Session, attributes: Mapping[str, str]) -> None:
        if not attributes.get("dest"):
            raise InvalidParameter("local cache exporter requires dest")
        self._store, self._place = store, ContentStore(session, f"local:{attributes['dest']}")
        self.shown = "client directory"

    async def open(self) -> None:
        return

    async def layer(self, layer: Layer) -> dict[str, Any]:
        packer = compressed_layer(self._store, layer)
        source = Digested(packer)
        await self._place.write("", source)
        return {"mediaType": _GZIP, "digest": packer.digest, "size": packer.size}

    async def document(self, data: bytes, digest: str) -> None:
        await self._place.write_bytes(digest, data)

    async def manifest(self, body: bytes, media: str, digest: str) -> None:
        await self.document(body, digest)

    async def close(self) -> None:
        return


class _Objects:
    """An object store that takes a cache: layers as blobs, the document under its name; it knows no manifests."""

    def __init__(self, store: ImageStore, place: stores.Store) -> None:
        self._place = place
        self._folder = new_folder(store)
        self._packed = Packed(store, self._folder, Form())
        self.shown = place.shown

    async def open(self) -> None:
        return

    async def layer(self, layer: Layer) -> dict[str, Any]:
        blob = await in_thread(self._packed.blob, layer)
        await self._place.put(blob)
        return blob.descriptor()

    async def document(self, data: bytes, digest: str) -> None:
        await self._place.save(data)

    async def manifest(self, body: bytes, media: str, digest: str) -> None:
        return

    async def close(self) -> None:
        await self._place.close()
        await asyncio.shield(in_thread(remove_path, self._folder))
