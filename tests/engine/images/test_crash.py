"""The store after a kill -9 at any moment, and under two engines at once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.errors import EngineError
from longshore.engine.images import references
from longshore.engine.images.store import ImageStore

from .conftest import imported, once, tar_of

pytestmark = pytest.mark.root

WORK = """
import asyncio, io, random, sys, tarfile
from pathlib import Path
from longshore.engine.images import references
from longshore.engine.images.store import ImageStore

def tar_of(n):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for i in range(40):
            info = tarfile.TarInfo(f"d{n}/f{i}"); info.size = 2000
            t.addfile(info, io.BytesIO(bytes([n]) * 2000))
    return out.getvalue()

async def once(data):
    yield data

async def main():
    store = ImageStore(Path(sys.argv[1]), state=Path(sys.argv[2]))
    print("ready", flush=True)
    n = 0
    while True:
        n = (n + 1) % 7
        image = await store.import_(once(tar_of(n)), name=references.parse(f"i{n}:1"))
        print("made", f"i{n}:1", image.id, flush=True)
        root = store.prepare(f"{n:064x}", image)
        root.mount()
        (root.merged / "new").write_text(str(n))
        await store.commit(f"{n:064x}", {}, name=references.parse(f"c{n}:1"))
        data = b"".join(await store.save([f"c{n}:1"]))
        store.release(f"{n:064x}")
        await store.remove(f"c{n}:1", force=True)
        await store.load(once(data))
        if n % 3 == 0:
            await store.remove(f"c{n}:1", force=True)
            await store.remove(f"i{n}:1", force=True)
            print("gone", f"i{n}:1", flush=True)

