"""What is acknowledged is there: after kill -9, a torn last write, a full disk, a second process on the same file."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.master.etcd import committer, log, snapshot, wal
from longshore.master.etcd.embedded import EmbeddedStore
from longshore.master.etcd.model import Compacted, Corrupt, NoSpace, StoreError, Unavailable

WRITER = Path(__file__).with_name("etcd_writer.py")
chance = random.Random(5)


def kill_while_writing(path: Path, seed: str, seconds: float) -> dict[str, tuple[str, int, int]]:
    """Run the writer, kill -9 it in the middle; the last acknowledged (value, revision, length) of each key."""
    process = subprocess.Popen([sys.executable, str(WRITER), str(path), seed], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.set_blocking(process.stdout.fileno(), False)
    said = b""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        said += process.stdout.read() or b""
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said += process.stdout.read() or b""
    process.stdout.close()
    acknowledged = {}
    for line in said.decode().splitlines(keepends=True):
        if line.endswith("\n"):
            key, value, revision, length = line.split()
            acknowledged[key] = (value, int(revision), int(length))
    return acknowledged


async def check(path: Path, acknowledged: dict[str, tuple[str, int, int]]) -> None:
    store = await EmbeddedStore.open(path)
    try:
        for key, (value, revision, length) in acknowledged.items():
            kvs = (await store.range(key.encode())).kvs
            assert kvs, key
            # A later write of the same key may have reached the disk without its acknowledgement having been read.
            assert kvs[0].mod_revision >= revision
            if kvs[0].mod_revision == revision:
                assert kvs[0].value.decode().startswith(value) and len(kvs[0].value) == length
        everything = (await store.range(b"\0", b"\0")).kvs
        watch = store.watch(b"\0", b"\0", start_revision=max(store.compact_revision, 1))
        watch.request_progress()
        latest = {}
        last = 0
        while (batch := await watch.__anext__()).events:
            for event in batch.events:
                assert event.kv.mod_revision >= last
                last = event.kv.mod_revision
                latest[event.kv.key] = event.kv
            watch.request_progress()
        for kv in everything:
            if kv.mod_revision >= max(store.compact_revision, 1):
                assert latest[kv.key] == kv
    finally:
        await store.close()


async def test_kill_9_again_and_again_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    acknowledged: dict[str, tuple[str, int, int]] = {}
    for turn in range(6):
        got = await asyncio.to_thread(kill_while_writing, path, str(turn), 0.1 + chance.random() * 0.4)
        acknowledged |= got
        await check(path, acknowledged)
    assert len(acknowledged) == 40


def small_wal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write-ahead log that is filled ahead, and begins anew, after little."""
    monkeypatch.setattr(log, "WAL_BYTES", 2**20)
    monkeypatch.setattr(committer, "_CHECKPOINT_BYTES", 2**18)
    monkeypatch.setattr(wal, "_STEP", 2**18)
    monkeypatch.setattr(wal, "_BEHIND", 2**16)


@pytest.mark.parametrize("earlier", [0, 500])
async def test_a_torn_last_write_is_dropped_and_the_store_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: int
) -> None:
    """With nothing, zeros, or commits of the log's last turn behind what was torn."""
    small_wal(monkeypatch)
    path = tmp_path / "store.db"
    store = await EmbeddedStore.open(path)
    for _ in range(earlier):
        await store.put(b"/earlier", b"e" * 3000)
    for number in range(50):
        await store.put(b"/k/%d" % number, b"v" * 3000)
    file = Path(f"{path}-wal")
    before, main = file.read_bytes(), path.read_bytes()
    await store.put(b"/last", b"w" * 3000)
    after = file.read_bytes()
    await store.close()
    old = before.ljust(len(after), b"\0")
    changed = [at for at, (left, right) in enumerate(zip(old, after, strict=True)) if left != right]
    first, last = changed[0], changed[-1]
    assert last - first > 3000
    for cut in (first + 1, first + 700, first + 2024, last):
        for number, rest in enumerate({b"", old[cut:], bytes(len(after) - cut)}):
            folder = tmp_path / f"{cut}-{number}"
            folder.mkdir()
            (folder / "store.db").write_bytes(main)
            (folder / "store.db-wal").write_bytes(after[:cut] + rest)
            torn = await EmbeddedStore.open(folder / "store.db")
            assert (await torn.range(b"/k/", b"/k0", count_only=True)).count == 50
            assert not (await torn.range(b"/last")).kvs
            assert (await torn.put(b"/last", b"again")).revision == earlier + 52
            await torn.close()


