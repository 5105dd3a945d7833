"""Webhooks against a server of the test's own."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from longshore.machinery import pki
from longshore.machinery.http import Request, Response, Server
from longshore.machinery.http.tls import server_context
from longshore.master.apiserver.admission.webhooks import MutatingAdmissionWebhook, ValidatingAdmissionWebhook
from support.admission import Objects, refusal

ARG = "admissionregistration.k8s.io"


class Hooks:
    """The server: answers by path, keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.port = 0
        self.bundle = ""

    async def __call__(self, request: Request) -> Response:
        review = json.loads(await request.read(1 << 20))
        self.asked.append((request.path, review["request"]))
        answer: dict[str, Any] = {"uid": review["request"]["uid"], "allowed": True}
        match request.path:
            case "/deny":
                answer = {**answer, "allowed": False, "status": {"message": "no", "code": 400}, "warnings": ["w"]}
            case "/patch" | "/patch2":
                patch = [{"op": "add", "path": "/metadata/labels", "value": {"by": request.path}}]
                answer |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(patch).encode()).decode()}
            case "/slow":
                await asyncio.sleep(5)
            case "/broken":
                return Response(500, b"oh")
            case "/moved":
                return Response(307, b"", [("Location", "/patch")])
            case "/other":
                answer["uid"] = "x"
        return Response.json({**review, "request": None, "response": answer})

    def configuration(self, path: str, **more: Any) -> dict[str, Any]:
        rules = [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}]
        hook = {
            "name": f"{path[1:]}.example.com",
            "clientConfig": {"url": f"https://localhost:{self.port}{path}", "caBundle": self.bundle},
            "rules": rules,
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "failurePolicy": "Fail",
            "timeoutSeconds": 10,
            **more,
        }
        return {"metadata": {"name": path[1:]}, "webhooks": [hook]}


@pytest.fixture
async def hooks(tmp_path: Path) -> AsyncIterator[Hooks]:
    out = Hooks()
    ca = pki.make_ca("hooks")
    pki.issue(ca, "localhost", names=["localhost"], server=True).write(tmp_path / "crt", tmp_path / "key")
    server = Server(out)
    out.port = await server.listen_tcp("localhost", 0, ssl=server_context(tmp_path / "crt", tmp_path / "key"))
    out.bundle = base64.b64encode(ca.certificate).decode()
    yield out
    await server.close()


CONFIG_MAP = {"metadata": {"name": "x"}}


def _mutating(api: Objects, *configurations: dict[str, Any]) -> MutatingAdmissionWebhook:
    for c in configurations:
        api.put(ARG, "mutatingwebhookconfigurations", c)
    return MutatingAdmissionWebhook(api)


async def test_patches_and_asks_again(api: Objects, hooks: Hooks) -> None:
    plugin = _mutating(
        api, hooks.configuration("/aaa", reinvocationPolicy="IfNeeded"), hooks.configuration("/patch"),
    )  # fmt: skip
    a = api.request("configmaps", CONFIG_MAP)
    assert await refusal(plugin, a) == ""
    assert (a.object or {})["metadata"]["labels"] == {"by": "/patch"}
    assert [p for p, _ in hooks.asked] == ["/aaa", "/patch", "/aaa"]
    first = hooks.asked[0][1]
    assert (first["operation"], first["namespace"], first["name"]) == ("CREATE", "a", "x")
    assert first["userInfo"]["username"] == "admin" and first["object"]["kind"] == "ConfigMap"
    await plugin.close()


async def test_refusals_come_through(api: Objects, hooks: Hooks) -> None:
    api.put(ARG, "validatingwebhookconfigurations", hooks.configuration("/deny"))
    plugin = ValidatingAdmissionWebhook(api)
    a = api.request("configmaps", CONFIG_MAP)
    assert await refusal(plugin, a) == 'admission webhook "deny.example.com" denied the request: no'
    assert a.warnings == ["w"]
    await plugin.close()


@pytest.mark.parametrize(
    ("path", "more", "said"),
    [
        ("/slow", {"timeoutSeconds": 0.2}, "context deadline exceeded"),
        ("/broken", {}, "an error on the server"),
        ("/moved", {}, "status code 307"),
        ("/other", {}, 'got "x"'),
        ("/patch", {"clientConfig": {"url": "https://localhost:1/"}}, "failed to call webhook"),
        ("/patch", {"clientConfig": {"service": {"name": "s", "namespace": "a"}}}, 'service "s" not found'),
    ],
)
async def test_failures_refuse_or_pass(api: Objects, hooks: Hooks, path: str, more: Any, said: str) -> None:
    plugin = _mutating(api, hooks.configuration(path, **more))
    message = await refusal(plugin, api.request("configmaps", CONFIG_MAP))
    assert message.startswith(f'Internal error occurred: failed calling webhook "{path[1:]}.example.com": ')
    assert said in message
    await plugin.close()
    plugin = _mutating(api, hooks.configuration(path, **more, failurePolicy="Ignore"))
    a = api.request("configmaps", CONFIG_MAP)
    assert await refusal(plugin, a) == ""
    assert not (a.object or {})["metadata"].get("labels")
    await plugin.close()


@pytest.mark.parametrize(
    "more",
    [
        {"objectSelector": {"matchLabels": {"a": "b"}}},
        {"namespaceSelector": {"matchLabels": {"a": "b"}}},
        {"matchConditions": [{"name": "n", "expression": "object.metadata.name != 'x'"}]},
        {"rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "operations": ["DELETE"]}]},
    ],
)
async def test_not_asked(api: Objects, hooks: Hooks, more: Any) -> None:
    plugin = _mutating(api, hooks.configuration("/patch", **more))
    assert await refusal(plugin, api.request("configmaps", CONFIG_MAP)) == ""
    assert hooks.asked == []
    await plugin.close()


async def test_services_are_reached_at_their_endpoints(api: Objects, hooks: Hooks, tmp_path: Path) -> None:
    ca = pki.make_ca("in cluster")
    pki.issue(ca, "s", names=["s.a.svc"], server=True).write(tmp_path / "s.crt", tmp_path / "s.key")
    server = Server(hooks)
    port = await server.listen_tcp("127.0.0.1", 0, ssl=server_context(tmp_path / "s.crt", tmp_path / "s.key"))
    api.put(
        "", "services", {"metadata": {"name": "s", "namespace": "a"}, "spec": {"ports": [{"name": "w", "port": 443}]}}
    )
    labels = {"kubernetes.io/service-name": "s"}
    part = {
        "metadata": {"name": "s-1", "namespace": "a", "labels": labels},
        "ports": [{"name": "w", "port": port}],
        "endpoints": [{"addresses": ["127.0.0.1"]}],
    }
    api.put("discovery.k8s.io", "endpointslices", part)
    client = {
        "service": {"name": "s", "namespace": "a", "path": "/patch"},
        "caBundle": base64.b64encode(ca.certificate).decode(),
    }
    plugin = _mutating(api, hooks.configuration("/patch", clientConfig=client))
    a = api.request("configmaps", CONFIG_MAP)
    assert await refusal(plugin, a) == ""
    assert (a.object or {})["metadata"]["labels"] == {"by": "/patch"}
    await plugin.close()
    await server.close()


async def test_dry_run_spares_webhooks_that_do_something(api: Objects, hooks: Hooks) -> None:
    plugin = _mutating(api, hooks.configuration("/patch", sideEffects="Some"))
    said = await refusal(plugin, api.request("configmaps", CONFIG_MAP, dry_run=True))
    assert said == 'admission webhook "patch.example.com" does not support dry run'
    await plugin.close()
