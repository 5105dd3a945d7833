"""The embedded store: index, committer, watchers, leases and compaction put together.

A write is checked on the event loop against the index and what is on its way to the disk, gets its revision, and joins
the batch of this turn of the loop. The committer thread writes batches; when one is on disk its changes become visible,
watchers are told, and its writers answered, in that order within one turn of the loop.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from longshore.master.etcd import snapshot as snapshots
from longshore.master.etcd.committer import Batch, Committer, as_store_error
from longshore.master.etcd.compaction import Compactor
from longshore.master.etcd.key_index import EVICTED, KeyIndex
from longshore.master.etcd.lease import LeaseBook
from longshore.master.etcd.log import Log, MemoryLog, SqliteLog
from longshore.master.etcd.model import (
    Compacted,
    Compare,
    Delete,
    DeleteResult,
    EmptyKey,
    FutureRevision,
    KeyValue,
    Lease,
    LeaseNotFound,
    Op,
    Put,
    PutResult,
    Range,
    RangeResult,
    SortOrder,
    SortTarget,
    StoreError,
    StoreStatus,
    TxnResult,
    Unavailable,
    WriteResult,
)
from longshore.master.etcd.revision import revision_of
from longshore.master.etcd.transaction import (
    Plan,
    Transaction,
    check_revision,
    check_sort,
    plan_conditional,
    plan_delete,
    plan_put,
    plan_simple_put,
    plan_txn,
    select,
)
from longshore.master.etcd.watcher import Watcher, WatcherHub

logger = logging.getLogger("longshore.etcd")

T = TypeVar("T")

PROTOCOL_VERSION = "3.5.0"
"""The etcd version whose v3 semantics these are (what Status answers)."""
CACHE_BYTES = 64 * 2**20
_FEW_MISSES = 64
SWITCH_SECONDS = 0.0005
"""How long the event loop may keep the interpreter's lock while the committer waits for it (Python's own 5 ms would be
the price of every commit in a busy process)."""


class EmbeddedStore:
    """A `Store` in this process. Made by `EmbeddedStore.open`; belongs to the event loop that opened it."""

    def __init__(self, log: Log, cache_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.log = log
        self.index = KeyIndex(cache_bytes)
        self.lease_book = LeaseBook(self._loop, self._lease_expired)
        self.hub = WatcherHub(self._loop, log, self.index, self._in_reader)
        self._reader: ThreadPoolExecutor | None = None
        self._checkpointing = False
        self._last = max(revision_of(self.index.load(log.index())), 1)  # newest revision handed out
        self.hub.revision = self._last
        self.hub.compact_revision = log.compact_revision()
        self.lease_book.load(log.leases())
        for entry in self.index.entries.values():
            if entry.kv is not None and entry.kv.lease and self.lease_book.exists(entry.kv.lease):
                self.lease_book.attach(entry.kv.lease, entry.key)
        self._batch: list[Transaction] = []
        self._flying: deque[Batch] = deque()
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._committer: Committer | None = None
        if isinstance(log, SqliteLog):
            self._committer = Committer(log, self._loop, self._written, self._checkpoint)
        self._compactor = Compactor(self.index, log, self._committer)
        if self.hub.compact_revision:
            self._compactor.start(self.hub.compact_revision)

    @classmethod
    async def open(cls, path: Path | None, *, cache_bytes: int = CACHE_BYTES) -> EmbeddedStore:
        """Open a store file (made when absent), or a store in memory when path is None.

        cache_bytes: values kept in memory; the rest is read from the file when asked for.
        Unavailable when another process has the file.
        """
        if path is not None and sys.getswitchinterval() > SWITCH_SECONDS:
            sys.setswitchinterval(SWITCH_SECONDS)
        return cls(MemoryLog() if path is None else SqliteLog(path), cache_bytes)

    def newest_revision(self, key: bytes) -> int:
        """The revision at which a key was last changed, on its way to the disk or there; 0 when it is not there."""
        kv = self.index.newest(key)
        return 0 if kv is None else kv.mod_revision

    @property
    def revision(self) -> int:
        return self.hub.revision

    @property
    def compact_revision(self) -> int:
        return self.hub.compact_revision

    @property
    def shared(self) -> bool:
        return False

    async def newest(self) -> int:
        return self.revision

    # Reads.

    async def range(
        self,
        key: bytes,
        end: bytes = b"",
        *,
        revision: int = 0,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        sort_order: SortOrder = "none",
        sort_target: SortTarget = "key",
    ) -> RangeResult:
        """Read keys: the newest committed versions from memory, or those of `revision` from the log."""
        return await self.read(Range(key, end, revision, limit, keys_only, count_only, sort_order, sort_target))

    async def read(self, op: Range) -> RangeResult:
        """A range with all of etcd's options."""
        if self._closed:
            raise Unavailable()
        if not op.key:
            raise EmptyKey()
        check_sort(op)
        check_revision(op.revision, self)
        if op.revision and op.revision < self.revision:
            return await self._read_history(op)
        found = [entry.kv for entry in self.index.entries_in(op.key, op.end) if entry.kv is not None]
        misses = [kv.row for kv in found if kv.value is EVICTED] if not (op.count_only or op.keys_only) else []
        if op.limit and op.sort_order == "none" and op.sort_target == "key":
            misses = [kv.row for kv in found[: op.limit] if kv.value is EVICTED]
        if len(misses) <= _FEW_MISSES:
            return select(found, op, self.revision, self._complete)
        at = self.revision
        values = await self._in_reader(lambda: self.log.get_many(misses))
        if any(row not in values for row in misses):
            # Superseded and compacted while the reader thread was at it: a current read is a newer one then.
            return await self.read(op)
        return select(found, op, at, lambda kvs: [values.get(kv.row, kv) if kv.value is EVICTED else kv for kv in kvs])

    def _complete(self, kvs: list[KeyValue]) -> list[KeyValue]:
        return [kv if kv.value is not EVICTED else (self.log.get(kv.row) or kv) for kv in kvs]

    def _rows_at(self, op: Range) -> list[int]:
        return [row for entry in self.index.entries_in(op.key, op.end) if (row := entry.row_at(op.revision))]

    async def _read_history(self, op: Range) -> RangeResult:
        rows = self._rows_at(op)
        if op.count_only:
            return RangeResult(self.revision, [], len(rows))
        count = len(rows)
        plain = (
            op.sort_order == "none"
            and op.sort_target == "key"
            and not (op.min_mod_revision or op.max_mod_revision or op.min_create_revision or op.max_create_revision)
        )
        if plain and op.limit:
            rows = rows[: op.limit]
        values = await self._in_reader(lambda: self.log.get_many(rows))
        if op.revision < self.compact_revision:
            raise Compacted(self.compact_revision)
        result = select([values[row] for row in rows], op, self.revision, lambda kvs: kvs)
        result.count = count
        result.more = result.more or (plain and count > len(rows))
        return result

    def range_at(self, op: Range) -> RangeResult:
        """A range inside a transaction at an explicit revision, read at once."""
        kvs = [kv for row in self._rows_at(op) if (kv := self.log.get(row)) is not None]
        return select(kvs, op, self.revision, lambda found: found)

    # Writes.

    def put(self, key: bytes, value: bytes, *, lease: int = 0, prev_kv: bool = False) -> asyncio.Future[PutResult]:
        if prev_kv:
            return self._submit(plan_put, Put(key, value, lease, True))
        return self._submit(plan_simple_put, key, value, lease)

    def delete(self, key: bytes, end: bytes = b"", *, prev_kv: bool = False) -> asyncio.Future[DeleteResult]:
        return self._submit(plan_delete, Delete(key, end, prev_kv))

    def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> asyncio.Future[TxnResult]:
        return self._submit(plan_txn, compares, then, otherwise)

    def write(self, op: Put) -> asyncio.Future[PutResult]:
        """A put with all of etcd's options."""
        return self._submit(plan_put, op)

    def create(self, key: bytes, value: bytes, *, lease: int = 0) -> asyncio.Future[WriteResult]:
        return self._submit(plan_conditional, key, value, 0, lease)

    def update(self, key: bytes, value: bytes, mod_revision: int, *, lease: int = 0) -> asyncio.Future[WriteResult]:
        return self._submit(plan_conditional, key, value, mod_revision, lease)

    def delete_at(self, key: bytes, mod_revision: int) -> asyncio.Future[WriteResult]:
        return self._submit(plan_conditional, key, None, mod_revision, 0)

    def _submit(self, make: Callable[..., Plan], *arguments: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        try:
            if self._closed:
                raise Unavailable()
            self._carry_out(Transaction(self, make(*arguments), future))
        except StoreError as error:
            future.set_exception(error)
        return future

    def _carry_out(self, txn: Transaction) -> None:
        """Check a transaction now and hand what it changes to the next batch."""
        txn.revision = self._last + 1
        try:
            txn.result = txn.plan(txn)
        except BaseException:
            txn.undo()
            raise
        if not txn.changes and not txn.leases and not (txn.saw_pending and (self._batch or self._flying)):
            txn.future.set_result(txn.result)
            return
        if txn.changes:
            self._last = txn.revision
        else:
            txn.revision = 0
        if self._committer is None:
            self._write_now(txn)
            return
        self._batch.append(txn)
        if len(self._batch) == 1:
            self._loop.call_soon(self._flush)

    def _rows(self, txn: Transaction) -> list[tuple[int, bytes, int, int, int, bytes]]:
        return [(kv.row, kv.key, kv.create_revision, kv.version, kv.lease, kv.value) for _, kv, _, _ in txn.changes]

    def _flush(self) -> None:
        """End of this turn of the loop: what was checked in it goes to the committer."""
        if not self._batch:
            return
        transactions, self._batch = self._batch, []
        rows = [
            (kv.row, kv.key, kv.create_revision, kv.version, kv.lease, kv.value)
            for txn in transactions
            for _, kv, _, _ in txn.changes
        ]
        leases = [lease for txn in transactions for lease in txn.leases]
        batch = Batch(rows, leases, sum(len(row[1]) + len(row[5]) for row in rows), transactions)
        self._flying.append(batch)
        assert self._committer is not None
        self._committer.submit(batch)

    def _write_now(self, txn: Transaction) -> None:
        self.log.append(self._rows(txn), txn.leases)
        self._publish(txn)

    def _publish(self, txn: Transaction) -> None:
        """A transaction is on disk: readers see it, watchers and its writer are told."""
        for entry, kv, before, _ in txn.changes:
            if before is not None and before.lease and before.lease != kv.lease:
                self.lease_book.detach(before.lease, kv.key)
            self.index.commit(entry, kv)
        if txn.changes:
            self.hub.publish(txn.revision, txn.changes)
        if not txn.future.done():
            txn.future.set_result(txn.result)

    def _written(self, group: Sequence[Batch], error: StoreError | None) -> None:
        if error is not None:
            self._failed(len(group), error)
            return
        for batch in group:
            self._flying.popleft()
            transactions: list[Transaction] = batch.owner  # type: ignore[assignment]
            for txn in transactions:
                self._publish(txn)

    def _failed(self, count: int, error: StoreError) -> None:
        """Answer the writers of the group that failed; carry out anew what was checked against its changes."""
        flying: list[list[Transaction]] = [batch.owner for batch in self._flying]  # type: ignore[misc]
        failed = [txn for transactions in flying[:count] for txn in transactions]
        again = [txn for transactions in flying[count:] for txn in transactions] + self._batch
        self._flying.clear()
        self._batch = []
        self.index.rollback(change[0] for txn in (*failed, *again) for change in txn.changes)
        self._last = self.hub.revision
        for txn in failed:
            for id_, ttl in txn.leases:
                if ttl:
                    self.lease_book.remove(id_)
            if not txn.future.done():
                txn.future.set_exception(error)
        assert self._committer is not None
        self._committer.go_on()
        for txn in again:
            txn.reset()
            if txn.future.cancelled():
                continue
            try:
                self._carry_out(txn)
            except StoreError as refused:
                if not txn.future.done():
                    txn.future.set_exception(refused)

    # Watches.

    def watch(
        self, key: bytes, end: bytes = b"", *, start_revision: int = 0, prev_kv: bool = False, progress: bool = False
    ) -> Watcher:
        watcher = self.hub.open(key, end, start_revision, prev_kv, progress)
        if self._closed:
            watcher.fail(Unavailable())
        return watcher

    # Leases.

    def lease_grant(self, ttl: int, id: int = 0) -> asyncio.Future[Lease]:
        def plan(txn: Transaction) -> Lease:
            record = self.lease_book.add(ttl, id)
            txn.leases.append((record.id, record.ttl))
            return Lease(record.id, record.ttl, record.ttl)

        return self._submit(lambda: plan)

    async def lease_keepalive(self, id: int) -> Lease:
        record = self.lease_book.records.get(id)
        if record is None or record.expiring or self._closed:
            raise LeaseNotFound()
        self.lease_book.renew(record)
        return Lease(id, record.ttl, record.ttl)

    def lease_revoke(self, id: int) -> asyncio.Future[int]:
        def plan(txn: Transaction) -> int:
            record = self.lease_book.records.get(id)
            if record is None:
                raise LeaseNotFound()
            for key in sorted(record.keys):
                kv = txn.newest(key)
                if kv is not None and kv.lease == id:
                    txn.delete(key, b"")
            txn.leases.append((id, 0))
            return txn.answer_revision

        future: asyncio.Future[int] = self._submit(lambda: plan)
        future.add_done_callback(lambda done: self._revoked(id, done))
        return future

    def _revoked(self, id: int, done: asyncio.Future[int]) -> None:
        if not done.cancelled() and done.exception() is None:
            self.lease_book.remove(id)

    def _lease_expired(self, id: int) -> None:
        def ended(done: asyncio.Future[int]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                logger.warning("lease %x has run out but cannot be revoked yet: %s", id, error)
                self.lease_book.retry(id, 5.0)

        self.lease_revoke(id).add_done_callback(ended)

    async def lease_time_to_live(self, id: int, *, keys: bool = False) -> Lease:
        record = self.lease_book.records.get(id)
        if record is None or record.expiring:
            return Lease(id, -1, 0)
        attached: list[bytes] = []
        if keys:
            for key in sorted(record.keys):
                entry = self.index.entries.get(key)
                if entry is not None and entry.kv is not None and entry.kv.lease == id:
                    attached.append(key)
        return Lease(id, self.lease_book.remaining(record), record.ttl, tuple(attached))

    async def lease_list(self) -> list[int]:
        return sorted(self.lease_book.records)

    # Upkeep.

    async def compact(self, revision: int, *, physical: bool = False) -> int:
        if self._closed:
            raise Unavailable()
        if revision <= self.compact_revision:
            raise Compacted(self.compact_revision)
        if revision > self.revision:
            raise FutureRevision()
        self.hub.compact_revision = revision
        self._compactor.start(revision)
        if physical:
            await self._compactor.finished()
        return self.revision

    async def snapshot(self, path: Path) -> int:
        return await self._loop.run_in_executor(None, snapshots.take, self.log, path)

    async def status(self) -> StoreStatus:
        size, in_use = self.log.size()
        return StoreStatus(PROTOCOL_VERSION, self.revision, self.compact_revision, size, in_use)

    async def close(self) -> None:
        """Finish what is on its way to the disk, end every watch, close the file."""
        if self._closed:
            return
        self._closed = True
        self._flush()
        self.lease_book.close()
        await self._compactor.close()
        if self._committer is not None:
            await self._committer.close()
            await asyncio.sleep(0)  # the last groups' answers are on the loop's list
        self.hub.fail(Unavailable())
        if self._reader is not None:
            await self._loop.run_in_executor(None, self._reader.shutdown)
        self.log.close()

    async def _in_reader(self, work: Callable[[], T]) -> T:
        if isinstance(self.log, MemoryLog):
            return work()
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="etcd-reader")
        try:
            return await self._loop.run_in_executor(self._reader, work)
        except StoreError:
            raise
        except Exception as error:
            raise as_store_error(error) from error

    def _checkpoint(self) -> None:
        """Have the reader thread copy the WAL into the file, one at a time."""
        if self._checkpointing or self._closed or not isinstance(self.log, SqliteLog):
            return
        self._checkpointing = True
        task = self._loop.create_task(self._in_reader(self.log.checkpoint))
        self._tasks.add(task)
        task.add_done_callback(self._checkpointed)

    def _checkpointed(self, task: asyncio.Task[None]) -> None:
        self._checkpointing = False
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("checkpoint failed, tried again later: %s", error)
