"""Sends a container's log on to where its driver says, from a checkpoint on, however often the engine is restarted.

The log file that every container has is the buffer: what could not be sent lies there, a container is never held up, and
what an engine killed at the wrong moment may have sent already is sent again rather than lost. `mode=non-blocking` bounds
what waits (max-buffer-size); what is newer is dropped, as dockerd does.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from longshore.engine.runtime import logs
from longshore.machinery.inotify import Inotify, Mask
from longshore.wire.crilog import Line

from . import logdrivers, logoptions, logsenders, logtags
from .model import Container

log = logging.getLogger("longshore.engine.containers")
Json = dict[str, Any]

_BLOCK = 65536
_AHEAD = 4  # batches read before the first of them is sent
_LONGEST_WAIT = 60.0
_CHECKPOINT = "forwarded"
#: Seconds that an ended container's last lines get: when the receiver answers, and when it does not.
_PATIENCE, _LITTLE_PATIENCE = 10.0, 2.0


@dataclass(slots=True)
class _Batch:
    lines: list[Line]
    size: int
    after: Json


class Forwarder:
    """Follows one log file. wait: seconds before the first retry; most: retries of a batch; bound: bytes that may wait, 0:
    no bound."""

    def __init__(self, path: Path, sender: logsenders.Sender, *, wait: float = 1.0, most: int = 2**31, bound: int = 0):
        self._path, self._sender, self._wait, self._most, self._bound = path, sender, wait, most, bound
        self._checkpoint = path.parent / _CHECKPOINT
        self._file: IO[bytes] | None = None
        self._head = ""
        self._rest = b""
        self._joiner = logs.Joiner()
        self._wake = asyncio.Event()
        self._over = False
        self._replaced = False
        self._failing = False
        self._queue: asyncio.Queue[_Batch | None] = asyncio.Queue(0 if bound else _AHEAD)
        self._queued = 0
        self._dropped = 0
        self._inotify: Inotify | None = None
        self._task: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Raises SendFailed when the receiver cannot be reached."""
        await self._sender.connect()

    def start(self) -> None:
        """Begin where an earlier forwarder of this log ended."""
        self._locate()
        self._inotify = Inotify()
        self._inotify.watch(self._path.parent, Mask.MODIFY | Mask.CREATE | Mask.MOVED_TO, self._changed)
        self._task = asyncio.get_running_loop().create_task(self._run())

    def end(self) -> None:
        """Nothing more will be written; what lies there is still sent."""
        self._over = True
        self._wake.set()

    async def finish(self) -> None:
        """end(), and wait a while until all was sent."""
        self.end()
        if self._task is None:
            return
        await asyncio.wait({self._task}, timeout=_LITTLE_PATIENCE if self._failing else _PATIENCE)

    @property
    def done(self) -> bool:
        """Whether all was sent after the end."""
        return self._task is not None and self._task.done()

    def close(self) -> None:
        """Stop here; the checkpoint tells the next one where to go on."""
        if self._task is not None:
            self._task.cancel()
        self._sender.close()
        self._release()

    def _release(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def needed(self) -> int:
        """How many files a rotation must leave so that nothing unsent is removed."""
        if self._bound or self._file is None:
            return 0
        found = [os.stat(p).st_ino for p in reversed(logs.files(self._path))]
        own = os.fstat(self._file.fileno()).st_ino
        return found.index(own) + 2 if own in found else 2

    # ------------------------------------------------------------------ the file

    def _changed(self, _path: Path, _mask: Mask, name: str) -> None:
        if name in ("", self._path.name):
            self._wake.set()

    def _locate(self) -> None:
        """Open the file that the checkpoint names; the oldest one when it is gone."""
        try:
            kept = orjson.loads(self._checkpoint.read_bytes())
            head, offset, unfinished = str(kept["head"]), int(kept["offset"]), kept["open"]
        except (OSError, ValueError, KeyError, TypeError):
            head, offset, unfinished = "", 0, {}
        candidates = logs.files(self._path)
        for candidate in reversed(candidates):
            if head and _head(candidate) == head and candidate.stat().st_size >= offset:
                self._file = open(candidate, "rb")  # noqa: SIM115 - followed from here on
                self._file.seek(offset)
                self._head = head
                self._joiner.restore(
                    {name.encode(): (when, base64.b64decode(text)) for name, (when, text) in unfinished.items()}
                )
                return
        if candidates:
            self._file = open(candidates[0], "rb")  # noqa: SIM115

    def _next(self) -> bytes:
        """The next whole records; b"" when there are none yet."""
        if self._file is None:
            if not self._path.exists():
                return b""
            self._file = open(self._path, "rb")  # noqa: SIM115
        block = self._file.read(_BLOCK)
        while block:
            block = self._rest + block
            cut = block.rfind(b"\n") + 1
            self._rest = block[cut:]
            if cut:
                return block[:cut]
            block = self._file.read(_BLOCK)
        return b""

    def _newer(self) -> bool:
        """Go over to the next file when this one was rotated away and read to its end."""
        if self._file is None:
            return False
        files = logs.files(self._path)
        inodes = [os.stat(p).st_ino for p in files]
        own = os.fstat(self._file.fileno()).st_ino
        following = inodes.index(own) + 1 if own in inodes else 0
        if following >= len(files):
            return False
        if not self._replaced:
            # Something may have come between the last read and the rotation.
            self._replaced = True
            return True
        self._replaced = False
        self._file.close()
        self._file = open(files[following], "rb")  # noqa: SIM115
        self._head, self._rest = "", b""
        return True

    def _position(self) -> Json:
        assert self._file is not None
        if not self._head:
            self._head = _head_of(os.pread(self._file.fileno(), 64, 0))
        unfinished = {
            name.decode(): [when, base64.b64encode(text).decode()]
            for name, (when, text) in self._joiner.unfinished().items()
        }
        return {"head": self._head, "offset": self._file.tell() - len(self._rest), "open": unfinished}

    # ------------------------------------------------------------------ the two ends of the queue

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send())
                group.create_task(self._read())
        except* Exception as failed:
            log.error("log lines of %s are not sent on", self._path.parent.name[:12], exc_info=failed)
        finally:
            self._sender.close()
            self._release()

    async def _read(self) -> None:
        while True:
            over = self._over
            self._wake.clear()
            try:
                block = self._next()
                if block:
                    await self._put(self._joiner.push(block))
                    continue
                if self._newer():
                    continue
            except FileNotFoundError:  # a rotation in between
                continue
            if over:
                break
            await self._wake.wait()
        left = [Line(line.time, line.stream, True, line.message) for line in self._joiner.flush()]
        if left:
            await self._put(left)
        await self._queue.put(None)

    async def _put(self, lines: list[Line]) -> None:
        size = sum(len(line.message) for line in lines)
        if self._bound and self._queued + size > self._bound:
            kept: list[Line] = []
            size = 0
            for line in lines:
                more = size + len(line.message)
                if self._queued + more <= self._bound or not (self._queued or kept):
                    kept.append(line)
                    size = more
            if not self._dropped and len(kept) < len(lines):
                log.warning("log lines of %s are dropped: its buffer is full", self._path.parent.name[:12])
            self._dropped += len(lines) - len(kept)
            lines = kept
        if not lines:
            return
        self._queued += size
        await self._queue.put(_Batch(lines, size, self._position()))

    async def _send(self) -> None:
        while (batch := await self._queue.get()) is not None:
            await self._deliver(batch.lines)
            self._queued -= batch.size
            with contextlib.suppress(FileNotFoundError):
                self._save(batch.after)

    async def _deliver(self, lines: list[Line]) -> None:
        attempt = 0
        while True:
            try:
                await self._sender.send(lines)
            except OSError as error:
                self._sender.close()
                self._failing = True
                attempt += 1
                who = self._path.parent.name[:12]
                if attempt > self._most:
                    log.error("%d log lines of %s could not be sent: %s", len(lines), who, error)
                    return
                if attempt == 1:
                    log.warning("log lines of %s wait: %s", who, error)
                await asyncio.sleep(min(self._wait * 1.5 ** min(attempt - 1, 20), _LONGEST_WAIT))
            else:
                self._failing = False
                return

    def _save(self, position: Json) -> None:
        temporary = self._checkpoint.with_name(f".{_CHECKPOINT}.new")
        temporary.write_bytes(orjson.dumps(position))
        os.replace(temporary, self._checkpoint)


