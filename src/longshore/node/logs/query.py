"""Runs LogQL over one node's store: which blocks, which lines, which values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from longshore.node.logs.logql import metric, pipeline
from longshore.node.logs.logql.ast import Expression, LogQuery
from longshore.node.logs.store.index import Stream
from longshore.node.logs.store.segment import Plain
from longshore.node.logs.store.store import LogStore
from longshore.wire import crilog

#: Whether the asker may read the logs of a namespace.
MayRead = Callable[[str], bool]
#: The year 9999 in nanoseconds: later times have no text.
FAR = 253_370_764_800 * 10**9
#: Records whose message is not the line itself: parts of one, or with escapes.
_INDIRECT = (b" stdout P ", b" stderr P ", b" stdout F:e ", b" stderr F:e ")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an answer; time in nanoseconds since 1970."""

    time: int
    line: str
    labels: dict[str, str]


class LogQuerier:
    """Answers from one store. may_read bounds every answer to the namespaces that the asker may read."""

    def __init__(self, store: LogStore) -> None:
        self._store = store

    def streams(self, query: LogQuery, may_read: MayRead) -> list[Stream]:
        """The streams that a selector means. `stream` (stdout, stderr) is told apart line by line."""
        stored = [m for m in query.matchers if m.name != "stream"]
        matches = pipeline.label_matcher(stored)
        return self._store.matching(lambda labels: matches(labels) and may_read(labels.get("namespace", "")))

    def entries(
        self,
        query: LogQuery,
        start: int,
        end: int,
        may_read: MayRead,
        *,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[Entry]:
        """Lines in [start, end), in time order (or newest first), at most `limit`."""
        found: list[Entry] = []
        horizon: int | None = None
        texts = pipeline.needles(query)

        def skip(first: int, last: int) -> bool:
            """A block wholly past what is held cannot add to it."""
            return horizon is not None and (last < horizon if newest_first else first > horizon)

        streams = self.streams(query, may_read)
        for stream, block in self._store.blocks(streams, start, end, newest_first, texts, skip):
            found.extend(self._from_block(query, stream, block, start, end))
            if limit is not None and len(found) >= limit:
                found.sort(key=lambda e: e.time, reverse=newest_first)
                del found[limit:]
                horizon = found[-1].time
        found.sort(key=lambda e: e.time, reverse=newest_first)
        return found if limit is None else found[:limit]

    def _from_block(self, query: LogQuery, stream: Stream, block: bytes, start: int, end: int) -> Iterator[Entry]:
        texts = pipeline.needles(query)
        partial = not isinstance(block, Plain) and any(mark in block for mark in _INDIRECT)
        if not partial and any(text not in block for text in texts):
            return
        steps = pipeline.steps(query)
        wanted = pipeline.label_matcher([m for m in query.matchers if m.name == "stream"])
        records = crilog.joined(crilog.lines(block)) if partial else _candidates(block, texts, start, end)
        both = {name: {**stream.labels, "stream": name} for name in ("stdout", "stderr")}
        for record in records:
            if not start <= record.time < end:
                continue
            labels = both[record.stream.decode()]
            if not wanted(labels):
                continue
            result = pipeline.run(steps, record.time, record.message.decode("utf-8", "replace"), labels)
            if result is not None:
                yield Entry(record.time, *result)

    def evaluate(self, tree: Expression, steps: Sequence[int], may_read: MayRead) -> metric.Series:
        """A metric expression at the given times."""

        def source(query: LogQuery, start: int, end: int) -> Iterator[tuple[int, str, dict[str, str]]]:
            texts = pipeline.needles(query)
            streams = self.streams(query, may_read)
            for stream, block in self._store.blocks(streams, start + 1, end + 1, texts=texts):
                for entry in self._from_block(query, stream, block, start + 1, end + 1):
                    yield entry.time, entry.line, entry.labels

        return metric.evaluate(tree, steps, source)

    def follow(self, query: LogQuery, may_read: MayRead, deliver: Callable[[list[Entry]], None]) -> Callable[[], None]:
        """Deliver every new line that the query means, as it is collected. Returns what ends it."""
        matches = pipeline.label_matcher([m for m in query.matchers if m.name != "stream"])

        def arrived(stream: Stream, records: bytes) -> None:
            if matches(stream.labels) and may_read(stream.labels.get("namespace", "")):
                entries = list(self._from_block(query, stream, records, 0, 2**63 - 1))
                if entries:
                    deliver(entries)

        self._store.followers.add(arrived)
        return lambda: self._store.followers.discard(arrived)

    def label_sets(self, may_read: MayRead) -> list[dict[str, str]]:
        """The labels of every stream that the asker may read."""
        return [s.labels for s in self._store.matching(lambda labels: may_read(labels.get("namespace", "")))]


def _candidates(block: bytes, texts: Sequence[bytes], start: int, end: int) -> Iterator[crilog.Line]:
    """The records that hold the first text: found by searching the block, not by taking lines apart.

    Without a text, those in [start, end): told by comparing their times as texts where they are written in UTC.
    """
    if not texts:
        low, high = crilog.format_time(max(start, 0))[:29], crilog.format_time(min(end, FAR))[:29]
        utc = block[29:30] == b"Z" or block[29:35] == b"+00:00"  # the monitor writes the second
        for raw in block.split(b"\n"):
            if raw and (not utc or raw[29:30] not in (b"Z", b"+") or low <= raw[:29] <= high):
                try:
                    yield crilog.parse_line(raw)
                except ValueError:
                    continue
        return
    needle = texts[0]
    at = block.find(needle)
    while at >= 0:
        begin = block.rfind(b"\n", 0, at) + 1
        finish = block.find(b"\n", at)
        finish = len(block) if finish < 0 else finish
        try:
            yield crilog.parse_line(block[begin:finish])
        except ValueError:
            pass
        at = block.find(needle, finish)
