"""A store that is too simple to be wrong: the whole history as a list of dictionaries."""

from __future__ import annotations

from longshore.master.etcd.model import DELETE, PUT, Event, KeyValue


def within(key: bytes, start: bytes, end: bytes) -> bool:
    if not end:
        return key == start
    return key >= start and (end == b"\0" or key < end)


class Reference:
    """states[r]: what a reader at revision r sees; events[r]: what a watcher is told of it."""

    def __init__(self) -> None:
        self.states: list[dict[bytes, KeyValue]] = [{}, {}]
        self.events: list[list[Event]] = [[], []]
        self.compacted = 0

    @property
    def revision(self) -> int:
        return len(self.states) - 1

    @property
    def now(self) -> dict[bytes, KeyValue]:
        return self.states[-1]

    def apply(self, puts: list[tuple[bytes, bytes, int]], deletes: list[tuple[bytes, bytes]] = ()) -> int:  # type: ignore[assignment]
        """Deletes, then puts, as one transaction; the number deleted."""
        revision = self.revision + 1
        state = dict(self.now)
        events: list[Event] = []
        for start, end in deletes:
            for key in sorted(k for k in state if within(k, start, end)):
                events.append(Event(DELETE, KeyValue(key, b"", 0, revision), state.pop(key)))
        deleted = len(events)
        for key, value, lease in puts:
            before = state.get(key)
            created, version = (before.create_revision, before.version + 1) if before else (revision, 1)
            state[key] = KeyValue(key, value, created, revision, version, lease)
            events.append(Event(PUT, state[key], before))
        if events:
            self.states.append(state)
            self.events.append(events)
        return deleted

    def range(self, start: bytes, end: bytes, revision: int = 0) -> list[KeyValue]:
        state = self.states[revision or self.revision]
        return [state[key] for key in sorted(state) if within(key, start, end)]

    def history(self, start: bytes, end: bytes, first: int) -> list[Event]:
        return [e for events in self.events[first:] for e in events if within(e.kv.key, start, end)]
