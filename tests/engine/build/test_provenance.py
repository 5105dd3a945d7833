"""Provenance that tells all (mode=max): steps, layers, sources, and what must not be told."""

from __future__ import annotations

import json
import tarfile
from typing import Any

import pytest

from longshore.engine.build.buildkit.provenance import redacted

from .kit import Kit

pytestmark = pytest.mark.root
QUIET = {"force-network-mode": "none"}
TEXT = """FROM busybox AS base
WORKDIR /w
FROM base
RUN --mount=type=secret,id=known --mount=type=ssh echo \\
  1 > /one
COPY --from=base /etc/passwd /p
ADD f g /d/
"""


async def predicate(kit: Kit, text: str, **attributes: str) -> dict[str, Any]:
    await kit.build(text, exporter="tar", **QUIET, **attributes)
    with tarfile.open(kit.path / "out") as archive:
        file = archive.extractfile("provenance.json")
        assert file is not None
        found: dict[str, Any] = json.loads(file.read())["predicate"]
        return found


async def test_every_step_is_told(kit: Kit) -> None:
    for name in "fg":
        (kit.context / name).write_text(name)
    found = await predicate(kit, TEXT, **{"attest:provenance": "mode=max", "build-arg:A": "1"})
    parameters, metadata = found["buildDefinition"], found["runDetails"]["metadata"]
    request = parameters["externalParameters"]["request"]
    assert request["secrets"] == [{"id": "known", "optional": True}] and request["ssh"] == [
        {"id": "default", "optional": True}
    ]
    assert request["args"] == {"build-arg:A": "1", "force-network-mode": "none"}
    steps = parameters["internalParameters"]["buildConfig"]["llbDefinition"]
    shown = [(next(iter(step["op"]["Op"]), ""), step.get("inputs", [])) for step in steps]
    assert shown == [
        ("source", []), ("file", ["step0:0"]), ("exec", ["step1:0"]), ("file", ["step2:0", "step1:0"]), ("source", []),
        ("file", ["step3:0", "step4:0", "step4:0"]), ("", ["step5:0"]),
    ]  # fmt: skip
    assert steps[0]["op"]["Op"]["source"]["identifier"].startswith(
        "docker-image://docker.io/library/busybox:latest@sha256:"
    )
    assert steps[2]["op"]["Op"]["exec"]["meta"]["args"] == ["/bin/sh", "-c", "echo   1 > /one"]
    assert steps[2]["op"]["Op"]["exec"]["meta"]["cwd"] == "/w"
    assert [a["input"] for a in steps[5]["op"]["Op"]["file"]["actions"]] == [0, 3]
    mapping = parameters["internalParameters"]["buildConfig"]["digestMapping"]
    assert sorted(mapping.values()) == [step["id"] for step in steps]
    source = metadata["buildkit_metadata"]["source"]
    lines = {
        name: [r["start"]["line"] for place in found.get("locations", []) for r in place["ranges"]]
        for name, found in source["locations"].items()
    }
    assert lines == {"step0": [1], "step1": [2], "step2": [4, 5], "step3": [6], "step4": [], "step5": [7]}
    assert source["infos"][0]["filename"] == "Dockerfile"
    layers = metadata["buildkit_metadata"]["layers"]
    assert [len(layers[f"step{n}:0"][0]) for n in (0, 1, 2, 3, 5)] == [1, 2, 3, 4, 5]
    assert metadata["buildkit_completeness"] == {"request": True, "resolvedDependencies": False}
    # The same when every step is cached.
    again = await predicate(kit, TEXT, **{"attest:provenance": "mode=max", "build-arg:A": "1"})
    assert again["buildDefinition"] == found["buildDefinition"]


async def test_less_is_told_by_wish(kit: Kit) -> None:
    given = {
        "build-arg:A": "hush", "label:l": "x", "vcs:source": "https://me:hush@host.invalid/r.git", "vcs:revision": "12",
        "context:other": "https://me:hush@host.invalid/f", "attest:provenance": "mode=min",
    }  # fmt: skip
    found = await predicate(kit, "FROM busybox\nRUN --mount=type=secret,id=known true\n", **given)
    request = found["buildDefinition"]["externalParameters"]["request"]
    assert (
        request["args"] == {"context:other": "https://xxxxx:xxxxx@host.invalid/f", **QUIET} and "secrets" not in request
    )
    metadata = found["runDetails"]["metadata"]
    assert metadata["buildkit_metadata"] == {
        "vcs": {"source": "https://xxxxx:xxxxx@host.invalid/r.git", "revision": "12"}
    }
    assert metadata["buildkit_completeness"]["request"] is False
    assert "buildConfig" not in found["buildDefinition"]["internalParameters"] and "hush" not in json.dumps(found)
    old = await predicate(kit, "FROM busybox\nRUN true\n", **{"attest:provenance": "version=v0.2"})
    assert [step["id"] for step in old["buildConfig"]["llbDefinition"]] == ["step0", "step1", "step2"]
    assert redacted("ssh://git@host/x") == "ssh://xxxxx@host/x" and redacted("local:x@y") == "local:x@y"
