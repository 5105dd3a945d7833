"""Service account tokens: issued bound to an object, an audience and a time, and checked against what they are bound to.

Source: k8s.io/kubernetes/pkg/serviceaccount (claims.go, jwt.go, legacy.go), registry/core/serviceaccount/storage/token.go.
"""

from __future__ import annotations

import hmac
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longshore.machinery.errors import Cause, bad_request, conflict, invalid, not_found
from longshore.master.apiserver.context import API, Object, ObjectReader, UserInfo

from . import jwt
from .authentication import Authenticated
from .jwt import TokenError
from .users import CREDENTIAL_ID, account_groups, account_name, quoted_list

LEGACY_ISSUER = "kubernetes/serviceaccount"
WARN_ONLY = (
    3607  # seconds that kubelets ask for: such tokens live a year, so that old clients that never reread them work
)
EXTENDED = 24 * 365 * 3600
_MAX_CACHE = 4096


class Keys:
    """The keys of service account tokens, loaded when the first token is met."""

    def __init__(self, signing: Path | None, others: Sequence[Path] = ()) -> None:
        self._paths = [*([signing] if signing else []), *others]
        self._signs = signing is not None
        self._keys: list[jwt.Key] | None = None

    def all(self) -> list[jwt.Key]:
        if self._keys is None:
            found = {k.id: k for p in reversed(self._paths) for k in jwt.load_keys(p)}
            self._keys = list(reversed(found.values()))
        return self._keys

    def signing(self) -> jwt.Key | None:
        return self.all()[0] if self._signs else None


class ServiceAccountTokens:
    """Checks tokens. issuers: those accepted, the first issues. api_audiences: what a token must be for to be used here."""

    def __init__(self, api: ObjectReader, keys: Keys, issuers: Sequence[str], api_audiences: Sequence[str]) -> None:
        self._api = api
        self.keys = keys
        self.issuers = list(issuers)
        self.api_audiences = list(api_audiences)
        self._known: OrderedDict[str, dict[str, Any]] = OrderedDict()  # token to claims: its signature was checked

    def authenticate_token(self, token: str, audiences: Sequence[str]) -> Authenticated | None:
        """Whom a token is of; None when it is no token of ours. TokenError when it is, but not good (any more)."""
        claims = self._known.get(token)
        if claims is None:
            found = jwt.peek(token)
            if found is None or found[1].get("iss") not in (*self.issuers, LEGACY_ISSUER):
                return None
            jwt.check_signature(token, found[0], self.keys.all())
            claims = self._known[token] = found[1]
            if len(self._known) > _MAX_CACHE:
                self._known.popitem(last=False)
        if claims.get("iss") == LEGACY_ISSUER:
            return self._legacy(token, claims, audiences)
        wanted = list(audiences) or self.api_audiences
        held = jwt.audiences(claims) or self.api_audiences
        common = [a for a in held if a in wanted]
        if not common:
            raise TokenError(
                f"token audiences {quoted_list(held)} is invalid for the target audiences {quoted_list(wanted)}"
            )
        jwt.check_times(claims, "service account token")
        user = self._bound(claims)
        return Authenticated(user, common)

    def _bound(self, claims: dict[str, Any]) -> UserInfo:
        private = claims.get("kubernetes.io")
        if not isinstance(private, dict):
            raise TokenError("token could not be validated due to missing kubernetes.io claims")
        namespace = str(private.get("namespace", ""))
        account = private.get("serviceaccount") or {}
        name, uid = str(account.get("name", "")), str(account.get("uid", ""))
        invalidated = TokenError("service account token has been invalidated")
        present = self._api.get("", "serviceaccounts", namespace, name)
        if present is None:
            raise TokenError(f'serviceaccounts "{name}" not found')
        if _deleting(present):
            raise invalidated
        if present["metadata"].get("uid") != uid:
            raise TokenError(f"service account UID ({present['metadata'].get('uid')}) does not match claim ({uid})")
        extra: dict[str, list[str]] = {}
        if claims.get("jti"):
            extra[CREDENTIAL_ID] = [f"JTI={claims['jti']}"]
        for field, resource, scope in (("secret", "secrets", namespace), ("pod", "pods", namespace)):
            reference = private.get(field)
            if reference is None:
                continue
            found = self._api.get("", resource, scope, str(reference.get("name", "")))
            if found is None or found["metadata"].get("uid") != reference.get("uid") or _deleting(found):
                raise invalidated
            if field == "pod":
                extra["authentication.kubernetes.io/pod-name"] = [reference["name"]]
                extra["authentication.kubernetes.io/pod-uid"] = [reference["uid"]]
        node = private.get("node")
        if node is not None:
            if private.get("pod") is None and private.get("secret") is None:
                found = self._api.get("", "nodes", "", str(node.get("name", "")))
                if found is None or found["metadata"].get("uid") != node.get("uid"):
                    raise invalidated
            extra["authentication.kubernetes.io/node-name"] = [node["name"]]
            if node.get("uid"):
                extra["authentication.kubernetes.io/node-uid"] = [node["uid"]]
        return UserInfo(account_name(namespace, name), uid, account_groups(namespace), extra)

    def _legacy(self, token: str, claims: dict[str, Any], audiences: Sequence[str]) -> Authenticated:
        wanted = list(audiences) or self.api_audiences
        common = [a for a in self.api_audiences if a in wanted]
        if not common:
            shown = quoted_list(self.api_audiences), quoted_list(wanted)
            raise TokenError(f"token audiences {shown[0]} is invalid for the target audiences {shown[1]}")
        prefix = f"{LEGACY_ISSUER}/"
        namespace = str(claims.get(prefix + "namespace", ""))
        name = str(claims.get(prefix + "service-account.name", ""))
        uid = str(claims.get(prefix + "service-account.uid", ""))
        secret_name = str(claims.get(prefix + "secret.name", ""))
        if claims.get("sub") != account_name(namespace, name):
            raise TokenError("sub claim is invalid")
        secret = self._api.get("", "secrets", namespace, secret_name)
        stored = _data(secret, "token")
        if secret is None or _deleting(secret) or not hmac.compare_digest(stored, token.encode()):
            raise TokenError("service account token has been invalidated")
        account = self._api.get("", "serviceaccounts", namespace, name)
        if account is None or _deleting(account):
            raise TokenError("service account token has been invalidated")
        if account["metadata"].get("uid") != uid:
            raise TokenError(f"service account UID ({account['metadata'].get('uid')}) does not match claim ({uid})")
        return Authenticated(UserInfo(account_name(namespace, name), uid, account_groups(namespace)), common)


