"""Another API server behind an APIService, reached with the proxy's certificate."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from longshore.machinery import pki
from longshore.machinery.http import Client, Request, Response, Server, server_context
from longshore.master.apiserver.aggregation.aggregator import proxy_headers
from longshore.master.apiserver.aggregation.services import entries
from longshore.master.apiserver.config import Config
from longshore.master.apiserver.context import UserInfo
from longshore.master.apiserver.server import APIServer
from longshore.master.etcd.embedded import EmbeddedStore

RESOURCES = [
    {"name": "nodes", "singularName": "", "namespaced": False, "kind": "NodeMetrics", "verbs": ["get", "list"]},
    {
        "name": "pods",
        "singularName": "",
        "namespaced": True,
        "kind": "PodMetrics",
        "verbs": ["get", "list"],
        "shortNames": ["pm"],
    },
    {"name": "pods/x", "singularName": "", "namespaced": True, "kind": "X", "verbs": ["get"]},
]


META = "io.k8s.apimachinery.pkg.apis.meta.v1."
SWAGGER = {
    "swagger": "2.0", "info": {"title": "far", "version": "1"},
    "paths": {
        "/apis/metrics.k8s.io/v1beta1/nodes": {
            "get": {
                "responses": {"200": {"schema": {"$ref": "#/definitions/far.Node"}}},
                "parameters": [{"$ref": "#/parameters/limit-1"}, {"$ref": "#/parameters/lost"}, {"type": "string"}],
            },
            "parameters": [{"$ref": "#/parameters/limit-1"}],
        },
        "/version/": {"get": {"responses": {"200": {"schema": {"$ref": "#/definitions/far.Version"}}}}},
    },
    "parameters": {"limit-1": {"name": "limit", "in": "query", "type": "integer", "uniqueItems": True}},
    "definitions": {
        "far.Node": {"type": "object", "properties": {"metadata": {"$ref": f"#/definitions/{META}ObjectMeta"}}},
        f"{META}ObjectMeta": {"type": "object", "description": "another one"},
        "far.Version": {"type": "object"},
    },
}  # fmt: skip


#: Questions after its start that the far server is not ready to answer.
starting = [4]


async def metrics(request: Request) -> Response:
    """A small server of metrics.k8s.io."""
    assert request.peer.certificate is not None
    names = [v for part in request.peer.certificate["subject"] for n, v in part if n == "commonName"]
    assert names == ["front-proxy-client"]
    if request.path == "/apis/metrics.k8s.io/v1beta1":
        if starting[0]:
            starting[0] -= 1
            return Response(503)
        return Response.json(
            {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": "metrics.k8s.io/v1beta1",
                "resources": RESOURCES,
            }
        )
    if request.path == "/openapi/v3":
        entry = {"serverRelativeURL": "/openapi/v3/apis/metrics.k8s.io/v1beta1?hash=ABC"}
        return Response.json({"paths": {"apis/metrics.k8s.io/v1beta1": entry, "version": entry}})
    if request.path == "/openapi/v2":
        return Response.json(SWAGGER)
    told = {n: request.headers.getall(n) for n in ("x-remote-user", "x-remote-group", "authorization", "host")}
    return Response.json({"target": request.target, "method": request.method, **told})


class Place:
    def __init__(self, url: str) -> None:
        self.url = url
        self.client = Client()

    async def ask(self, method: str, path: str, obj: Any = None, headers: Any = ()) -> tuple[int, Any]:
        fields = [*headers, *([("Content-Type", "application/json")] if obj is not None else [])]
        body = json.dumps(obj).encode() if obj is not None else None
        response = await self.client.request(method, self.url + path, headers=fields, body=body)
        text = await response.read()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text.decode()

    async def condition(self, name: str, reason: str) -> dict[str, Any]:
        """Waits for a reason in an APIService's Available condition."""
        async with asyncio.timeout(20):
            while True:
                _, obj = await self.ask("GET", f"/apis/apiregistration.k8s.io/v1/apiservices/{name}")
                for condition in (obj.get("status") or {}).get("conditions") or ():
                    if condition["reason"] == reason:
                        return dict(condition)
                await asyncio.sleep(0.02)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[tuple[Place, int, bytes]]:
    folder = tmp_path / "pki"
    ca = pki.ensure_ca(folder)
    pki.ensure_issued(folder, "far", ca, "far", names=["metrics.default.svc"], server=True)
    pki.ensure_issued(folder, "proxy", ca, "front-proxy-client", client=True)
    far = Server(metrics)
    context = server_context(folder / "far.crt", folder / "far.key", client_ca=folder / "ca.crt")
    os.system("ip addr replace 10.98.7.6/32 dev lo")
    port = await far.listen_tcp("10.98.7.6", 0, ssl=context)
    store = await EmbeddedStore.open(None)
    config = Config(
        authorization_modes=["AlwaysAllow"], proxy_certificate=folder / "proxy.crt", proxy_key=folder / "proxy.key"
    )
    server = APIServer(store, config)
    front = Server(server.handle)
    place = Place(f"http://127.0.0.1:{await front.listen_tcp('127.0.0.1', 0)}")
    await server.start()
    yield place, port, ca.certificate
    await place.client.close()
    await front.close()
    await server.close()
    await store.close()
    await far.close()


