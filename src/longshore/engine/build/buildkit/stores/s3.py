"""A cache in Amazon S3, or in a store that speaks its protocol. Source: BuildKit cache/remotecache/s3; S3 API reference."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from longshore.engine.build.buildkit.stores import ask
from longshore.engine.build.buildkit.stores.sigv4 import EMPTY, UNSIGNED, Credentials, sign
from longshore.engine.build.settings import duration
from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.images.streams import pieces
from longshore.machinery.http import Client
from longshore.machinery.http.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from longshore.engine.images.packed import Blob
    from longshore.machinery.http import ClientResponse

_TRIES, _WAIT = 3, 0.2
_LIMIT = 64 << 20


def _positive(text: str, name: str) -> int:
    if not text.isdigit() or int(text) <= 0:
        raise InvalidParameter(f"{name} must be a positive integer")
    return int(text)


class S3:
    """A bucket. attributes: as `--cache-to type=s3` has them. Raises InvalidParameter."""

    shown = "Amazon S3"

    def __init__(self, attributes: Mapping[str, str]) -> None:
        def needed(name: str) -> str:
            variable = f"AWS_{name.upper()}"
            value = attributes.get(name) or os.environ.get(variable)
            if not value:
                raise InvalidParameter(f"{name} (${variable}) not set for s3 cache")
            return value

        bucket, self._region = needed("bucket"), needed("region")
        prefix = attributes.get("prefix", "")
        self._blobs = prefix + attributes.get("blobs_prefix", "blobs/")
        self._manifests = prefix + attributes.get("manifests_prefix", "manifests/")
        self._names = attributes.get("name", "buildkit").split(";")
        _positive(attributes.get("upload_parallelism", "4"), "upload_parallelism")
        self._tries = _positive(attributes.get("retry_max_attempts", str(_TRIES)), "retry_max_attempts")
        if attributes.get("retry_mode", "standard") not in ("standard", "adaptive"):
            raise InvalidParameter('retry_mode must be "standard" or "adaptive"')
        try:
            self._refresh = duration(attributes.get("touch_refresh", "24h")) / 10**9
        except ValueError:
            self._refresh = 24 * 3600.0
        key = attributes.get("access_key_id") or os.environ.get("AWS_ACCESS_KEY_ID", "")
        secret = attributes.get("secret_access_key") or os.environ.get("AWS_SECRET_ACCESS_KEY", "")
        token = attributes.get("session_token") or os.environ.get("AWS_SESSION_TOKEN", "")
        self._credentials = Credentials(key, secret, token) if key and secret else None
        endpoint = attributes.get("endpoint_url") or f"https://s3.{self._region}.amazonaws.com"
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidParameter(f"Custom endpoint `{endpoint}` was not a valid URI")
        self._bucket = bucket
        if attributes.get("use_path_style", "") in ("1", "t", "T", "true", "True", "TRUE"):
            self._base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/{quote(bucket)}/"
        else:
            self._base = f"{parts.scheme}://{bucket}.{parts.netloc}{parts.path.rstrip('/')}/"
        self._client = Client()

    async def close(self) -> None:
        await self._client.close()

    # -- blobs and documents ---------------------------------------------------------------------------------------

    async def put(self, blob: Blob) -> bool:
        key = self._blobs + blob.digest
        head = await self._call("HeadObject", "HEAD", key, allowed=(404,))
        if head.status != 404:
            modified = head.headers.get("Last-Modified")
            if modified and time.time() - parsedate_to_datetime(modified).timestamp() > self._refresh:
                await self._touch(key)
            return False
        length = [("Content-Length", str(blob.size))]
        await self._call(
            "PutObject", "PUT", key, length, payload=blob.digest.partition(":")[2], body=lambda: pieces(blob.content())
        )
        return True

    async def _touch(self, key: str) -> None:
        """Make an object's time the present, so that a rule that removes old ones leaves it."""
        source = quote(f"{self._bucket}/{key}")
        headers = [("x-amz-copy-source", source), ("x-amz-metadata-directive", "REPLACE"), ("Content-Length", "0")]
        await self._call("CopyObject", "PUT", key, [*headers, ("x-amz-meta-updated-at", str(int(time.time())))])

    async def blob(self, digest: str, *, offset: int = 0) -> ClientResponse:
        headers = [("Range", f"bytes={offset}-")] if offset else []
        return await self._call("GetObject", "GET", self._blobs + digest, headers, read=False)

    async def save(self, document: bytes) -> None:
        digest, length = hashlib.sha256(document).hexdigest(), [("Content-Length", str(len(document)))]
        for name in self._names:
            await self._call("PutObject", "PUT", self._manifests + name, length, payload=digest, body=lambda: document)

    async def load(self) -> list[bytes]:
        # The first name is the one that is read, as in BuildKit.
        answer = await self._call("GetObject", "GET", self._manifests + self._names[0], allowed=(404,), read=False)
        if answer.status == 404:
            await answer.close()
            return []
        return [await answer.read(_LIMIT)]

    # -- requests --------------------------------------------------------------------------------------------------

    async def _call(
        self,
        operation: str,
        method: str,
        key: str,
        headers: Sequence[tuple[str, str]] = (),
        *,
        payload: str = EMPTY,
        body: Callable[[], bytes | AsyncIterable[bytes]] | None = None,
        allowed: Sequence[int] = (),
        read: bool = True,
    ) -> ClientResponse:
        """A signed request, again where the service asks for it. read: its answer has no body that matters."""
        if self._credentials is None:
            raise SystemFailure(
                f"operation error S3: {operation}, get identity: get credentials: failed to refresh cached credentials, "
                "no EC2 IMDS role found, no credentials for this store"
            )
        url = self._base + quote(key, safe="/-_.~")
        for attempt in range(1, self._tries + 1):
            signed = sign(
                self._credentials, method, url, region=self._region, headers=_signed(headers),
                payload=payload or UNSIGNED,
            )  # fmt: skip
            plain = [field for field in headers if not _is_signed(field[0])]
            try:
                answer = await ask(
                    self._client, method, url, headers=[*plain, *signed], body=body() if body is not None else None
                )
            except SystemFailure as error:
                if attempt == self._tries:
                    text = f"operation error S3: {operation}, exceeded maximum number of attempts, {attempt}, "
                    raise SystemFailure(f"{text}https response error StatusCode: 0, {error.message}") from None
                await asyncio.sleep(_WAIT * 2**attempt)
                continue
            if answer.status < 300 or answer.status in allowed:
                if read:
                    await answer.read(_LIMIT)
                return answer
            failure = await _failure(operation, answer)
            if answer.status < 500 and answer.status != 429:
                raise failure
            if attempt == self._tries:
                raise failure
            await asyncio.sleep(_WAIT * 2**attempt)
        raise AssertionError("no attempt was made")


def _is_signed(name: str) -> bool:
    return name.lower().startswith("x-amz-")


def _signed(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [field for field in headers if _is_signed(field[0])]


async def _failure(operation: str, answer: ClientResponse) -> SystemFailure:
    """A refusal in the words of Amazon's Go library."""
    try:
        text = (await answer.read(1 << 16)).decode("utf-8", "replace")
    except (ClientError, TimeoutError):
        text = ""
    found = {name: re.search(f"<{name}>(.*?)</{name}>", text, re.DOTALL) for name in ("Code", "Message", "RequestId")}
    code, message, request = ((item[1] if (item := found[name]) else "") for name in found)
    return SystemFailure(
        f"operation error S3: {operation}, https response error StatusCode: {answer.status}, "
        f"RequestID: {request}, HostID: {answer.headers.get('x-amz-id-2') or ''}, "
        f"api error {code or answer.reason}: {message or answer.reason}"
    )
