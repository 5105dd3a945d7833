"""kubectl and plain requests through the API server to a stand-in kubelet and to pods."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from longshore.machinery import pki
from longshore.machinery.http import Client, Request, Response, Server, server_context
from longshore.machinery.streams import Options, Refused, accept_command, exit_status, serve_port_forward, websocket
from longshore.master.apiserver.config import Config
from longshore.master.apiserver.server import APIServer
from longshore.master.etcd.embedded import EmbeddedStore

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
pytestmark = [pytest.mark.root]
POD_ADDRESS = "10.99.0.7"
HANGING = asyncio.Event()


class Echo:
    """What listens in the pod: gives back what it hears in capitals."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self, n: int = 65536) -> bytes:
        return await self.queue.get()

    def write(self, data: bytes) -> None:
        self.queue.put_nowait(data.upper())

    async def drain(self) -> None:
        return

    def write_eof(self) -> None:
        self.queue.put_nowait(b"")

    close = write_eof


class Kubelet:
    """Answers as a kubelet would; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    async def handle(self, request: Request) -> Response | None:
        self.asked.append(request)
        assert request.peer.certificate is not None
        parts = request.path.split("/")
        if parts[1] == "containerLogs":
            if parts[4] == "broken":
                return Response(500, b"no log")
            writer = await request.start(200)
            for n in range(3):
                writer.write(b"line %d\n" % n)
                await writer.drain()
                await asyncio.sleep(0.01)
            return None
        try:
            if parts[1] == "portForward":

                async def dial(port: int) -> Any:
                    return Echo()

                await serve_port_forward(request, dial)
                return None
            if parts[1] in ("exec", "attach"):
                wants = [request.param(n) == "1" for n in ("input", "output", "error", "tty")]
                command = await accept_command(request, Options(*wants))
                words = request.query.get("command", [])
                if words[:1] == ["fail"]:
                    await command.finish(exit_status(int(words[1])))
                    return None
                assert command.stdout
                if command.stdin:
                    async for data in command.stdin:
                        command.stdout.write(data.upper())
                else:
                    command.stdout.write(" ".join(words).encode() + b"\n")
                await command.finish(exit_status(0))
                return None
        except Refused as refused:
            return refused.response
        return Response(200, f"{request.method} {request.target}".encode())


class Place:
    def __init__(self) -> None:
        self.url = ""
        self.client = Client()
        self.kubelet = Kubelet()

    async def create(self, path: str, obj: dict[str, Any], subresource: str = "") -> None:
        body = json.dumps(obj).encode()
        fields = [("Content-Type", "application/json")]
        response = await self.client.request("POST", self.url + path, headers=fields, body=body)
        assert response.status == 201, await response.read()
        made = json.loads(await response.read())
        if "status" in obj:
            made["status"] = obj["status"]
            url = f"{self.url}{path}/{obj['metadata']['name']}/status"
            response = await self.client.request("PUT", url, headers=fields, body=json.dumps(made).encode())
            assert response.status == 200, await response.read()

    async def get(self, path: str, method: str = "GET", **more: Any) -> tuple[int, bytes, Any]:
        response = await self.client.request(method, self.url + path, **more)
        return response.status, await response.read(), response.headers


def pod(name: str, node: str, *containers: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": False,
            "containers": [{"name": c, "image": "i", "ports": [{"containerPort": 8080}]} for c in containers],
        },
        "status": {
            "phase": "Running",
            "podIP": POD_ADDRESS,
            "podIPs": [{"ip": POD_ADDRESS}],
            "containerStatuses": [
                {"name": c, "ready": True, "restartCount": 0, "image": "i", "imageID": "", "state": {"running": {}}}
                for c in containers
            ],
        },
    }


async def backend(request: Request) -> Response | None:
    """The server in the pod."""
    if request.path == "/go":
        return Response(302, b"", [("Location", "/else?x=1")])
    if request.path == "/away":
        return Response(302, b"", [("Location", "http://example.com/x")])
    if request.path == "/hang":
        HANGING.set()
        try:
            await request.disconnected()
        finally:
            HANGING.clear()
    if request.path == "/page":
        return Response(200, b'<a href="/rewriteme">test</a>', (), "text/html; charset=utf-8")
    if request.path == "/zipped":
        page = gzip.compress(b'<a href="/rewriteme">test</a>')
        return Response(200, page, [("Content-Encoding", "gzip")], "text/html")
    if request.path == "/up":
        duplex = await request.upgrade()
        while data := await duplex.read():
            duplex.write(data.upper())
        return None
    body = await request.read(1 << 20)
    told = {n: request.headers.get(n) for n in ("authorization", "x-forwarded-for", "x-forwarded-uri", "x-a")}
    return Response.json({"method": request.method, "target": request.target, "body": body.decode(), **told})


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    os.system(f"ip addr replace {POD_ADDRESS}/32 dev lo")
    folder = tmp_path / "pki"
    ca = pki.ensure_ca(folder)
    pki.ensure_issued(folder, "kubelet", ca, "kubelet", names=["127.0.0.1"], server=True)
    pki.ensure_issued(folder, "client", ca, "kube-apiserver-kubelet-client", client=True)
    place = Place()
    kubelet = Server(place.kubelet.handle)
    context = server_context(folder / "kubelet.crt", folder / "kubelet.key", client_ca=folder / "ca.crt")
    kubelet_port = await kubelet.listen_tcp("127.0.0.1", 0, ssl=context)
    inside = Server(backend)
    await inside.listen_tcp(POD_ADDRESS, 8080)
    store = await EmbeddedStore.open(None)
    config = Config(
        authorization_modes=["AlwaysAllow"],
        kubelet_certificate=folder / "client.crt",
        kubelet_key=folder / "client.key",
        kubelet_ca=folder / "ca.crt",
        disable_admission=["ServiceAccount", "TaintNodesByCondition"],
    )
    server = APIServer(store, config)
    front = Server(server.handle)
    place.url = f"http://127.0.0.1:{await front.listen_tcp('127.0.0.1', 0)}"
    await server.start()
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n1"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}},
        },
    }
    await place.create("/api/v1/nodes", node)
    pods = "/api/v1/namespaces/default/pods"
    await place.create(pods, pod("p", "n1", "c"))
    await place.create(pods, pod("two", "n1", "c", "d", "broken"))
    monkeypatch.setenv("HOME", str(tmp_path))
    yield place
    await place.client.close()
    await front.close()
    await server.close()
    await store.close()
    await kubelet.close()
    await inside.close()


async def kubectl(place: Place, *words: str, stdin: bytes | None = None) -> tuple[int, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        "kubectl",
        f"--server={place.url}",
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    return process.returncode or 0, out, err


@needs_kubectl
@pytest.mark.parametrize("protocol", ["", "binary.k8s.io", "base64.binary.k8s.io"])
async def test_logs_over_a_websocket(place: Place, protocol: str) -> None:
    url = f"{place.url}/api/v1/namespaces/default/pods/p/log?container=c"
    response, socket = await websocket.connect(place.client, url, [protocol] if protocol else ())
    assert response.status == 101 and socket is not None and socket.protocol == protocol
    messages = []
    while (message := await socket.receive()) is not None:
        messages.append(base64.b64decode(message.data) if protocol.startswith("base64") else message.data)
    assert messages[0] == b"" and b"".join(messages) == b"line 0\nline 1\nline 2\n"
    assert socket.close_code == 1000
    socket.stream.close()
    response, socket = await websocket.connect(place.client, url, ["v4.channel.k8s.io"])
    assert response.status == 403 and socket is None


async def test_kubectl_logs(place: Place) -> None:
    assert await kubectl(place, "logs", "p", "--tail=5", "-f") == (0, b"line 0\nline 1\nline 2\n", b"")
    target = place.kubelet.asked[-1].target
    assert target == "/containerLogs/default/p/c?follow=true&tailLines=5"
    code, _, err = await kubectl(place, "logs", "two", "-c", "broken")
    assert code == 1 and b"no log" in err


@needs_kubectl
@pytest.mark.parametrize("websockets", ["true", "false"])
async def test_kubectl_exec(place: Place, websockets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
    assert await kubectl(place, "exec", "p", "--", "a b", "c&d=e") == (0, b"a b c&d=e\n", b"")
    code, _, err = await kubectl(place, "exec", "p", "--", "fail", "9")
    assert (code, err) == (9, b"command terminated with exit code 9\n")
    assert (await kubectl(place, "exec", "-i", "p", "--", "x", stdin=b"abc" * 9999))[1] == b"ABC" * 9999
    code, _, err = await kubectl(place, "exec", "p", "-c", "nope", "--", "x")
    assert code == 1 and b"container nope is not valid for pod p" in err


@needs_kubectl
@pytest.mark.parametrize("websockets", ["true", "false"])
async def test_kubectl_port_forward(place: Place, websockets: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "kubectl",
        f"--server={place.url}",
        "port-forward",
        "p",
        ":8080",
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"KUBECTL_PORT_FORWARD_WEBSOCKETS": websockets},
    )
    try:
        assert process.stdout
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(line.split("127.0.0.1:")[1].split(" ")[0]))
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), 30) == b"HELLO"
        writer.close()
    finally:
        process.kill()
        await process.wait()


async def test_a_kubelet_that_is_gone(place: Place) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n2"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 1}},
        },
    }
    await place.create("/api/v1/nodes", node)
    await place.create("/api/v1/namespaces/default/pods", pod("lost", "n2", "c"))
    code, body, _ = await place.get("/api/v1/namespaces/default/pods/lost/log")
    assert code == 500
    message = json.loads(body)["message"]
    assert message == (
        'Get "https://127.0.0.1:1/containerLogs/default/lost/c": dial tcp 127.0.0.1:1: connect: connection refused'
    )
    fields = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", "v4.channel.k8s.io")]
    url = "/api/v1/namespaces/default/pods/lost/exec?command=x&stdout=1"
    code, body, _ = await place.get(url, "POST", headers=fields)
    assert code == 500
    assert json.loads(body)["message"] == "error dialing backend: dial tcp 127.0.0.1:1: connect: connection refused"
    code, body, _ = await place.get(url, "POST")
    assert (code, json.loads(body)["message"]) == (400, "Upgrade request required")


async def test_pod_proxy(place: Place) -> None:
    base = "/api/v1/namespaces/default/pods/p:8080/proxy"
    fields = [("Authorization", "Basic x"), ("X-A", "b"), ("Impersonate-Extra-", "")][:2]
    code, body, _ = await place.get(f"{base}/a%20b?q=1&r", headers=fields[1:])
    told = json.loads(body)
    assert code == 200 and told["target"] == "/a%20b?q=1&r" and told["x-a"] == "b"
    assert told["x-forwarded-uri"] == f"{base}/a%20b" and told["x-forwarded-for"] == "127.0.0.1"
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        code, body, _ = await place.get(f"{base}/x", method, body=b"data")
        assert code == 200 and json.loads(body)["method"] == method and json.loads(body)["body"] == "data"
    code, body, _ = await place.get(f"{base}/x", "HEAD")
    assert (code, body) == (200, b"")
    code, _, headers = await place.get(base)
    assert (code, headers.get("Location")) == (301, f"{base}/")
    code, _, headers = await place.get(f"{base}/go")
    assert (code, headers.get("Location")) == (302, f"{base}/else?x=1")
    code, _, headers = await place.get(f"{base}/away")
    assert headers.get("Location") == "http://example.com/x"
    for page in ("page", "zipped"):
        code, body, _ = await place.get(f"{base}/{page}", headers=[("Accept-Encoding", "gzip")])
        assert body == f'<a href="{base}/rewriteme">test</a>'.encode()
    code, body, _ = await place.get("/api/v1/namespaces/default/pods/p/proxy/x")
    assert code == 200
    code, body, _ = await place.get("/api/v1/namespaces/default/pods/p:81/proxy/x")
    assert code == 503 and "error trying to reach service: dial tcp 10.99.0.7:81" in json.loads(body)["message"]


async def test_a_client_that_goes_lets_the_backend_go(place: Place) -> None:
    task = asyncio.create_task(place.get("/api/v1/namespaces/default/pods/p:8080/proxy/hang"))
    await asyncio.wait_for(HANGING.wait(), 10)
    task.cancel()
    async with asyncio.timeout(10):
        while HANGING.is_set():
            await asyncio.sleep(0.01)


async def test_an_upgrade_through_a_pod_proxy(place: Place) -> None:
    url = f"{place.url}/api/v1/namespaces/default/pods/p:8080/proxy/up"
    response, duplex = await place.client.upgrade("GET", url, headers=[("Connection", "Upgrade"), ("Upgrade", "x")])
    assert response.status == 101 and duplex is not None
    duplex.write(b"abc")
    assert await duplex.read() == b"ABC"
    duplex.close()


async def test_service_proxy(place: Place) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "namespace": "default"},
        "spec": {"selector": {"app": "p"}, "ports": [{"name": "web", "port": 80, "targetPort": 8080}]},
    }
    await place.create("/api/v1/namespaces/default/services", service)
    base = "/api/v1/namespaces/default/services"
    code, body, _ = await place.get(f"{base}/s:web/proxy/x")
    assert (code, json.loads(body)["message"]) == (503, 'no endpoints available for service "s:web"')
    piece = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "s-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4",
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [POD_ADDRESS],
                "conditions": {"ready": True},
                "targetRef": {"kind": "Pod", "namespace": "default", "name": "p"},
            }
        ],
    }
    await place.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", piece)
    for name in ("s:web", "s:80", "http:s:web"):
        code, body, _ = await place.get(f"{base}/{name}/proxy/x?y")
        assert code == 200 and json.loads(body)["target"] == "/x?y", name
    code, body, _ = await place.get(f"{base}/s:81/proxy/x")
    assert (code, json.loads(body)["message"]) == (503, 'no service port 81 found for service "s"')


async def test_node_proxy(place: Place) -> None:
    code, body, _ = await place.get("/api/v1/nodes/n1/proxy/pods?x=1")
    assert (code, body) == (200, b"GET /pods?x=1")
    code, body, _ = await place.get("/api/v1/nodes/n1:22/proxy/x")
    assert (code, json.loads(body)["message"]) == (400, "address not allowed")


def _python_client(url: str) -> list[Any]:
    """What the kubernetes Python client sees; it blocks, so it runs in a thread."""
    from kubernetes import client, stream

    config = client.Configuration(host=url)
    api = client.CoreV1Api(client.ApiClient(config))
    out: list[Any] = []
    call = api.connect_get_namespaced_pod_exec
    out.append(stream.stream(call, "p", "default", command=["a", "b"], stdout=True, stderr=True, stdin=False))
    session = stream.stream(
        call, "p", "default", command=["x"], stdout=True, stderr=True, stdin=True, _preload_content=False
    )
    session.write_stdin("abc\n")
    out.append(session.readline_stdout(timeout=10))
    session.close()
    session = stream.stream(
        call, "p", "default", command=["fail", "3"], stdout=True, stderr=True, stdin=False, _preload_content=False
    )
    session.run_forever(timeout=10)
    out.append(session.returncode)
    # a client of its own: portforward changes how the ApiClient that it is given asks
    fresh = client.CoreV1Api(client.ApiClient(config))
    forward = stream.portforward(fresh.connect_get_namespaced_pod_portforward, "p", "default", ports="8080")
    sock = forward.socket(8080)
    sock.settimeout(10)
    sock.sendall(b"hello")
    out.append(sock.recv(100))
    sock.close()
    out.append(api.read_namespaced_pod_log("p", "default"))
    return out


async def test_the_python_client(place: Place) -> None:
    pytest.importorskip("kubernetes")
    found = await asyncio.wait_for(asyncio.to_thread(_python_client, place.url), 60)
    assert found == ["a b\n", "ABC", 3, b"HELLO", "line 0\nline 1\nline 2\n"]