asyncio.run(main())
"""


def check(store: ImageStore) -> None:
    """Every row has what it says, and nothing lies about that no row knows."""
    rows = store.database.all("SELECT chain, parent, blob, folder FROM layers")
    chains = {row[0] for row in rows}
    for _, parent, blob, folder in rows:
        assert (store.root / "overlay2" / folder / "diff").is_dir()
        assert (store.root / "l" / folder[:12] / ".").is_dir()
        assert not parent or parent in chains
        assert not blob or store.blobs.has(blob)
    assert {path.name for path in (store.root / "overlay2").iterdir()} == {row[3] for row in rows}
    ids = {image.id for image in store.images()}
    for image in store.images():
        assert not image.chain or image.chain in chains
        assert len(store.layers.stack(image.chain)) == len(image.diff_ids)
    assert {row[0] for row in store.database.all("SELECT image FROM names")} <= ids
    assert {f"sha256:{path.name}" for path in store.blobs.folder.iterdir()} <= {row[2] for row in rows}


async def test_killed_at_any_moment(tmp_path: Path) -> None:
    chance = random.Random(7)
    acknowledged: dict[str, str] = {}
    for _ in range(5):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORK, str(tmp_path / "one"), str(tmp_path / "state"), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        assert (await child.stdout.readline()).strip() == b"ready"
        await asyncio.sleep(chance.uniform(0.05, 0.5))
        os.kill(child.pid, signal.SIGKILL)
        going: set[str] = set()
        for line in (await child.stdout.read()).decode().splitlines(keepends=True):
            if not line.endswith("\n"):
                continue  # it was killed while it told this
            words = line.split()
            if words[0] == "made" and len(words) == 3 and len(words[2]) == 71:
                acknowledged[words[1]] = words[2]
            elif words[0] == "gone":
                acknowledged.pop(words[1], None)
        await child.wait()
        store = ImageStore(tmp_path / "one", state=tmp_path / "state")
        try:
            check(store)
            # What was under way when it died may be gone already; what was told before that must be there.
            going = {name for name in acknowledged if store.find(name) is None}
            assert len(going) <= 1
            for name in going:
                acknowledged.pop(name)
            for name, image in acknowledged.items():
                assert store.resolve(name).config and image.startswith("sha256:")
            for (container,) in store.database.all("SELECT container FROM uses"):
                store.release(container)
            check(store)
        finally:
            store.close()


async def test_two_engines_at_once(make_store: Any) -> None:
    one, two = make_store("shared", "one"), make_store("shared", "two")
    data = [tar_of({f"f{n}": bytes([n]) * 5000, "common": b"x"}) for n in range(4)]
    end = time.monotonic() + 2

    async def work(store: ImageStore, seed: int) -> int:
        chance = random.Random(seed)
        done = 0
        while time.monotonic() < end:
            n = chance.randrange(4)
            try:
                image = await store.import_(once(data[n]), name=references.parse(f"n{n}:1"))
                root = store.prepare(f"{seed:08x}{done:056x}", image)
                assert (root.mount() / f"f{n}").read_bytes() == bytes([n]) * 5000
                await store.remove(f"n{n}:1", force=True)
                assert (root.merged / "common").read_bytes() == b"x"
                store.release(root.id)
            except EngineError as error:
                # The other one may have taken the name or the image away in between.
                assert error.status in (404, 409), error
            done += 1
        return done

    counts = await asyncio.gather(work(one, 1), work(two, 2), work(one, 3), work(two, 4))
    assert min(counts) > 0
    check(one)
    for store in (one, two):
        for (container,) in store.database.all("SELECT container FROM uses WHERE owner=?", store.owner):
            store.release(container)
    await one.prune({"dangling": ["false"]})
    check(two)


async def test_in_use_stays(make_store: Any) -> None:
    """What a container of another engine uses is not taken away, not even by force."""
    one, two = make_store("shared", "one"), make_store("shared", "two")
    image = await imported(one, "a:1", {"f": b"1"})
    root = two.prepare("b" * 64, "a:1")
    with pytest.raises(EngineError, match=r"unable to remove repository reference \"a:1\""):
        await one.remove("a:1")
    with pytest.raises(EngineError, match="cannot be forced"):
        await one.remove(image.id, force=True)
    assert (await one.prune({"dangling": ["false"]}))["ImagesDeleted"] is None
    assert (root.mount() / "f").read_bytes() == b"1"
    two.release("b" * 64)
    assert (await one.prune({"dangling": ["false"]}))["ImagesDeleted"][-1]["Deleted"] == image.chain


async def test_prune_beside_pulls_and_runs(make_store: Any, registry: Any) -> None:
    """Everything is pruned all the time: a pull that ended has its image, a container that was made keeps its root."""
    host = await registry()
    source = make_store("source")
    for number in range(3):
        await imported(source, f"{host}/p:{number}", {"common": b"x" * 1000, "f": bytes([number]) * 50_000})
        await source.push(f"{host}/p:{number}")
    one, two = make_store("shared", "one"), make_store("shared", "two")
    stop = asyncio.Event()
    lost = done = 0

    async def collect() -> None:
        while not stop.is_set():
            await two.prune({"dangling": ["false"]})
            await asyncio.sleep(0)

    async def run(store: ImageStore, seed: int) -> None:
        nonlocal lost, done
        chance = random.Random(seed)
        for turn in range(12):
            number = chance.randrange(3)
            image = await store.pull(f"{host}/p:{number}")
            try:
                root = store.prepare(f"{seed:08x}{turn:056x}", image)
            except EngineError as error:
                assert error.status == 404
                lost += 1  # pruned between its pull and its container
                continue
            await asyncio.sleep(chance.uniform(0, 0.01))
            assert (root.mount() / "f").read_bytes() == bytes([number]) * 50_000
            store.release(root.id)
            done += 1

    collecting = asyncio.create_task(collect())
    await asyncio.gather(run(one, 1), run(two, 2), run(one, 3))
    stop.set()
    await collecting
    assert done > 0
    await two.prune({"dangling": ["false"]})
    check(two)
    assert one.list() == [] and list((one.root / "overlay2").iterdir()) == []
