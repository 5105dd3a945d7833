"""A queue of keys to reconcile: fair, de-duplicating, with delays and back-off.

Source: client-go util/workqueue, described behaviour.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from longshore.client.metrics import QUEUE_BUCKETS, Histogram

T = TypeVar("T", bound=Hashable)

BASE_DELAY, MAX_DELAY = 0.005, 1000.0


class ShutDown(Exception):
    """The queue was shut down and is empty."""


class WorkQueue(Generic[T]):
    """Keys to work on.

    A caller may rely on: keys come out in the order in which they went in; a key that is waiting is there once,
    however often it is added; a key that is being worked on is never given to a second worker, and when it was
    added meanwhile it comes again after `done`; of several delayed adds of a key the earliest counts.
    Not to be relied on: that a delay is exact. Only for use on one event loop.
    """

    def __init__(self, *, base_delay: float = BASE_DELAY, max_delay: float = MAX_DELAY) -> None:
        self.base_delay, self.max_delay = base_delay, max_delay
        self._queue: deque[T] = deque()
        self._dirty: set[T] = set()
        self._processing: set[T] = set()
        self._waiting: dict[T, asyncio.TimerHandle] = {}
        self._failures: dict[T, int] = {}
        self._getters: deque[asyncio.Future[None]] = deque()
        self._shut_down = False
        self._since: dict[T, float] = {}  # when an item came in, then when the work on it began
        self.adds = self.retries = 0
        self.waited, self.worked = Histogram(QUEUE_BUCKETS), Histogram(QUEUE_BUCKETS)

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether nothing waits, nothing is worked on and nothing is delayed."""
        return not (self._queue or self._processing or self._waiting)

    def add(self, item: T) -> None:
        """Put item in, unless it waits already."""
        if self._shut_down or item in self._dirty:
            return
        self._dirty.add(item)
        self.adds += 1
        if item not in self._processing:
            self._enter(item)

    async def get(self) -> T:
        """The next item, to be followed by `done`. Raises ShutDown when the queue is shut down and empty."""
        while not self._queue:
            if self._shut_down:
                raise ShutDown
            getter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if getter in self._getters:
                    self._getters.remove(getter)
                elif self._queue:
                    self._wake()
                raise
        item = self._queue.popleft()
        self._dirty.discard(item)
        self._processing.add(item)
        at = time.monotonic()
        self.waited.observe(at - self._since.get(item, at))
        self._since[item] = at
        return item

    def done(self, item: T) -> None:
        """The work on item has ended (well or not)."""
        self._processing.discard(item)
        begun = self._since.pop(item, None)
        if begun is not None:
            self.worked.observe(time.monotonic() - begun)
        if item in self._dirty:
            self._enter(item)

    def _enter(self, item: T) -> None:
        self._queue.append(item)
        self._since[item] = time.monotonic()
        self._wake()

    def add_after(self, item: T, seconds: float) -> None:
        """Put item in after a while; at once when seconds is 0 or less."""
        if self._shut_down:
            return
        if seconds <= 0:
            self.add(item)
            return
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(item)
        if waiting is not None:
            if waiting.when() <= loop.time() + seconds:
                return
            waiting.cancel()
        self._waiting[item] = loop.call_later(seconds, self._due, item)

    def add_rate_limited(self, item: T) -> None:
        """Put item in after its back-off: base_delay, doubled with each failure since `forget`, up to max_delay."""
        failures = self._failures.get(item, 0)
        self._failures[item] = failures + 1
        self.retries += 1
        self.add_after(item, min(self.base_delay * 2 ** min(failures, 40), self.max_delay))

    def forget(self, item: T) -> None:
        """The item is well: its back-off starts anew."""
        self._failures.pop(item, None)

    def requeues(self, item: T) -> int:
        """How often item was added rate-limited since `forget`."""
        return self._failures.get(item, 0)

    def shut_down(self) -> None:
        """Take nothing more in; getters get what is left, then ShutDown."""
        self._shut_down = True
        for handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()
        while self._getters:
            self._wake()

    def _due(self, item: T) -> None:
        self._waiting.pop(item, None)
        self.add(item)

    def _wake(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return
