"""One transaction: checked and carried out against the key index, giving rows for the log and a result.

Nothing here waits. A transaction that changes nothing but has seen a version that is still on its way to the disk says
so (`saw_pending`), and its answer is held until that version is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from longshore.master.etcd.key_index import EVICTED, Entry, with_value
from longshore.master.etcd.model import (
    MAX_REQUEST_BYTES,
    MAX_TXN_OPS,
    Compacted,
    Compare,
    Delete,
    DeleteResult,
    DuplicateKey,
    EmptyKey,
    FutureRevision,
    InvalidSort,
    KeyNotFound,
    KeyValue,
    LeaseNotFound,
    LeaseProvided,
    Op,
    Put,
    PutResult,
    Range,
    RangeResult,
    RequestTooLarge,
    TooManyOps,
    Txn,
    TxnResult,
    ValueProvided,
    WriteResult,
)
from longshore.master.etcd.revision import MAX_CHANGES, SUB_BITS, row_of

if TYPE_CHECKING:
    from longshore.master.etcd.embedded import EmbeddedStore

_TARGETS = {
    "version": attrgetter("version"),
    "create": attrgetter("create_revision"),
    "mod": attrgetter("mod_revision"),
    "lease": attrgetter("lease"),
}
_SORTS: dict[str, Callable[[KeyValue], Any]] = {
    "key": attrgetter("key"),
    "version": attrgetter("version"),
    "create": attrgetter("create_revision"),
    "mod": attrgetter("mod_revision"),
    "value": attrgetter("value"),
}
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}

Plan = Callable[["Transaction"], Any]
Change = tuple[Entry, KeyValue, KeyValue | None, KeyValue | None]


class Transaction:
    """A transaction under way: its plan (carried out anew when a commit before it failed), its changes, its answer.

    changes: (entry, new version or tombstone, version before, what was pending before) in order.
    leases: (id, ttl; 0 removes).
    """

    __slots__ = ("changes", "future", "leases", "plan", "result", "revision", "saw_pending", "store")

    def __init__(self, store: EmbeddedStore, plan: Plan, future: asyncio.Future[Any]) -> None:
        self.store = store
        self.plan = plan
        self.future = future
        self.changes: list[Change] = []
        self.leases: list[tuple[int, int]] = []
        self.revision = 0
        self.result: Any = None
        self.saw_pending = False

    def undo(self) -> None:
        """Take back the changes of a plan that was refused half-way."""
        for entry, _, _, pending in reversed(self.changes):
            entry.pending = pending
            self.store.index.drop_if_empty(entry)
        self.changes = []

    def reset(self) -> None:
        """Make ready for another try."""
        self.changes = []
        self.leases = []
        self.result = None
        self.saw_pending = False

    # What a plan is made of.

    def newest(self, key: bytes) -> KeyValue | None:
        entry = self.store.index.entries.get(key)
        if entry is None:
            return None
        pending = entry.pending
        if pending is None:
            return entry.kv
        self.saw_pending = True
        return pending if pending.version else None

    @property
    def answer_revision(self) -> int:
        """The revision that the answer tells: this transaction's own, or that of the state that it has seen."""
        if self.changes:
            return self.revision
        return self.revision - 1 if self.saw_pending else self.store.revision

    def complete(self, kv: KeyValue | None) -> KeyValue | None:
        """The same version with its value, read from the log when it is not in memory."""
        if kv is None or kv.value is not EVICTED:
            return kv
        return self.store.log.get(kv.row)

    def put(self, key: bytes, value: bytes, lease: int) -> KeyValue | None:
        """Carry out a put that has been checked; the version before."""
        index = self.store.index
        entry = index.entry(key)
        before = entry.newest()
        changes = self.changes
        if len(changes) >= MAX_CHANGES:
            raise TooManyOps()
        revision = self.revision
        row = revision << SUB_BITS | len(changes)
        if before is None:
            kv = KeyValue(key, value, revision, revision, 1, lease, row)
        else:
            kv = KeyValue(key, value, before.create_revision, revision, before.version + 1, lease, row)
        changes.append((entry, kv, before, entry.pending))
        entry.pending = kv
        if lease:
            self.store.lease_book.attach(lease, key)
        return before

    def delete(self, key: bytes, end: bytes) -> list[KeyValue]:
        """Carry out a delete that has been checked; the versions deleted."""
        index = self.store.index
        deleted: list[KeyValue] = []
        changes = self.changes
        for entry in index.entries_in(key, end):
            pending = entry.pending
            if pending is not None:
                self.saw_pending = True
            before = entry.newest()
            if before is None:
                continue
            if len(changes) >= MAX_CHANGES:
                raise TooManyOps()
            kv = KeyValue(entry.key, b"", 0, self.revision, 0, 0, row_of(self.revision, len(changes)))
            entry.pending = kv
            changes.append((entry, kv, before, pending))
            deleted.append(before)
        return deleted

    def range(self, op: Range) -> RangeResult:
        """Read within the transaction: sees its own changes and those before it."""
        if op.revision and op.revision <= self.store.revision:
            return self.store.range_at(op)
        found: list[KeyValue] = []
        for entry in self.store.index.entries_in(op.key, op.end):
            if entry.pending is not None:
                self.saw_pending = True
            kv = entry.newest()
            if kv is not None:
                found.append(kv)
        return select(found, op, self.store.revision, self.complete_all)

    def complete_all(self, kvs: list[KeyValue]) -> list[KeyValue]:
        return [kv if kv.value is not EVICTED else (self.store.log.get(kv.row) or kv) for kv in kvs]


