"""What is remembered of who owns a new object's fields is what would be worked out anew."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from longshore.api.schema import DecodeError
from longshore.machinery.patch import managedfields
from longshore.master.apiserver.fieldtypes import FieldTypes
from longshore.master.apiserver.ownership import Ownership
from longshore.master.apiserver.scheme import Scheme

NOW = "2026-11-22T12:00:00Z"
CONTAINER = {
    "name": "c", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}], "env": [{"name": "A", "value": "1"}],
    "resources": {"requests": {"cpu": "1"}},
}  # fmt: skip
POD = {"containers": [CONTAINER], "nodeName": "n", "hostNetwork": False, "priority": 0, "nodeSelector": {"a": "b"},
       "tolerations": [{"key": "k", "operator": "Exists"}]}  # fmt: skip
SPECS: dict[tuple[str, str], dict[str, Any]] = {
    ("", "configmaps"): {"data": {"a": "1", "b": ""}, "binaryData": {"c": "aGk="}, "immutable": False},
    ("", "pods"): {"spec": POD, "status": {"phase": "Pending"}},
    ("", "nodes"): {"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}], "unschedulable": False}},
    ("", "services"): {"spec": {"ports": [{"port": 80, "protocol": "TCP"}], "selector": {"a": "b"}, "type": "ClusterIP"}},
    ("apps", "deployments"): {"spec": {"replicas": 0, "paused": False, "selector": {"matchLabels": {"a": "b"}},
                                       "template": {"metadata": {"labels": {"a": "b"}}, "spec": POD}}},
    ("coordination.k8s.io", "leases"): {"spec": {"holderIdentity": "me", "leaseDurationSeconds": 5, "renewTime": None}},
    ("rbac.authorization.k8s.io", "roles"): {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]},
}  # fmt: skip
METADATA = {
    "name": "x", "generateName": "x-", "labels": {"a": "b", "c": ""}, "annotations": {"d": "e"}, "finalizers": ["f/g"],
    "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": True}],
}  # fmt: skip


def changed(chance: random.Random, value: Any) -> Any:
    """The tree with fields left out, emptied and given other values."""
    if isinstance(value, dict):
        return {
            name if chance.random() < 0.98 else name + "x": changed(chance, inner)
            for name, inner in value.items()
            if chance.random() < 0.93
        }
    if isinstance(value, list):
        return [changed(chance, inner) for inner in value for _ in range(chance.choice([0, 1, 1, 1, 1, 1, 1]))]
    if isinstance(value, str):
        return chance.choice([value, value, value, value + "2", ""])
    return chance.choice([value, value, None])


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_what_is_remembered_is_what_is_worked_out(kind: tuple[str, str]) -> None:
    scheme, chance, ownership = Scheme(), random.Random(str(kind)), Ownership()
    group, plural = kind
    endpoint = scheme.endpoints[group, "v1", plural]
    types, remembered = FieldTypes(scheme, endpoint, ""), 0
    for _ in range(600):
        obj = {"kind": endpoint.kind, "apiVersion": endpoint.api_version, **changed(chance, SPECS[kind])}
        obj["metadata"] = changed(chance, METADATA)
        try:
            obj = {**obj, **endpoint.resource.decode(obj, endpoint.version)}
        except DecodeError:  # a quantity that is none
            continue
        endpoint.resource.default(obj, endpoint.version)
        other = copy.deepcopy(obj)
        manager = chance.choice(["a", "b"])
        known = len(ownership._known)
        ownership.of_new(types, endpoint, obj, manager, NOW)
        remembered += len(ownership._known) == known
        managedfields.update(types, None, other, manager, endpoint.api_version, "", NOW)
        assert obj == other
    assert remembered > 50
