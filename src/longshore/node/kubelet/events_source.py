"""The runtime's events, and a look at everything where a runtime has no event stream.

Source: kubernetes pkg/kubelet/pleg (evented.go, generic.go).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from longshore.machinery.grpc import RpcError, Status
from longshore.node.kubelet.runtime import Runtime

log = logging.getLogger("longshore.kubelet.pleg")
# Upstream's: with events a rare look suffices; without, it is how anything is noticed at all.
RELIST_WITH_EVENTS, RELIST_WITHOUT = 300.0, 1.0


class PodEvents:
    """Tells which pods' containers have changed."""

    def __init__(self, runtime: Runtime, changed: Callable[[str], None], gap: Callable[[], None]) -> None:
        """changed(uid): something of the pod is new. gap(): events may have been missed; look at every pod."""
        self._runtime, self._changed, self._gap = runtime, changed, gap
        self._seen: dict[str, tuple[str, ...]] = {}
        #: when the runtime was last heard of (loop time)
        # From its start on, not since ever: a kubelet that has just begun is not one whose runtime is silent.
        self.last_heard = time.monotonic()
        self.streaming = False

    async def run(self) -> None:
        """Listen until cancelled."""
        loop = asyncio.get_running_loop()
        pause = 0.05
        while True:
            try:
                self._gap()
                relist = asyncio.create_task(self._relist_forever(RELIST_WITH_EVENTS))
                try:
                    self.streaming = True
                    async for event in self._runtime.events():
                        self.last_heard = loop.time()
                        pause = 0.05
                        uid = event.pod_sandbox_status.metadata.uid
                        if uid:
                            self._changed(uid)
                        else:
                            self._gap()
                finally:
                    self.streaming = False
                    relist.cancel()
            except RpcError as error:
                if error.status is Status.UNIMPLEMENTED:
                    log.info("the runtime has no event stream: looking every %g s", RELIST_WITHOUT)
                    await self._relist_forever(RELIST_WITHOUT)
                log.debug("event stream: %s", error.message)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _relist_forever(self, period: float) -> None:
        while True:
            try:
                await self.relist()
            except RpcError as error:
                log.debug("relist: %s", error.message)
            await asyncio.sleep(period)

    async def relist(self) -> None:
        """Look at everything, and tell of the pods that look different from the last time. Raises RpcError."""
        pods = await self._runtime.pods()
        self.last_heard = asyncio.get_running_loop().time()
        seen: dict[str, tuple[str, ...]] = {}
        for uid, state in pods.items():
            seen[uid] = tuple(
                sorted([f"{c.id}:{c.state}" for c in state.containers] + [f"{s.id}:{s.ready}" for s in state.sandboxes])
            )
        for uid in seen.keys() | self._seen.keys():
            if seen.get(uid) != self._seen.get(uid):
                self._changed(uid)
        self._seen = seen
