"""Loki's HTTP API over one node's store, so that Grafana and logcli can be pointed at it.

Source: grafana.com/docs/loki "Loki HTTP API". Who may read which namespace's logs follows RBAC: `get` on `pods/log`.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from longshore.client.delegated import Delegated, Identity
from longshore.machinery.http import BodyTooLarge, Request, Response
from longshore.machinery.streams.channel import Refused
from longshore.node.logs.logql.ast import LogQLError, LogQuery, RangeAggregation, leaves, told_apart
from longshore.node.logs.logql.lexer import duration
from longshore.node.logs.logql.parser import parse, parse_log_query
from longshore.node.logs.logql.pipeline import label_matcher
from longshore.node.logs.push import BODY_LIMIT, PushRefused, push
from longshore.node.logs.query import Entry, LogQuerier, MayRead
from longshore.node.logs.store.store import LogStore
from longshore.node.logs.tail import streams_of, tail
from longshore.wire import crilog

SECOND = 1_000_000_000
MOST_LINES = 5_000_000
MOST_POINTS = 11_000


class BadRequest(ValueError):
    """A parameter that cannot be read: answered with 400 and its text, as Loki does."""


class LokiAPI:
    """The routes. `delegated` tells who asks and what they may read; None (tests) lets everybody read all.

    store: where pushes go (None: they answer 404); node: this node's name.
    """

    def __init__(
        self, querier: LogQuerier, delegated: Delegated | None, store: LogStore | None = None, node: str = ""
    ) -> None:
        self._querier = querier
        self._store = store
        self._node = node
        self._delegated = delegated
        self._routes: dict[str, Callable[[dict[str, list[str]], MayRead], Awaitable[Any]]] = {
            "/loki/api/v1/query_range": self._query_range,
            "/loki/api/v1/query": self._query,
            "/loki/api/v1/labels": self._labels,
            "/loki/api/v1/label": self._labels,
            "/loki/api/v1/series": self._series,
        }

    async def handle(self, request: Request) -> Response | None:
        """Answer one request; everything but /ready asks who is there first."""
        if request.path == "/ready":
            return Response(200, b"ready\n", content_type="text/plain; charset=utf-8")
        if request.method not in ("GET", "POST"):
            return Response(405, b"", content_type="text/plain; charset=utf-8")
        identity: Identity | None = None
        if self._delegated:
            identity = await self._delegated.identify(request)
            if identity is None:
                return Response(401, b"Unauthorized\n", content_type="text/plain; charset=utf-8")
        if request.path == "/loki/api/v1/push" and self._store is not None:
            return await self._push(request, identity, self._store)
        may_read = await self._may_read(identity)
        if request.path == "/loki/api/v1/status/buildinfo":
            return Response.json(
                {"version": "3.0.0", "revision": "longshore", "branch": "", "buildDate": "", "goVersion": ""}
            )
        try:
            parameters = dict(request.query)
            if request.method == "POST" and request.has_body:
                from longshore.machinery.http.message import parse_query

                body = (await request.read(2**20)).decode("utf-8", "replace")
                for name, values in parse_query(body).items():
                    parameters.setdefault(name, []).extend(values)
            if request.path == "/loki/api/v1/follow":
                await self._follow(request, parameters, may_read)
                return None
            if request.path == "/loki/api/v1/tail":
                query = parse_log_query(_one(parameters, "query"))
                start = _time(parameters.get("start", [""])[0]) or time.time_ns() - 3600 * SECOND
                await tail(self._querier, request, query, may_read, start=start, limit=_limit(parameters))
                return None
            route = self._routes.get(request.path)
            if route is not None:
                answer = await route(parameters, may_read)
            elif match := re.fullmatch(r"/loki/api/v1/label/([^/]+)/values", request.path):
                answer = self._values(match[1], parameters, may_read)
            else:
                return Response(404, b"404 page not found\n", content_type="text/plain; charset=utf-8")
        except Refused as refused:
            return refused.response
        except (LogQLError, BadRequest) as error:
            return Response(400, f"{error}\n".encode(), content_type="text/plain; charset=utf-8")
        return Response.json(answer)

    async def _push(self, request: Request, who: Identity | None, store: LogStore) -> Response:
        """Who may `create nodes/log` may push."""
        text = "text/plain; charset=utf-8"
        if request.method != "POST":
            return Response(405, b"", content_type=text)
        if self._delegated is not None and who is not None:
            allowed, _ = await self._delegated.allowed(who, verb="create", resource="nodes", subresource="log")
            if not allowed:
                return Response(403, b"Forbidden\n", content_type=text)
        kind = (request.headers.get("content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return Response(415, f"Content-Type {kind!r} is not supported\n".encode(), content_type=text)
        try:
            body = await request.read(BODY_LIMIT)
            await push(store, body, request.headers.get("content-encoding") or "", self._node)
        except BodyTooLarge:
            return Response(413, b"the body is too large\n", content_type=text)
        except PushRefused as error:
            return Response(error.status, f"{error}\n".encode(), content_type=text)
        except OSError as error:
            return Response(500, f"{error}\n".encode(), content_type=text)
        return Response(204, b"", content_type=text)

    async def _may_read(self, who: Identity | None) -> MayRead:
        """Ask once for every namespace that has logs; the answers are cached by Delegated.

        Streams without a namespace (the parts' own logs, inputs over the network) are for who may `get nodes/log`.
        """
        if self._delegated is None or who is None:
            return lambda _namespace: True
        delegated = self._delegated
        nodes, _ = await delegated.allowed(who, verb="get", resource="nodes", subresource="log")
        everywhere, _ = await delegated.allowed(who, verb="get", resource="pods", subresource="log")
        if everywhere:
            return lambda namespace: bool(namespace) or nodes
        readable = {""} if nodes else set()
        for namespace in {labels.get("namespace", "") for labels in self._querier.label_sets(lambda _n: True)}:
            if namespace:
                allowed, _ = await delegated.allowed(
                    who, verb="get", resource="pods", subresource="log", namespace=namespace
                )
                if allowed:
                    readable.add(namespace)
        return readable.__contains__

    async def _query_range(self, parameters: dict[str, list[str]], may_read: MayRead) -> Any:
        tree = parse(_one(parameters, "query"))
        start, end = _span(parameters)
        if isinstance(tree, LogQuery):
            limit, newest = _limit(parameters), _direction(parameters)
            entries = await asyncio.to_thread(
                self._querier.entries, tree, start, end, may_read, limit=limit, newest_first=newest
            )
            return _success("streams", streams_of(entries))
        step = _step(parameters, start, end)
        first = start - start % step
        steps = list(range(first, end + 1, step))
        if len(steps) > MOST_POINTS:
            raise BadRequest(
                f"exceeded maximum resolution of {MOST_POINTS:,} points per time series. Try increasing the value of the step parameter"
            )
        series = await asyncio.to_thread(self._querier.evaluate, tree, steps, may_read)
        matrix = [
            {
                "metric": dict(key),
                "values": [[at / SECOND, _number(v)] for at, v in zip(steps, row, strict=True) if v is not None],
            }
            for key, row in series.items()
        ]
        return _success("matrix", [m for m in matrix if m["values"]])

    async def _query(self, parameters: dict[str, list[str]], may_read: MayRead) -> Any:
        tree = parse(_one(parameters, "query"))
        if isinstance(tree, LogQuery):
            raise BadRequest(
                "log queries are not supported as an instant query type, please change your query to a range query type"
            )
        at = _time(parameters.get("time", [""])[0]) or time.time_ns()
        if leaf := parameters.get("leaf", [""])[0]:
            found = leaves(tree)
            if not leaf.isdigit() or int(leaf) >= len(found):
                raise BadRequest(f"no leaf {leaf[:20]!r}")
            return await self._leaf(found[int(leaf)], at, may_read)
        series = await asyncio.to_thread(self._querier.evaluate, tree, [at], may_read)
        vector = [
            {"metric": dict(k), "value": [at / SECOND, _number(r[0])]} for k, r in series.items() if r[0] is not None
        ]
        return _success("vector", vector)

    async def _leaf(self, leaf: RangeAggregation, at: int, may_read: MayRead) -> Any:
        """One range aggregation of an expression for who puts several nodes' together (Longshore's own).

        Its series where they cannot be another node's as well, else the lines that they come from.
        """
        if told_apart(leaf):
            series = await asyncio.to_thread(self._querier.evaluate, leaf, [at], may_read)
            return _success(
                "vector",
                [
                    {"metric": dict(k), "value": [at / SECOND, repr(r[0])]}
                    for k, r in series.items()
                    if r[0] is not None
                ],
            )
        last = at - leaf.offset
        entries = await asyncio.to_thread(
            self._querier.entries, leaf.query, last - leaf.range + 1, last + 1, may_read, limit=MOST_LINES + 1
        )
        if len(entries) > MOST_LINES:
            raise BadRequest(f"the query needs more than {MOST_LINES} lines of one node")
        return _success("streams", streams_of(entries))

    async def _labels(self, _parameters: dict[str, list[str]], may_read: MayRead) -> Any:
        names = {name for labels in self._querier.label_sets(may_read) for name in labels} | {"stream"}
        return {"status": "success", "data": sorted(names)}

    def _values(self, name: str, parameters: dict[str, list[str]], may_read: MayRead) -> Any:
        if name == "stream":
            return {"status": "success", "data": ["stderr", "stdout"]}
        keep = _selectors(parameters.get("query", []))
        found = {labels[name] for labels in self._querier.label_sets(may_read) if name in labels and keep(labels)}
        return {"status": "success", "data": sorted(found)}

    async def _series(self, parameters: dict[str, list[str]], may_read: MayRead) -> Any:
        keep = _selectors([*parameters.get("match[]", []), *parameters.get("match", [])])
        return {"status": "success", "data": [labels for labels in self._querier.label_sets(may_read) if keep(labels)]}

    async def _follow(self, request: Request, parameters: dict[str, list[str]], may_read: MayRead) -> None:
        """New lines as they come: JSON objects, one a line (Longshore's own, plainer than /tail's WebSocket)."""
        query = parse_log_query(_one(parameters, "query"))
        writer = await request.start(200, [("content-type", "application/x-ndjson")])
        queue: asyncio.Queue[list[Entry]] = asyncio.Queue(1000)
        lost = 0

        def deliver(entries: list[Entry]) -> None:
            nonlocal lost
            try:
                queue.put_nowait(entries)
            except asyncio.QueueFull:
                lost += len(entries)

        stop = self._querier.follow(query, may_read, deliver)
        gone = asyncio.ensure_future(request.disconnected())
        try:
            while not gone.done():
                waiting = asyncio.ensure_future(queue.get())
                await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    waiting.cancel()
                    break
                for entry in waiting.result():
                    writer.write(orjson.dumps({"time": entry.time, "line": entry.line, "stream": entry.labels}) + b"\n")
                if lost:
                    writer.write(orjson.dumps({"dropped": lost}) + b"\n")
                    lost = 0
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            stop()
            gone.cancel()


def _success(kind: str, result: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": kind, "result": result, "stats": {}}}


def _selectors(texts: list[str]) -> Callable[[dict[str, str]], bool]:
    if not texts or texts == [""]:
        return lambda _labels: True
    tests = [label_matcher(parse_log_query(text).matchers) for text in texts]
    return lambda labels: any(test(labels) for test in tests)


def _one(parameters: dict[str, list[str]], name: str) -> str:
    value = parameters.get(name, [""])[0]
    if not value:
        raise BadRequest("parse error : syntax error: unexpected $end" if name == "query" else f"{name} is missing")
    return value


def _time(text: str) -> int | None:
    """Nanoseconds, seconds with a fraction, or RFC 3339, as nanoseconds; None for no text."""
    if not text:
        return None
    try:
        if re.fullmatch(r"[0-9]+", text):
            return int(text) if len(text) > 10 else int(text) * SECOND
        if re.fullmatch(r"[0-9]*\.[0-9]+", text):
            return int(float(text) * SECOND)
        return crilog.parse_time(text.encode())
    except ValueError:
        raise BadRequest(f"could not parse '{text}' as a time") from None


def _span(parameters: dict[str, list[str]]) -> tuple[int, int]:
    end = _time(parameters.get("end", [""])[0]) or time.time_ns()
    since = parameters.get("since", [""])[0]
    try:
        back = duration(since) if since else 3600 * SECOND
    except ValueError as error:
        raise BadRequest(str(error)) from None
    start = _time(parameters.get("start", [""])[0])
    if start is None:
        start = end - back
    if start >= end:
        raise BadRequest("end timestamp must not be before or equal to start time")
    return start, end


def _limit(parameters: dict[str, list[str]]) -> int:
    text = parameters.get("limit", [""])[0] or "100"
    if not text.isdigit() or int(text) == 0:
        raise BadRequest("limit must be a positive value")
    if int(text) > MOST_LINES:
        raise BadRequest(
            f"max entries limit per query exceeded, limit > max_entries_limit_per_query ({text} > {MOST_LINES})"
        )
    return int(text)


def _direction(parameters: dict[str, list[str]]) -> bool:
    """Whether newest first."""
    text = (parameters.get("direction", [""])[0] or "backward").lower()
    if text not in ("forward", "backward"):
        raise BadRequest(f"invalid direction '{text}'")
    return text == "backward"


def _step(parameters: dict[str, list[str]], start: int, end: int) -> int:
    text = parameters.get("step", [""])[0]
    try:
        if not text:
            return max(SECOND, (end - start) // 250)
        step = int(float(text) * SECOND) if re.fullmatch(r"[0-9.]+", text) else duration(text)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    if step <= 0:
        raise BadRequest("zero or negative query resolution step widths are not accepted. Try a positive integer")
    return step


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else repr(value)
