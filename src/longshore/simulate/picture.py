"""Answers as pictures: SVG, written by hand. A map of nodes as filled squares, or bars of trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from longshore.master.scheduler.podinfo import CPU, MEMORY
from longshore.simulate.cell import Cell
from longshore.simulate.questions import Compaction

WIDTH, EDGE = 960.0, 24.0
STYLE = (
    "text{font:12px sans-serif;fill:#222}.title{font-size:15px;font-weight:bold}"
    ".node{fill:#f2f4f7;stroke:#9aa5b1;stroke-width:.6}.cpu{fill:#2f6fb3}.memory{fill:#d9822b}"
    ".new{fill:none;stroke:#1a8f4c;stroke-width:2}.gone{fill:#e8e8e8;stroke:#c0392b;stroke-dasharray:3 2}"
    ".bar{fill:#2f6fb3}.best{fill:#1a8f4c}.rule{stroke:#c0392b;stroke-dasharray:4 3}"
)


def _document(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" '
        f'height="{height:g}"><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<text class="title" x="{EDGE:g}" y="28">{escape(title)}</text>' + "".join(parts) + "</svg>\n"
    )


def _share(used: int, total: int) -> float:
    return min(1.0, used / total) if total else 0.0


def of_nodes(cell: Cell, title: str, marked: Mapping[str, int], gone: Sequence[str] = ()) -> str:
    """Every node as a square with its requested CPU (left) and memory (right) as heights.

    marked: nodes with a green frame, and how many pods came there; gone: nodes shown as taken away.
    """
    table = cell.table
    names = sorted(set(cell.nodes) | set(gone))
    per_row = max(1, math.ceil(math.sqrt(len(names) * 2.2)))
    size = min(72.0, (WIDTH - 2 * EDGE) / per_row)
    inner = size * 0.86
    cpu, memory = table.column(CPU), table.column(MEMORY)
    parts = []
    for number, name in enumerate(names):
        x, y = EDGE + (number % per_row) * size, 48 + (number // per_row) * size
        row = table.by_name.get(name)
        if name in gone or row is None:
            shape = f'<rect class="gone" x="{x:.1f}" y="{y:.1f}" width="{inner:.1f}" height="{inner:.1f}"/>'
            parts.append(f"<g><title>{escape(name)}: gone</title>{shape}</g>")
            continue
        shares = [
            _share(int(table.requested[c, row.index]), int(table.allocatable[c, row.index])) for c in (cpu, memory)
        ]
        words = f"{name}: CPU {shares[0]:.0%}, memory {shares[1]:.0%}, {len(row.pods)} pods"
        if name in marked:
            words += f", {marked[name]} new"
        bars = [f'<rect class="node" x="{x:.1f}" y="{y:.1f}" width="{inner:.1f}" height="{inner:.1f}"/>']
        for side, (kind, share) in enumerate(zip(("cpu", "memory"), shares, strict=True)):
            tall = inner * share
            left, top = x + side * inner / 2, y + inner - tall
            bars.append(
                f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{inner / 2:.1f}" height="{tall:.1f}"/>'
            )
        if name in marked:
            bars.append(f'<rect class="new" x="{x:.1f}" y="{y:.1f}" width="{inner:.1f}" height="{inner:.1f}"/>')
        parts.append(f"<g><title>{escape(words)}</title>{''.join(bars)}</g>")
    bottom = 48 + math.ceil(len(names) / per_row) * size + 8
    legend = (("cpu", "CPU requested"), ("memory", "memory requested"), ("new", "new pods"), ("gone", "gone"))
    for number, (kind, words) in enumerate(legend):
        x = EDGE + number * 170
        parts.append(f'<rect class="{kind}" x="{x:g}" y="{bottom:.1f}" width="12" height="12"/>')
        parts.append(f'<text x="{x + 18:g}" y="{bottom + 11:.1f}">{words}</text>')
    return _document(bottom + 32, title, parts)


def of_compaction(answer: Compaction, title: str = "") -> str:
    """A bar a trial, shortest first; the dashed line is what fewer nodes never do."""
    words = title or f"{answer.best} of {answer.nodes} nodes hold {answer.pods} pods"
    return curve(words, {"order": sorted(answer.needed)}, answer.bound, "nodes needed, by order of removal")


def curve(title: str, series: Mapping[str, Sequence[int]], bound: int, below: str) -> str:
    """Bars of whole numbers, one group after the other; the least of all is green. bound: a dashed line."""
    values = [(name, value) for name, numbers in series.items() for value in numbers]
    most = max([bound, *(value for _, value in values), 1])
    height, top = 300.0, 56.0
    step = (WIDTH - 2 * EDGE) / max(1, len(values))
    best = min((value for _, value in values), default=0)
    parts = []
    for number, (name, value) in enumerate(values):
        tall = height * value / most
        x, y = EDGE + number * step, top + height - tall
        kind = "best" if value == best else "bar"
        parts.append(
            f"<g><title>{escape(name)}: {value}</title>"
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{step * 0.8:.1f}" height="{tall:.1f}"/></g>'
            f'<text x="{x:.1f}" y="{y - 4:.1f}">{value}</text>'
        )
    y = top + height - height * bound / most
    parts.append(f'<line class="rule" x1="{EDGE:g}" x2="{WIDTH - EDGE:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(
        f'<text x="{EDGE:g}" y="{top + height + 22:g}">{escape(below)}; dashed: fewer than {bound} never do</text>'
    )
    return _document(top + height + 40, title, parts)
