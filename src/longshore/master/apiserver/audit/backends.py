"""Where audit events go. An event is one JSON object as octets; `process` says whether all of them were taken.

Source: k8s.io/apiserver/plugin/pkg/audit (log, webhook, buffered, truncate).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import orjson

from longshore.api.validation.errors import quote
from longshore.master.apiserver.remote import Remote
from longshore.master.apiserver.throttle import TokenBucket

from .flags import Batch, Truncate

log = logging.getLogger("longshore.apiserver.audit")
_CLOSING_SECONDS = 5.0
#: plugin, number of events: some could not be written.
Failed = Callable[[str, int], None]


class Backend(Protocol):
    def process(self, events: Sequence[bytes]) -> bool | Awaitable[bool]: ...

    async def close(self) -> None: ...


class Output(Protocol):
    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class LogFile:
    """Events as lines. form: "json" or "legacy"."""

    name = "log"

    def __init__(self, out: Output, form: str, failed: Failed) -> None:
        self._out, self._legacy, self._failed = out, form == "legacy", failed

    def process(self, events: Sequence[bytes]) -> bool:
        done = True
        for event in events:
            line = legacy(orjson.loads(event)).encode() if self._legacy else event
            try:
                self._out.write(line + b"\n")
            except (OSError, ValueError) as error:
                log.error("Error in audit plugin 'log' affecting 1 audit events: %s", error)
                self._failed(self.name, 1)
                done = False
        return done

    async def close(self) -> None:
        self._out.close()


def legacy(event: dict[str, Any]) -> str:
    """An event as one line of text."""

    def listed(values: Any) -> str:
        return ",".join(quote(v) for v in values)

    user, acting = event.get("user") or {}, event.get("impersonatedUser")
    name = user.get("username") or "<none>"
    groups = listed(user["groups"]) if user.get("username") and user.get("groups") else "<none>"
    other, others = "<self>", "<lookup>"
    if acting is not None:
        other = acting.get("username", "")
        others = listed(acting["groups"]) if acting.get("groups") is not None else others
    status, reference = event.get("responseStatus"), event.get("objectRef") or {}
    fields = (
        ("id", event["auditID"]), ("stage", event["stage"]), ("ip", (event.get("sourceIPs") or ["<unknown>"])[0]),
        ("method", event.get("verb", "")), ("user", name), ("groups", groups), ("as", other), ("asgroups", others),
        ("user-agent", event.get("userAgent", "")), ("namespace", reference.get("namespace") or "<none>"),
        ("uri", event.get("requestURI", "")),
    )  # fmt: skip
    shown = " ".join(f"{key}={quote(value)}" for key, value in fields)
    code = "<deferred>" if status is None else status.get("code", 0)
    return f'{event["requestReceivedTimestamp"]} AUDIT: {shown} response="{code}"'


class Webhook:
    """Events as an EventList, posted to a server. Whatever goes wrong is tried again, then given up."""

    name = "webhook"

    def __init__(self, remote: Remote, failed: Failed) -> None:
        self._remote, self._failed = remote, failed

    async def process(self, events: Sequence[bytes]) -> bool:
        body = b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[%b]}' % b",".join(events)
        try:
            await self._remote.post(body)
        except (OSError, ValueError, TimeoutError) as error:
            log.error("Error in audit plugin 'webhook' affecting %d audit events: %s", len(events), error)
            self._failed(self.name, len(events))
            return False
        return True

    async def close(self) -> None:
        await self._remote.close()


class Lenient:
    """A backend whose failures do not matter to the request."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def process(self, events: Sequence[bytes]) -> bool | Awaitable[bool]:
        found = self._backend.process(events)
        return self._wait(found) if not isinstance(found, bool) else True

    async def _wait(self, pending: Awaitable[bool]) -> bool:
        await pending
        return True

    async def close(self) -> None:
        await self._backend.close()


