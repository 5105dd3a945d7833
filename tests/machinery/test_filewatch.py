"""Files whose content changes: written in place, renamed over, behind a link that is swapped."""

from __future__ import annotations

import asyncio
from pathlib import Path

from longshore.machinery.filewatch import FileWatch


async def test_changes_are_seen(tmp_path: Path) -> None:
    plain, (one, two) = tmp_path / "plain", (tmp_path / "v1", tmp_path / "v2")
    plain.write_text("a")
    for folder in (one, two):
        folder.mkdir()
        (folder / "key").write_text(folder.name)
    data, linked = tmp_path / "..data", tmp_path / "key"
    data.symlink_to("v1")
    linked.symlink_to("..data/key")
    seen: asyncio.Queue[str] = asyncio.Queue()
    watch = FileWatch()

    async def changed() -> None:
        await seen.put(f"{plain.read_text()} {linked.read_text()}")
        raise ValueError("the next change is told nevertheless")

    watch.add([plain, linked], changed)
    try:
        plain.write_text("b")
        assert await asyncio.wait_for(seen.get(), 10) == "b v1"
        (tmp_path / "new").write_text("c")
        (tmp_path / "new").rename(plain)
        assert await asyncio.wait_for(seen.get(), 10) == "c v1"
        (tmp_path / "next").symlink_to("v2")
        (tmp_path / "next").rename(data)
        assert await asyncio.wait_for(seen.get(), 10) == "c v2"
        plain.write_text("c")  # the same again
        (tmp_path / "other").write_text("x")
        plain.unlink()
        plain.write_text("d")
        assert await asyncio.wait_for(seen.get(), 10) == "d v2"
        assert seen.empty()
    finally:
        watch.close()
