"""One query asks all nodes: this node's own answer, and those of the other nodes' log parts over the same HTTP API.

A log part asks another under the identity that all log parts have, and tells for whom (`Impersonate-User` and
`-Group`, as the API server spells them); the other asks RBAC for that person itself. `local=true` ends it there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import orjson

from longshore.client.delegated import Identity
from longshore.machinery.http import Client, ClientError, Request
from longshore.node.logs.logql import metric
from longshore.node.logs.logql.ast import (
    Expression,
    Given,
    LogQLError,
    LogQuery,
    RangeAggregation,
    leaves,
    told_apart,
    with_leaves,
)
from longshore.node.logs.logql.pipeline import Labels
from longshore.node.logs.parameters import MOST_LINES
from longshore.node.logs.query import Entry, LogQuerier, MayRead

log = logging.getLogger("longshore.logs.cluster")

#: Whom the log parts' client certificates name.
LOGS_USER = "longshore:logs"
TIMEOUT = 60.0
Deliver = Callable[[list[Entry]], None]
#: Names of the other nodes and where their log parts answer ("https://10.0.0.2:3100").
Addresses = Callable[[], dict[str, str]]


@dataclass(slots=True)
class Asker:
    """Who asks, what they may read here, and whether the other nodes are to be asked too.

    warnings: what an answer lacks, told beside it.
    """

    identity: Identity | None
    may_read: MayRead
    local: bool = False
    warnings: list[str] = field(default_factory=list)


class PeerRefused(ValueError):
    """Another node could not answer this query: its words."""


def acts_for(identity: Identity, request: Request) -> Identity:
    """The person for whom another node's log part asks; anybody else asks for themselves."""
    name = request.headers.get("impersonate-user")
    if identity.name != LOGS_USER or not name:
        return identity
    return Identity(name, tuple(request.headers.getall("impersonate-group")))


