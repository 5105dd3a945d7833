"""A cache in GitHub Actions' cache service, in its first and its second version.

Source: BuildKit cache/remotecache/gha, tonistiigi/go-actions-cache (api.md); Azure's Put Blob, Put Block List.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import orjson

from longshore.engine.build.buildkit.stores import ask
from longshore.engine.build.settings import duration
from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.images.model import ENGINE_VERSION
from longshore.engine.images.streams import pieces
from longshore.machinery.http import Client
from longshore.machinery.http.errors import ClientError

if TYPE_CHECKING:
    from longshore.engine.images.packed import Blob
    from longshore.machinery.http import ClientResponse

_LIMIT = 64 << 20
_CHUNK = 32 << 20
_BLOB, _INDEX_VERSION = "buildkit-blob-1-", "1"
# What the service tells entries of other programs apart by.
_VERSION = hashlib.sha256(b"|go-actionscache-1.0").hexdigest()
_WRITE = 2
_BLOCKED, _PAUSE = 15.0, 2.0
_SERVICE = "/twirp/github.actions.results.api.v1.CacheService/"


class _Exists(Exception):
    """The key is another's already."""


class Gha:
    """The cache of a repository. attributes: as `--cache-to type=gha` has them. Raises InvalidParameter."""

    shown = "GitHub Actions Cache"

    def __init__(self, attributes: Mapping[str, str]) -> None:
        self._scope = attributes.get("scope", "buildkit")
        token = attributes.get("token")
        if token is None:
            raise InvalidParameter("token not set for github actions cache")
        number = attributes.get("version", "0")
        if not number.isdigit():
            raise InvalidParameter(
                f'failed to parse api version "{number}", expected positive integer: strconv.ParseInt: parsing '
                f'"{number}": invalid syntax'
            )
        url = attributes.get("url_v2", "") if number != "1" else ""
        self._second = bool(url) or int(number) > 1
        url = url or attributes.get("url", "")
        if not url:
            raise InvalidParameter("url not set for github actions cache")
        if number == "0" and "results-receiver.actions.githubusercontent.com" in url:
            self._second = True
        self._url = url
        try:
            self._timeout = duration(attributes.get("timeout", "10m")) / 10**9
        except ValueError as error:
            raise InvalidParameter(f"failed to parse timeout for github actions cache: {error}") from None
        self._scopes = _scopes(token)
        agent = ("User-Agent", f"buildkit/v{ENGINE_VERSION}")
        accept = ("Accept", "application/json;api-version=6.0-preview.1")
        self._headers = [("Authorization", f"Bearer {token}"), agent, *([] if self._second else [accept])]
        self._client = Client()

    async def close(self) -> None:
        await self._client.close()

    # -- blobs and documents ---------------------------------------------------------------------------------------

    async def put(self, blob: Blob) -> bool:
        key = _BLOB + blob.digest
        if await self._find(key) is not None:
            return False
        try:
            place = await self._reserve(key)
        except _Exists:
            return False
        await self._upload(place, blob.size, lambda: blob.content())
        await self._commit(key, place, blob.size)
        return True

    async def blob(self, digest: str, *, offset: int = 0) -> ClientResponse:
        found = await self._find(_BLOB + digest)
        if found is None:
            raise SystemFailure(f"blob {digest} not found")
        answer = await ask(self._client, "GET", found[1], headers=[("Range", f"bytes={offset}-")] if offset else [])
        if answer.status >= 300:
            raise SystemFailure(await _said("GET", answer))
        return answer

    async def save(self, document: bytes) -> None:
        """A key is written once: a document is the entry with the highest number behind the key."""
        writable = [scope["Scope"] for scope in self._scopes if int(scope.get("Permission") or 0) & _WRITE]
        key = self._index(writable[-1] if writable else "") + "#"
        blocked = 0.0
        while True:
            found = await self._find(key)
            number = 0
            if found is not None:
                tail = found[0].removeprefix(key)
                if not tail.isdigit():
                    raise SystemFailure(f"failed to parse {key[:-1]} index")
                number = int(tail)
            number += 1
            try:
                place = await self._reserve(f"{key}{number}")
            except _Exists:
                # Somebody writes it now, or died of it.
                if blocked < _BLOCKED:
                    blocked += _PAUSE
                    await asyncio.sleep(_PAUSE)
                    continue
                try:
                    number += 1
                    place = await self._reserve(f"{key}{number}")
                except _Exists:
                    raise SystemFailure(f"cache key {key}{number} is locked") from None
            await self._upload(place, len(document), lambda: iter((document,)))
            await self._commit(f"{key}{number}", place, len(document))
            return

    async def load(self) -> list[bytes]:
        found: list[bytes] = []
        for scope in self._scopes:
            entry = await self._find(self._index(str(scope.get("Scope") or "")))
            if entry is not None:
                answer = await ask(self._client, "GET", entry[1])
                if answer.status < 300:
                    found.append(await answer.read(_LIMIT))
        return found

    def _index(self, scope: str) -> str:
        return f"index-{self._scope}-{_INDEX_VERSION}-{hashlib.sha256(scope.encode()).hexdigest()[:8]}"

    # -- the service -----------------------------------------------------------------------------------------------

    async def _find(self, key: str) -> tuple[str, str] | None:
        """(key, address) of the newest entry whose key begins so."""
        if self._second:
            told = await self._twirp("GetCacheEntryDownloadURL", key=key, restore_keys=[key])
            return (str(told.get("matched_key")), str(told.get("signed_download_url"))) if told.get("ok") else None
        query = urlencode({"keys": key, "version": _VERSION})
        told = await self._first("GET", f"cache?{query}")
        return (str(told["cacheKey"]), str(told["archiveLocation"])) if told.get("cacheKey") else None

    async def _reserve(self, key: str) -> str:
        """Where a new entry is to be put. Raises _Exists."""
        if self._second:
            told = await self._twirp("CreateCacheEntry", key=key)
            if not told.get("ok"):
                raise SystemFailure("failed to reserve cache")
            return str(told.get("signed_upload_url"))
        told = await self._first("POST", "caches", {"key": key, "version": _VERSION})
        if not told.get("cacheId"):
            raise SystemFailure(f"invalid response {orjson.dumps(told).decode()}")
        return str(told["cacheId"])

    async def _commit(self, key: str, place: str, size: int) -> None:
        if self._second:
            told = await self._twirp("FinalizeCacheEntryUpload", key=key, size_bytes=size)
            if not told.get("ok"):
                raise SystemFailure("failed to commit cache")
            return
        await self._first("POST", f"caches/{place}", {"size": size})

    async def _upload(self, place: str, size: int, content: Any) -> None:
        source = _Chunks(content())
        if self._second and size <= _CHUNK:
            await self._send("PUT", place, source.take(size), size, [("x-ms-blob-type", "BlockBlob")])
            return
        blocks: list[str] = []
        for start in range(0, size, _CHUNK):
            length = min(_CHUNK, size - start)
            if not self._second:
                fields = [("Content-Range", f"bytes {start}-{start + length - 1}/*"), *self._headers]
                url = f"{self._url.rstrip('/')}/_apis/artifactcache/caches/{place}"
                await self._send("PATCH", url, source.take(length), length, fields)
                continue
            blocks.append(base64.b64encode(f"{len(blocks):032d}".encode()).decode())
            url = f"{place}&{urlencode({'comp': 'block', 'blockid': blocks[-1]})}"
            await self._send("PUT", url, source.take(length), length)
        if self._second:
            listed = "".join(f"<Latest>{block}</Latest>" for block in blocks)
            body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
            await self._send("PUT", f"{place}&comp=blocklist", _once(body), len(body))

    async def _send(
        self, method: str, url: str, body: AsyncIterator[bytes], size: int, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        kind = [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))]
        answer = await ask(self._client, method, url, headers=[*headers, *kind], body=body)
        if answer.status >= 300:
            raise SystemFailure(f"error writing layer blob: {await _said(method, answer)}")
        await answer.read(_LIMIT)

    async def _twirp(self, name: str, **fields: Any) -> dict[str, Any]:
        url = self._url.rstrip("/") + _SERVICE + name
        return await self._json("POST", url, {**fields, "version": _VERSION})

    async def _first(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return await self._json(method, f"{self._url.rstrip('/')}/_apis/artifactcache/{path}", body)

    async def _json(self, method: str, url: str, body: Any) -> dict[str, Any]:
        """A call; it is repeated while the service asks for patience. Raises _Exists, SystemFailure."""
        data = orjson.dumps(body) if body is not None else None
        headers = [*self._headers, *([("Content-Type", "application/json")] if data is not None else [])]
        end = time.monotonic() + self._timeout
        while True:
            answer = await ask(self._client, method, url, headers=headers, body=data, timeout=self._timeout)
            wait = answer.headers.get("Retry-After") or "1"
            if answer.status != 429 or time.monotonic() + float(wait if wait.isdigit() else 1) > end:
                break
            await answer.read(_LIMIT)
            await asyncio.sleep(float(wait if wait.isdigit() else 1))
        if answer.status == 409:
            await answer.read(_LIMIT)
            raise _Exists
        if answer.status == 404 and self._second:
            await answer.read(_LIMIT)
            return {}
        if answer.status >= 300:
            raise SystemFailure(await _said(method, answer))
        try:
            told = orjson.loads(await answer.read(1 << 16) or b"{}")
        except (ClientError, TimeoutError, ValueError) as error:
            raise SystemFailure(f"invalid response of the cache service: {error}") from None
        return told if isinstance(told, dict) else {}


class _Chunks:
    """One stream of bytes handed out in parts of known length."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = pieces(source)
        self._rest = b""

    async def take(self, size: int) -> AsyncIterator[bytes]:
        while size:
            data = self._rest or await anext(self._source, b"")
            if not data:
                return
            part, self._rest = data[:size], data[size:]
            size -= len(part)
            yield part


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _scopes(token: str) -> list[dict[str, Any]]:
    """The scopes that a token gives access to. Its signature is the service's to check. Raises InvalidParameter."""
    parts = token.split(".")
    if len(parts) != 3:
        raise InvalidParameter("token is malformed: token contains an invalid number of segments")
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        if "ac" not in claims:
            raise InvalidParameter("invalid token without access controls")
        if "exp" not in claims or "nbf" not in claims:
            raise InvalidParameter("invalid token without expiration time")
        if float(claims["exp"]) < time.time():
            raise InvalidParameter(f"cache token expired at {time.strftime('%F %T', time.gmtime(claims['exp']))}")
        scopes = orjson.loads(claims["ac"])
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidParameter(f"failed to parse token access controls: {error}") from None
    return [scope for scope in scopes if isinstance(scope, dict)]


async def _said(method: str, answer: ClientResponse) -> str:
    """Why the service refused."""
    try:
        text = (await answer.read(1 << 14)).decode("utf-8", "replace").strip()
    except (ClientError, TimeoutError):
        text = ""
    try:
        told = orjson.loads(text)
        text = str(told.get("message") or told.get("msg") or text)
    except (ValueError, AttributeError):
        pass
    return f"{method}: {text or answer.reason} (status {answer.status})"
