"""Manifests that are made here: of an image, of what is attested about it, and indexes over both.

Source: OCI image-spec manifest.md, image-index.md; BuildKit docs/attestations/attestation-storage.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.images.blobs import digest_of
from longshore.engine.images.distribution import (
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from longshore.engine.images.model import Image, host_architecture

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore

IN_TOTO = "application/vnd.in-toto+json"


@dataclass(slots=True)
class Entry:
    """One platform's image of an index. platform: "os/arch[/variant]"; statements: (predicate type, in-toto document).

    files: what each statement is called beside a result's files ("": it goes into images only).
    """

    platform: str
    image: Image
    statements: list[tuple[str, bytes]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def attest(self, predicate: str, statement: bytes, file: str = "") -> None:
        self.statements.append((predicate, statement))
        self.files.append(file)


@dataclass(slots=True)
class Document:
    """A manifest's bytes and what it needs: small blobs by digest."""

    body: bytes
    media: str
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest_of(self.body)

    def descriptor(self, **more: Any) -> dict[str, Any]:
        return {"mediaType": self.media, "digest": self.digest, "size": len(self.body), **more}


def platform_of(text: str) -> dict[str, str]:
    """ "linux/arm/v7" as a descriptor's platform."""
    parts = text.split("/")
    found = {"architecture": parts[1] if len(parts) > 1 else "", "os": parts[0]}
    if len(parts) > 2:
        found["variant"] = parts[2]
    return found


def choose(manifests: list[dict[str, Any]], platform: str) -> dict[str, Any] | None:
    """The entry of an index for a platform ("" for this machine's): an equal variant before one without.

    Attestations and the like (platform unknown/unknown) are never chosen.
    """
    os_name, _, rest = (platform or f"linux/{host_architecture()}").partition("/")
    architecture, _, variant = rest.partition("/")
    fitting: list[tuple[int, int, dict[str, Any]]] = []
    for position, item in enumerate(manifests):
        of = item.get("platform")
        if (
            not isinstance(of, dict)
            or of.get("os") != os_name
            or (architecture and of.get("architecture") != architecture)
        ):
            continue
        have = of.get("variant") or {"arm64": "v8", "arm": "v7"}.get(architecture, "")
        want = variant or {"arm64": "v8", "arm": "v7"}.get(architecture, "")
        fitting.append((0 if have == want else 1, position, item))
    fitting.sort(key=lambda found: found[:2])
    return fitting[0][2] if fitting else None


def plain_layers(store: ImageStore, image: Image) -> list[dict[str, Any]]:
    """The descriptors of an image's layers as uncompressed tars, lowest first."""
    found: list[dict[str, Any]] = []
    for layer in reversed(store.layers.stack(image.chain)):
        size = layer.tar_size or sum(len(data) for data in store.layers.tar(layer))
        found.append({"mediaType": OCI_LAYER, "digest": layer.diff, "size": size})
    return found


def of_image(
    image: Image, layers: Sequence[dict[str, Any]], *, oci: bool = True, annotations: Mapping[str, str] | None = None
) -> Document:
    """An image's manifest over its layers' descriptors (lowest first)."""
    media = OCI_MANIFEST if oci else DOCKER_MANIFEST
    config = {"mediaType": OCI_CONFIG if oci else DOCKER_CONFIG, "digest": image.id, "size": len(image.raw)}
    manifest: dict[str, Any] = {"schemaVersion": 2, "mediaType": media, "config": config, "layers": list(layers)}
    if annotations:
        manifest["annotations"] = dict(annotations)
    return Document(orjson.dumps(manifest), media, {image.id: image.raw})


def of_statements(statements: Sequence[tuple[str, bytes]], about: str) -> Document:
    """The manifest of what is attested about the manifest with the digest `about`.

    Subjects without a digest of their own mean that manifest; a statement without any is about it.
    """
    layers: list[dict[str, Any]] = []
    blobs: dict[str, bytes] = {}
    for predicate, data in statements:
        statement = orjson.loads(data)
        statement["subject"] = statement.get("subject") or [{"name": "_", "digest": {}}]
        for subject in statement["subject"]:
            subject["digest"] = subject.get("digest") or {"sha256": about.partition(":")[2]}
        body = orjson.dumps(statement)
        blobs[digest_of(body)] = body
        notes = {"in-toto.io/predicate-type": predicate}
        layers.append({"mediaType": IN_TOTO, "digest": digest_of(body), "size": len(body), "annotations": notes})
    config = orjson.dumps(
        {
            "architecture": "unknown",
            "os": "unknown",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        }
    )
    blobs[digest_of(config)] = config
    entry = {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)}
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entry, "layers": layers}
    return Document(orjson.dumps(manifest), OCI_MANIFEST, blobs)


def notes_of(annotations: Mapping[str, Mapping[str, str]], place: str, platform: str) -> dict[str, str]:
    """The annotations of one kind of place for a platform: those for all ("manifest"), and its own ("manifest[os/arch]")."""
    return {**annotations.get(place, {}), **annotations.get(f"{place}[{platform}]", {})}


def of_index(
    made: Sequence[tuple[Entry, Document, Document | None]],
    annotations: Mapping[str, str] | None = None,
    notes: Mapping[str, Mapping[str, str]] | None = None,
    *,
    oci: bool = True,
) -> Document:
    """An index over images and what is attested about each. notes: those of the images' descriptors, see notes_of()."""
    entries: list[dict[str, Any]] = []
    for entry, document, _ in made:
        told = notes_of(notes or {}, "manifest-descriptor", entry.platform)
        more: dict[str, Any] = {"annotations": told} if told else {}
        entries.append(document.descriptor(**more, platform=platform_of(entry.platform)))
    for _, document, attested in made:
        if attested is not None:
            about = {
                "vnd.docker.reference.digest": document.digest,
                "vnd.docker.reference.type": "attestation-manifest",
            }
            entries.append(attested.descriptor(annotations=about, platform=platform_of("unknown/unknown")))
    media = OCI_INDEX if oci else DOCKER_LIST
    index: dict[str, Any] = {"schemaVersion": 2, "mediaType": media, "manifests": entries}
    if annotations:
        index["annotations"] = dict(annotations)
    return Document(orjson.dumps(index), media)