def _head_of(data: bytes) -> str:
    """A file's first record's time: it tells the file from others under the same name."""
    return data.split(b" ", 1)[0].decode("ascii", "replace") if b" " in data else ""


def _head(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return _head_of(file.read(64))
    except OSError:
        return ""


def behind(container: Container) -> bool:
    """Whether an ended container's log has lines that were never sent."""
    if container.host["LogConfig"]["Type"] not in logoptions.REMOTE or not container.log_path.exists():
        return False
    try:
        kept = orjson.loads((container.folder / _CHECKPOINT).read_bytes())
        whole = kept["head"] == _head(container.log_path) and kept["offset"] == container.log_path.stat().st_size
        return not whole or bool(kept["open"])
    except (OSError, ValueError, KeyError, TypeError):
        return container.log_path.stat().st_size > 0


def make(container: Container) -> Forwarder | None:
    """The forwarder that a container's driver asks for. Raises OptionError, TagError, SendFailed."""
    driver, options = container.host["LogConfig"]["Type"], container.host["LogConfig"]["Config"]
    if driver not in logoptions.REMOTE:
        return None
    known = logtags.values(container)
    tag = logtags.render(options.get("tag") or logtags.DEFAULT, known)
    extra = logdrivers.details(options, container.config["Labels"] or {}, container.config["Env"] or [])
    bound = 0
    if options.get("mode") == "non-blocking":
        bound = logdrivers.parse_size(options.get("max-buffer-size") or "1m")
    sender: logsenders.Sender
    if driver == "fluentd":
        settings = logoptions.fluentd(options)
        sender = logsenders.FluentdSender(settings, tag, container.id, container.name, extra)
        return Forwarder(container.log_path, sender, wait=settings.retry_wait, most=settings.max_retries, bound=bound)
    if driver in ("splunk", "awslogs", "gcplogs"):
        raise logsenders.SendFailed(logoptions.unreachable(driver, options))
    if driver == "gelf":
        from . import gelf

        chosen = gelf.parse(options)
        fields = {
            "container_id": container.id,
            "container_name": container.name.lstrip("/"),
            "image_id": container.image_id,
            "image_name": str(known["ImageName"]),
            "command": " ".join([container.path, *container.args]),
            "tag": tag,
            "created": container.created,
            **extra,
        }
        carrier = gelf.GelfSender(chosen, fields)
        return Forwarder(container.log_path, carrier, wait=chosen.delay or 1.0, most=chosen.retries, bound=bound)
    if driver == "syslog":
        sender = logsenders.SyslogSender(logoptions.syslog(options), tag)
    else:
        sender = logsenders.JournaldSender(tag, container.id, container.name, str(known["ImageName"]), extra)
    return Forwarder(container.log_path, sender, bound=bound)


def waits_for_receiver(container: Container) -> bool:
    """Whether a start fails when the receiver cannot be reached."""
    settings = container.host["LogConfig"]
    return settings["Type"] != "fluentd" or not logoptions.fluentd(settings["Config"]).asynchronous
