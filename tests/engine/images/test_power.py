"""Layers after a lost power supply, as far as it can be played: files that were not synced are empty afterwards."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from longshore.engine.images.store import ImageStore

from .conftest import imported, once

pytestmark = pytest.mark.root
Make = Callable[..., ImageStore]


def reboot(store: ImageStore) -> None:
    with store.database.write() as connection:
        connection.execute("UPDATE unsynced SET boot='before'")


def emptied(store: ImageStore, image: str) -> None:
    """What ext4 may leave of files that nobody synced."""
    for folder in store.layer_dirs(image):
        for path in Path(folder).rglob("*"):
            if path.is_file():
                os.truncate(path, 0)


async def test_a_layer_made_here_is_checked(make_store: Make) -> None:
    store = make_store()
    good = await imported(store, "good:1", {"f": b"kept"})
    bad = await imported(store, "bad:1", {"g": b"lost"})
    emptied(store, bad.id)
    store.close()
    same = make_store()  # a killed engine's successor: what it wrote is still there, and nothing is looked at
    assert same.find("bad:1") is not None
    reboot(same)
    same.close()
    after = make_store()
    assert after.find("bad:1") is None and after.find("good:1") is not None
    assert (after.layer_dirs(good.id)[0] / "f").read_bytes() == b"kept"
    assert after.database.all("SELECT * FROM unsynced") == [] and after.layers.get(bad.chain) is None
    # The same content comes again as if it had never been there.
    again = await imported(after, "bad:1", {"g": b"lost"})
    assert (after.layer_dirs(again.id)[0] / "g").read_bytes() == b"lost"


async def test_what_builds_on_a_broken_layer_goes_with_it(make_store: Make, tmp_path: Path) -> None:
    store = make_store()
    base = await imported(store, "base:1", {"f": b"1"})
    root = store.prepare("c1", base)
    (root.upper / "g").write_bytes(b"2")
    above = await store.commit("c1", {}, name=None)
    store.release("c1")
    os.truncate(store.layer_dirs(base.id)[0] / "f", 0)
    reboot(store)
    store.close()
    after = make_store()
    assert after.images() == [] and after.layers.get(above.chain) is None
    assert [p.name for p in after.layers.folder.iterdir()] == []


async def test_a_pulled_layer_is_unpacked_again(make_store: Make, registry: Callable[..., Awaitable[str]]) -> None:
    host = await registry()
    source = make_store("source")
    # Owners and times that our own packing would write otherwise: the layer keeps its blob.
    made = await imported(source, f"{host}/a:1", {"d/f": b"x" * 70000})
    await source.load(once(b"".join(await source.save([made.id]))))
    await source.push(f"{host}/a:1")
    store = make_store()
    image = await store.pull(f"{host}/a:1")
    emptied(store, image.id)
    layer = store.layers.stack(image.chain)[0]
    with_blob = store.blobs.has(layer.blob)
    os.unlink(store.layers.link_path(layer))
    reboot(store)
    store.close()
    after = make_store()
    found = after.find(f"{host}/a:1")
    assert with_blob and found is not None
    assert (after.layer_dirs(found.id)[0] / "d" / "f").read_bytes() == b"x" * 70000
    assert os.path.isdir(after.layers.link_path(layer))
    # A blob that was lost as well: the layer is checked, found broken, and can be pulled again.
    emptied(after, found.id)
    os.truncate(after.blobs.path(layer.blob), 10)
    with after.database.write() as connection:
        connection.execute("INSERT INTO unsynced VALUES(?,'before')", (layer.chain,))
    after.close()
    last = make_store()
    assert last.find(f"{host}/a:1") is None and not last.blobs.has(layer.blob)
    again = await last.pull(f"{host}/a:1")
    assert (last.layer_dirs(again.id)[0] / "d" / "f").read_bytes() == b"x" * 70000


async def test_marks_go_with_a_sync(make_store: Make) -> None:
    store = make_store()
    await imported(store, "a:1", {"f": b"1"})
    assert len(store.database.all("SELECT * FROM unsynced")) == 1
    store.layers.flusher.sync()
    assert store.database.all("SELECT * FROM unsynced") == []
