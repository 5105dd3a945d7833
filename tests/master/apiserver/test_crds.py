"""Custom resources by kubectl and by hand: defined, used, changed, taken away; also over a restart."""

from __future__ import annotations

import json
import time
from typing import Any

GROUP = "/apis/things.example.com"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def definition(plural: str = "boxes", kind: str = "Box", **spec: Any) -> Any:
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["size"],
                "properties": {
                    "size": {"type": "integer", "minimum": 1},
                    "colour": {"type": "string", "default": "red"},
                },
            },
            "status": {"type": "object", "properties": {"full": {"type": "boolean"}}},
        },
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    names = {"plural": plural, "kind": kind}
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.things.example.com"},
        "spec": {"group": "things.example.com", "scope": "Namespaced", "names": names, "versions": [version], **spec},
    }  # fmt: skip


def until(what: Any) -> Any:
    deadline = time.monotonic() + 10
    while True:
        found = what()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def test_a_life(server: Any) -> None:
    assert server.send("GET", GROUP).status == 404
    assert server.send("POST", CRDS, definition()).status == 201
    url = f"{GROUP}/v1/namespaces/default/boxes"
    assert until(lambda: server.send("GET", url).status == 200)
    assert any(g["name"] == "things.example.com" for g in server.send("GET", "/apis").json["groups"])
    box = {"apiVersion": "things.example.com/v1", "kind": "Box", "metadata": {"name": "a"}, "spec": {"size": 2, "x": 1}}
    made = server.send("POST", url, box)
    assert made.status == 201 and made.json["spec"] == {"size": 2, "colour": "red"}
    bad = server.send("POST", url, {**box, "spec": {"size": 0}})
    assert bad.status == 422 and bad.json["details"]["causes"][0]["field"] == "spec.size"
    patched = server.send(
        "PATCH", f"{url}/a/status", {"status": {"full": True}}, Content_Type="application/merge-patch+json"
    )
    assert patched.json["status"] == {"full": True} and patched.json["metadata"]["generation"] == 1
    # A clash of names is not served.
    assert server.send("POST", CRDS, definition("crates", "Box")).status == 201
    clash = f"{CRDS}/crates.things.example.com"
    conditions = until(lambda: server.send("GET", clash).json["status"].get("conditions"))
    assert {c["type"]: c["status"] for c in conditions} == {"NamesAccepted": "False", "Established": "False"}
    assert server.send("GET", f"{GROUP}/v1/namespaces/default/crates").status == 404
    assert server.send("DELETE", clash).status == 200
    # A definition takes its objects with it.
    assert server.send("DELETE", f"{CRDS}/boxes.things.example.com").status == 200
    assert until(lambda: server.send("GET", url).status == 404)
    assert until(lambda: server.send("GET", f"{CRDS}/boxes.things.example.com").status == 404)
    assert until(lambda: server.send("GET", GROUP).status == 404)


def test_a_new_default_is_seen_in_old_objects(server: Any) -> None:
    new = definition("jars", "Jar")
    assert server.send("POST", CRDS, new).status == 201
    url = f"{GROUP}/v1/namespaces/default/jars"
    assert until(lambda: server.send("GET", url).status == 200)
    jar = {"apiVersion": "things.example.com/v1", "kind": "Jar", "metadata": {"name": "a"}, "spec": {"size": 2}}
    assert server.send("POST", url, jar).status == 201
    new["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["lid"] = {
        "type": "string",
        "default": "on",
    }
    patch = {"spec": {"versions": new["spec"]["versions"]}}
    answer = server.send("PATCH", f"{CRDS}/jars.things.example.com", patch, Content_Type="application/merge-patch+json")
    assert answer.status == 200
    assert until(lambda: server.send("GET", f"{url}/a").json["spec"].get("lid") == "on")
    assert server.send("GET", url).json["items"][0]["spec"]["lid"] == "on"


def test_kubectl(server: Any, kubectl: Any) -> None:
    import json

    kubectl("apply", "-f", "-", stdin=json.dumps(definition("tins", "Tin")))
    kubectl("wait", "--for=condition=Established", "crd/tins.things.example.com", "--timeout=10s")
    tin = {"apiVersion": "things.example.com/v1", "kind": "Tin", "metadata": {"name": "a"}, "spec": {"size": 2}}
    assert "created" in kubectl("apply", "-f", "-", stdin=json.dumps(tin))
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=json.dumps(tin))
    assert "serverside-applied" in kubectl(
        "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(tin)
    )
    assert kubectl("get", "tins").splitlines()[0].split() == ["NAME", "AGE"]
    assert "size" in kubectl("explain", "tins.spec")
    kubectl("delete", "crd", "tins.things.example.com")


FOO = {
    "description": "Foo CRD for Testing",
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "description": "Specification of Foo",
            "properties": {
                "bars": {
                    "description": "List of Bars and their specs.",
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {
                            "name": {"description": "Name of Bar.", "type": "string"},
                            "feeling": {"description": "How Bar feels.", "type": "string", "enum": ["Great", "Down"]},
                            "bazs": {"description": "List of Bazs.", "items": {"type": "string"}, "type": "array"},
                        },
                    },
                }
            },
        },
        "status": {
            "description": "Status of Foo",
            "type": "object",
            "properties": {"at": {"type": "string", "pattern": "a|b"}},
        },
    },
}


