"""Provenance of a build: an in-toto statement with a SLSA predicate that tells what went in and who built.

Source: SLSA v1.0 and v0.2 provenance; BuildKit docs/attestations/slsa-definitions.md.
"""

from __future__ import annotations

import re
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
    """What is known of a build. started, ended: RFC 3339; sources: images by the names that the build used; layouts: those
    of the client's OCI layouts, names to digests."""

    ref: str
    frontend: str
    attributes: Mapping[str, str]
    sources: Mapping[str, tuple[Image, str]]
    file: str
    context: str = ""
    commit: str = ""
    platform: str = ""
    builder_platform: str = ""
    started: str = ""
    ended: str = ""
    data: bytes = b""
    names: list[str] = field(default_factory=list)
    # What mode=max tells besides: the steps as definition, where in the file each is, their layers; secrets and agents.
    definition: Mapping[str, Any] = field(default_factory=dict)
    locations: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, Any] = field(default_factory=dict)
    layouts: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, bool] = field(default_factory=dict)
    agents: Mapping[str, bool] = field(default_factory=dict)


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
    for name, digest in sorted(facts.layouts.items()):
        where = f"?digest={quote(digest, safe=':')}&platform={quote(facts.platform, safe='')}"
        found.append({"uri": f"pkg:oci/{name}@latest{where}", "digest": {"sha256": digest.partition(":")[2]}})
    return found


_PRIVATE = ("build-arg:", "label:")


def _arguments(facts: Facts, mode: str) -> tuple[dict[str, str], dict[str, str]]:
    """(the frontend's settings, what is told of the repository); with mode min nothing that may hold a secret."""
    hidden = ("attest:", "build-arg:BUILDKIT_ATTEST_", "input-metadata:")
    host = ("cgroup-parent", "image-resolve-mode", "platform", "cache-imports", "cache-from", "requestid", "filename")
    found: dict[str, str] = {}
    vcs: dict[str, str] = {}
    for key, value in sorted(facts.attributes.items()):
        if (
            key.startswith(hidden)
            or key in (*host, "context", "source")
            or (mode == "min" and key.startswith(_PRIVATE))
        ):
            continue
        if key.startswith("vcs:"):
            vcs[key.removeprefix("vcs:")] = redacted(value)
        else:
            found[key] = redacted(value) if key.startswith("context:") else value
    return found, {key: value for key, value in vcs.items() if value}


def redacted(url: str) -> str:
    """A URL without the name and password in it."""

    def hide(found: re.Match[str]) -> str:
        return f"{found[1]}xxxxx{':xxxxx' if ':' in found[2] else ''}@"

    return re.sub(r"^([a-z][a-z0-9+.-]*://)([^/@]+)@", hide, url, flags=re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Told:
    """What either version of the predicate tells of a build."""

    facts: Facts
    builder: str
    source: dict[str, Any]
    request: dict[str, Any]
    metadata: dict[str, Any]
    reproducible: bool
    complete: bool
    definition: Mapping[str, Any]

    def v1(self) -> dict[str, Any]:
        return {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {"configSource": self.source, "request": self.request},
                "internalParameters": {
                    **({"buildConfig": self.definition} if self.definition else {}),
                    "builderPlatform": self.facts.builder_platform,
                },
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
                        "request": self.complete,
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
                "environment": {"platform": self.facts.builder_platform},
            },
            "metadata": {
                "buildInvocationID": self.facts.ref,
                "buildStartedOn": self.facts.started,
                "buildFinishedOn": self.facts.ended,
                "completeness": {
                    "parameters": self.complete,
                    "environment": True,
                    "materials": "locals" not in self.request,
                },
                "reproducible": self.reproducible,
            },
        }
        if self.definition:
            found["buildConfig"] = self.definition
        if self.metadata:
            found["metadata"]["https://mobyproject.org/buildkit@v1#metadata"] = self.metadata
        return found


# How the file itself was had.
_SOURCE_DEFINITION = {
    "llbDefinition": [
        {"id": "step0", "op": {"Op": {"source": {"identifier": "local://dockerfile"}}, "constraints": {}}},
        {"id": "step1", "op": {"Op": {}}, "inputs": ["step0:0"]},
    ]
}


def mode_of(settings: Mapping[str, str]) -> str:
    """How much is told: "min" or "max". Raises InvalidParameter."""
    mode = settings.get("mode") or "max"
    if mode not in ("min", "max"):
        raise InvalidParameter(f'invalid mode "{mode}"')
    return mode


def statement(facts: Facts, settings: Mapping[str, str]) -> tuple[str, bytes]:
    """(predicate type, statement) of one image. settings: mode, version, builder-id, reproducible.

    Raises InvalidParameter.
    """
    mode, version = mode_of(settings), settings.get("version") or "v1"
    if version not in ("v1", "v0.2"):
        raise InvalidParameter(f'invalid SLSA provenance version "{version}"')
    source: dict[str, Any] = {"path": facts.file}
    if facts.context and facts.commit:
        source = {"uri": redacted(facts.context), "digest": {"sha1": facts.commit}, "path": facts.file}
    local = [] if facts.commit else [{"name": "context"}, {"name": "dockerfile"}]
    arguments, vcs = _arguments(facts, mode)
    request: dict[str, Any] = {"frontend": facts.frontend, "args": arguments}
    asked = {"secrets": facts.secrets, "ssh": facts.agents}
    complete = mode == "max" or not (any(asked.values()) or any(key.startswith(_PRIVATE) for key in facts.attributes))
    if mode == "max":
        for key, wanted in asked.items():
            if wanted:
                request[key] = [
                    {"id": name, **({"optional": True} if optional else {})}
                    for name, optional in sorted(wanted.items())
                ]
    if local:
        request["locals"] = local
    reproducible = settings.get("reproducible", "false") in ("1", "true")
    metadata: dict[str, Any] = {"vcs": vcs} if vcs else {}
    if mode == "max":
        import base64

        info = {"filename": facts.file, "language": "Dockerfile", "data": base64.b64encode(facts.data).decode()}
        metadata["source"] = {
            **({"locations": dict(facts.locations)} if facts.locations else {}),
            "infos": [{**info, **_SOURCE_DEFINITION}],
        }
        if facts.layers:
            metadata["layers"] = dict(facts.layers)
    definition = facts.definition if mode == "max" else {}
    subjects = [
        {"name": f"pkg:docker/{name}?platform={quote(facts.platform, safe='')}", "digest": {}}
        for name in facts.names or ["_"]
    ]
    told = _Told(facts, settings.get("builder-id", ""), source, request, metadata, reproducible, complete, definition)
    kind, predicate = (SLSA02, told.v02()) if version == "v0.2" else (SLSA1, told.v1())
    body = {"_type": _STATEMENT, "predicateType": kind, "subject": subjects, "predicate": predicate}
    return kind, orjson.dumps(body)
