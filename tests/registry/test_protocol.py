"""The registry's endpoints, as the OCI distribution specification tells them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from longshore.machinery.http import Client, ClientResponse
from longshore.registry.storage import Storage

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


async def errors(response: ClientResponse) -> str:
    return json.loads(await response.read())["errors"][0]["code"]


class Remote:
    def __init__(self, client: Client, host: str, name: str = "a/b") -> None:
        self.client, self.base, self.name = client, f"http://{host}", name

    async def __call__(self, method: str, rest: str, body: bytes | None = None, **headers: str) -> ClientResponse:
        url = (
            rest
            if rest.startswith("http")
            else self.base + (rest if rest.startswith("/") else f"/v2/{self.name}/{rest}")
        )
        fields = [(k.replace("_", "-"), v) for k, v in headers.items()]
        return await self.client.request(method, url, headers=fields, body=body, timeout=20)

    async def blob(self, data: bytes) -> str:
        begun = await self("POST", "blobs/uploads/")
        assert begun.status == 202
        await begun.read()
        done = await self("PUT", begun.headers.get("Location") + f"?digest={digest(data)}", data)
        assert done.status == 201, await done.read()
        return digest(data)

    async def image(self, tag: str = "t", **extra: Any) -> tuple[str, bytes]:
        config, layer = b'{"a":1}', b"layer" * 10
        await self.blob(config)
        await self.blob(layer)
        body = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": digest(config),
                    "size": len(config),
                },
                "layers": [
                    {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(layer), "size": len(layer)}
                ],
                **extra,
            }
        ).encode()
        done = await self("PUT", f"manifests/{tag or digest(body)}", body, content_type=OCI_MANIFEST)
        assert done.status == 201, await done.read()
        return digest(body), body


async def test_base_and_unknown(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry())
    answer = await remote("GET", "/v2/")
    assert answer.status == 200 and await answer.read() == b"{}"
    assert answer.headers.get("Docker-Distribution-API-Version") == "registry/2.0"
    assert (await remote("GET", "/v3/")).status == 404
    assert await errors(await remote("GET", "tags/list")) == "NAME_UNKNOWN"
    assert await errors(await remote("GET", "manifests/x")) == "MANIFEST_UNKNOWN"
    assert await errors(await remote("GET", f"blobs/{digest(b'x')}")) == "BLOB_UNKNOWN"
    assert await errors(await remote("GET", "blobs/sha256:zz")) == "DIGEST_INVALID"
    assert await errors(await remote("GET", "/v2/UP/tags/list")) == "NAME_INVALID"
    assert await errors(await remote("PUT", "tags/list")) == "UNSUPPORTED"


async def test_monolithic_upload_and_pull(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry())
    data = bytes(range(256)) * 10000
    name = await remote.blob(data)
    got = await remote("GET", f"blobs/{name}")
    assert await got.read() == data and got.headers.get("Docker-Content-Digest") == name
    head = await remote("HEAD", f"blobs/{name}")
    assert head.status == 200 and head.headers.get("Content-Length") == str(len(data))
    part = await remote("GET", f"blobs/{name}", range="bytes=1000-1999")
    assert part.status == 206 and await part.read() == data[1000:2000]
    assert part.headers.get("Content-Range") == f"bytes 1000-1999/{len(data)}"
    tail = await remote("GET", f"blobs/{name}", range="bytes=-10")
    assert await tail.read() == data[-10:]
    assert (await remote("GET", f"blobs/{name}", range=f"bytes={len(data)}-")).status == 416
    same = await remote("GET", f"blobs/{name}", if_none_match=f'"{name}"')
    assert same.status == 304


async def test_post_with_digest(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry())
    done = await remote("POST", f"blobs/uploads/?digest={digest(b'one')}", b"one")
    assert done.status == 201 and done.headers.get("Location") == f"/v2/a/b/blobs/{digest(b'one')}"
    bad = await remote("POST", f"blobs/uploads/?digest={digest(b'one')}", b"two")
    assert bad.status == 400 and await errors(bad) == "DIGEST_INVALID"


async def test_chunks_in_order_and_resume(registry: Any, client: Client, tmp_path: Path) -> None:
    remote = Remote(client, await registry(data_dir=tmp_path / "r"))
    begun = await remote("POST", "blobs/uploads/")
    where = begun.headers.get("Location") or ""
    first = await remote("PATCH", where, b"hello ", content_range="0-5", content_type="application/octet-stream")
    assert first.status == 202 and first.headers.get("Range") == "0-5"
    wrong = await remote("PATCH", where, b"world", content_range="20-24")
    assert wrong.status == 416 and wrong.headers.get("Range") == "0-5"
    status = await remote("GET", where)
    assert status.status == 204 and status.headers.get("Range") == "0-5"
    # A registry that was restarted goes on where it was: another one on the same folder stands for it.
    again = Remote(client, await registry(data_dir=tmp_path / "r"))
    second = await again("PATCH", where, b"world", content_range="6-10")
    assert second.status == 202, await second.read()
    done = await again("PUT", where + f"?digest={digest(b'hello world')}")
    assert done.status == 201
    assert await (await remote("GET", f"blobs/{digest(b'hello world')}")).read() == b"hello world"
    assert (await again("GET", where)).status == 404


async def test_cancel(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry())
    where = (await remote("POST", "blobs/uploads/")).headers.get("Location") or ""
    assert (await remote("DELETE", where)).status == 204
    assert await errors(await remote("PATCH", where, b"x")) == "BLOB_UPLOAD_UNKNOWN"
    assert await errors(await remote("GET", "blobs/uploads/../../etc")) in ("BLOB_UPLOAD_UNKNOWN", "UNSUPPORTED")


async def test_mount(registry: Any, client: Client) -> None:
    host = await registry()
    remote, other = Remote(client, host), Remote(client, host, "c")
    name = await remote.blob(b"shared")
    done = await other("POST", f"blobs/uploads/?mount={name}&from=a/b")
    assert done.status == 201 and done.headers.get("Location") == f"/v2/c/blobs/{name}"
    assert await (await other("GET", f"blobs/{name}")).read() == b"shared"
    assert (await other("POST", f"blobs/uploads/?mount={digest(b'absent')}&from=a/b")).status == 202


async def test_manifests_tags_and_delete(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry())
    name, body = await remote.image("v1")
    await remote.image("v2")
    got = await remote("GET", "manifests/v1", accept=OCI_MANIFEST)
    assert await got.read() == body and got.headers.get("Content-Type") == OCI_MANIFEST
    head = await remote("HEAD", f"manifests/{name}")
    assert head.headers.get("Content-Length") == str(len(body)) and head.headers.get("Docker-Content-Digest") == name
    tags = json.loads(await (await remote("GET", "tags/list")).read())
    assert tags == {"name": "a/b", "tags": ["v1", "v2"]}
    paged = await remote("GET", "tags/list?n=1")
    assert json.loads(await paged.read())["tags"] == ["v1"] and 'rel="next"' in (paged.headers.get("Link") or "")
    assert json.loads(await (await remote("GET", "tags/list?n=1&last=v1")).read())["tags"] == ["v2"]
    assert json.loads(await (await remote("GET", "tags/list?n=0")).read())["tags"] == []
    assert await errors(await remote("GET", "tags/list?n=x")) == "PAGINATION_NUMBER_INVALID"
    assert json.loads(await (await remote("GET", "/v2/_catalog")).read()) == {"repositories": ["a/b"]}
    assert (await remote("DELETE", "manifests/v2")).status == 202
    assert (await remote("GET", "manifests/v2")).status == 404
    assert (await remote("DELETE", f"manifests/{name}")).status == 202
    assert (await remote("GET", "manifests/v1")).status == 404
    assert (await remote("DELETE", f"manifests/{name}")).status == 404


@pytest.mark.parametrize(
    ("body", "media", "code"),
    [
        (b"{", OCI_MANIFEST, "MANIFEST_INVALID"),
        (b"[]", OCI_MANIFEST, "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"mediaType":"x"}', OCI_MANIFEST, "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"manifests":[],"layers":[]}', OCI_INDEX, "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"config":{"digest":"sha256:1","size":1},"layers":[]}', OCI_MANIFEST, "MANIFEST_INVALID"),
        (
            b'{"schemaVersion":2,"config":{"digest":"sha256:' + b"0" * 64 + b'","size":1},"layers":[]}',
            OCI_MANIFEST,
            "MANIFEST_BLOB_UNKNOWN",
        ),
    ],
)
async def test_bad_manifests(registry: Any, client: Client, body: bytes, media: str, code: str) -> None:
    remote = Remote(client, await registry())
    assert await errors(await remote("PUT", "manifests/x", body, content_type=media)) == code


async def test_referrers(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry())
    name, body = await remote.image("v1")
    subject = {"mediaType": OCI_MANIFEST, "digest": name, "size": len(body)}
    about, text = await remote.image("", subject=subject, artifactType="application/x.sig", annotations={"k": "v"})
    found = await remote("GET", f"referrers/{name}")
    index = json.loads(await found.read())
    assert found.headers.get("Content-Type") == OCI_INDEX
    assert index["manifests"] == [
        {
            "mediaType": OCI_MANIFEST,
            "digest": about,
            "size": len(text),
            "artifactType": "application/x.sig",
            "annotations": {"k": "v"},
        }
    ]
    none = await remote("GET", f"referrers/{name}?artifactType=other")
    assert json.loads(await none.read())["manifests"] == []
    assert none.headers.get("OCI-Filters-Applied") == "artifactType"
    assert json.loads(await (await remote("GET", f"referrers/{digest(b'q')}")).read())["manifests"] == []


async def test_read_only(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry(read_only=True))
    assert await errors(await remote("POST", "blobs/uploads/")) == "UNSUPPORTED"


async def test_garbage_collection_while_serving(registry: Any, client: Client, tmp_path: Path) -> None:
    remote = Remote(client, await registry(data_dir=tmp_path / "r"))
    await remote.image("v1")
    loose = await remote.blob(b"loose")
    storage = Storage(tmp_path / "r")
    assert storage.collect(grace=3600)["blobs"] == 0
    await asyncio.sleep(0)
    freed = storage.collect(grace=-10)
    assert freed["blobs"] == 1 and freed["bytes"] == 5
    assert (await remote("GET", f"blobs/{loose}")).status == 404
    assert (await remote("GET", "manifests/v1")).status == 200
    await remote("DELETE", "manifests/v1")
    assert storage.collect(grace=-10, untagged=True) == {"manifests": 1, "links": 2, "blobs": 2, "bytes": 57}
    assert list((tmp_path / "r" / "blobs" / "sha256").glob("*/*")) == []
    storage.close()


async def test_page_and_metrics(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry())
    assert b"Nothing here yet" in await (await remote("GET", "/")).read()
    await remote.image("v1")
    assert b"a/b" in await (await remote("GET", "/")).read()
    assert b"v1" in await (await remote("GET", "/repository/a/b")).read()
    text = await (await remote("GET", "/metrics")).read()
    assert b"registry_http_requests_total" in text


async def test_tags_with_a_manifest_by_digest(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry())
    name, body = await remote.image("v1")
    done = await remote("PUT", f"manifests/{name}?tag=a&tag=b", body, content_type=OCI_MANIFEST)
    assert done.status == 201 and done.headers.getall("OCI-Tag") == ["a", "b"]
    assert json.loads(await (await remote("GET", "tags/list")).read())["tags"] == ["a", "b", "v1"]
    assert (await remote("PUT", f"manifests/{name}?tag=!", body, content_type=OCI_MANIFEST)).status == 400


async def test_layers_that_may_be_elsewhere(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry())
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": await remote.blob(b"{}"), "size": 2}
    foreign = {
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": digest(b"elsewhere"),
        "size": 9,
    }
    for layers in ([foreign], [], None):
        body = json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode()
        assert (await remote("PUT", "manifests/t", body, content_type=OCI_MANIFEST)).status == 201


async def test_out_of_order_last_chunk_harms_nothing(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry())
    data = b"0123456789"
    where = (await remote("POST", "blobs/uploads/")).headers.get("Location") or ""
    bad = await remote("PUT", f"{where}?digest={digest(data)}", data[5:], content_range="5-9")
    assert bad.status == 416 and bad.headers.get("Location")
    await remote("PATCH", where, data[:5], content_range="0-4")
    done = await remote("PUT", f"{where}?digest={digest(data)}", data[5:], content_range="5-9")
    assert done.status == 201


async def test_empty_blob_and_sha512(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry())
    name = await remote.blob(b"")
    got = await remote("GET", f"blobs/{name}")
    assert got.status == 200 and got.headers.get("Content-Length") == "0" and await got.read() == b""
    long = "sha512:" + hashlib.sha512(b"x").hexdigest()
    done = await remote("POST", f"blobs/uploads/?digest={long}", b"x")
    assert done.status == 201 and await (await remote("GET", f"blobs/{long}")).read() == b"x"
