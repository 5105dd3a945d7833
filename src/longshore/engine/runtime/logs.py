"""Read a container's log file: from a time, to a time, the last lines, and on as it grows, across rotation.

The file is in the CRI format (wire/crilog); rotated ones lie beside it as NAME.1 (the newest), NAME.2 and so on.
Source: kubernetes' CRI logging design; what `docker logs` documents of since, until, tail and follow.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from longshore.machinery.inotify import Inotify, Mask
from longshore.wire.crilog import Line, parse_line

_BLOCK = 256 * 1024
# A longer line is handed on in pieces of at least this size, as dockerd does.
_MAX_LINE = 16384


def files(path: Path) -> list[Path]:
    """The log's files that exist, oldest first."""
    found = []
    number = 1
    while (older := path.with_name(f"{path.name}.{number}")).exists():
        found.append(older)
        number += 1
    found.reverse()
    if path.exists():
        found.append(path)
    return found


class Joiner:
    """Joins partial records into lines, a stream at a time; keeps what is unfinished between calls."""

    def __init__(self) -> None:
        self._open: dict[bytes, tuple[int, list[bytes], int]] = {}

    def push(self, block: bytes) -> list[Line]:
        """The lines finished by a block of whole records."""
        out: list[Line] = []
        for raw in block.split(b"\n"):
            if not raw:
                continue
            try:
                record = parse_line(raw)
            except ValueError:
                continue
            held = self._open.get(record.stream)
            if held is None:
                if record.full:
                    out.append(record)
                    continue
                held = (record.time, [], 0)
            started, parts, size = held
            parts.append(record.message)
            size += len(record.message)
            if record.full or size >= _MAX_LINE:
                self._open.pop(record.stream, None)
                out.append(Line(started, record.stream, record.full, b"".join(parts)))
            else:
                self._open[record.stream] = (started, parts, size)
        return out

    def unfinished(self) -> dict[bytes, tuple[int, bytes]]:
        """What lines have so far, by stream: (time, text)."""
        return {stream: (started, b"".join(parts)) for stream, (started, parts, _) in self._open.items()}

    def restore(self, unfinished: dict[bytes, tuple[int, bytes]]) -> None:
        """Go on where another one was: its `unfinished`."""
        self._open = {stream: (started, [text], len(text)) for stream, (started, text) in unfinished.items()}

    @property
    def empty(self) -> bool:
        """Whether no line is unfinished."""
        return not self._open

    def flush(self) -> list[Line]:
        """What is unfinished, at the end of the output."""
        left = [Line(started, stream, False, b"".join(parts)) for stream, (started, parts, _) in self._open.items()]
        self._open.clear()
        return left


def _tail_offset(paths: Sequence[Path], count: int, *, whole: bool = False) -> tuple[int, int]:
    """Where the last `count` lines begin: (index of the file, offset in it). whole: an unfinished one is none."""
    needed = count
    first = not whole
    for index in range(len(paths) - 1, -1, -1):
        with open(paths[index], "rb") as file:
            position = file.seek(0, os.SEEK_END)
            rest = b""  # the beginning of what was read so far, up to its first newline
            while position > 0:
                size = min(_BLOCK, position)
                position -= size
                file.seek(position)
                block = file.read(size) + rest
                ends = len(block)
                while ends > 0:
                    start = block.rfind(b"\n", 0, ends - 1) + 1
                    if start == 0 and position > 0:
                        break
                    record = block[start:ends]
                    parts = record[:80].split(b" ", 3)
                    full = len(parts) > 2 and not parts[2].startswith(b"P")
                    # A line's last record counts; an unfinished line at the very end counts as well, unless it is held back.
                    if full or first:
                        if needed == 0:
                            return index, position + ends
                        needed -= 1
                    first = False
                    ends = start
                rest = block[:ends]
    return 0, 0


