"""Pods that wait for a node: active (next, by priority and age), backing off, and unschedulable until something helps.

Source: kubernetes pkg/scheduler/backend/queue, described behaviour.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable
from typing import Any

from longshore.master.scheduler.framework import ClusterEvent, Status
from longshore.master.scheduler.podinfo import PodInfo

FLUSH_SECONDS = 300.0

Hint = Callable[[PodInfo, ClusterEvent], bool]


class SchedulingQueue:
    """The three queues. For one event loop; `pop` is for one scheduler task.

    pre_enqueue: who may not enter the active queue yet. hint: whether an event may help a pod that was refused.
    """

    def __init__(
        self,
        pre_enqueue: Callable[[PodInfo], Status | None],
        hint: Hint,
        *,
        initial_backoff: float = 1.0,
        max_backoff: float = 10.0,
    ) -> None:
        self._pre_enqueue, self._hint = pre_enqueue, hint
        self._initial, self._max = initial_backoff, max_backoff
        self._active: list[tuple[int, float, int, str]] = []
        self._backoff: list[tuple[float, int, str]] = []
        self._where: dict[str, tuple[str, PodInfo, int]] = {}  # key -> (queue, pod, entry number)
        self._until: dict[str, float] = {}  # when a failed pod's back-off ends
        self._parked_at: dict[str, float] = {}
        self._in_flight: dict[str, int] = {}  # key -> length of the event log when it was popped
        self._log: list[ClusterEvent] = []
        self._number = 0
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flush: asyncio.TimerHandle | None = None
        self.gated: set[str] = set()

    def __len__(self) -> int:
        return len(self._where)

    def counts(self) -> dict[str, int]:
        """How many pods wait, by queue."""
        result = {"active": 0, "backoff": 0, "unschedulable": 0, "gated": len(self.gated)}
        for queue, _, _ in self._where.values():
            result[queue] += 1
        result["unschedulable"] -= len(self.gated)
        return result

    def pods(self) -> Iterable[PodInfo]:
        return [info for _, info, _ in self._where.values()]

    # -- what comes in ---------------------------------------------------------------------------------------------------

    def add(self, info: PodInfo) -> None:
        """A pod without a node is there."""
        if info.key in self._where or info.key in self._in_flight:
            self.update(info)
            return
        info.since = self._now()
        self._activate(info)

    def update(self, info: PodInfo) -> None:
        """A waiting pod has changed. Only what may matter for placing it moves it."""
        key, pod = info.key, info.pod
        entry = self._where.get(key)
        if entry is None:
            if key not in self._in_flight:
                self.add(info)
            return
        queue, before, number = entry
        info.attempts, info.since, info.unschedulable_by = before.attempts, before.since, before.unschedulable_by
        changed = before.cls is not info.cls or before.pod["spec"] != pod["spec"]
        self._where[key] = (queue, info, number)
        if queue == "active" and info.priority != before.priority:
            self._remove(key)
            self._activate(info)
        elif queue == "unschedulable" and (changed or key in self.gated):
            self._remove(key)
            self._to_backoff(info)

    def delete(self, key: str) -> None:
        """A waiting pod is gone, or has found a node."""
        self._remove(key)
        self._until.pop(key, None)

    def _remove(self, key: str) -> None:
        self._where.pop(key, None)
        self.gated.discard(key)
        self._parked_at.pop(key, None)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _activate(self, info: PodInfo) -> None:
        if self._pre_enqueue(info) is not None:
            self._park(info)
            self.gated.add(info.key)
            return
        self._number += 1
        self._where[info.key] = ("active", info, self._number)
        heapq.heappush(self._active, (-info.priority, info.since, self._number, info.key))
        self._wake()

    def _to_backoff(self, info: PodInfo) -> None:
        until = self._until.get(info.key, 0.0)
        if until <= self._now():
            self._activate(info)
            return
        if self._pre_enqueue(info) is not None:
            self._park(info)
            self.gated.add(info.key)
            return
        self._number += 1
        self._where[info.key] = ("backoff", info, self._number)
        heapq.heappush(self._backoff, (until, self._number, info.key))
        self._arm()
        self._wake()

    def _park(self, info: PodInfo) -> None:
        self._number += 1
        self._where[info.key] = ("unschedulable", info, self._number)
        self._parked_at[info.key] = self._now()
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS / 10, self._flush_old)

    # -- what goes out ---------------------------------------------------------------------------------------------------

    async def pop(self) -> PodInfo:
        """The next pod. Pods that back off are taken when nothing else is there to do."""
        while True:
            info = self._take(self._active, "active") or self._take(self._backoff, "backoff")
            if info is not None:
                self._where.pop(info.key)
                self._in_flight[info.key] = len(self._log)
                info.attempts += 1
                return info
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _take(self, heap: list[Any], queue: str) -> PodInfo | None:
        while heap:
            *_, number, key = heapq.heappop(heap)
            found = self._where.get(key)
            if found is not None and found[0] == queue and found[2] == number:
                return found[1]
        return None

    def done(self, key: str) -> None:
        """The attempt on a popped pod has ended (with a node, or with `refused` or `failed` before)."""
        self._in_flight.pop(key, None)
        if not self._in_flight:
            self._log.clear()

    def refused(self, info: PodInfo) -> None:
        """No node fits now: wait for an event that may help; one that came meanwhile counts."""
        start = self._in_flight.get(info.key, len(self._log))
        self._back_off(info)
        if any(self._hint(info, event) for event in self._log[start:]):
            self._to_backoff(info)
        else:
            self._park(info)

    def failed(self, info: PodInfo) -> None:
        """Something went wrong (not: no node fits): try again after the back-off, and not before."""
        self._back_off(info)
        delay = max(0.0, self._until[info.key] - self._now())
        self._park(info)
        asyncio.get_running_loop().call_later(delay, self._retry, info.key)

    def _retry(self, key: str) -> None:
        entry = self._where.get(key)
        if entry is not None and entry[0] == "unschedulable":
            self._remove(key)
            self._activate(entry[1])

    def _back_off(self, info: PodInfo) -> None:
        seconds = min(self._initial * 2 ** min(max(info.attempts - 1, 0), 20), self._max)
        self._until[info.key] = self._now() + seconds

    def event(self, event: ClusterEvent) -> None:
        """Something changed: pods that it may help come back."""
        if self._in_flight:
            self._log.append(event)
        answers: dict[tuple[int, frozenset[str]], bool] = {}  # equal pods that the same plugins refused hear the same
        for key in list(self._parked_at):
            entry = self._where.get(key)
            if entry is None or key in self.gated:
                continue
            info = entry[1]
            asked = (id(info.cls), info.unschedulable_by)
            helps = answers.get(asked)
            if helps is None:
                helps = answers[asked] = self._hint(info, event)
            if helps:
                self._remove(key)
                self._to_backoff(info)

    def activate_all(self) -> None:
        """Everything comes back (after a change that no event describes)."""
        for key in list(self._parked_at):
            entry = self._where.get(key)
            if entry is not None:
                self._remove(key)
                self._to_backoff(entry[1])

    # -- timers ------------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _arm(self) -> None:
        if self._timer is None and self._backoff:
            self._timer = asyncio.get_running_loop().call_at(self._backoff[0][0], self._backoff_over)

    def _backoff_over(self) -> None:
        self._timer = None
        now = self._now()
        while self._backoff and self._backoff[0][0] <= now:
            _, number, key = heapq.heappop(self._backoff)
            found = self._where.get(key)
            if found is not None and found[0] == "backoff" and found[2] == number:
                self._activate(found[1])
        self._arm()

    def _flush_old(self) -> None:
        """Pods that have waited five minutes are tried once more, whatever the hints say."""
        self._flush = None
        now = self._now()
        for key, since in list(self._parked_at.items()):
            entry = self._where.get(key)
            if entry is not None and key not in self.gated and now - since > FLUSH_SECONDS:
                self._remove(key)
                self._to_backoff(entry[1])
        if any(key not in self.gated for key in self._parked_at):
            self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS / 10, self._flush_old)

    def close(self) -> None:
        for timer in (self._timer, self._flush):
            if timer is not None:
                timer.cancel()
