"""Service account tokens, looked-up tokens, webhooks, OIDC, impersonation."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longshore.machinery import pki
from longshore.machinery.errors import StatusError
from longshore.machinery.http import Headers, Request, Response, Server, server_context
from longshore.machinery.http.message import Peer
from longshore.master.apiserver.auth import impersonation, jwt, key_set, openid_configuration
from longshore.master.apiserver.auth.authentication import (
    Anonymous,
    Authentication,
    ClientCertificates,
    TokenError,
    Tokens,
)
from longshore.master.apiserver.auth.certificates import Authorities
from longshore.master.apiserver.auth.oidc import OIDC
from longshore.master.apiserver.auth.serviceaccounts import EXTENDED, Keys, ServiceAccountTokens, TokenIssuer
from longshore.master.apiserver.auth.statictokens import BootstrapTokens, TokenFile
from longshore.master.apiserver.auth.webhooks import AuthorizationWebhook, TokenWebhook
from longshore.master.apiserver.context import Attributes, Decision, UserInfo

ISSUER = "https://kubernetes.default.svc.cluster.local"


class Place:
    def __init__(self, objects: Any, folder: Path) -> None:
        self.objects = objects
        self.key = folder / "sa.key"
        pki.ensure_key(self.key)
        self.tokens = ServiceAccountTokens(objects, Keys(self.key), [ISSUER], [ISSUER])
        self.issuer = TokenIssuer(objects, self.tokens)
        objects.put("", "serviceaccounts", {"metadata": {"namespace": "ns", "name": "bot", "uid": "u-sa"}})
        objects.put("", "nodes", {"metadata": {"name": "n1", "uid": "u-n"}})
        objects.put(
            "",
            "pods",
            {
                "metadata": {"namespace": "ns", "name": "p", "uid": "u-p"},
                "spec": {"serviceAccountName": "bot", "nodeName": "n1"},
            },
        )

    def issue(self, **spec: Any) -> dict[str, Any]:
        request = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": spec}
        return self.issuer.create(request, "ns", "bot")

    def token(self, **spec: Any) -> str:
        return str(self.issue(**spec)["status"]["token"])


@pytest.fixture
def place(objects: Any, tmp_path: Path) -> Place:
    return Place(objects, tmp_path)


def claims(token: str) -> dict[str, Any]:
    found = jwt.peek(token)
    assert found is not None
    return found[1]


def test_a_plain_token(place: Place) -> None:
    token = place.token()
    found = place.tokens.authenticate_token(token, ())
    assert found is not None and found.audiences == [ISSUER]
    assert found.user.name == "system:serviceaccount:ns:bot" and found.user.uid == "u-sa"
    assert found.user.groups == ("system:serviceaccounts", "system:serviceaccounts:ns")
    assert found.user.extra["authentication.kubernetes.io/credential-id"] == [f"JTI={claims(token)['jti']}"]
    assert claims(token)["exp"] - claims(token)["iat"] == 3600


def test_bound_tokens_end_with_their_object(place: Place) -> None:
    token = place.token(boundObjectRef={"kind": "Pod", "apiVersion": "v1", "name": "p"})
    private = claims(token)["kubernetes.io"]
    assert private["pod"] == {"name": "p", "uid": "u-p"} and private["node"] == {"name": "n1", "uid": "u-n"}
    found = place.tokens.authenticate_token(token, ())
    assert found is not None
    assert found.user.extra["authentication.kubernetes.io/pod-name"] == ["p"]
    assert found.user.extra["authentication.kubernetes.io/node-name"] == ["n1"]
    place.objects.kept["", "pods", "ns", "p"]["metadata"]["uid"] = "another"
    with pytest.raises(TokenError, match="invalidated"):
        place.tokens.authenticate_token(token, ())
    place.objects.remove("", "serviceaccounts", "ns", "bot")
    with pytest.raises(TokenError, match="not found"):
        place.tokens.authenticate_token(token, ())


def test_kubelets_tokens_outlive_their_word(place: Place) -> None:
    answer = place.issue(boundObjectRef={"kind": "Pod", "apiVersion": "v1", "name": "p"}, expirationSeconds=3607)
    body = claims(answer["status"]["token"])
    assert body["exp"] - body["iat"] == EXTENDED
    assert body["kubernetes.io"]["warnafter"] - body["iat"] == 3607


def test_refused_requests(place: Place) -> None:
    with pytest.raises(StatusError, match="UID in the bound object reference"):
        place.token(boundObjectRef={"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "x"})
    place.objects.put(
        "", "pods", {"metadata": {"namespace": "ns", "name": "q", "uid": "q"}, "spec": {"serviceAccountName": "z"}}
    )
    with pytest.raises(StatusError, match="different serviceaccount name"):
        place.token(boundObjectRef={"kind": "Pod", "apiVersion": "v1", "name": "q"})
    with pytest.raises(StatusError, match="cannot bind token to object of type /v1, Kind=Service"):
        place.token(boundObjectRef={"kind": "Service", "apiVersion": "v1", "name": "q"})


def test_wrong_tokens(place: Place, tmp_path: Path) -> None:
    token = place.token()
    tokens = Tokens([place.tokens])
    for bad, words in (
        ("garbage", "invalid bearer token"),
        ("a.b.c", "invalid bearer token"),
        (token[:-6] + "AAAAAA", "[invalid bearer token, go-jose/go-jose: error in cryptographic primitive]"),
    ):
        with pytest.raises(TokenError) as caught:
            tokens.authenticate_token(bad)
        assert str(caught.value) == words
    with pytest.raises(TokenError, match='is invalid for the target audiences \\["other"\\]'):
        tokens.authenticate_token(token, ["other"])
    pki.ensure_key(tmp_path / "other.key")
    forged = jwt.sign(Keys(tmp_path / "other.key").all()[0], claims(token))
    with pytest.raises(TokenError, match="cryptographic primitive"):
        tokens.authenticate_token(forged)
    old = jwt.sign(place.tokens.keys.all()[0], claims(token) | {"exp": time.time() - 100})
    with pytest.raises(TokenError, match="has expired"):
        tokens.authenticate_token(old)
    _, body, _ = token.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    with pytest.raises(TokenError, match="cryptographic primitive"):
        tokens.authenticate_token(f"{none}.{body}.")


def test_discovery_documents(place: Place) -> None:
    keys = place.tokens.keys.all()
    assert openid_configuration(ISSUER, "https://x/openid/v1/jwks", keys)["id_token_signing_alg_values_supported"] == [
        "ES256"
    ]
    (key,) = key_set(keys)["keys"]
    assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("EC", "P-256", "sig", "ES256") and "d" not in key


def test_token_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens.csv"
    path.write_text('abc,jane,u1,"devs, ops"\ndef,joe,u2\n')
    file = TokenFile(path)
    found = file.authenticate_token("abc", ())
    assert found is not None and found.user == UserInfo("jane", "u1", ("devs", "ops"))
    assert file.authenticate_token("x", ()) is None
    path.write_text("abc\n")
    with pytest.raises(ValueError, match="at least 3 columns"):
        TokenFile(path)


def test_bootstrap_tokens(objects: Any) -> None:
    tokens = BootstrapTokens(objects)

    def secret(**data: str) -> None:
        values = {"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"}
        encoded = {k: base64.b64encode(v.encode()).decode() for k, v in (values | data).items()}
        meta = {"namespace": "kube-system", "name": "bootstrap-token-abcdef"}
        objects.put("", "secrets", {"metadata": meta, "type": "bootstrap.kubernetes.io/token", "data": encoded})

    assert tokens.authenticate_token("abcdef.0123456789abcdef", ()) is None
    secret(**{"auth-extra-groups": "system:bootstrappers:a"})
    found = tokens.authenticate_token("abcdef.0123456789abcdef", ())
    assert found is not None
    assert found.user == UserInfo("system:bootstrap:abcdef", groups=("system:bootstrappers", "system:bootstrappers:a"))
    assert tokens.authenticate_token("abcdef.0123456789abcdee", ()) is None
    for broken in (
        {"expiration": "2001-01-01T00:00:00Z"},
        {"expiration": "soon"},
        {"usage-bootstrap-authentication": "false"},
        {"auth-extra-groups": "system:masters"},
        {"token-id": "zzzzzz"},
    ):
        secret(**broken)
        assert tokens.authenticate_token("abcdef.0123456789abcdef", ()) is None


# ---- whole requests


class FakeConnection:
    def __init__(self, peer: Peer) -> None:
        self.peer = peer


def request(*headers: tuple[str, str], peer: Peer | None = None) -> Request:
    fake: Any = FakeConnection(peer or Peer(("127.0.0.1", 1)))
    return Request(fake, "GET", "/x", Headers(headers), version="1.1", keep_alive=True)


async def test_authentication_as_a_whole(place: Place, tmp_path: Path) -> None:
    ca = pki.ensure_ca(tmp_path)
    der = ssl.PEM_cert_to_DER_cert(pki.issue(ca, "admin", client=True).certificate.decode())
    certificates = ClientCertificates(Authorities(tmp_path / "ca.crt"))
    whole = Authentication(certificates=certificates, tokens=Tokens([place.tokens]))
    anonymous = whole.authenticate(request())
    assert isinstance(anonymous, UserInfo) and anonymous.name == "system:anonymous"
    subject = ((("organizationName", "system:masters"),), (("organizationName", "b"),), (("commonName", "admin"),))
    peer = Peer(("127.0.0.1", 1), {"subject": subject}, der, tls=True)
    admin = whole.authenticate(request(peer=peer))
    assert isinstance(admin, UserInfo)
    assert (admin.name, admin.groups) == ("admin", ("system:masters", "b", "system:authenticated"))
    assert whole.authenticate(request(peer=peer)) is admin
    bot = whole.authenticate(request(("Authorization", f"Bearer {place.token()}")))
    assert isinstance(bot, UserInfo) and bot.groups[-1] == "system:authenticated"
    with pytest.raises(StatusError, match="Unauthorized"):
        whole.authenticate(request(("Authorization", "Bearer nonsense")))
    protocol = "base64url.bearer.authorization.k8s.io." + base64.urlsafe_b64encode(
        place.token().encode()
    ).decode().rstrip("=")
    browser = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Protocol", f"{protocol}, v4.channel.k8s.io"),
    ]
    seen = whole.authenticate(request(*browser))
    assert isinstance(seen, UserInfo) and seen.name == "system:serviceaccount:ns:bot"
    with pytest.raises(StatusError, match="Unauthorized"):
        Authentication(anonymous=Anonymous(False)).authenticate(request())


def allow(*verbs: str) -> Callable[[Attributes], Decision]:
    def authorize(a: Attributes) -> Decision:
        return Decision("allow" if f"{a.verb} {a.resource}" in verbs else "no opinion")

    return authorize


ME = UserInfo("me", groups=("system:authenticated",))
ASKED = Attributes(ME, "list", "", "v1", "pods", "", "ns")


async def impersonate(headers: dict[str, str], *verbs: str, a: Attributes = ASKED) -> UserInfo:
    return (await impersonation.impersonate(request(*headers.items()), a, allow(*verbs)))[0]


async def test_impersonation_modes() -> None:
    user = {"Impersonate-User": "jane", "Impersonate-Group": "g"}
    legacy = await impersonate(user, "impersonate users", "impersonate groups")
    assert legacy == UserInfo("jane", groups=("g", "system:authenticated"))
    rights = ("impersonate-on:user-info:list pods", "impersonate:user-info users", "impersonate:user-info groups")
    assert await impersonate(user, *rights) == legacy
    with pytest.raises(StatusError, match="cannot impersonate-on:user-info:list resource"):
        await impersonate(user, *rights[1:])
    with pytest.raises(StatusError, match='cannot impersonate:user-info resource "groups"'):
        await impersonate(user, *rights[:2])
    masters = {"Impersonate-User": "jane", "Impersonate-Group": "system:masters"}
    with pytest.raises(StatusError, match="impersonating the system:masters group is not allowed"):
        await impersonate(masters, *rights)
    account = {"Impersonate-User": "system:serviceaccount:ns:bot"}
    bot = await impersonate(
        account, "impersonate-on:serviceaccount:list pods", "impersonate:serviceaccount serviceaccounts"
    )
    assert bot.groups == ("system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated")
    node = {"Impersonate-User": "system:node:n1"}
    found = await impersonate(node, "impersonate-on:arbitrary-node:list pods", "impersonate:arbitrary-node nodes")
    assert found.groups == ("system:nodes", "system:authenticated")
    agent = UserInfo("system:serviceaccount:ns:agent", extra={impersonation.NODE_NAME: ["n1"]})
    rights = ("impersonate-on:associated-node:list pods", "impersonate:associated-node nodes")
    found = await impersonate(node, *rights, a=replace(ASKED, user=agent))
    assert found.name == "system:node:n1"
    with pytest.raises(StatusError, match="forbidden"):
        await impersonate({"Impersonate-User": "system:node:n2"}, *rights, a=replace(ASKED, user=agent))


async def test_impersonation_without_a_user() -> None:
    with pytest.raises(StatusError, match=r'Extra:map\[string\]\[\]string{"x":\[\]string{"g"}}} without impersonating'):
        await impersonate({"Impersonate-Extra-x": "g"})
    assert impersonation.wants(Headers([("IMPERSONATE-EXTRA-x", "y")])) and not impersonation.wants(
        Headers([("A", "b")])
    )


# ---- other servers


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    """A TLS server that is an OIDC provider and answers reviews, and a kubeconfig for it."""
    ca = pki.make_ca()
    pair = pki.issue(ca, "localhost", names=["localhost"], server=True)
    pair.write(tmp_path / "tls.crt", tmp_path / "tls.key")
    (tmp_path / "ca.crt").write_bytes(ca.certificate)
    pki.ensure_key(tmp_path / "oidc.key")
    key = Keys(tmp_path / "oidc.key").all()[0]
    state: dict[str, Any] = {"asked": [], "key": key, "ca": tmp_path / "ca.crt"}

    async def answer(request: Request) -> Response:
        if request.path == "/.well-known/openid-configuration":
            return Response.json({"issuer": state["url"], "jwks_uri": state["url"] + "/keys"})
        if request.path == "/keys":
            return Response.json(key_set([key]))
        review = json.loads(await request.read(1 << 20))
        state["asked"].append(review)
        return Response.json(review | {"status": state["status"]})

    server = Server(answer)
    port = await server.listen_tcp("127.0.0.1", 0, ssl=server_context(tmp_path / "tls.crt", tmp_path / "tls.key"))
    state["url"] = f"https://localhost:{port}"
    state["config"] = tmp_path / "webhook.conf"
    state["config"].write_bytes(pki.kubeconfig(state["url"], ca.certificate))
    yield state
    await server.close()


async def test_oidc(provider: dict[str, Any]) -> None:
    oidc = OIDC(
        provider["url"],
        "me",
        username_claim="email",
        groups_claim="groups",
        groups_prefix="o:",
        required_claims={"hd": "x"},
        signing_algorithms=["ES256"],
        ca_file=provider["ca"],
    )
    good = {"iss": provider["url"], "aud": "me", "exp": time.time() + 60, "email": "a@b", "groups": ["g"], "hd": "x"}
    found = await oidc.authenticate_token(jwt.sign(provider["key"], good), ())
    assert found is not None and found.user == UserInfo("a@b", groups=("o:g",))
    assert await oidc.authenticate_token(jwt.sign(provider["key"], good | {"iss": "other"}), ()) is None
    for change, words in (
        ({"aud": "you"}, "expected audience"),
        ({"exp": 1}, "expired"),
        ({"email": ""}, "claim not present"),
        ({"email_verified": False}, "not verified"),
        ({"hd": "y"}, "required claim"),
        ({"groups": 5}, "groups claim"),
    ):
        with pytest.raises(TokenError, match=words):
            await oidc.authenticate_token(jwt.sign(provider["key"], good | change), ())


async def test_token_webhook(provider: dict[str, Any]) -> None:
    webhook = TokenWebhook(provider["config"])
    provider["status"] = {"authenticated": True, "user": {"username": "w", "groups": ["g"], "extra": {"K": ["v"]}}}
    for _ in range(2):
        found = await webhook.authenticate_token("t", ())
        assert found is not None and found.user == UserInfo("w", groups=("g",), extra={"k": ["v"]})
    assert len(provider["asked"]) == 1 and provider["asked"][0]["spec"] == {"token": "t"}
    provider["status"] = {"error": "no"}
    with pytest.raises(TokenError, match="no"):
        await webhook.authenticate_token("u", ())
    provider["status"] = {"authenticated": False}
    assert await webhook.authenticate_token("v", ()) is None


async def test_authorization_webhook(provider: dict[str, Any]) -> None:
    webhook = AuthorizationWebhook(provider["config"])
    for status, verdict in (
        ({"allowed": True, "reason": "r"}, "allow"),
        ({"allowed": False}, "no opinion"),
        ({"allowed": False, "denied": True}, "deny"),
        ({"allowed": True, "denied": True}, "deny"),
    ):
        provider["status"] = status
        a = replace(ASKED, verb=verdict, name=json.dumps(status))
        assert (await webhook.authorize(a)).verdict == verdict
        assert provider["asked"][-1]["spec"]["resourceAttributes"]["verb"] == verdict
