"""The committer: the one thread that writes. What queues while it waits for the disk is its next group.

Batches come from the event loop and are answered on it. After a failed commit the thread drops whatever was handed over
before the loop has seen the failure (those batches were checked against changes that do not exist) until it is told to
go on.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence

from longshore.master.etcd.log import Log, Row, SqliteLog
from longshore.master.etcd.model import NoSpace, StoreError, Unavailable

logger = logging.getLogger("longshore.etcd")

_GROUP_BYTES = 8 * 2**20
_CHECKPOINT_BYTES = 8 * 2**20


class Batch:
    """Rows and leases of transactions that were checked in one turn of the event loop."""

    __slots__ = ("leases", "owner", "rows", "size")

    def __init__(self, rows: list[Row], leases: list[tuple[int, int]], size: int, owner: object) -> None:
        self.rows = rows
        self.leases = leases
        self.size = size
        self.owner = owner


class _Task:
    """Work on the log beside the batches (deleting compacted rows)."""

    __slots__ = ("future", "work")

    def __init__(self, work: Callable[[], None], future: asyncio.Future[None]) -> None:
        self.work = work
        self.future = future


_GO_ON = object()
_STOP = object()


def as_store_error(error: BaseException) -> StoreError:
    """What a client is told when SQLite refuses."""
    if isinstance(error, StoreError):
        return error
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL" or "disk is full" in str(error):
        return NoSpace()
    if isinstance(error, sqlite3.Error | OSError):
        # A full disk may also show as a failed write of the WAL or its index.
        return NoSpace() if getattr(error, "errno", 0) == 28 else Unavailable(f"etcdserver: write failed: {error}")
    return Unavailable(f"etcdserver: write failed: {error!r}")


class Committer:
    """Writes batches to a log in groups.

    done(batches, error): called on the loop, in order, for every group that was written (error None) or failed.
    """

    def __init__(
        self,
        log: Log,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[Sequence[Batch], StoreError | None], None],
        checkpoint: Callable[[], None],
    ) -> None:
        self._log = log
        self._loop = loop
        self._done = done
        self._checkpoint = checkpoint
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._halted = False
        self._checkpointed = 0  # what the WAL held when it was last copied into the file
        self._thread = threading.Thread(target=self._run, name="etcd-committer", daemon=True)
        self._thread.start()

    def submit(self, batch: Batch) -> None:
        self._queue.put(batch)

    def go_on(self) -> None:
        """The loop has rolled back; batches from here on are good."""
        self._queue.put(_GO_ON)

    def run(self, work: Callable[[], None]) -> asyncio.Future[None]:
        """Run `work` in the committer thread between two groups."""
        task = _Task(work, self._loop.create_future())
        self._queue.put(task)
        return task.future

    async def close(self) -> None:
        """Write what has been handed over and end the thread."""
        self._queue.put(_STOP)
        while self._thread.is_alive():
            await self._loop.run_in_executor(None, self._thread.join, 5)

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            group: list[Batch] = []
            size = 0
            while isinstance(item, Batch):
                group.append(item)
                size += item.size
                if size > _GROUP_BYTES:
                    item = None
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    item = None
            if group:
                self._write(group, size)
            if item is _GO_ON:
                self._halted = False
            elif isinstance(item, _Task):
                self._work(item)
            elif item is _STOP:
                return

    def _write(self, group: list[Batch], size: int) -> None:
        if self._halted:
            return
        if len(group) == 1:
            rows, leases = group[0].rows, group[0].leases
        else:
            rows = [row for batch in group for row in batch.rows]
            leases = [lease for batch in group for lease in batch.leases]
        failure: StoreError | None = None
        if rows or leases:
            try:
                self._log.append(rows, leases)
            except BaseException as error:
                failure = as_store_error(error)
                logger.error("commit of %d changes failed: %s", len(rows), error)
                self._halted = True
        self._call(self._done, group, failure)
        if failure is None and isinstance(self._log, SqliteLog):
            self._tidy(self._log, size + 100 * len(rows))

    def _tidy(self, log: SqliteLog, written: int) -> None:
        """Keep the WAL in its bounds, with room for the next commits."""
        wal = log.wal
        wal.committed(written)
        try:
            wal.make_room()
            if wal.written - self._checkpointed > _CHECKPOINT_BYTES:
                self._checkpointed = wal.written
                if not wal.full or not log.restart_wal():
                    self._call(self._checkpoint)
                else:
                    self._checkpointed = 0
        except (sqlite3.Error, OSError) as error:
            logger.warning("the write-ahead log could not be tidied: %s", error)

    def _work(self, task: _Task) -> None:
        try:
            task.work()
        except BaseException as error:
            self._call(_fail, task.future, as_store_error(error))
        else:
            self._call(_finish, task.future)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            logger.debug("the event loop ended before its store was closed")


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: StoreError) -> None:
    if not future.done():
        future.set_exception(error)