def _deleting(obj: Object) -> bool:
    """Whether an object has been on its way out for more than the leeway for clocks (60 s)."""
    when = obj["metadata"].get("deletionTimestamp")
    if not when:
        return False
    return datetime.now(UTC).timestamp() > datetime.fromisoformat(when.replace("Z", "+00:00")).timestamp() + 60


def _data(secret: Object | None, key: str) -> bytes:
    import base64

    try:
        return base64.b64decode(((secret or {}).get("data") or {}).get(key) or "")
    except ValueError:
        return b""


class TokenIssuer:
    """Answers TokenRequests. max_expiration: seconds, 0 for no limit of our own."""

    def __init__(self, api: API, tokens: ServiceAccountTokens, *, max_expiration: int = 0, extend: bool = True) -> None:
        self._api = api
        self._tokens = tokens
        self._max = max_expiration
        self._extend = extend

    async def issue(self, request: Object, namespace: str, name: str) -> Object:
        """As create, but on what the store holds now: accounts and pods get their first token just after they are made."""
        await self._api.get_live("", "serviceaccounts", namespace, name)
        return self.create(request, namespace, name)

    def create(self, request: Object, namespace: str, name: str) -> Object:
        """The answer to a TokenRequest for a service account (defaulted here). StatusError as upstream has them."""
        api = self._api
        spec: dict[str, Any] = dict(request.get("spec") or {})
        seconds = spec.setdefault("expirationSeconds", 3600)
        account = api.get("", "serviceaccounts", namespace, name)
        if account is None:
            raise not_found("", "serviceaccounts", name)
        audiences = list(spec.get("audiences") or self._tokens.api_audiences)
        _validate(seconds)
        bound = spec.get("boundObjectRef")
        private: dict[str, Any] = {"namespace": namespace}
        if bound is not None:
            private |= self._bind(bound, namespace, name)
        private["serviceaccount"] = {"name": name, "uid": account["metadata"]["uid"]}
        if self._max and seconds > self._max:
            seconds = spec["expirationSeconds"] = self._max
        now = int(time.time())
        expiry = now + seconds
        if (
            self._extend
            and bound
            and "pod" in private
            and seconds == WARN_ONLY
            and audiences == self._tokens.api_audiences
        ):
            private["warnafter"] = now + seconds
            expiry = now + EXTENDED
        claims = {
            "aud": audiences,
            "exp": expiry,
            "iat": now,
            "iss": self._tokens.issuers[0],
            "jti": str(uuid.uuid4()),
            "kubernetes.io": private,
            "nbf": now,
            "sub": account_name(namespace, name),
        }
        key = self._tokens.keys.signing()
        if key is None:
            raise bad_request("the API server has no service account signing key")
        told = datetime.fromtimestamp(now + seconds, UTC)
        spec = {**spec, "audiences": audiences, "boundObjectRef": bound, "expirationSeconds": seconds}
        status = {"token": jwt.sign(key, claims), "expirationTimestamp": told.strftime("%Y-%m-%dT%H:%M:%SZ")}
        metadata = {**(request.get("metadata") or {}), "uid": account["metadata"]["uid"]}
        return {**request, "metadata": metadata, "spec": spec, "status": status}

    def _bind(self, bound: dict[str, Any], namespace: str, account: str) -> dict[str, Any]:
        """The claims for the object that a token is bound to."""
        kind, version = bound.get("kind", ""), bound.get("apiVersion", "")
        resource = {"Pod": "pods", "Secret": "secrets", "Node": "nodes"}.get(kind) if version == "v1" else None
        if resource is None:
            group, _, v = version.rpartition("/")
            raise bad_request(f"cannot bind token to object of type {group}/{v}, Kind={kind}")
        name = bound.get("name", "")
        found = self._api.get("", resource, "" if kind == "Node" else namespace, name)
        if found is None:
            raise not_found("", resource, name)
        uid = found["metadata"]["uid"]
        if kind == "Pod" and (found.get("spec") or {}).get("serviceAccountName", "") != account:
            raise bad_request(
                f'cannot bind token for serviceaccount "{account}" to pod running with different serviceaccount name.'
            )
        if bound.get("uid") and bound["uid"] != uid:
            why = (
                f"the UID in the bound object reference ({bound['uid']}) does not match the UID in record. "
                "The object might have been deleted and then recreated"
            )
            raise conflict("", kind, name, why)
        claims: dict[str, Any] = {kind.lower(): {"name": name, "uid": uid}}
        if kind == "Pod" and (node_name := found["spec"].get("nodeName")):
            node = self._api.get("", "nodes", "", node_name)
            claims["node"] = {"name": node_name} | ({"uid": node["metadata"]["uid"]} if node else {})
        return claims


def _validate(seconds: Any) -> None:
    detail = ""
    if seconds < 600:
        detail = "may not specify a duration less than 10 minutes"
    elif seconds > 1 << 32:
        detail = "may not specify a duration larger than 2^32 seconds"
    if detail:
        cause = Cause("FieldValueInvalid", f"Invalid value: {seconds}: {detail}", "spec.expirationSeconds")
        raise invalid("authentication.k8s.io", "TokenRequest", "", [cause])


def openid_configuration(issuer: str, jwks_uri: str, keys: Sequence[jwt.Key]) -> dict[str, Any]:
    """The discovery document at /.well-known/openid-configuration."""
    return {
        "issuer": issuer,
        "jwks_uri": jwks_uri,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": sorted({k.algorithm for k in keys}),
    }


def key_set(keys: Sequence[jwt.Key]) -> dict[str, Any]:
    """The key set at /openid/v1/jwks."""
    return {"keys": [k.jwk() for k in keys]}
