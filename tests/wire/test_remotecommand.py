from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.wire import portforward as pf
from longshore.wire import rawstream
from longshore.wire import remotecommand as rc


@given(st.sampled_from(rc.WEBSOCKET_SERVER_PROTOCOLS), st.integers(0, 4), st.binary(max_size=200))
def test_channel_messages_round_trip(protocol: str, channel: int, data: bytes) -> None:
    message, text = rc.encode(protocol, channel, data)
    assert rc.decode(protocol, message) == (channel, data)
    assert text == ("base64" in protocol)


@given(st.sampled_from(rc.WEBSOCKET_SERVER_PROTOCOLS), st.binary(max_size=20))
def test_hostile_messages(protocol: str, message: bytes) -> None:
    try:
        rc.decode(protocol, message)
    except rc.ChannelError:
        pass


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535))), st.integers(1, 30))
def test_sizes_in_any_pieces(sizes: list[tuple[int, int]], step: int) -> None:
    octets = b"".join(rc.size_message(*s) for s in sizes)
    parser = rc.SizeParser()
    assert [s for i in range(0, len(octets), step) for s in parser.feed(octets[i : i + step])] == sizes


@given(st.binary(max_size=50))
def test_hostile_sizes(data: bytes) -> None:
    try:
        rc.SizeParser().feed(data)
    except rc.ChannelError:
        pass


def test_a_size_that_never_ends_is_refused() -> None:
    with pytest.raises(rc.ChannelError):
        rc.SizeParser().feed(b'{"Width":' + b" " * 5000)


@pytest.mark.parametrize("protocol", [rc.V5, rc.V4])
def test_status(protocol: str) -> None:
    for code in (0, 1, 137):
        assert rc.exit_code(rc.parse_status(protocol, rc.status_payload(protocol, rc.exit_status(code)))) == code
    assert rc.exit_code(rc.parse_status(protocol, rc.status_payload(protocol, rc.failure("no such file")))) is None
    assert rc.parse_status(protocol, b"{")["status"] == "Failure"


def test_old_protocols_tell_failures_in_words() -> None:
    assert rc.status_payload(rc.V1, rc.exit_status(0)) == b""
    assert rc.parse_status(rc.V1, b"") == rc.SUCCESS
    assert rc.parse_status(rc.V1, b"x")["message"] == "Internal error occurred: x"


def test_options() -> None:
    assert rc.Options(stdin=True, stdout=True, stderr=False, tty=True).problem() == ""
    assert "tty and stderr" in rc.Options(tty=True).problem()
    assert "at least one" in rc.Options(stdout=False, stderr=False).problem()


def test_port_headers() -> None:
    assert pf.stream_port({"streamtype": ["data"], "port": ["80"], "requestid": ["7"]}) == ("data", 80, "7")
    for bad in (
        {},
        {"port": ["0"]},
        {"port": ["x"]},
        {"port": ["80"]},
        {"port": ["80"], "streamtype": ["x"]},
    ):
        with pytest.raises(pf.BadStream):
            pf.stream_port(bad)
    assert pf.parse_ports(["80,81", "82"]) == [80, 81, 82]
    for values in ([], ["0"], ["65536"], ["a"], ["1,"]):
        with pytest.raises(pf.BadStream):
            pf.parse_ports(values)


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=300))), st.integers(1, 200))
def test_raw_stream_in_any_pieces(frames: list[tuple[int, bytes]], step: int) -> None:
    octets = b"".join(rawstream.encode(*f) for f in frames)
    decoder = rawstream.Decoder()
    out: dict[int, bytes] = {}
    for i in range(0, len(octets), step):
        for stream, data in decoder.feed(octets[i : i + step]):
            out[stream] = out.get(stream, b"") + data
    want: dict[int, bytes] = {}
    for stream, data in frames:
        if data:
            want[stream] = want.get(stream, b"") + data
    assert out == want


@given(st.binary(max_size=40))
def test_hostile_raw_streams(data: bytes) -> None:
    try:
        rawstream.Decoder().feed(data)
    except rawstream.RawStreamError:
        pass
