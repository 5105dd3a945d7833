"""What is worked out once for the pods of a template, and bindings: the objects are the same as without."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from longshore.api.core import templates
from longshore.api.kinds import KINDS
from longshore.machinery.patch import managedfields
from longshore.master.apiserver.fieldtypes import FieldTypes
from longshore.master.apiserver.ownership import Ownership
from longshore.master.apiserver.scheme import Scheme

from .conftest import Running

TOKEN = "kube-api-access-"


def spec(name: str) -> dict[str, Any]:
    mount = {"name": name, "mountPath": "/t"}
    container = {"name": "c", "image": "i", "volumeMounts": [mount]}
    return {"volumes": [{"name": name, "emptyDir": {}}], "containers": [container]}


def test_a_token_volume_is_known_under_any_name() -> None:
    first, other = spec(TOKEN + "abcde"), spec(TOKEN + "fgh29")
    assert templates.digest(first) == templates.digest(other)
    other["containers"][0]["volumeMounts"][0]["name"] = TOKEN + "zzzzz"
    assert templates.digest(first) != templates.digest(other)
    assert templates.digest(first) != templates.digest(spec(TOKEN))
    assert templates.digest(first) != templates.digest(spec("other"))


def test_a_bad_spec_stays_bad() -> None:
    pods = KINDS["", "pods"]

    def made(name: str, image: str) -> dict[str, Any]:
        body = {"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": name, "image": image}]}}
        obj = pods.decode(body, "v1")
        pods.default(obj, "v1")
        pods.prepare_create(obj, "v1")
        return obj

    for _ in range(2):
        assert not pods.validate(made("c", "i"))
        assert [e.field for e in pods.validate(made("C", "i"))] == ["spec.containers[0].name"]
        annotated = made("c", "i")
        annotated["metadata"]["annotations"] = {"controller.kubernetes.io/pod-deletion-cost": "x"}
        assert len(pods.validate(annotated)) == 1
        assert not pods.warnings(made("c", "i"))
        annotated["metadata"]["annotations"] = {"security.alpha.kubernetes.io/sysctls": "x"}
        assert len(pods.warnings(annotated)) == 1


def test_known_specs_are_forgotten() -> None:
    known = templates.Known(2)
    for octet in (b"a", b"b", b"c"):
        known.add(octet)
    assert b"a" not in known and b"b" in known and b"c" in known


def test_owned_fields_are_those_of_a_comparison() -> None:
    scheme, ownership = Scheme(), Ownership()
    endpoint = scheme.endpoints["", "v1", "pods"]
    types = FieldTypes(scheme, endpoint, "")

    def pod(number: int, **metadata: Any) -> dict[str, Any]:
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"p{number}", "labels": {"app": str(number)}, **metadata},
            "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]},
        }
        obj = endpoint.resource.decode(body, "v1")
        endpoint.resource.default(obj, "v1")
        return {"apiVersion": "v1", "kind": "Pod", **obj}

    owner = {"uid": "u", "kind": "ReplicaSet", "name": "r", "apiVersion": "apps/v1"}
    for metadata in ({}, {"annotations": {"a": "b"}}, {"ownerReferences": [owner], "generateName": "x-"}):
        for number in range(3):
            ours = pod(number, **metadata)
            plain = deepcopy(ours)
            ownership.of_new(types, endpoint, ours, "m", "t")
            managedfields.update(types, None, plain, "m", "v1", "", "t")
            assert ours == plain
    assert len(ownership._known) == 3


def test_a_binding_is_admitted_as_a_binding(server: Running) -> None:
    """The node's zone comes to the pod by the plugin that sees the Binding; a policy sees it too."""
    zone = "topology.kubernetes.io/zone"
    assert server.send("POST", "/api/v1/nodes", {"metadata": {"name": "bind-n", "labels": {zone: "z1"}}}).status == 201
    server.send("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
    pods = "/api/v1/namespaces/default/pods"
    body = {"metadata": {"name": "bind-p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    made = server.send("POST", pods, body).json
    target = {"metadata": {"name": "bind-p"}, "target": {"kind": "Node", "name": "bind-n"}}
    wrong = {**target, "metadata": {"name": "bind-p", "uid": "other"}}
    assert server.send("POST", f"{pods}/bind-p/binding", wrong).status == 409
    assert server.send("POST", f"{pods}/bind-p/binding?dryRun=All", target).status == 201
    assert "nodeName" not in server.send("GET", f"{pods}/bind-p").json["spec"]
    assert server.send("POST", f"{pods}/bind-p/binding", target).status == 201
    bound = server.send("GET", f"{pods}/bind-p").json
    assert bound["spec"]["nodeName"] == "bind-n"
    assert bound["metadata"]["labels"][zone] == "z1"
    assert bound["metadata"]["managedFields"] == made["metadata"]["managedFields"]
    assert bound["metadata"]["generation"] == made["metadata"]["generation"]
    assert [c["status"] for c in bound["status"]["conditions"] if c["type"] == "PodScheduled"] == ["True"]
    again = server.send("POST", f"{pods}/bind-p/binding", target)
    assert (again.status, "already assigned" in again.json["message"]) == (409, True)
    assert server.send("POST", f"{pods}/bind-none/binding", {**target, "metadata": {"name": "bind-none"}}).status == 404


def test_a_status_patch_leaves_the_rest_as_it_was(server: Running) -> None:
    server.send("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
    pods = "/api/v1/namespaces/default/pods"
    body = {"metadata": {"name": "patched"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    made = server.send("POST", pods, body).json
    patch = {"spec": {"hostname": "x"}, "status": {"phase": "Running", "podIP": "10.0.0.1"}}
    media = {"Content_Type": "application/strategic-merge-patch+json"}
    done = server.send("PATCH", f"{pods}/patched/status", patch, **media).json
    assert done["spec"] == made["spec"] and list(done) == list(made)
    assert done["status"]["podIPs"] == [{"ip": "10.0.0.1"}] and done["status"]["qosClass"] == "BestEffort"
    owners = {e["subresource"]: e["fieldsV1"] for e in done["metadata"]["managedFields"] if "subresource" in e}
    assert "f:spec" not in owners["status"] and "f:phase" in owners["status"]["f:status"]
    bad = server.send("PATCH", f"{pods}/patched/status", {"status": {"phase": 5}}, **media)
    assert bad.status == 422
    labelled = server.send("PATCH", f"{pods}/patched", {"metadata": {"labels": {"a": "b"}}}, **media).json
    assert labelled["status"] == done["status"] and labelled["spec"] == made["spec"]
