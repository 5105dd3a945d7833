"""The short way through what a creation adds finds what the general comparison finds."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from longshore.machinery.patch import typed
from longshore.machinery.patch.schema import DEDUCED, Node


def node(**given: Any) -> Node:
    made = Node()
    for name, value in given.items():
        setattr(made, name, value)
    return made


TEXT = node(scalar="string")
NAMED = node(is_map=True, _fields={"name": TEXT, "value": TEXT})
FIELDS = {
    "text": TEXT,
    "any": DEDUCED,
    "either": node(scalar="untyped", is_map=True, _values=TEXT),
    "whole": node(is_map=True, atomic_map=True, _values=TEXT),
    "labels": node(is_map=True, _values=TEXT),
    "named": node(list_kind="map", keys=("name",), _items=NAMED),
    "set": node(list_kind="set", _items=TEXT),
    "list": node(list_kind="atomic", _items=TEXT),
    "shapeless": node(),
}
ROOT = node(is_map=True, _fields=FIELDS)
FIELDS["self"] = ROOT

scalars = st.one_of(st.none(), st.booleans(), st.integers(0, 3), st.sampled_from("ab"))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from([*FIELDS, "name", "value"]), inner, max_size=5),
    ),
    max_leaves=20,
)


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(list(FIELDS)), values, max_size=6))
def test_short_and_general_way_agree(new: dict[str, Any]) -> None:
    short = typed.compare(ROOT, {}, new).added
    found = typed._added
    try:
        typed._added = lambda n, v: typed._compare(n, typed.ABSENT, v)[2]  # type: ignore[assignment]
        general = typed.compare(ROOT, {}, new).added
    finally:
        typed._added = found
    assert short == general
