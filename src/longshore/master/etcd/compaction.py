"""Compaction: superseded versions up to a revision are forgotten at once and deleted from the log little by little.

The committer thread deletes a few hundred rows at a time between two groups, so that no writer waits longer than one such
step; work grows with what is deleted, not with what is stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from longshore.master.etcd.committer import Committer
from longshore.master.etcd.key_index import Entry, KeyIndex
from longshore.master.etcd.log import Log
from longshore.master.etcd.model import StoreError

logger = logging.getLogger("longshore.etcd")

_STEP_ROWS = 256
_RETRY_SECONDS = 10.0


class Compactor:
    """Deletes rows of compacted history in the background.

    committer None: the log is in memory, and a step is done at once.
    """

    def __init__(self, index: KeyIndex, log: Log, committer: Committer | None) -> None:
        self._index = index
        self._log = log
        self._committer = committer
        self.target = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    def start(self, revision: int) -> None:
        """Delete what was superseded at or before `revision`."""
        self.target = revision
        self._idle.clear()
        self._wake.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="etcd-compaction")

    async def finished(self) -> None:
        """Wait until everything asked for so far is deleted."""
        await self._idle.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def _take(self) -> list[tuple[int, Entry]]:
        """The next step's rows. A tombstone at the compacted revision itself stays: a watch may begin there."""
        taken: list[tuple[int, Entry]] = []
        superseded, tombstones = self._index.superseded, self._index.tombstones
        while len(taken) < _STEP_ROWS and superseded and superseded[0][0] <= self.target:
            _, row, entry = superseded.popleft()
            taken.append((row, entry))
        if len(taken) < _STEP_ROWS and not (superseded and superseded[0][0] <= self.target):
            while len(taken) < _STEP_ROWS and tombstones and tombstones[0][0] < self.target:
                _, row, entry = tombstones.popleft()
                taken.append((row, entry))
        return taken

    async def _run(self) -> None:
        unwritten: deque[tuple[int, Entry]] = deque()
        recorded = 0
        while True:
            target = self.target
            if not unwritten:
                unwritten.extend(self._take())
            if not unwritten and recorded == target:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
                continue
            rows = [row for row, _ in unwritten]
            try:
                if self._committer is None:
                    self._log.delete(rows, target)
                    await asyncio.sleep(0)
                else:
                    await self._committer.run(lambda rows=rows, target=target: self._log.delete(rows, target))  # type: ignore[misc]
            except StoreError as error:
                logger.warning("compaction waits: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            recorded = target
            for row, entry in unwritten:
                self._index.forget(row, entry)
            unwritten.clear()
