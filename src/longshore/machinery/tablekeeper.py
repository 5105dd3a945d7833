"""What keeps nftables tables right does the same way everywhere: woken by changes, it carries them into the kernel in one
transaction, and puts the whole table there at a start, after a failure, and when someone else has changed it.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from longshore.machinery import netns
from longshore.machinery.nftables import ChangeMonitor, Nftables, NftablesError

T = TypeVar("T")
_RETRY_SECONDS = (0.5, 30.0)


class TableKeeper(ABC):
    """Owns a netlink socket, a thread for it and the watch over a table.

    what: whose rules they are, for the log. namespace: network namespace to work in (None: the caller's own).
    """

    def __init__(self, what: str, logger: logging.Logger, namespace: netns.Namespace | None = None) -> None:
        self.synced = asyncio.Event()
        """Set once the first rules are in force."""
        self.idle = asyncio.Event()
        """Set while everything that was told is in force."""
        self._what = what
        self._logger = logger
        self._namespace = namespace
        self._rebuild = True
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nftables")
        self._nft: Nftables | None = None
        self._monitor: ChangeMonitor | None = None

    def touch(self) -> None:
        """Something has changed."""
        self.idle.clear()
        self._wake.set()

    def repair(self) -> None:
        """Someone else has changed the table: put it back."""
        if not self._rebuild:
            self._logger.warning("the rules of %s were changed by someone else; restoring them", self._what)
            self._repaired()
        self._rebuild = True
        self.touch()

    async def run(self) -> None:
        """Carry changes into the kernel until cancelled. The first transaction is a rebuild: start when informed.

        The rules stay when it ends.
        """
        await self._open()
        pause = _RETRY_SECONDS[0]
        try:
            while True:
                if not self._rebuild and not self._is_pending():
                    self.idle.set()
                    self._wake.clear()
                    await self._wake.wait()
                try:
                    await self._sync()
                    pause = _RETRY_SECONDS[0]
                except (NftablesError, OSError) as error:
                    self._logger.error("rules cannot be put in force, trying the whole table: %s", error)
                    self._failed()
                    self._rebuild = True
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _RETRY_SECONDS[1])
        finally:
            self._close()

    async def _call(self, work: Callable[[], T]) -> T:
        """Run work that waits for the kernel beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _open(self) -> None:
        self._nft = await self._call(lambda: Nftables(self._namespace))

    def _close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
        if self._nft is not None:
            self._nft.close()
        self._thread.shutdown(wait=False)

    @abstractmethod
    def _is_pending(self) -> bool:
        """Whether something was told that is not in force yet."""

    @abstractmethod
    async def _sync(self) -> None:
        """One transaction; the whole table when `_rebuild` is set, which it clears. Raises NftablesError, OSError."""

    @abstractmethod
    def _repaired(self) -> None:
        """Count that someone else's change is undone."""

    @abstractmethod
    def _failed(self) -> None:
        """Count that a transaction was refused."""
