"""Leases for what expires by itself: events that are near in time share one, so that leases stay few.

Source: apiserver's storage/etcd3/lease_manager.go.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

REUSE_SECONDS = 60.0
MAX_OBJECTS = 1000


class EventLeases:
    """Gives the lease that a new or changed event is put under. ttl: seconds."""

    def __init__(self, store: Any, ttl: int) -> None:
        self._store = store
        self._ttl = ttl
        self._id = 0
        self._until = 0.0
        self._used = 0
        self._granting: asyncio.Lock = asyncio.Lock()

    async def lease(self, obj: dict[str, Any]) -> int:
        """A lease that lives at least ttl from now."""
        if self._current():
            return self._id
        async with self._granting:
            if not self._current():
                reuse = min(REUSE_SECONDS, self._ttl * 0.05)
                granted = await self._store.lease_grant(int(self._ttl + reuse) + 1)
                self._id, self._until, self._used = granted.id, time.monotonic() + reuse, 1
            return self._id

    def _current(self) -> bool:
        if self._id and self._used < MAX_OBJECTS and time.monotonic() < self._until:
            self._used += 1
            return True
        return False
