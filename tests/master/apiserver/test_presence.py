"""Servers that share a store know of one another: one that closes is gone at once, one that is killed when its lease runs out."""

from __future__ import annotations

import asyncio

import pytest

from longshore.master.apiserver import presence
from longshore.master.etcd.embedded import EmbeddedStore


async def test_servers_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "LEASE_SECONDS", 1)
    monkeypatch.setattr(presence, "LOOK_SECONDS", 0.2)
    store = await EmbeddedStore.open(None)
    told: list[list[str]] = []

    async def tell(addresses: list[str]) -> None:
        told.append(addresses)

    servers = [presence.Presence(store, f"192.0.2.{n}", tell) for n in range(3)]
    for server in servers:
        await server.look()
    assert told[-1] == ["192.0.2.0", "192.0.2.1", "192.0.2.2"]
    await servers[0].close()
    assert told[-1] == ["192.0.2.1", "192.0.2.2"]
    # The second one is never heard of again; the third keeps its lease.
    running = asyncio.create_task(servers[2].run())
    while told[-1] != ["192.0.2.2"]:
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.5)
    assert told[-1] == ["192.0.2.2"]
    # The store was away for longer than the lease: it takes another.
    await store.lease_revoke(servers[2]._lease)
    seen = len(told)
    while len(told) == seen or told[-1] != ["192.0.2.2"]:
        await asyncio.sleep(0.05)
    running.cancel()
    await store.close()
