"""What a registry must understand of a manifest: its type, what it needs, what it is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from longshore.registry.errors import RegistryError
from longshore.registry.storage import is_digest

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
INDEXES = (DOCKER_LIST, OCI_INDEX)
KNOWN = (DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX)
_EMPTY = "application/vnd.oci.empty.v1+json"


@dataclass(slots=True)
class Facts:
    """media: its type; blobs, manifests: digests that it needs; subject: what it is about; artifact, annotations: for referrers."""

    media: str
    blobs: list[str] = field(default_factory=list)
    manifests: list[str] = field(default_factory=list)
    subject: str = ""
    artifact: str = ""
    annotations: dict[str, str] = field(default_factory=dict)


def _invalid(reason: str) -> RegistryError:
    return RegistryError("MANIFEST_INVALID", reason)


def _digest(descriptor: Any) -> str:
    if not isinstance(descriptor, dict) or not isinstance(descriptor.get("digest"), str):
        raise _invalid("a descriptor without a digest")
    if not is_digest(descriptor["digest"]):
        raise _invalid(f"invalid digest {descriptor['digest'][:200]!r}")
    size = descriptor.get("size")
    if not isinstance(size, int) or size < 0:
        raise _invalid("a descriptor without a size")
    return str(descriptor["digest"])


def read(body: bytes, content_type: str) -> Facts:
    """What a manifest's bytes say. content_type: the upload's; it must be the manifest's own. Raises RegistryError."""
    try:
        manifest = orjson.loads(body)
    except ValueError:
        raise _invalid("the manifest is no JSON") from None
    if not isinstance(manifest, dict):
        raise _invalid("the manifest is no JSON object")
    declared = manifest.get("mediaType")
    media = content_type or (declared if isinstance(declared, str) else "")
    if not media or media == "application/json":
        media = (
            declared
            if isinstance(declared, str) and declared
            else OCI_INDEX
            if "manifests" in manifest
            else OCI_MANIFEST
        )
    if isinstance(declared, str) and declared and declared != media:
        raise _invalid(f"mediaType in manifest should be '{media}' not '{declared}'")
    if media not in KNOWN or manifest.get("schemaVersion") != 2:
        raise _invalid("unsupported manifest type")
    facts = Facts(media)
    # One document that reads as an index and as an image would mean different things to different clients.
    if media in INDEXES:
        if "layers" in manifest or "config" in manifest:
            raise _invalid("an index with layers or config")
        entries = manifest.get("manifests")
        if not isinstance(entries, list):
            raise _invalid("an index without manifests")
        facts.manifests = [_digest(entry) for entry in entries]
    else:
        if "manifests" in manifest:
            raise _invalid("an image manifest with manifests")
        layers = manifest.get("layers")
        if layers is None:
            layers = []
        if not isinstance(layers, list):
            raise _invalid("layers is no list")
        facts.blobs = [_digest(manifest.get("config"))]
        for layer in layers:
            digest = _digest(layer)
            # A layer with URLs, or of a type that may not be given away, may live elsewhere only.
            kind = str(layer.get("mediaType"))
            if not layer.get("urls") and "nondistributable" not in kind and ".foreign." not in kind:
                facts.blobs.append(digest)
    if manifest.get("subject") is not None:
        facts.subject = _digest(manifest["subject"])
    artifact = manifest.get("artifactType")
    if isinstance(artifact, str) and artifact:
        facts.artifact = artifact
    elif media not in INDEXES:
        config_media = manifest["config"].get("mediaType")
        facts.artifact = config_media if isinstance(config_media, str) and config_media != _EMPTY else ""
    annotations = manifest.get("annotations")
    if isinstance(annotations, dict):
        facts.annotations = {str(k): str(v) for k, v in annotations.items()}
    return facts