@pytest.mark.root
async def test_an_apiservice_from_nothing_to_requests(place: tuple[Place, int, bytes]) -> None:
    api, port, ca = place
    services = "/apis/apiregistration.k8s.io/v1/apiservices"
    assert (await api.condition("v1.apps", "Local"))["message"] == "Local APIServices are always available"
    spec = {
        "group": "metrics.k8s.io",
        "version": "v1beta1",
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "service": {"name": "metrics", "namespace": "default"},
        "caBundle": base64.b64encode(ca).decode(),
    }
    name = "v1beta1.metrics.k8s.io"
    made = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": name}, "spec": spec}
    assert (await api.ask("POST", services, made))[0] == 201
    condition = await api.condition(name, "ServiceNotFound")
    assert (condition["status"], condition["message"]) == ("False", 'service/metrics in "default" is not present')
    assert await api.ask("GET", "/apis/metrics.k8s.io/v1beta1/nodes") == (503, "service unavailable\n")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "metrics", "namespace": "default"},
        "spec": {"ports": [{"name": "https", "port": 443, "targetPort": port}]},
    }
    assert (await api.ask("POST", "/api/v1/namespaces/default/services", service))[0] == 201
    await api.condition(name, "EndpointsNotFound")
    piece = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "metrics-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "metrics"}},
        "addressType": "IPv4",
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.98.7.6"], "conditions": {"ready": True}}],
    }
    slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    assert (await api.ask("POST", slices, piece))[0] == 201
    # A server that is starting is asked again and again, in less than the half minute of one that does not change.
    assert (await api.condition(name, "FailedDiscoveryCheck"))["message"].startswith(
        "bad status from https://10.98.7.6"
    )
    assert (await api.condition(name, "Passed"))["message"] == "all checks passed"
    async with asyncio.timeout(10):
        while "far.Node" not in (swagger := (await api.ask("GET", "/openapi/v2"))[1])["definitions"]:
            await asyncio.sleep(0.02)
    definitions = swagger["definitions"]
    assert "/apis/metrics.k8s.io/v1beta1/nodes" in swagger["paths"] and "far.Version" not in definitions
    other = f"{META}ObjectMeta_v2"
    assert definitions["far.Node"]["properties"]["metadata"] == {"$ref": f"#/definitions/{other}"}
    assert definitions[other]["description"] == "another one" != definitions[f"{META}ObjectMeta"]["description"]
    # Shared parameters stand where they are used; what is none is left out, and the protobuf form knows them too.
    nodes = swagger["paths"]["/apis/metrics.k8s.io/v1beta1/nodes"]
    limit = SWAGGER["parameters"]["limit-1"]  # type: ignore[index]
    assert nodes["parameters"] == [limit] == nodes["get"]["parameters"]
    media = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
    packed = await api.client.request("GET", api.url + "/openapi/v2", headers=[("Accept", media)])
    assert packed.status == 200 and b"far.Node" in await packed.read()
    index = (await api.ask("GET", "/openapi/v3"))[1]["paths"]
    assert index["apis/metrics.k8s.io/v1beta1"]["serverRelativeURL"].endswith("v1beta1?hash=ABC")
    code, told = await api.ask("GET", "/openapi/v3/apis/metrics.k8s.io/v1beta1?hash=ABC")
    assert code == 200 and told["target"] == "/openapi/v3/apis/metrics.k8s.io/v1beta1?hash=ABC"
    lies = [("X-Remote-User", "root"), ("Authorization", "Basic x")][:1]
    code, told = await api.ask("GET", "/apis/metrics.k8s.io/v1beta1/nodes?limit=1", headers=lies)
    assert code == 200 and told["target"] == "/apis/metrics.k8s.io/v1beta1/nodes?limit=1"
    assert told["x-remote-user"] == ["system:anonymous"] and told["x-remote-group"] == ["system:unauthenticated"]
    assert told["authorization"] == [] and told["host"] == [f"10.98.7.6:{port}"]
    code, told = await api.ask("DELETE", "/apis/metrics.k8s.io/v1beta1/namespaces/a/pods/b")
    assert (code, told["method"]) == (200, "DELETE")
    # discovery: the group and its resources, both ways
    code, groups = await api.ask("GET", "/apis")
    assert "metrics.k8s.io" in [g["name"] for g in groups["groups"]]
    code, listed = await api.ask("GET", "/apis/metrics.k8s.io/v1beta1")
    assert [r["name"] for r in listed["resources"]] == ["nodes", "pods", "pods/x"]
    wants = [("Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")]
    code, found = await api.ask("GET", "/apis", headers=wants)
    (group,) = [i for i in found["items"] if i["metadata"]["name"] == "metrics.k8s.io"]
    assert [r["resource"] for r in group["versions"][0]["resources"]] == ["nodes", "pods"]
    # when the server goes, so does the group's availability; when the APIService goes, the group
    assert (await api.ask("DELETE", f"{slices}/metrics-1"))[0] == 200
    await api.condition(name, "EndpointsNotFound")
    assert (await api.ask("GET", "/apis/metrics.k8s.io/v1beta1/nodes"))[0] == 503
    assert (await api.ask("DELETE", f"{services}/{name}"))[0] == 200
    async with asyncio.timeout(10):
        while "far.Node" in (await api.ask("GET", "/openapi/v2"))[1]["definitions"]:
            await asyncio.sleep(0.02)
    async with asyncio.timeout(10):
        while (await api.ask("GET", "/apis/metrics.k8s.io/v1beta1"))[0] != 404:
            await asyncio.sleep(0.02)


def test_headers_and_entries() -> None:
    user = UserInfo("jane", "u", ("a", "b"), {"example.com/k y": ["v"]})
    assert proxy_headers(user) == [
        ("X-Remote-User", "jane"),
        ("X-Remote-Uid", "u"),
        ("X-Remote-Group", "a"),
        ("X-Remote-Group", "b"),
        ("X-Remote-Extra-example.com%2Fk%20y", "v"),
    ]
    nodes, pods = entries([*RESOURCES, "nonsense", {"name": 5}], "metrics.k8s.io", "v1beta1")
    assert nodes["scope"] == "Cluster" and pods["shortNames"] == ["pm"]
    assert pods["responseKind"] == {"group": "metrics.k8s.io", "version": "v1beta1", "kind": "PodMetrics"}
    assert [s["subresource"] for s in pods["subresources"]] == ["x"]
