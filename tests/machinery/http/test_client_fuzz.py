"""Whatever a server answers, a client gets an answer or an error of its own kind, and never hangs."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from longshore.machinery.http import Client, ClientError
from longshore.machinery.http.client_connection import Connection


class Wire:
    """A transport that answers each request with the same octets, cut into pieces, and then ends."""

    def __init__(self, connection: Connection, octets: bytes, step: int) -> None:
        self.connection, self.octets, self.step = connection, octets, step
        self.closed = False

    def write(self, data: bytes) -> None:
        if b"\r\n\r\n" in data:
            asyncio.get_running_loop().call_soon(self._answer)

    def _answer(self) -> None:
        for i in range(0, len(self.octets), self.step):
            if not self.closed:
                self.connection.data_received(self.octets[i : i + self.step])
        if not self.closed:
            self.connection.eof_received()
            self.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class FakeClient(Client):
    def __init__(self, octets: bytes, step: int) -> None:
        super().__init__()
        self._octets, self._step = octets, step

    async def _connect(self, origin: Any) -> Connection:
        connection = Connection(lambda c: self._lost(origin, c))
        connection.connection_made(Wire(connection, self._octets, self._step))  # type: ignore[arg-type]
        return connection


async def ask(octets: bytes, step: int) -> tuple[int, bytes] | None:
    async with FakeClient(octets, step) as client:
        try:
            async with asyncio.timeout(5):
                response = await client.request("GET", "http://x/")
                return response.status, await response.read()
        except ClientError:
            return None


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """An answer and its body."""
    body = draw(st.binary(max_size=60))
    hints = b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n" * draw(st.integers(0, 2))
    form = draw(st.sampled_from(["length", "chunked", "end"]))
    if form == "length":
        return hints + b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), body
    if form == "end":
        return hints + b"HTTP/1.1 200 OK\r\n\r\n" + body, body
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
    return hints + b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n", body


@given(answers(), st.integers(1, 100))
@settings(deadline=None, max_examples=150)
def test_good_answers_in_any_pieces(answer: tuple[bytes, bytes], step: int) -> None:
    assert asyncio.run(ask(answer[0], step)) == (200, answer[1])


@given(answers(), st.data(), st.integers(1, 100))
@settings(deadline=None, max_examples=250)
def test_damaged_answers(answer: tuple[bytes, bytes], data: st.DataObject, step: int) -> None:
    octets = bytearray(answer[0])
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, max(0, len(octets) - 1)))
        octets[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    asyncio.run(ask(bytes(octets), step))


@given(st.binary(max_size=200), st.integers(1, 50))
@settings(deadline=None, max_examples=150)
def test_noise(octets: bytes, step: int) -> None:
    asyncio.run(ask(octets, step))
