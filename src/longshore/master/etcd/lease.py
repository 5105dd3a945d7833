"""Leases: granted times to live, the keys that hang on them, and their expiry.

Grants and revocations are on disk; the time of the last renewal is not (as in etcd): after a restart every lease has its
whole time to live again.
"""

from __future__ import annotations

import asyncio
import heapq
import secrets
from collections.abc import Callable

from longshore.master.etcd.model import LeaseExists, LeaseTTLTooLarge

MAX_TTL = 9_000_000_000
MIN_TTL = 2
"""What etcd grants at least with its default election timeout, in seconds."""


class LeaseRecord:
    """keys: every key that was ever put with this lease and may still hang on it (the key index knows)."""

    __slots__ = ("deadline", "expiring", "id", "keys", "ttl")

    def __init__(self, id: int, ttl: int, deadline: float) -> None:
        self.id = id
        self.ttl = ttl
        self.deadline = deadline
        self.keys: set[bytes] = set()
        self.expiring = False


class LeaseBook:
    """expire(id): called on the loop when a lease has run out; it is asked again later if nothing came of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[int], None]) -> None:
        self._loop = loop
        self._expire = expire
        self.records: dict[int, LeaseRecord] = {}
        self._heap: list[tuple[float, int]] = []
        self._timer: asyncio.TimerHandle | None = None

    def load(self, leases: list[tuple[int, int]]) -> None:
        """Take up the leases of an existing log, each with its whole time to live."""
        now = self._loop.time()
        for id_, ttl in leases:
            self.records[id_] = LeaseRecord(id_, ttl, now + ttl)
            heapq.heappush(self._heap, (now + ttl, id_))
        self._arm()

    def exists(self, id: int) -> bool:
        return id in self.records

    def add(self, ttl: int, id: int) -> LeaseRecord:
        """A new lease. LeaseExists, LeaseTTLTooLarge."""
        if ttl > MAX_TTL:
            raise LeaseTTLTooLarge()
        if id and id in self.records:
            raise LeaseExists()
        while not id or id in self.records:
            id = secrets.randbits(63)
        ttl = max(ttl, MIN_TTL)
        record = self.records[id] = LeaseRecord(id, ttl, self._loop.time() + ttl)
        heapq.heappush(self._heap, (record.deadline, id))
        self._arm()
        return record

    def remove(self, id: int) -> None:
        self.records.pop(id, None)

    def attach(self, id: int, key: bytes) -> None:
        self.records[id].keys.add(key)

    def detach(self, id: int, key: bytes) -> None:
        record = self.records.get(id)
        if record is not None:
            record.keys.discard(key)

    def remaining(self, record: LeaseRecord) -> int:
        """Whole seconds left, rounded up; 0 when it has run out and is about to be revoked."""
        left = record.deadline - self._loop.time()
        return max(int(left + 0.999), 0)

    def renew(self, record: LeaseRecord) -> None:
        # The heap's entry stays at the old deadline; it is looked at again, and put back, when it comes up.
        record.deadline = self._loop.time() + record.ttl

    def retry(self, id: int, delay: float) -> None:
        """A revocation failed: have it expire again after `delay` seconds."""
        record = self.records.get(id)
        if record is not None:
            record.expiring = False
            heapq.heappush(self._heap, (self._loop.time() + delay, id))
            self._arm()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()

    def _arm(self) -> None:
        if self._timer is not None:
            if self._heap and self._timer.when() <= self._heap[0][0]:
                return
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = self._loop.call_at(self._heap[0][0], self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._heap and self._heap[0][0] <= now:
            _, id_ = heapq.heappop(self._heap)
            record = self.records.get(id_)
            if record is None or record.expiring:
                continue
            if record.deadline > now:
                heapq.heappush(self._heap, (record.deadline, id_))
                continue
            record.expiring = True
            self._expire(id_)
        self._arm()
