"""Provenance of a build: an in-toto statement with a SLSA predicate that tells what went in and who built.

Source: SLSA v1.0 and v0.2 provenance; BuildKit docs/attestations/slsa-definitions.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import orjson

from longshore.engine.errors import InvalidParameter
from longshore.engine.images import references
from longshore.engine.images.model import Image

SLSA1 = "https://slsa.dev/provenance/v1"
SLSA02 = "https://slsa.dev/provenance/v0.2"
_STATEMENT = "https://in-toto.io/Statement/v0.1"
_BUILD_TYPE = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
_BUILD_TYPE_02 = "https://mobyproject.org/buildkit@v1"


@dataclass(slots=True)
class Facts:
    """What is known of a build. started, ended: RFC 3339; sources: images by the names that the build used."""

    ref: str
    frontend: str
    attributes: Mapping[str, str]
    sources: Mapping[str, tuple[Image, str]]
    file: str
    context: str = ""
    commit: str = ""
    platform: str = ""
    started: str = ""
    ended: str = ""
    data: bytes = b""
    names: list[str] = field(default_factory=list)


def _materials(facts: Facts) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if facts.context and facts.commit:
        found.append({"uri": facts.context, "digest": {"sha1": facts.commit}})
    for name, (_, digest) in sorted(facts.sources.items()):
        try:
            reference = references.parse(name).with_default_tag()
        except references.InvalidReference:
            continue
        uri = f"pkg:docker/{reference.familiar_name}@{reference.tag or reference.digest}?platform={quote(facts.platform, safe='')}"
        found.append({"uri": uri, "digest": {"sha256": digest.partition(":")[2]}})
    return found


def _arguments(facts: Facts, mode: str) -> dict[str, str]:
    """The frontend's settings; with mode min nothing that a caller may have put a secret into."""
    hidden = ("attest:", "context:", "input:", "input-metadata:", "build-arg:BUILDKIT_ATTEST_")
    private = ("build-arg:", "label:", "vcs:")
    return {
        key: value
        for key, value in sorted(facts.attributes.items())
        if not key.startswith(hidden)
        and (mode == "max" or not key.startswith(private))
        and key not in ("context", "filename", "source", "cache-imports", "requestid")
    }


@dataclass(frozen=True, slots=True)
class _Told:
    """What either version of the predicate tells of a build."""

    facts: Facts
    builder: str
    source: dict[str, Any]
    request: dict[str, Any]
    metadata: dict[str, Any]
    reproducible: bool

    def v1(self) -> dict[str, Any]:
        return {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {"configSource": self.source, "request": self.request},
                "internalParameters": {"builderPlatform": self.facts.platform},
                "resolvedDependencies": _materials(self.facts),
            },
            "runDetails": {
                "builder": {"id": self.builder},
                "metadata": {
                    "invocationID": self.facts.ref,
                    "startedOn": self.facts.started,
                    "finishedOn": self.facts.ended,
                    **({"buildkit_metadata": self.metadata} if self.metadata else {}),
                    "buildkit_reproducible": self.reproducible,
                    "buildkit_completeness": {
                        "request": self.request["args"] != {},
                        "resolvedDependencies": "locals" not in self.request,
                    },
                },
            },
        }

    def v02(self) -> dict[str, Any]:
        inner = {key: value for key, value in self.source.items() if key != "path"}
        found: dict[str, Any] = {
            "builder": {"id": self.builder},
            "buildType": _BUILD_TYPE_02,
            "materials": _materials(self.facts),
            "invocation": {
                "configSource": {**inner, "entryPoint": self.source["path"]},
                "parameters": self.request,
                "environment": {"platform": self.facts.platform},
            },
            "metadata": {
                "buildInvocationID": self.facts.ref,
                "buildStartedOn": self.facts.started,
                "buildFinishedOn": self.facts.ended,
                "completeness": {
                    "parameters": self.request["args"] != {},
                    "environment": True,
                    "materials": "locals" not in self.request,
                },
                "reproducible": self.reproducible,
            },
        }
        if self.metadata:
            found["metadata"]["https://mobyproject.org/buildkit@v1#metadata"] = self.metadata
        return found


def statement(facts: Facts, settings: Mapping[str, str]) -> tuple[str, bytes]:
    """(predicate type, statement) of one image. settings: mode, version, builder-id, reproducible.

    Raises InvalidParameter.
    """
    mode, version = settings.get("mode") or "min", settings.get("version") or "v1"
    if mode not in ("min", "max"):
        raise InvalidParameter(f'invalid mode "{mode}"')
    if version not in ("v1", "v0.2"):
        raise InvalidParameter(f'invalid SLSA provenance version "{version}"')
    source: dict[str, Any] = {"path": facts.file}
    if facts.context and facts.commit:
        source = {"uri": facts.context, "digest": {"sha1": facts.commit}, "path": facts.file}
    local = [] if facts.commit else [{"name": "context"}, {"name": "dockerfile"}]
    request: dict[str, Any] = {"frontend": facts.frontend, "args": _arguments(facts, mode)}
    if local:
        request["locals"] = local
    reproducible = settings.get("reproducible", "false") in ("1", "true")
    metadata: dict[str, Any] = {}
    if mode == "max":
        import base64

        metadata["source"] = {
            "infos": [{"filename": facts.file, "language": "Dockerfile", "data": base64.b64encode(facts.data).decode()}]
        }
    subjects = [
        {"name": f"pkg:docker/{name}?platform={quote(facts.platform, safe='')}", "digest": {}}
        for name in facts.names or ["_"]
    ]
    told = _Told(facts, settings.get("builder-id", ""), source, request, metadata, reproducible)
    kind, predicate = (SLSA02, told.v02()) if version == "v0.2" else (SLSA1, told.v1())
    body = {"_type": _STATEMENT, "predicateType": kind, "subject": subjects, "predicate": predicate}
    return kind, orjson.dumps(body)