def test_published_documents(server: Any, kubectl: Any) -> None:
    def wanted(name: str, schema: Any, **version: Any) -> Any:
        one = {"name": name, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}, **version}
        return definition("foos", "Foo", versions=[one])

    def shown() -> Any:
        return server.send("GET", "/openapi/v2").json["definitions"]

    name = "com.example.things.v1.Foo"
    assert server.send("POST", CRDS, wanted("v1", FOO)).status == 201
    found = until(lambda: shown().get(name))
    kind = found.pop("x-kubernetes-group-version-kind")
    assert kind == [{"group": "things.example.com", "version": "v1", "kind": "Foo"}]
    assert found["properties"].pop("metadata")["$ref"].endswith("ObjectMeta")
    assert {found["properties"].pop(k)["type"] for k in ("apiVersion", "kind")} == {"string"}
    assert found == FOO
    assert "Foo CRD for Testing" in kubectl("explain", "foos")
    assert "Standard object's metadata" in kubectl("explain", "foos.metadata")
    assert "bazs\t<[]string>" in kubectl("explain", "foos.spec.bars")
    assert "does not exist" in kubectl("explain", "foos.spec.bars2", ok=False)
    foo = {
        "apiVersion": "things.example.com/v1",
        "kind": "Foo",
        "metadata": {"name": "a"},
        "spec": {"bars": [{"name": "x", "y": 1}]},
    }
    import json

    assert 'unknown field "spec.bars[0].y"' in kubectl("create", "-f", "-", stdin=json.dumps(foo), ok=False)
    # Renamed, and then open to anything.
    url = f"{CRDS}/foos.things.example.com"
    new = {"spec": wanted("v2", {"type": "object", "x-kubernetes-preserve-unknown-fields": True})["spec"]}
    new["spec"]["versions"].append(
        {"name": "v1", "served": False, "storage": False, "schema": {"openAPIV3Schema": FOO}}
    )
    assert server.send("PATCH", url, new, Content_Type="application/merge-patch+json").status == 200
    found = until(lambda: shown().get("com.example.things.v2.Foo"))
    assert set(found) == {"type", "x-kubernetes-group-version-kind"}
    assert name not in shown() and "com.example.things.v1.FooList" not in shown()
    assert server.send("DELETE", url).status == 200
    assert until(lambda: "com.example.things.v2.Foo" not in shown())


def test_embedded_objects_are_published_with_what_every_object_has(server: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"part": {"type": "object", "x-kubernetes-embedded-resource": True, "properties": {"n": {"type": "integer"}}}},
    }  # fmt: skip
    body = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "wraps.emb.example.com"},
        "spec": {"group": "emb.example.com", "scope": "Cluster", "names": {"plural": "wraps", "kind": "Wrap"},
                 "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}]},
    }  # fmt: skip
    assert server.send("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body).status == 201
    path = "/apis/emb.example.com/v1/wraps"
    deadline = time.monotonic() + 10
    while server.send("GET", path).status != 200 and time.monotonic() < deadline:
        time.sleep(0.02)
    part = server.send("GET", "/openapi/v2").json["definitions"]["com.example.emb.v1.Wrap"]["properties"]["part"]
    assert set(part["properties"]) == {"apiVersion", "kind", "metadata", "n"} and part["required"] == [
        "kind",
        "apiVersion",
    ]
    wrap = {"apiVersion": "emb.example.com/v1", "kind": "Wrap", "metadata": {"name": "x"}}
    wrap["part"] = {"apiVersion": "v1", "kind": "A", "metadata": {"odd": "y"}}
    apply = {"Content_Type": "application/apply-patch+yaml"}
    refused = server.send("PATCH", f"{path}/x?fieldManager=m", wrap, **apply)
    assert refused.status == 500 and ".part.metadata.odd: field not declared in schema" in refused.json["message"]
    wrap["part"]["metadata"] = {"name": "y", "labels": {"a": "b"}}
    assert server.send("PATCH", f"{path}/x?fieldManager=m", wrap, **apply).status == 201


def test_what_says_established_is_served(server: Any) -> None:
    """Many definitions at once: the first answer that calls one established is no earlier than its resource."""
    plurals = [f"lids{n}" for n in range(12)]
    for n, plural in enumerate(plurals):
        assert server.send("POST", CRDS, definition(plural, f"Lid{n}")).status == 201
    connection = server.connect()

    def get(path: str) -> tuple[int, Any]:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    try:
        for plural in reversed(plurals):
            while True:
                conditions = get(f"{CRDS}/{plural}.things.example.com")[1].get("status", {}).get("conditions") or ()
                if any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
                    break
            assert get(f"{GROUP}/v1/namespaces/default/{plural}")[0] == 200, plural
    finally:
        connection.close()
    for plural in plurals:
        assert server.send("DELETE", f"{CRDS}/{plural}.things.example.com").status == 200
