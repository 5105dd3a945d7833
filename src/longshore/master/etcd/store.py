"""`Store`: the door of this room inside a process. The embedded store and the client of a real etcd both answer it.

Results that cost nothing to know are plain properties; everything else is awaited. Methods return awaitables rather
than being declared `async`, so that the hot ones may hand out a bare future without a coroutine around it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Protocol

from longshore.master.etcd.model import (
    Compare,
    DeleteResult,
    Lease,
    Op,
    PutResult,
    Range,
    RangeResult,
    SortOrder,
    SortTarget,
    StoreStatus,
    TxnResult,
    WatchBatch,
    WriteResult,
)


class Watch(Protocol):
    """An open watch: `async for batch in watch`. Ends after close(); raises Compacted or Unavailable."""

    def __aiter__(self) -> AsyncIterator[WatchBatch]: ...

    async def __anext__(self) -> WatchBatch: ...

    def request_progress(self) -> None:
        """Ask for a batch without events as soon as everything up to the store's revision has been delivered."""

    def close(self) -> None: ...


class Store(Protocol):
    """etcd's v3 data model. All errors are `model.StoreError`s. `end`: b"" one key, b"\\0" all from `key` on."""

    @property
    def revision(self) -> int:
        """The newest revision that this process knows to be stored."""

    @property
    def compact_revision(self) -> int: ...

    @property
    def shared(self) -> bool:
        """Whether other processes write to this store too, so that `revision` may be behind."""

    async def newest(self) -> int:
        """The revision of all that was stored when this was called, whoever wrote it."""

    def range(
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
    ) -> Awaitable[RangeResult]:
        """Read keys, linearizably when revision is 0, as they were at `revision` otherwise (Compacted, FutureRevision)."""

    def read(self, op: Range) -> Awaitable[RangeResult]:
        """A range with all of etcd's options."""

    def put(self, key: bytes, value: bytes, *, lease: int = 0, prev_kv: bool = False) -> Awaitable[PutResult]: ...

    def delete(self, key: bytes, end: bytes = b"", *, prev_kv: bool = False) -> Awaitable[DeleteResult]: ...

    def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> Awaitable[TxnResult]: ...

    def create(self, key: bytes, value: bytes, *, lease: int = 0) -> Awaitable[WriteResult]:
        """Put the key if it is absent. Otherwise `.succeeded` is False and `.kv` is what is there."""

    def update(self, key: bytes, value: bytes, mod_revision: int, *, lease: int = 0) -> Awaitable[WriteResult]:
        """Put the key if its mod_revision is this one. `.kv`: the version before, or the one in the way."""

    def delete_at(self, key: bytes, mod_revision: int) -> Awaitable[WriteResult]:
        """Delete the key if its mod_revision is this one. `.kv`: the version deleted, or the one in the way."""

    def watch(
        self, key: bytes, end: bytes = b"", *, start_revision: int = 0, prev_kv: bool = False, progress: bool = False
    ) -> Watch:
        """Watch a range from `start_revision` on (0: from now on).

        Every event exactly once, in revision order, after it is on disk. progress: batches without events now and then
        while nothing happens.
        """

    def lease_grant(self, ttl: int, id: int = 0) -> Awaitable[Lease]:
        """ttl: seconds (at least 2 are given). id 0: the store chooses one. LeaseExists, LeaseTTLTooLarge."""

    def lease_keepalive(self, id: int) -> Awaitable[Lease]:
        """Renew; `.ttl` is the new time to live in seconds, LeaseNotFound when it is gone."""

    def lease_revoke(self, id: int) -> Awaitable[int]:
        """Delete the lease and its keys; the revision afterwards."""

    def lease_time_to_live(self, id: int, *, keys: bool = False) -> Awaitable[Lease]: ...

    def lease_list(self) -> Awaitable[list[int]]: ...

    def compact(self, revision: int, *, physical: bool = False) -> Awaitable[int]:
        """Forget versions superseded at or before `revision`. physical: return only when their rows are deleted.

        Returns the store's revision. Compacted when that has been done before, FutureRevision past the newest.
        """

    def snapshot(self, path: Path) -> Awaitable[int]:
        """Write a consistent copy to a new file while the store runs; returns its revision."""

    def status(self) -> Awaitable[StoreStatus]: ...

    async def close(self) -> None: ...