class ClusterQuerier:
    """What `LogQuerier` answers for one node, for all of them. Raises LogQLError, PeerRefused.

    http: holds the log parts' client certificate; addresses: the other nodes, each time anew.
    """

    def __init__(self, querier: LogQuerier, http: Client | None = None, addresses: Addresses = dict) -> None:
        self._querier = querier
        self._http = http
        self._addresses = addresses

    def _peers(self, asker: Asker) -> dict[str, str]:
        return {} if asker.local or self._http is None else self._addresses()

    @staticmethod
    def _headers(asker: Asker) -> list[tuple[str, str]]:
        who = asker.identity
        if who is None:
            return []
        return [("impersonate-user", who.name), *(("impersonate-group", group) for group in who.groups)]

    async def _ask(self, asker: Asker, path: str, parameters: dict[str, Any]) -> list[Any]:
        """The `data` of every other node that answers; one that does not is a warning."""
        peers = self._peers(asker)
        http = self._http
        if not peers or http is None:
            return []
        query = urlencode({**parameters, "local": "true"}, doseq=True)

        async def one(name: str, address: str) -> Any:
            try:
                answer = await http.request(
                    "GET", f"{address}/loki/api/v1/{path}?{query}", headers=self._headers(asker), timeout=TIMEOUT
                )
                body = await answer.read()
            except (OSError, ClientError, TimeoutError) as error:
                asker.warnings.append(f"node {name} did not answer: {error}")
                return None
            if answer.status == 400:
                raise PeerRefused(body.decode(errors="replace").strip())
            if answer.status != 200:
                asker.warnings.append(f"node {name} answered {answer.status}")
                return None
            return orjson.loads(body)["data"]

        found = await asyncio.gather(*(one(*peer) for peer in peers.items()))
        return [data for data in found if data is not None]

    async def entries(
        self, query: LogQuery, text: str, start: int, end: int, asker: Asker, *, limit: int, newest_first: bool
    ) -> list[Entry]:
        """Lines in [start, end) of all nodes, at most `limit`. text: the query as it came."""
        parameters = {
            "query": text, "start": start, "end": end, "limit": limit, "direction": "backward" if newest_first else "forward",
        }  # fmt: skip
        own = asyncio.to_thread(
            self._querier.entries, query, start, end, asker.may_read, limit=limit, newest_first=newest_first
        )
        mine, others = await asyncio.gather(own, self._ask(asker, "query_range", parameters))
        if not others:
            return mine
        for data in others:
            mine.extend(_entries(data))
        mine.sort(key=lambda entry: entry.time, reverse=newest_first)
        return mine[:limit]

    async def evaluate(self, tree: Expression, text: str, steps: Sequence[int], asker: Asker) -> metric.Series:
        """A metric expression at the given times: each node's range aggregations, the rest worked out over all."""
        if not self._peers(asker):
            return await asyncio.to_thread(self._querier.evaluate, tree, steps, asker.may_read)
        given: list[Given] = []
        span = {"start": steps[0], "end": steps[-1], "step": f"{steps[1] - steps[0]}ns" if len(steps) > 1 else "1s"}
        for number, leaf in enumerate(leaves(tree)):
            own = self.leaf(leaf, steps, asker)
            answers = self._ask(asker, "query_range", {"query": text, **span, "leaf": number})
            mine, others = await asyncio.gather(own, answers)
            series: metric.Series = {}
            lines: list[tuple[int, str, Labels]] | None = None
            for data in (mine, *others):
                if data["resultType"] == "streams":
                    lines = lines or []
                    lines.extend((entry.time, entry.line, entry.labels) for entry in _entries(data))
                else:
                    series.update((metric.key_of(item["metric"]), item["row"]) for item in data["result"])
            given.append(Given(series if lines is None else await asyncio.to_thread(_over, leaf, steps, lines)))
        return metric.evaluate(with_leaves(tree, iter(given)), steps, _nothing)

    async def leaf(self, leaf: RangeAggregation, steps: Sequence[int], asker: Asker) -> dict[str, Any]:
        """One range aggregation of this node for who puts several nodes' together (Longshore's own).

        Its series, a value or null a step, where they cannot be another node's as well; else the lines behind them.
        """
        if told_apart(leaf):
            series = await asyncio.to_thread(self._querier.evaluate, leaf, steps, asker.may_read)
            return {"resultType": "rows", "result": [{"metric": dict(k), "row": row} for k, row in series.items()]}
        start, end = steps[0] - leaf.offset - leaf.range + 1, steps[-1] - leaf.offset + 1
        entries = await asyncio.to_thread(
            self._querier.entries, leaf.query, start, end, asker.may_read, limit=MOST_LINES + 1
        )
        if len(entries) > MOST_LINES:
            raise LogQLError(f"the query needs more than {MOST_LINES} lines of one node")
        return {"resultType": "streams", "result": streams_of(entries)}

    async def label_sets(self, asker: Asker) -> list[dict[str, str]]:
        """The labels of every stream of every node that the asker may read, each set once."""
        found = self._querier.label_sets(asker.may_read)
        for data in await self._ask(asker, "series", {}):
            found.extend(data)
        return [dict(key) for key in dict.fromkeys(tuple(sorted(labels.items())) for labels in found)]

    def follow(self, query: LogQuery, text: str, asker: Asker, deliver: Deliver) -> Callable[[], None]:
        """Deliver every new line of every node as it is collected. Returns what ends it."""
        stop = self._querier.follow(query, asker.may_read, deliver)
        tasks = [
            asyncio.ensure_future(self._follow(name, address, text, asker, deliver))
            for name, address in self._peers(asker).items()
        ]

        def end() -> None:
            stop()
            for task in tasks:
                task.cancel()

        return end

    async def _follow(self, name: str, address: str, text: str, asker: Asker, deliver: Deliver) -> None:
        """Follow another node, again when it has been away. Its lines of the time between are in its answers to queries."""
        assert self._http is not None
        url = f"{address}/loki/api/v1/follow?{urlencode({'query': text, 'local': 'true'})}"
        pause = 0.5
        while True:
            try:
                answer = await self._http.request("GET", url, headers=self._headers(asker))
                if answer.status != 200:
                    log.warning("node %s cannot be followed: %d", name, answer.status)
                    await answer.close()
                    return
                pause, rest = 0.5, b""
                async for chunk in answer.chunks():
                    *lines, rest = (rest + chunk).split(b"\n")
                    found = [orjson.loads(line) for line in lines]
                    entries = [Entry(item["time"], item["line"], item["stream"]) for item in found if "line" in item]
                    if entries:
                        deliver(entries)
            except (OSError, ClientError, TimeoutError) as error:
                log.info("node %s is away: %s", name, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 30.0)


def _entries(data: dict[str, Any]) -> Iterator[Entry]:
    for stream in data["result"]:
        labels = stream["stream"]
        for when, line in stream["values"]:
            yield Entry(int(when), line, labels)


def _over(leaf: RangeAggregation, steps: Sequence[int], lines: list[tuple[int, str, Labels]]) -> metric.Series:
    return metric.evaluate(leaf, steps, lambda _query, _start, _end: iter(lines))


def _nothing(_query: LogQuery, _start: int, _end: int) -> Iterator[tuple[int, str, Labels]]:
    return iter(())


def streams_of(entries: list[Entry]) -> list[dict[str, Any]]:
    """Entries as Loki's `streams` result: grouped by their labels, order kept."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for entry in entries:
        key = tuple(sorted(entry.labels.items()))
        group = groups.setdefault(key, {"stream": entry.labels, "values": []})
        group["values"].append([str(entry.time), entry.line])
    return list(groups.values())
