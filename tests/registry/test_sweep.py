"""The registry's storage after an end at any step of a push, mount, deletion or collection."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tests.support.killed import Zygote, chosen

from longshore.registry.storage import Storage

SEED = 6
STEPS = 6
ZYGOTE = """
import json, os, sys
from pathlib import Path
from longshore.registry import manifests
from longshore.registry.storage import Manifest, Storage, digest_of
from longshore.registry.uploads import Uploads
from tests.support.killed import serve

async def blob(storage, repository, data):
    uploads = Uploads(storage)
    name = uploads.begin(repository)
    upload = await uploads.get(repository, name)
    for start in range(0, len(data), 40_000):
        upload.write([data[start : start + 40_000]])
    await uploads.finish(name, upload, digest_of(data))
    return digest_of(data)

def manifest(storage, repository, tag, blobs):
    body = json.dumps({"blobs": blobs, "tag": tag}).encode()
    assert not storage.put_manifest(repository, [tag], Manifest(digest_of(body), manifests.OCI_MANIFEST, body), blobs=blobs)

async def operate(storage, what):
    if what == "push":
        manifest(storage, "a", os.urandom(4).hex(), [await blob(storage, "a", os.urandom(100_000)) for _ in range(2)])
    elif what == "mount":
        found = await blob(storage, "source", os.urandom(1000))
        assert storage.mount("other", "source", found)
        manifest(storage, "other", "t", [found])
    elif what == "delete":
        found = await blob(storage, "b", os.urandom(1000))
        manifest(storage, "b", "t", [found])
        storage.delete_manifest("b", storage.manifest("b", "t").digest)
        storage.unlink("b", found)
    elif what == "collect":
        for _ in range(3):
            await blob(storage, "c", os.urandom(1000))
        manifest(storage, "c", "t", [await blob(storage, "c", os.urandom(1000))])
        storage.collect(grace=-10, upload_grace=-10)

serve(Storage, lambda: Storage(Path(sys.argv[1])), operate)
"""


def digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def check(root: Path) -> None:
    """What a manifest names is there and what it should be; a collection leaves nothing that nobody knows."""
    storage = Storage(root)
    try:
        for repository, name, body in storage.all("SELECT repository, digest, body FROM manifests"):
            assert "sha256:" + hashlib.sha256(body).hexdigest() == name
            for wanted in json.loads(body)["blobs"]:
                assert storage.blob_size(repository, wanted) is not None
        for repository, tag in storage.all("SELECT repository, tag FROM tags"):
            assert storage.manifest(repository, tag) is not None
        for name, size in storage.all("SELECT digest, size FROM blobs"):
            assert digest(storage.blob_path(name)) == name and storage.blob_path(name).stat().st_size == size
        storage.collect(grace=-10, upload_grace=-10)
        known = {row[0].partition(":")[2] for row in storage.all("SELECT digest FROM blobs")}
        assert {path.name for path in (root / "blobs").rglob("*") if path.is_file()} == known
        assert list((root / "uploads").iterdir()) == [] and storage.all("SELECT id FROM uploads") == []
        needed = {row[0] for row in storage.all("SELECT digest FROM needs")}
        assert {row[0] for row in storage.all("SELECT digest FROM blobs")} == needed
    finally:
        storage.close()


@pytest.mark.parametrize("what", ["push", "mount", "delete", "collect"])
async def test_killed_at_each_step(tmp_path: Path, what: str) -> None:
    zygote = Zygote(ZYGOTE, str(tmp_path))
    try:
        count = int((await zygote.ask(what)).split()[1])
        check(tmp_path)
        assert count > 5
        for at in chosen(count, SEED, STEPS):
            await zygote.ask(what, at)
            check(tmp_path)
    finally:
        await zygote.close()
