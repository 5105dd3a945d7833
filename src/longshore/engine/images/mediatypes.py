"""What kinds of content an image may be made of, and the words for others (plug-ins, charts, models).

Source: moby distribution/registry.go, pull_v2.go, errors.go.
"""

from __future__ import annotations

from collections.abc import Iterable

from longshore.engine.errors import InvalidParameter
from longshore.engine.images.distribution import DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG

#: Beginnings of the media types of images.
_BEGINNINGS = ("application/vnd.oci.image", "application/vnd.docker")
#: What old registries called an image's parts.
_OLD = frozenset({"", "application/octet-stream", "application/json", "text/html"})
_CLASSES = {"application/vnd.docker.plugin.v1+json": "plugin", "application/vnd.docker.plugin.v0+json": "plugin"}
_SCHEMA_1 = (
    "[DEPRECATION NOTICE] Docker Image Format v1 and Docker Image manifest version 2, schema 1 support is disabled by "
    "default and will be removed in an upcoming release."
)
_SUGGESTION = " Suggest the author of {} to upgrade the image to the OCI Format or Docker Image manifest v2, schema 2."
_MORE = " More information at https://docs.docker.com/go/deprecated-image-specs/"


def check(manifest: str, config: str, layers: Iterable[str]) -> None:
    """Refuse a manifest (of that media type) whose config or layers are no image's. Raises InvalidParameter."""
    if manifest == DOCKER_MANIFEST and config not in _OLD | {DOCKER_CONFIG, OCI_CONFIG}:
        raise InvalidParameter(f'Encountered remote "{config}"({_CLASSES.get(config, "unknown")}) when fetching')
    for media in (config, *layers):
        lower = media.lower()
        if lower.startswith("application/vnd.docker.ai."):
            raise InvalidParameter(
                'AI models are not yet supported by the Engine, please use "docker model pull/run" instead'
            )
        if lower not in _OLD and not any(lower == known or lower.startswith(f"{known}.") for known in _BEGINNINGS):
            raise InvalidParameter(f"unsupported media type {media}")


def schema_1(reference: str) -> InvalidParameter:
    """The refusal of an image in the format before manifests had lists of digests. reference: its name, "" for none."""
    return InvalidParameter(_SCHEMA_1 + (_SUGGESTION.format(reference) if reference else "") + _MORE)
