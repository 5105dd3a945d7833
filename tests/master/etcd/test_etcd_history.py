"""Concurrent clients of a served store that is killed again and again: their recorded history is linearizable.

etcd's data model makes that easy to check: every answer names a revision, and the history of the store, read back by a watch from
the first revision, is the order that all answers must agree with.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.master.etcd.test_etcd_command import URL, ours, reachable

from longshore.master.etcd import model as m
from longshore.master.etcd.client import EtcdStore

KEYS = [b"/h/%d" % number for number in range(5)]
END = m.prefix_end(b"/h/")


@dataclass
class Done:
    """One operation: when it began and ended, at which revision it stands, what it wrote or saw."""

    began: float
    ended: float
    kind: str
    key: bytes
    revision: int
    value: bytes | None
    seen: int = 0


class Client:
    def __init__(self, number: int, history: list[Done], doubtful: set[bytes]) -> None:
        self.number = number
        self.history = history
        self.doubtful = doubtful
        self.chance = random.Random(number)
        self.count = 0

    async def run(self, stop: asyncio.Event) -> None:
        store = EtcdStore([URL])
        while not stop.is_set():
            value = b"%d-%d" % (self.number, self.count)
            self.count += 1
            began = time.monotonic()
            try:
                await self.step(store, value, began)
            except m.Unavailable:
                self.doubtful.add(value)
                await asyncio.sleep(0.02)
        await store.close()

    async def step(self, store: EtcdStore, value: bytes, began: float) -> None:
        key = self.chance.choice(KEYS)
        kind = self.chance.randrange(4)

        def done(kind: str, revision: int, value: bytes | None, seen: int = 0) -> None:
            self.history.append(Done(began, time.monotonic(), kind, key, revision, value, seen))

        if kind == 0:
            done("write", (await store.put(key, value)).revision, value)
            return
        read = await store.range(key)
        kv = read.kvs[0] if read.kvs else None
        done("read", read.revision, kv.value if kv else None, kv.mod_revision if kv else 0)
        if kind == 1:
            return
        began = time.monotonic()
        at = kv.mod_revision if kv else 0
        result: Any = await (store.update(key, value, at) if at else store.create(key, value))
        if result.succeeded:
            done("swap", result.revision, value, at)
        else:
            done(
                "read",
                result.revision,
                result.kv.value if result.kv else None,
                result.kv.mod_revision if result.kv else 0,
            )


async def test_the_history_is_linearizable(tmp_path: Path) -> None:
    server = ours(tmp_path / "data")
    history: list[Done] = []
    doubtful: set[bytes] = set()
    told: list[m.Event] = []
    stop = asyncio.Event()
    chance = random.Random(11)
    try:
        store = await reachable(URL)

        async def watch() -> None:
            async for batch in store.watch(b"/h/", END, start_revision=1):
                told.extend(batch.events)

        watching = asyncio.create_task(watch())
        clients = [asyncio.create_task(Client(number, history, doubtful).run(stop)) for number in range(6)]
        for _ in range(3):
            await asyncio.sleep(0.5 + chance.random() * 0.4)
            server.kill()
            server.wait()
            server = ours(tmp_path / "data")
            await (await reachable(URL)).close()
        await asyncio.sleep(0.5)
        stop.set()
        await asyncio.gather(*clients)
        final = await store.range(b"/h/", END)
        last = max(kv.mod_revision for kv in final.kvs)
        async with asyncio.timeout(15):
            while not told or told[-1].kv.mod_revision < last:
                await asyncio.sleep(0.02)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await store.close()
    finally:
        server.kill()
        server.wait()
    check(history, doubtful, told)


def check(history: list[Done], doubtful: set[bytes], told: list[m.Event]) -> None:
    assert len(history) > 200
    revisions = [event.kv.mod_revision for event in told]
    assert revisions == sorted(set(revisions))  # one key a write: each revision once, in order
    assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))  # and none is missing
    written = {event.kv.mod_revision: event.kv for event in told}
    acknowledged = {d.revision: d for d in history if d.kind in ("write", "swap")}
    for revision, done in acknowledged.items():
        assert (written[revision].key, written[revision].value) == (done.key, done.value)
    for revision, kv in written.items():
        assert revision in acknowledged or kv.value in doubtful  # nothing is invented
    of_key: dict[bytes, list[int]] = {key: [r for r in revisions if written[r].key == key] for key in KEYS}
    for done in history:
        earlier = [r for r in of_key[done.key] if r <= done.revision]
        if done.kind == "read":
            # What was read is the newest version at the answer's revision.
            assert done.seen == (earlier[-1] if earlier else 0)
            assert done.value == (written[done.seen].value if done.seen else None)
        elif done.kind == "swap":
            assert done.seen == (earlier[-2] if len(earlier) > 1 else 0)
    # Real time: what ended before another began does not come after it.
    highest = 0
    for moment, kind, done in sorted(
        [(d.ended, 0, d) for d in history] + [(d.began, 1, d) for d in history], key=lambda item: item[:2]
    ):
        del moment
        if kind == 0:
            highest = max(highest, done.revision)
        else:
            assert done.revision >= highest, done


def test_the_check_finds_a_lost_write() -> None:
    kv = m.KeyValue(KEYS[0], b"x", 2, 2, 1)
    good = [Done(n, n + 0.5, "write" if n == 0 else "read", KEYS[0], 2, b"x", 0 if n == 0 else 2) for n in range(300)]
    check(good, set(), [m.Event(m.PUT, kv)])
    stale = [*good, Done(400, 401, "read", KEYS[0], 1, None, 0)]
    with pytest.raises(AssertionError):
        check(stale, set(), [m.Event(m.PUT, kv)])
