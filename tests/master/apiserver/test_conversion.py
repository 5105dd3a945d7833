"""Custom objects that a webhook converts: read, written, listed and watched in either version; a new storage version."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from longshore.machinery import pki

GROUP = "/apis/hosts.example.com"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class Converter(BaseHTTPRequestHandler):
    """v1 has hostPort "h:1", v2 has host and port."""

    failing = False

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = review["request"]
        wanted = request["desiredAPIVersion"]
        out = []
        for obj in request["objects"]:
            new = {**obj, "apiVersion": wanted}
            if obj["apiVersion"].endswith("/v1") and wanted.endswith("/v2"):
                new["host"], new["port"] = new.pop("hostPort").split(":")
            elif obj["apiVersion"].endswith("/v2") and wanted.endswith("/v1"):
                new["hostPort"] = f"{new.pop('host')}:{new.pop('port', '')}"
            out.append(new)
        result = {"status": "Failed", "message": "broken"} if Converter.failing else {"status": "Success"}
        answer = {**review, "response": {"uid": request["uid"], "convertedObjects": out, "result": result}}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def webhook(tmp_path: Path) -> Iterator[Any]:
    Converter.failing = False
    ca = pki.ensure_ca(tmp_path)
    pki.ensure_issued(tmp_path, "hook", ca, "hook", names=["127.0.0.1"], server=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Converter)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "hook.crt", tmp_path / "hook.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "url": f"https://127.0.0.1:{server.server_port}/convert",
        "caBundle": base64.b64encode(ca.certificate).decode(),
    }
    server.shutdown()
    server.server_close()


def definition(client: Any, storage: str) -> Any:
    text = {"type": "string"}

    def version(name: str, **fields: Any) -> Any:
        schema = {"openAPIV3Schema": {"type": "object", "properties": fields}}
        return {"name": name, "served": True, "storage": name == storage, "schema": schema}

    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "places.hosts.example.com"},
        "spec": {
            "group": "hosts.example.com", "scope": "Namespaced", "names": {"plural": "places", "kind": "Place"},
            "versions": [version("v1", hostPort=text), version("v2", host=text, port=text)],
            "conversion": {
                "strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": ["v1"]},
            },
        },
    }  # fmt: skip


def until(what: Any) -> Any:
    deadline = time.monotonic() + 10
    while True:
        found = what()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def test_conversion(server: Any, webhook: Any) -> None:
    assert server.send("POST", CRDS, definition(webhook, "v1")).status == 201
    v1, v2 = (f"{GROUP}/{v}/namespaces/default/places" for v in ("v1", "v2"))
    assert until(lambda: server.send("GET", v2).status == 200)
    head = {"apiVersion": "hosts.example.com/v1", "kind": "Place"}
    assert server.send("POST", v1, {**head, "metadata": {"name": "a"}, "hostPort": "x:1"}).status == 201
    head["apiVersion"] = "hosts.example.com/v2"
    made = server.send("POST", v2, {**head, "metadata": {"name": "b"}, "host": "y", "port": "2"})
    assert made.status == 201 and made.json["host"] == "y" and made.json["apiVersion"].endswith("/v2")
    assert server.send("GET", f"{v2}/a").json["host"] == "x"
    assert server.send("GET", f"{v1}/b").json["hostPort"] == "y:2"
    assert [i["port"] for i in server.send("GET", v2).json["items"]] == ["1", "2"]
    merge = "application/merge-patch+json"
    patched = server.send("PATCH", f"{v2}/a", {"port": "9"}, Content_Type=merge)
    assert patched.status == 200, patched.raw
    assert patched.json["port"] == "9" and server.send("GET", f"{v1}/a").json["hostPort"] == "x:9"
    # A watch in the version that is not kept.
    connection = server.connect()
    since = server.send("GET", v2).json["metadata"]["resourceVersion"]
    connection.request("GET", f"{v2}?watch=1&resourceVersion={since}")
    stream = connection.getresponse()
    server.send("PATCH", f"{v1}/a", {"hostPort": "z:3"}, Content_Type=merge)
    event = json.loads(stream.readline())
    assert (event["type"], event["object"]["host"], event["object"]["port"]) == ("MODIFIED", "z", "3")
    assert server.send("DELETE", f"{v2}/b").status == 200
    event = json.loads(stream.readline())
    assert (event["type"], event["object"]["host"]) == ("DELETED", "y")
    connection.close()
    # What the webhook refuses is an error.
    Converter.failing = True
    refused = server.send("POST", v2, {**head, "metadata": {"name": "c"}, "host": "y", "port": "2"})
    assert refused.status == 500 and "broken" in refused.json["message"]
    Converter.failing = False
    # Another storage version.
    patch = {"spec": {"versions": definition(webhook, "v2")["spec"]["versions"]}}
    answer = server.send("PATCH", f"{CRDS}/places.hosts.example.com", patch, Content_Type=merge)
    assert answer.json["status"]["storedVersions"] == ["v1", "v2"]
    time.sleep(0.3)
    assert until(lambda: server.send("GET", f"{v2}/a").json.get("host") == "z")
    assert server.send("GET", f"{v1}/a").json["hostPort"] == "z:3"
    assert server.send("DELETE", f"{CRDS}/places.hosts.example.com").status == 200


def test_selectable_fields_are_those_of_the_version_asked_for(server: Any, webhook: Any) -> None:
    wanted = definition(webhook, "v1")
    wanted["metadata"]["name"], wanted["spec"]["names"] = "spots.hosts.example.com", {"plural": "spots", "kind": "Spot"}
    for version, fields in zip(wanted["spec"]["versions"], ((".hostPort",), (".host", ".port")), strict=True):
        version["selectableFields"] = [{"jsonPath": f} for f in fields]
    assert server.send("POST", CRDS, wanted).status == 201
    v1, v2 = (f"{GROUP}/{v}/namespaces/default/spots" for v in ("v1", "v2"))
    assert until(lambda: server.send("GET", v2).status == 200)
    connections = []

    def watch(path: str, selector: str) -> Any:
        connections.append(server.connect(10))
        connections[-1].request("GET", f"{path}?watch=1&fieldSelector={selector}")
        return connections[-1].getresponse()

    hosts, pairs, old = watch(v2, "host%3Dh1"), watch(v2, "host%3Dh1,port%3D80"), watch(v1, "hostPort%3Dh1:80")
    head = {"apiVersion": "hosts.example.com/v2", "kind": "Spot"}
    for name, host, port in (("a", "h1", "80"), ("b", "h1", "81"), ("c", "h2", "80")):
        assert server.send("POST", v2, {**head, "metadata": {"name": name}, "host": host, "port": port}).status == 201

    def names(path: str, selector: str) -> list[str]:
        return [i["metadata"]["name"] for i in server.send("GET", f"{path}?fieldSelector={selector}").json["items"]]

    assert names(v2, "host%3Dh1") == ["a", "b"] and names(v2, "host%3Dh1,port%3D80") == ["a"]
    assert names(v1, "hostPort%3Dh1:81") == ["b"]
    assert server.send("GET", f"{v1}?fieldSelector=host%3Dh1").status == 400
    assert server.send("DELETE", f"{v2}?fieldSelector=host%3Dh1,port%3D80").status == 200
    merge = "application/merge-patch+json"
    assert server.send("PATCH", f"{v2}/b", {"host": "h2"}, Content_Type=merge).status == 200
    assert names(v2, "host%3Dh1") == []
    seen = [json.loads(hosts.readline()) for _ in range(4)]
    told = [(e["type"], e["object"]["metadata"]["name"], e["object"]["host"]) for e in seen]
    assert told == [("ADDED", "a", "h1"), ("ADDED", "b", "h1"), ("DELETED", "a", "h1"), ("DELETED", "b", "h1")]
    for stream in (pairs, old):
        events = [json.loads(stream.readline()) for _ in range(2)]
        assert [(e["type"], e["object"]["metadata"]["name"]) for e in events] == [("ADDED", "a"), ("DELETED", "a")]
    for connection in connections:
        connection.close()