async def test_the_log_keeps_its_size_and_is_whole_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_wal(monkeypatch)
    path = tmp_path / "store.db"
    store = await EmbeddedStore.open(path)
    assert isinstance(store.log, log.SqliteLog)
    sizes, turns, written = set(), 0, 0
    for number in range(600):
        await store.put(b"/k/%d" % number, b"%d" % number * 300)
        turns += store.log.wal.written < written
        written = store.log.wal.written
        sizes.add(store.log.wal.size)
        if number % 97 == 0:
            folder = tmp_path / str(number)
            folder.mkdir()
            for name in ("store.db-wal", "store.db"):  # as a crash leaves them: no checkpoint runs meanwhile
                shutil.copy(tmp_path / name, folder / name)
            found = await EmbeddedStore.open(folder / "store.db")
            values = {kv.key: kv.value for kv in (await found.range(b"/k/", b"/k0")).kvs}
            assert values == {b"/k/%d" % n: b"%d" % n * 300 for n in range(number + 1)}
            await found.close()
    assert turns >= 2
    assert max(sizes) < 2 * 2**20
    assert len(sizes) < 100, "most commits overwrite"
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """3 MB of tmpfs, in this process's own mount namespace."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(mount)], check=True)
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.root
async def test_a_full_disk_refuses_writes_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 1024 * 1024)
    store = await EmbeddedStore.open(small_disk / "store.db")
    watch = store.watch(b"/", b"0")
    stored: dict[bytes, bytes] = {}
    refused = 0
    for number in range(800):
        key, value = b"/k/%d" % number, b"%d" % number * 400
        revision = store.revision
        try:
            assert (await store.put(key, value)).revision == revision + 1
            stored[key] = value
        except NoSpace:
            refused += 1
            assert store.revision == revision
            assert not (await store.range(key)).kvs
            if refused == 3:
                break
    assert refused == 3
    # Several that share a batch, one of them checked against another's change.
    answers = await asyncio.gather(
        store.put(b"/x", b"1" * 50_000),
        store.create(b"/y", b"2"),
        store.update(b"/x", b"3", 0),
        return_exceptions=True,
    )
    assert any(isinstance(a, NoSpace) for a in answers)
    ballast.unlink()
    await store.put(b"/after", b"room")
    stored[b"/after"] = b"room"
    await store.delete(b"/x")
    await store.delete(b"/y")
    got = {kv.key: kv.value for kv in (await store.range(b"/", b"0")).kvs}
    assert got == stored
    revision = store.revision
    watch.request_progress()
    told = {}
    while (batch := await watch.__anext__()).events:
        told |= {e.kv.key: e.kv.value for e in batch.events if e.type == "PUT"}
        assert [e.kv.mod_revision for e in batch.events] == sorted(e.kv.mod_revision for e in batch.events)
        watch.request_progress()
    assert {k: v for k, v in told.items() if k not in (b"/x", b"/y")} == stored
    await store.close()
    store = await EmbeddedStore.open(small_disk / "store.db")
    assert store.revision == revision
    assert {kv.key: kv.value for kv in (await store.range(b"/", b"0")).kvs} == stored
    await store.close()


class FailingLog:
    """Stands between the committer and the log, and fails the commits it is told to fail."""

    def __init__(self, log: object) -> None:
        self.__dict__["log"] = log
        self.__dict__["fail"] = 0
        self.__dict__["delay"] = 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self.log, name)

    def append(self, rows: object, leases: object) -> None:
        time.sleep(self.delay)
        if self.fail:
            self.__dict__["fail"] -= 1
            raise OSError(28, "No space left on device")
        self.log.append(rows, leases)


async def test_a_failed_commit_fails_exactly_its_writes_and_checks_the_others_anew(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "store.db")
    assert store._committer is not None
    log = FailingLog(store.log)
    store._committer._log = log  # type: ignore[assignment]
    await store.put(b"a", b"0")
    log.__dict__.update(fail=1, delay=0.05)
    first = store.create(b"b", b"1")
    lease = store.lease_grant(100, 77)
    await asyncio.sleep(0.01)  # the first batch is with the committer; what follows is checked against it
    second = store.update(b"b", b"2", 3)
    third = store.create(b"b", b"3")
    reader = store.txn([], [], [])
    answers = await asyncio.gather(first, second, third, lease, reader, return_exceptions=True)
    assert isinstance(answers[0], NoSpace)
    assert isinstance(answers[3], NoSpace)
    assert answers[1].succeeded is False and answers[1].kv is None  # type: ignore[union-attr]
    assert answers[2].succeeded is True and answers[2].revision == 3  # type: ignore[union-attr]
    assert await store.lease_list() == []
    assert (await store.range(b"b")).kvs[0].value == b"3"
    assert store.revision == 3
    await store.close()


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "store.db")
    with pytest.raises(Unavailable, match="in use"):
        await EmbeddedStore.open(tmp_path / "store.db")
    await store.close()
    await (await EmbeddedStore.open(tmp_path / "store.db")).close()


async def test_closing_answers_what_is_under_way_and_refuses_the_rest(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "store.db")
    watch = store.watch(b"k")
    under_way = store.put(b"k", b"v")
    await store.close()
    assert (await under_way).revision == 2
    with pytest.raises(Unavailable):
        await store.put(b"k", b"w")
    with pytest.raises(Unavailable):
        await store.range(b"k")
    assert [e.kv.value for e in (await watch.__anext__()).events] == [b"v"]
    with pytest.raises(Unavailable):
        await watch.__anext__()


@pytest.mark.parametrize("kind", ["memory", "disk"])
async def test_snapshot_while_writing_and_restore(tmp_path: Path, kind: str) -> None:
    store = await EmbeddedStore.open(tmp_path / "a" / "store.db" if kind == "disk" else None)
    lease = await store.lease_grant(500)
    for number in range(300):
        await store.put(b"/k/%d" % (number % 100), b"%d" % number, lease=lease.id if number == 299 else 0)
    await store.delete(b"/k/5")
    await store.compact(200)
    stop = False

    async def writer() -> None:
        number = 0
        while not stop:
            await store.put(b"/w/%d" % number, b"x" * 2000)
            number += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(writer())
    await asyncio.sleep(0.01)
    revision = await store.snapshot(tmp_path / "copy.db")
    stop = True
    await task
    with pytest.raises(FileExistsError):
        await store.snapshot(tmp_path / "copy.db")
    expected = (await store.range(b"\0", b"\0", revision=revision)).kvs
    await store.close()
    assert snapshot.restore(tmp_path / "copy.db", tmp_path / "b" / "store.db") == revision
    with pytest.raises(FileExistsError):
        snapshot.restore(tmp_path / "copy.db", tmp_path / "b" / "store.db")
    again = await EmbeddedStore.open(tmp_path / "b" / "store.db")
    assert again.revision == revision
    assert (await again.range(b"\0", b"\0")).kvs == expected
    assert (await again.lease_time_to_live(lease.id, keys=True)).keys == (b"/k/99",)
    with pytest.raises(Compacted):
        await again.range(b"/k/1", revision=150)
    await again.close()


async def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"no such thing" * 1000)
    with pytest.raises(Corrupt):
        snapshot.restore(tmp_path / "bad.db", tmp_path / "store.db")
    assert not (tmp_path / "store.db").exists()


async def test_leases_survive_a_restart_and_expire(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "store.db")
    lease = await store.lease_grant(2)
    other = await store.lease_grant(1000)
    await store.put(b"short", b"1", lease=lease.id)
    await store.put(b"moved", b"1", lease=lease.id)
    await store.put(b"moved", b"1", lease=other.id)
    await store.close()
    store = await EmbeddedStore.open(tmp_path / "store.db")
    watch = store.watch(b"\0", b"\0")
    assert (await store.lease_time_to_live(lease.id, keys=True)).keys == (b"short",)
    batch = await asyncio.wait_for(watch.__anext__(), 10)
    assert [(e.type, e.kv.key) for e in batch.events] == [("DELETE", b"short")]
    assert (await store.lease_time_to_live(lease.id)).ttl == -1
    assert await store.lease_list() == [other.id]
    with pytest.raises(StoreError, match="lease not found"):
        await store.lease_keepalive(lease.id)
    assert (await store.lease_keepalive(other.id)).ttl == 1000
    await store.close()
