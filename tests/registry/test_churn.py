"""A long day: pushes and deletes, uploads that nobody ends, collections in between, a disk that runs full."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from longshore.machinery import mounts
from longshore.machinery.http import Client
from longshore.registry import uploads
from longshore.registry.blobs import Quota
from longshore.registry.storage import Manifest, Storage
from longshore.registry.upstream import Upstream

from .test_protocol import OCI_MANIFEST, Remote, digest, errors


def test_the_database_gives_its_disk_back(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    bodies = [bytes([number % 256]) * 40_000 + str(number).encode() for number in range(150)]
    for body in bodies:
        storage.put_manifest("a", [digest(body)[7:17]], Manifest(digest(body), OCI_MANIFEST, body))
    files = [tmp_path / "registry.db", tmp_path / "registry.db-wal"]
    full = sum(path.stat().st_size for path in files)
    for body in bodies[1:]:
        storage.delete_manifest("a", digest(body))
    storage.collect(grace=3600)
    assert sum(path.stat().st_size for path in files) < full / 20
    held = storage.manifest("a", digest(bodies[0]))
    assert held is not None and held.body == bodies[0]
    storage.close()


async def test_uploads_that_nobody_ends_hold_no_files(
    registry: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_OPEN_LIMIT", 4)
    remote = Remote(client, await registry())
    begun = [(await remote("POST", "blobs/uploads/")).headers.get("Location") for _ in range(3)]
    assert (await remote("PATCH", begun[0], b"first ")).status == 202
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(40):
        await (await remote("POST", "blobs/uploads/")).read()
    assert len(os.listdir("/proc/self/fd")) < before + 10
    # One that was closed meanwhile goes on where it was.
    assert (await remote("GET", begun[0])).headers.get("Range") == "0-5"
    done = await remote("PUT", f"{begun[0]}?digest={digest(b'first and last')}", b"and last")
    assert done.status == 201


async def test_a_quota_holds_for_uploads_at_once(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry(quotas=[Quota("*", 1000)]))
    begun = [(await remote("POST", "blobs/uploads/")).headers.get("Location") for _ in range(3)]
    parts = [bytes([number]) * 400 for number in range(3)]
    for location, data in zip(begun, parts, strict=True):
        assert (await remote("PATCH", location, data)).status == 202
    codes = [
        (await remote("PUT", f"{location}?digest={digest(data)}")).status
        for location, data in zip(begun, parts, strict=True)
    ]
    assert codes == [201, 201, 403]


def test_a_manifest_never_names_what_a_collection_takes(tmp_path: Path) -> None:
    """Blobs that nobody asked for lately, a collection, and manifests that need them, all at once."""
    storage = Storage(tmp_path)
    chance = random.Random(3)
    end = time.monotonic() + 1.5
    stop = threading.Event()

    def collect() -> None:
        while not stop.is_set():
            storage.collect(grace=-10)

    collector = threading.Thread(target=collect)
    collector.start()
    kept = refused = 0
    try:
        while time.monotonic() < end:
            data = chance.randbytes(200)
            source = storage.uploads / digest(data)[7:]
            source.write_bytes(data)
            fd = os.open(source, os.O_RDONLY)
            storage.place(source, fd, digest(data), "a", len(data))
            os.close(fd)
            time.sleep(chance.uniform(0, 0.004))
            body = b"manifest of " + digest(data).encode()
            missing = storage.put_manifest("a", ["t"], Manifest(digest(body), OCI_MANIFEST, body), blobs=[digest(data)])
            if missing:
                refused += 1
            else:
                kept += 1
    finally:
        stop.set()
        collector.join()
    for (name,) in storage.all("SELECT digest FROM needs"):
        assert storage.blob_size("a", name) is not None and storage.blob_path(name).exists()
    assert kept
    storage.close()


@pytest.mark.root
async def test_a_mirror_with_a_full_disk_still_hands_on(registry: Any, client: Client, tmp_path: Path) -> None:
    source = Remote(client, await registry(data_dir=tmp_path / "up"), "a")
    data = os.urandom(6 << 20)
    name = await source.blob(data)
    (tmp_path / "m").mkdir()
    mounts.mount("tmpfs", tmp_path / "m", "tmpfs", ["size=4m"])
    try:
        mirror = Remote(client, await registry(upstream=Upstream(source.base), data_dir=tmp_path / "m" / "r"), "a")
        for _ in range(2):
            assert await (await mirror("GET", f"blobs/{name}")).read() == data
        assert list((tmp_path / "m" / "r" / "blobs").rglob("*/*/*")) == []
        async with asyncio.timeout(10):
            while list((tmp_path / "m" / "r" / "uploads").iterdir()):
                await asyncio.sleep(0.01)  # the client has it all before the registry has tidied up
        small = await source.blob(b"small")
        assert await (await mirror("GET", f"blobs/{small}")).read() == b"small"
    finally:
        # What the registry holds open there goes with it.
        mounts.unmount(tmp_path / "m", detach=True)


async def test_pages_of_nothing(registry: Any, client: Client) -> None:
    remote = Remote(client, await registry())
    await remote.image()
    for path in ("/v2/_catalog?n=0", "tags/list?n=0"):
        answer = await remote("GET", path)
        assert answer.status == 200 and answer.headers.get("Link") is None


async def test_content_that_is_elsewhere(registry: Any, client: Client) -> None:
    """A manifest that names what was not pushed is refused, unless the registry was told to take it."""
    body = (
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"'
        + OCI_MANIFEST.encode()
        + b'","size":1,"digest":"'
        + digest(b"elsewhere").encode()
        + b'"}]}'
    )
    media = "application/vnd.oci.image.index.v1+json"
    refused = await Remote(client, await registry())("PUT", "manifests/t", body, content_type=media)
    assert refused.status == 404 and await errors(refused) == "MANIFEST_BLOB_UNKNOWN"
    remote = Remote(client, await registry(sparse=True))
    assert (await remote("PUT", "manifests/t", body, content_type=media)).status == 201
    assert await (await remote("GET", "manifests/t")).read() == body
    assert (
        await asyncio.wait_for(errors(await remote("GET", f"manifests/{digest(b'elsewhere')}")), 5)
        == "MANIFEST_UNKNOWN"
    )
