"""Exponential back-off per key, as the kubelet applies it to container restarts and image pulls.

Source: client-go util/flowcontrol backoff.go; kubelet: 10 s doubled up to 300 s, forgotten after twice the maximum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class _Entry:
    delay: float
    updated: float


class BackOff:
    """Delays that double a key with each step, up to a maximum."""

    def __init__(self, initial: float = 10.0, maximum: float = 300.0, clock: Callable[[], float] = time.time) -> None:
        self.initial, self.maximum, self.clock = initial, maximum, clock
        self._entries: dict[Hashable, _Entry] = {}

    def delay(self, key: Hashable) -> float:
        """The key's present delay in seconds; 0 before its first step."""
        entry = self._entries.get(key)
        return entry.delay if entry else 0.0

    def step(self, key: Hashable, event: float | None = None, maximum: float | None = None) -> float:
        """Take the next delay; one that has rested for twice the maximum starts again. Returns the delay."""
        now = self.clock()
        top = self.maximum if maximum is None else maximum
        entry = self._entries.get(key)
        if entry is None or (event if event is not None else now) - entry.updated > 2 * top:
            entry = self._entries[key] = _Entry(min(self.initial, top), now)
        else:
            entry.delay, entry.updated = min(entry.delay * 2, top), now
        return entry.delay

    def remaining(self, key: Hashable, event: float) -> float:
        """Seconds still to wait when the last attempt ended at `event`; 0 when it may go on."""
        entry = self._entries.get(key)
        if entry is None or event - entry.updated > 2 * self.maximum:
            return 0.0
        return max(0.0, event + entry.delay - self.clock())

    def since_update(self, key: Hashable) -> float:
        """Seconds still to wait counted from the key's last step."""
        entry = self._entries.get(key)
        return max(0.0, entry.updated + entry.delay - self.clock()) if entry else 0.0

    def reset(self, key: Hashable) -> None:
        self._entries.pop(key, None)

    def collect(self) -> None:
        """Drop keys that rested for twice the maximum."""
        now = self.clock()
        for key in [k for k, e in self._entries.items() if now - e.updated > 2 * self.maximum]:
            del self._entries[key]
