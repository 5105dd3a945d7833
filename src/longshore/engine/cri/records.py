"""What the CRI face remembers of sandboxes and containers: one folder each, written before it is acknowledged.

A record is the client's configuration as it came (protobuf) and our own facts (JSON), replaced atomically; a folder
without facts is a creation that was cut short and is removed at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import orjson

from longshore.machinery.grpc import RpcError, Status
from longshore.wire.cri import cri

log = logging.getLogger("longshore.engine.cri")


@dataclass(slots=True)
class Sandbox:
    """A pod sandbox. created_at: nanoseconds since 1970. made: its creation was completed.

    network: what the pod network gave and needs to undo it.
    """

    id: str
    config: Any
    created_at: int = 0
    runtime_handler: str = ""
    made: bool = False
    ready: bool = False
    ips: list[str] = field(default_factory=list)
    network: dict[str, Any] = field(default_factory=dict)
    pause_pid: int = 0
    pause_start: int = 0

    FACTS = ("created_at", "runtime_handler", "made", "ready", "ips", "network", "pause_pid", "pause_start")
    KIND = "PodSandboxConfig"

    @property
    def metadata(self) -> Any:
        return self.config.metadata

    @property
    def namespaces(self) -> Any:
        """The NamespaceOption that the sandbox was asked for."""
        return self.config.linux.security_context.namespace_options


@dataclass(slots=True)
class Container:
    """A container of a sandbox. Times: nanoseconds since 1970, 0 when it has not happened."""

    id: str
    config: Any
    sandbox_id: str = ""
    image_id: str = ""
    image_ref: str = ""
    created_at: int = 0
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    log_path: str = ""
    stop_signal: int = 15
    uid: int = 0
    gid: int = 0
    groups: list[int] = field(default_factory=list)
    image_mounts: list[str] = field(default_factory=list)

    FACTS = ("sandbox_id", "image_id", "image_ref", "created_at", "started_at", "finished_at", "exit_code", "reason",
             "message", "log_path", "stop_signal", "uid", "gid", "groups", "image_mounts")  # fmt: skip
    KIND = "ContainerConfig"

    @property
    def metadata(self) -> Any:
        return self.config.metadata

    @property
    def state(self) -> int:
        if self.finished_at:
            return int(cri.CONTAINER_EXITED)
        return int(cri.CONTAINER_RUNNING if self.started_at else cri.CONTAINER_CREATED)


T = TypeVar("T", Sandbox, Container)


class Records(Generic[T]):
    """All records of one kind, by id, in memory and on disk."""

    def __init__(self, folder: Path, kind: type[T], what: str) -> None:
        """folder: theirs alone. what: "sandbox" or "container", for messages."""
        self.folder, self._what = folder, what
        self._kind: type[T] = kind
        self._all: dict[str, T] = {}
        #: label -> the ids of records that have it: a kubelet asks for one pod's again and again
        self._labelled: dict[tuple[str, str], set[str]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def load(self) -> list[str]:
        """Read everything back; returns the ids of creations that were cut short (their folders are removed)."""
        broken: list[str] = []
        for folder in sorted(self.folder.iterdir()):
            try:
                facts = orjson.loads((folder / "state.json").read_bytes())
                config = getattr(cri, self._kind.KIND).FromString((folder / "config.pb").read_bytes())
                record = self._kind(folder.name, config)
                for name in self._kind.FACTS:
                    if name in facts:
                        setattr(record, name, facts[name])
            except Exception as error:  # protobuf's DecodeError has no base of its own worth naming
                log.warning("%s %s is unreadable (%s) and removed", self._what, folder.name, error)
                broken.append(folder.name)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            self._add(record)
        return broken

    def _add(self, record: T) -> None:
        self._all[record.id] = record
        for pair in record.config.labels.items():
            self._labelled.setdefault(pair, set()).add(record.id)

    def path(self, record_id: str) -> Path:
        return self.folder / record_id

    def save(self, record: T) -> None:
        """Write a record; it is known from now on."""
        folder = self.folder / record.id
        new = record.id not in self._all
        if new:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.pb").write_bytes(record.config.SerializeToString())
        facts = {name: getattr(record, name) for name in self._kind.FACTS}
        temporary = folder / ".state.json"
        temporary.write_bytes(orjson.dumps(facts))
        os.replace(temporary, folder / "state.json")
        if new:
            self._add(record)

    def note(self, record: T) -> None:
        """Write what has ended. A full disk keeps no end from being told: after a restart it is found anew."""
        try:
            self.save(record)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            log.warning("the end of %s %s is not on disk: %s", self._what, record.id, error.strerror)

    def save_config(self, record: T) -> None:
        """Write the record's changed configuration (limits after an update)."""
        temporary = self.folder / record.id / ".config.pb"
        temporary.write_bytes(record.config.SerializeToString())
        os.replace(temporary, self.folder / record.id / "config.pb")

    def remove(self, record_id: str) -> None:
        """Forget a record, if it is there."""
        record = self._all.pop(record_id, None)
        for pair in record.config.labels.items() if record is not None else ():
            ids = self._labelled[pair]
            ids.discard(record_id)
            if not ids:
                del self._labelled[pair]
        # Without its facts the folder is a cut-short one, whatever becomes of the rest.
        with contextlib.suppress(OSError):
            (self.folder / record_id / "state.json").unlink()
        shutil.rmtree(self.folder / record_id, ignore_errors=True)

    def find(self, record_id: str) -> T | None:
        """The record of an id or of the only id that begins so."""
        record = self._all.get(record_id)
        if record is None and record_id:
            matches = [r for i, r in self._all.items() if i.startswith(record_id)]
            if len(matches) == 1:
                return matches[0]
        return record

    def get(self, record_id: str) -> T:
        """Like find; raises RpcError NotFound."""
        record = self.find(record_id)
        if record is None:
            raise RpcError(Status.NOT_FOUND, f'{self._what} "{record_id}" not found')
        return record

    def labelled(self, selector: Mapping[str, str]) -> list[T]:
        """The records that have every label of a selector, the oldest first."""
        if not selector:
            return list(self)
        sets = sorted((self._labelled.get(pair, set()) for pair in selector.items()), key=len)
        found = [self._all[i] for i in sets[0] if all(i in other for other in sets[1:])]
        return sorted(found, key=lambda record: record.created_at)

    def __iter__(self) -> Any:
        return iter(list(self._all.values()))

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._all


def now() -> int:
    """Nanoseconds since 1970."""
    return time.time_ns()


def same_name(records: Iterable[Sandbox], metadata: Any) -> Sandbox | None:
    """The sandbox that has these metadata already."""
    return next((r for r in records if r.metadata == metadata), None)
