"""Which servers serve this cluster, where several share one etcd: each keeps its address there under a lease.

The `kubernetes` Service names those that are there; one that is killed is gone when its lease has run out.
Source: kubernetes/pkg/controlplane/reconcilers/lease.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

log = logging.getLogger("longshore.apiserver.presence")
ROOT = b"/registry/masterleases/"
LEASE_SECONDS = 15
LOOK_SECONDS = 10.0


class Presence:
    """Keeps this server's address and tells those of all.

    store: a shared one. tell: called with the addresses, sorted, every time they are looked at.
    """

    def __init__(self, store: Any, address: str, tell: Callable[[list[str]], Awaitable[None]]) -> None:
        self._store = store
        self._key = ROOT + address.encode()
        # An Endpoints object, as upstream's servers read it; they and we go by the key.
        subsets = [{"addresses": [{"ip": address}]}]
        self._value = orjson.dumps(
            {"kind": "Endpoints", "apiVersion": "v1", "metadata": {"name": address}, "subsets": subsets}
        )
        self._tell = tell
        self._lease = 0

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except Exception as error:  # of the store, which may be away for a while
                log.warning("this server's presence could not be renewed: %s", error)
                self._lease = 0

    async def look(self) -> None:
        """Renew what is kept of this server, and tell who is there."""
        if self._lease:
            await self._store.lease_keepalive(self._lease)
        else:
            self._lease = (await self._store.lease_grant(LEASE_SECONDS)).id
            await self._store.put(self._key, self._value, lease=self._lease)
        await self._tell(await self._addresses())

    async def close(self) -> None:
        """This server goes."""
        with contextlib.suppress(Exception):
            await self._store.delete(self._key)
            if left := await self._addresses():
                await self._tell(left)

    async def _addresses(self) -> list[str]:
        kvs = (await self._store.range(ROOT, ROOT[:-1] + b"0", keys_only=True)).kvs
        return sorted(kv.key[len(ROOT) :].decode() for kv in kvs)
