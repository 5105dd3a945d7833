"""Bodies to objects: what Go's JSON package would make of them, and what it would say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshore.api import decoding, times
from longshore.api.kinds import KINDS
from longshore.api.schema import DecodeError, named
from longshore.machinery import quantity, selectors

POD = named("io.k8s.api.core.v1.Pod")
CONFIG_MAPS = KINDS["", "configmaps"]


def test_zero_values_go_and_required_ones_come() -> None:
    pod = POD.decode(
        {
            "spec": {
                "nodeName": "",
                "hostNetwork": False,
                "activeDeadlineSeconds": 0,
                "containers": [{"name": "c", "env": [], "resources": {"limits": {"cpu": "1000m"}}}],
            }
        }
    )
    assert pod == {
        "metadata": {},
        "spec": {"activeDeadlineSeconds": 0, "containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}]},
        "status": {},
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"spec": {"containers": {}}},
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            {"spec": {"priority": 99999999999}},
            "json: cannot unmarshal number 99999999999 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            {"spec": {"hostPID": 1}},
            "json: cannot unmarshal number into Go struct field PodSpec.spec.hostPID of type bool",
        ),
        (
            {"metadata": {"labels": {"a": {}}}},
            "json: cannot unmarshal object into Go struct field ObjectMeta.metadata.labels of type string",
        ),
    ],
)
def test_mismatches(value: Any, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        POD.decode(value)
    assert str(caught.value) == message


def test_unknown_and_duplicate_fields() -> None:
    body = b'{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x","name":"y","bar":1},"foo":{}}'
    obj, warnings = decoding.read(CONFIG_MAPS, "v1", body, yaml_body=False, validation="Warn")
    assert obj["metadata"] == {"name": "y"}
    assert warnings == ['duplicate field "metadata.name"', 'unknown field "metadata.bar"', 'unknown field "foo"']
    with pytest.raises(
        decoding.BodyError, match=r'strict decoding error: duplicate field "metadata.name", unknown field'
    ):
        decoding.read(CONFIG_MAPS, "v1", body, yaml_body=False, validation="Strict")
    assert decoding.read(CONFIG_MAPS, "v1", body, yaml_body=False, validation="Ignore")[1] == []


def test_yaml() -> None:
    obj, _ = decoding.read(
        CONFIG_MAPS,
        "v1",
        b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata:\n  a: '1'\n  on: 'x'\n",
        yaml_body=True,
        validation="Warn",
    )
    assert obj["data"] == {"a": "1", "true": "x"}
    with pytest.raises(decoding.BodyError, match="yaml: line"):
        decoding.read(CONFIG_MAPS, "v1", b"a: [", yaml_body=True, validation="Warn")


@given(st.binary(max_size=200))
def test_any_bytes_are_answered(data: bytes) -> None:
    for yaml_body in (False, True):
        try:
            decoding.read(CONFIG_MAPS, "v1", data, yaml_body=yaml_body, validation="Strict")
        except decoding.BodyError as error:
            assert str(error)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "metadata",
                    "spec",
                    "name",
                    "containers",
                    "ports",
                    "labels",
                    "env",
                    "resources",
                    "limits",
                    "cpu",
                    "status",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(_json)
def test_any_pod_is_decoded_defaulted_and_validated_or_refused(value: Any) -> None:
    resource = KINDS["", "pods"]
    try:
        obj = resource.decode(value if isinstance(value, dict) else {}, "v1")
    except DecodeError:
        return
    resource.default(obj, "v1")
    resource.prepare_create(obj)
    for error in resource.validate(obj):
        assert error.message()
    again = resource.decode(json.loads(json.dumps(obj)), "v1")
    assert again == obj


@given(st.integers(-(2**62), 2**62), st.sampled_from(["", "k", "M", "Ki", "Mi", "Gi", "m", "n", "u"]))
def test_quantities_are_canonical_once(number: int, suffix: str) -> None:
    once = quantity.canonical(f"{number}{suffix}")
    assert quantity.canonical(once) == once
    assert quantity.parse(once).nanos == quantity.parse(f"{number}{suffix}").nanos


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1000m", "1"),
        ("1.5Gi", "1536Mi"),
        ("0.5", "500m"),
        ("1e3", "1e3"),
        ("1024", "1024"),
        ("0Gi", "0"),
        ("0.1n", "1n"),
        ("1E", "1E"),
        ("-1500m", "-1500m"),
        ("+5", "5"),
    ],
)
def test_quantities(text: str, canonical: str) -> None:
    assert quantity.canonical(text) == canonical


@pytest.mark.parametrize("text", ["", "a", "1gb", "1 Gi", ".", "1..2", "--1", "1e", "Ki"])
def test_no_quantities(text: str) -> None:
    with pytest.raises(quantity.QuantityError):
        quantity.parse(text)


@given(st.integers(-(2**62), 2**62))
def test_durations_survive(nanoseconds: int) -> None:
    assert times.parse_duration(times.format_duration(nanoseconds)) == nanoseconds


def test_label_selectors_as_objects() -> None:
    selector = selectors.from_object(
        {
            "matchLabels": {"a": "b"},
            "matchExpressions": [
                {"key": "c", "operator": "NotIn", "values": ["d"]},
                {"key": "e", "operator": "Exists"},
            ],
        }
    )
    assert selector.matches({"a": "b", "e": ""}) and not selector.matches({"a": "b", "e": "", "c": "d"})
    assert selectors.from_object({}).matches({}) and not selectors.from_object(None).matches({"a": "b"})


def test_complaints_come_in_the_order_of_the_document() -> None:
    text = b"""{"wrong": {"a": 1, "a": 2}, "data": {"b": "1", "b": "2", "b": "3"}, "metadata": {"name": "x", "odd": 1},
               "immutable": true, "immutable": true, "wrong": 3}"""
    with pytest.raises(decoding.BodyError) as refused:
        decoding.read(CONFIG_MAPS, "v1", text, yaml_body=False, validation="Strict")
    complaints = [
        'unknown field "wrong"', 'duplicate field "data.b"', 'unknown field "metadata.odd"', 'duplicate field "immutable"',
    ]  # fmt: skip
    assert str(refused.value).endswith("strict decoding error: " + ", ".join(complaints))
