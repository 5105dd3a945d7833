"""AuthenticationConfiguration and AuthorizationConfiguration files."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from longshore.master.apiserver import remote
from longshore.master.apiserver.auth import Access, Options
from longshore.master.apiserver.auth.authentication import Anonymous
from longshore.master.apiserver.auth.configuration import ConfigurationError, _mapping, authentication, authorization
from longshore.master.apiserver.auth.jwt import TokenError
from longshore.master.apiserver.auth.webhooks import AuthorizationWebhook
from longshore.master.apiserver.context import Attributes, Decision, UserInfo

HEAD = "apiVersion: apiserver.config.k8s.io/v1\nkind: {}\n"


def write(folder: Path, kind: str, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(HEAD.format(kind) + textwrap.dedent(text))
    return path


AUTHENTICATION = """
    anonymous:
      enabled: true
      conditions: [{path: /livez}, {path: /readyz}]
    jwt:
    - issuer: {url: "https://a.example", audiences: [x, y], audienceMatchPolicy: MatchAny}
      claimMappings:
        username: {claim: sub, prefix: "a:"}
        groups: {claim: roles, prefix: "r:"}
        uid: {claim: id}
        extra: [{key: example.com/tenant, valueExpression: claims.tenant}]
      claimValidationRules:
      - {claim: hd, requiredValue: corp}
      - {expression: "claims.exp - claims.nbf <= 86400", message: too long}
      userValidationRules:
      - {expression: "!user.username.startsWith('system:')", message: reserved}
    - issuer: {url: "https://b.example", audiences: [z]}
      claimMappings:
        username: {expression: "claims.name + '@b'"}
        groups: {expression: "claims.groups.map(g, 'b:' + g)"}
"""


def test_issuers_and_anonymous(tmp_path: Path) -> None:
    issuers, anonymous = authentication(write(tmp_path, "AuthenticationConfiguration", AUTHENTICATION))
    assert [i._issuer for i in issuers] == ["https://a.example", "https://b.example"]
    assert anonymous == Anonymous(True, frozenset(("/livez", "/readyz")))
    first, second = (i._mapping for i in issuers)
    assert first is not None and second is not None
    claims: dict[str, Any] = {
        "sub": "jane",
        "roles": ["x", "y"],
        "id": "7",
        "tenant": ["t"],
        "hd": "corp",
        "exp": 10,
        "nbf": 5,
    }
    assert first(claims) == UserInfo("a:jane", "7", ("r:x", "r:y"), {"example.com/tenant": ["t"]})
    for change, words in (
        ({"hd": "other"}, "value does not match"),
        ({"exp": 100_000}, "too long"),
        ({"sub": ""}, "gave no name"),
        ({"tenant": 5}, "no string"),
    ):
        with pytest.raises(TokenError, match=words):
            first(claims | change)
    with pytest.raises(TokenError, match="required claim hd not present"):
        first({"sub": "x"})
    assert second({"name": "joe", "groups": ["g"]}) == UserInfo("joe@b", groups=("b:g",))
    with pytest.raises(TokenError, match="error evaluating expression"):
        second({"groups": []})


def test_a_user_that_must_not_be() -> None:
    mapping = _mapping(
        {
            "claimMappings": {"username": {"claim": "sub", "prefix": ""}},
            "userValidationRules": [{"expression": "!user.username.startsWith('system:')", "message": "reserved"}],
        },
        "jwt[0]",
    )
    assert mapping({"sub": "jane"}).name == "jane"
    with pytest.raises(TokenError, match="reserved"):
        mapping({"sub": "system:admin"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jwt: [{issuer: {audiences: [x]}}]", "issuer.url: Required"),
        (
            "jwt: [{issuer: {url: 'http://x', audiences: [x]}, claimMappings: {username: {claim: a, prefix: ''}}}]",
            "invalid scheme",
        ),
        ("jwt: [{issuer: {url: 'https://x'}}]", "audiences: Required"),
        ("jwt: [{issuer: {url: 'https://x', audiences: [a, b]}}]", "MatchAny"),
        ("jwt: [{issuer: {url: 'https://x', audiences: [a]}}]", "username: Required"),
        (
            "jwt: [{issuer: {url: 'https://x', audiences: [a]}, claimMappings: {username: {claim: a}}}]",
            "prefix is required",
        ),
        (
            "jwt: [{issuer: {url: 'https://x', audiences: [a]}, claimMappings: {username: {expression: '1 + 1'}}}]",
            "must evaluate to string",
        ),
        (
            "jwt: [{issuer: {url: 'https://x', audiences: [a]}, claimMappings: {username: {expression: '(('}}}]",
            "compilation failed",
        ),
        ("jwt: [{nonsense: 1}]", 'unknown field "nonsense"'),
        ("anonymous: {enabled: false, conditions: [{path: /x}]}", "enabled should be set to true"),
        ("nonsense: 1", 'unknown field "nonsense"'),
        ("jwt: [", "config.yaml"),
    ],
)
def test_wrong_authentication(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        authentication(write(tmp_path, "AuthenticationConfiguration", text))


AUTHORIZATION = """
    authorizers:
    - {type: Node, name: node}
    - type: Webhook
      name: hook
      webhook:
        timeout: 3s
        authorizedTTL: 1m
        subjectAccessReviewVersion: v1
        failurePolicy: Deny
        connectionInfo: {type: KubeConfigFile, kubeConfigFile: /nonexistent}
        matchConditions:
        - expression: has(request.resourceAttributes)
        - expression: request.resourceAttributes.namespace == 'guarded'
    - {type: RBAC, name: rbac}
"""


async def test_authorizers(tmp_path: Path, objects: Any) -> None:
    path = write(tmp_path, "AuthorizationConfiguration", AUTHORIZATION)
    first, webhook, last = authorization(path)
    assert (first, last) == ("Node", "RBAC") and isinstance(webhook, AuthorizationWebhook)
    user = UserInfo("jane")
    assert (await webhook.authorize(Attributes(user, "get", resource="pods", namespace="free"))).verdict == "no opinion"
    assert (await webhook.authorize(Attributes(user, "get", path="/x", is_resource=False))).verdict == "no opinion"
    access = Access(objects, Options(authorization_config=path))
    assert [type(a).__name__ for a in access.authorization.authorizers] == [
        "NodeAuthorizer",
        "AuthorizationWebhook",
        "RBAC",
    ]
    assert access.rbac is not None


async def test_a_webhook_that_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    config = tmp_path / "hook.conf"
    config.write_text(
        "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n"
        "users: []\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
    )
    asked = Attributes(UserInfo("jane"), "get", resource="pods")
    for deny, verdict in ((True, "deny"), (False, "no opinion")):
        decision: Decision = await AuthorizationWebhook(config, deny_on_error=deny).authorize(asked)
        assert decision.verdict == verdict and "connection refused" in decision.reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("authorizers: []", "at least one"),
        ("authorizers: [{type: Foo, name: a}]", "Unsupported value"),
        ("authorizers: [{type: RBAC}]", "name: Required"),
        ("authorizers: [{type: RBAC, name: a}, {type: RBAC, name: b}]", "Duplicate"),
        ("authorizers: [{type: Webhook, name: a}]", "KubeConfigFile is required"),
    ],
)
def test_wrong_authorization(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        authorization(write(tmp_path, "AuthorizationConfiguration", text))
