from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.wire import websocket as ws


def test_accept_key_of_the_rfc() -> None:
    assert ws.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert ws.valid_key(ws.new_key()) and not ws.valid_key("abc")


def test_frames_of_the_rfc() -> None:
    client = ws.Receiver(client=True)
    assert client.feed(bytes.fromhex("810548656c6c6f")) == [ws.Message(b"Hello", True)]
    server = ws.Receiver(client=False)
    assert server.feed(bytes.fromhex("818537fa213d7f9f4d5158")) == [ws.Message(b"Hello", True)]
    assert client.feed(bytes.fromhex("010348656c") + bytes.fromhex("890548656c6c6f") + bytes.fromhex("80026c6f")) == [
        ws.Ping(b"Hello"),
        ws.Message(b"Hello", True),
    ]


@given(st.lists(st.binary(max_size=70000), max_size=4), st.booleans(), st.integers(1, 4000))
def test_round_trip_in_any_pieces(messages: list[bytes], client: bool, step: int) -> None:
    octets = b"".join(ws.frame(ws.BINARY, m, client=client) for m in messages)
    receiver = ws.Receiver(client=not client)
    events = [e for i in range(0, len(octets), step) for e in receiver.feed(octets[i : i + step])]
    assert events == [ws.Message(m) for m in messages]


@given(st.binary(max_size=300), st.booleans())
def test_hostile_octets_only_raise_the_protocols_error(data: bytes, client: bool) -> None:
    receiver = ws.Receiver(client=client, limit=1000)
    try:
        receiver.feed(data)
    except ws.WebSocketError as error:
        assert 1000 <= error.code < 1016


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        ("c10548656c6c6f", ws.PROTOCOL_ERROR),
        ("830548656c6c6f", ws.PROTOCOL_ERROR),
        ("818537fa213d7f9f4d5158", ws.PROTOCOL_ERROR),
        ("0905", ws.PROTOCOL_ERROR),
        ("897e0100", ws.PROTOCOL_ERROR),
        ("800161", ws.PROTOCOL_ERROR),
        ("0101618101", ws.PROTOCOL_ERROR),
        ("8101ff", ws.BAD_DATA),
        ("827f0000000100000000", ws.TOO_BIG),
        ("880103", ws.PROTOCOL_ERROR),
        ("880203ed", ws.PROTOCOL_ERROR),
    ],
)
def test_breaches(octets: str, code: int) -> None:
    with pytest.raises(ws.WebSocketError) as caught:
        ws.Receiver(client=True).feed(bytes.fromhex(octets))
    assert caught.value.code == code


def test_close() -> None:
    receiver = ws.Receiver(client=True)
    octets = ws.frame(ws.CLOSE, ws.close_payload(1000, "done"), client=False)
    assert receiver.feed(octets + ws.frame(ws.TEXT, b"late", client=False)) == [ws.Close(1000, "done")]
    assert receiver.closed
    assert len(ws.close_payload(1000, "é" * 100)) <= 125
