"""CEL: values, libraries, errors in upstream's words, limits."""

from __future__ import annotations

from typing import Any

import pytest

from longshore.api import cel
from longshore.api.crd.structural import Node


def run(text: str, **variables: Any) -> Any:
    return cel.compile(text, dict.fromkeys(variables, "dyn")).run(variables)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3 - 4 / 2", 5),
        ("-7 / 2", -3),
        ("-7 % 2", -1),
        ("'a' + 'b' == 'ab' && !(1 > 2)", True),
        ("true || 1 / 0 == 0", True),
        ("1 / 0 == 0 || true", True),
        ("[1, 2, 3].exists(x, x == 2) && [1, 2].all(x, x < 3)", True),
        ("[1, 2, 3].map(x, x > 1, x * 10)", [20, 30]),
        ("{'a': 1, 'b': 2}.filter(k, k != 'a')", ["b"]),
        ("[3, 1, 2].isSorted() || [1, 2].sum() == 3", True),
        ("['a', 'b'].join(',')", "a,b"),
        ("'hello'.substring(1, 3) + 'x'.upperAscii()", "elX"),
        ("'%s=%d %.2f'.format(['a', 3, 1.5])", "a=3 1.50"),
        ("'abc123'.find('[0-9]+')", "123"),
        ("quantity('1Gi') == quantity('1024Mi')", True),
        ("quantity('500m').add(quantity('1')).compareTo(quantity('1500m'))", 0),
        ("isQuantity('1x')", False),
        ("cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && ip('::1').isLoopback()", True),
        ("url('https://u@example.com:80/p?a=b').getHostname()", "example.com"),
        ("semver('1.2.3-rc.1').isLessThan(semver('1.2.3'))", True),
        ("format.dns1123Label().validate('A_').hasValue()", True),
        ("sets.contains([1, 2, 3], [2, 3]) && !sets.intersects([1], [2])", True),
        ("duration('90m').getHours()", 1),
        ("timestamp('2024-02-29T12:00:00Z') - timestamp('2024-02-28T12:00:00Z') == duration('24h')", True),
        ("cel.bind(x, 5, x * x)", 25),
        ("optional.of(3).orValue(1) + optional.none().orValue(2)", 5),
        ("type(1u) == uint && type('') == string", True),
        ("dyn(1) == 1.0 && 1 in [dyn(1.0)]", True),
        ("'\\u00e9' == 'é' && b'abc' == bytes('abc') && r'\\n'.size() == 2", True),
        ("int('42') + size('abc')", 45),
        ("[1, 2].all(i, v, v == i + 1)", True),
    ],
)  # fmt: skip
def test_values(text: str, value: Any) -> None:
    assert run(text) == value


@pytest.mark.parametrize(
    ("text", "variables", "message"),
    [
        ("self.x", {"self": {}}, "no such key: x"),
        ("self[3]", {"self": [1]}, "index out of bounds: 3"),
        ("1 / self", {"self": 0}, "division by zero"),
        ("self + 1", {"self": 2**63 - 1}, "integer overflow"),
        ("self + 1", {"self": "a"}, "no such overload"),
        (
            "quantity(self)",
            {"self": "x"},
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        ("self.value()", {"self": cel.NONE}, "optional.none() dereference"),
    ],
)
def test_errors_when_run(text: str, variables: dict[str, Any], message: str) -> None:
    with pytest.raises(cel.EvalError) as caught:
        run(text, **variables)
    assert str(caught.value) == message


def test_errors_of_compilation() -> None:
    with pytest.raises(cel.CompileError, match="undeclared reference to 'nope'"):
        run("nope.x")
    with pytest.raises(cel.CompileError, match=r"Syntax error: mismatched input '<EOF>'"):
        run("1 +")
    with pytest.raises(cel.CompileError, match="must evaluate to bool but got int"):
        cel.compile("1 + 1", {}, ("bool",))
    typed = {"self": cel.of_node(Node({"type": "object", "properties": {"a": {"type": "string"}}}))}
    with pytest.raises(cel.CompileError, match="undefined field 'b'"):
        cel.compile("self.b == 1", typed)
    with pytest.raises(cel.CompileError, match="found no matching overload"):
        cel.compile("self.a > 1", typed)


def test_escaped_names() -> None:
    assert run("self.a__dash__b + self.__if__ + self.x__underscores__y", self={"a-b": 1, "if": 2, "x__y": 3}) == 6


def test_cost_is_limited() -> None:
    many = list(range(2000))
    with pytest.raises(cel.EvalError, match="cost limit exceeded"):
        run("self.all(x, self.all(y, x + y >= 0))", self=many)
    deep = "(" * 400 + "1" + ")" * 400
    with pytest.raises(cel.CompileError):
        run(deep)
