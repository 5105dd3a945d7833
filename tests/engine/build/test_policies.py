"""Source policies: what a build may begin with, and what takes its place."""

from __future__ import annotations

from typing import Any

import pytest

from longshore.engine.build.buildkit.policies import Policies
from longshore.engine.build.buildkit.schemas import control
from longshore.engine.errors import EngineError
from longshore.machinery.grpc import RpcError

from ..images.conftest import imported
from .kit import Kit

ALLOW, DENY, CONVERT = range(3)
WILDCARD, EXACT, REGEX = range(3)
BOX = "docker-image://docker.io/library/busybox:latest"


def rule(action: int, identifier: str, kind: int = WILDCARD, to: str = "", **attrs: str) -> Any:
    made = control.SourceRule(action=action, selector=control.SourceSelector(identifier=identifier, match_type=kind))
    if to or attrs:
        made.updates.CopyFrom(control.SourceUpdate(identifier=to, attrs=attrs))
    return made


def policies(*rules: Any) -> Policies:
    return Policies([control.SourcePolicy(version=1, rules=rules)])


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ([], BOX),
        ([rule(DENY, "*"), rule(ALLOW, "docker-image://docker.io/*")], BOX),
        ([rule(ALLOW, "*"), rule(DENY, BOX, EXACT)], None),
        ([rule(DENY, "docker-image://other", EXACT)], BOX),
        ([rule(DENY, "^docker-.*box", REGEX)], None),
        ([rule(CONVERT, "docker-image://docker.io/library/*:latest", to="docker-image://host/$1:2")], "docker-image://host/busybox:2"),
        ([rule(CONVERT, "library/(?:b)(usy)(box)", REGEX, to="docker-image://${2}$1")], "docker-image://boxusy"),
        ([rule(CONVERT, BOX, to="docker-image://x"), rule(DENY, "docker-image://x")], None),
    ],
)  # fmt: skip
def test_rules(rules: list[Any], wanted: str | None) -> None:
    if wanted is None:
        with pytest.raises(EngineError, match="denied by policy"):
            policies(*rules).evaluate(BOX)
        return
    assert policies(*rules).evaluate(BOX)[0] == wanted


def test_attributes_and_wrong_rules() -> None:
    constrained = rule(CONVERT, "https://host/f", **{"http.checksum": "sha256:1"})
    constrained.selector.constraints.add(key="http.checksum", value="^$", condition=2)
    found = policies(constrained).evaluate("https://host/f")
    assert found == ("https://host/f", {"http.checksum": "sha256:1"})
    for wrong, message in (
        (rule(DENY, "(", REGEX), "invalid regex"),
        (rule(DENY, "**"), "invalid wildcard"),
        (rule(CONVERT, BOX), "missing destination"),
        (rule(CONVERT, "docker-image://*", to="docker-image://${1}x"), "too many"),
    ):
        with pytest.raises(EngineError, match=message):
            policies(wrong).evaluate(BOX)


@pytest.mark.root
async def test_a_build_under_a_policy(kit: Kit) -> None:
    await imported(kit.store, "mine:1", {"mine": b"1"})
    kit.policy = control.SourcePolicy(rules=[rule(CONVERT, BOX, to="docker-image://docker.io/library/mine:1")])
    await kit.build("FROM busybox\nCOPY Dockerfile /f\n", name="out")
    assert (kit.store.layer_dirs("out")[-1] / "mine").read_bytes() == b"1"
    kit.policy = control.SourcePolicy(rules=[rule(DENY, "docker-image://*"), rule(DENY, "https://*")])
    for text in (
        "FROM busybox\n",
        "FROM scratch\nCOPY --from=busybox /bin /\n",
        "FROM scratch\nADD https://h.invalid/f /\n",
    ):
        with pytest.raises(RpcError, match="denied by policy"):
            await kit.build(text)
