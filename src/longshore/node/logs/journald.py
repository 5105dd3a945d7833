"""journald, where the machine has it: `journalctl --follow` from the cursor where the last run stood.

A unit's messages are the stream `{job="journald", unit=...}`. They go through the store's journal before the cursor
moves on, so that a kill loses none, and repeats at most what one read brought.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from longshore.machinery import process
from longshore.node.logs.inputs.emit import MOST_STREAMS, OLDEST
from longshore.node.logs.store.store import LogStore
from longshore.wire import crilog

log = logging.getLogger("longshore.logs.journald")

FOLDERS = (Path("/var/log/journal"), Path("/run/log/journal"))
READ_SIZE = 256 * 1024
LONGEST_ENTRY = 4 * 2**20
FIELDS = "MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,_SYSTEMD_UNIT,_TRANSPORT"
ERROR = 3  # priorities up to this one are on stderr


def folder_of(folders: Sequence[Path] = FOLDERS) -> Path | None:
    """The journal of this machine; None: it has none, or nothing that reads it."""
    if shutil.which("journalctl") is None:
        return None
    return next((folder for folder in folders if next(folder.rglob("*.journal"), None)), None)


class Journald:
    """Follows one journal folder into the store. cursor: the file that keeps the place."""

    def __init__(self, folder: Path, store: LogStore, node: str, cursor: Path) -> None:
        self._folder = folder
        self._store = store
        self._node = node
        self._cursor = cursor
        self._streams: set[str] = set()

    async def run(self) -> None:
        """Follow until cancelled; journalctl is started again when it ends."""
        pause = 1.0
        while True:
            began = time.monotonic()
            try:
                await self._follow()
            except OSError as error:
                log.warning("journald is not read: %s", error)
            pause = 1.0 if time.monotonic() - began > 60 else min(pause * 2, 60.0)
            await asyncio.sleep(pause)

    async def _follow(self) -> None:
        command = ["journalctl", "-D", str(self._folder), "-o", "json", f"--output-fields={FIELDS}", "--all"]
        command += [
            "--follow",
            "--no-tail",
            "--no-pager",
            "--quiet",
        ]  # without --no-tail it would begin ten entries back
        known = self._cursor.read_text().strip() if self._cursor.exists() else ""
        command += [f"--after-cursor={known}"] if known else [f"--since=@{time.time() - OLDEST / 1e9:.0f}"]
        mine, its = os.pipe()
        child = process.spawn(command, stdout=its)
        os.close(its)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=READ_SIZE)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(mine, "rb", 0)
        )
        rest = b""
        try:
            while data := await reader.read(READ_SIZE):
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > LONGEST_ENTRY:
                    rest = b""  # its end alone is not JSON, and is passed over
                keeping = asyncio.ensure_future(self._keep(lines))
                try:
                    await asyncio.shield(keeping)
                except asyncio.CancelledError:
                    await keeping  # what the store has is behind the cursor: nothing comes twice after an orderly end
                    raise
        finally:
            transport.close()
            child.kill()
            await child.wait()

    async def _keep(self, lines: Sequence[bytes]) -> None:
        by_unit: dict[str, list[bytes]] = {}
        cursor = ""
        for line in lines:
            try:
                entry = orjson.loads(line)
                when = int(entry["__REALTIME_TIMESTAMP"]) * 1000
                cursor = str(entry["__CURSOR"])
            except (ValueError, KeyError, TypeError):
                continue
            by_unit.setdefault(_unit(entry), []).append(_record(when, entry))
        await self._store.room()
        for unit, records in by_unit.items():
            if unit not in self._streams and len(self._streams) >= MOST_STREAMS:
                unit = "other"
            self._streams.add(unit)
            labels = {"job": "journald", "node": self._node, "unit": unit}
            self._store.put(self._store.stream(f"journald/{unit}", labels), b"".join(records))
        if cursor:
            await self._store.commit()
            fresh = self._cursor.with_suffix(".new")
            fresh.write_text(cursor)
            fresh.replace(self._cursor)


def _unit(entry: dict[str, Any]) -> str:
    """The unit, or who said it where there is none (the kernel)."""
    for name in ("_SYSTEMD_UNIT", "SYSLOG_IDENTIFIER", "_TRANSPORT"):
        value = entry.get(name)
        if isinstance(value, str) and value:
            return value[:256]
    return "unknown"


def _record(when: int, entry: dict[str, Any]) -> bytes:
    message = entry.get("MESSAGE")
    if isinstance(message, list):  # octets that are no text, or several values of the field
        try:
            text = bytes(message)
        except (TypeError, ValueError):
            text = "\n".join(str(part) for part in message).encode("utf-8", "replace")
    else:
        text = str(message or "").encode("utf-8", "replace")
    priority = entry.get("PRIORITY")
    loud = isinstance(priority, str) and priority.isdigit() and int(priority) <= ERROR
    return crilog.format_line(when, b"stderr" if loud else b"stdout", text)
