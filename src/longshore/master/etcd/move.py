"""Moving a cluster's state from one store to another: all keys as they are now, their leases, nothing lost.

Versions and revisions begin anew in the new store, whose revision is first brought past the old one's: to a Kubernetes
client every object has changed, and no resource version goes back.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from longshore.master.etcd.client import connect
from longshore.master.etcd.embedded import EmbeddedStore
from longshore.master.etcd.model import MAX_TXN_OPS, Delete, Put, StoreError
from longshore.master.etcd.store import Store

_PAGE = 500
_MARK = b"/longshore/moving"
_BATCH_BYTES = 512 * 1024


async def copy(source: Store, target: Store) -> int:
    """Copy everything into an empty store; the number of keys. StoreError when it is not empty or keys do not arrive."""
    if (await target.range(b"\0", b"\0", count_only=True)).count:
        raise StoreError("the store to move to is not empty")
    for id_ in await source.lease_list():
        lease = await source.lease_time_to_live(id_)
        if lease.ttl > 0:
            await target.lease_grant(lease.granted, id_)
    known = set(await target.lease_list())
    at = (await source.range(b"\0", count_only=True)).revision
    while target.revision < at:
        await asyncio.gather(*(target.put(_MARK, b"") for _ in range(min(at - target.revision, 256))))
    if (await target.range(_MARK, count_only=True)).count:
        await target.delete(_MARK)
    start = b"\0"
    copied = 0
    while True:
        page = await source.range(start, b"\0", revision=at, limit=_PAGE)
        batch: list[Put | Delete] = []
        size = 0
        for kv in page.kvs:
            if batch and (len(batch) >= MAX_TXN_OPS or size + len(kv.value) > _BATCH_BYTES):
                await target.txn((), batch)
                batch, size = [], 0
            batch.append(Put(kv.key, kv.value, kv.lease if kv.lease in known else 0))
            size += len(kv.key) + len(kv.value)
        if batch:
            await target.txn((), batch)
        copied += len(page.kvs)
        if not page.more:
            break
        start = page.kvs[-1].key + b"\0"
    arrived = (await target.range(b"\0", b"\0", count_only=True)).count
    if arrived != copied:
        raise StoreError(f"{copied} keys were sent, {arrived} have arrived")
    return copied


async def move(
    source: str, target: str, *, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> int:
    """Copy between two stores named by etcd URLs (comma-separated) or by a store's file. The number of keys."""

    async def opened(name: str) -> Store:
        if "://" in name:
            return await connect(name.split(","), ca=ca, certificate=certificate, key=key)
        return await EmbeddedStore.open(Path(name))

    first = await opened(source)
    try:
        second = await opened(target)
        try:
            return await copy(first, second)
        finally:
            await second.close()
    finally:
        await first.close()
