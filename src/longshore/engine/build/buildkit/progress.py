"""What a build tells its watchers: vertices (steps), their statuses, their output. Kept, so that a late watcher sees all."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from longshore.engine.build.buildkit.schemas import control
from longshore.engine.build.checks import Warning

_LOG_LIMIT = 2 << 20


def now() -> Any:
    seconds, nanos = divmod(time.time_ns(), 10**9)
    return control.Timestamp(seconds=seconds, nanos=nanos)


class Progress:
    """The messages of one build."""

    def __init__(self) -> None:
        self._messages: list[Any] = []
        self._first = ""
        self._watchers: set[asyncio.Event] = set()
        self.done = False

    def send(self, **fields: Any) -> None:
        """Add a StatusResponse: vertexes, statuses, logs, warnings."""
        self._messages.append(control.StatusResponse(**fields))
        for event in self._watchers:
            event.set()

    @property
    def messages(self) -> list[Any]:
        """All that was told so far."""
        return self._messages

    def plain_warning(self, request: Any) -> None:
        """A warning of a frontend that runs in the client."""
        made = control.VertexWarning(
            vertex=request.digest or self._first,
            level=request.level,
            short=request.short,
            detail=request.detail,
            url=request.url,
        )
        self.send(warnings=[made])

    def steps(self) -> tuple[int, int, int, int]:
        """(steps, those completed, those from the cache, warnings)."""
        last: dict[str, Any] = {}
        warnings = 0
        for message in self._messages:
            warnings += len(message.warnings)
            for vertex in message.vertexes:
                last[vertex.digest] = vertex
        done = [vertex for vertex in last.values() if vertex.HasField("completed")]
        return len(last), len(done), sum(vertex.cached for vertex in last.values()), warnings

    def finish(self) -> None:
        self.done = True
        for event in self._watchers:
            event.set()

    async def watch(self) -> AsyncIterator[Any]:
        """All messages from the first on, until the build is done."""
        event = asyncio.Event()
        self._watchers.add(event)
        position = 0
        try:
            while True:
                while position < len(self._messages):
                    yield self._messages[position]
                    position += 1
                if self.done:
                    return
                event.clear()
                await event.wait()
        finally:
            self._watchers.discard(event)

    def vertex(self, name: str) -> Vertex:
        made = Vertex(self, name)
        if name.startswith("[internal] load build definition") or not self._first:
            self._first = made.digest
        return made

    def warning(self, found: Warning, name: str, data: bytes) -> None:
        """A finding of the build checks in a file, told at the vertex that loaded it."""
        ranges = [control.Range(start=control.Position(line=found.start), end=control.Position(line=found.end))]
        made = control.VertexWarning(
            vertex=self._first,
            level=1,
            short=found.short.encode(),
            detail=[found.description.encode()],
            url=found.url,
            info=control.SourceInfo(filename=name, data=data, language="Dockerfile"),
            ranges=ranges,
        )
        self.send(warnings=[made])


class Vertex:
    """One step as people see it: "[2/3] COPY f /f". As a context manager: begun, and completed with the error if any."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self.name = progress, name
        self.digest = "sha256:" + secrets.token_hex(32)
        self.cached = False
        self._logged: dict[int, int] = {}
        self._started: Any = None

    def __enter__(self) -> Vertex:
        self._started = now()
        self._tell()
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        text = ""
        if error is not None:
            text = getattr(error, "message", None) or str(error) or "canceled"
        self._tell(completed=now(), error=text)

    def _tell(self, **fields: Any) -> None:
        made = control.Vertex(digest=self.digest, name=self.name, cached=self.cached, started=self._started, **fields)
        self._progress.send(vertexes=[made])

    def log(self, stream: int, data: bytes) -> None:
        """A command's output: stream 1 or 2; each to its limit only, as everything is kept."""
        room = _LOG_LIMIT - self._logged.get(stream, 0)
        if room <= 0:
            return
        self._logged[stream] = _LOG_LIMIT - room + len(data)
        if len(data) > room:
            data = data[:room] + b"\n[output clipped, log limit 2MiB reached]\n"
        self._progress.send(logs=[control.VertexLog(vertex=self.digest, timestamp=now(), stream=stream, msg=data)])

    def status(
        self, line: str, current: int = 0, total: int = 0, *, started: Any = None, done: bool = False, name: str = ""
    ) -> None:
        """A line below the step: "transferring context: 2.5kB". name: of what goes on, where that is not the line."""
        moment = now()
        self._progress.send(
            statuses=[
                control.VertexStatus(
                    ID=line,
                    vertex=self.digest,
                    name=name or line,
                    current=current,
                    total=total,
                    timestamp=moment,
                    started=started or self._started,
                    completed=moment if done else None,
                )
            ]
        )
