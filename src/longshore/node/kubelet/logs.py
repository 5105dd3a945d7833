"""Containers' logs as /containerLogs gives them: from the CRI log file, followed over rotation until the container ends.

Source: kubernetes pkg/kubelet/kuberuntime/logs (options and their meaning).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from longshore.machinery.inotify import Inotify, Mask
from longshore.wire import crilog

_BLOCK = 256 * 1024


@dataclass(slots=True)
class Options:
    """since: nanoseconds since 1970, 0: no bound. tail, limit: lines and bytes, -1: no bound. stream: b"" both."""

    follow: bool = False
    timestamps: bool = False
    since: int = 0
    tail: int = -1
    limit: int = -1
    stream: bytes = b""


def tail_offset(path: Path, count: int, end: int = -1) -> int:
    """Where the last `count` lines before `end` begin, or of the whole file."""
    with open(path, "rb") as file:
        position = end = end if end >= 0 else file.seek(0, os.SEEK_END)
        if count == 0:
            return end
        needed = count
        last = True
        while position > 0:
            size = min(65536, position)
            position -= size
            file.seek(position)
            block = file.read(size)
            at = len(block)
            if last and block.endswith(b"\n"):
                at -= 1
            last = False
            while (found := block.rfind(b"\n", 0, at)) >= 0:
                needed -= 1
                if needed == 0:
                    return position + found + 1
                at = found
    return 0


def _render(block: bytes, options: Options) -> bytes:
    if not options.since and not options.timestamps:
        found = crilog.text_of(block)
        if found is not None:
            return found[1] if options.stream in (b"", found[0]) else b""
    out = bytearray()
    for raw in block.split(b"\n"):
        if not raw:
            continue
        try:
            line = crilog.parse_line(raw)
        except ValueError:
            continue
        if line.time < options.since or (options.stream and line.stream != options.stream):
            continue
        if options.timestamps:
            out += crilog.format_time(line.time) + b" "
        out += line.message
        if line.full:
            out += b"\n"
    return bytes(out)


async def read(
    path: Path, options: Options, *, running: Callable[[], Awaitable[bool]], wake: asyncio.Event
) -> AsyncIterator[bytes]:
    """The log's text in pieces.

    running(): whether the container still runs. wake: set by others when something of the pod has changed.
    Raises FileNotFoundError when there is no log.
    """
    left = options.limit if options.limit >= 0 else 1 << 62
    watch: Inotify | None = None
    file = open(path, "rb")  # noqa: SIM115 - it stays open while it is followed
    try:
        if options.follow:
            watch = Inotify()
            watch.watch(path.parent, Mask.MODIFY | Mask.CREATE | Mask.MOVED_TO, lambda *_: wake.set())
        # What is written while it is read is not asked for, unless it is followed.
        end = -1 if options.follow else os.fstat(file.fileno()).st_size
        if options.tail >= 0:
            file.seek(tail_offset(path, options.tail, end))
        rest = b""
        while left > 0:
            wake.clear()
            over = options.follow and not await running()
            block = file.read(_BLOCK if options.follow else min(_BLOCK, end - file.tell()))
            if block:
                block = rest + block
                cut = block.rfind(b"\n") + 1
                rest = block[cut:]
                text = _render(block[:cut], options)[:left]
                left -= len(text)
                if text:
                    yield text
                continue
            if not options.follow:
                return
            try:
                if os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
                    # Rotated: the rest of the old file has been read.
                    file.close()
                    file = open(path, "rb")  # noqa: SIM115
                    rest = b""
                    continue
            except FileNotFoundError:
                if over:
                    return
            if over:
                return
            await wake.wait()
    finally:
        file.close()
        if watch is not None:
            watch.close()
