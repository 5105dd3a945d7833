"""What happened, told to everybody who asked: `docker events`, and the parts of the engine."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

Json = dict[str, Any]
_KEPT = 256


class Events:
    """A ring of the last events and the listeners for new ones. Source: Docker Engine API, "Monitor events"."""

    def __init__(self) -> None:
        self._past: deque[Json] = deque(maxlen=_KEPT)
        self._listeners: set[asyncio.Queue[Json]] = set()

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return len(self._listeners)

    def emit(self, kind: str, action: str, id: str, attributes: Mapping[str, str] | None = None) -> None:
        """Tell of one event. kind: container, image, network, volume, daemon, builder."""
        stamp = time.time_ns()
        event: Json = {}
        if kind in ("container", "image"):
            event["status"] = action
            event["id"] = id
            if kind == "container":
                event["from"] = (attributes or {}).get("image", "")
        event["Type"] = kind
        event["Action"] = action
        event["Actor"] = {"ID": id, "Attributes": dict(sorted((attributes or {}).items()))}
        event["scope"] = "local"
        event["time"] = stamp // 1_000_000_000
        event["timeNano"] = stamp
        self._past.append(event)
        for queue in self._listeners:
            if queue.qsize() < 4096:
                queue.put_nowait(event)

    def past(self, since: int, until: int) -> list[Json]:
        """Events kept that lie between two times (nanoseconds; until 0: no bound)."""
        return [e for e in self._past if e["timeNano"] >= since and (not until or e["timeNano"] <= until)]

    async def listen(self, matches: Callable[[Json], bool], since: int | None, until: int) -> AsyncIterator[Json]:
        """Past events from `since` on (None: none of them), then new ones until `until` (nanoseconds; 0: for ever)."""
        queue: asyncio.Queue[Json] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            if since is not None:
                for event in self.past(since, until):
                    if matches(event):
                        yield event
            while True:
                left = None if not until else until / 1e9 - time.time()
                if left is not None and left <= 0:
                    return
                try:
                    async with asyncio.timeout(left):
                        event = await queue.get()
                except TimeoutError:
                    return
                if matches(event):
                    yield event
        finally:
            self._listeners.discard(queue)
