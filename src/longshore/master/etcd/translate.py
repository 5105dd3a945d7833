"""Between the data model's words and etcd's messages, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from longshore.master.etcd import model as m
from longshore.wire.etcd import (
    COMPARE_RESULTS,
    COMPARE_TARGETS,
    EVENT_DELETE,
    EVENT_PUT,
    SORT_ORDERS,
    SORT_TARGETS,
    etcd,
)

_OPERANDS = dict(zip(COMPARE_TARGETS, ("version", "create_revision", "mod_revision", "value", "lease"), strict=True))


def kv_message(kv: m.KeyValue) -> Any:
    return etcd.KeyValue(
        key=kv.key,
        value=kv.value,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        lease=kv.lease,
    )


def kv_of(message: Any) -> m.KeyValue:
    return m.KeyValue(
        message.key, message.value, message.create_revision, message.mod_revision, message.version, message.lease
    )


def event_message(event: m.Event) -> Any:
    found = etcd.Event(type=EVENT_PUT if event.type == m.PUT else EVENT_DELETE, kv=kv_message(event.kv))
    if event.prev_kv is not None:
        found.prev_kv.CopyFrom(kv_message(event.prev_kv))
    return found


def event_of(message: Any) -> m.Event:
    before = kv_of(message.prev_kv) if message.HasField("prev_kv") else None
    return m.Event(m.PUT if message.type == EVENT_PUT else m.DELETE, kv_of(message.kv), before)


def _word(words: Sequence[str], number: int) -> str:
    if not 0 <= number < len(words):
        raise m.InvalidSort()
    return words[number]


def range_of(r: Any) -> m.Range:
    """A RangeRequest as an operation. Raises InvalidSort."""
    return m.Range(
        r.key,
        r.range_end,
        max(r.revision, 0),
        r.limit,
        r.keys_only,
        r.count_only,
        cast(m.SortOrder, _word(SORT_ORDERS, r.sort_order)),
        cast(m.SortTarget, _word(SORT_TARGETS, r.sort_target)),
        r.min_mod_revision,
        r.max_mod_revision,
        r.min_create_revision,
        r.max_create_revision,
    )


def range_message(op: m.Range) -> Any:
    return etcd.RangeRequest(
        key=op.key,
        range_end=op.end,
        revision=op.revision,
        limit=op.limit,
        keys_only=op.keys_only,
        count_only=op.count_only,
        sort_order=SORT_ORDERS.index(op.sort_order),
        sort_target=SORT_TARGETS.index(op.sort_target),
        min_mod_revision=op.min_mod_revision,
        max_mod_revision=op.max_mod_revision,
        min_create_revision=op.min_create_revision,
        max_create_revision=op.max_create_revision,
    )


def put_of(r: Any) -> m.Put:
    return m.Put(r.key, r.value, r.lease, r.prev_kv, r.ignore_value, r.ignore_lease)


def put_message(op: m.Put) -> Any:
    return etcd.PutRequest(
        key=op.key,
        value=op.value,
        lease=op.lease,
        prev_kv=op.prev_kv,
        ignore_value=op.ignore_value,
        ignore_lease=op.ignore_lease,
    )


def txn_of(r: Any) -> m.Txn:
    """A TxnRequest as an operation. Raises StoreError for what it cannot say."""
    return m.Txn(
        [_compare_of(c) for c in r.compare], [_op_of(op) for op in r.success], [_op_of(op) for op in r.failure]
    )


def _compare_of(c: Any) -> m.Compare:
    if not 0 <= c.target < len(COMPARE_TARGETS) or not 0 <= c.result < len(COMPARE_RESULTS):
        raise m.StoreError("etcdserver: unknown comparison")
    target = COMPARE_TARGETS[c.target]
    operand = getattr(c, _OPERANDS[target])
    return m.Compare(cast(m.Target, target), c.key, COMPARE_RESULTS[c.result], operand, c.range_end)


def _op_of(op: Any) -> m.Op:
    kind = op.WhichOneof("request")
    if kind == "request_range":
        return range_of(op.request_range)
    if kind == "request_put":
        return put_of(op.request_put)
    if kind == "request_delete_range":
        r = op.request_delete_range
        return m.Delete(r.key, r.range_end, r.prev_kv)
    if kind == "request_txn":
        return txn_of(op.request_txn)
    raise m.EmptyKey()


def txn_message(compares: Sequence[m.Compare], then: Sequence[m.Op], otherwise: Sequence[m.Op]) -> Any:
    return etcd.TxnRequest(
        compare=[_compare_message(c) for c in compares],
        success=[_op_message(op) for op in then],
        failure=[_op_message(op) for op in otherwise],
    )


def _compare_message(c: m.Compare) -> Any:
    found = etcd.Compare(
        result=COMPARE_RESULTS.index(c.op), target=COMPARE_TARGETS.index(c.target), key=c.key, range_end=c.end
    )
    setattr(found, _OPERANDS[c.target], c.operand)
    return found


def _op_message(op: m.Op) -> Any:
    if isinstance(op, m.Range):
        return etcd.RequestOp(request_range=range_message(op))
    if isinstance(op, m.Put):
        return etcd.RequestOp(request_put=put_message(op))
    if isinstance(op, m.Delete):
        return etcd.RequestOp(
            request_delete_range=etcd.DeleteRangeRequest(key=op.key, range_end=op.end, prev_kv=op.prev_kv)
        )
    return etcd.RequestOp(request_txn=txn_message(op.compares, op.then, op.otherwise))


def range_response(result: m.RangeResult) -> Any:
    """Without its header."""
    return etcd.RangeResponse(kvs=[kv_message(kv) for kv in result.kvs], more=result.more, count=result.count)


def put_response(result: m.PutResult) -> Any:
    found = etcd.PutResponse()
    if result.prev_kv is not None:
        found.prev_kv.CopyFrom(kv_message(result.prev_kv))
    return found


def delete_response(result: m.DeleteResult) -> Any:
    return etcd.DeleteRangeResponse(deleted=result.deleted, prev_kvs=[kv_message(kv) for kv in result.prev_kvs])


def txn_response(result: m.TxnResult) -> Any:
    """Responses inside carry the transaction's revision in their headers, as etcd's do."""
    found = etcd.TxnResponse(succeeded=result.succeeded)
    for part in result.responses:
        op = found.responses.add()
        if isinstance(part, m.RangeResult):
            op.response_range.CopyFrom(range_response(part))
            op.response_range.header.revision = result.revision
        elif isinstance(part, m.PutResult):
            op.response_put.CopyFrom(put_response(part))
            op.response_put.header.revision = result.revision
        elif isinstance(part, m.DeleteResult):
            op.response_delete_range.CopyFrom(delete_response(part))
            op.response_delete_range.header.revision = result.revision
        else:
            op.response_txn.CopyFrom(txn_response(part))
            op.response_txn.header.revision = result.revision
    return found


def range_result(r: Any, revision: int) -> m.RangeResult:
    return m.RangeResult(revision, [kv_of(kv) for kv in r.kvs], r.count, r.more)


def put_result(r: Any, revision: int) -> m.PutResult:
    return m.PutResult(revision, kv_of(r.prev_kv) if r.HasField("prev_kv") else None)


def delete_result(r: Any, revision: int) -> m.DeleteResult:
    return m.DeleteResult(revision, r.deleted, [kv_of(kv) for kv in r.prev_kvs])


def txn_result(r: Any, revision: int) -> m.TxnResult:
    found = m.TxnResult(revision, r.succeeded)
    for op in r.responses:
        kind = op.WhichOneof("response")
        if kind == "response_range":
            found.responses.append(range_result(op.response_range, revision))
        elif kind == "response_put":
            found.responses.append(put_result(op.response_put, revision))
        elif kind == "response_delete_range":
            found.responses.append(delete_result(op.response_delete_range, revision))
        elif kind == "response_txn":
            found.responses.append(txn_result(op.response_txn, revision))
    return found


_ERRORS: dict[str, type[m.StoreError]] = {
    kind.text: kind
    for kind in (
        m.Compacted, m.FutureRevision, m.LeaseNotFound, m.LeaseExists, m.LeaseTTLTooLarge, m.EmptyKey, m.KeyNotFound,
        m.ValueProvided, m.LeaseProvided, m.DuplicateKey, m.TooManyOps, m.InvalidSort, m.RequestTooLarge, m.NoSpace,
    )
}  # fmt: skip


def error_of(code: int, text: str) -> m.StoreError:
    """The error that a gRPC status stands for."""
    kind = _ERRORS.get(text)
    if kind is not None:
        return kind()
    if code == 8:
        # A message or a request that is larger than the server takes.
        return m.RequestTooLarge() if "larger than max" in text else m.NoSpace(text)
    if code in (1, 4, 14):
        # One beginning for all of them: whoever uses the store tells its errors from others by it.
        return m.Unavailable(text if text.startswith("etcdserver: ") else f"etcdserver: unavailable: {text}")
    found = m.StoreError(text)
    found.code = code
    return found