def select(
    found: list[KeyValue], op: Range, revision: int, complete: Callable[[list[KeyValue]], list[KeyValue]]
) -> RangeResult:
    """Filters, sort, limit and the keys-only and count-only forms of a range. `found`: in key order."""
    count = len(found)
    if op.count_only:
        return RangeResult(revision, [], count)
    if op.sort_target == "value" and op.sort_order != "none":
        found = complete(found)
    if op.max_mod_revision:
        found = [kv for kv in found if kv.mod_revision <= op.max_mod_revision]
    if op.min_mod_revision:
        found = [kv for kv in found if kv.mod_revision >= op.min_mod_revision]
    if op.max_create_revision:
        found = [kv for kv in found if kv.create_revision <= op.max_create_revision]
    if op.min_create_revision:
        found = [kv for kv in found if kv.create_revision >= op.min_create_revision]
    order = op.sort_order
    if op.sort_target != "key" and order == "none":
        order = "ascend"  # as etcd since 3.0: a sort target alone means ascending
    if order == "descend":
        found = (
            sorted(found, key=_SORTS[op.sort_target])[::-1]
            if op.sort_target == "key"
            else sorted(found, key=_SORTS[op.sort_target], reverse=True)
        )
    elif order == "ascend" and op.sort_target != "key":
        found = sorted(found, key=_SORTS[op.sort_target])
    more = False
    if op.limit > 0 and len(found) > op.limit:
        found = found[: op.limit]
        more = True
    if op.keys_only:
        return RangeResult(revision, [with_value(kv, b"") for kv in found], count, more)
    return RangeResult(revision, complete(found), count, more)


def check_key(key: bytes, size: int = 0) -> None:
    """A write's key and size, before anything is changed."""
    if not key:
        raise EmptyKey()
    if len(key) + size > MAX_REQUEST_BYTES:
        raise RequestTooLarge()


def plan_put(op: Put) -> Plan:
    check_key(op.key, len(op.value))
    if op.ignore_value and op.value:
        raise ValueProvided()
    if op.ignore_lease and op.lease:
        raise LeaseProvided()

    def plan(txn: Transaction) -> PutResult:
        _check_put(txn, op)
        return _run_put(txn, op)

    return plan


