"""Loki's HTTP API over the logs of all nodes, so that Grafana and logcli can be pointed at it.

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
from longshore.node.logs.cluster import Asker, ClusterQuerier, PeerRefused, acts_for, streams_of
from longshore.node.logs.logql.ast import LogQLError, LogQuery, leaves
from longshore.node.logs.logql.parser import parse, parse_log_query
from longshore.node.logs.logql.pipeline import label_matcher
from longshore.node.logs.parameters import (
    SECOND,
    BadRequest,
    Parameters,
    limit,
    moment,
    newest_first,
    one,
    span,
    step_of,
)
from longshore.node.logs.push import BODY_LIMIT, PushRefused, push
from longshore.node.logs.query import Entry, LogQuerier, MayRead
from longshore.node.logs.store.store import LogStore
from longshore.node.logs.tail import tail

MOST_POINTS = 11_000


class LokiAPI:
    """The routes. `delegated` tells who asks and what they may read; None (tests) lets everybody read all.

    store: where pushes go (None: they answer 404); node: this node's name; cluster: asks the other nodes too (None:
    there are none).
    """

    def __init__(
        self,
        querier: LogQuerier,
        delegated: Delegated | None,
        store: LogStore | None = None,
        node: str = "",
        cluster: ClusterQuerier | None = None,
    ) -> None:
        self._querier = querier
        self._cluster = cluster or ClusterQuerier(querier)
        self._store = store
        self._node = node
        self._delegated = delegated
        self._routes: dict[str, Callable[[Parameters, Asker], Awaitable[Any]]] = {
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
            identity = acts_for(identity, request)
        if request.path == "/loki/api/v1/push" and self._store is not None:
            return await self._push(request, identity, self._store)
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
            local = parameters.get("local") == ["true"]
            asker = Asker(identity, await self._may_read(identity), local)
            if request.path == "/loki/api/v1/follow":
                await self._follow(request, parameters, asker)
                return None
            if request.path == "/loki/api/v1/tail":
                text = one(parameters, "query")
                query = parse_log_query(text)
                start = moment(parameters.get("start", [""])[0]) or time.time_ns() - 3600 * SECOND
                await tail(self._cluster, request, query, text, asker, start=start, limit=limit(parameters))
                return None
            route = self._routes.get(request.path)
            if route is not None:
                answer = await route(parameters, asker)
            elif match := re.fullmatch(r"/loki/api/v1/label/([^/]+)/values", request.path):
                answer = await self._values(match[1], parameters, asker)
            else:
                return Response(404, b"404 page not found\n", content_type="text/plain; charset=utf-8")
        except Refused as refused:
            return refused.response
        except (LogQLError, BadRequest, PeerRefused) as error:
            return Response(400, f"{error}\n".encode(), content_type="text/plain; charset=utf-8")
        if asker.warnings:
            answer["warnings"] = asker.warnings
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
        if kind not in ("application/json", "application/x-protobuf"):
            return Response(415, f"Content-Type {kind!r} is not supported\n".encode(), content_type=text)
        try:
            body = await request.read(BODY_LIMIT)
            encoding = request.headers.get("content-encoding") or ""
            await push(store, body, encoding, self._node, protobuf=kind == "application/x-protobuf")
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

    async def _query_range(self, parameters: Parameters, asker: Asker) -> Any:
        text = one(parameters, "query")
        tree = parse(text)
        start, end = span(parameters)
        if isinstance(tree, LogQuery):
            entries = await self._cluster.entries(
                tree, text, start, end, asker, limit=limit(parameters), newest_first=newest_first(parameters)
            )
            return _success("streams", streams_of(entries))
        step = step_of(parameters, start, end)
        leaf = parameters.get("leaf", [""])[0]
        first = start if leaf else start - start % step
        if (end - first) // step >= MOST_POINTS:
            raise BadRequest(
                f"exceeded maximum resolution of {MOST_POINTS:,} points per time series. Try increasing the value of the step parameter"
            )
        steps = list(range(first, end + 1, step))
        if leaf:
            found = leaves(tree)
            if not leaf.isdigit() or int(leaf) >= len(found):
                raise BadRequest(f"no leaf {leaf[:20]!r}")
            return {"status": "success", "data": await self._cluster.leaf(found[int(leaf)], steps, asker)}
        series = await self._cluster.evaluate(tree, text, steps, asker)
        matrix = [
            {
                "metric": dict(key),
                "values": [[at / SECOND, _number(v)] for at, v in zip(steps, row, strict=True) if v is not None],
            }
            for key, row in series.items()
        ]
        return _success("matrix", [m for m in matrix if m["values"]])

    async def _query(self, parameters: Parameters, asker: Asker) -> Any:
        text = one(parameters, "query")
        tree = parse(text)
        if isinstance(tree, LogQuery):
            raise BadRequest(
                "log queries are not supported as an instant query type, please change your query to a range query type"
            )
        at = moment(parameters.get("time", [""])[0]) or time.time_ns()
        series = await self._cluster.evaluate(tree, text, [at], asker)
        vector = [
            {"metric": dict(k), "value": [at / SECOND, _number(r[0])]} for k, r in series.items() if r[0] is not None
        ]
        return _success("vector", vector)

    async def _labels(self, _parameters: Parameters, asker: Asker) -> Any:
        names = {name for labels in await self._cluster.label_sets(asker) for name in labels} | {"stream"}
        return {"status": "success", "data": sorted(names)}

    async def _values(self, name: str, parameters: Parameters, asker: Asker) -> Any:
        if name == "stream":
            return {"status": "success", "data": ["stderr", "stdout"]}
        keep = _selectors(parameters.get("query", []))
        sets = await self._cluster.label_sets(asker)
        return {"status": "success", "data": sorted({s[name] for s in sets if name in s and keep(s)})}

    async def _series(self, parameters: Parameters, asker: Asker) -> Any:
        keep = _selectors([*parameters.get("match[]", []), *parameters.get("match", [])])
        return {"status": "success", "data": [s for s in await self._cluster.label_sets(asker) if keep(s)]}

    async def _follow(self, request: Request, parameters: Parameters, asker: Asker) -> None:
        """New lines as they come: JSON objects, one a line (Longshore's own, plainer than /tail's WebSocket)."""
        text = one(parameters, "query")
        query = parse_log_query(text)
        writer = await request.start(200, [("content-type", "application/x-ndjson")])
        queue: asyncio.Queue[list[Entry]] = asyncio.Queue(1000)
        lost = 0

        def deliver(entries: list[Entry]) -> None:
            nonlocal lost
            try:
                queue.put_nowait(entries)
            except asyncio.QueueFull:
                lost += len(entries)

        stop = self._cluster.follow(query, text, asker, deliver)
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


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else repr(value)