class Truncating:
    """Cuts requests and responses out of events that are too large, and batches into smaller ones."""

    def __init__(self, backend: Backend, limits: Truncate, failed: Failed) -> None:
        self._backend, self._limits, self._failed = backend, limits, failed

    def process(self, events: Sequence[bytes]) -> bool | Awaitable[bool]:
        batches: list[list[bytes]] = []
        size = 0
        for event in map(self._cut, events):
            if event is None:
                continue
            if not batches or size + len(event) > self._limits.batch:
                batches.append([])
                size = 0
            batches[-1].append(event)
            size += len(event)
        if len(batches) == 1:
            return self._backend.process(batches[0])
        return self._all(batches) if batches else True

    async def _all(self, batches: list[list[bytes]]) -> bool:
        done = True
        for batch in batches:
            found = self._backend.process(batch)
            done = (found if isinstance(found, bool) else await found) and done
        return done

    def _cut(self, event: bytes) -> bytes | None:
        if len(event) <= self._limits.event:
            return event
        value = orjson.loads(event)
        if value["level"] in ("Request", "RequestResponse"):
            value.pop("requestObject", None)
            value.pop("responseObject", None)
            value.setdefault("annotations", {})["audit.k8s.io/truncated"] = "true"
            event = orjson.dumps(value)
        if len(event) <= self._limits.event:
            return event
        log.error("Error in audit plugin 'truncate' affecting 1 audit events: event is too large even after truncating")
        self._failed("truncate", 1)
        return None

    async def close(self) -> None:
        await self._backend.close()


class Buffered:
    """Collects events and hands them on in batches, later."""

    def __init__(self, backend: Backend, batch: Batch, failed: Failed) -> None:
        self._backend, self._batch, self._failed = backend, batch, failed
        self._waiting: list[bytes] = []
        self._changed = asyncio.Event()
        self._closing = False
        self._sending: set[asyncio.Task[None]] = set()
        self._bucket = TokenBucket(batch.rate, batch.burst) if batch.throttle else None
        self._task = asyncio.create_task(self._run(), name="audit")

    def process(self, events: Sequence[bytes]) -> bool:
        room = self._batch.buffer - len(self._waiting)
        if room < len(events):
            log.error("Error in audit plugin 'buffered': audit buffer queue blocked")
            self._failed("buffered", len(events) - max(room, 0))
            events = events[: max(room, 0)]
        self._waiting += events
        self._changed.set()
        return True

    async def _run(self) -> None:
        """Sends a batch when it is full, or when the first of it has waited long enough."""
        loop = asyncio.get_running_loop()
        while self._waiting or not self._closing:
            if not self._waiting:
                self._changed.clear()
                await self._changed.wait()
                continue
            until = loop.time() + self._batch.wait
            while len(self._waiting) < self._batch.size and not self._closing and loop.time() < until:
                self._changed.clear()
                try:
                    await asyncio.wait_for(self._changed.wait(), until - loop.time())
                except TimeoutError:
                    break
            events, self._waiting = self._waiting[: self._batch.size], self._waiting[self._batch.size :]
            if self._bucket is not None and (pause := self._bucket.reserve()):
                await asyncio.sleep(pause)
            if self._batch.concurrent:
                task = asyncio.create_task(self._send(events))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)
            else:
                await self._send(events)

    async def _send(self, events: list[bytes]) -> None:
        found = self._backend.process(events)
        if inspect.isawaitable(found):
            await found

    async def close(self) -> None:
        """Sends what is left, for as long as somebody who stops a server waits."""
        self._closing = True
        self._changed.set()
        await asyncio.wait([self._task], timeout=_CLOSING_SECONDS)
        if self._sending:
            await asyncio.wait(self._sending, timeout=_CLOSING_SECONDS)
        for task in (self._task, *self._sending):
            task.cancel()
        await self._backend.close()


class Union:
    """Several backends; each gets everything."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = backends

    def process(self, events: Sequence[bytes]) -> bool | Awaitable[bool]:
        found = [b.process(events) for b in self._backends]
        if all(isinstance(f, bool) for f in found):
            return all(found)
        return self._wait(found)

    async def _wait(self, found: Sequence[bool | Awaitable[bool]]) -> bool:
        return all([f if isinstance(f, bool) else await f for f in found])

    async def close(self) -> None:
        for backend in self._backends:
            await backend.close()
