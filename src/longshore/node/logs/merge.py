"""A metric query over several nodes: each answers for its own lines, and here is the rest of the expression worked out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from longshore.node.logs.logql import metric
from longshore.node.logs.logql.ast import Expression, Given, LogQuery, leaves, with_leaves
from longshore.node.logs.logql.pipeline import Labels

#: (node's address, number of the leaf) -> the `data` of its answer to `query?leaf=N`.
Ask = Callable[[str, int], Awaitable[dict[str, Any]]]


async def instant(tree: Expression, at: int, addresses: Sequence[str], ask: Ask) -> metric.Series:
    """The value of a metric expression at one time (nanoseconds) over all nodes. Raises LogQLError."""
    given: list[Given] = []
    for number, leaf in enumerate(leaves(tree)):
        series: metric.Series = {}
        entries: list[tuple[int, str, Labels]] = []
        lines = False
        for address in addresses:
            data = await ask(address, number)
            lines = lines or data["resultType"] == "streams"
            for item in data["result"]:
                if data["resultType"] == "streams":
                    entries.extend((int(when), line, item["stream"]) for when, line in item["values"])
                else:
                    series[metric.key_of(item["metric"])] = [float(item["value"][1])]
        if lines:

            def source(
                _query: LogQuery, _start: int, _end: int, found: list[tuple[int, str, Labels]] = entries
            ) -> Iterator[tuple[int, str, Labels]]:
                return iter(found)

            series = metric.evaluate(leaf, [at], source)
        given.append(Given(series))
    return metric.evaluate(with_leaves(tree, iter(given)), [at], lambda *_: iter(()))
