"""The log store and the collector: nothing lost, nothing twice, damage stays where it is."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.node.logs import collector as collector_module
from longshore.node.logs.collector import Collector
from longshore.node.logs.logql.parser import parse_log_query
from longshore.node.logs.query import LogQuerier
from longshore.node.logs.store.segment import Codec
from longshore.node.logs.store.store import LogStore, Retention
from longshore.wire import crilog

NOW = time.time_ns()
EVERYBODY = lambda _namespace: True  # noqa: E731


def write(path: Path, first: int, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as out:
        for number in range(first, first + count):
            out.write(crilog.format_line(NOW + number, b"stdout", b"line %d" % number))


def lines(store: LogStore, text: str = '{namespace="shop"}') -> list[str]:
    entries = LogQuerier(store).entries(parse_log_query(text), 0, 2**62, EVERYBODY)
    return [entry.line for entry in entries]


async def settle(check, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "did not come to pass"
        await asyncio.sleep(0.01)


async def test_lines_are_found_as_they_are_written(tmp_path):
    store = LogStore(tmp_path / "store")
    collector = Collector(tmp_path / "pods", store, "n1")
    collector.start()
    log = tmp_path / "pods" / "shop_front-1_uid-1" / "httpd" / "0.log"
    write(log, 0, 10)
    await settle(lambda: len(lines(store)) == 10)
    write(log, 10, 5)
    await settle(lambda: len(lines(store)) == 15)
    assert lines(store, '{pod="front-1"} |= "line 14"') == ["line 14"]
    collector.close()
    await store.close()


async def test_rotation_loses_and_repeats_nothing(tmp_path):
    store = LogStore(tmp_path / "store")
    collector = Collector(tmp_path / "pods", store, "n1")
    collector.start()
    log = tmp_path / "pods" / "shop_front-1_uid-1" / "httpd" / "0.log"
    for turn in range(5):
        write(log, turn * 100, 100)
        log.rename(log.with_name(f"0.log.{turn}"))
    write(log, 500, 100)
    await settle(lambda: len(lines(store)) >= 600)
    assert lines(store) == [f"line {n}" for n in range(600)]
    collector.close()
    await store.close()


async def test_a_restart_goes_on_at_the_checkpoint(tmp_path):
    log = tmp_path / "pods" / "shop_front-1_uid-1" / "httpd" / "0.log"
    for turn in range(3):
        store = LogStore(tmp_path / "store")
        collector = Collector(tmp_path / "pods", store, "n1")
        write(log, turn * 50, 50)
        collector.start()
        await settle(lambda store=store, turn=turn: len(lines(store)) == (turn + 1) * 50)
        collector.close()
        await store.close()
    store = LogStore(tmp_path / "store")
    assert lines(store) == [f"line {n}" for n in range(150)]
    await store.close()


COLLECT = """
import asyncio, sys
from pathlib import Path
from longshore.node.logs.collector import Collector
from longshore.node.logs.store import store as module
module.FLUSH_SECONDS = 0.01
async def main():
    store = module.LogStore(Path(sys.argv[2]))
    Collector(Path(sys.argv[1]), store, "n1").start()
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_kill_at_any_moment_loses_and_repeats_nothing(tmp_path):
    log = tmp_path / "pods" / "shop_front-1_uid-1" / "httpd" / "0.log"
    written = 0
    for delay in (0.25, 0.3, 0.36, 0.45):
        process = subprocess.Popen([sys.executable, "-c", COLLECT, str(tmp_path / "pods"), str(tmp_path / "store")])
        end = time.monotonic() + delay
        while time.monotonic() < end:
            write(log, written, 50)
            written += 50
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    async def read() -> list[str]:
        store = LogStore(tmp_path / "store")
        collector = Collector(tmp_path / "pods", store, "n1")
        collector.start()
        await settle(lambda: len(lines(store)) >= written)
        collector.close()
        found = lines(store)
        await store.close()
        return found

    assert asyncio.run(read()) == [f"line {n}" for n in range(written)]


