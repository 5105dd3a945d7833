"""Builds that were made: kept in the image store, told to `docker buildx history`.

A record is BuildKit's message, with the statuses of its progress for the logs. Source: BuildKit control,
solver/llbsolver/history.go.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from longshore.engine.build.buildkit.schemas import control
from longshore.engine.errors import InvalidParameter, NotFound
from longshore.engine.images.blobs import digest_of

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS build_history(ref TEXT PRIMARY KEY, created INTEGER NOT NULL, pinned INTEGER NOT NULL, "
    "record BLOB NOT NULL, statuses BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS build_content(digest TEXT, ref TEXT, body BLOB NOT NULL, PRIMARY KEY(digest, ref)) "
    "WITHOUT ROWID",
)
_STATUS_LIMIT = 8 << 20
STARTED, COMPLETE, DELETED = range(3)


def stamp(nanoseconds: int) -> Any:
    return control.Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def descriptor(data: bytes, media: str, **annotations: str) -> Any:
    notes = {key.replace("__", "/").replace("_", "-"): value for key, value in annotations.items()}
    return control.Descriptor(media_type=media, digest=digest_of(data), size=len(data), annotations=notes)


class History:
    """The records of one image store, and of builds under way in this process.

    kept, age: how many finished builds stay, and for how many nanoseconds.
    """

    def __init__(self, store: ImageStore, kept: int, age: int) -> None:
        self._store, self._kept, self._age = store, kept, age
        self._active: dict[str, Any] = {}
        self._watchers: set[asyncio.Queue[Any]] = set()
        if store.database.one("SELECT 1 FROM sqlite_master WHERE name='build_content'") is None:
            with store.database.write() as connection:
                for statement in _SCHEMA:
                    connection.execute(statement)

    # -- a build's way ---------------------------------------------------------------------------------------------

    def begin(self, record: Any) -> None:
        self._active[record.Ref] = record
        self._tell(STARTED, record)

    def end(self, record: Any, messages: Sequence[Any], content: Sequence[bytes]) -> None:
        """Keep a finished build. messages: its StatusResponses; content: documents that it refers to."""
        self._active.pop(record.Ref, None)
        statuses = bytearray()
        for message in messages:
            data = message.SerializeToString()
            if len(statuses) + len(data) > _STATUS_LIMIT:
                break
            statuses += len(data).to_bytes(4, "big") + data
        created = record.CreatedAt.seconds * 10**9 + record.CreatedAt.nanos
        with self._store.database.write(durable=False) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO build_history VALUES(?,?,0,?,?)",
                (record.Ref, created, record.SerializeToString(), bytes(statuses)),
            )
            connection.executemany(
                "INSERT OR REPLACE INTO build_content VALUES(?,?,?)",
                [(digest_of(body), record.Ref, body) for body in content],
            )
            old = connection.execute(
                "SELECT ref FROM build_history WHERE pinned=0 AND (created<? OR ref NOT IN "
                "(SELECT ref FROM build_history WHERE pinned=0 ORDER BY created DESC LIMIT ?))",
                (time.time_ns() - self._age, self._kept),
            ).fetchall()
            for (ref,) in old:
                _forget(connection, ref)
        self._tell(COMPLETE, record)

    def _tell(self, kind: int, record: Any) -> None:
        for queue in self._watchers:
            queue.put_nowait(control.BuildHistoryEvent(type=kind, record=record))

    # -- reading ---------------------------------------------------------------------------------------------------

    def records(self) -> list[Any]:
        """The finished builds, oldest first."""
        found: list[Any] = []
        for data, pinned in self._store.database.all("SELECT record, pinned FROM build_history ORDER BY created"):
            record = control.BuildHistoryRecord()
            record.ParseFromString(data)
            record.pinned = bool(pinned)
            found.append(record)
        return found

    def statuses(self, ref: str) -> list[Any]:
        """What a finished build told. Raises NotFound."""
        row = self._store.database.one("SELECT statuses FROM build_history WHERE ref=?", ref)
        if row is None:
            raise NotFound(f"no such job {ref}")
        found: list[Any] = []
        position = 0
        while position < len(row[0]):
            length = int.from_bytes(row[0][position : position + 4], "big")
            message = control.StatusResponse()
            message.ParseFromString(row[0][position + 4 : position + 4 + length])
            found.append(message)
            position += 4 + length
        return found

    def content(self, digest: str) -> bytes | None:
        row = self._store.database.one("SELECT body FROM build_content WHERE digest=? LIMIT 1", digest)
        return bytes(row[0]) if row else None

    async def listen(self, request: Any) -> AsyncIterator[Any]:
        """Events of the builds that a client wants to know of."""
        wanted = [_filter(text) for text in request.Filter]

        def fits(record: Any) -> bool:
            return (not request.Ref or record.Ref == request.Ref) and (
                not wanted or any(all(test(record) for test in tests) for tests in wanted)
            )

        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            if not request.ActiveOnly:
                done = [record for record in self.records() if fits(record)]
                for record in done[-request.Limit :] if request.Limit > 0 else done:
                    yield control.BuildHistoryEvent(type=COMPLETE, record=record)
            for record in [record for record in self._active.values() if fits(record)]:
                yield control.BuildHistoryEvent(type=STARTED, record=record)
            if request.EarlyExit and not any(fits(record) for record in self._active.values()):
                return
            while True:
                event = await queue.get()
                if fits(event.record):
                    yield event
                    if request.EarlyExit and event.type == COMPLETE and request.Ref:
                        return
        finally:
            self._watchers.discard(queue)

    def update(self, ref: str, *, pinned: bool, delete: bool, finalize: bool) -> None:
        """Pin, unpin or remove a record. Raises NotFound."""
        row = self._store.database.one("SELECT record FROM build_history WHERE ref=?", ref)
        if row is None:
            raise NotFound(f"failed to get record {ref}: record {ref} not found")
        if finalize:
            return
        with self._store.database.write(durable=False) as connection:
            if delete:
                _forget(connection, ref)
            else:
                connection.execute("UPDATE build_history SET pinned=? WHERE ref=?", (int(pinned), ref))
        if delete:
            self._tell(DELETED, control.BuildHistoryRecord(Ref=ref))


def _forget(connection: Any, ref: str) -> None:
    connection.execute("DELETE FROM build_history WHERE ref=?", (ref,))
    connection.execute("DELETE FROM build_content WHERE ref=?", (ref,))


def _status(record: Any) -> str:
    if not record.HasField("CompletedAt"):
        return "running"
    if not record.HasField("error"):
        return "completed"
    return "canceled" if record.error.code == 1 else "error"


def _filter(text: str) -> list[Any]:
    """One filter: terms with "==", "!=", "~=", "<", ">" joined by commas. Raises InvalidParameter."""
    tests: list[Any] = []
    for term in text.split(","):
        found = re.fullmatch(r'\s*(\w+)\s*(==|!=|~=|=|<=|>=|<|>)\s*"?(.*?)"?\s*', term)
        if not found:
            raise InvalidParameter(f'failed to parse filter "{text}"')
        tests.append(_test(found[1], found[2], found[3]))
    return tests


def _test(name: str, operator: str, value: str) -> Any:
    def test(record: Any) -> bool:
        if name in ("startedAt", "completedAt"):
            moment = record.CreatedAt if name == "startedAt" else record.CompletedAt
            have = f"{moment.seconds:020d}"
            return have >= value if operator.startswith(">") else have <= value
        fields = {"ref": record.Ref, "status": _status(record), "repository": ""}
        attributes = dict(record.FrontendAttrs)
        fields["repository"] = attributes.get("vcs:source") or attributes.get("context") or ""
        text = str(fields.get(name, attributes.get(name, "")))
        if operator == "~=":
            return re.search(value, text) is not None
        return (text != value) if operator == "!=" else text == value

    return test
