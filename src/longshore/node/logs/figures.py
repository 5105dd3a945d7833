"""Prometheus figures of a node's log part: what came in, what waits, what is stored, what was lost."""

from __future__ import annotations

from collections.abc import Iterator

from longshore.client.metrics import Sample
from longshore.node.logs.collector import Collector
from longshore.node.logs.inputs.forward import ForwardInput
from longshore.node.logs.store.store import LogStore


def samples(collector: Collector, store: LogStore, forward: ForwardInput | None) -> Iterator[Sample]:
    """Every figure at this moment."""

    def one(name: str, kind: str, words: str, value: float, **labels: str) -> Sample:
        return Sample(f"longshore_logs_{name}", kind, words, labels, float(value))

    records, raw, stored = store.index.totals()
    yield one("collected_bytes", "counter", "Octets read from containers' log files", collector.bytes_read)
    yield one("followed_files", "gauge", "Log files that are followed", collector.files)
    yield one("streams", "gauge", "Streams of the store", len(store.index.streams))
    yield one("stored_records", "gauge", "Records in blocks", records)
    yield one("stored_raw_bytes", "gauge", "Octets in blocks before compression", raw)
    yield one("stored_bytes", "gauge", "Octets of the blocks", stored)
    yield one("pending_bytes", "gauge", "Octets that are not in blocks yet", store.pending)
    yield one("write_failures", "counter", "Writes to the disk that failed", store.failures)
    yield one("damaged_blocks", "counter", "Blocks that queries met and could not read", store.damaged)
    yield one("dropped_segments", "counter", "Segments that retention removed", store.retired)
    if forward is not None:
        yield one("input_records", "counter", "Records taken over the network", forward.records, input="forward")
        yield one("input_lost_records", "counter", "Records that could not be kept", forward.lost, input="forward")
