from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshore.api import decoding
from longshore.api.crd import celcost
from longshore.api.crd.patterns import PatternError, compile_go
from longshore.api.crd.structural import Node


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^(?i)(abort|warn)?$", "WARN", "x"),
        ("^a(?i)b|c$", "aBx", "Ab"),
        ("^a$", "a", "a\n"),
        (r"^\d+$", "12", "\u0661"),
        ("^[[:alpha:]_]+$", "ab_", "1"),
        (r"\Qa.b\E+", "a.bb", "axb"),
        ("a{,2}$", "a{,2}", "aa"),
        ("^(?s:.)$", "\n", "ab"),
        (r"^[\w\-[]+$", "a-[", "]"),
        ("(?m)^b$", "a\nb", "ab"),
        (r"^\x{41}\z", "A", "B"),
        ("(?<n>a)", "a", "b"),
        (r"^\p{L}+$", "\u00e9", "1"),
    ],
)
def test_go_patterns(pattern: str, good: str, bad: str) -> None:
    assert compile_go(pattern).search(good)
    assert not compile_go(pattern).search(bad)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
        ("a**", "invalid nested repetition operator: `**`"),
        ("a(", "missing closing ): `a(`"),
        ("[a", "missing closing ]: `[a`"),
        ("a)", "unexpected ): `a)`"),
        (r"\Z", r"invalid escape sequence: `\Z`"),
        (r"(a)\1", r"invalid escape sequence: `\1`"),
        ("a{2000}", "invalid repeat count: `{2000}`"),
    ],
)
def test_patterns_that_go_does_not_take(pattern: str, said: str) -> None:
    with pytest.raises(PatternError, match=re.escape("error parsing regexp: " + said)):
        compile_go(pattern)


@settings(deadline=None)
@given(st.text(alphabet="ab()[]{}|*+?^$\\.,:-P<>ims012xdQE", max_size=12))
def test_any_pattern_compiles_or_is_refused(text: str) -> None:
    try:
        compile_go(text)
    except PatternError:
        pass


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("=", "="),
        ("y", True),
        ("Off", False),
        ("12:30", "12:30"),
        ("017", 15),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("2020-01-01", "2020-01-01"),
        ("~", None),
        ("'1'", "1"),
        ("1.2.3", "1.2.3"),
        ("+", "+"),
        ("-", None),
        ("18446744073709551616", 18446744073709551616.0),
    ],
)
def test_plain_scalars_of_yaml(text: str, value: object) -> None:
    found = decoding.parse_yaml(f"a: [{text}]" .encode() if text != "-" else b"a:\n- \n").value["a"][0]  # fmt: skip
    assert (found, type(found)) == (value, type(value))


def test_costs_where_nothing_bounds_a_list() -> None:
    inner = {"type": "object", "properties": {"x": {"type": "string"}}}
    outer = Node({"type": "array", "items": inner})
    assert outer.items is not None
    place = celcost.Place(1, True, "")
    unbounded = celcost.Place(celcost.within(outer, place), True, "")
    assert celcost.occurrences(outer.items, unbounded) == celcost.REQUEST // 3
    # Its like is in Gateway API's and Istio's definitions.
    assert celcost.estimate("!has(self.x) || has(self.y)", outer.items) * celcost.REQUEST // 3 < celcost.RULE_LIMIT
    keys = Node({"type": "object", "maxProperties": 128, "additionalProperties": {"type": "integer"}})
    rule = 'self.all(k, size(k) < 63 && k.matches("^[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?$"))'
    assert celcost.estimate(rule, keys) * 4096 < celcost.RULE_LIMIT
