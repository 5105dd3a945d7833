"""The store after an end at any step of any operation: the process is killed before its Nth change of the disk.

A few steps of each are tried, by a seed; with LONGSHORE_SWEEP=all every one, in a few minutes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.support.killed import Zygote, chosen

from longshore.engine.images.pack import hash_tree
from longshore.engine.images.store import ImageStore
from longshore.machinery.http import Client

from .conftest import imported, tar_of
from .test_crash import check

pytestmark = pytest.mark.root
SEED = 20
STEPS = 5

ZYGOTE = """
import sys
from pathlib import Path
from longshore.engine.images import archive, commit, loading, pull, push, references, removal, variants
from longshore.engine.images.database import Database
from longshore.engine.images.store import ImageStore
from longshore.machinery.http import Client
from tests.support.killed import serve

root, state, host, work = sys.argv[1:]

async def once(path):
    yield Path(path).read_bytes()

async def operate(store, what):
    if what == "import":
        await store.import_(once(work + "/import.tar"), name=references.parse("i:1"))
    elif what == "load":
        await store.load(once(work + "/load.tar"))
    elif what == "commit":
        root = store.prepare("c" * 64, "base:1")
        root.mount()
        (root.merged / "new").write_text("new")
        (root.merged / "a").unlink()
        await store.commit("c" * 64, {}, name=references.parse("c:1"))
        store.release("c" * 64)
    elif what == "pull":
        await store.pull(host + "/p:1")
    elif what == "push":
        await store.push(host + "/pushed:1")
    elif what == "remove":
        await store.remove("spare:1", force=True)
    elif what == "prune":
        await store.prune({"dangling": ["false"]})

serve(Database, lambda: ImageStore(Path(root), state=Path(state)), operate)
"""


def whole(store: ImageStore) -> None:
    """Every image can be told apart by what is on the disk: each layer's files, or its blob, make its digest."""
    check(store)
    for image in store.images():
        assert store.names(image.id) or store.children(image.id) or image.config
        for layer in store.layers.stack(image.chain):
            if layer.blob:
                assert sum(map(len, store.layers.tar(layer))) == layer.tar_size
            else:
                assert hash_tree(store.layers.diff_path(layer)).diff == layer.diff


def files(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for folder in ("overlay2", "blobs", "tmp", "builds", "l")
        for path in (root / folder).rglob("*")
    }


class Sweep:
    """A store with `base:1` and `spare:1`, and a zygote beside it."""

    def __init__(self, root: Path, host: str) -> None:
        self.root, self.host = root, host
        self.zygote = Zygote(ZYGOTE, str(root / "s"), str(root / "state"), host, str(root))

    def store(self) -> ImageStore:
        return ImageStore(self.root / "s", state=self.root / "state")

    async def restored(self) -> None:
        """Back to the images of the beginning; the disk that was used meanwhile is free again."""
        store = self.store()
        try:
            for (container,) in store.database.all("SELECT container FROM uses"):
                store.release(container)
            for image in store.images():
                for name in store.names(image.id):
                    if name.tag and name.familiar not in ("base:1", "spare:1", f"{self.host}/pushed:1"):
                        await store.remove(str(name), force=True)
            await store.prune()
            for name, data in (("base:1", b"base"), ("spare:1", b"spare"), (f"{self.host}/pushed:1", b"pushed")):
                if store.find(name) is None:
                    await imported(store, name, {"a": data * 30_000, "d/b": os.urandom(20)})
            assert list(store.blobs.ingest.iterdir()) == []
            assert len({path.split("/")[1] for path in files(store.root) if path.startswith("overlay2/")}) == 3
            assert list(store.blobs.folder.iterdir()) == []
        finally:
            store.close()


@pytest.fixture
async def sweep(tmp_path: Path, make_store: Any, registry: Any) -> Any:
    host = await registry()
    other = make_store("other")
    image = await imported(other, f"{host}/p:1", {"f": os.urandom(300_000), "d/g": b"y"})
    other.prepare("d" * 64, image)
    (other.rootfs("d" * 64).upper / "second").write_bytes(os.urandom(100_000))
    second = await other.commit("d" * 64, {})
    other.tag(second, f"{host}/p:1")
    other.tag(second, "l:1")
    await other.push(f"{host}/p:1")
    (tmp_path / "load.tar").write_bytes(b"".join(await other.save(["l:1"])))
    (tmp_path / "import.tar").write_bytes(tar_of({"x": b"x" * 50_000, "y/z": ("link", "../x")}))
    made = Sweep(tmp_path, host)
    await made.restored()
    yield made
    await made.zygote.close()


async def registry_is_whole(host: str, name: str) -> None:
    """What a tag names is all there."""
    async with Client() as client:
        found = await client.request("GET", f"http://{host}/v2/{name}/manifests/1")
        body = await found.read()
        if found.status == 200:
            manifest = json.loads(body)
            for entry in (manifest["config"], *manifest["layers"]):
                head = await client.request("HEAD", f"http://{host}/v2/{name}/blobs/{entry['digest']}")
                assert head.status == 200 and head.headers.get("Content-Length") == str(entry["size"])


MADE = {"import": "i:1", "load": "l:1", "commit": "c:1"}


@pytest.mark.parametrize("what", ["import", "load", "commit", "pull", "push", "remove", "prune"])
async def test_killed_at_each_step(sweep: Sweep, what: str) -> None:
    count = int((await sweep.zygote.ask(what)).split()[1])
    assert count > 2
    await sweep.restored()
    for at in chosen(count, SEED, STEPS):
        # Threads work side by side: one run may make a step or two less than another, and come to its end.
        answer = await sweep.zygote.ask(what, at)
        store = sweep.store()
        try:
            whole(store)
            if answer.startswith("done") and what in MADE:
                assert store.find(MADE[what]) is not None
        finally:
            store.close()
        if what == "push":
            await registry_is_whole(sweep.host, "pushed")
        await sweep.restored()
