"""Kubernetes protobuf: JSON trees to messages and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.master.apiserver import protobuf
from longshore.master.apiserver.prototable import _lines, message

POD = {
    "kind": "Pod", "apiVersion": "v1",
    "metadata": {"name": "x", "namespace": "n", "labels": {"b": "c", "a": "d"}, "creationTimestamp": "2024-01-02T03:04:05Z",
                 "ownerReferences": [{"apiVersion": "v1", "kind": "A", "name": "b", "uid": "u", "controller": True}],
                 "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:spec": {}}, "fieldsType": "FieldsV1"}]},
    "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "100m"}},
                             "livenessProbe": {"httpGet": {"port": "web"}, "periodSeconds": 10},
                             "ports": [{"containerPort": 80}]}],
             "volumes": [{"name": "v", "configMap": {"name": "cm", "defaultMode": 420}}], "terminationGracePeriodSeconds": 0,
             "hostNetwork": False, "enableServiceLinks": False},
    "status": {"phase": "Running"},
}  # fmt: skip


def test_every_message_of_the_table_reads() -> None:
    assert len([message(name) for name in _lines()]) > 500


def test_a_pod_comes_back_as_it_was() -> None:
    assert protobuf.decode(protobuf.envelope(POD)) == POD


def test_inlined_and_special_types() -> None:
    rule = {"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "x"},
            "spec": {"group": "g", "names": {"plural": "p", "kind": "K"}, "scope": "Cluster", "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}},
                                                     "b": {"additionalProperties": False, "default": {"x": [1, None]}}}}}}]}}  # fmt: skip
    assert protobuf.decode(protobuf.envelope(rule)) == rule


def test_times_of_the_first_century() -> None:
    """A lease whose times were made from Go's zero time, and a time with its seconds only."""
    lease = {"kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
             "metadata": {"name": "x", "creationTimestamp": "0001-01-01T00:00:07Z"},
             "spec": {"acquireTime": "0001-01-01T00:00:02.000000Z", "renewTime": "0033-04-03T15:00:00.250000Z"}}  # fmt: skip
    assert protobuf.decode(protobuf.envelope(lease)) == lease


def test_a_resource_list_without_a_version() -> None:
    core = {"kind": "APIResourceList", "groupVersion": "v1", "resources": [
        {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": ["get"], "shortNames": ["po"]}]}  # fmt: skip
    assert protobuf.decode(protobuf.envelope(core)) == {**core, "apiVersion": ""}


def test_what_is_no_message_is_refused() -> None:
    for data in (b"", b"k8s", b"{}", b"k8s\x00\x0a\xff", b"k8s\x00\x0a\x02\x08"):
        with pytest.raises(protobuf.ProtobufError):
            protobuf.decode(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    head = protobuf.wrap("v1", "Pod", data)
    try:
        protobuf.decode(head)
    except protobuf.ProtobufError:
        pass


def test_fields_are_put_in_gos_order() -> None:
    mixed = {"spec": {"terminationGracePeriodSeconds": 1, "containers": []}, "metadata": {"labels": {}, "name": "x"}, "kind": "Pod", "apiVersion": "v1"}  # fmt: skip
    out = protobuf.go_order(mixed)
    assert list(out) == ["kind", "apiVersion", "metadata", "spec"]
    assert list(out["metadata"]) == ["name", "labels"]
    assert list(out["spec"]) == ["containers", "terminationGracePeriodSeconds"]
