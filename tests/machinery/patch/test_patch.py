"""Patches and field ownership."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.api import definitions
from longshore.machinery.patch import fieldset, jsonpatch, managedfields, mergepatch, strategic, typed
from longshore.machinery.patch.schema import Node, SchemaBuilder

BUILDER = SchemaBuilder(lambda name: definitions.definition(name)[0])
DEPLOYMENT = BUILDER.definition("io.k8s.api.apps.v1.Deployment")
CUSTOM = BUILDER.build(
    {"type": "object", "properties": {
        "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
              "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}},
        "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "a": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
        "metadata": {"type": "object"}}}
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
TREES = st.recursive(
    SCALARS, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=2), c, max_size=3), max_leaves=8
)
OBJECTS = st.dictionaries(st.text(max_size=2), TREES, max_size=4)


class Types:
    def __init__(self, node: Node) -> None:
        self._node = node

    def node(self, api_version: str) -> Node:
        return self._node

    def convert(self, obj: dict[str, Any], api_version: str) -> dict[str, Any]:
        return obj

    def reset(self, api_version: str) -> None:
        return None

    def empty(self, api_version: str) -> dict[str, Any]:
        return {"metadata": {}}


def apply(live: dict[str, Any], config: dict[str, Any], manager: str, force: bool = False) -> dict[str, Any]:
    return managedfields.apply(Types(CUSTOM), live, {"metadata": {}, **config}, manager, "v1", "", force, "t")


def test_json_patch_liberties() -> None:
    assert jsonpatch.apply({"a": {}}, [{"op": "replace", "path": "/a/b", "value": 1}]) == {"a": {"b": 1}}
    assert jsonpatch.apply({"a": [1, 2]}, [{"op": "remove", "path": "/a/-1"}]) == {"a": [1]}
    for operation in (
        {"op": "remove", "path": "/x"},
        {"op": "add", "path": "a", "value": 1},
        {"op": "test", "path": "/a", "value": 1},
    ):
        with pytest.raises(jsonpatch.PatchFailed):
            jsonpatch.apply({"a": True}, [operation])


@given(OBJECTS, OBJECTS)
def test_merge_diff_leads_there(old: dict[str, Any], new: dict[str, Any]) -> None:
    without_nulls = mergepatch.apply({}, new)
    out = mergepatch.apply(mergepatch.apply({}, old), mergepatch.diff(mergepatch.apply({}, old), without_nulls))
    assert out == without_nulls


def test_strategic_directives() -> None:
    live = {"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}}}}

    def patched(containers: Any, **more: Any) -> Any:
        patch = {"spec": {"template": {"spec": {"containers": containers, **more}}}}
        return strategic.apply(DEPLOYMENT, live, patch)["spec"]["template"]["spec"]["containers"]

    assert patched([{"name": "b", "image": "3"}]) == [{"name": "a", "image": "1"}, {"name": "b", "image": "3"}]
    assert patched([{"name": "a", "$patch": "delete"}]) == [{"name": "b", "image": "2"}]
    assert patched([{"$patch": "replace"}, {"name": "c"}]) == [{"name": "c"}]
    order = {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}
    assert [c["name"] for c in patched([{"name": "a", "image": "9"}], **order)] == ["b", "a"]
    with pytest.raises(strategic.PatchRefused):
        patched([{"image": "x"}])
    kept = strategic.apply(DEPLOYMENT, {"spec": {"strategy": {"type": "A", "rollingUpdate": {}}}}, {"spec": {"strategy": {"$retainKeys": ["type"], "type": "B"}}})  # fmt: skip
    assert kept["spec"]["strategy"] == {"type": "B"}


def test_apply_shares_conflicts_and_hands_over() -> None:
    live = apply({"metadata": {}}, {"m": [{"k": "a", "v": 1}], "s": ["x"]}, "one")
    live = apply(live, {"m": [{"k": "b", "v": 2}], "s": ["y"]}, "two")
    assert live["m"] == [{"k": "a", "v": 1}, {"k": "b", "v": 2}] and live["s"] == ["x", "y"]
    with pytest.raises(managedfields.ApplyConflict) as refused:
        apply(live, {"m": [{"k": "a", "v": 5}]}, "two")
    assert refused.value.message() == 'Apply failed with 1 conflict: conflict with "one": .m[k="a"].v'
    forced = apply(live, {"m": [{"k": "a", "v": 5}]}, "two", force=True)
    assert forced["m"] == [{"k": "a", "v": 5}] and forced["s"] == ["x"]
    gone = apply(forced, {}, "one")
    assert gone["m"] == [{"k": "a", "v": 5}] and "s" not in gone


def test_atomic_values_are_one_field() -> None:
    live = apply({"metadata": {}}, {"a": {"p": "q"}}, "one")
    with pytest.raises(managedfields.ApplyConflict):
        apply(live, {"a": {"r": "s"}}, "two")
    assert apply(live, {"a": {"r": "s"}}, "two", force=True)["a"] == {"r": "s"}


def test_what_does_not_fit_is_told() -> None:
    for config, text in (
        ({"m": [{"k": "a"}, {"k": "a"}]}, '.m: duplicate entries for key [k="a"]'),
        ({"s": ["q", "q"]}, '.s: duplicate entries for key [="q"]'),
        ({"nope": 1}, ".nope: field not declared in schema"),
    ):
        with pytest.raises(typed.TypedError, match="failed to create typed patch object"):
            apply({"metadata": {}}, config, "m")
        assert typed.validate(CUSTOM, config) == [text]


SETS = st.recursive(
    st.just({}),
    lambda c: st.dictionaries(st.sampled_from(["f:a", "f:b", 'k:{"k":"x"}', "."]), c, max_size=3),
    max_leaves=6,
)


def members(a: fieldset.Set) -> set[tuple[str, ...]]:
    return set(fieldset.paths(a))


def clean(a: fieldset.Set) -> fieldset.Set:
    """Sets as they are written: "." holds nothing and never stands at the top."""
    return {k: ({} if k == "." else clean_inner(v)) for k, v in a.items() if k != "."}


def clean_inner(a: fieldset.Set) -> fieldset.Set:
    return {k: ({} if k == "." else clean_inner(v)) for k, v in a.items()}


@given(SETS, SETS)
def test_set_operations(x: fieldset.Set, y: fieldset.Set) -> None:
    a, b = clean(x), clean(y)
    assert members(fieldset.union(a, b)) == members(a) | members(b)
    assert members(fieldset.difference(a, b)) == members(a) - members(b)
    assert members(fieldset.intersection(a, b)) == members(a) & members(b)


def test_updates_are_owned_and_old_ones_are_put_together() -> None:
    obj: dict[str, Any] = {"metadata": {"uid": "u"}, "a": {"x": "0"}}
    managedfields.update(Types(CUSTOM), None, obj, "m", "v1", "", "t0")
    assert obj["metadata"]["managedFields"][0]["fieldsV1"] == {"f:a": {}}
    for i in range(12):
        new = {"metadata": dict(obj["metadata"]), "a": {"x": "0"}, "m": [{"k": str(i), "v": i}], "s": [str(i)]}
        managedfields.update(Types(CUSTOM), obj, new, f"m{i:02}", "v1", "", f"t{i:02}")
        obj = new
    managers = [e["manager"] for e in obj["metadata"]["managedFields"]]
    assert len(managers) <= managedfields.MAX_UPDATE_MANAGERS
