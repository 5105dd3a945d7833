"""WATCH: a stream of events out of the cache, from a version on, with selectors, bookmarks and a time limit."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Hashable
from typing import Any

import orjson

from longshore.machinery.errors import Cause, StatusError, expired, gone
from longshore.machinery.http import Chunk, Response
from longshore.master.apiserver import options, rendering
from longshore.master.apiserver.cache import CacheEvent, Hub, Item, with_version
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.negotiation import JSON, PROTOBUF, YAML
from longshore.master.apiserver.reads import parse_version, too_large
from longshore.master.apiserver.selection import Selection, selection

BOOKMARK_SECONDS = 60.0
MIN_TIMEOUT = 1800.0
MAX_BACKLOG = 32 * 1024 * 1024
_INITIAL_END = "k8s.io/initial-events-end"
_VERSION_TEXT = re.compile(rb'"resourceVersion":"\d+"')


class Watch:
    """One open watch: takes the cache's events, keeps the encoded ones until the connection takes them."""

    def __init__(self, server: Watcher, call: Call, chosen: Selection, bookmarks: bool) -> None:
        self.call = call
        self.chosen = chosen
        self.bookmarks = bookmarks
        self.endpoint = call.endpoint
        self.sent = 0  # the newest version that the client knows to have seen everything up to
        self.lines: list[bytes] = []
        self.size = 0
        self.ended = False
        self.ready = asyncio.Event()
        self.writer: Any = None  # once the stream has begun
        self.pending: list[CacheEvent] = []  # not yet converted
        self._hub = server.hub
        form = call.form
        self._key: Any = (self.endpoint.api_version, self.endpoint.kind, form)
        self._native = not form.kind and form.media == JSON and self.endpoint.native
        if form.kind == "Table":
            self._key = (*self._key, call.request.param("includeObject"))
        self._columns = form.kind == "Table"
        self._namespace = call.namespace + "/" if call.namespace else ""
        self.channel: Hashable = id(self) if self._columns or self.endpoint.foreign else self._asked()

    def _asked(self) -> Hashable:
        """What decides on the octets that this watch is sent."""
        request = self.call.request
        selectors = request.param("labelSelector"), request.param("fieldSelector")
        return self._key, self._namespace, self.call.name, selectors

    # The cache's side.

    def line(self, event: CacheEvent) -> bytes | None:
        """What an event is to the client; None where it is nothing, or must be converted first."""
        if self.endpoint.foreign:
            self.pending.append(event)
            self.ready.set()
            return None
        return self._line(event)

    def catch_up(self, event: CacheEvent) -> None:
        """Take an event of before the watch joined its channel."""
        self._queue(self.line(event))

    def send(self, chunk: Chunk) -> None:
        # Written at once, without waking the stream's task: most of what a delivery costs besides encryption.
        writer = self.writer
        if writer is not None and not self.lines and not self.ended and writer.clear:
            writer.send(chunk)
        elif not self.ended:
            self._queue(chunk.data)
            self.ready.set()

    async def convert(self) -> None:
        """Encode the events that had to wait for a webhook."""
        conversions = self.endpoint.storage.conversions
        assert conversions is not None
        while self.pending:
            events, self.pending = self.pending, []
            for event in events:
                if self.chosen and not self.chosen.plain and await self._left(conversions, event):
                    continue
                if event.type != "DELETED":
                    await conversions.fill(self.endpoint.version, [event.item])
                elif event.previous is not None and not conversions.knows(event.previous, self.endpoint.version):
                    await conversions.fill(self.endpoint.version, [event.previous])
                self._queue(self._line(event))

    async def _left(self, conversions: Any, event: CacheEvent) -> bool:
        """Convert what the selectors look at; whether the event was that an object left the selection, now told."""
        version, previous = self.endpoint.version, event.previous
        shown = (await conversions.trees(version, [previous]))[0] if previous is not None else None
        if event.type != "DELETED":
            await conversions.trees(version, [event.item])
        if shown is None or event.type == "DELETED" or self._transition(event) != "DELETED":
            return False
        if not self._namespace or event.item.key.startswith(self._namespace):
            shown["metadata"]["resourceVersion"] = str(event.version)
            self._queue(self.encode_tree("DELETED", shown))
        return True

    def _line(self, event: CacheEvent) -> bytes | None:
        item = event.item
        if self._namespace and not item.key.startswith(self._namespace):
            return None
        if self.chosen:
            kind = self._transition(event)
            if not kind:
                return None
            if kind == "DELETED" and event.type != "DELETED":
                # It left the selection: the client gets what it last saw, at the version of the change.
                assert event.previous is not None
                body = event.previous.body
                left = Item(
                    item.key, event.version, _VERSION_TEXT.sub(b'"resourceVersion":"%d"' % event.version, body, 1)
                )
                return self.encode(kind, left)
            if kind != event.type:
                return self.encode(kind, item)
        key = self._key
        line = event.forms.get(key) if not self._columns else None
        if line is None:
            line = self.encode(event.type, item)
            if not self._columns:
                event.forms[key] = line
        return line

    def expire(self) -> None:
        self.ended = True
        self.ready.set()

    def _queue(self, line: bytes | None) -> None:
        if line is None:
            return
        self.lines.append(line)
        self.size += len(line)
        if self.size > MAX_BACKLOG:
            self.expire()  # a client that does not read must begin anew

    def _transition(self, event: CacheEvent) -> str:
        now = event.type != "DELETED" and self.chosen.matches(self.endpoint, event.item)
        before = event.previous is not None and self.chosen.matches(self.endpoint, event.previous)
        if now:
            return "MODIFIED" if before else "ADDED"
        return "DELETED" if before else ""

    # Encoding.

    def encode(self, kind: str, item: Item) -> bytes:
        if self._native:
            return b"".join((b'{"type":"', kind.encode(), b'","object":', self.endpoint.head, item.body, b"}\n"))
        return self.encode_tree(kind, self.endpoint.present(item.decode()))

    def encode_tree(self, kind: str, obj: dict[str, Any]) -> bytes:
        form = self.call.form
        if form.kind == "Table":
            obj = rendering.table(self.call, [obj], obj["metadata"].get("resourceVersion", ""), columns=self._columns)
            self._columns = False
        elif form.kind:
            obj = rendering.partial(obj, form.version)
        return self.frame(kind, obj)

    def frame(self, kind: str, obj: dict[str, Any]) -> bytes:
        if self.call.form.media == PROTOBUF:
            from longshore.master.apiserver.protobuf import watch_frame

            return watch_frame(kind, obj)
        return orjson.dumps({"type": kind, "object": obj}) + b"\n"

    def bookmark(self, version: int, initial_end: bool = False) -> bytes:
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if initial_end:
            metadata["annotations"] = {_INITIAL_END: "true"}
        head = {"kind": self.endpoint.kind, "apiVersion": self.endpoint.api_version}
        form = self.call.form
        if form.kind == "Table":
            return self.frame("BOOKMARK", self._table_bookmark({**head, "metadata": metadata}))
        if form.media == PROTOBUF or form.kind:
            return self.encode_tree("BOOKMARK", {**head, "metadata": metadata})
        if self.endpoint.custom:
            return self.frame("BOOKMARK", {**head, "metadata": metadata})
        empty = self.endpoint.resource.decode({**head, "metadata": metadata}, self.endpoint.version)
        return self.frame("BOOKMARK", {**head, **empty, "metadata": metadata})

    def _table_bookmark(self, obj: dict[str, Any]) -> dict[str, Any]:
        version = obj["metadata"]["resourceVersion"]
        named = {**obj, "metadata": {"name": "", **obj["metadata"]}}
        out = rendering.table(self.call, [named], version, columns=self._columns)
        self._columns = False
        for row in out["rows"]:
            if row["object"] is not None:
                row["object"]["metadata"].pop("name", None)
        return out


