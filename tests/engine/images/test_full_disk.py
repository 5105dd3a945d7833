"""A full disk: a clear error, and nothing half-written under a good name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.errors import EngineError
from longshore.engine.images.store import ImageStore
from longshore.machinery import mounts
from longshore.registry.server import serve

from .conftest import imported, once
from .test_crash import check

pytestmark = pytest.mark.root


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounts.mount("tmpfs", folder, "tmpfs", ["size=8m"])
    yield folder
    mounts.unmount(folder)


async def test_import_and_pull(small: Path, make_store: Any, registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longshore.engine.images.layers._SPARE_SPACE", 0)
    big = {"f": os.urandom(6 << 20), "g": os.urandom(6 << 20)}
    store = ImageStore(small / "s", state=small / "c")
    try:
        with pytest.raises(EngineError, match="no space left on device"):
            await imported(store, "big:1", big)
        check(store)
        host = await registry()
        other = make_store("other")
        await imported(other, f"{host}/big:1", big)
        await other.push(f"{host}/big:1")
        store.registries.attempts = 1
        with pytest.raises(EngineError, match="no space left on device"):
            await store.pull(f"{host}/big:1")
        check(store)
        assert store.list() == []
        assert list(store.blobs.ingest.iterdir()) == []
        archive = b"".join(await other.save([f"{host}/big:1"]))
        with pytest.raises(EngineError, match="no space left on device"):
            await store.load(once(archive))
        check(store)
        assert store.list() == [] and list((store.root / "tmp").iterdir()) == []
        # There is room again: the store works on.
        image = await imported(store, "small:1", {"f": b"x"})
        (store.prepare("c" * 64, image).upper / "much").write_bytes(os.urandom(5 << 20))
        with pytest.raises(EngineError, match="no space left on device"):
            await store.commit("c" * 64, {})
        check(store)
        store.release("c" * 64)
        assert [entry["RepoTags"] for entry in store.list()] == [["small:1"]]
    finally:
        store.close()


async def test_registry(small: Path, make_store: Any) -> None:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(data_dir=small / "r", port=0, ready=port.set_result))
    host = f"127.0.0.1:{await port}"
    store = make_store("one")
    await imported(store, f"{host}/big:1", {"f": os.urandom(12 << 20)})
    with pytest.raises(EngineError, match="received unexpected HTTP status: 500 Internal Server Error"):
        await store.push(f"{host}/big:1")
    assert list((small / "r" / "blobs").rglob("*/*/*")) == []
    await imported(store, f"{host}/ok:1", {"f": b"x"})
    assert list((small / "r" / "uploads").iterdir()) == []
    await store.push(f"{host}/ok:1")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
