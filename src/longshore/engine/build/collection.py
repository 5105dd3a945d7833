"""Garbage collection of the build cache: after builds, rule by rule. Source: BuildKit control/control.go (gc)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longshore.engine.build.usage import Space, kit_filters, prune
from longshore.engine.errors import EngineError

if TYPE_CHECKING:
    from longshore.engine.build.settings import Rule
    from longshore.engine.images.store import ImageStore

log = logging.getLogger("longshore.engine.build")
_DELAY, _INTERVAL = 1.0, 60.0


class Collector:
    """Keeps one store's cache by the rules; at most once in a minute, and not while nothing is built."""

    def __init__(self, store: ImageStore, rules: Sequence[Rule]) -> None:
        self._store, self.rules = store, rules
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._last = -_INTERVAL
        self._closed = False

    def soon(self) -> None:
        """A build has ended: look a little later whether something must go."""
        if self.rules and self._timer is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time() + _DELAY, self._last + _INTERVAL), self._begin)

    async def close(self) -> None:
        """No rule is begun any more; returns when the one under way is through (its thread uses the store)."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await self._task

    def _begin(self) -> None:
        self._timer = None
        self._last = asyncio.get_running_loop().time()
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            await self.collect()
        except (EngineError, OSError) as error:
            log.error("gc error: %s", error)

    async def collect(self) -> int:
        """Apply the rules, one after the other; octets that went. Raises EngineError."""
        gone = 0
        for rule in self.rules:
            space = Space(rule.reserved, rule.most, rule.free)
            for text in rule.filters or ("",):
                if self._closed:
                    return gone
                filters = kit_filters([text])
                found = await prune(
                    self._store, everything=rule.everything, filters=filters, space=space, age=rule.keep
                )
                gone += sum(record["size"] for record in found)
        if gone:
            log.debug("gc cleaned up %d bytes", gone)
        return gone
