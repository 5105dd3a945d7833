"""A registry behind this one: what is not here is fetched there, handed on and kept (pull-through mirror).

Source: distribution-spec; Docker's token authentication (distribution docs/spec/auth).
"""

from __future__ import annotations

import base64
import re
import ssl
import time
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import orjson

from longshore.machinery.http import Client, ClientResponse
from longshore.machinery.http.errors import ClientError
from longshore.registry import manifests
from longshore.registry.errors import RegistryError

_LIMIT = 4 << 20
_REDIRECTS = 5
_PARAMETER = re.compile(r'([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')


class Upstream:
    """The registry at `url` ("https://registry-1.docker.io"), with credentials where it wants some.

    tls: the context for https (None: the system's authorities).
    """

    def __init__(self, url: str, *, username: str = "", password: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.url = url.rstrip("/")
        self._basic = "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode() if username else ""
        self._tls = tls
        self._clients: dict[str, Client] = {}
        self._tokens: dict[str, tuple[str, float]] = {}

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    def _client(self, url: str) -> Client:
        host = urlsplit(url).netloc
        if host not in self._clients:
            self._clients[host] = Client(
                ssl=self._tls, headers=(("User-Agent", "longshore-registry"),), connect_timeout=10
            )
        return self._clients[host]

    async def get(self, name: str, rest: str, *, method: str = "GET", timeout: float | None = None) -> ClientResponse:
        """Ask for /v2/NAME/REST; the answer with status 200. Raises RegistryError: the upstream's own, or UNAVAILABLE."""
        url = f"{self.url}/v2/{name}/{rest}"
        home = urlsplit(url).netloc
        scope = f"repository:{name}:pull"
        held = self._tokens.get(scope)
        authorization = held[0] if held and held[1] > time.monotonic() else ""
        asked = False
        try:
            for _ in range(_REDIRECTS):
                headers = [("Accept", ", ".join(manifests.KNOWN))]
                # A redirect leads to a store of blobs, which gets no credentials.
                if authorization and urlsplit(url).netloc == home:
                    headers.append(("Authorization", authorization))
                response = await self._client(url).request(method, url, headers=headers, timeout=timeout)
                if response.status == 200:
                    return response
                if response.status in (301, 302, 303, 307, 308):
                    url = urljoin(url, response.headers.get("Location") or "")
                    await response.close()
                    continue
                challenge = response.headers.get("WWW-Authenticate") or ""
                if response.status == 401 and challenge and not asked:
                    asked = True
                    await response.close()
                    authorization = await self._authorize(challenge, scope)
                    if authorization:
                        continue
                body = await response.read(_LIMIT) if method != "HEAD" else b""
                raise _error(response.status, body)
        except (ClientError, TimeoutError) as error:
            raise RegistryError("UNAVAILABLE", f"{self.url}: {error}") from None
        raise RegistryError("UNAVAILABLE", f"{self.url}: too many redirects")

    async def _authorize(self, challenge: str, scope: str) -> str:
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            return self._basic
        found = {key.lower(): quoted or plain for key, quoted, plain in _PARAMETER.findall(rest)}
        if scheme.lower() != "bearer" or not found.get("realm"):
            return ""
        realm = found["realm"]
        query = urlencode([("scope", scope), *([("service", found["service"])] if found.get("service") else [])])
        headers = [("Authorization", self._basic)] if self._basic else []
        url = f"{realm}{'&' if '?' in realm else '?'}{query}"
        response = await self._client(url).request("GET", url, headers=headers, timeout=30)
        body = await response.read(_LIMIT)
        if response.status != 200:
            raise _error(response.status, body)
        answer: dict[str, Any] = orjson.loads(body)
        token = "Bearer " + str(answer.get("token") or answer.get("access_token") or "")
        life = float(answer.get("expires_in") or 60)
        self._tokens[scope] = (token, time.monotonic() + life * 0.9)
        return token


def _error(status: int, body: bytes) -> RegistryError:
    """The upstream's refusal as ours."""
    try:
        first = orjson.loads(body)["errors"][0]
        code, detail = str(first["code"]), first.get("detail")
        return RegistryError(code, detail, status=status)
    except (ValueError, KeyError, IndexError, TypeError):
        pass
    if status == 404:
        return RegistryError("MANIFEST_UNKNOWN")
    if status in (401, 403):
        return RegistryError("DENIED", status=status)
    if status == 429:
        return RegistryError("TOOMANYREQUESTS")
    return RegistryError("UNAVAILABLE", f"upstream answered {status}")
