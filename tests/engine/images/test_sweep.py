"""The store after an end at any step of any operation: the process is killed before its Nth change of the disk.

A few steps of each are tried, by a seed; with LONGSHORE_SWEEP=all every one, in a few minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.images.pack import hash_tree
from longshore.engine.images.store import ImageStore
from longshore.machinery.http import Client

from .conftest import imported, tar_of
from .test_crash import check

pytestmark = pytest.mark.root
SEED = 20
STEPS = 5

#: Reads "operation N" from its input; forks one process for each, which kills itself before its Nth change of the disk.
ZYGOTE = """
import asyncio, os, signal, sys
from pathlib import Path
from longshore.engine.images import archive, commit, loading, pull, push, references, removal, variants
from longshore.engine.images.database import Database
from longshore.engine.images.store import ImageStore
from longshore.machinery.http import Client

root, state, host, work = sys.argv[1:]
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.utime"}
left = done = 0
armed = False

def step():
    global left, done
    done += 1
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def hook(event, arguments):
    if armed and (event in CHANGES or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        step()

write = Database.write
def stepped(self, **options):
    if armed:
        step()
    return write(self, **options)
Database.write = stepped

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

def child(what, at):
    global left, armed
    sys.addaudithook(hook)
    store = ImageStore(Path(root), state=Path(state))
    left, armed = at, True
    asyncio.run(operate(store, what))
    armed = False
    os.write(1, b"done %d\\n" % done)
    os._exit(0)

os.write(1, b"ready\\n")
for line in sys.stdin:
    what, at = line.split()
    process = os.fork()
    if not process:
        try:
            child(what, int(at))
        except BaseException as error:
            os.write(1, b"failed %r\\n" % str(error))
            os._exit(1)
    if os.WIFSIGNALED(os.waitpid(process, 0)[1]):
        os.write(1, b"killed\\n")
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
        self.process: asyncio.subprocess.Process | None = None

    async def ask(self, what: str, at: int) -> str:
        if self.process is None:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", ZYGOTE, str(self.root / "s"), str(self.root / "state"), self.host, str(self.root),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            await self._line()
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {at}\n".encode())
        return await self._line()

    async def _line(self) -> str:
        assert self.process is not None and self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 60)).decode().strip()

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
    if made.process is not None:
        assert made.process.stdin is not None
        made.process.stdin.close()
        await made.process.wait()


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
    answer = await sweep.ask(what, 10**9)
    assert answer.startswith("done "), answer
    count = int(answer.split()[1])
    assert count > 2
    await sweep.restored()
    every = range(1, count + 1)
    chosen = (
        every
        if os.environ.get("LONGSHORE_SWEEP") == "all"
        else sorted(random.Random(SEED).sample(every, min(STEPS, count)))
    )
    for at in chosen:
        answer = await sweep.ask(what, at)
        # Threads work side by side: a step or two may be saved.
        assert answer == "killed" or answer.startswith("done"), (at, answer)
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
