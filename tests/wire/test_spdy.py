from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.wire import spdy


def test_the_dictionary_is_the_drafts() -> None:
    # the DICTID that every SPDY/3 header stream begins with
    assert (len(spdy.DICTIONARY), zlib.adler32(spdy.DICTIONARY)) == (1423, 0xE3C6A7C2)


names = st.text("abcdefghij-", min_size=1, max_size=12)
headers = st.dictionaries(
    names, st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1, max_size=3), max_size=5
)


@given(st.lists(st.tuples(headers, st.binary(max_size=5000), st.booleans()), max_size=5), st.integers(1, 3000))
def test_round_trip_in_any_pieces(streams: list[tuple[dict[str, list[str]], bytes, bool]], step: int) -> None:
    sender, receiver = spdy.Sender(), spdy.Receiver()
    octets = b""
    for i, (fields, data, fin) in enumerate(streams):
        octets += sender.syn_stream(2 * i + 1, fields) + b"".join(spdy.data_frames(2 * i + 1, data, fin=fin))
        octets += sender.syn_reply(2 * i + 1, fields) + spdy.ping(i)
    events = [e for i in range(0, len(octets), step) for e in receiver.feed(octets[i : i + step])]
    for i, (fields, data, fin) in enumerate(streams):
        mine = [e for e in events if getattr(e, "stream", None) == 2 * i + 1]
        assert mine[0] == spdy.Opened(2 * i + 1, fields, False)
        assert mine[-1] == spdy.Replied(2 * i + 1, fields, False)
        pieces = [e for e in mine if isinstance(e, spdy.Data)]
        assert b"".join(p.data for p in pieces) == data
        assert [p.fin for p in pieces] == [False] * (len(pieces) - 1) + [fin]
    assert [e.id for e in events if isinstance(e, spdy.Pinged)] == list(range(len(streams)))


def test_large_data_is_cut_into_frames() -> None:
    data = bytes(3 * spdy.MAX_DATA + 5)
    events = spdy.Receiver().feed(b"".join(spdy.data_frames(7, data, fin=True)))
    assert sum(len(e.data) for e in events) == len(data)
    assert [e.fin for e in events] == [False] * (len(events) - 1) + [True]


@given(st.binary(max_size=200))
def test_hostile_octets_only_raise_the_protocols_error(data: bytes) -> None:
    try:
        spdy.Receiver().feed(data)
    except spdy.SpdyError:
        pass


@given(st.integers(0, 12), st.binary(max_size=100))
def test_hostile_control_frames(kind: int, body: bytes) -> None:
    try:
        spdy.Receiver().feed(spdy.control(kind, body))
    except spdy.SpdyError:
        pass


def test_header_bombs_are_refused() -> None:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, 15, 8, 0, spdy.DICTIONARY)
    block = squeezer.compress(bytes(50_000_000)) + squeezer.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(spdy.SpdyError, match="too long"):
        spdy.Receiver().feed(spdy.control(spdy.SYN_REPLY, b"\0\0\0\1" + block))
    with pytest.raises(spdy.SpdyError):
        spdy.Receiver().feed(spdy.control(spdy.SYN_STREAM, b"")[:4] + b"\0\xff\xff\xff")
