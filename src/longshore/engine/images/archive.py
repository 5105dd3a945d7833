"""docker save: an OCI layout and a docker-archive in one tar.

Source: moby image/tarexport; OCI image-spec image-layout.md.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.errors import NotFound, SystemFailure
from longshore.engine.images import manifests, references
from longshore.engine.images.distribution import OCI_INDEX
from longshore.engine.images.listing import platform_matches
from longshore.engine.images.model import Image
from longshore.engine.images.references import Reference
from longshore.engine.images.streams import passed
from longshore.engine.images.variants import Index, entries_of, index_of
from longshore.wire import tar

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore


@dataclass(slots=True)
class Choice:
    """What to save under some tags: an image, or with `index` the images of several platforms (`image` is this machine's)."""

    image: Image
    index: Index | None
    tags: list[Reference] = field(default_factory=list)


def select(store: ImageStore, names: list[str], platform: str = "") -> list[Choice]:
    """What names mean, each once, with the tags to save. platform: only its images. Raises NotFound, SystemFailure."""
    found: dict[tuple[str, str], Choice] = {}

    def choose(text: str, tag: Reference | None) -> None:
        image = store.find(text, platform)
        if image is None:
            raise NotFound(f"No such image: {text}")
        if platform and not platform_matches(image, platform):
            raise SystemFailure(f"no suitable export target found for platform {platform}")
        index = None if platform else index_of(store, text)
        if index is not None and len(index.members) < 2:
            index = None
        choice = found.setdefault((image.id, index.digest if index is not None else ""), Choice(image, index))
        if tag is not None and tag not in choice.tags:
            choice.tags.append(tag)

    for text in names:
        parsed = references.parse_any(text)
        if not isinstance(parsed, str) and not parsed.tag and not parsed.digest:
            rows = store.database.all(
                "SELECT name FROM names WHERE repository=? AND tag<>'' ORDER BY tag", parsed.repository
            )
            for (name,) in rows:
                choose(name, references.parse_stored(name))
            if rows:
                continue
        choose(text, parsed if not isinstance(parsed, str) and parsed.tag else None)
    return list(found.values())


def save(store: ImageStore, names: list[str], platform: str) -> Generator[bytes]:
    """The archive of some images, piece by piece. Raises (before the first piece) NotFound, SystemFailure."""
    chosen = select(store, names, platform)
    lease = store.lease()
    images = [one.image for choice in chosen if choice.index is not None for one in choice.index.members]
    lease.add(*(image.chain for image in (*images, *(choice.image for choice in chosen)) if image.chain))
    return _archive(store, chosen, lease)


def _archive(store: ImageStore, chosen: list[Choice], lease: Any) -> Generator[bytes]:
    created = chosen[-1].image.created // 10**9 * 10**9 if chosen else 0
    saved = {choice.image.id for choice in chosen}
    with lease:
        yield tar.header(tar.Entry("blobs/", tar.DIRECTORY, 0o755, mtime=created))
        yield tar.header(tar.Entry("blobs/sha256/", tar.DIRECTORY, 0o755, mtime=created))
        index: list[dict[str, Any]] = []
        manifest: list[dict[str, Any]] = []
        repositories: dict[str, dict[str, str]] = {}
        written: set[str] = set()
        for choice in chosen:
            image, tags = choice.image, choice.tags
            store.event("save", image.id, image.id)
            layers = manifests.plain_layers(store, image)
            if choice.index is not None:
                entry = yield from _platforms(store, choice.index, written)
            else:
                entry = yield from _one(store, image, layers, written)
            if not tags:
                index.append(entry)
            for tag in tags:
                notes = {"io.containerd.image.name": str(tag), "org.opencontainers.image.ref.name": tag.tag}
                index.append({**entry, "annotations": notes})
                if layers:
                    repositories.setdefault(tag.familiar_name, {})[tag.tag] = image.chain[7:]
            manifest.append(
                {
                    "Config": f"blobs/sha256/{image.id[7:]}",
                    "RepoTags": [tag.familiar for tag in tags] or None,
                    "Layers": [f"blobs/sha256/{layer['digest'][7:]}" for layer in layers],
                    "LayerSources": {layer["digest"]: layer for layer in layers},
                    **({"Parent": image.parent} if image.parent in saved else {}),
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


def _one(
    store: ImageStore, image: Image, layers: list[dict[str, Any]], written: set[str]
) -> Generator[bytes, None, dict[str, Any]]:
    """One image's files that are not written yet; its descriptor."""
    for layer, descriptor in zip(reversed(store.layers.stack(image.chain)), layers, strict=True):
        if layer.diff not in written:
            written.add(layer.diff)
            size = descriptor["size"]
            yield from member(f"blobs/sha256/{layer.diff[7:]}", size, store.layers.tar(layer), image.created)
    document = manifests.of_image(image, layers)
    for name, data in ((image.id, image.raw), (document.digest, document.body)):
        if name not in written:
            written.add(name)
            yield from member(f"blobs/sha256/{name[7:]}", len(data), iter((data,)), image.created)
    return document.descriptor()


def _platforms(store: ImageStore, index: Index, written: set[str]) -> Generator[bytes, None, dict[str, Any]]:
    """The files of an index's images that are not written yet; its descriptor."""
    from longshore.engine.images.layout import blobs, describe

    notes = {"index": index.annotations}
    top, made = describe(store, entries_of(store, index), notes, single=False)
    for digest, size, content in blobs(store, top, made):
        if digest not in written:
            written.add(digest)
            yield from member(f"blobs/sha256/{digest[7:]}", size, content, 0)
    return top.descriptor()


def member(name: str, size: int, content: Iterator[bytes], mtime: int) -> Iterator[bytes]:
    """One file of an archive, in the pieces of its content. mtime: nanoseconds."""
    yield tar.header(tar.Entry(name, tar.REGULAR, 0o644, size=size, mtime=mtime // 10**9 * 10**9))
    for data in content:
        yield data
        passed(len(data))
    yield tar.padding(size)
