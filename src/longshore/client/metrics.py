"""Figures kept as plain numbers, turned into Prometheus' form only when somebody asks.

Counting costs an addition; prometheus_client is imported at the first scrape's registration, not by what counts.
Names are upstream's (component-base metrics, workqueue, scheduler).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Labels = Mapping[str, str]
QUEUE_BUCKETS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
ATTEMPT_BUCKETS = tuple(0.001 * 2**i for i in range(15))


class Histogram:
    """Observations by upper bound (seconds)."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        result, running = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            result.append((bound, float(running)))
        return result


class Sample:
    """One figure for one set of labels."""

    __slots__ = ("help", "kind", "labels", "name", "value")

    def __init__(self, name: str, kind: str, help: str, labels: Labels, value: float | Histogram) -> None:
        self.name, self.kind, self.help, self.labels, self.value = name, kind, help, dict(labels), value


class Collector:
    """Registered with prometheus_client; asks `source` for samples at each scrape."""

    def __init__(self, source: Callable[[], Iterable[Sample]]) -> None:
        self.source = source

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> list[Any]:
        """The metric families, one a name."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        families: dict[str, Any] = {}
        for sample in self.source():
            family = families.get(sample.name)
            if family is None:
                kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
                family = families[sample.name] = kinds[sample.kind](
                    sample.name, sample.help, labels=list(sample.labels)
                )
            values = list(sample.labels.values())
            if isinstance(sample.value, Histogram):
                family.add_metric(values, sample.value.buckets(), sample.value.total)
            else:
                family.add_metric(values, sample.value)
        return list(families.values())


def register(source: Callable[[], Iterable[Sample]]) -> Callable[[], None]:
    """Show source's samples at the process's /metrics. Returns the function that ends this."""
    from prometheus_client import REGISTRY

    collector: Any = Collector(source)
    REGISTRY.register(collector)
    return lambda: REGISTRY.unregister(collector)
