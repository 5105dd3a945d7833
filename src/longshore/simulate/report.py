"""Answers as text: tables in kubectl's manner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from longshore.simulate.questions import Compaction, Drain, Fit

ROWS = 40  # of the longest list; the rest is counted


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell, three spaces apart."""
    cells = [[str(c) for c in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def _short(rows: list[Sequence[object]]) -> tuple[list[Sequence[object]], str]:
    more = len(rows) - ROWS
    return rows[:ROWS], f"\n... and {more} more" if more > 0 else ""


def of_fit(answer: Fit) -> str:
    lines = [f"{answer.total} of pod {answer.pod} fit, on {len(answer.placed)} nodes."]
    if answer.why:
        lines.append(f"The next: {answer.why}")
    if answer.placed:
        nodes = sorted(answer.placed.items(), key=lambda item: (-item[1], item[0]))
        rows, more = _short([(name, number) for name, number in nodes])
        lines += ["", table(("NODE", "PODS"), rows) + more]
    if answer.reasons:
        lines += ["", table(("REASON", "NODES"), list(answer.reasons.items()))]
    return "\n".join(lines)


def of_drain(answer: Drain) -> str:
    ended = f"{len(answer.ended)} end" if len(answer.ended) != 1 else "1 ends"
    lines = [
        f"Without {', '.join(answer.nodes)}: {len(answer.moved)} pods move, {len(answer.stuck)} fit nowhere, {ended}."
    ]
    for title, head, rows in (
        ("", ("POD", "FROM", "TO"), answer.moved),
        ("", ("FITS NOWHERE", "FROM", "WHY"), answer.stuck),
        ("", ("ENDS", "ON", "WHY"), answer.ended),
    ):
        if rows:
            shown, more = _short(list(rows))
            lines += [title, table(head, shown) + more]
    if answer.budgets:
        lines += ["", *answer.budgets]
    return "\n".join(lines)


def of_compaction(answer: Compaction) -> str:
    share = 100 * (1 - answer.best / answer.nodes) if answer.nodes else 0.0
    lines = [
        f"{answer.best} of {answer.nodes} nodes hold the {answer.pods} pods: {share:.0f} % could go. "
        f"Best of {len(answer.needed)} orders, worst {max(answer.needed)}; fewer than {answer.bound} never do."
    ]
    if answer.filled:
        lines.append(
            "Requested there: " + ", ".join(f"{100 * v:.0f} % of {name}" for name, v in answer.filled.items()) + "."
        )
    if answer.tolerated:
        lines.append(f"Up to {answer.tolerated} pods (0.2 %) were allowed to wait.")
    if answer.left_out:
        counts = Counter(why for _, why in answer.left_out)
        lines += ["", f"{len(answer.left_out)} pods do not fit even on all nodes and were left out:"]
        lines += [f"  {number}: {why}" for why, number in counts.most_common(5)]
    trials = Counter(answer.needed)
    lines += ["", table(("NODES NEEDED", "ORDERS"), sorted(trials.items()))]
    return "\n".join(lines)
