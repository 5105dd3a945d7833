"""Whatever comes in, in whatever pieces: answers in order, no exception, never two meanings of one octet."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshore.machinery.http import Request, Response, Server
from longshore.machinery.http.body import BodyError, ChunkedBody
from longshore.machinery.http.connection import Connection


class Wire:
    """A transport that remembers what was written."""

    def __init__(self) -> None:
        self.out = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.out += data

    def writelines(self, data: list[bytes]) -> None:
        self.out += b"".join(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        return

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


async def handler(request: Request) -> Response:
    if request.path == "/skip":
        return Response(200, b"skipped")
    body = await request.read(1000)
    return Response(200, request.method.encode() + b" " + request.path.encode("utf-8", "surrogateescape") + b" " + body)


async def drive(octets: bytes, step: int) -> bytes:
    server = Server(handler)
    connection, wire = Connection(server), Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]
    for i in range(0, len(octets), step):
        if wire.closed:
            break
        connection.data_received(octets[i : i + step])
        if i % (step * 3) == 0:
            await asyncio.sleep(0)
    for _ in range(60):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    await asyncio.sleep(0)
    return wire.out


paths = st.text("abc%/?.", max_size=8)
bodies = st.binary(max_size=40)


def chunked(body: bytes, cut: int) -> bytes:
    pieces = [body[i : i + cut] for i in range(0, len(body), cut)]
    return b"".join(b"%X;e=1\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\nT: x\r\n\r\n"


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A good request and the answer's body."""
    name, body = draw(st.sampled_from(["a", "b/c", "skip"])), draw(bodies)
    if draw(st.booleans()):
        head, sent = b"Content-Length: %d\r\n" % len(body), body
    else:
        head, sent = b"Transfer-Encoding: chunked\r\n", chunked(body, draw(st.integers(1, 50)))
    if draw(st.booleans()):
        head += b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    wanted = b"skipped" if name == "skip" else b"PUT /%b %b" % (name.encode(), body)
    return b"PUT /%b HTTP/1.1\r\nHost: a\r\n%b\r\n%b" % (name.encode(), head, sent), wanted


def split_answers(data: bytes) -> list[bytes]:
    """The bodies of the answers, by an independent parser."""
    found: list[bytes] = []

    class Taker:
        def on_message_begin(self) -> None:
            found.append(b"")

        def on_body(self, body: bytes) -> None:
            found[-1] += body

    if data:
        httptools.HttpResponseParser(Taker()).feed_data(data)
    return found


@given(st.lists(requests(), max_size=5), st.integers(1, 200))
@settings(deadline=None, max_examples=150)
def test_good_requests_in_any_pieces(given: list[tuple[bytes, bytes]], step: int) -> None:
    out = asyncio.run(drive(b"".join(r for r, _ in given), step))
    assert split_answers(out) == [wanted for _, wanted in given]


@given(st.lists(requests(), min_size=1, max_size=3), st.data(), st.integers(1, 200))
@settings(deadline=None, max_examples=200)
def test_damaged_requests_never_fail_the_server(
    given: list[tuple[bytes, bytes]], data: st.DataObject, step: int
) -> None:
    octets = bytearray(b"".join(r for r, _ in given))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(octets) - 1))
        octets[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not octets:
            return
    _quiet(bytes(octets), step)


@given(st.binary(max_size=300), st.integers(1, 50))
@settings(deadline=None, max_examples=150)
def test_noise_never_fails_the_server(octets: bytes, step: int) -> None:
    _quiet(octets, step)


def _quiet(octets: bytes, step: int) -> None:
    """Drives the server; anything logged is a failure."""
    records: list[logging.LogRecord] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    log = logging.getLogger("longshore.http")
    keeper = Keeper()
    log.addHandler(keeper)
    log.propagate = False
    try:
        out = asyncio.run(drive(octets, step))
    finally:
        log.removeHandler(keeper)
        log.propagate = True
    assert not records, records[0].getMessage()
    assert not out or out.startswith(b"HTTP/1.1 ")


@given(st.binary(max_size=60), st.integers(1, 20))
def test_chunked_noise(data: bytes, step: int) -> None:
    body = ChunkedBody()
    try:
        for i in range(0, len(data), step):
            body.feed(data[i : i + step])
    except BodyError:
        pass


@given(bodies, st.integers(1, 20), st.integers(1, 20), st.binary(max_size=10))
def test_chunked_round_trip(body: bytes, cut: int, step: int, after: bytes) -> None:
    octets = chunked(body, cut) + after
    decoder, out, rest = ChunkedBody(), b"", b""
    for i in range(0, len(octets), step):
        if decoder.done:
            rest += octets[i : i + step]
            continue
        pieces, left = decoder.feed(octets[i : i + step])
        out += b"".join(pieces)
        rest += left
    assert decoder.done and out == body and rest == after


def test_a_chunk_line_without_end_is_refused() -> None:
    with pytest.raises(BodyError):
        ChunkedBody().feed(b"0" * 5000)
