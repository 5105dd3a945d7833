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
from longshore.engine.images.distribution import INDEXES, OCI_INDEX
from longshore.engine.images.manifests import Document, Entry
from longshore.engine.images.packed import UNCOMPRESSED, Form, Packed
from longshore.engine.images.references import Reference
from longshore.wire import tar

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore


Made = tuple[Entry, Document, Document | None]


def describe(
    store: ImageStore,
    entries: Sequence[Entry],
    annotations: Mapping[str, Mapping[str, str]],
    *,
    single: bool = True,
    packed: Packed | None = None,
) -> tuple[Document, list[Made]]:
    """The topmost document of an archive (an index, or one image's manifest), and the manifests below it.

    annotations: those of "index", "manifest" (also "manifest[PLATFORM]") and their "-descriptor"s. single: one image needs
    no index. packed: the form of its layers (None: plain tars).
    """
    packed = packed or plain(store)
    made: list[Made] = []
    for entry in entries:
        layers = [packed.blob(layer).descriptor() for layer in reversed(store.layers.stack(entry.image.chain))]
        notes = manifests.notes_of(annotations, "manifest", entry.platform)
        document = manifests.of_image(entry.image, layers, oci=packed.form.oci, annotations=notes)
        attested = manifests.of_statements(entry.statements, document.digest) if entry.statements else None
        made.append((entry, document, attested))
    if single and len(made) == 1 and made[0][2] is None:
        return made[0][1], made
    return manifests.of_index(made, annotations.get("index"), annotations, oci=packed.form.oci), made


def plain(store: ImageStore) -> Packed:
    """Layers as plain tars, which need no folder."""
    return Packed(store, store.root, Form(UNCOMPRESSED, force=True))


def blobs(
    store: ImageStore, top: Document, made: Sequence[Made], packed: Packed | None = None
) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """(digest, length, content) of all that a layout of some images holds, each once, what needs others after them."""
    packed = packed or plain(store)
    told: set[str] = set()
    for entry, document, attested in made:
        for layer in reversed(store.layers.stack(entry.image.chain)):
            blob = packed.blob(layer)
            if blob.digest not in told:
                told.add(blob.digest)
                yield blob.digest, blob.size, blob.content()
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
    packed: Packed | None = None,
) -> tuple[Document, Iterator[bytes]]:
    """(the topmost document, the archive's bytes). docker: with manifest.json. single: one image needs no index.

    packed: the form of its layers (None: plain tars).

    Raises (before the first piece) SystemFailure.
    """
    packed = packed or plain(store)
    notes = annotations or {}
    top, made = describe(store, entries, notes, single=single, packed=packed)
    lease = store.lease()
    lease.add(*(entry.image.chain for entry in entries if entry.image.chain))
    told = notes.get("index-descriptor") if top.media in INDEXES else notes.get("manifest-descriptor")
    return top, _write(store, top, made, names, docker, lease, packed, told or {})


def _write(
    store: ImageStore,
    top: Document,
    made: list[Made],
    names: Sequence[Reference],
    docker: bool,
    lease: Any,
    packed: Packed,
    notes: Mapping[str, str],
) -> Iterator[bytes]:
    now = int(time.time()) * 10**9
    with lease:
        yield tar.header(tar.Entry("blobs/", tar.DIRECTORY, 0o755, mtime=now))
        yield tar.header(tar.Entry("blobs/sha256/", tar.DIRECTORY, 0o755, mtime=now))
        for digest, size, content in blobs(store, top, made, packed):
            yield from member(f"blobs/sha256/{digest[7:]}", size, content, 0)
        created = {"org.opencontainers.image.created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **notes}
        listed = [
            top.descriptor(
                annotations={
                    "io.containerd.image.name": str(name),
                    **created,
                    "org.opencontainers.image.ref.name": name.tag,
                }
            )
            for name in names
        ] or [top.descriptor(annotations=created)]
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
                                f"blobs/sha256/{packed.blob(layer).digest[7:]}"
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
