"""Events: what happened to an object, told to people, counted when it happens again.

Two forms, as upstream: `EventRecorder` writes core/v1 events (controllers, kubelet) with aggregation, counting and a
spam filter; with `series=True` it writes events.k8s.io/v1 events with a series (scheduler).
Sources: client-go tools/record and tools/events, described behaviour and numbers.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any

from longshore.client.leader import micro_time
from longshore.client.resources import EVENTS, NEW_EVENTS
from longshore.client.rest import Client, is_not_found
from longshore.machinery.errors import StatusError

log = logging.getLogger("longshore.client.events")

Object = dict[str, Any]

CACHE_SIZE = 4096
SIMILAR_LIMIT = 10  # events that differ only in their message, before they are told as one
SIMILAR_SECONDS = 600.0
BURST = 25
REFILL_PER_SECOND = 1 / 300
QUEUE_LIMIT = 8192  # a burst of bindings outruns what a server busy with them takes in
MESSAGE_LIMIT = 1024
SERIES_REFRESH_SECONDS = 30 * 60.0
SERIES_END_SECONDS = 6 * 60.0
RETRIES = 12


def reference(obj: Object) -> Object:
    """An ObjectReference to obj (which must carry kind and apiVersion)."""
    metadata = obj["metadata"]
    entries = (
        ("kind", obj.get("kind", "")),
        ("namespace", metadata.get("namespace", "")),
        ("name", metadata["name"]),
        ("uid", metadata.get("uid", "")),
        ("apiVersion", obj.get("apiVersion", "")),
        ("resourceVersion", metadata.get("resourceVersion", "")),
    )
    return {key: value for key, value in entries if value}


class _Lru(OrderedDict[bytes, Any]):
    def remember(self, key: bytes, value: Any) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > CACHE_SIZE:
            self.popitem(last=False)


class EventRecorder:
    """Tells events in the background.

    A caller may rely on: `event` never blocks, never raises and returns nothing; events reach the API server in
    order when it is there. Not to be relied on: that each is stored. Past 8,192 waiting ones, past 25 and then one
    every five minutes for an object and source, and after twelve failed tries an event is dropped; equal ones
    become a count, and more than ten in ten minutes that differ only in their message become one.
    """

    def __init__(
        self, client: Client, component: str, *, host: str = "", series: bool = False, instance: str = ""
    ) -> None:
        self.client, self.component, self.host, self.series = client, component, host, series
        self.instance = instance or f"{component}-{socket.gethostname()}"
        self._queue: asyncio.Queue[Object] = asyncio.Queue(QUEUE_LIMIT)
        self._task: asyncio.Task[None] | None = None
        self._known = _Lru()  # exact event -> (name, count, first time, resource version)
        self._similar = _Lru()  # aggregate key -> (hashes of messages, last time)
        self._buckets = _Lru()  # source and object -> (tokens, when)

    def event(
        self,
        obj: Object,
        type: str,
        reason: str,
        message: str,
        *,
        action: str = "",
        related: Object | None = None,
        annotations: dict[str, str] | None = None,
    ) -> None:
        """Tell that `reason` happened to obj (an object, or an ObjectReference). type: Normal or Warning."""
        involved = reference(obj) if "metadata" in obj else dict(obj)
        entry: Object = {
            "involved": involved,
            "type": type,
            "reason": reason,
            "message": message[: MESSAGE_LIMIT - 3] + "..." if len(message) > MESSAGE_LIMIT else message,
            "action": action,
            "at": datetime.now(UTC),
        }
        if related is not None:
            entry["related"] = reference(related) if "metadata" in related else related
        if annotations:
            entry["annotations"] = annotations
        try:
            self._queue.put_nowait(entry)
        except asyncio.QueueFull:
            log.debug("event dropped: %s %s", reason, message)
            return
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._send_all(), name=f"events {self.component}")

    async def flush(self, timeout: float = 5.0) -> None:
        """Wait until what was told so far is sent, or the time is over."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout)

    async def stop(self) -> None:
        """Drop what is waiting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _send_all(self) -> None:
        # The task lives only while there are events: an idle recorder has none.
        while not self._queue.empty():
            entry = self._queue.get_nowait()
            try:
                await self._record(entry)
            except StatusError as error:
                log.debug("event refused: %s", error)
            except Exception:
                log.exception("event lost")

    async def _record(self, entry: Object) -> None:
        if self.series:
            await self._record_series(entry)
            return
        source = (self.component, self.host, *_of_reference(entry["involved"]))
        if not self._allowed(_key(*source)):
            return
        similar = (*source, entry["type"], entry["reason"])
        combined = self._is_combined(_key(*similar), entry["message"])
        if combined:
            entry["message"] = "(combined from similar events): " + entry["message"]
        key = _key(*similar) if combined else _key(*similar, entry["message"])
        stamp = entry["at"].strftime("%Y-%m-%dT%H:%M:%SZ")
        namespace = entry["involved"].get("namespace") or "default"
        known = self._known.get(key)
        if known is not None:
            name, count, first = known
            patch = {"count": count + 1, "lastTimestamp": stamp, "message": entry["message"]}
            try:
                await self._insist(lambda: self.client.patch(EVENTS, name, patch, namespace, kind="strategic"))
                self._known.remember(key, (name, count + 1, first))
                return
            except StatusError as error:
                if not is_not_found(error):
                    raise
        name = f"{entry['involved']['name']}.{time.time_ns():x}"
        told_by = {"component": self.component}
        if self.host:
            told_by["host"] = self.host
        event: Object = {
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": entry["involved"],
            "reason": entry["reason"],
            "message": entry["message"],
            "source": told_by,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
            "type": entry["type"],
            # The sum of similar events names no reporting component, upstream's too.
            "reportingComponent": "" if combined else self.component,
            "reportingInstance": self.host,
            "eventTime": None,
        }
        if "annotations" in entry:
            event["metadata"]["annotations"] = entry["annotations"]
        if "related" in entry:
            event["related"] = entry["related"]
        await self._insist(lambda: self.client.create(EVENTS, event, namespace))
        self._known.remember(key, (name, 1, stamp))

    async def _record_series(self, entry: Object) -> None:
        key = _key(
            entry["type"],
            entry["action"],
            entry["reason"],
            *_of_reference(entry["involved"]),
            *_of_reference(entry.get("related", {})),
        )
        namespace = entry["involved"].get("namespace") or "default"
        now = time.monotonic()
        known = self._known.get(key)
        stamp = micro_time(entry["at"])
        if known is not None and now - known[2] < SERIES_END_SECONDS:
            name, count, _, written = known
            count += 1
            self._known.remember(key, (name, count, now, written))
            # A series is written when it begins, and then only now and then.
            if count > 2 and now - written < SERIES_REFRESH_SECONDS:
                return
            patch = {"series": {"count": count, "lastObservedTime": stamp}}
            try:
                await self._insist(lambda: self.client.patch(NEW_EVENTS, name, patch, namespace, kind="strategic"))
                self._known.remember(key, (name, count, now, now))
                return
            except StatusError as error:
                if not is_not_found(error):
                    raise
        name = f"{entry['involved']['name']}.{time.time_ns():x}"
        event: Object = {
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": stamp,
            "reportingController": self.component,
            "reportingInstance": self.instance,
            "action": entry["action"],
            "reason": entry["reason"],
            "regarding": entry["involved"],
            "note": entry["message"],
            "type": entry["type"],
        }
        if "related" in entry:
            event["related"] = entry["related"]
        await self._insist(lambda: self.client.create(NEW_EVENTS, event, namespace))
        self._known.remember(key, (name, 1, now, now))

    async def _insist(self, call: Any) -> None:
        """Send until the server answers: an unreachable server is tried again, an answer is final."""
        pause = 0.5
        for attempt in range(RETRIES):
            try:
                await call()
                return
            except StatusError as error:
                if error.code < 500 and error.code != 429:
                    raise
            except (OSError, TimeoutError):
                pass
            if attempt + 1 < RETRIES:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 10.0)

    def _is_combined(self, key: bytes, message: str) -> bool:
        """Whether so many messages of one key came lately that this one is told together with them."""
        now = time.monotonic()
        messages, last = self._similar.get(key, ((), now))
        if now - last > SIMILAR_SECONDS:
            messages = ()
        number = hash(message)
        if number not in messages:
            messages = (*messages, number)
        combined = len(messages) >= SIMILAR_LIMIT
        self._similar.remember(key, (messages[1:] if combined else messages, now))
        return combined

    def _allowed(self, key: bytes) -> bool:
        now = time.monotonic()
        tokens, when = self._buckets.get(key, (float(BURST), now))
        tokens = min(BURST, tokens + (now - when) * REFILL_PER_SECOND)
        allowed = bool(tokens >= 1)
        self._buckets.remember(key, (tokens - 1 if allowed else tokens, now))
        return allowed


def _of_reference(ref: Object) -> tuple[str, ...]:
    return tuple(ref.get(k, "") for k in ("kind", "namespace", "name", "uid", "apiVersion", "fieldPath"))


def _key(*parts: str) -> bytes:
    """What events are remembered by: thousands of them are, and their texts would be most of a recorder's memory."""
    return hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=16).digest()
