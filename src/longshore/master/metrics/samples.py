"""Usage from two readings of the kubelets' counters. Pure: text in, figures out.

Source: the kubelet's /metrics/resource (Prometheus text format), kubernetes-sigs/metrics-server for what is derived.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+(-?\d+))?\s*$")
_LABEL = re.compile(r'(\w+)="((?:\\.|[^"\\])*)"')
#: A container is known by namespace, pod and its own name; a node by the empty key.
Key = tuple[str, str, str]
NODE: Key = ("", "", "")


@dataclass(slots=True)
class Point:
    """One reading: CPU seconds used so far, bytes of working set, when (seconds since 1970)."""

    cpu: float = -1.0
    memory: float = -1.0
    at: float = 0.0


@dataclass(slots=True)
class Reading:
    """One node's counters at one moment."""

    points: dict[Key, Point] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """cpu in cores, memory in bytes, over `window` seconds that ended at `at`."""

    cpu: float
    memory: float
    at: float
    window: float


def read(text: str, now: float) -> Reading:
    """A reading from a kubelet's text; what is not understood is passed over. now: for lines without a time."""
    reading = Reading()
    for line in text.splitlines():
        if line.startswith(("node_cpu", "node_memory", "container_cpu", "container_memory")):
            match = _LINE.match(line)
            if match is None:
                continue
            name, labels, value, stamp = match.groups()
            found = dict(_LABEL.findall(labels or ""))
            key = (
                NODE
                if name.startswith("node_")
                else (found.get("namespace", ""), found.get("pod", ""), found.get("container", ""))
            )
            try:
                number = float(value)
            except ValueError:
                continue
            point = reading.points.setdefault(key, Point())
            point.at = int(stamp) / 1000 if stamp else now
            if name.endswith("_cpu_usage_seconds_total"):
                point.cpu = number
            elif name.endswith("_memory_working_set_bytes"):
                point.memory = number
    return reading


def usage(before: Reading, after: Reading, key: Key) -> Usage | None:
    """What was used between two readings; None while there are not two, or where a counter began again."""
    a, b = before.points.get(key), after.points.get(key)
    if a is None or b is None or b.cpu < 0 or b.memory < 0 or a.cpu < 0 or b.cpu < a.cpu or b.at <= a.at:
        return None
    return Usage((b.cpu - a.cpu) / (b.at - a.at), b.memory, b.at, b.at - a.at)


def cpu_quantity(cores: float) -> str:
    """Cores as metrics-server writes them: whole nanocores."""
    nanocores = round(cores * 1e9)
    return f"{nanocores}n" if nanocores else "0"


def memory_quantity(size: float) -> str:
    """Bytes as metrics-server writes them: kibibytes."""
    return f"{int(size) // 1024}Ki"
