"""The words of etcd's v3 data model: key-values, events, compares, operations, results and errors.

Source: etcd's rpc.proto and kv.proto (field meanings), and etcd's rpctypes for the error texts that clients see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

MAX_REQUEST_BYTES = 1536 * 1024
"""etcd's default --max-request-bytes."""
MAX_TXN_OPS = 128
"""etcd's default --max-txn-ops."""


class StoreError(Exception):
    """An operation that the store refuses. `code` is the gRPC status code's number, the text etcd's own."""

    code = 2  # UNKNOWN
    text = "etcdserver: unknown error"

    def __init__(self, text: str | None = None) -> None:
        super().__init__(text or self.text)


class Compacted(StoreError):
    """The revision asked for has been compacted; `.compact_revision` is the oldest that can still be read."""

    code, text = 11, "etcdserver: mvcc: required revision has been compacted"

    def __init__(self, compact_revision: int = 0) -> None:
        super().__init__()
        self.compact_revision = compact_revision


class FutureRevision(StoreError):
    code, text = 11, "etcdserver: mvcc: required revision is a future revision"


class LeaseNotFound(StoreError):
    code, text = 5, "etcdserver: requested lease not found"


class LeaseExists(StoreError):
    code, text = 9, "etcdserver: lease already exists"


class LeaseTTLTooLarge(StoreError):
    code, text = 11, "etcdserver: too large lease TTL"


class EmptyKey(StoreError):
    code, text = 3, "etcdserver: key is not provided"


class KeyNotFound(StoreError):
    code, text = 3, "etcdserver: key not found"


class ValueProvided(StoreError):
    code, text = 3, "etcdserver: value is provided"


class LeaseProvided(StoreError):
    code, text = 3, "etcdserver: lease is provided"


class DuplicateKey(StoreError):
    code, text = 3, "etcdserver: duplicate key given in txn request"


class TooManyOps(StoreError):
    code, text = 3, "etcdserver: too many operations in txn request"


class InvalidSort(StoreError):
    code, text = 3, "etcdserver: invalid sort option"


class RequestTooLarge(StoreError):
    code, text = 3, "etcdserver: request is too large"


class NoSpace(StoreError):
    """The disk (or its quota) is full: this write is not stored. The store goes on when there is room."""

    code, text = 8, "etcdserver: mvcc: database space exceeded"


class Unavailable(StoreError):
    """The store is closed, unreachable, or its disk failed: whether the write was stored is not known to be true."""

    code, text = 14, "etcdserver: server stopped"


class Corrupt(StoreError):
    code, text = 15, "etcdserver: corrupt cluster"


class KeyValue:
    """One version of one key. Treated as immutable.

    row: the embedded log's row number (revision and sub-revision); 0 when it came from elsewhere.
    version 0 marks a tombstone (only inside DELETE events).
    """

    __slots__ = ("create_revision", "key", "lease", "mod_revision", "row", "value", "version")

    def __init__(
        self,
        key: bytes,
        value: bytes,
        create_revision: int = 0,
        mod_revision: int = 0,
        version: int = 0,
        lease: int = 0,
        row: int = 0,
    ) -> None:
        self.key = key
        self.value = value
        self.create_revision = create_revision
        self.mod_revision = mod_revision
        self.version = version
        self.lease = lease
        self.row = row

    def _fields(self) -> tuple[bytes, bytes, int, int, int, int]:
        return self.key, self.value, self.create_revision, self.mod_revision, self.version, self.lease

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyValue) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((self.key, self.mod_revision))

    def __repr__(self) -> str:
        return (
            f"KeyValue({self.key!r}, {self.value[:40]!r}, create={self.create_revision}, mod={self.mod_revision}, "
            f"version={self.version}, lease={self.lease})"
        )


PUT, DELETE = "PUT", "DELETE"


