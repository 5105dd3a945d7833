"""How every bench tells what it measured: one line a figure, for people and (as JSON lines) for programs."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence


def figure(
    claim: str, ours: float, unit: str, *, peer: str = "", theirs: float | None = None, target: str = ""
) -> None:
    """Print one figure. claim: what was measured; peer, theirs: the other side's name and figure in the same run."""
    row = {"claim": claim, "longshore": round(ours, 3), "unit": unit}
    if theirs is not None:
        row |= {"peer": peer, "theirs": round(theirs, 3), "ratio": round(ours / theirs, 3) if theirs else None}
    elif peer:
        row |= {"peer": peer, "theirs": None}
    if target:
        row["target"] = target
    if "--json" in sys.argv or os.environ.get("BENCH_JSON"):
        print(json.dumps(row), flush=True)
        return
    other = (
        f"  {peer} {theirs:,.2f} {unit}, ratio {ours / theirs:.2f}"
        if theirs
        else (f"  ({peer} absent)" if peer else "")
    )
    print(f"{claim:52} {ours:12,.2f} {unit}{other}{'  target ' + target if target else ''}", flush=True)


def medians(runs: int, *sides: Callable[[], float]) -> Sequence[float]:
    """The median of each side's figure over `runs` turns, the sides in turn (A B A B ...), after one warm-up each."""
    for side in sides:
        side()
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(runs):
        for figures, side in zip(found, sides, strict=True):
            figures.append(side())
    return [statistics.median(figures) for figures in found]
