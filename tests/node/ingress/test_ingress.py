"""Ingress: which backend a request gets, and requests, streams, tunnels and certificates through real sockets."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.fake_api import FakeAPI

from longshore.client.resources import ENDPOINT_SLICES, INGRESS_CLASSES, INGRESSES, SECRETS, SERVICES
from longshore.machinery import pki
from longshore.machinery.http import Client, Request, Response, Server
from longshore.node.ingress.routes import CONTROLLER, Backend, Routes
from longshore.node.ingress.server import serve

Object = dict[str, Any]


def ingress(name: str, *rules: tuple[str, str, str, str], **spec: Any) -> Object:
    """rules: (host, path type, path, service)."""
    made: list[Object] = []
    for host, kind, path, service in rules:
        backend = {"service": {"name": service, "port": {"number": 80}}}
        made.append({"host": host, "http": {"paths": [{"path": path, "pathType": kind, "backend": backend}]}})
    return {
        "metadata": {"namespace": "default", "name": name},
        "spec": {"ingressClassName": "longshore", "rules": made, **spec},
    }


CLASS = {"metadata": {"name": "longshore"}, "spec": {"controller": CONTROLLER}}


def service(name: str, **spec: Any) -> Object:
    return {
        "metadata": {"namespace": "default", "name": name},
        "spec": {"ports": [{"name": "web", "port": 80}], **spec},
    }


def endpoint_slice(name: str, port: int, *addresses: str, ready: bool = True) -> Object:
    return {
        "metadata": {"namespace": "default", "name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "web", "port": port}],
        "endpoints": [{"addresses": [a], "conditions": {"ready": ready}} for a in addresses],
    }


@pytest.mark.parametrize(
    ("host", "path", "expected"),
    [
        ("shop.test", "/", "root"),
        ("shop.test", "/api", "api"),
        ("shop.test", "/api/", "api"),
        ("shop.test", "/api/v1/x", "v1"),
        ("shop.test", "/apix", "root"),
        ("shop.test", "/exact", "exact"),
        ("shop.test", "/exact/", "root"),
        ("a.wild.test", "/x", "wild"),
        ("a.b.wild.test", "/x", "any"),
        ("wild.test", "/x", "any"),
        ("named.wild.test", "/x", "named"),
        ("other.test", "/nothing", "any"),
    ],
)
def test_the_best_match_wins(host: str, path: str, expected: str) -> None:
    routes = Routes()
    routes.ingress_class(CLASS)
    routes.ingress(
        ingress(
            "a",
            ("shop.test", "Prefix", "/", "root"),
            ("shop.test", "Prefix", "/api", "api"),
            ("shop.test", "Prefix", "/api/v1/", "v1"),
            ("shop.test", "Exact", "/exact", "exact"),
            ("*.wild.test", "Prefix", "/", "wild"),
            ("named.wild.test", "ImplementationSpecific", "/", "named"),
        )
    )
    routes.ingress(
        {
            "metadata": {"namespace": "default", "name": "b"},
            "spec": {
                "ingressClassName": "longshore",
                "defaultBackend": {"service": {"name": "any", "port": {"name": "web"}}},
            },
        }
    )
    found = routes.find(host, path)
    assert found is not None and found.service == expected


def test_only_our_class_counts() -> None:
    routes = Routes()
    routes.ingress(ingress("a", ("x.test", "Prefix", "/", "s")))
    assert routes.find("x.test", "/") is None
    routes.ingress_class({"metadata": {"name": "longshore"}, "spec": {"controller": "example.com/other"}})
    assert routes.find("x.test", "/") is None
    routes.ingress_class(CLASS)
    assert routes.find("x.test", "/") == Backend("default", "s", 80)
    old = ingress("b", ("y.test", "Prefix", "/", "s"), ingressClassName=None)
    old["metadata"]["annotations"] = {"kubernetes.io/ingress.class": "longshore"}
    routes.ingress(old)
    assert routes.find("y.test", "/") is not None
    routes.ingress_gone(old)
    assert routes.find("y.test", "/") is None


def test_targets() -> None:
    routes = Routes()
    backend = Backend("default", "web", 80)
    assert routes.targets(backend) == []
    routes.service(service("web"))
    routes.slice(endpoint_slice("web", 8080, "10.0.0.1", "10.0.0.2"))
    assert sorted(routes.targets(backend)) == ["10.0.0.1:8080", "10.0.0.2:8080"]
    assert {routes.targets(Backend("default", "web", "web"))[0] for _ in range(4)} == {"10.0.0.1:8080", "10.0.0.2:8080"}
    assert routes.targets(Backend("default", "web", 81)) == []
    routes.slice(endpoint_slice("web", 8080, "10.0.0.1", ready=False))
    assert routes.targets(backend) == []
    routes.service(service("web", type="ExternalName", externalName="example.org"))
    assert routes.targets(backend) == ["example.org:80"]


def test_services_that_are_gone_leave_nothing() -> None:
    routes = Routes()
    for number in range(5):
        part = endpoint_slice(f"gone-{number}", 8080, "10.0.0.1")
        routes.slice(part)
        assert len(routes._slices) == 1
        routes.slice_gone(part)
    assert not routes._slices


async def backend_handler(request: Request) -> Response | None:
    if request.wants_upgrade:
        duplex = await request.upgrade(101, [("Connection", "Upgrade"), ("Upgrade", "echo")])
        while data := await duplex.read():
            duplex.write(data.upper())
            await duplex.drain()
        duplex.close()
        return None
    if request.path == "/big":
        writer = await request.start(200, [("content-type", "x/y"), ("connection", "x-secret"), ("x-secret", "1")])
        for _ in range(50):
            writer.write(b"z" * 20_000)
            await writer.drain()
        await writer.finish()
        return None
    body = await request.read(10_000_000) if request.has_body else b""
    seen = {name.lower(): value for name, value in request.headers.items()}
    return Response.json({"method": request.method, "target": request.target, "headers": seen, "length": len(body)})


class Scene:
    def __init__(self, api: FakeAPI, http: int, https: int, client: Client, ca: pki.KeyPair) -> None:
        self.api, self.http, self.https, self.client, self.ca = api, http, https, client, ca


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    backend = Server(backend_handler)
    port = await backend.listen_tcp("127.0.0.1", 0)
    api = FakeAPI()
    await api.create(INGRESS_CLASSES, CLASS)
    await api.create(SERVICES, service("web"))
    await api.create(SERVICES, service("empty"))
    await api.create(ENDPOINT_SLICES, endpoint_slice("web", port, "127.0.0.1"))
    ca = pki.make_ca("test")
    pair = pki.issue(ca, "shop.test", names=["shop.test"], server=True)
    data = {"tls.crt": base64.b64encode(pair.certificate).decode(), "tls.key": base64.b64encode(pair.key).decode()}
    await api.create(
        SECRETS, {"metadata": {"namespace": "default", "name": "cert"}, "type": "kubernetes.io/tls", "data": data}
    )
    first = ingress("a", ("shop.test", "Prefix", "/", "web"), ("shop.test", "Prefix", "/empty", "empty"))
    first["spec"]["tls"] = [{"hosts": ["shop.test"], "secretName": "cert"}]
    await api.create(INGRESSES, first)
    ports: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(client=api, host="127.0.0.1", http_port=0, https_port=0, ready=lambda *p: ports.set_result(p))
    )
    http, https = await asyncio.wait_for(ports, 10)
    async with Client() as client:
        yield Scene(api, http, https, client, ca)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await backend.close()


async def test_requests_and_answers(scene: Scene) -> None:
    url = f"http://127.0.0.1:{scene.http}"
    hostile = [("Host", "shop.test:80"), ("X-Forwarded-For", "6.6.6.6"), ("Connection", "x-mine"), ("X-Mine", "1")]
    answer = await scene.client.request("POST", url + "/a%2Fb?q=1&r=%20", headers=hostile, body=b"x" * 300_000)
    assert answer.status == 200
    import orjson

    said = orjson.loads(await answer.read())
    assert (said["method"], said["target"], said["length"]) == ("POST", "/a%2Fb?q=1&r=%20", 300_000)
    headers = said["headers"]
    assert headers["host"] == "shop.test:80" and headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http" and "x-mine" not in headers
    big = await scene.client.request("GET", url + "/big", headers=[("Host", "shop.test")])
    assert len(await big.read()) == 1_000_000
    assert big.headers.get("x-secret") is None and big.headers.get("content-type") == "x/y"
    head = await scene.client.request("HEAD", url + "/", headers=[("Host", "shop.test")])
    assert head.status == 200 and await head.read() == b""
    for host, path, status in (("else.test", "/", 404), ("shop.test", "/empty", 503)):
        answer = await scene.client.request("GET", url + path, headers=[("Host", host)])
        await answer.read()
        assert answer.status == status
    (found,) = scene.api.all(INGRESSES, "default")
    for _ in range(100):
        (found,) = scene.api.all(INGRESSES, "default")
        if found.get("status"):
            break
        await asyncio.sleep(0.02)
    assert found["status"]["loadBalancer"]["ingress"] == [{"ip": "127.0.0.1"}]


async def test_a_tunnel_after_an_upgrade(scene: Scene) -> None:
    fields = [("Host", "shop.test"), ("Connection", "Upgrade"), ("Upgrade", "echo")]
    answer, duplex = await scene.client.upgrade("GET", f"http://127.0.0.1:{scene.http}/ws", headers=fields)
    assert answer.status == 101 and duplex is not None
    duplex.write(b"hello")
    assert await asyncio.wait_for(duplex.read(), 5) == b"HELLO"
    duplex.close()


async def test_an_endpoint_that_is_gone_is_passed_over_or_told(scene: Scene) -> None:
    (slice_,) = scene.api.all(ENDPOINT_SLICES, "default")
    slice_["endpoints"] = [{"addresses": ["127.0.0.2"]}, *slice_["endpoints"]]
    await scene.api.update(ENDPOINT_SLICES, slice_)
    await asyncio.sleep(0.1)
    url = f"http://127.0.0.1:{scene.http}/"
    codes = []
    for _ in range(6):
        answer = await scene.client.request("GET", url, headers=[("Host", "shop.test")])
        await answer.read()
        codes.append(answer.status)
    assert codes == [200] * 6
    slice_["endpoints"] = [{"addresses": ["127.0.0.2"]}]
    slice_["metadata"].pop("resourceVersion", None)
    await scene.api.update(ENDPOINT_SLICES, slice_)
    await asyncio.sleep(0.1)
    answer = await scene.client.request("GET", url, headers=[("Host", "shop.test")])
    await answer.read()
    assert answer.status == 502


async def test_certificates_by_name(scene: Scene) -> None:
    trusting = ssl.create_default_context(cadata=scene.ca.certificate.decode())
    for _ in range(100):
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", scene.https, ssl=trusting, server_hostname="shop.test"
            )
            break
        except ssl.SSLCertVerificationError:
            await asyncio.sleep(0.05)  # the Secret is on its way
    writer.write(b"GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n")
    said = await asyncio.wait_for(reader.read(), 5)
    assert said.startswith(b"HTTP/1.1 200") and b'"x-forwarded-proto":"https"' in said
    writer.close()
    # Another name gets a certificate of our own, which nobody trusts.
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection("127.0.0.1", scene.https, ssl=trusting, server_hostname="other.test")
