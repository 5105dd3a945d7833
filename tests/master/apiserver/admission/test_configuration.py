"""The admission configuration file, and the plugins that are off unless they are asked for."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml

from longshore.machinery import pki
from longshore.machinery.errors import StatusError
from longshore.master.apiserver.admission import plugins
from longshore.master.apiserver.admission.configuration import PluginConfiguration
from longshore.master.apiserver.admission.webhooks import Credentials
from longshore.master.apiserver.configfile import ConfigurationError
from longshore.master.apiserver.context import UserInfo
from support.admission import Objects, pod, refusal

CLASS = ".storageclass.storage.k8s.io/requests.storage"


def write(folder: Path, **told: Any) -> Path:
    file = folder / "admission.yaml"
    head = {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration"}
    listed = [
        {"name": name, **({"path": v} if isinstance(v, str) else {"configuration": v})} for name, v in told.items()
    ]
    file.write_text(yaml.safe_dump({**head, "plugins": listed}))
    return file


def made(api: Objects, file: Path | None, *on: str, off: tuple[str, ...] = ()) -> dict[str, Any]:
    config = SimpleNamespace(enable_admission=on, disable_admission=off, admission_config=file)
    return {p.name: p for p in plugins(config, api)}  # type: ignore[arg-type]


def security(**given: Any) -> dict[str, Any]:
    kind = {"apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration"}
    return {**kind, **given}


def test_names(api: Objects) -> None:
    with pytest.raises(ConfigurationError, match=r'^enable-admission-plugins plugin "Nothing" is unknown$'):
        made(api, None, "Nothing")
    with pytest.raises(ConfigurationError, match=r'^disable-admission-plugins plugin "Nothing" is unknown$'):
        made(api, None, off=("Nothing",))
    with pytest.raises(ConfigurationError, match=r"^\[Priority\] in enable-admission-plugins and disable-admission-"):
        made(api, None, "Priority", off=("Priority",))
    found = made(api, None, "AlwaysPullImages", off=("Priority", "ClusterTrustBundleAttest"))
    assert "AlwaysPullImages" in found and "Priority" not in found


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"PodSecurity": security(defaults={"enforce": "strict"})}, 'defaults.enforce: Invalid value: "strict"'),
        ({"PodSecurity": security(defaults={"warn-version": "1.2"})}, "defaults.warn-version"),
        ({"PodSecurity": security(exemptions={"namespaces": ["A"]})}, r"exemptions.namespaces\[0\]: Invalid value"),
        ({"PodSecurity": security(exemptions={"usernames": ["a", "a"]})}, r"usernames\[1\]: Duplicate value"),
        ({"PodSecurity": {"kind": "Other"}}, "expected PodSecurityConfiguration"),
        (
            {"MutatingAdmissionWebhook": {
                "kind": "WebhookAdmissionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1", "kubeConfigFile": "x"}},
            'kubeConfigFile must be an absolute file path: "x"',
        ),
    ],
)  # fmt: skip
def test_bad_files(api: Objects, tmp_path: Path, told: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        made(api, write(tmp_path, **told))


async def test_pod_security_settings(api: Objects, tmp_path: Path) -> None:
    defaults = {"enforce": "baseline", "warn": "restricted"}
    exempt = {"usernames": ["free"], "namespaces": ["b"], "runtimeClasses": ["rc"]}
    plugin = made(api, write(tmp_path, PodSecurity=security(defaults=defaults, exemptions=exempt)))["PodSecurity"]
    bad = {"containers": [{"name": "c", "image": "i", "securityContext": {"privileged": True}}]}
    assert 'violates PodSecurity "baseline:latest": privileged' in await refusal(
        plugin, api.request("pods", pod(**bad))
    )
    warned = api.request("pods", pod())
    assert await refusal(plugin, warned) == "" and "restricted:latest" in warned.warnings[0]
    key = "pod-security.kubernetes.io/exempt"
    runtime = api.request("pods", pod(**bad, runtimeClassName="rc"))
    assert await refusal(plugin, runtime) == "" and runtime.annotations[key] == "runtimeClass"
    user = api.request("pods", pod(**bad), user=UserInfo("free"))
    assert await refusal(plugin, user) == "" and user.annotations[key] == "user"
    elsewhere = api.request("pods", pod(**bad), namespace="b")
    assert await refusal(plugin, elsewhere) == "" and elsewhere.annotations[key] == "namespace"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    named = api.request("namespaces", {"metadata": {"name": "b", "labels": labels}}, namespace="")
    assert await refusal(plugin, named) == ""
    assert named.warnings == [
        'namespace "b" is exempt from Pod Security, and the policy (enforce=restricted:latest) will be ignored'
    ]


async def test_limited_resources(api: Objects, tmp_path: Path) -> None:
    given = {
        "kind": "ResourceQuotaConfiguration", "apiVersion": "apiserver.config.k8s.io/v1",
        "limitedResources": [
            {"resource": "persistentvolumeclaims", "matchContains": [CLASS]},
            {"resource": "pods", "matchScopes": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]},
        ],
    }  # fmt: skip
    plugin = made(api, write(tmp_path, ResourceQuota=given))["ResourceQuota"]
    spec = {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"metadata": {"name": "p", "namespace": "a"}, "spec": spec}
    asked = api.request("persistentvolumeclaims", claim)
    assert (
        await refusal(plugin, asked)
        == f'persistentvolumeclaims "p" is forbidden: insufficient quota to consume: gold{CLASS}'
    )
    with pytest.raises(StatusError, match=r"these scopes: \[{PriorityClass In \[high\]}\]") as caught:
        await plugin.validate(api.request("pods", pod(priorityClassName="high")))
    assert caught.value.code == 500
    assert await refusal(plugin, api.request("pods", pod(priorityClassName="low"))) == ""
    hard = {f"gold{CLASS}": "5Gi"}
    quota = {"metadata": {"name": "q", "namespace": "a"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": {}}}
    api.put("", "resourcequotas", quota)
    assert await refusal(plugin, asked) == ""


async def test_node_selectors_of_namespaces(api: Objects, tmp_path: Path) -> None:
    (tmp_path / "pns.yaml").write_text(
        "podNodeSelectorPluginConfig: {clusterDefaultNodeSelector: env=test, a: 'env=test,zone=z'}"
    )
    plugin = made(api, write(tmp_path, PodNodeSelector="pns.yaml"), "PodNodeSelector")["PodNodeSelector"]
    a = api.request("pods", pod(nodeSelector={"zone": "z"}))
    assert await refusal(plugin, a) == "" and (a.object or {})["spec"]["nodeSelector"] == {"env": "test", "zone": "z"}
    conflict = api.request("pods", pod(nodeSelector={"env": "prod"}))
    assert "conflicts with its namespace node label selector" in await refusal(plugin, conflict)
    other = api.request("pods", pod(nodeSelector={"disk": "ssd"}))
    assert "conflict with its namespace whitelist" in await refusal(plugin, other)


async def test_rate_of_events(api: Objects, tmp_path: Path) -> None:
    limits = [{"type": "Namespace", "qps": 1, "burst": 1}, {"type": "User", "qps": 1, "burst": 1}]
    given = {"kind": "Configuration", "apiVersion": "eventratelimit.admission.k8s.io/v1alpha1", "limits": limits}
    plugin = made(api, write(tmp_path, EventRateLimit=given), "EventRateLimit")["EventRateLimit"]
    event = {"metadata": {"name": "e"}}
    await plugin.validate(api.request("events", event, user=UserInfo("me")))
    with pytest.raises(StatusError) as caught:
        await plugin.validate(api.request("events", event, user=UserInfo("me")))
    assert caught.value.code == 429 and caught.value.message == (
        "Too many requests: [limit reached on type Namespace for key a, limit reached on type User for key me]"
    )
    with pytest.raises(ConfigurationError, match="must not be empty"):
        made(api, None, "EventRateLimit")


async def test_images_are_always_pulled(api: Objects) -> None:
    plugin = made(api, None, "AlwaysPullImages")["AlwaysPullImages"]
    a = api.request("pods", pod(containers=[{"name": "c", "image": "i:1"}]))
    assert "imagePullPolicy: Unsupported value" in str(await _validated(plugin, a))
    assert await refusal(plugin, a) == "" and (a.object or {})["spec"]["containers"][0]["imagePullPolicy"] == "Always"


async def _validated(plugin: Any, a: Any) -> StatusError | None:
    try:
        await plugin.validate(a)
    except StatusError as error:
        return error
    return None


class Judge(http.server.BaseHTTPRequestHandler):
    """Says of images whether they may run; knows who asks."""

    asked: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Judge.asked.append((self.headers.get("Authorization"), body))
        if body["kind"] == "AdmissionReview":
            answer: Any = {**body, "response": {"uid": body["request"]["uid"], "allowed": True}}
        else:
            bad = any("bad" in c["image"] for c in body["spec"]["containers"])
            status = {"allowed": not bad, "auditAnnotations": {"seen": "yes"}, **({"reason": "no"} if bad else {})}
            answer = {**body, "status": status}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """The port of a webhook on localhost with TLS, and the CA that it is known by."""
    from longshore.machinery.http import server_context

    Judge.asked = []
    ca = pki.ensure_ca(tmp_path)
    pki.ensure_issued(tmp_path, "judge", ca, "localhost", names=["localhost"], server=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    context = server_context(tmp_path / "judge.crt", tmp_path / "judge.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, ca.certificate.decode()
    server.shutdown()
    server.server_close()


async def test_images_that_may_run(api: Objects, tmp_path: Path, judge: tuple[int, str]) -> None:
    port, ca = judge
    config = tmp_path / "images.kubeconfig"
    config.write_bytes(pki.kubeconfig(f"https://localhost:{port}/images", ca.encode(), token="t0ken"))
    file = write(tmp_path, ImagePolicyWebhook={"imagePolicy": {"kubeConfigFile": str(config), "retryBackoff": 1}})
    plugin = made(api, file, "ImagePolicyWebhook")["ImagePolicyWebhook"]
    good = api.request("pods", pod())
    assert await refusal(plugin, good) == ""
    assert good.annotations == {"imagepolicywebhook.image-policy.k8s.io/seen": "yes"}
    await refusal(plugin, api.request("pods", pod()))
    assert len(Judge.asked) == 1 and Judge.asked[0][0] == "Bearer t0ken"
    assert Judge.asked[0][1]["spec"] == {"containers": [{"image": "i"}], "namespace": "a"}
    bad = api.request("pods", pod(containers=[{"name": "c", "image": "bad"}]))
    assert "image policy webhook backend denied one or more images: no" in await refusal(plugin, bad)


def test_credentials_for_webhooks(tmp_path: Path) -> None:
    file = tmp_path / "hooks.kubeconfig"
    users = {"a.ns.svc": "exact", "a.ns.svc:8443": "port", "*.example.com": "wild", "*": "rest"}
    listed = [{"name": name, "user": {"token": token}} for name, token in users.items()]
    file.write_text(yaml.safe_dump({"kind": "Config", "apiVersion": "v1", "users": listed}))
    found = Credentials(file)

    def token(host: str, port: int = 443) -> str:
        shown = found.find(host, port)
        assert shown is not None
        return shown.token

    assert token("a.ns.svc") == "exact" and token("a.ns.svc", 8443) == "port"
    assert token("x.example.com") == "wild" and token("other") == "rest"
    assert Credentials().find("other", 443) is None
    assert PluginConfiguration().of("PodSecurity") is None


def test_a_webhook_is_shown_who_asks(tmp_path: Path, start_server: Any, judge: tuple[int, str]) -> None:
    port, ca = judge
    hooks = tmp_path / "hooks.kubeconfig"
    users = [{"name": f"localhost:{port}", "user": {"token": "s3cret"}}]
    hooks.write_text(yaml.safe_dump({"kind": "Config", "apiVersion": "v1", "users": users}))
    told = {
        "kind": "WebhookAdmissionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1", "kubeConfigFile": str(hooks)
    }  # fmt: skip
    file = write(tmp_path, ValidatingAdmissionWebhook=told)
    running = start_server(
        "--admission-control-config-file", str(file), "--disable-admission-plugins", "ServiceAccount"
    )
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
    bundle = base64.b64encode(ca.encode()).decode()
    hook = {
        "name": "judge.example.com", "rules": [rule], "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": f"https://localhost:{port}/", "caBundle": bundle},
    }  # fmt: skip
    configurations = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    assert running.send("POST", configurations, {"metadata": {"name": "w"}, "webhooks": [hook]}).status == 201
    assert running.send("POST", "/api/v1/namespaces/default/configmaps", {"metadata": {"name": "a"}}).status == 201
    assert Judge.asked[-1][0] == "Bearer s3cret"
    simple = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    assert running.send("POST", "/api/v1/namespaces/default/pods", simple).status == 201  # without an account
