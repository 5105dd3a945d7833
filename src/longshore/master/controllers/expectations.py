"""What a controller expects to see after its own writes, so that a cache that lags does not make it act twice.

Source: kubernetes pkg/controller ControllerExpectations and UIDTrackingControllerExpectations, described behaviour.
"""

from __future__ import annotations

import time

TIMEOUT_SECONDS = 300.0


class Expectations:
    """Creations (counted, by the names that the API server gave), deletions (by key) and writes of the owner itself (by
    its version) still to be seen, by key.

    Names instead of counts: a creation that the informer told before the answer of the POST came is not counted
    twice, and one that was seen once cannot stand for another.
    """

    def __init__(self) -> None:
        self._creations: dict[str, set[str]] = {}
        self._pending: dict[str, int] = {}
        self._seen: dict[str, set[str]] = {}
        self._deletions: dict[str, set[str]] = {}
        self._written: dict[str, int] = {}
        self._since: dict[str, float] = {}

    def satisfied(self, key: str, version: int | None = None) -> bool:
        """Whether the cache has caught up with our writes (or they are so old that we no longer wait).

        version: of the owner that the cache has, for who tells of its writes with `wrote`.
        """
        behind = version is not None and version < self._written.get(key, 0)
        if behind or self._pending.get(key) or self._creations.get(key) or self._deletions.get(key):
            if time.monotonic() - self._since.get(key, 0.0) < TIMEOUT_SECONDS:
                return False
        self.forget(key)
        return True

    def wrote(self, key: str, version: int) -> None:
        """The owner itself was written: its new version."""
        self._written[key] = version
        self._since[key] = time.monotonic()

    def found(self, key: str, name: str) -> None:
        """The API server has an object of which the informer has not told yet."""
        self._creations.setdefault(key, set()).add(name)
        self._since[key] = time.monotonic()

    def creating(self, key: str) -> None:
        """A POST is about to be sent."""
        self._pending[key] = self._pending.get(key, 0) + 1
        self._since[key] = time.monotonic()

    def created(self, key: str, name: str | None) -> None:
        """The POST was answered: the object's name, or None when it failed."""
        if key not in self._pending:
            return  # forgotten meanwhile
        self._pending[key] -= 1
        if name is not None:
            seen = self._seen.get(key)
            if seen and name in seen:
                seen.discard(name)
            else:
                self._creations.setdefault(key, set()).add(name)
        if not self._pending[key]:
            del self._pending[key]
            self._seen.pop(key, None)

    def observed_creation(self, key: str, name: str) -> None:
        """The informer told of a new object."""
        waiting = self._creations.get(key)
        if waiting and name in waiting:
            waiting.discard(name)
        elif self._pending.get(key):
            self._seen.setdefault(key, set()).add(name)

    def deleting(self, key: str, name: str) -> None:
        """A DELETE is about to be sent."""
        self._deletions.setdefault(key, set()).add(name)
        self._since[key] = time.monotonic()

    def observed_deletion(self, key: str, name: str) -> None:
        """The informer told that an object is gone or going, or its DELETE failed."""
        waiting = self._deletions.get(key)
        if waiting:
            waiting.discard(name)

    def forget(self, key: str) -> None:
        for table in (self._creations, self._pending, self._seen, self._deletions, self._written, self._since):
            table.pop(key, None)