def plan_simple_put(key: bytes, value: bytes, lease: int) -> Plan:
    """A put with nothing special about it: the store's hottest write."""
    check_key(key, len(value))

    def plan(txn: Transaction) -> PutResult:
        if lease and not txn.store.lease_book.exists(lease):
            raise LeaseNotFound()
        txn.put(key, value, lease)
        return PutResult(txn.revision)

    return plan


def plan_conditional(key: bytes, value: bytes | None, mod_revision: int, lease: int) -> Plan:
    """Put (or delete, when value is None) if the key's mod_revision is this one (0: absent)."""
    check_key(key, len(value) if value is not None else 0)

    def plan(txn: Transaction) -> WriteResult:
        found = txn.newest(key)
        if (found.mod_revision if found is not None else 0) != mod_revision:
            return WriteResult(False, txn.answer_revision, txn.complete(found))
        if value is None:
            txn.delete(key, b"")
        else:
            if lease and not txn.store.lease_book.exists(lease):
                raise LeaseNotFound()
            txn.put(key, value, lease)
        return WriteResult(True, txn.revision, txn.complete(found))

    return plan


def plan_delete(op: Delete) -> Plan:
    check_key(op.key)

    def plan(txn: Transaction) -> DeleteResult:
        return _run_delete(txn, op)

    return plan


def plan_txn(compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]) -> Plan:
    request = Txn(compares, then, otherwise)
    if _check_shape(request) > MAX_REQUEST_BYTES:
        raise RequestTooLarge()

    def plan(txn: Transaction) -> TxnResult:
        path: list[bool] = []
        _choose(txn, request, path)
        _check_ops(txn, request, list(path))
        result = _run_txn(txn, request, list(path))
        _settle(result, txn.answer_revision)
        return result

    return plan


def _holds(txn: Transaction, compare: Compare) -> bool:
    test = _OPERATORS[compare.op]
    if compare.end:
        found: list[KeyValue | None] = []
        for entry in txn.store.index.entries_in(compare.key, compare.end):
            if entry.pending is not None:
                txn.saw_pending = True
            kv = entry.newest()
            if kv is not None:
                found.append(kv)
        if not found:
            found = [None]
    else:
        found = [txn.newest(compare.key)]
    if compare.target == "value":
        return all(kv is not None and test(getattr(txn.complete(kv), "value", None), compare.operand) for kv in found)
    get = _TARGETS[compare.target]
    return all(test(get(kv) if kv is not None else 0, compare.operand) for kv in found)


def _check_shape(request: Txn, depth: int = 0) -> int:
    """Limits that need no state. Returns the bytes of keys and values."""
    if max(len(request.compares), len(request.then), len(request.otherwise)) > MAX_TXN_OPS:
        raise TooManyOps()
    size = 0
    for compare in request.compares:
        if not compare.key:
            raise EmptyKey()
        size += len(compare.key) + (len(compare.operand) if isinstance(compare.operand, bytes) else 8)
    for branch in (request.then, request.otherwise):
        for op in branch:
            if isinstance(op, Txn):
                if depth > 64:
                    raise TooManyOps()
                size += _check_shape(op, depth + 1)
                continue
            if not op.key:
                raise EmptyKey()
            size += len(op.key)
            if isinstance(op, Put):
                if op.ignore_value and op.value:
                    raise ValueProvided()
                if op.ignore_lease and op.lease:
                    raise LeaseProvided()
                size += len(op.value)
            elif isinstance(op, Range):
                check_sort(op)
        check_intervals(branch)
    return size


def check_sort(op: Range) -> None:
    if op.sort_target not in _SORTS or op.sort_order not in ("none", "ascend", "descend"):
        raise InvalidSort()


