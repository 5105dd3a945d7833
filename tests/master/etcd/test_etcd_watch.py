"""Watches under concurrent writers, slow readers and compaction: in order, each event once, no gap."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from longshore.master.etcd import watcher as watchers
from longshore.master.etcd.embedded import EmbeddedStore
from longshore.master.etcd.model import Compacted, Compare, Event, Put


@pytest.fixture(params=["memory", "disk"])
async def store(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    store = await EmbeddedStore.open(None if request.param == "memory" else tmp_path / "store.db")
    yield store
    await store.close()


async def test_watchers_that_join_at_any_time_see_the_same_history(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "_BUFFER_EVENTS", 20)
    monkeypatch.setattr(watchers, "_SCAN_ROWS", 7)
    writers, each = 6, 120
    seen: list[list[Event]] = []

    async def write(number: int) -> None:
        for count in range(each):
            key = b"/r/%d/%d" % (number, count % 4)
            if count % 5 == 4:
                await store.delete(key)
                await store.put(key, b"%d" % count)
            elif count % 7 == 3:
                await store.txn([Compare("version", key, ">", -1)], [Put(key, b"t"), Put(key + b"/b", b"t")])
            else:
                await store.put(key, b"%d" % count)
            if count % 11 == 0:
                await asyncio.sleep(0)

    async def read(delay: float, pause: float) -> None:
        await asyncio.sleep(delay)
        events: list[Event] = []
        seen.append(events)
        watch = store.watch(b"/r/", b"/r0", start_revision=1, prev_kv=True)
        while not (done.done() and events and events[-1].kv.mod_revision == store.revision):
            batch = await asyncio.wait_for(watch.__anext__(), 20)
            assert batch.revision == batch.events[-1].kv.mod_revision
            events += batch.events
            if pause:
                await asyncio.sleep(pause)
        watch.close()

    readers = [asyncio.create_task(read(delay, pause)) for delay in (0, 0.01, 0.05, 0.1) for pause in (0, 0.001, 0.01)]
    done = asyncio.gather(*(write(number) for number in range(writers)))
    await done
    await asyncio.gather(*readers)
    first = seen[0]
    order = [event.kv.mod_revision for event in first]
    assert order == sorted(order)
    assert set(order) == set(range(2, store.revision + 1))  # every revision wrote below this prefix
    for other in seen[1:]:
        assert other == first
    state: dict[bytes, object] = {}
    for event in first:
        assert event.prev_kv == state.get(event.kv.key)
        if event.type == "PUT":
            state[event.kv.key] = event.kv
        else:
            del state[event.kv.key]
    assert list(state.values()) == sorted(
        (await store.range(b"/r/", b"/r0")).kvs, key=lambda kv: list(state).index(kv.key)
    )


async def test_a_watch_from_a_compacted_revision_says_so(store: EmbeddedStore) -> None:
    for number in range(20):
        await store.put(b"k", b"%d" % number)
    slow = store.watch(b"k", start_revision=2)
    await store.compact(15)
    with pytest.raises(Compacted) as caught:
        await slow.__anext__()
    assert caught.value.compact_revision == 15
    edge = store.watch(b"k", start_revision=15)
    assert (await edge.__anext__()).events[0].kv.mod_revision in (15, 21)


async def test_a_delete_at_the_compacted_revision_is_still_told(store: EmbeddedStore) -> None:
    await store.put(b"k", b"1")
    await store.delete(b"k")
    await store.compact(3, physical=True)
    watch = store.watch(b"k", start_revision=3)
    assert [(e.type, e.kv.mod_revision) for e in (await watch.__anext__()).events] == [("DELETE", 3)]
    await store.put(b"other", b"")
    await store.compact(4, physical=True)
    assert not store.index.entries.get(b"k")


async def test_a_watch_in_the_future_waits_for_its_revision(store: EmbeddedStore) -> None:
    watch = store.watch(b"k", start_revision=4)
    for value in (b"2", b"3", b"4", b"5"):
        await store.put(b"k", value)
    assert [e.kv.value for e in (await watch.__anext__()).events] == [b"4", b"5"]
    assert not watch._buffer


async def test_progress_follows_the_events(store: EmbeddedStore) -> None:
    watch = store.watch(b"k")
    await store.put(b"other", b"")
    await store.put(b"k", b"")
    await store.put(b"other", b"")
    watch.request_progress()
    first, second = await watch.__anext__(), await watch.__anext__()
    assert (first.revision, len(first.events)) == (3, 1)
    assert (second.revision, second.events) == (4, [])


async def test_closing_ends_the_iteration(store: EmbeddedStore) -> None:
    watch = store.watch(b"k")
    reader = asyncio.create_task(watch.__anext__())
    await asyncio.sleep(0)
    watch.close()
    with pytest.raises(StopAsyncIteration):
        await reader
    assert not store.hub.all and not store.hub._keys


async def test_writers_go_on_while_history_is_deleted(store: EmbeddedStore) -> None:
    for number in range(3000):
        future = store.put(b"/k/%d" % (number % 10), b"v" * 100)
    await future
    await store.compact(store.revision - 5)
    await store.put(b"/k/1", b"between")
    await store.compact(store.revision, physical=True)
    assert len(store.index.superseded) == 0
    rows = list(store.log.index())
    assert len(rows) == 10
    with pytest.raises(Compacted):
        await store.range(b"/k/1", revision=store.revision - 1)
