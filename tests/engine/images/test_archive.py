"""save and load, both forms, there and back."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.errors import EngineError

from .conftest import imported, once, tar_of

pytestmark = pytest.mark.root


async def saved(store: Any, *names: str) -> bytes:
    return b"".join(await store.save(list(names)))


def opened(data: bytes) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(data))


async def test_there_and_back(make_store: Any) -> None:
    one, two = make_store("one"), make_store("two")
    image = await imported(one, "im:1", {"a": b"1" * 1000, "b/c": b"2"}, run_config={"Cmd": ["x"]})
    one.tag(image, "im:2")
    data = await saved(one, "im")
    names = opened(data).getnames()
    assert names[:2] == ["blobs", "blobs/sha256"] and names[-4:] == [
        "index.json",
        "manifest.json",
        "oci-layout",
        "repositories",
    ]
    for body in (data, gzip.compress(data)):
        said: list[dict[str, Any]] = []
        await two.load(once(body), progress=said.append)
        assert said == [{"stream": "Loaded image: im:1\n"}, {"stream": "Loaded image: im:2\n"}]
    assert two.resolve("im:2").id == image.id and two.layer_dirs("im:1")[0].joinpath("b/c").read_bytes() == b"2"
    # Our own tar is written again, not kept: no blob.
    assert list((two.root / "blobs" / "sha256").iterdir()) == [] and list((two.root / "tmp").iterdir()) == []
    assert await saved(two, "im:1") == await saved(one, "im:1")


async def test_by_id_and_missing(store: Any) -> None:
    image = await imported(store, "im:1", {"a": b"1"})
    manifest = opened(await saved(store, image.id)).extractfile("manifest.json")
    assert manifest and json.load(manifest)[0]["RepoTags"] is None
    with pytest.raises(EngineError, match=r"^No such image: nope$"):
        await saved(store, "nope")
    with pytest.raises(EngineError, match="no suitable export target found for platform linux/s390x"):
        await store.save(["im:1"], platform="linux/s390x")


async def test_foreign_layer_keeps_its_bytes(make_store: Any) -> None:
    import hashlib

    layer = tar_of({"./z": b"1", "./a": b"2"})  # an order and names that we would not write
    diff = "sha256:" + hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [diff]}}
    ).encode()
    manifest = json.dumps([{"Config": "c.json", "RepoTags": ["q:1"], "Layers": ["l/layer.tar"]}]).encode()
    store = make_store("one")
    said: list[dict[str, Any]] = []
    await store.load(
        once(
            tar_of(
                {"c.json": config, "real.tar": layer, "l/layer.tar": ("link", "../real.tar"), "manifest.json": manifest}
            )
        ),
        progress=said.append,
        quiet=False,
    )
    assert said[0]["status"] == "Loading layer" and said[-1] == {"stream": "Loaded image: q:1\n"}
    assert store.resolve("q:1").id == "sha256:" + hashlib.sha256(config).hexdigest()
    archive = opened(await saved(store, "q:1"))
    found = archive.extractfile(f"blobs/sha256/{diff[7:]}")
    assert found and found.read() == layer


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"garbage", "unexpected EOF"),
        (tar_of({"x": b"y"}), "/repositories: no such file or directory"),
        (tar_of({"manifest.json": b"{"}), "unexpected EOF"),
        (
            tar_of({"manifest.json": b'[{"Config":"x.json","RepoTags":["q:1"],"Layers":[]}]'}),
            "/x.json: no such file or directory",
        ),
        (tar_of({"manifest.json": b'[{"Config":"../../../../etc/passwd","Layers":[]}]'}), "no such file or directory"),
        (
            tar_of({"manifest.json": b'[{"Config":"p","Layers":[]}]', "p": ("link", "/etc/passwd")}),
            "no such file or directory",
        ),
    ],
)
async def test_bad_archives(store: Any, body: bytes, message: str) -> None:
    with pytest.raises(EngineError) as caught:
        await store.load(once(body))
    assert message in caught.value.message
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
async def test_skopeo_reads_and_writes_it(make_store: Any, tmp_path: Path) -> None:
    one, two = make_store("one"), make_store("two")
    image = await imported(one, "im:1", {"a": b"1"}, run_config={"Cmd": ["x"]})
    (tmp_path / "s.tar").write_bytes(await saved(one, "im:1"))

    async def skopeo(*words: str) -> None:
        process = await asyncio.create_subprocess_exec("skopeo", *words, stderr=asyncio.subprocess.PIPE)
        _, err = await process.communicate()
        assert process.returncode == 0, err.decode()

    await skopeo("copy", f"docker-archive:{tmp_path}/s.tar", f"oci-archive:{tmp_path}/o.tar:back:1")
    await skopeo("copy", f"oci-archive:{tmp_path}/o.tar", f"docker-archive:{tmp_path}/d.tar:again:2")
    said: list[dict[str, Any]] = []
    await two.load(once((tmp_path / "d.tar").read_bytes()), progress=said.append)
    assert said[-1] == {"stream": "Loaded image: again:2\n"} and two.resolve("again:2").diff_ids == image.diff_ids
    await two.load(once((tmp_path / "o.tar").read_bytes()), progress=said.append)


async def test_a_layer_that_was_changed_is_not_saved(store: Any) -> None:
    image = await imported(store, "im:1", {"a": b"1" * 1000, "b": b"2"})
    (folder,) = store.layer_dirs(image)
    data = await saved(store, "im:1")
    (folder / "b").chmod(0o600)
    (folder / "b").chmod(0o644)
    assert await saved(store, "im:1") == data  # touched, and still the same
    info = (folder / "a").stat()
    (folder / "a").write_bytes(b"3" * 1000)
    os.utime(folder / "a", ns=(info.st_atime_ns, info.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(EngineError, match="has changed on disk"):
            await saved(store, "im:1")
