"""Users by an OpenID Connect provider's ID tokens.

Source: k8s.io/apiserver/plugin/pkg/authenticator/token/oidc; OpenID Connect Discovery 1.0.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from longshore.machinery.http import Client, client_context
from longshore.master.apiserver.context import UserInfo

from . import jwt
from .authentication import Authenticated
from .jwt import TokenError
from .users import quoted, quoted_list

log = logging.getLogger("longshore.apiserver.auth")
_MAX_DOCUMENT = 1 << 20
_REFETCH = 30.0  # seconds between two looks for a key that is not there
ALGORITHMS = frozenset(("RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"))


class OIDC:
    """ID tokens of one issuer.

    username_prefix: "" for the default (the issuer and "#", none for the claim email), "-" for none.
    required_claims: claims that must have exactly these values. ca_file, ca_data: what the provider is checked against.
    audiences: accepted besides client_id. discovery_url: of the provider's document, where it is not the issuer's.
    mapping: makes the user instead of the claims named here; TokenError.
    """

    def __init__(
        self,
        issuer_url: str,
        client_id: str,
        *,
        username_claim: str = "sub",
        username_prefix: str = "",
        groups_claim: str = "",
        groups_prefix: str = "",
        required_claims: Mapping[str, str] | None = None,
        signing_algorithms: Sequence[str] = ("RS256",),
        ca_file: Path | None = None,
        ca_data: str | None = None,
        audiences: Sequence[str] = (),
        discovery_url: str = "",
        mapping: Callable[[dict[str, Any]], UserInfo] | None = None,
    ) -> None:
        if not issuer_url.startswith("https://"):
            raise ValueError(f"'oidc-issuer-url' ({quoted(issuer_url)}) has invalid scheme, require 'https'")
        unknown = [a for a in signing_algorithms if a not in ALGORITHMS]
        if unknown:
            raise ValueError(f"oidc: unsupported signing alg: {quoted(unknown[0])}")
        self._issuer = issuer_url
        self._audiences = [a for a in (client_id, *audiences) if a]
        self._place = discovery_url or issuer_url.rstrip("/") + "/.well-known/openid-configuration"
        self._mapping = mapping
        self._username = username_claim
        if username_prefix == "-":
            self._prefix = ""
        elif not username_prefix and username_claim != "email":
            self._prefix = issuer_url + "#"
        else:
            self._prefix = username_prefix
        self._groups, self._groups_prefix = groups_claim, groups_prefix
        self._required = dict(required_claims or {})
        self._algorithms = frozenset(signing_algorithms)
        self._ca, self._ca_data = ca_file, ca_data
        self._keys: dict[str, Any] = {}
        self._fetched = -_REFETCH
        self._lock = asyncio.Lock()

    async def authenticate_token(self, token: str, audiences: Sequence[str]) -> Authenticated | None:
        found = jwt.peek(token)
        if found is None or found[1].get("iss") != self._issuer:
            return None
        header, claims = found
        await self._check_signature(token, header)
        held = jwt.audiences(claims)
        if not any(a in held for a in self._audiences):
            wanted = quoted(self._audiences[0]) if len(self._audiences) == 1 else quoted_list(self._audiences)
            raise TokenError(f"oidc: verify token: oidc: expected audience {wanted} got {quoted_list(held)}")
        now = time.time()
        if not isinstance(claims.get("exp"), int | float) or now > claims["exp"]:
            raise TokenError("oidc: verify token: oidc: token is expired")
        if isinstance(claims.get("nbf"), int | float) and now + 300 < claims["nbf"]:
            raise TokenError("oidc: verify token: oidc: current time is before the nbf (not before) time")
        return Authenticated((self._mapping or self._user)(claims), list(audiences))

    def _user(self, claims: dict[str, Any]) -> UserInfo:
        name = claims.get(self._username)
        if not isinstance(name, str) or not name:
            raise TokenError(f"oidc: parse username claims {quoted(self._username)}: claim not present")
        if self._username == "email" and claims.get("email_verified", True) is not True:
            raise TokenError("oidc: email not verified")
        for claim, wanted in self._required.items():
            if claims.get(claim) != wanted:
                raise TokenError(f"oidc: required claim {claim} not present in ID token or has another value")
        groups: list[str] = []
        if self._groups:
            value = claims.get(self._groups, [])
            listed = [value] if isinstance(value, str) else value
            if not isinstance(listed, list) or not all(isinstance(g, str) for g in listed):
                raise TokenError(f"oidc: parse groups claim {quoted(self._groups)}: not a list of strings")
            groups = [self._groups_prefix + g for g in listed]
        return UserInfo(self._prefix + name, groups=tuple(groups))

    async def _check_signature(self, token: str, header: dict[str, Any]) -> None:
        import jwt as pyjwt

        algorithm = header.get("alg")
        if algorithm not in self._algorithms:
            raise TokenError(f"oidc: verify token: oidc: id token signed with unsupported algorithm, got {algorithm!r}")
        id = str(header.get("kid") or "")
        if id not in self._keys:
            await self._fetch(id)
        candidates = [self._keys[id]] if id in self._keys else list(self._keys.values()) if not id else []
        for key in candidates:
            try:
                pyjwt.api_jws.PyJWS().decode(token, key, algorithms=[str(algorithm)])
                return
            except pyjwt.exceptions.PyJWTError:
                continue
        raise TokenError("oidc: verify token: failed to verify signature: failed to verify id token signature")

    async def _fetch(self, wanted: str) -> None:
        """Reads the provider's keys; at most twice a minute, so that wrong tokens do not make us hammer it."""
        import jwt as pyjwt

        async with self._lock:
            now = time.monotonic()
            if wanted in self._keys or now - self._fetched < _REFETCH:
                return
            self._fetched = now
            try:
                async with Client(ssl=client_context(ca=self._ca, ca_data=self._ca_data)) as client:
                    document = await _document(client, self._place)
                    if document.get("issuer") != self._issuer:
                        raise ValueError(
                            f"issuer did not match the issuer returned by provider, got {document.get('issuer')!r}"
                        )
                    keys = (await _document(client, str(document["jwks_uri"]))).get("keys")
            except (OSError, ValueError, KeyError, TimeoutError) as error:
                self._fetched = now - _REFETCH + 5.0
                raise TokenError(f"oidc: authenticator not initialized: {error}") from error
            found: dict[str, Any] = {}
            for n, key in enumerate(keys if isinstance(keys, list) else ()):
                try:
                    found[str(key.get("kid") or n)] = pyjwt.PyJWK(key).key
                except (pyjwt.exceptions.PyJWTError, AttributeError):
                    continue
            self._keys = found


async def _document(client: Client, url: str) -> dict[str, Any]:
    response = await client.request("GET", url, headers=[("Accept", "application/json")], timeout=10.0)
    body = await response.read(_MAX_DOCUMENT)
    if response.status != 200:
        raise ValueError(f"{url}: status {response.status}")
    found = orjson.loads(body)
    if not isinstance(found, dict):
        raise ValueError(f"{url}: not an object")
    return found
