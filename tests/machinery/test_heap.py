"""Free pages go back a while after the collector has run, and nothing happens in a process at rest."""

from __future__ import annotations

import asyncio
import gc

import pytest

from longshore.machinery import heap


def resident() -> int:
    """This process's memory in octets."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


async def test_holes_go_back_after_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "RELIEF_SECONDS", 0.02)
    trims = asyncio.Queue[int]()
    real = heap.trim

    def trim() -> None:
        real()
        trims.put_nowait(resident())

    monkeypatch.setattr(heap, "trim", trim)
    before = list(gc.callbacks)
    heap.keep_small(asyncio.get_running_loop())
    gc.disable()  # only the collections below
    try:
        pieces = [bytes(2000) for _ in range(40_000)]
        held = pieces[::40]
        full = resident()
        del pieces
        gc.collect()
        gc.collect()  # one trim for all
        assert await asyncio.wait_for(trims.get(), 20) < full - 20_000_000
        assert len(held) == 1000
        await asyncio.sleep(0.1)
        assert trims.empty()
        gc.collect()
        await asyncio.wait_for(trims.get(), 20)
    finally:
        gc.enable()
        gc.callbacks[:] = before