class Watcher:
    """Answers WATCH calls."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.open = 0

    async def watch(self, call: Call) -> Response | None:
        """The stream; returns when the time is up, the client has gone or the watch must begin anew."""
        request, endpoint = call.request, call.endpoint
        if call.form.media == YAML:
            return Response(406, b"", (rendering.NO_STORE,), YAML)
        if call.form.kind == "Table":
            rendering.include_object(call)
        timeout = options.number(request, "timeoutSeconds")
        initial = options.flag(request, "sendInitialEvents")
        self._check(call, initial)
        chosen = selection(call)
        bookmarks = bool(options.flag(request, "allowWatchBookmarks"))
        text = request.param("resourceVersion")
        version = parse_version(text)
        if not endpoint.resource or endpoint.cache is None:
            raise StatusError(
                405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {}
            )
        watch = Watch(self, call, chosen, bookmarks)
        lines, late = await self._begin(watch, version, text, initial)
        media = PROTOBUF + ";stream=watch" if call.form.media == PROTOBUF else JSON
        limit = float(timeout) if timeout else MIN_TIMEOUT * (1 + random.random())
        headers = [("Content-Type", media), rendering.NO_STORE, *rendering.warning_headers(call.warnings)]
        cache = endpoint.cache
        self.open += 1
        try:
            writer = await request.start(200, headers)
            writer.writelines(lines) if lines else writer.write(b"")
            await self._stream(watch, writer, limit, late)
        finally:
            self.open -= 1
            cache.fanout.leave(watch)
        return None

    def _check(self, call: Call, initial: bool | None) -> None:
        request = call.request
        match, token, version = (request.param(n) for n in ("resourceVersionMatch", "continue", "resourceVersion"))
        where, causes = "resourceVersionMatch", []
        if initial is not None and match != "NotOlderThan":
            text = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            causes.append(Cause("FieldValueForbidden", text, where))
        if match:
            if initial is None:
                text = "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
                causes.append(Cause("FieldValueForbidden", text, where))
            if match != "NotOlderThan":
                text = f'Unsupported value: "{match}": supported values: "NotOlderThan"'
                causes.append(Cause("FieldValueNotSupported", text, where))
        if token and (match or version in ("", "0")):
            text = "Forbidden: resourceVersionMatch is forbidden when continue is provided"
            causes.append(Cause("FieldValueForbidden", text, where))
        if causes:
            raise options.invalid_options("ListOptions", causes)

    async def _begin(self, watch: Watch, version: int, text: str, initial: bool | None) -> tuple[list[bytes], bool]:
        """Join the cache's events. The lines to begin with; whether the initial bookmark is to follow later."""
        hub, endpoint = self.hub, watch.endpoint
        cache = endpoint.cache
        assert cache is not None
        if initial is not None:
            if version == 0 and text != "0":
                await hub.fresh()
            elif version and not await hub.reached(version):
                raise too_large(version, hub.version)
            cache.fanout.join(watch)
            watch.sent = hub.version
            lines = self._state(watch) if initial else []
            if initial and watch.bookmarks:
                lines.append(watch.bookmark(hub.version, True))
            return lines, False
        if version == 0:
            if text != "0" and not hub.current():
                await hub.fresh()
            cache.fanout.join(watch)
            watch.sent = hub.version
            return self._state(watch), False
        events = cache.since(version)
        if events is None:
            return await self._from_store(watch, version), False
        cache.fanout.join(watch)
        watch.sent = version
        for event in events:
            watch.catch_up(event)
        lines, watch.lines, watch.size = watch.lines, [], 0
        return lines, False

    def _state(self, watch: Watch) -> list[bytes]:
        cache = watch.endpoint.cache
        assert cache is not None
        items = cache.select(watch.call.namespace)
        return [
            watch.encode("ADDED", item)
            for item in items
            if not watch.chosen or watch.chosen.matches(watch.endpoint, item)
        ]

    async def _from_store(self, watch: Watch, version: int) -> list[bytes]:
        """Events that the ring no longer holds, from the store's history; 410 when that is gone too."""
        cache = watch.endpoint.cache
        assert cache is not None
        store = self.hub.store
        oldest = int(store.compact_revision)
        if version < oldest:
            raise expired(f"too old resource version: {version} ({oldest})")
        past = store.watch(
            cache.prefix, cache.prefix[:-1] + b"0", start_revision=version + 1, prev_kv=True, progress=True
        )
        cut = len(cache.prefix)
        try:
            past.request_progress()
            reached = version
            async for batch in past:
                reached = max(reached, batch.revision)
                for event in batch.events:
                    watch.catch_up(_from_history(event, cut))
                held = cache.since(reached)
                if held is not None:
                    cache.fanout.join(watch)
                    for newer in held:
                        watch.catch_up(newer)
                    break
                past.request_progress()
        except Exception as error:
            if "compacted" in str(error):
                raise gone(f"too old resource version: {version} ({int(store.compact_revision)})") from None
            raise
        finally:
            past.close()
        lines, watch.lines, watch.size = watch.lines, [], 0
        return lines

    async def _stream(self, watch: Watch, writer: Any, limit: float, late: bool) -> None:
        loop, cache = asyncio.get_running_loop(), watch.endpoint.cache
        assert cache is not None
        end = loop.time() + limit
        next_mark = loop.time() + BOOKMARK_SECONDS * random.uniform(0.8, 1.0)
        watch.writer = writer
        try:
            while not watch.ended:
                now = loop.time()
                if now >= end:
                    break
                wait = min(end, next_mark if watch.bookmarks else end) - now
                if watch.pending:
                    await watch.convert()
                if not watch.lines:
                    watch.ready.clear()
                    timer = loop.call_later(max(wait, 0), watch.ready.set)
                    try:
                        await watch.ready.wait()
                    finally:
                        timer.cancel()
                if watch.pending:
                    continue
                if watch.lines:
                    lines, watch.lines, watch.size = watch.lines, [], 0
                    writer.writelines(lines)
                    await writer.drain()
                elif watch.bookmarks and loop.time() >= next_mark and not watch.ended:
                    cache.fanout.settle()
                    if watch.lines:
                        continue
                    next_mark = loop.time() + BOOKMARK_SECONDS
                    writer.write(watch.bookmark(self.hub.version))
        except ConnectionResetError:
            return


def _from_history(event: Any, cut: int) -> CacheEvent:
    """An event of the store's history as the cache would have made it."""
    kv, before = event.kv, event.prev_kv
    key = kv.key[cut:].decode()
    previous = (
        Item(key, before.mod_revision, with_version(before.value, before.mod_revision)) if before is not None else None
    )
    if event.type != "PUT":
        body = with_version(before.value, kv.mod_revision) if before is not None else b'"metadata":{}}'
        return CacheEvent("DELETED", Item(key, kv.mod_revision, body), previous, kv.mod_revision)
    item = Item(key, kv.mod_revision, with_version(kv.value, kv.mod_revision))
    return CacheEvent("ADDED" if previous is None else "MODIFIED", item, previous, kv.mod_revision)
