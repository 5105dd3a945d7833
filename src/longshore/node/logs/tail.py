"""Loki's tail: a WebSocket that gives the newest lines of a query, then each new one as it is collected."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson

from longshore.machinery.http import Request
from longshore.machinery.streams.websocket import WebSocket, accept
from longshore.node.logs.cluster import Asker, ClusterQuerier, streams_of
from longshore.node.logs.logql.ast import LogQuery
from longshore.node.logs.query import Entry

#: Pieces that wait for a slow reader; what comes on top is dropped, and told.
MOST_WAITING = 1000


async def tail(
    querier: ClusterQuerier, request: Request, query: LogQuery, text: str, asker: Asker, *, start: int, limit: int
) -> None:
    """Serve one tail until the peer goes. text: the query as it came; start: nanoseconds; limit: lines of the past. Raises Refused at a bad handshake."""
    socket = await accept(request, [""])
    queue: asyncio.Queue[list[Entry]] = asyncio.Queue(MOST_WAITING)
    dropped: list[dict[str, Any]] = []

    def deliver(entries: list[Entry]) -> None:
        try:
            queue.put_nowait(entries)
        except asyncio.QueueFull:
            dropped.extend({"labels": e.labels, "timestamp": str(e.time)} for e in entries[: 100 - len(dropped)])

    stop = querier.follow(query, text, asker, deliver)
    reader = asyncio.ensure_future(_until_gone(socket))
    sender = asyncio.ensure_future(_send(querier, socket, query, text, asker, start, limit, queue, dropped))
    try:
        await asyncio.wait((reader, sender), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop()
        reader.cancel()
        sender.cancel()
        await asyncio.gather(reader, sender, return_exceptions=True)
        socket.close()
        socket.stream.close()


async def _until_gone(socket: WebSocket) -> None:
    while await socket.receive() is not None:
        pass


async def _send(
    querier: ClusterQuerier,
    socket: WebSocket,
    query: LogQuery,
    text: str,
    asker: Asker,
    start: int,
    limit: int,
    queue: asyncio.Queue[list[Entry]],
    dropped: list[dict[str, Any]],
) -> None:
    past = await querier.entries(query, text, start, time.time_ns() + 10**9, asker, limit=limit, newest_first=True)
    past.reverse()
    # What came between the subscription and the look back is in both.
    seen = {(entry.time, entry.line) for entry in past}
    waiting = queue.qsize()
    if past:
        _message(socket, past, dropped)
    while True:
        await socket.drain()
        entries = await queue.get()
        if waiting > 0:
            waiting -= 1
            entries = [entry for entry in entries if (entry.time, entry.line) not in seen]
        if entries:
            _message(socket, entries, dropped)


def _message(socket: WebSocket, entries: list[Entry], dropped: list[dict[str, Any]]) -> None:
    body: dict[str, Any] = {"streams": streams_of(entries)}
    if dropped:
        body["dropped_entries"] = list(dropped)
        dropped.clear()
    socket.send(orjson.dumps(body), text=True)
