"""Images as an OCI layout in a tar, with indexes and attestations; as docker's archive too where that is asked for.

Source: OCI image-spec image-layout.md; BuildKit exporter/oci.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.images import manifests
from longshore.engine.images.archive import member
from longshore.engine.images.distribution import OCI_INDEX, OCI_LAYER
from longshore.engine.images.manifests import Document, Entry
from longshore.engine.images.references import Reference
from longshore.wire import tar

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore


def describe(
    store: ImageStore, entries: Sequence[Entry], annotations: Mapping[str, Mapping[str, str]], *, single: bool = True
) -> tuple[Document, list[tuple[Entry, Document, Document | None]]]:
    """The topmost document of an archive (an index, or one image's manifest), and the manifests below it.

    annotations: those of "index" and of "manifest". single: one image needs no index.
    """
    made: list[tuple[Entry, Document, Document | None]] = []
    for entry in entries:
        layers: list[dict[str, Any]] = []
        for layer in reversed(store.layers.stack(entry.image.chain)):
            size = layer.tar_size or sum(len(data) for data in store.layers.tar(layer))
            layers.append({"mediaType": OCI_LAYER, "digest": layer.diff, "size": size})
        document = manifests.of_image(entry.image, layers, annotations=annotations.get("manifest"))
        attested = manifests.of_statements(entry.statements, document.digest) if entry.statements else None
        made.append((entry, document, attested))
    if single and len(made) == 1 and made[0][2] is None:
        return made[0][1], made
    return manifests.of_index(made, annotations.get("index")), made


def blobs(
    store: ImageStore, top: Document, made: Sequence[tuple[Entry, Document, Document | None]]
) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """(digest, length, content) of all that a layout of some images holds, each once, what needs others after them."""
    told: set[str] = set()
    for entry, document, attested in made:
        for layer in reversed(store.layers.stack(entry.image.chain)):
            if layer.diff not in told:
                told.add(layer.diff)
                size = layer.tar_size or sum(len(data) for data in store.layers.tar(layer))
                yield layer.diff, size, store.layers.tar(layer)
        small = {**document.blobs, document.digest: document.body}
        if attested is not None:
            small |= {**attested.blobs, attested.digest: attested.body}
        for digest, data in small.items():
            if digest not in told:
                told.add(digest)
                yield digest, len(data), iter((data,))
    if top.digest not in told:
        yield top.digest, len(top.body), iter((top.body,))


def archive(
    store: ImageStore,
    entries: Sequence[Entry],
    names: Sequence[Reference],
    *,
    docker: bool = False,
    single: bool = True,
    annotations: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[Document, Iterator[bytes]]:
    """(the topmost document, the archive's bytes). docker: with manifest.json. single: one image needs no index.

    Raises (before the first piece) SystemFailure.
    """
    top, made = describe(store, entries, annotations or {}, single=single)
    lease = store.lease()
    lease.add(*(entry.image.chain for entry in entries if entry.image.chain))
    return top, _write(store, top, made, names, docker, lease)


def _write(
    store: ImageStore,
    top: Document,
    made: list[tuple[Entry, Document, Document | None]],
    names: Sequence[Reference],
    docker: bool,
    lease: Any,
) -> Iterator[bytes]:
    now = int(time.time()) * 10**9
    with lease:
        yield tar.header(tar.Entry("blobs/", tar.DIRECTORY, 0o755, mtime=now))
        yield tar.header(tar.Entry("blobs/sha256/", tar.DIRECTORY, 0o755, mtime=now))
        for digest, size, content in blobs(store, top, made):
            yield from member(f"blobs/sha256/{digest[7:]}", size, content, 0)
        listed = [
            top.descriptor(
                annotations={"io.containerd.image.name": str(name), "org.opencontainers.image.ref.name": name.tag}
            )
            for name in names
        ] or [top.descriptor()]
        documents: list[tuple[str, Any]] = [
            ("index.json", {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed})
        ]
        if docker:
            documents.append(
                (
                    "manifest.json",
                    [
                        {
                            "Config": f"blobs/sha256/{entry.image.id[7:]}",
                            "RepoTags": [name.familiar for name in names] or None,
                            "Layers": [
                                f"blobs/sha256/{layer.diff[7:]}"
                                for layer in reversed(store.layers.stack(entry.image.chain))
                            ],
                        }
                        for entry, _, _ in made
                    ],
                )
            )
        documents.append(("oci-layout", {"imageLayoutVersion": "1.0.0"}))
        for name, content in documents:
            data = orjson.dumps(content)
            yield from member(name, len(data), iter((data,)), 0)
        yield tar.END
