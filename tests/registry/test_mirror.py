"""A registry that mirrors another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longshore.machinery.http import Client
from longshore.registry.auth import Access, Passwords
from longshore.registry.upstream import Upstream

from .test_auth import basic, password_file
from .test_protocol import OCI_MANIFEST, Remote, digest, errors


async def test_pull_through(registry: Any, client: Client, tmp_path: Path) -> None:
    source = Remote(client, await registry(data_dir=tmp_path / "up"), "library/app")
    name, body = await source.image("1")
    mirror = Remote(client, await registry(upstream=Upstream(source.base), data_dir=tmp_path / "m"), "library/app")
    got = await mirror("GET", "manifests/1", accept=OCI_MANIFEST)
    assert await got.read() == body and got.headers.get("Docker-Content-Digest") == name
    layer = digest(b"layer" * 10)
    head = await mirror("HEAD", f"blobs/{layer}")
    assert head.status == 200 and head.headers.get("Content-Length") == "50"
    for _ in range(2):
        assert await (await mirror("GET", f"blobs/{layer}")).read() == b"layer" * 10
    assert list((tmp_path / "m" / "blobs" / "sha256").glob("*/*")) != []
    assert await errors(await mirror("GET", "manifests/none")) == "MANIFEST_UNKNOWN"
    assert await errors(await mirror("POST", "blobs/uploads/")) == "UNSUPPORTED"
    # A tag that moved is seen; without the upstream what is here still serves.
    _, moved = await source.image("1", annotations={"moved": "yes"})
    assert await (await mirror("GET", "manifests/1")).read() == moved
    away = Remote(
        client, await registry(upstream=Upstream("http://127.0.0.1:1"), data_dir=tmp_path / "m"), "library/app"
    )
    assert await (await away("GET", "manifests/1")).read() == moved
    assert await (await away("GET", f"blobs/{layer}")).read() == b"layer" * 10
    assert (await away("GET", "manifests/2")).status == 503


async def test_credentials_for_the_upstream(registry: Any, client: Client, tmp_path: Path) -> None:
    passwords = Passwords(password_file(tmp_path / "p", ann="a"))
    for number, realm in enumerate(("", "own")):
        host = await registry(access=Access(passwords, token_realm=realm), data_dir=tmp_path / f"up{number}")
        good = Upstream(f"http://{host}", username="ann", password="a")
        mirror = Remote(client, await registry(upstream=good, data_dir=tmp_path / f"m{number}"))
        assert (await mirror("GET", "manifests/x")).status == 404
        bad = Upstream(f"http://{host}", username="ann", password="no")
        mirror = Remote(client, await registry(upstream=bad, data_dir=tmp_path / f"n{number}"))
        assert (await mirror("GET", "manifests/x")).status in (401, 403)
    assert basic("a", "b")


async def test_tampered_blob_is_not_kept(registry: Any, client: Client, tmp_path: Path) -> None:
    source = Remote(client, await registry(data_dir=tmp_path / "up"), "a")
    name = await source.blob(b"good content")
    (path,) = (tmp_path / "up" / "blobs" / "sha256").glob("*/*")
    path.write_bytes(b"evil content")
    mirror = Remote(client, await registry(upstream=Upstream(source.base), data_dir=tmp_path / "m"), "a")
    await (await mirror("GET", f"blobs/{name}")).close()
    assert list((tmp_path / "m" / "blobs" / "sha256").glob("*/*")) == []
