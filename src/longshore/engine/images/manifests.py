"""Manifests that are made here: of an image, of what is attested about it, and indexes over both.

Source: OCI image-spec manifest.md, image-index.md; BuildKit docs/attestations/attestation-storage.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from longshore.engine.images.blobs import digest_of
from longshore.engine.images.distribution import DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from longshore.engine.images.model import Image

IN_TOTO = "application/vnd.in-toto+json"


@dataclass(slots=True)
class Entry:
    """One platform's image of an index. platform: "os/arch[/variant]"; statements: (predicate type, in-toto document)."""

    platform: str
    image: Image
    statements: list[tuple[str, bytes]] = field(default_factory=list)


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

    Each statement gets that manifest as a subject.
    """
    layers: list[dict[str, Any]] = []
    blobs: dict[str, bytes] = {}
    for predicate, data in statements:
        statement = orjson.loads(data)
        for subject in statement.get("subject") or []:
            subject["digest"] = {"sha256": about.partition(":")[2]}
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


def of_index(
    made: Sequence[tuple[Entry, Document, Document | None]], annotations: Mapping[str, str] | None = None
) -> Document:
    """An index over images and what is attested about each."""
    entries: list[dict[str, Any]] = [
        document.descriptor(platform=platform_of(entry.platform)) for entry, document, _ in made
    ]
    for _, document, attested in made:
        if attested is not None:
            notes = {
                "vnd.docker.reference.digest": document.digest,
                "vnd.docker.reference.type": "attestation-manifest",
            }
            entries.append(attested.descriptor(annotations=notes, platform=platform_of("unknown/unknown")))
    index: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    if annotations:
        index["annotations"] = dict(annotations)
    return Document(orjson.dumps(index), OCI_INDEX)
