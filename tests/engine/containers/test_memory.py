"""Memory that runs out, told when it does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from longshore.engine.containers import memory
from longshore.machinery.inotify import Inotify


async def test_memory_that_runs_out_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    watch = memory.MemoryWatch(told.append)
    watch.watch("id", tmp_path)
    (tmp_path / "other").touch()
    for _ in range(2):
        # The monitor makes its file twice.
        (tmp_path / "oom").touch()
        await asyncio.sleep(0.05)
    assert told == ["id"] and not (tmp_path / "oom").exists()
    watch.forget(tmp_path)
    (tmp_path / "oom").touch()
    await asyncio.sleep(0.05)
    assert told == ["id"]
    watch.close()

    def exhausted() -> Inotify:
        raise OSError(24, "inotify_init1")

    monkeypatch.setattr(memory, "Inotify", exhausted)
    memory.MemoryWatch(told.append).watch("id", tmp_path)
