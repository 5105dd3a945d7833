"""Pull and push against our own registry, and skopeo beside us."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.errors import EngineError, NotFound, Unauthorized
from longshore.engine.images import references
from longshore.engine.images.pull import choose
from longshore.machinery.http import Client
from longshore.registry.auth import Access, Passwords

from .conftest import imported, tar_of

pytestmark = pytest.mark.root


def statuses(messages: list[dict[str, Any]]) -> list[str]:
    return [m["status"] for m in messages if m.get("status") not in ("Downloading", "Extracting", "Pushing", None)]


async def test_push_and_pull(make_store: Any, registry: Any) -> None:
    host = await registry()
    one, two = make_store("one"), make_store("two")
    image = await imported(one, f"{host}/app:1", {"f": b"x" * 300000, "d/g": b"y"}, run_config={"Cmd": ["a"]})
    said: list[dict[str, Any]] = []
    await one.push(f"{host}/app:1", progress=said.append)
    assert statuses(said)[:3] == [f"The push refers to repository [{host}/app]", "Preparing", "Pushed"]
    aux = said[-1]["aux"]
    assert aux["Tag"] == "1" and statuses(said)[-1] == f"1: digest: {aux['Digest']} size: {aux['Size']}"
    assert one.repo_digests(image.id) == [f"{host}/app@{aux['Digest']}"]
    said.clear()
    await one.push(f"{host}/app:1", progress=said.append)
    assert "Layer already exists" in statuses(said)
    said.clear()
    pulled = await two.pull(f"{host}/app:1", progress=said.append)
    assert pulled.id == image.id and two.layer_dirs(pulled)[0].joinpath("d/g").read_bytes() == b"y"
    assert statuses(said) == [
        "Pulling from app",
        "Pulling fs layer",
        "Verifying Checksum",
        "Download complete",
        "Pull complete",
        f"Digest: {aux['Digest']}",
        f"Status: Downloaded newer image for {host}/app:1",
    ]
    said.clear()
    await two.pull(f"{host}/app@{aux['Digest']}", progress=said.append)
    assert statuses(said)[-1] == f"Status: Image is up to date for {host}/app@{aux['Digest']}"
    # What was pulled goes on byte for byte: the same digest in another registry.
    other = await registry()
    two.tag(pulled, f"{other}/x:2")
    said.clear()
    await two.push(f"{other}/x:2", progress=said.append)
    assert said[-1]["aux"]["Digest"] == aux["Digest"]


async def test_mount_between_repositories(store: Any, registry: Any) -> None:
    host = await registry()
    image = await imported(store, f"{host}/a:1", {"f": b"x"})
    store.tag(image, f"{host}/b:1")
    said: list[dict[str, Any]] = []
    await store.push(f"{host}/a:1", progress=said.append)
    await store.push(f"{host}/b:1", progress=said.append)
    assert "Mounted from a" in statuses(said)


async def test_errors(store: Any, registry: Any) -> None:
    host = await registry()
    with pytest.raises(
        NotFound, match=f"manifest for {host}/none:latest not found: manifest unknown: manifest unknown"
    ):
        await store.pull(f"{host}/none")
    with pytest.raises(NotFound, match=f"repository {host}/none not found: name unknown: "):
        await store.pull(f"{host}/none", all_tags=True)
    with pytest.raises(NotFound, match="An image does not exist locally with the tag: "):
        await store.push(f"{host}/none:1")
    await imported(store, f"{host}/app:1", {"f": b"x"})
    with pytest.raises(NotFound, match="tag does not exist: "):
        await store.push(f"{host}/app:2")
    await imported(store, "127.0.0.1:5999/app:1", {"f": b"x"})
    with pytest.raises(EngineError) as caught:
        await store.push("127.0.0.1:5999/app:1")
    assert caught.value.message == (
        'Get "http://127.0.0.1:5999/v2/": dial tcp 127.0.0.1:5999: connect: connection refused'
    )
    with pytest.raises(EngineError, match="'scratch' is a reserved name"):
        await store.pull("scratch")


@pytest.mark.parametrize("realm", ["", "own"])
async def test_authentication(make_store: Any, registry: Any, tmp_path: Path, realm: str) -> None:
    made = subprocess.run(
        ["openssl", "passwd", "-6", "pass"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (tmp_path / "htpasswd").write_text(f"user:{made}\n")
    host = await registry(access=Access(Passwords(tmp_path / "htpasswd"), token_realm=realm))
    one, two = make_store("one"), make_store("two")
    await imported(one, f"{host}/app:1", {"f": b"x"})
    good = {"username": "user", "password": "pass"}
    with pytest.raises(EngineError) as caught:
        await one.push(f"{host}/app:1")
    if not realm:
        assert isinstance(caught.value, Unauthorized) and caught.value.message == "no basic auth credentials"
    with pytest.raises(EngineError, match="unauthorized: authentication required"):
        await one.push(f"{host}/app:1", auth={"username": "user", "password": "no"})
    await one.push(f"{host}/app:1", auth=good)
    with pytest.raises(EngineError) as caught:
        await two.pull(f"{host}/app:1")
    if not realm:
        assert caught.value.message == f'Head "http://{host}/v2/app/manifests/1": no basic auth credentials'
    await two.pull(f"{host}/app:1", auth=good)
    identity = await two.registries.login({**good, "serveraddress": host})
    assert bool(identity) == bool(realm)
    if identity:
        await two.push(f"{host}/app:1", auth={"identitytoken": identity})
    with pytest.raises(Unauthorized):
        await two.registries.login({"username": "user", "password": "no", "serveraddress": host})


async def test_mirror_of_docker_hub(make_store: Any, registry: Any) -> None:
    host = await registry()
    one = make_store("one")
    await imported(one, f"{host}/library/tool:1", {"f": b"x"})
    await one.push(f"{host}/library/tool:1")
    two = make_store("two")
    two.registries.mirrors = [f"http://{host}"]
    said: list[dict[str, Any]] = []
    image = await two.pull("tool:1", progress=said.append)
    assert two.repo_tags(image.id) == ["tool:1"]
    assert statuses(said)[0] == "Pulling from library/tool"
    # Asking whether the mirror has the tag is the head of the pull: a registry counts each.
    async with Client() as client:
        figures = await (await client.request("GET", f"http://{host}/metrics")).read()
    assert b'registry_http_requests_total{code="200",handler="manifest",method="HEAD"} 1.0' in figures


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
async def test_skopeo(make_store: Any, registry: Any, tmp_path: Path) -> None:
    host = await registry()
    one = make_store("one")
    image = await imported(one, f"{host}/app:1", {"f": b"x" * 5000}, run_config={"Cmd": ["a"]})
    await one.push(f"{host}/app:1")

    async def skopeo(*words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "skopeo", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    shown = json.loads(await skopeo("inspect", "--tls-verify=false", f"docker://{host}/app:1"))
    assert shown["RepoTags"] == ["1"] and shown["Architecture"] == image.config["architecture"]
    await skopeo(
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--format=oci",
        f"docker://{host}/app:1",
        f"docker://{host}/oci:2",
    )
    await skopeo("copy", "--src-tls-verify=false", f"docker://{host}/oci:2", f"oci:{tmp_path}/layout:x")
    two = make_store("two")
    pulled = await two.pull(f"{host}/oci:2")
    assert two.layer_dirs(pulled)[0].joinpath("f").read_bytes() == b"x" * 5000


async def test_one_layer_shared_by_two_pulls(make_store: Any, registry: Any) -> None:
    host = await registry()
    one, two = make_store("one"), make_store("two")
    image = await imported(one, f"{host}/a:1", {"f": b"x" * 100000})
    one.tag(image, f"{host}/b:1")
    await one.push(f"{host}/a:1")
    await one.push(f"{host}/b:1")
    first, second = await asyncio.gather(two.pull(f"{host}/a:1"), two.pull(f"{host}/b:1"))
    assert first.id == second.id and two.repo_tags(first.id) == [f"{host}/a:1", f"{host}/b:1"]


def test_choice_of_platform() -> None:
    def entry(name: str) -> dict[str, Any]:
        os_name, architecture, *variant = name.split("/")
        return {
            "platform": {"os": os_name, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        }

    entries = [entry(n) for n in ("unknown/unknown", "linux/arm/v6", "linux/arm/v7", "linux/amd64", "windows/amd64")]
    assert choose(entries, "linux/arm") is entries[2]
    assert choose(entries, "linux/arm/v6") is entries[1]
    assert choose(entries, "linux/amd64") is entries[3]
    assert choose(entries, "linux/riscv64") is None


async def test_tampered_layer_is_refused(make_store: Any, registry: Any, tmp_path: Path) -> None:
    host = await registry(data_dir=tmp_path / "r")
    one, two = make_store("one"), make_store("two")
    await imported(one, f"{host}/a:1", {"f": b"x" * 1000})
    await one.push(f"{host}/a:1")
    largest = max((tmp_path / "r" / "blobs").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    for path in (tmp_path / "r" / "blobs").rglob("*"):
        if path.is_file() and path.read_bytes()[:2] == b"\x1f\x8b":
            largest = path
    data = bytearray(largest.read_bytes())
    data[20] ^= 1
    largest.write_bytes(bytes(data))
    with pytest.raises(EngineError, match="filesystem layer verification failed for digest sha256:"):
        await two.pull(f"{host}/a:1")
    assert two.list() == [] and list((tmp_path / "two" / "overlay2").iterdir()) == []
    assert references.parse("a").familiar == "a" and tar_of({})


async def test_a_download_goes_on_where_it_was_cut(
    make_store: Any, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in front of a registry cuts each blob after a third of what is left, the first three times."""
    from longshore.machinery.http import Client, Request, Response, Server

    monkeypatch.setattr("longshore.engine.images.pull.SECOND", 0.01)
    host = await registry()
    source, store = make_store("source"), make_store("two")
    await imported(source, f"{host}/big:1", {"f": os.urandom(3 << 20)})
    await source.push(f"{host}/big:1")
    asked: list[str] = []

    async with Client() as client:

        async def proxy(request: Request) -> Response | None:
            wanted = request.headers.get("Range") or ""
            fields = [(key, value) for key, value in request.headers.items() if key.lower() in ("range", "accept")]
            found = await client.request(request.method, f"http://{host}{request.target}", headers=fields)
            body = await found.read() if request.method == "GET" else b""
            headers = [
                (k, v) for k, v in found.headers.items() if k.lower() not in ("date", "content-length", "connection")
            ]
            if "/blobs/" in request.path and len(body) > 100_000:
                asked.append(wanted)
                if len(asked) <= 3:
                    writer = await request.start(found.status, [*headers, ("Content-Length", str(len(body)))])
                    writer.write(body[: len(body) // 3])
                    await writer.drain()
                    raise RuntimeError("cut on purpose")
            if request.method == "HEAD":
                headers.append(("Content-Length", found.headers.get("Content-Length") or "0"))
                await request.start(found.status, headers)
                return None
            return Response(
                found.status,
                body,
                [h for h in headers if h[0].lower() != "content-type"],
                found.headers.get("Content-Type"),
            )

        server = Server(proxy)
        port = await server.listen_tcp("127.0.0.1", 0)
        try:
            image = await store.pull(f"127.0.0.1:{port}/big:1")
        finally:
            await server.close()
    first = source.resolve(f"{host}/big:1")
    assert image.id == first.id
    starts = [int(text.removeprefix("bytes=").rstrip("-")) for text in asked[1:]]
    assert asked[0] == "" and len(asked) == 4 and 0 < starts[0] < starts[1] < starts[2]
