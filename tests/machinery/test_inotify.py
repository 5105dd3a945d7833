"""Watches on files: one instance of the kernel's for a loop, and none at all."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path

import pytest

from longshore.machinery import inotify
from longshore.machinery.inotify import Inotify, Mask
from support.poorkernel import PoorKernel

Seen = asyncio.Queue[tuple[str, str]]


def instances() -> int:
    """How many inotify instances this process holds."""
    held = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            held += os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:inotify"
        except FileNotFoundError:
            continue
    return held


def into(seen: Seen, who: str) -> inotify.Callback:
    return lambda path, mask, name: seen.put_nowait((who, name))


async def next_of(seen: Seen) -> tuple[str, str]:
    return await asyncio.wait_for(seen.get(), 20)


async def test_watchers_share_one_instance(tmp_path: Path) -> None:
    before = instances()
    seen: Seen = asyncio.Queue()
    watches = [Inotify() for _ in range(200)]  # more than a user has
    assert instances() == before + 1
    (tmp_path / "way").symlink_to(tmp_path)
    watches[0].watch(tmp_path, Mask.CREATE, into(seen, "made"))
    watches[1].watch(tmp_path / "way", Mask.DELETE | Mask.ONLYDIR, into(seen, "gone"))
    (tmp_path / "a").touch()
    assert await next_of(seen) == ("made", "a")
    (tmp_path / "a").unlink()
    assert await next_of(seen) == ("gone", "a")
    watches[0].close()
    (tmp_path / "b").touch()
    (tmp_path / "b").unlink()
    assert await next_of(seen) == ("gone", "b")
    watches[1].forget(tmp_path / "way")
    watches[2].watch(tmp_path, Mask.CREATE, into(seen, "anew"))
    (tmp_path / "c").touch()
    assert await next_of(seen) == ("anew", "c")
    for watch in watches:
        watch.close()
    assert seen.empty()
    assert instances() == before


async def test_one_failing_callback_is_not_the_others_loss(tmp_path: Path) -> None:
    seen: Seen = asyncio.Queue()
    one, other = Inotify(), Inotify()

    def fail(*_: object) -> None:
        raise ValueError("not of your concern")

    one.watch(tmp_path, Mask.CREATE, fail)
    other.watch(tmp_path, Mask.CREATE, into(seen, "other"))
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    assert [await next_of(seen), await next_of(seen)] == [("other", "a"), ("other", "b")]
    one.close()
    other.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC])
async def test_without_the_kernels_help_folders_are_looked_at(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    poor = PoorKernel.into(monkeypatch, code)
    (tmp_path / "old").write_text("a")
    (tmp_path / "inner").mkdir()
    seen: Seen = asyncio.Queue()
    watch = Inotify()
    try:
        with pytest.raises(FileNotFoundError):
            watch.watch(tmp_path / "nothing", Mask.CREATE, into(seen, "never"))
        with pytest.raises(NotADirectoryError):
            watch.watch(tmp_path / "old", Mask.CREATE | Mask.ONLYDIR, into(seen, "never"))
        watch.watch(tmp_path, Mask.CREATE | Mask.MODIFY | Mask.DELETE, into(seen, "here"))
        watch.watch(tmp_path / "old", Mask.MODIFY, into(seen, "file"))
        watch.watch(tmp_path / "inner", Mask.DELETE_SELF, into(seen, "inner"))
        assert caplog.text.count("are looked at every second") == 1
        (tmp_path / "new").touch()
        assert await next_of(seen) == ("here", "new")
        (tmp_path / "new").unlink()
        assert await next_of(seen) == ("here", "new")
        (tmp_path / "old").write_text("ab")
        assert sorted([await next_of(seen), await next_of(seen)]) == [("file", ""), ("here", "old")]
        (tmp_path / "inner").rmdir()
        assert sorted([await next_of(seen), await next_of(seen)]) == [("here", "inner"), ("inner", "")]
        poor.rich = True
        while "room again" not in caplog.text:
            await asyncio.sleep(0.01)
        (tmp_path / "told").touch()
        assert await next_of(seen) == ("here", "told")
        assert instances() >= 1
    finally:
        watch.close()
