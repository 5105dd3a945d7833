"""Warnings about the expressions of admission policies, in the words of upstream's kube-controller-manager."""

from __future__ import annotations

from typing import Any

from longshore.master.controllers.policytypes import TypeChecker

THING = {
    "type": "object",
    "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}, "metadata": {"$ref": "x"}},
    "x-kubernetes-group-version-kind": [{"group": "example.com", "version": "v1", "kind": "Thing"}],
}
DOCUMENTS = {
    "/apis/example.com/v1": {"resources": [{"name": "things", "kind": "Thing"}]},
    "/openapi/v3/apis/example.com/v1": {"components": {"schemas": {"com.example.v1.Thing": THING}}},
}


async def fetch(path: str) -> Any:
    return DOCUMENTS.get(path)


async def warnings(rules: list[tuple[str, str, list[str]]], *validations: Any, **more: Any) -> dict[str, str]:
    listed = [{"apiGroups": [g], "apiVersions": [v], "resources": r} for g, v, r in rules]
    given = [{"expression": v} if isinstance(v, str) else v for v in validations]
    policy = {"spec": {"matchConstraints": {"resourceRules": listed}, "validations": given, **more}}
    return {w["fieldRef"]: w["warning"] for w in await TypeChecker(fetch).check(policy)}


async def test_built_in_kinds() -> None:
    found = await warnings(
        [("apps", "v1", ["deployments", "statefulsets", "*/status"])],
        "object.replicas > 1",
        "object.spec.replicas > 1",
        "object.spec.replicas > 'a'",
        "object.spec.template.spec.containers.all(c, c.imag != '')",
        "object.metadata.labels['a'] == 'b'",
        "has(object.spec.foo)",
        {"expression": "object.spec.replicas < 5", "messageExpression": "'x' + string(object.spec.nothing)"},
        "variables.x > 1 && object.metadata.creationTimestamp < timestamp('2020-01-01T00:00:00Z')",
    )
    place = " | object.replicas > 1\n | ......^\n"
    assert found["spec.validations[0].expression"] == (
        f"apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n{place}\n"
        f"apps/v1, Kind=StatefulSet: ERROR: <input>:1:7: undefined field 'replicas'\n{place}"
    )
    assert "found no matching overload for '_>_' applied to '(int, string)'" in found["spec.validations[2].expression"]
    assert "undefined field 'imag'" in found["spec.validations[3].expression"]
    assert (
        "<input>:1:4: undefined field 'foo'\n | has(object.spec.foo)\n | ...^\n"
        in found["spec.validations[5].expression"]
    )
    assert "undefined field 'nothing'" in found["spec.validations[6].messageExpression"]
    assert len(found) == 5
    several = await warnings([("", "v1", ["pods", "configmaps"])], "object.spec.nodeName == 'x'")
    assert several["spec.validations[0].expression"].startswith("/v1, Kind=ConfigMap: ERROR")
    assert "Kind=Pod" not in several["spec.validations[0].expression"]
    assert await warnings([("*", "v1", ["pods"])], "object.bla == 1") == {}


async def test_custom_kinds_and_parameters() -> None:
    things = [("example.com", "v1", ["things"])]
    good = "object.spec.size > 1 && object.metadata.labels.size() > 0 && object.kind == 'Thing'"
    found = await warnings(things, good, "object.spec.siz > 1")
    assert list(found) == ["spec.validations[1].expression"]
    assert "example.com/v1, Kind=Thing: ERROR: <input>:1:12: undefined field 'siz'" in found.popitem()[1]
    kind = {"apiVersion": "example.com/v1", "kind": "Thing"}
    deployments = [("apps", "v1", ["deployments"])]
    found = await warnings(
        deployments, "params.spec.size > object.spec.replicas", "params.spec.sze > 1", paramKind=kind
    )
    assert list(found) == ["spec.validations[1].expression"]
    assert await warnings([("example.com", "v1", ["others"])], "object.x == 1") == {}
