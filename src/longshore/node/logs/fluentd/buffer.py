"""An output's buffer: chunks on disk, bounded, at least once.

A chunk is a file of frames (CRC-32, length, count, packed events) under one key: tag, time slot and chosen record keys. It is
staged while it grows, queued when it is full or old, and removed after the output has taken it. After a kill every
whole frame is found again; a chunk that was being sent is sent again, and its name tells (`.sent`), so that records
which the other side may have twice are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import random
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.settings import (
    Field,
    boolean,
    choice,
    integer,
    number,
    offset_at,
    seconds,
    settings,
    size,
    string,
    timezone,
)
from longshore.wire import forward
from longshore.wire.forward import Event

log = logging.getLogger("longshore.fluentd.buffer")

_FRAME = struct.Struct("<III")
FIELDS = {
    "path": Field(string, ""),
    "chunk_limit_size": Field(size, 8 * 2**20),
    "chunk_limit_records": Field(integer, 0),
    "total_limit_size": Field(size, 512 * 2**20),
    "chunk_full_threshold": Field(number, 0.95),
    "flush_mode": Field(choice("default", "lazy", "interval", "immediate"), "default"),
    "flush_interval": Field(seconds, 60.0),
    "flush_at_shutdown": Field(boolean, False),
    "flush_thread_count": Field(integer, 1),
    "timekey": Field(seconds, 86400.0),
    "timekey_wait": Field(seconds, 600.0),
    "timekey_use_utc": Field(boolean, False),
    "timekey_zone": Field(timezone, None),
    "overflow_action": Field(choice("throw_exception", "block", "drop_oldest_chunk"), "throw_exception"),
    "retry_type": Field(choice("exponential_backoff", "periodic"), "exponential_backoff"),
    "retry_wait": Field(seconds, 1.0),
    "retry_exponential_backoff_base": Field(number, 2.0),
    "retry_max_interval": Field(seconds, 0.0),
    "retry_timeout": Field(seconds, 72 * 3600.0),
    "retry_forever": Field(boolean, False),
    "retry_max_times": Field(integer, 0),
    "retry_secondary_threshold": Field(number, 0.8),
    "retry_randomize": Field(boolean, True),
}


_SENT = ".sent"
SHUTDOWN_SECONDS = 5.0


class BufferOverflow(OSError):
    """The buffer is full, and its rule is to say so."""


class Unwritable(ValueError):
    """An output can never take this chunk: it is given up at once."""


@dataclass(slots=True, eq=False)
class Chunk:
    """One chunk: its key (tag, slot, record keys), its file, what it holds."""

    id: str
    tag: str
    slot: int
    keys: dict[str, str]
    path: Path
    created: float
    fd: int = -1
    size: int = 0
    records: int = 0
    taken: bool = False  # by a flush
    writing: bool = False  # the output has it at this moment

    def entries(self) -> bytes:
        """The packed events."""
        return b"".join(body for _, body in _frames(self.path.read_bytes()))

    def events(self) -> list[Event]:
        return forward.unpack_entries(self.entries(), 2**31)


def _frames(data: bytes) -> list[tuple[int, bytes]]:
    found, at = [], data.find(b"\n") + 1
    while 0 < at <= len(data) - _FRAME.size:
        crc, length, count = _FRAME.unpack_from(data, at)
        body = data[at + _FRAME.size : at + _FRAME.size + length]
        if len(body) < length or zlib.crc32(body) != crc:
            break
        found.append((count, body))
        at += _FRAME.size + length
    return found


Write = Callable[[Chunk], Awaitable[None]]


class Buffer:
    """Takes events for one output and calls `write` with each chunk that is due."""

    def __init__(self, element: Element, section: Element | None, folder: Path, write: Write, secondary: Write | None, *, by_time: bool, workers: int = 1) -> None:  # fmt: skip
        self.set: dict[str, Any] = (
            settings(section, FIELDS) if section else {name: f.default for name, f in FIELDS.items()}
        )
        if section and section.text("@type", "file") not in ("file", "memory", "file_single"):
            raise section.error(f"Unknown buffer plugin '{section.text('@type')}'", "@type")
        words = [word.strip() for word in section.argument.split(",") if word.strip()] if section else []
        self._by_time = "time" in words or (by_time and not words)
        self._record_keys = [word for word in words if word not in ("tag", "time")]
        if "time" in words and section and "timekey" not in section.parameters:
            raise section.error("<buffer ...> argument includes 'time', but timekey is not configured")
        self._folder = Path(self.set["path"]) if self.set["path"] else folder
        if self.set["path"] and workers > 1:
            self._folder /= folder.parent.parent.name  # worker0, worker1 ... have folders of their own
        #: None: the machine's own.
        self.zone = datetime.UTC if self.set["timekey_use_utc"] else self.set["timekey_zone"]
        self._write, self._secondary = write, secondary
        self._staged: dict[tuple[Any, ...], Chunk] = {}
        self._queue: list[Chunk] = []
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._name = element.text("@id") or element.name
        self.retries = self.written = self.dropped_records = self.errors = self.overflows = self.resent_records = 0
        self.total = 0

    def start(self) -> None:
        """Find what an earlier run left, and begin to flush."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._folder.glob("*.chunk")):
            data = path.read_bytes()
            frames = _frames(data)
            try:
                head = orjson.loads(data[: data.find(b"\n")])
            except orjson.JSONDecodeError:
                frames = []
            if not frames:
                path.unlink()
                continue
            chunk = Chunk(path.stem, head["tag"], head["slot"], head["keys"], path, head["created"])
            chunk.records, chunk.size = sum(count for count, _ in frames), len(data)
            self.total += chunk.size
            if chunk.id.endswith(_SENT):
                self.resent_records += chunk.records
            self._queue.append(chunk)
        self._task = asyncio.ensure_future(self._run())

    async def append(self, tag: str, events: Sequence[Event], durable: bool) -> None:
        """Keep events. Raises BufferOverflow, or waits for room, or drops the oldest chunk: as configured."""
        groups: dict[tuple[Any, ...], list[Event]] = {}
        for event in events:
            slot = self._slot(event[0] // 10**9) if self._by_time else 0
            keys = tuple(str(event[1].get(name, "")) for name in self._record_keys)
            groups.setdefault((tag, slot, keys), []).append(event)
        while self.total >= self.set["total_limit_size"]:
            await self._overflow()
        files: list[int] = []
        for key, group in groups.items():
            chunk = self._staged.get(key) or self._stage(key)
            body = forward.pack_entries(group)
            frame = _FRAME.pack(zlib.crc32(body), len(body), len(group)) + body
            written = os.write(chunk.fd, frame)
            if written != len(frame):
                os.ftruncate(chunk.fd, chunk.size)
                raise OSError("no space for the buffer")
            chunk.size += len(frame)
            chunk.records += len(group)
            self.total += len(frame)
            if durable:
                files.append(os.dup(chunk.fd))
            limit = self.set["chunk_limit_records"]
            full = chunk.size >= self.set["chunk_limit_size"] * self.set["chunk_full_threshold"]
            if full or (limit and chunk.records >= limit) or self.set["flush_mode"] == "immediate":
                self._enqueue(key)
        self._changed.set()
        if files:
            await asyncio.to_thread(_sync, files)

    def _slot(self, when: int) -> int:
        """The beginning of a time's slot: a day begins at midnight of the buffer's zone."""
        key = int(self.set["timekey"]) or 1
        shift = offset_at(self.zone, when)
        return (when + shift) // key * key - shift

    async def _overflow(self) -> None:
        action = self.set["overflow_action"]
        self.overflows += 1
        if action == "throw_exception":
            self.errors += 1
            raise BufferOverflow("buffer space has too many data")
        if action == "drop_oldest_chunk":
            for key in list(self._staged)[:1] if not self._queue else ():
                self._enqueue(key)
            chunk = next((chunk for chunk in self._queue if not chunk.writing), None)
            if chunk is not None:
                self._queue.remove(chunk)
                log.warning("dropping oldest chunk of %s: %d records", self._name, chunk.records)
                self._drop(chunk)
                return
        for key in list(self._staged):
            self._enqueue(key)
        self._room.clear()
        self._changed.set()
        await self._room.wait()

    def _stage(self, key: tuple[Any, ...]) -> Chunk:
        name = f"{time.time_ns():020d}{os.urandom(4).hex()}"
        tag, slot, keys = key
        chunk = Chunk(
            name,
            tag,
            slot,
            dict(zip(self._record_keys, keys, strict=True)),
            self._folder / f"{name}.chunk",
            time.time(),
        )
        head = orjson.dumps({"tag": tag, "slot": slot, "keys": chunk.keys, "created": chunk.created}) + b"\n"
        chunk.fd = os.open(chunk.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640)
        os.write(chunk.fd, head)
        chunk.size = len(head)
        self.total += chunk.size
        self._staged[key] = chunk
        return chunk

    def _enqueue(self, key: tuple[Any, ...]) -> None:
        chunk = self._staged.pop(key)
        os.close(chunk.fd)
        chunk.fd = -1
        self._queue.append(chunk)
        self._changed.set()

    def _due(self) -> float | None:
        """Queue the staged chunks whose time has come; seconds until the next one's, None: there is none."""
        now, nearest = time.time(), None
        for key, chunk in list(self._staged.items()):
            when = chunk.created + self.set["flush_interval"]
            if self._by_time and self.set["flush_mode"] in ("default", "lazy"):
                when = max(chunk.slot + self.set["timekey"] + self.set["timekey_wait"], chunk.created)
            elif self.set["flush_mode"] == "lazy":
                continue
            if when <= now:
                self._enqueue(key)
            else:
                nearest = min(nearest or when, when)
        return None if nearest is None else nearest - now

    async def _run(self) -> None:
        flushes: dict[asyncio.Task[None], Chunk] = {}

        def ended(task: asyncio.Task[None]) -> None:
            flushes.pop(task, None)
            self._changed.set()

        try:
            while True:
                self._changed.clear()
                wait = self._due()
                for chunk in [chunk for chunk in self._queue if not chunk.taken]:
                    if len(flushes) >= self.set["flush_thread_count"]:
                        break
                    chunk.taken = True
                    task = asyncio.ensure_future(self._flush(chunk))
                    flushes[task] = chunk
                    task.add_done_callback(ended)
                try:
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
                except TimeoutError:
                    pass
        finally:
            # What the output has in its hands is given time to end: broken off, it would be sent again.
            self._closing = True
            writing = [task for task, chunk in flushes.items() if chunk.writing]
            if writing:
                await asyncio.wait(writing, timeout=SHUTDOWN_SECONDS)
            left = list(flushes)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _flush(self, chunk: Chunk) -> None:
        """Write one chunk, again and again as the rule says; then it is gone one way or the other."""
        began, tries = time.monotonic(), 0
        while True:
            secondary = self._secondary is not None and time.monotonic() - began > (
                self.set["retry_timeout"] * self.set["retry_secondary_threshold"]
            )
            try:
                self._mark(chunk, again=tries > 0)
                chunk.writing = True
                try:
                    await (self._secondary if secondary and self._secondary else self._write)(chunk)
                finally:
                    chunk.writing = False
                    if self.set["overflow_action"] == "drop_oldest_chunk":
                        self._room.set()  # whoever waits may drop this one now
                self.written += 1
                break
            except Unwritable as error:
                log.error("%s can never take a chunk, it is dropped: %s", self._name, error)
                self.errors += 1
                self.dropped_records += chunk.records
                break
            except (TimeoutError, OSError, ValueError) as error:
                self.errors += 1
                if self._closing:
                    return  # it stays on disk
                tries += 1
                self.retries = tries
                most, over = self.set["retry_max_times"], time.monotonic() - began > self.set["retry_timeout"]
                if not self.set["retry_forever"] and ((most and tries > most) or over):
                    if self._secondary and not secondary:
                        began -= self.set["retry_timeout"] * self.set["retry_secondary_threshold"] + 1
                        tries = 0
                        continue
                    log.error(
                        "%s: hit limit for retries, dropping a chunk of %d records: %s",
                        self._name,
                        chunk.records,
                        error,
                    )
                    self.dropped_records += chunk.records
                    break
                wait = self.set["retry_wait"]
                if self.set["retry_type"] == "exponential_backoff":
                    wait *= self.set["retry_exponential_backoff_base"] ** min(tries - 1, 30)
                wait = min(wait, self.set["retry_max_interval"] or wait)
                if self.set["retry_randomize"]:
                    wait *= random.uniform(0.875, 1.125)
                log.warning("%s: failed to flush a chunk, retry %d in %.1f s: %s", self._name, tries, wait, error)
                await asyncio.sleep(wait)
                if chunk not in self._queue:
                    break  # dropped for room meanwhile
        self.retries = 0
        if chunk in self._queue:
            self._queue.remove(chunk)
            self._remove(chunk)

    def _mark(self, chunk: Chunk, *, again: bool) -> None:
        """The output gets the chunk now: after a kill it may have it twice, as after a try that failed on the way."""
        if again:
            self.resent_records += chunk.records
        elif not chunk.id.endswith(_SENT):
            marked = chunk.path.with_name(f"{chunk.id}{_SENT}.chunk")
            chunk.path.rename(marked)
            chunk.path, chunk.id = marked, chunk.id + _SENT

    def _drop(self, chunk: Chunk) -> None:
        self.dropped_records += chunk.records
        self._remove(chunk)

    def _remove(self, chunk: Chunk) -> None:
        self.total -= chunk.size
        chunk.path.unlink(missing_ok=True)
        self._room.set()

    async def close(self) -> None:
        """End; with flush_at_shutdown what can be written in five seconds is. The rest stays on disk."""
        if self.set["flush_at_shutdown"] and self._task:
            for key in list(self._staged):
                self._enqueue(key)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SHUTDOWN_SECONDS):
                    while self._queue:
                        self._room.clear()
                        await self._room.wait()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for chunk in self._staged.values():
            os.close(chunk.fd)
        self._staged.clear()

    def figures(self) -> dict[str, Any]:
        return {
            "buffer_queue_length": len(self._queue),
            "buffer_stage_length": len(self._staged),
            "buffer_total_queued_size": self.total,
            "retry_count": self.retries,
            "num_errors": self.errors,
            "rollback_count": self.errors,
            "write_count": self.written,
            "buffer_available_buffer_space_ratios": round(
                max(0.0, 1 - self.total / self.set["total_limit_size"]) * 100, 1
            ),
            "overflow_count": self.overflows,
            "dropped_records": self.dropped_records,
            "resent_records": self.resent_records,
        }


def _sync(files: list[int]) -> None:
    try:
        for fd in files:
            os.fdatasync(fd)
    finally:
        for fd in files:
            os.close(fd)