async def blocks(
    path: Path,
    *,
    tail: int = -1,
    follow: bool = False,
    until: int = 0,
    ended: asyncio.Future[object] | None = None,
    whole: bool = False,
) -> AsyncIterator[bytes]:
    """A container's log in blocks of whole records, as they lie in its files; arguments as `read`.

    whole: an unfinished line at the end is none of those that `tail` counts.
    """
    watch: Inotify | None = None
    wake = asyncio.Event()
    file = None
    try:
        if follow:
            watch = Inotify()

            def changed(_path: Path, _mask: Mask, name: str) -> None:
                if name in ("", path.name):
                    wake.set()

            path.parent.mkdir(parents=True, exist_ok=True)
            watch.watch(path.parent, Mask.MODIFY | Mask.CREATE | Mask.MOVED_TO, changed)
            if ended is not None:
                ended.add_done_callback(lambda _: wake.set())
            if until:
                asyncio.get_running_loop().call_later(max(until / 1e9 - time.time(), 0) + 0.01, wake.set)
        paths = files(path)
        index, offset = (0, 0) if tail < 0 else _tail_offset(paths, tail, whole=whole)
        for number, each in enumerate(paths[index:]):
            opened = open(each, "rb")  # noqa: SIM115 - the newest stays open while it is followed
            if number == 0:
                opened.seek(offset)
            if file is not None:
                file.close()
            file = opened
            if each != path or not follow:
                rest = b""
                while block := file.read(_BLOCK):
                    block = rest + block
                    cut = block.rfind(b"\n") + 1
                    rest = block[cut:]
                    yield block[:cut]
        rest = b""
        replaced = False
        while follow:
            over = ended is not None and ended.done()
            wake.clear()
            if file is None and path.exists():
                file = open(path, "rb")  # noqa: SIM115
            block = file.read(_BLOCK) if file is not None else b""
            if block:
                block = rest + block
                cut = block.rfind(b"\n") + 1
                rest = block[cut:]
                yield block[:cut]
                continue
            if file is not None and path.exists() and os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
                if not replaced:
                    # Now that there is a new file nothing more comes into this one; but something may have just before.
                    replaced = True
                    continue
                replaced = False
                file.close()
                file = open(path, "rb")  # noqa: SIM115
                rest = b""
                continue
            if over or (until and time.time_ns() > until):
                break
            await wake.wait()
    finally:
        if watch is not None:
            watch.close()
        if file is not None:
            file.close()


async def read(
    path: Path,
    *,
    since: int = 0,
    until: int = 0,
    tail: int = -1,
    follow: bool = False,
    ended: asyncio.Future[object] | None = None,
) -> AsyncIterator[list[Line]]:
    """Lines of a container's log, in batches.

    since, until: nanoseconds since 1970, 0: no bound. tail: at most so many last lines, -1: all. follow: wait for more
    until `ended` is done (the container's end) and all was read, or `until` has passed.
    """
    joiner = Joiner()
    source = blocks(path, tail=tail, follow=follow, until=until, ended=ended)
    try:
        async for block in source:
            batch, done = select(joiner.push(block), since, until)
            if batch:
                yield batch
            if done:
                return
    finally:
        await source.aclose()  # type: ignore[attr-defined]
    batch, _ = select(joiner.flush(), since, until)
    if batch:
        yield batch


def select(lines: list[Line], since: int, until: int) -> tuple[list[Line], bool]:
    """The lines within the bounds, and whether one lay past the upper bound."""
    done = False
    if until and lines and lines[-1].time > until:
        lines = [line for line in lines if line.time <= until]
        done = True
    if since and lines and lines[0].time < since:
        lines = [line for line in lines if line.time >= since]
    return lines, done


def rotate(path: Path, keep: int) -> None:
    """Rename NAME to NAME.1 and the older ones up by one; the one past `keep` files in all is removed.

    The monitor must reopen its log afterwards (Runtime.reopen_log).
    """
    surplus = max(keep - 1, 1)
    while (oldest := path.with_name(f"{path.name}.{surplus}")).exists():
        oldest.unlink()
        surplus += 1
    for number in range(keep - 2, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            os.replace(older, path.with_name(f"{path.name}.{number + 1}"))
    if keep > 1:
        os.replace(path, path.with_name(f"{path.name}.1"))
    else:
        path.unlink(missing_ok=True)
