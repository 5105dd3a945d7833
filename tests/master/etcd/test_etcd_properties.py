"""Random operations against the embedded store and the reference: the same answers, the same history."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.master.etcd.etcd_reference import Reference

from longshore.machinery.sorted_keys import SortedKeys
from longshore.master.etcd import model as m
from longshore.master.etcd.embedded import EmbeddedStore

keys = st.sampled_from([b"a", b"a/1", b"a/2", b"b", b"b/1", b"c", b"\xff", b"\xff\xff"])
values = st.binary(max_size=6)
ranges = st.one_of(
    keys.map(lambda k: (k, b"")),
    keys.map(lambda k: (k, m.prefix_end(k))),
    keys.map(lambda k: (k, b"\0")),
    st.tuples(keys, keys),
).filter(lambda r: not r[1] or r[1] == b"\0" or r[0] < r[1])


class StoreMachine(RuleBasedStateMachine):
    on_disk = False

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp()) if self.on_disk else None
        self.reference = Reference()
        self.leases: set[int] = set()
        self.watches: list[tuple[bytes, bytes, int, Any, list[m.Event]]] = []
        self.open()

    def do(self, awaitable: Any) -> Any:
        async def run() -> Any:
            return await awaitable

        return self.loop.run_until_complete(run())

    def open(self) -> None:
        path = self.folder / "store.db" if self.folder else None
        # A few bytes of cache, so that most values are evicted and read back from the log.
        self.store: EmbeddedStore = self.do(EmbeddedStore.open(path, cache_bytes=8))

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        before = self.reference.now.get(key)
        result = self.do(self.store.put(key, value, prev_kv=True))
        self.reference.apply([(key, value, 0)])
        assert (result.revision, result.prev_kv) == (self.reference.revision, before)

    @rule(span=ranges)
    def delete(self, span: tuple[bytes, bytes]) -> None:
        expected = self.reference.range(*span)
        result = self.do(self.store.delete(*span, prev_kv=True))
        self.reference.apply([], [span])
        assert (result.deleted, result.prev_kvs) == (len(expected), expected)
        assert result.revision == self.reference.revision

    @rule(key=keys, value=values, revision=st.integers(0, 6))
    def conditional(self, key: bytes, value: bytes, revision: int) -> None:
        before = self.reference.now.get(key)
        at = before.mod_revision if before else 0
        wanted = at if revision < 3 else revision
        result = self.do(self.store.update(key, value, wanted) if wanted else self.store.create(key, value))
        if wanted == at:
            self.reference.apply([(key, value, 0)])
        assert (result.succeeded, result.kv, result.revision) == (wanted == at, before, self.reference.revision)

    @rule(key=keys)
    def delete_at(self, key: bytes) -> None:
        before = self.reference.now.get(key)
        result = self.do(self.store.delete_at(key, before.mod_revision if before else 999))
        if before:
            self.reference.apply([], [(key, b"")])
        assert (result.succeeded, result.kv) == (before is not None, before)

    @rule(
        writes=st.dictionaries(keys, values, min_size=1, max_size=4), gone=keys, guard=keys, version=st.integers(0, 2)
    )
    def txn(self, writes: dict[bytes, bytes], gone: bytes, guard: bytes, version: int) -> None:
        writes.pop(gone, None)
        before = self.reference.now.get(guard)
        holds = (before.version if before else 0) == version
        result = self.do(
            self.store.txn(
                [m.Compare("version", guard, "=", version)],
                [m.Delete(gone), *(m.Put(k, v) for k, v in writes.items()), m.Range(b"a", b"c")],
                [m.Range(guard)],
            )
        )
        if holds:
            self.reference.apply([(k, v, 0) for k, v in writes.items()], [(gone, b"")])
            assert result.responses[-1].kvs == self.reference.range(b"a", b"c")
        else:
            assert result.responses[0].kvs == self.reference.range(guard, b"")
        assert (result.succeeded, result.revision) == (holds, self.reference.revision)

    @rule(batch=st.lists(st.tuples(keys, values), min_size=2, max_size=8))
    def concurrent(self, batch: list[tuple[bytes, bytes]]) -> None:
        """Writers that share a commit, and a reader between them that may not see what is not on disk."""

        async def together() -> None:
            revision = self.store.revision
            writes = [self.store.put(key, value) for key, value in batch]
            seen = await self.store.range(b"\0", b"\0")
            if self.on_disk:
                assert seen.revision == revision
            await asyncio.gather(*writes)

        self.do(together())
        for key, value in batch:
            self.reference.apply([(key, value, 0)])

    @rule(span=ranges, back=st.integers(0, 5), limit=st.integers(0, 3), form=st.sampled_from(["", "keys", "count"]))
    def read(self, span: tuple[bytes, bytes], back: int, limit: int, form: str) -> None:
        revision = max(self.reference.revision - back, 1)
        wanted = self.store.range(
            *span, revision=revision, limit=limit, keys_only=form == "keys", count_only=form == "count"
        )
        if revision < self.reference.compacted:
            with pytest.raises(m.Compacted):
                self.do(wanted)
            return
        result = self.do(wanted)
        expected = self.reference.range(*span, revision)
        assert result.count == len(expected)
        if form == "count":
            assert not result.kvs
            return
        assert result.more == bool(limit and len(expected) > limit)
        expected = expected[:limit] if limit else expected
        if form == "keys":
            assert [(kv.key, kv.value) for kv in result.kvs] == [(kv.key, b"") for kv in expected]
        else:
            assert result.kvs == expected

    @rule(
        order=st.sampled_from(["ascend", "descend"]), by=st.sampled_from(["key", "version", "create", "mod", "value"])
    )
    def in_order(self, order: Any, by: Any) -> None:
        result = self.do(self.store.range(b"\0", b"\0", sort_order=order, sort_target=by))
        attribute = {"create": "create_revision", "mod": "mod_revision"}.get(by, by)
        got = [getattr(kv, attribute) for kv in result.kvs]
        assert got == sorted(got, reverse=order == "descend") and len(got) == len(self.reference.now)

    @precondition(lambda self: len(self.watches) < 6)
    @rule(span=ranges, back=st.integers(-2, 6))
    def watch(self, span: tuple[bytes, bytes], back: int) -> None:
        start = max(self.reference.revision + 1 - back, 1, self.reference.compacted)
        watch = self.store.watch(*span, start_revision=start, prev_kv=True)
        self.watches.append((*span, start, watch, []))

    @rule()
    def look(self) -> None:
        for watch in self.watches:
            self.check_watch(*watch)

    def check_watch(self, key: bytes, end: bytes, start: int, watch: Any, got: list[m.Event]) -> None:
        async def collect() -> None:
            # Progress comes after all events up to the store's revision: nothing more is to be waited for.
            watch.request_progress()
            while True:
                batch = await asyncio.wait_for(watch.__anext__(), 5)
                if not batch.events:
                    break
                got.extend(batch.events)

        expected = self.reference.history(key, end, start)
        if self.reference.revision >= start:
            try:
                self.do(collect())
            except m.Compacted:
                self.watches = [w for w in self.watches if w[3] is not watch]
                return
        assert [(e.type, e.kv) for e in got] == [(e.type, e.kv) for e in expected]
        for mine, theirs in zip(got, expected, strict=True):
            # A version that was compacted before it was delivered is not known any more.
            if mine.prev_kv is not None or theirs.kv.mod_revision > self.reference.compacted:
                assert mine.prev_kv == theirs.prev_kv

    @precondition(lambda self: self.reference.revision > self.reference.compacted)
    @rule(back=st.integers(0, 4), physical=st.booleans())
    def compact(self, back: int, physical: bool) -> None:
        revision = self.reference.revision - back
        if revision <= self.reference.compacted:
            with pytest.raises(m.Compacted):
                self.do(self.store.compact(revision))
            return
        self.do(self.store.compact(revision, physical=physical))
        self.reference.compacted = revision

    @rule(key=keys, value=values)
    def lease(self, key: bytes, value: bytes) -> None:
        lease = self.do(self.store.lease_grant(1000))
        self.do(self.store.put(key, value, lease=lease.id))
        self.reference.apply([(key, value, lease.id)])
        self.leases.add(lease.id)
        assert self.do(self.store.lease_time_to_live(lease.id, keys=True)).keys == (key,)

    @precondition(lambda self: self.leases)
    @rule()
    def revoke(self) -> None:
        lease = self.leases.pop()
        gone = [(kv.key, b"") for kv in self.reference.range(b"\0", b"\0") if kv.lease == lease]
        self.do(self.store.lease_revoke(lease))
        self.reference.apply([], gone)
        with pytest.raises(m.LeaseNotFound):
            self.do(self.store.put(b"x", b"", lease=lease))

    @precondition(lambda self: self.folder is not None)
    @rule()
    def reopen(self) -> None:
        for watch in self.watches:
            self.check_watch(*watch)
        self.watches.clear()
        self.do(self.store.close())
        self.open()
        assert set(self.do(self.store.lease_list())) == self.leases

    @invariant()
    def same_now(self) -> None:
        assert self.store.revision == self.reference.revision
        assert self.do(self.store.range(b"\0", b"\0")).kvs == self.reference.range(b"\0", b"\0")

    def teardown(self) -> None:
        for watch in self.watches:
            self.check_watch(*watch)
        self.do(self.store.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        if self.folder:
            shutil.rmtree(self.folder)


class DiskMachine(StoreMachine):
    on_disk = True


quick = settings(deadline=None, suppress_health_check=list(HealthCheck), stateful_step_count=40)
TestMemory = StoreMachine.TestCase
TestMemory.settings = settings(quick, max_examples=60)
TestDisk = DiskMachine.TestCase
TestDisk.settings = settings(quick, max_examples=25)


def test_sorted_keys_stay_sorted_over_many_chunks() -> None:
    chance = random.Random(7)
    ours, plain = SortedKeys(), set[bytes]()
    for _ in range(20_000):
        key = chance.randbytes(2)
        if key in plain:
            plain.remove(key)
            ours.remove(key)
        else:
            plain.add(key)
            ours.add(key)
    for start, end in ((b"", None), (b"\x10", b"\x80"), (b"\xf0", b"\xf1"), (b"\xff\xff\xff", None), (b"", b"\0")):
        got = [key for part in ours.slices(start, end) for key in part]
        assert got == sorted(k for k in plain if k >= start and (end is None or k < end))
    assert len(ours) == len(plain)
