"""The forward protocol: every mode there and back, the handshake, and what hostile peers send."""

import gzip
import struct
import time

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshore.wire import forward

NOW = 1_700_000_000
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
RECORDS = st.dictionaries(st.text(max_size=20), st.recursive(SCALARS, lambda s: st.lists(s, max_size=3), max_leaves=6))
EVENTS = st.lists(st.tuples(st.integers(0, (2**32 - 1) * 10**9 + 999_999_999), RECORDS), max_size=8)


def received(data: bytes, **options) -> list[forward.Batch]:
    return forward.Server(**options).feed(data)


@given(EVENTS, st.sampled_from(["", "gzip", "zstd"]))
@settings(deadline=None)
def test_packed_events_come_back(events, compressed):
    chunk = forward.chunk_id()
    wire = forward.encode_batch(
        "app.web", forward.pack_entries(events), size=len(events), chunk=chunk, compressed=compressed
    )
    server, batches = forward.Server(), []
    for at in range(0, len(wire), 7):
        batches += server.feed(wire[at : at + 7])
    assert batches == [forward.Batch("app.web", events, chunk)]


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_anything_else_is_refused_in_words(data):
    try:
        received(data)
    except forward.ForwardError:
        pass


@given(
    st.recursive(SCALARS, lambda s: st.lists(s, max_size=4) | st.dictionaries(st.text(max_size=3), s), max_leaves=20)
)
@settings(deadline=None)
def test_any_value_is_a_message_or_refused(value):
    try:
        forward.decode_message(msgpack.unpackb(msgpack.packb(value), strict_map_key=False))
    except forward.ForwardError:
        pass


def test_modes_as_a_peer_writes_them():
    when = msgpack.ExtType(0, struct.pack(">II", NOW, 5))
    entries = msgpack.packb([NOW, {"a": 1}]) + msgpack.packb([when, {"a": 2}])
    batches = received(
        msgpack.packb(["message", NOW, {"a": 1}, {"chunk": "c"}])
        + msgpack.packb(["message", when, {"a": 1}])
        + msgpack.packb(None)
        + msgpack.packb(["forward", [[NOW, {"a": 1}], [when, {"a": 2}]], None])
        + msgpack.packb(["packed", entries])
        + msgpack.packb(["old", entries], use_bin_type=False)
        + msgpack.packb(["gzip", gzip.compress(entries[:11]) + gzip.compress(entries[11:]), {"compressed": "gzip"}])
        + msgpack.packb(["bit", [[[when, {"meta": 1}], {"a": 2}]]])
    )
    two = [(NOW * 10**9, {"a": 1}), (NOW * 10**9 + 5, {"a": 2})]
    assert [(b.tag, b.events, b.chunk) for b in batches] == [
        ("message", two[:1], "c"),
        ("message", [(NOW * 10**9 + 5, {"a": 1})], None),
        ("forward", two, None),
        ("packed", two, None),
        ("old", two, None),
        ("gzip", two, None),
        ("bit", two[1:], None),
    ]


def test_handshake_with_shared_key_and_user():
    server = forward.Server("receiver", shared_key="secret", users={"u": "p"})
    client = forward.Client("sender", shared_key="secret", username="u", password="p")
    client.feed(server.output())
    assert server.feed(client.output()) == []
    client.feed(server.output())
    assert server.ready and client.ready
    assert server.feed(forward.encode_batch("t", forward.pack_entries([(NOW, {})]), size=1))[0].tag == "t"
    assert client.feed(forward.encode_ack("abc")) == ["abc"]


@pytest.mark.parametrize(("key", "user", "password"), [("wrong", "u", "p"), ("secret", "u", "x"), ("secret", "no", "")])
def test_who_is_not_known_is_refused(key, user, password):
    server = forward.Server("receiver", shared_key="secret", users={"u": "p"})
    client = forward.Client("sender", shared_key=key, username=user, password=password)
    client.feed(server.output())
    server.feed(client.output() + msgpack.packb(["t", NOW, {}]))
    assert server.closing and not server.ready
    with pytest.raises(forward.AuthenticationFailed, match="mismatch"):
        client.feed(server.output())


def test_events_before_the_handshake_are_refused():
    server = forward.Server("receiver", shared_key="secret")
    with pytest.raises(forward.ForwardError, match="PING"):
        server.feed(msgpack.packb(["t", NOW, {}]))


@pytest.mark.parametrize(
    "data",
    [
        msgpack.packb(["t", gzip.compress(bytes(200_000)), {"compressed": "gzip"}]),
        msgpack.packb(["t", b"\x92\x01\x80\x92", {}]),
        msgpack.packb(["t", b"\xc1" * 3, {}]),
        msgpack.packb(["t", b"", {"compressed": "lzma"}]),
        msgpack.packb(["t", bytes(200_000)]),
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        msgpack.packb([1, NOW, {}]),
        msgpack.packb(["t", NOW, [1]]),
        msgpack.packb(["t", float("inf"), {}]),
        msgpack.packb(["t", [1, 2], {}]),
        msgpack.packb({"no": "array"}),
    ],
)
def test_bombs_and_nonsense_end_the_connection(data):
    with pytest.raises(forward.ForwardError):
        received(data, limit=100_000)


def test_time_of_now_survives():
    now = time.time_ns()
    assert forward.unpack_entries(forward.pack_entries([(now, {"k": b"\xff"})])) == [(now, {"k": b"\xff"})]