async def test_damage_to_one_block_loses_no_other(tmp_path):
    store = LogStore(tmp_path)
    stream = store.stream("shop/a/u/c", {"namespace": "shop", "pod": "a"})
    for block in range(3):
        store.append(stream, crilog.format_line(NOW + block, b"stdout", b"block %d" % block))
        store.flush(stream.id)
        await settle(lambda: store._commit is None)
    (segment,) = tmp_path.glob("shop/*.seg")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)
    assert lines(store) == ["block 0", "block 2"]
    await store.close()
    for name in ("index.db", "index.db-wal", "index.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "index.db").write_bytes(b"this is no database, and it is long enough to be looked at" * 100)
    store = LogStore(tmp_path)
    assert lines(store) == ["block 0", "block 2"]
    await store.close()


async def test_retention_by_age_and_size(tmp_path):
    store = LogStore(tmp_path, Retention(age=3600))
    old = store.stream("old/a/u/c", {"namespace": "old"})
    new = store.stream("new/a/u/c", {"namespace": "new"})
    store.append(old, crilog.format_line(NOW - 2 * 3600 * 10**9, b"stdout", b"old"))
    store.append(new, crilog.format_line(NOW, b"stdout", b"new"))
    store.flush(old.id)
    store.flush(new.id)
    await settle(lambda: store._commit is None)
    assert lines(store, '{namespace=~"old|new"}') == ["new"]
    assert not list(tmp_path.glob("old/*.seg"))
    await store.close()


async def test_streams_that_retention_has_emptied_are_forgotten(tmp_path):
    store = LogStore(tmp_path, Retention(age=3600))
    streams = [store.stream(f"ns/{n}/u/c", {"namespace": "ns", "pod": str(n)}) for n in range(4)]
    for age, stream in zip((2, 2, 0), streams, strict=False):
        store.append(stream, crilog.format_line(NOW - age * 3600 * 10**9, b"stdout", stream.labels["pod"].encode()))
        store.flush(stream.id)
    await settle(lambda: store._commit is None)
    held, _, kept, newest = streams
    assert list(store.index.streams.values()) == [kept, newest]
    store.append(held, crilog.format_line(NOW + 1, b"stdout", b"again"))
    assert lines(store, '{namespace="ns"}') == ["2", "again"]
    assert lines(store, '{pod="0"}') == ["again"]
    await store.close()
    for name in ("index.db", "index.db-wal", "index.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "index.db").write_bytes(b"this is no database, and it is long enough to be looked at" * 100)
    store = LogStore(tmp_path)
    assert sorted(stream.labels["pod"] for stream in store.index.streams.values()) == ["0", "2", "3"]
    assert lines(store, '{namespace="ns"}') == ["2", "again"]
    await store.close()


@pytest.mark.root
async def test_a_full_disk_is_told_and_got_over(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(small)], check=True)
    try:
        store = LogStore(small)
        stream = store.stream("shop/a/u/c", {"namespace": "shop"})
        filler = small / "filler"
        with pytest.raises(OSError):
            filler.write_bytes(os.urandom(2**20))
        store.append(stream, crilog.format_line(NOW, b"stdout", b"held"))
        store.flush(stream.id)
        await settle(lambda: store.failures > 0)
        assert lines(store) == ["held"]
        filler.unlink()
        await settle(lambda: store._commit is None)
        assert lines(store) == ["held"]
        await store.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.root
async def test_new_streams_wait_for_a_full_disk(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(collector_module, "FAILED_SECONDS", 0.05)
    small, pods = tmp_path / "small", tmp_path / "pods"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small)], check=True)
    try:
        store = LogStore(small)
        collector = Collector(pods, store, "n1")
        collector.start()
        filler = small / "filler"
        with pytest.raises(OSError):
            filler.write_bytes(os.urandom(2**23))
        for number in range(40):  # more than what the index has room for
            log = pods / f"shop_front-{number}_uid" / "c" / "0.log"
            log.parent.mkdir(parents=True)
            log.write_bytes(crilog.format_line(NOW + number, b"stdout", b"%d" % number))
        await settle(lambda: "is not read yet" in caplog.text)
        filler.unlink()
        await settle(lambda: len(lines(store)) == 40)
        collector.close()
        await store.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


RECORDS = st.lists(
    st.one_of(
        st.builds(
            crilog.format_line,
            st.integers(0, 4 * 10**18),
            st.sampled_from([b"stdout", b"stderr"]),
            st.binary(max_size=20),
            st.sampled_from([True, True, True, False]),
        ),
        st.binary(max_size=50).map(lambda b: b.replace(b"\n", b"") + b"\n"),
    ),
    max_size=8,
)


@given(
    st.one_of(
        RECORDS,
        st.lists(st.builds(crilog.format_line, st.integers(0, 4 * 10**18), st.just(b"stdout"), st.binary(max_size=9))),
    )
)
def test_a_block_comes_back_as_it_was(found):
    block, codec = b"".join(found), Codec()
    frame = codec.encode(1, 2, 3, len(found), block)
    assert codec.decode(frame) == block
    plain = all(r[31:39] in (b"stdout F", b"stderr F") for r in found)
    if codec.decode(frame, [b"no such text here"]) is None:
        assert plain
