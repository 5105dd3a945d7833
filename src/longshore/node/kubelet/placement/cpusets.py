"""Sets of CPUs or NUMA nodes as Linux writes them ("0-2,7")."""

from __future__ import annotations

from collections.abc import Iterable


def parse(text: str) -> set[int]:
    """The numbers of a list. Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, (p.strip() for p in text.split(","))):
        first, dash, last = part.partition("-")
        found.update(range(int(first), int(last if dash else first) + 1))
    return found


def render(numbers: Iterable[int]) -> str:
    """Numbers as a list."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
