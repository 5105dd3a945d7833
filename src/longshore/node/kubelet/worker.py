"""One worker a pod: its syncs one after the other, its end in order, and nothing twice.

A pod's life here: syncing (made to be as its spec says) -> terminating (containers are being ended) -> terminated
(volumes and cgroups are being removed) -> finished. It never goes back. Source: kubernetes pkg/kubelet/pod_workers.go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

Pod = dict[str, Any]
log = logging.getLogger("longshore.kubelet.worker")
SYNCING, TERMINATING, TERMINATED, FINISHED = "syncing", "terminating", "terminated", "finished"
_RETRY_FIRST, _RETRY_LAST = 0.5, 60.0


class Steps(Protocol):
    """What a worker calls; each step may raise, and is then tried again with growing pauses."""

    async def sync_pod(self, worker: Worker) -> tuple[bool, float | None]:
        """(the pod has come to its end by itself, seconds until the next sync or None)."""

    async def sync_terminating(self, worker: Worker) -> None: ...
    async def sync_terminated(self, worker: Worker) -> None: ...


class Worker:
    """The worker of one pod uid."""

    def __init__(self, steps: Steps, pod: Pod, finished: Callable[[Worker], None]) -> None:
        self._steps, self.pod, self._finished = steps, pod, finished
        self.uid: str = pod["metadata"]["uid"]
        self.phase = SYNCING
        #: the API server has no such pod any more
        self.removed = False
        #: seconds that override the pod's grace, once something has asked for its end
        self.grace: int | None = None
        #: (phase, reason, message) of a pod that is ended for a reason of the node's own
        self.verdict: tuple[str, str, str] | None = None
        self._end_asked = False
        self._nudged = asyncio.Event()
        self._nudged.set()
        self._current: asyncio.Task[Any] | None = None
        self._pause = _RETRY_FIRST
        self._misses = 0
        self.task = asyncio.create_task(
            self._run(), name=f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}"
        )

    # -- what others tell --------------------------------------------------------------------------------------------

    def nudge(self) -> None:
        """Something about the pod is new: sync soon."""
        self._nudged.set()

    def update(self, pod: Pod) -> None:
        """The pod has a new spec, or is being deleted."""
        before = self.deletion_grace
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp") and not self._end_asked:
            self.end()
        elif self.phase == TERMINATING and before is not None:
            now = self.deletion_grace
            if now is not None and now < before:
                # Less time than before: begin the end again, with less.
                self._interrupt()
        self.nudge()

    def miss(self, first: float = 1.0, last: float = 30.0) -> float:
        """Seconds until a sync that could not be completed is worth another try: doubled with each miss in a row."""
        self._misses += 1
        return float(min(last, first * 2 ** min(self._misses - 1, 10)))

    def hit(self) -> None:
        """A sync was completed."""
        self._misses = 0

    @property
    def deletion_grace(self) -> int | None:
        value = self.pod["metadata"].get("deletionGracePeriodSeconds")
        return None if value is None else int(value)

    def end(self, grace: int | None = None, verdict: tuple[str, str, str] | None = None) -> None:
        """End the pod. grace: seconds instead of its own. verdict: what its status says of it."""
        if self._end_asked:
            if grace is not None and self.phase == TERMINATING and (self.grace is None or grace < self.grace):
                self.grace = grace
                self._interrupt()
            return
        self._end_asked = True
        self.grace, self.verdict = grace, verdict
        if self.phase == SYNCING:
            self._interrupt()
        self.nudge()

    @property
    def ending(self) -> bool:
        return self._end_asked or self.phase != SYNCING

    def _interrupt(self) -> None:
        if self._current is not None:
            self._current.cancel()

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        again: float | None = None
        while self.phase != FINISHED:
            try:
                async with asyncio.timeout(again):
                    await self._nudged.wait()
            except TimeoutError:
                pass
            self._nudged.clear()
            again = await self._step()
        self._finished(self)

    async def _step(self) -> float | None:
        """One step; seconds after which the next is due, None: when nudged, 0: at once."""
        if self.phase == SYNCING and self._end_asked:
            self.phase = TERMINATING
        if self.phase == SYNCING:
            step: Any = self._steps.sync_pod(self)
        elif self.phase == TERMINATING:
            step = self._steps.sync_terminating(self)
        else:
            step = self._steps.sync_terminated(self)
        self._current = asyncio.create_task(step)
        try:
            result = await self._current
        except asyncio.CancelledError:
            if not self._current.cancelled():
                # The worker itself is being cancelled.
                self._current.cancel()
                raise
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            return 0.0
        except Exception as error:
            name = f"{self.pod['metadata']['namespace']}/{self.pod['metadata']['name']}"
            log.log(logging.WARNING, "pod %s (%s): %s", name, self.phase, error or type(error).__name__)
            log.debug("pod %s", name, exc_info=error)
            pause, self._pause = self._pause, min(self._pause * 2, _RETRY_LAST)
            return pause
        finally:
            self._current = None
        self._pause = _RETRY_FIRST
        if self.phase == SYNCING:
            over, again = result
            if over:
                self._end_asked = True
                self.phase = TERMINATING
                return 0.0
            return 0.0 if self._end_asked else again
        if self.phase == TERMINATING:
            self.phase = TERMINATED
            return 0.0
        self.phase = FINISHED
        return 0.0
