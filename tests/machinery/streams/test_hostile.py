"""Clients that break the protocols: the session ends, the handler ends, nothing is left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from longshore.machinery.http import Client, Request, Response, Server
from longshore.machinery.streams import Options, Refused, accept_command, exit_status, serve_port_forward, spdy
from longshore.wire import spdy as wire
from longshore.wire import websocket as wsw

SPDY = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")]


class Place:
    def __init__(self) -> None:
        self.url = ""
        self.ended = asyncio.Event()
        self.client = Client()

    async def handle(self, request: Request) -> Response | None:
        try:
            if request.path == "/portforward":

                async def dial(port: int) -> object:
                    raise ConnectionRefusedError("connection refused")

                await serve_port_forward(request, dial)  # type: ignore[arg-type]
                return None
            command = await accept_command(request, Options(stdin=True, stdout=True, stderr=True))
            assert command.stdin
            async for _ in command.stdin:
                pass
            await command.finish(exit_status(0))
        except Refused as refused:
            return refused.response
        finally:
            self.ended.set()
        return None


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    place = Place()
    server = Server(place.handle)
    place.url = f"http://127.0.0.1:{await server.listen_tcp('127.0.0.1', 0)}"
    yield place
    await place.client.close()
    await server.close()


async def upgrade(place: Place, path: str = "/exec") -> tuple[object, object]:
    protocol = "portforward.k8s.io" if path == "/portforward" else "v4.channel.k8s.io"
    duplex, _ = await spdy.upgrade(place.client, place.url + path, [protocol])
    return duplex, wire.Sender()


def opening(sender: wire.Sender) -> bytes:
    kinds = ("error", "stdin", "stdout", "stderr")
    return b"".join(sender.syn_stream(2 * i + 1, {"streamType": k}) for i, k in enumerate(kinds))


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("seed", range(6))
async def test_noise_over_spdy(place: Place, begun: bool, seed: int) -> None:
    duplex, sender = await upgrade(place)
    noise = random.Random(seed).randbytes(4000)
    # a control frame of another version is never valid, so the noise always ends the session
    duplex.write((opening(sender) if begun else b"") + noise[: seed * 400] + b"\x80\x09\x00\x01" + noise)  # type: ignore[attr-defined, arg-type]
    duplex.write_eof()  # type: ignore[attr-defined]
    await asyncio.wait_for(place.ended.wait(), 10)
    duplex.abort()  # type: ignore[attr-defined]


async def test_a_client_that_goes_in_the_middle(place: Place) -> None:
    for octets in (b"", b"\x80\x03", opening(wire.Sender())[:40]):
        place.ended.clear()
        duplex, _ = await upgrade(place)
        duplex.write(octets)  # type: ignore[attr-defined]
        await duplex.drain()  # type: ignore[attr-defined]
        duplex.abort()  # type: ignore[attr-defined]
        await asyncio.wait_for(place.ended.wait(), 10)


async def test_streams_out_of_order_end_the_session(place: Place) -> None:
    duplex, sender = await upgrade(place)
    assert isinstance(sender, wire.Sender)
    duplex.write(sender.syn_stream(7, {"streamType": "error"}) + sender.syn_stream(3, {"streamType": "stdin"}))  # type: ignore[attr-defined]
    await asyncio.wait_for(place.ended.wait(), 10)


async def test_unknown_repeated_and_endless_streams_are_refused(place: Place) -> None:
    duplex, sender = await upgrade(place)
    assert isinstance(sender, wire.Sender)
    receiver = wire.Receiver()
    duplex.write(  # type: ignore[attr-defined]
        sender.syn_stream(1, {"streamType": "error"})
        + sender.syn_stream(3, {"streamType": "error"})
        + sender.syn_stream(5, {"streamType": "nonsense"})
        + sender.syn_stream(7, {})
        + b"".join(wire.data_frames(99, b"to nobody"))
        + wire.rst_stream(97, 1)
        + wire.ping(2)
        + wire.ping(1)
    )
    seen: list[wire.Event] = []
    while wire.Pinged(1) not in seen:
        seen += receiver.feed(await duplex.read())  # type: ignore[attr-defined]
    assert wire.Pinged(2) not in seen  # an id of the server's own is its own answer
    assert {e.stream for e in seen if isinstance(e, wire.Reset)} == {3, 5, 7}
    assert [e.stream for e in seen if isinstance(e, wire.Replied)] == [1]
    duplex.abort()  # type: ignore[attr-defined]


async def test_many_forwards_on_one_session(place: Place) -> None:
    duplex, sender = await upgrade(place, "/portforward")
    assert isinstance(sender, wire.Sender)
    for i in range(1500):
        for offset, kind in enumerate(("error", "data")):
            fields = {"streamType": kind, "port": "80", "requestID": str(i)}
            duplex.write(sender.syn_stream(4 * i + 2 * offset + 1, fields))  # type: ignore[attr-defined]
    receiver = wire.Receiver()
    told: dict[int, bytes] = {}
    ended: set[int] = set()
    while len(ended) < 3000:
        for event in receiver.feed(await asyncio.wait_for(duplex.read(), 20)):  # type: ignore[attr-defined]
            if isinstance(event, wire.Data):
                told[event.stream] = told.get(event.stream, b"") + event.data
                if event.fin:
                    ended.add(event.stream)
    assert sum(b"connection refused" in text for text in told.values()) == 1500
    duplex.abort()  # type: ignore[attr-defined]
    await asyncio.wait_for(place.ended.wait(), 10)


@pytest.mark.parametrize(
    "octets", [b"\xff" * 20, b"\x81\x05hello", b"\x82\xff" + b"\x7f" * 8 + b"abcd", b"\x88\x80abcd"]
)
async def test_noise_over_websocket(place: Place, octets: bytes) -> None:
    fields = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", wsw.new_key()),
        ("Sec-WebSocket-Protocol", "v5.channel.k8s.io"),
    ]
    _, duplex = await place.client.upgrade("GET", place.url + "/exec", headers=fields)
    assert duplex is not None
    duplex.write(octets)
    await asyncio.wait_for(place.ended.wait(), 10)
    duplex.abort()


async def test_channel_noise_is_read_over(place: Place) -> None:
    fields = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", wsw.new_key()),
        ("Sec-WebSocket-Protocol", "v5.channel.k8s.io"),
    ]
    _, duplex = await place.client.upgrade("GET", place.url + "/exec", headers=fields)
    assert duplex is not None
    for message in (b"", b"\x01for stdout", b"\x09x", b"\xff", b"\xff\x07", b"\x04{"):
        duplex.write(wsw.frame(wsw.BINARY, message, client=True))
    assert not place.ended.is_set()
    duplex.write(wsw.frame(wsw.BINARY, b"\xff\x00", client=True))  # stdin ends
    await asyncio.wait_for(place.ended.wait(), 10)
    duplex.abort()
