from __future__ import annotations

from typing import Any

import pytest

from longshore.master.apiserver.auth import policy
from longshore.master.apiserver.auth.node import NodeAuthorizer
from longshore.master.apiserver.context import Attributes, UserInfo

NODE = UserInfo("system:node:n1", groups=("system:nodes", "system:authenticated"))
OTHER = UserInfo("system:node:n2", groups=("system:nodes",))


def pod(name: str, node: str = "n1", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": {"nodeName": node, **spec}}


FULL = pod(
    "p",
    serviceAccountName="sa",
    imagePullSecrets=[{"name": "pull"}],
    containers=[
        {
            "envFrom": [{"secretRef": {"name": "from"}}, {"configMapRef": {"name": "cfrom"}}],
            "env": [
                {"valueFrom": {"secretKeyRef": {"name": "key"}}},
                {"valueFrom": {"configMapKeyRef": {"name": "ckey"}}},
                {"valueFrom": {"fieldRef": {"fieldPath": "x"}}},
                {"name": "plain"},
            ],
        }
    ],
    volumes=[
        {"name": "a", "secret": {"secretName": "vol"}},
        {"name": "b", "configMap": {"name": "cvol"}},
        {"name": "c", "projected": {"sources": [{"secret": {"name": "proj"}}, {"configMap": {"name": "cproj"}}]}},
        {"name": "d", "persistentVolumeClaim": {"claimName": "claim"}},
        {"name": "e", "ephemeral": {}},
        {"name": "f", "csi": {"nodePublishSecretRef": {"name": "csi"}}},
        {"name": "g", "emptyDir": {}},
    ],
)


def ask(
    verb: str, resource: str, name: str = "", namespace: str = "ns", user: UserInfo = NODE, **more: str
) -> Attributes:
    group = more.pop("group", "")
    return Attributes(user, verb, group, "v1", resource, more.pop("sub", ""), namespace, name, **more)  # type: ignore[arg-type]


@pytest.fixture
def node(objects: Any) -> NodeAuthorizer:
    return NodeAuthorizer(objects, policy.rules_of("system:node"))


def test_what_a_pod_opens(objects: Any, node: NodeAuthorizer) -> None:
    secrets, configs = ("pull", "from", "key", "vol", "proj", "csi"), ("cfrom", "ckey", "cvol", "cproj")
    wanted = [("get", "secrets", s) for s in secrets] + [("watch", "configmaps", c) for c in configs]
    wanted += [
        ("get", "persistentvolumeclaims", "claim"),
        ("get", "persistentvolumeclaims", "p-e"),
        ("get", "pods", "p"),
    ]
    for verb, resource, name in wanted:
        assert (
            node.authorize(ask(verb, resource, name)).reason
            == "no relationship found between node 'n1' and this object"
        )
    objects.put("", "pods", FULL)
    for verb, resource, name in wanted:
        assert node.authorize(ask(verb, resource, name)).allowed, name
        assert not node.authorize(ask(verb, resource, name, user=OTHER)).allowed
        assert not node.authorize(ask(verb, resource, name, namespace="other")).allowed
    assert node.authorize(ask("create", "serviceaccounts", "sa", sub="token")).allowed
    assert not node.authorize(ask("create", "serviceaccounts", "default", sub="token")).allowed
    objects.put("", "pods", pod("q", imagePullSecrets=[{"name": "pull"}]))
    objects.remove("", "pods", "ns", "p")
    assert node.authorize(ask("get", "secrets", "pull")).allowed
    assert not node.authorize(ask("get", "secrets", "vol")).allowed


def test_mirror_pods_open_nothing(objects: Any, node: NodeAuthorizer) -> None:
    mirror = {**FULL, "metadata": {**FULL["metadata"], "annotations": {"kubernetes.io/config.mirror": "x"}}}
    objects.put("", "pods", mirror)
    assert node.authorize(ask("get", "pods", "p")).allowed
    assert not node.authorize(ask("get", "secrets", "vol")).allowed


def test_volumes_behind_claims(objects: Any, node: NodeAuthorizer) -> None:
    volume = {
        "metadata": {"name": "pv"},
        "spec": {
            "claimRef": {"namespace": "ns", "name": "claim"},
            "csi": {"nodeStageSecretRef": {"namespace": "vault", "name": "stage"}},
        },
    }
    objects.put("", "persistentvolumes", volume)
    assert not node.authorize(ask("get", "persistentvolumes", "pv", "")).allowed
    objects.put("", "pods", FULL)
    assert node.authorize(ask("get", "persistentvolumes", "pv", "")).allowed
    assert node.authorize(ask("get", "secrets", "stage", "vault")).allowed
    assert not node.authorize(ask("get", "secrets", "stage", "vault", user=OTHER)).allowed
    objects.remove("", "persistentvolumes", "", "pv")
    assert not node.authorize(ask("get", "secrets", "stage", "vault")).allowed


def test_own_things_only(node: NodeAuthorizer, objects: Any) -> None:
    lease = {"group": "coordination.k8s.io"}
    allowed = [
        ask("get", "nodes", "n1", ""),
        ask("patch", "nodes", "n1", "", sub="status"),
        ask("create", "nodes", "", ""),
        ask("list", "pods", "", "", field_selector="spec.nodeName=n1"),
        ask("create", "pods", "x"),
        ask("patch", "pods", "x", sub="status"),
        ask("update", "leases", "n1", "kube-node-lease", **lease),
        ask("create", "leases", "", "kube-node-lease", **lease),
        ask("get", "csinodes", "n1", "", group="storage.k8s.io"),
        ask("create", "events"),
        ask("watch", "services", "", ""),
        ask("create", "resourceslices", "", "", group="resource.k8s.io"),
    ]
    refused = {
        "node 'n1' cannot read all nodes, only its own Node object": ask("list", "nodes", "", ""),
        "node 'n1' cannot read 'n2', only its own Node object": ask("get", "nodes", "n2", ""),
        "can only list/watch pods with spec.nodeName field selector": ask("list", "pods", "", ""),
        "can only access node lease with the same name as the requesting node": ask(
            "get", "leases", "n2", "kube-node-lease", **lease
        ),
        'can only access leases in the "kube-node-lease" system namespace': ask("get", "leases", "n1", "ns", **lease),
        "can only read resources of this type": ask("update", "secrets", "s"),
        "can only read namespaced object of this type": ask("list", "secrets", "", ""),
        "No Object name found": ask("list", "secrets"),
        "can only create tokens for individual service accounts": ask("list", "serviceaccounts"),
        "": ask("delete", "services", "x"),
    }
    for a in allowed:
        assert node.authorize(a).allowed, a
    for reason, a in refused.items():
        decision = node.authorize(a)
        assert (decision.verdict, decision.reason) == ("no opinion", reason)
    assert node.authorize(ask("get", "nodes", "n1", "", user=UserInfo("system:node:n1"))).verdict == "no opinion"
    assert (
        "unknown node"
        in node.authorize(ask("get", "x", user=UserInfo("system:node:", groups=("system:nodes",)))).reason
    )


def test_what_nobody_asks_for_is_not_kept(objects: Any, node: NodeAuthorizer) -> None:
    for n in range(5000):
        objects.put("", "pods", pod(f"p{n}"))
        objects.remove("", "pods", "ns", f"p{n}")
    assert len(node.graph._dirty) <= 1024
    objects.put("", "pods", FULL)
    assert node.authorize(ask("get", "secrets", "vol")).allowed
