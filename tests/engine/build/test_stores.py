"""Caches in S3 and in GitHub Actions' cache: against small servers of their protocols, and moto's where MOTO_SERVER names it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest

from longshore.engine.build.buildkit.schemas import control
from longshore.engine.build.buildkit.stores import gha, open_store
from longshore.engine.build.buildkit.stores.sigv4 import Credentials, sign
from longshore.engine.errors import EngineError
from longshore.engine.images.packed import Blob
from longshore.machinery.grpc import RpcError
from longshore.machinery.http import Request, Response, Server

from .kit import Kit

QUIET = {"force-network-mode": "none"}
TEXT = "FROM busybox AS a\nRUN echo one > /one\nFROM a\nRUN cat /one > /two\nCOPY Dockerfile /d\n"
KEYS = {"access_key_id": "AKID", "secret_access_key": "secret"}


class Bucket:
    """What of S3 a cache needs; every request must be signed rightly."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.asked: list[str] = []
        self.failing = 0

    async def __call__(self, request: Request) -> Response:
        self.asked.append(f"{request.method} {request.path.rpartition('/')[2][:12]}")
        body = await request.read(1 << 26)
        if self.failing:
            self.failing -= 1
            return Response(503, b"<Error><Code>SlowDown</Code><Message>Reduce</Message></Error>")
        fields = {name.lower(): value for name, value in request.headers.items()}
        moment = datetime.strptime(fields["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        names = [n for n in fields if n.startswith("x-amz-") and n not in ("x-amz-date", "x-amz-content-sha256")]
        again = sign(
            Credentials("AKID", "secret"), request.method, f"http://{fields['host']}{request.target}", region="r",
            headers=[(n, fields[n]) for n in names], payload=fields["x-amz-content-sha256"], now=moment,
        )  # fmt: skip
        if fields["authorization"] != dict(again)["Authorization"]:
            return Response(403, b"<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>")
        assert "x-amz-copy-source" in fields or hashlib.sha256(body).hexdigest() == fields["x-amz-content-sha256"]
        if request.method == "PUT":
            data = self.objects[request.path][0] if "x-amz-copy-source" in fields else body
            self.objects[request.path] = (data, time.time())
            return Response(200)
        if request.path not in self.objects:
            return Response(404, b"<Error><Code>NoSuchKey</Code></Error>")
        data, when = self.objects[request.path]
        modified = datetime.fromtimestamp(when, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        found = re.fullmatch(r"bytes=(\d+)-", fields.get("range", ""))
        shown = b"" if request.method == "HEAD" else data[int(found[1]) :] if found else data
        return Response(206 if found else 200, shown, [("Last-Modified", modified)])


class Actions:
    """The cache service of GitHub Actions, both versions, and the blob store behind the second."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.pending: dict[str, bytearray] = {}
        self.blocks: dict[str, bytes] = {}
        self.base = ""
        self.patience = 1

    async def __call__(self, request: Request) -> Response:
        body = await request.read(1 << 26)
        if request.path.startswith("/blob/"):
            return self._blob(request, body)
        assert (request.headers.get("Authorization") or "").startswith("Bearer ")
        if self.patience:
            self.patience -= 1
            return Response(429, b"", [("Retry-After", "0")])
        told = json.loads(body) if body and request.method == "POST" else {}
        call = request.path.rpartition("/")[2]
        if "/twirp/" in request.path:
            return self._twirp(call, told)
        if request.method == "GET":
            key = self._newest(request.param("keys"))
            location = f"{self.base}/blob/{quote(key)}"
            return json_of({"cacheKey": key, "archiveLocation": location}) if key else Response(204)
        if request.method == "PATCH":
            start = int(re.findall(r"bytes (\d+)-", request.headers.get("Content-Range") or "")[0])
            pending = self.pending[call]
            assert len(pending) == start
            pending += body
            return Response(204)
        if call == "caches":
            if self._taken(told["key"]):
                return Response(409, json.dumps({"typeKey": "ArtifactCacheItemAlreadyExistsException"}).encode())
            self.pending[str(len(self.pending) + 1)] = bytearray()
            self.keys = {**getattr(self, "keys", {}), str(len(self.pending)): told["key"]}
            return json_of({"cacheId": len(self.pending)})
        assert told["size"] == len(self.pending[call])
        self.entries[self.keys[call]] = bytes(self.pending[call])
        return json_of({})

    def _taken(self, key: str) -> bool:
        return key in self.entries

    def _newest(self, prefix: str) -> str:
        return next((key for key in reversed(self.entries) if key.startswith(prefix)), "")

    def _twirp(self, call: str, told: dict[str, Any]) -> Response:
        assert len(told["version"]) == 64
        if call == "CreateCacheEntry":
            if self._taken(told["key"]):
                return Response(409, json.dumps({"code": "already_exists"}).encode())
            return json_of({"ok": True, "signed_upload_url": f"{self.base}/blob/{quote(told['key'])}?sig=1"})
        if call == "FinalizeCacheEntryUpload":
            assert len(self.pending[told["key"]]) == int(told["size_bytes"])
            self.entries[told["key"]] = bytes(self.pending[told["key"]])
            return json_of({"ok": True, "entry_id": "1"})
        key = self._newest(told["key"])
        url = f"{self.base}/blob/{quote(key)}?sig=1"
        return json_of({"ok": True, "matched_key": key, "signed_download_url": url} if key else {"ok": False})

    def _blob(self, request: Request, body: bytes) -> Response:
        key = request.path.removeprefix("/blob/")
        if request.method == "PUT":
            if request.param("comp") == "block":
                self.blocks[request.param("blockid")] = body
            elif request.param("comp") == "blocklist":
                names = re.findall("<Latest>(.*?)</Latest>", body.decode())
                self.pending[key] = bytearray(b"".join(self.blocks[name] for name in names))
            else:
                assert request.headers.get("x-ms-blob-type") == "BlockBlob"
                self.pending[key] = bytearray(body)
            return Response(201)
        found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        return Response(206, self.entries[key][int(found[1]) :]) if found else Response(200, self.entries[key])


def json_of(value: Any) -> Response:
    return Response(200, json.dumps(value).encode(), content_type="application/json")


def token(**claims: Any) -> str:
    scopes = [{"Scope": "refs/heads/feature", "Permission": 3}, {"Scope": "refs/heads/main", "Permission": 1}]
    body = {"ac": json.dumps(scopes), "exp": time.time() + 600, "nbf": time.time() - 5, **claims}
    packed = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in ({}, body)]
    return ".".join([*packed, "sig"])


async def moto() -> tuple[str, Any]:
    """A bucket of moto's; its address and the process."""
    program = os.environ.get("MOTO_SERVER")
    if not program:
        pytest.skip("MOTO_SERVER names no moto server")
    process = await asyncio.create_subprocess_exec(
        program, "-H", "127.0.0.1", "-p", "5577", stderr=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
    )
    from longshore.machinery.http import Client
    from longshore.machinery.http.errors import ClientError

    url = "http://127.0.0.1:5577/cache"
    async with Client() as client:
        for _ in range(200):
            try:
                answer = await client.request(
                    "PUT", url, headers=[*sign(Credentials("AKID", "secret"), "PUT", url, region="us-east-1"), ("Content-Length", "0")]
                )  # fmt: skip
                assert answer.status == 200
                break
            except ClientError:
                await asyncio.sleep(0.1)
    return "http://127.0.0.1:5577", process


@pytest.fixture
async def place(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, dict[str, str], Any]]:
    """(kind, attributes, what stands behind it)."""
    if request.param == "moto":
        url, process = await moto()
        settings = {**KEYS, "bucket": "cache", "region": "us-east-1", "endpoint_url": url, "use_path_style": "true"}
        yield "s3", settings, None
        process.kill()
        await process.wait()
        return
    behind: Any = Bucket() if request.param == "s3" else Actions()
    server = Server(behind)
    url = f"http://127.0.0.1:{await server.listen_tcp('127.0.0.1', 0)}"
    behind.base = url
    if request.param == "s3":
        settings = {**KEYS, "bucket": "b", "region": "r", "endpoint_url": url, "use_path_style": "true", "prefix": "p/"}
        yield "s3", settings, behind
    else:
        yield "gha", {"token": token(), "url_v2" if request.param == "gha2" else "url": f"{url}/"}, behind
    await server.close()


@pytest.mark.root
@pytest.mark.parametrize("place", ["s3", "gha1", "gha2", "moto"], indirect=True)
async def test_steps_come_from_a_store(kit: Kit, place: tuple[str, dict[str, str], Any]) -> None:
    kind, attributes, behind = place
    kit.cache_to = [control.CacheOptionsEntry(Type=kind, Attrs={**attributes, "mode": "max"})]
    await kit.build(TEXT, name="first", **QUIET)
    first = kit.store.resolve("first")
    # Again: what is there stays, the document is written anew.
    await kit.build(TEXT, name="first", **QUIET)
    if isinstance(behind, Bucket):
        assert [path for path in behind.objects if "manifests" in path] == ["/b/p/manifests/buildkit"]
        assert len(behind.objects) == len({path for path in behind.objects if "blobs/sha256:" in path}) + 1
    elif behind is not None:
        shown = sorted(key.partition("-")[2] for key in behind.entries if key.startswith("index-"))
        assert [key.rpartition("#")[2] for key in shown] == ["1", "2"]
    kit.cache_to = []
    await kit.store.remove("first", force=True)
    async for _ in kit.client.stream("Prune", all=True):
        pass
    kit.cache_from = [control.CacheOptionsEntry(Type=kind, Attrs=attributes)]
    await kit.build(TEXT, name="again", **QUIET)
    assert [name for name in kit.names if "RUN" in name and not name.endswith("*")] == []
    assert kit.store.resolve("again").id == first.id


@pytest.mark.root
@pytest.mark.parametrize("place", ["s3"], indirect=True)
async def test_a_store_that_refuses(kit: Kit, place: tuple[str, dict[str, str], Any]) -> None:
    kind, attributes, behind = place
    wrong = {**attributes, "secret_access_key": "other"}
    kit.cache_to = [control.CacheOptionsEntry(Type=kind, Attrs=wrong)]
    with pytest.raises(RpcError, match=r"operation error S3: \w+, https response error StatusCode: 403.*"):
        await kit.build(TEXT, name="x", **QUIET)
    kit.cache_to = [control.CacheOptionsEntry(Type=kind, Attrs={**wrong, "ignore-error": "true"})]
    await kit.build(TEXT, name="x", **QUIET)
    assert behind.objects == {}
    behind.failing = 2
    kit.cache_to = [control.CacheOptionsEntry(Type=kind, Attrs=attributes)]
    await kit.build(TEXT, name="x", **QUIET)
    assert len(behind.objects) > 2
    # Old objects are made young again.
    behind.objects = {path: (data, 1.0) for path, (data, _) in behind.objects.items()}
    await kit.build(TEXT, name="x", **QUIET)
    assert all(when > 1 for _, when in behind.objects.values())


@pytest.mark.parametrize("place", ["gha1", "gha2"], indirect=True)
async def test_blobs_in_parts(place: tuple[str, dict[str, str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gha, "_CHUNK", 1000)
    data = os.urandom(2500)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    store = open_store(place[0], place[1])
    blob = Blob("m", digest, len(data), lambda: iter((data[:999], data[999:1002], data[1002:])))
    assert await store.put(blob) and not await store.put(blob)
    answer = await store.blob(digest, offset=5)
    assert b"".join([part async for part in answer.chunks()]) == data[5:]
    with pytest.raises(EngineError, match="not found"):
        await store.blob("sha256:00")
    await store.save(b"1")
    await store.save(b"2")
    assert await store.load() == [b"2"]
    await store.close()


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("s3", {"region": "r"}, "bucket ($AWS_BUCKET) not set for s3 cache"),
        ("s3", {"bucket": "b"}, "region ($AWS_REGION) not set for s3 cache"),
        ("s3", {"bucket": "b", "region": "r", "upload_parallelism": "0"}, "upload_parallelism must be a positive integer"),
        ("s3", {"bucket": "b", "region": "r", "endpoint_url": "nothing"}, "Custom endpoint `nothing` was not a valid URI"),
        ("gha", {}, "token not set for github actions cache"),
        ("gha", {"token": token()}, "url not set for github actions cache"),
        ("gha", {"token": "x", "url": "http://h"}, "token contains an invalid number of segments"),
        ("gha", {"token": token(exp=1), "url": "http://h"}, "cache token expired at 1970-01-01 00:00:01"),
        ("gha", {"token": token(), "url": "http://h", "timeout": "soon"}, "invalid duration soon"),
        ("gha", {"token": token(), "url": "http://h", "version": "x"}, "failed to parse api version"),
    ],
)  # fmt: skip
def test_wrong_settings(kind: str, attributes: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_BUCKET", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EngineError) as caught:
        open_store(kind, attributes)
    assert message in caught.value.message


def test_signature() -> None:
    """The example of AWS' documentation ("GET Object", SigV4 for S3)."""
    signed = sign(
        Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"), "GET",
        "https://examplebucket.s3.amazonaws.com/test.txt", region="us-east-1", headers=[("Range", "bytes=0-9")],
        now=datetime(2013, 5, 24, tzinfo=UTC),
    )  # fmt: skip
    signature = dict(signed)["Authorization"].rpartition("Signature=")[2]
    assert signature == "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
