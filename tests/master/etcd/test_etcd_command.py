"""`longshore etcd` as a process: served to etcdctl, saved, restored, moved to a real etcd and back."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.machinery import process
from longshore.master.etcd import move
from longshore.master.etcd.client import EtcdStore
from longshore.master.etcd.embedded import EmbeddedStore
from longshore.master.etcd.model import StoreError, Unavailable

URL, REAL = "http://127.0.0.1:23790", "http://127.0.0.1:23890"


async def reachable(url: str) -> EtcdStore:
    for _ in range(300):
        try:
            return await EtcdStore.open([url])
        except Unavailable:
            await asyncio.sleep(0.05)
    raise AssertionError(f"nobody answers at {url}")


def ours(folder: Path) -> subprocess.Popen[bytes]:
    start = "import sys; from longshore.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "etcd", "--data-dir", str(folder), "--listen-client-urls", URL]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[str]:
    if not shutil.which("etcd"):
        pytest.skip("etcd-server is not installed")
    peer = "http://127.0.0.1:23891"
    server = subprocess.Popen(
        [
            "etcd", "--data-dir", str(tmp_path / "real"), "--listen-client-urls", REAL, "--advertise-client-urls", REAL,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield REAL
    server.kill()
    server.wait()


async def test_serve_kill_serve_again_save_and_restore(tmp_path: Path) -> None:
    if not shutil.which("etcdctl"):
        pytest.skip("etcd-client is not installed")
    environment = {**os.environ, "ETCDCTL_API": "3"}

    async def ctl(*words: str) -> str:
        done = await process.run(["etcdctl", f"--endpoints={URL}", *words], env=environment, timeout=30)
        return done.stdout.decode()

    server = ours(tmp_path / "one")
    try:
        store = await reachable(URL)
        for number in range(50):
            await store.put(b"k%d" % number, b"v")
        await store.close()
        server.kill()
        server.wait()
        server = ours(tmp_path / "one")
        await (await reachable(URL)).close()
        assert len((await ctl("get", "--prefix", "k", "--keys-only")).split()) == 50
        await ctl("snapshot", "save", str(tmp_path / "copy.db"))
    finally:
        server.terminate()
        assert server.wait(20) == 0
    start = "import sys; from longshore.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [
        sys.executable,
        "-c",
        start,
        "etcd",
        "restore",
        str(tmp_path / "copy.db"),
        "--data-dir",
        str(tmp_path / "two"),
    ]
    assert "restored revision 51" in (await process.run(words)).stdout.decode()
    damaged = bytearray((tmp_path / "copy.db").read_bytes())
    damaged[5000] ^= 1
    (tmp_path / "copy.db").write_bytes(damaged)
    words[-1] = str(tmp_path / "three")
    failed = await process.run(words, check=False)
    assert failed.returncode == 1 and b"checksum" in failed.stderr
    restored = await EmbeddedStore.open(tmp_path / "two" / "member" / "store.db")
    assert restored.revision == 51 and (await restored.range(b"k49")).kvs[0].mod_revision == 51
    await restored.close()


async def test_move_to_etcd_and_back(tmp_path: Path, real: str) -> None:
    await (await reachable(real)).close()
    store = await EmbeddedStore.open(tmp_path / "a.db")
    lease = await store.lease_grant(1000)
    for number in range(1300):
        await store.put(b"/k/%d" % number, b"v" * (number % 3000), lease=lease.id if number == 7 else 0)
    await store.delete(b"/k/5")
    revision, keys = store.revision, {kv.key: kv.value for kv in (await store.range(b"\0", b"\0")).kvs}
    await store.close()
    assert await move.move(str(tmp_path / "a.db"), real) == 1299
    with pytest.raises(StoreError, match="not empty"):
        await move.move(str(tmp_path / "a.db"), real)
    assert await move.move(real, str(tmp_path / "b.db")) == 1299
    back = await EmbeddedStore.open(tmp_path / "b.db")
    assert {kv.key: kv.value for kv in (await back.range(b"\0", b"\0")).kvs} == keys
    assert back.revision > revision
    assert (await back.lease_time_to_live(lease.id, keys=True)).keys == (b"/k/7",)
    await back.close()
