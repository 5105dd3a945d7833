"""gRPC both ways over a unix socket: unary, streaming, errors, metadata."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from longshore.machinery.grpc import Client, RpcError, Server, Status, snake
from longshore.wire.protobuf import Schema

echo = Schema(
    "test.v1",
    """
service Echo: Say, Count(SayRequest)~SayResponse, Join(~SayRequest)SayResponse, Talk(~SayRequest)~SayResponse,
  Lost
enum Mood: CALM LOUD
SayRequest: 1 text string, 2 mood Mood, 3 labels {string:string}, 4 times *int64
SayResponse: 1 text string, 2 a SayRequest @pick, 3 b bytes @pick
LostRequest:
LostResponse:
""",
)


class Impl:
    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def say(self, request: Any, metadata: Any) -> Any:
        if request.text == "missing":
            raise RpcError(Status.NOT_FOUND, "no such word")
        if request.text == "bug":
            raise ValueError("boom")
        if request.text == "known":
            raise KeyError("k")
        return echo.SayResponse(text=request.text * 2 + metadata.get("x-tail", ""))

    async def count(self, request: Any) -> AsyncIterator[Any]:
        try:
            for number in request.times:
                yield echo.SayResponse(text=str(number))
            if request.mood == echo.LOUD:
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def join(self, requests: Any) -> Any:
        return echo.SayResponse(text=" ".join([r.text async for r in requests]))

    async def talk(self, requests: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield echo.SayResponse(text=request.text.upper())


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Impl, Client]]:
    impl = Impl()
    server = Server(
        (echo.Echo, impl),
        translate=lambda e: RpcError(Status.ABORTED, "translated") if isinstance(e, KeyError) else None,
    )
    await server.listen_unix(tmp_path / "s.sock")
    client = Client(echo.Echo, path=tmp_path / "s.sock", metadata=[("x-tail", "!")])
    yield impl, client
    client.close()
    await server.close()


def test_snake() -> None:
    assert snake("ListPodSandboxMetrics") == "list_pod_sandbox_metrics"
    assert snake("ImageFsInfo") == "image_fs_info"


async def test_unary_and_errors(pair: tuple[Impl, Client]) -> None:
    _, client = pair
    assert (await client.call("Say", text="ho")).text == "hoho!"
    for text, status, message in (
        ("missing", Status.NOT_FOUND, "no such word"),
        ("bug", Status.UNKNOWN, "boom"),
        ("known", Status.ABORTED, "translated"),
    ):
        with pytest.raises(RpcError) as caught:
            await client.call("Say", text=text)
        assert (caught.value.status, caught.value.message) == (status, message)
    with pytest.raises(RpcError) as caught:
        await client.call("Lost")
    assert caught.value.status is Status.UNIMPLEMENTED


async def test_calls_that_are_over_leave_little(pair: tuple[Impl, Client]) -> None:
    _, client = pair
    for _ in range(1200):
        await client.call("Say", text="ho")
    kept = [len(o) for o in gc.get_objects() if type(o).__name__ == "SizeLimitDict"]
    assert kept and max(kept) <= 1024


async def test_streams(pair: tuple[Impl, Client]) -> None:
    impl, client = pair
    assert [m.text async for m in client.stream("Count", times=[1, 2, 3])] == ["1", "2", "3"]
    impl.closed.clear()
    async for _ in (stream := client.stream("Count", times=[1], mood=echo.LOUD)):
        break
    await stream.aclose()
    async with asyncio.timeout(5):
        await impl.closed.wait()
    async with client.open("Talk") as talk:
        for word in ("a", "b"):
            await talk.send_message(echo.SayRequest(text=word))
            assert (await talk.recv_message()).text == word.upper()
        await talk.end()
    async with client.open("Join") as join:
        await join.send_message(echo.SayRequest(text="a"))
        await join.send_message(echo.SayRequest(text="b"), end=True)
        assert (await join.recv_message()).text == "a b"


async def test_server_absent_and_back(tmp_path: Path) -> None:
    client = Client(echo.Echo, path=tmp_path / "s.sock")
    with pytest.raises(RpcError) as caught:
        await client.call("Say", text="x")
    assert caught.value.status is Status.UNAVAILABLE
    for _ in range(2):
        server = Server((echo.Echo, Impl()))
        await server.listen_unix(tmp_path / "s.sock")
        assert (await client.call("Say", text="x")).text == "xx"
        await server.close()
        while client._channel._connected:
            await asyncio.sleep(0)
    client.close()


async def test_big_message(pair: tuple[Impl, Client]) -> None:
    _, client = pair
    assert len((await client.call("Say", text="x" * 5_000_000)).text) == 10_000_001


def test_schema_round_trip_and_refusals() -> None:
    message = echo.SayRequest(text="t", mood=echo.LOUD, labels={"a": "b"}, times=[1, 2])
    assert echo.SayRequest.FromString(message.SerializeToString()) == message
    pick = echo.SayResponse(a=message)
    pick.b = b"x"
    assert pick.WhichOneof("pick") == "b"
    assert echo.value_name("Mood", 1) == "LOUD" and echo.value_name("Mood", 9) == "9"
    with pytest.raises(AttributeError):
        _ = echo.Nothing
    for table in (" x", "a b: c", "M: 1 x", "service S: (", "plain"):
        with pytest.raises(ValueError):
            Schema("bad", table)


async def test_the_servers_end_ends_connections_and_calls(tmp_path: Path) -> None:
    impl = Impl()
    server = Server((echo.Echo, impl))
    await server.listen_unix(tmp_path / "s.sock")
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s.sock"))
    client = Client(echo.Echo, path=tmp_path / "s.sock")
    stream = client.stream("Count", times=[1], mood=echo.LOUD)
    assert (await anext(stream)).text == "1"
    await server.close()
    assert impl.closed.is_set()
    with pytest.raises(RpcError):
        await anext(stream)
    async with asyncio.timeout(5):
        while await reader.read(65536):
            pass
    writer.close()
    client.close()