def check_intervals(ops: Sequence[Op]) -> tuple[set[bytes], list[tuple[bytes, bytes]]]:
    """No key may be put twice, nor put and deleted, by operations that can run together. Returns puts and deletes.

    As etcd judges: the branches of a nested transaction exclude one another as far as puts go; a nested put is held
    against deletes up to its place only, and a delete of "all keys from here on" against nothing.
    """
    deletes = [(op.key, op.end) for op in ops if isinstance(op, Delete)]
    puts: set[bytes] = set()
    for op in ops:
        if isinstance(op, Txn):
            then_puts, then_deletes = check_intervals(op.then)
            else_puts, else_deletes = check_intervals(op.otherwise)
            nested = then_puts | else_puts
            if nested & puts or any(_deleted(key, deletes) for key in nested):
                raise DuplicateKey()
            deletes += then_deletes + else_deletes
            puts |= nested
    for op in ops:
        if isinstance(op, Put):
            if op.key in puts or _deleted(op.key, deletes):
                raise DuplicateKey()
            puts.add(op.key)
    return puts, deletes


def _deleted(key: bytes, deletes: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(key == start if not end else start <= key < end for start, end in deletes)


def _choose(txn: Transaction, request: Txn, path: list[bool]) -> None:
    """Decide every branch, nested ones too, before anything is changed (as etcd does)."""
    holds = all(_holds(txn, compare) for compare in request.compares)
    path.append(holds)
    for op in request.then if holds else request.otherwise:
        if isinstance(op, Txn):
            _choose(txn, op, path)


def _check_ops(txn: Transaction, request: Txn, path: list[bool]) -> None:
    for op in request.then if path.pop(0) else request.otherwise:
        if isinstance(op, Txn):
            _check_ops(txn, op, path)
        elif isinstance(op, Put):
            _check_put(txn, op)
        elif isinstance(op, Range):
            check_revision(op.revision, txn.store)


def check_revision(revision: int, store: EmbeddedStore) -> None:
    if revision > store.revision:
        raise FutureRevision()
    if revision and revision < store.compact_revision:
        raise Compacted(store.compact_revision)


def _check_put(txn: Transaction, op: Put) -> None:
    if op.lease and not txn.store.lease_book.exists(op.lease):
        raise LeaseNotFound()
    if (op.ignore_value or op.ignore_lease) and txn.newest(op.key) is None:
        raise KeyNotFound()


def _run_put(txn: Transaction, op: Put) -> PutResult:
    value, lease = op.value, op.lease
    if op.ignore_value or op.ignore_lease:
        before = txn.complete(txn.newest(op.key))
        if before is None:
            raise KeyNotFound()
        if op.ignore_value:
            value = before.value
        if op.ignore_lease:
            lease = before.lease
    found = txn.put(op.key, value, lease)
    return PutResult(txn.revision, txn.complete(found) if op.prev_kv else None)


def _run_delete(txn: Transaction, op: Delete) -> DeleteResult:
    deleted = txn.delete(op.key, op.end)
    return DeleteResult(txn.answer_revision, len(deleted), txn.complete_all(deleted) if op.prev_kv else [])


def _run_txn(txn: Transaction, request: Txn, path: list[bool]) -> TxnResult:
    holds = path.pop(0)
    result = TxnResult(0, holds)  # revisions: see _settle
    for op in request.then if holds else request.otherwise:
        if isinstance(op, Put):
            result.responses.append(_run_put(txn, op))
        elif isinstance(op, Delete):
            result.responses.append(_run_delete(txn, op))
        elif isinstance(op, Range):
            result.responses.append(txn.range(op))
        else:
            result.responses.append(_run_txn(txn, op, path))
    return result


def _settle(result: TxnResult, revision: int) -> None:
    """Every answer in a transaction tells the revision at its end."""
    result.revision = revision
    for place, part in enumerate(result.responses):
        if isinstance(part, TxnResult):
            _settle(part, revision)
        elif isinstance(part, RangeResult):
            part.revision = revision
        else:
            result.responses[place] = part._replace(revision=revision)