class Event:
    """A change of a key: `kv` after it (for DELETE only key and mod_revision), `prev_kv` before it when asked for."""

    __slots__ = ("kv", "prev_kv", "type")

    def __init__(self, type: str, kv: KeyValue, prev_kv: KeyValue | None = None) -> None:
        self.type = type
        self.kv = kv
        self.prev_kv = prev_kv

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and (self.type, self.kv, self.prev_kv) == (other.type, other.kv, other.prev_kv)

    def __hash__(self) -> int:
        return hash((self.type, self.kv))

    def __repr__(self) -> str:
        return f"Event({self.type}, {self.kv!r}, prev={self.prev_kv!r})"


class WatchBatch(NamedTuple):
    """Events in revision order, whole revisions only. No events: a progress notification that `revision` is reached."""

    revision: int
    events: list[Event]


Target = Literal["version", "create", "mod", "value", "lease"]
SortTarget = Literal["key", "version", "create", "mod", "value"]
SortOrder = Literal["none", "ascend", "descend"]


class Compare(NamedTuple):
    """A condition of a transaction: `target` of every key in [key, end) `op` `operand`.

    op: "=", "!=", ">" or "<". operand: bytes for "value", a number otherwise. A key that is absent compares as
    version, create, mod and lease 0; for "value" it never holds.
    """

    target: Target
    key: bytes
    op: str
    operand: int | bytes
    end: bytes = b""


@dataclass(slots=True)
class Range:
    """Read the keys of [key, end). end b"": only `key`; end b"\\0": all keys from `key` on."""

    key: bytes
    end: bytes = b""
    revision: int = 0
    limit: int = 0
    keys_only: bool = False
    count_only: bool = False
    sort_order: SortOrder = "none"
    sort_target: SortTarget = "key"
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0


@dataclass(slots=True)
class Put:
    key: bytes
    value: bytes
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False


@dataclass(slots=True)
class Delete:
    key: bytes
    end: bytes = b""
    prev_kv: bool = False


@dataclass(slots=True)
class Txn:
    """All compares hold: `then`, else `otherwise`, as one atomic change with one main revision."""

    compares: Sequence[Compare] = ()
    then: Sequence[Op] = ()
    otherwise: Sequence[Op] = ()


Op = Range | Put | Delete | Txn


@dataclass(slots=True)
class RangeResult:
    """revision: the store's at the answer; count: keys in range whatever the limit; more: the limit cut some off."""

    revision: int
    kvs: list[KeyValue]
    count: int
    more: bool = False


class PutResult(NamedTuple):
    revision: int
    prev_kv: KeyValue | None = None


class DeleteResult(NamedTuple):
    revision: int
    deleted: int
    prev_kvs: list[KeyValue]


@dataclass(slots=True)
class TxnResult:
    revision: int
    succeeded: bool
    responses: list[RangeResult | PutResult | DeleteResult | TxnResult] = field(default_factory=list)


class WriteResult(NamedTuple):
    """Of a write under a condition on one key.

    succeeded: the condition held. revision: the write's own when it did, the store's otherwise.
    kv: the key's version before the write (also what contradicted the condition), None where there was none.
    """

    succeeded: bool
    revision: int
    kv: KeyValue | None


class Lease(NamedTuple):
    """ttl: seconds left (-1: no such lease, or expired). granted: seconds it was granted for."""

    id: int
    ttl: int
    granted: int
    keys: tuple[bytes, ...] = ()


@dataclass(slots=True)
class StoreStatus:
    """version: of the etcd protocol; db_size, db_size_in_use: bytes on disk and those not free inside the file."""

    version: str
    revision: int
    compact_revision: int
    db_size: int
    db_size_in_use: int
    leader: bool = True


def prefix_end(prefix: bytes) -> bytes:
    """The `end` for which [prefix, end) are all keys that begin with `prefix` (etcd's clientv3 GetPrefixRangeEnd)."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return b"\0"
    return stripped[:-1] + bytes((stripped[-1] + 1,))
