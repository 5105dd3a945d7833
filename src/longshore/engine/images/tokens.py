"""Bearer tokens from a registry's token server, and the name by which we ask.

Source: distribution docs/spec/auth/token.md and oauth.md; registry/client/auth/session.go.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import orjson

from longshore.engine.errors import SystemFailure, Unauthorized
from longshore.engine.images.refusals import refusal

if TYPE_CHECKING:
    from longshore.machinery.http import ClientResponse

Send = Callable[[str, str, list[tuple[str, str]], bytes | None], Awaitable[tuple["ClientResponse", bytes]]]

_AGENT = "docker/28.5.2 longshore"
_CLIENT_ID = "docker"
#: Seconds that a token holds where the server does not say, and at least.
_LEAST_LIFE = 60.0

#: The User-Agent of the client on whose behalf a registry is asked; "" where there is none.
CLIENT: ContextVar[str] = ContextVar("client", default="")


def user_agent() -> tuple[str, str]:
    """The header field that tells a registry who asks, and for whom. Source: moby dockerversion.DockerUserAgent."""
    client = CLIENT.get()
    if not client:
        return ("User-Agent", _AGENT)
    escaped = "".join(f"\\{character}" if character in "();\\" else character for character in client)
    return ("User-Agent", f"{_AGENT} UpstreamClient({escaped})")


class Tokens:
    """The tokens of one repository ("" for a login), each kept until it ends.

    auth: username, password, identitytoken, registrytoken. actions: "pull" or "pull,push". identity: the refresh token that
    the server gave, "" for none; offline: ask for one.
    """

    def __init__(self, auth: dict[str, str], path: str, actions: str, send: Send) -> None:
        self._auth, self._path, self._actions, self._send = auth, path, actions, send
        self._held: dict[str, tuple[str, float]] = {}
        self._others: list[str] = []
        self.identity = ""
        self.offline = False

    def clear(self) -> None:
        """Those that are held are of no use any more."""
        self._held.clear()

    def also_pull(self, path: str) -> None:
        """Ask for read access to another repository too (to mount a blob from it)."""
        scope = f"repository:{path}:pull"
        if scope not in self._others:
            self._others.append(scope)

    async def get(self, parameters: dict[str, str]) -> str:
        """A token. parameters: of the registry's challenge. Raises RegistryError, SystemFailure, Unauthorized."""
        if self._auth.get("registrytoken"):
            return self._auth["registrytoken"]
        scopes = [f"repository:{self._path}:{self._actions}", *self._others] if self._path else []
        key = " ".join(scopes)
        held = self._held.get(key)
        if held and held[1] > time.monotonic():
            return held[0]
        realm = parameters.get("realm", "")
        if not realm:
            raise Unauthorized("no realm in the registry's token challenge")
        ask = self._by_refresh_token if self._auth.get("identitytoken") else self._by_password
        response, body = await ask(realm, parameters.get("service", ""), scopes)
        if response.status != 200:
            raise refusal(response, body)
        text, life = self._read(body)
        # A token that ends while it is on its way helps nobody.
        self._held[key] = (text, time.monotonic() + max(life, _LEAST_LIFE) * 0.9)
        return text

    async def _by_refresh_token(self, realm: str, service: str, scopes: list[str]) -> tuple[ClientResponse, bytes]:
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": _CLIENT_ID,
            "refresh_token": self._auth["identitytoken"],
            "scope": " ".join(scopes),
        }
        headers = [("Content-Type", "application/x-www-form-urlencoded")]
        return await self._send("POST", realm, headers, urlencode(form).encode())

    async def _by_password(self, realm: str, service: str, scopes: list[str]) -> tuple[ClientResponse, bytes]:
        query: list[tuple[str, str]] = [("scope", scope) for scope in scopes]
        headers: list[tuple[str, str]] = []
        if service:
            query.append(("service", service))
        if self.offline:
            query += [("offline_token", "true"), ("client_id", _CLIENT_ID)]
        if self._auth.get("username"):
            query.insert(0, ("account", self._auth["username"]))
            pair = f"{self._auth['username']}:{self._auth.get('password', '')}"
            headers.append(("Authorization", "Basic " + base64.b64encode(pair.encode()).decode()))
        return await self._send("GET", realm + ("&" if "?" in realm else "?") + urlencode(query), headers, None)

    def _read(self, body: bytes) -> tuple[str, float]:
        """The token in a server's answer, and the seconds that it holds."""
        try:
            answer: Any = orjson.loads(body)
            text = answer.get("access_token") or answer.get("token") or ""
            life = float(answer.get("expires_in") or 0)
            refresh = answer.get("refresh_token") or ""
        except (ValueError, AttributeError, TypeError):
            from longshore.engine.containers import gojson

            raise SystemFailure(
                f"unable to decode token response: {gojson.explain(body.decode('utf-8', 'replace'))}"
            ) from None
        if not text:
            raise SystemFailure("authorization server did not include a token in the response")
        if refresh:
            # Some servers give a new one for each use.
            self.identity = str(refresh)
            if self._auth.get("identitytoken"):
                self._auth["identitytoken"] = self.identity
        return str(text), life
