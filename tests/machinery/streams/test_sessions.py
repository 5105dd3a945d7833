"""Sessions between our own ends; tests/clients has the ones with upstream's clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from longshore.machinery.errors import StatusError, forbidden
from longshore.machinery.http import Client, Request, Response, Server
from longshore.machinery.streams import (
    Options,
    Refused,
    RemoteCommand,
    RemoteSession,
    UpgradeError,
    accept_command,
    connect_command,
    connect_command_websocket,
    connect_port_forward,
    exit_code,
    exit_status,
    portforward,
    serve_port_forward,
    spdy,
    translate,
)
from longshore.wire import remotecommand as rc
from longshore.wire import websocket as wsw

ALL = Options(stdin=True, stdout=True, stderr=True)


def options_of(request: Request) -> Options:
    return Options(*(request.param(n) == "1" for n in ("stdin", "stdout", "stderr", "tty")))


def query(options: Options) -> str:
    return "&".join(f"{n}={int(getattr(options, n))}" for n in ("stdin", "stdout", "stderr", "tty"))


async def shout(command: RemoteCommand) -> None:
    """Echoes stdin in capitals, tells its length on stderr, ends with 3; or the first terminal size when there is one."""
    if command.options.tty:
        async for columns, rows in command.resize:
            assert command.stdout is not None
            command.stdout.write(f"{columns}x{rows}".encode())
            break
        await command.finish(exit_status(0))
        return
    total = 0
    assert command.stdin and command.stdout and command.stderr
    async for data in command.stdin:
        total += len(data)
        command.stdout.write(data.upper())
        await command.stdout.drain()
    command.stderr.write(str(total).encode())
    await command.finish(exit_status(3))


async def kubelet(request: Request) -> Response | None:
    if request.path == "/refuse":
        return Response(404, b"container not found\n")
    if request.path == "/forbid":
        error = forbidden("", "pods", "x", "no")
        return Response.json(error.status(), 403)
    try:
        if request.path == "/portforward":
            await serve_port_forward(request, lambda port: dial(port))
            return None
        await shout(await accept_command(request, options_of(request)))
    except Refused as refused:
        return refused.response
    return None


class Far:
    """A server in a pod: says hello, then gives back what it hears, once."""

    def __init__(self) -> None:
        self.out: asyncio.Queue[bytes] = asyncio.Queue()
        self.out.put_nowait(b"hello ")

    async def read(self, n: int = 65536) -> bytes:
        return await self.out.get()

    def write(self, data: bytes) -> None:
        self.out.put_nowait(data[::-1])

    def writelines(self, data: list[bytes]) -> None:
        self.write(b"".join(data))

    async def drain(self) -> None:
        return

    def write_eof(self) -> None:
        self.out.put_nowait(b"")

    def close(self) -> None:
        self.out.put_nowait(b"")

    async def closed(self) -> None:
        return


async def dial(port: int) -> Far:
    if port == 1:
        raise ConnectionRefusedError("connection refused")
    return Far()


class Place:
    def __init__(self, url: str, client: Client) -> None:
        self.url, self.client = url, client


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    back = Server(kubelet)
    back_url = f"http://127.0.0.1:{await back.listen_tcp('127.0.0.1', 0)}"
    client = Client()

    async def apiserver(request: Request) -> Response | None:
        url = back_url + request.target
        try:
            if translate.wants_translation(request):
                await translate.remote_command(
                    request, options_of(request), lambda: connect_command(client, url, options_of(request))
                )
                return None
            if translate.wants_tunnel(request):
                await translate.port_forward(request, lambda: first(spdy.upgrade(client, url, ["portforward.k8s.io"])))
                return None
        except Refused as refused:
            return refused.response
        return Response(400)

    front = Server(apiserver)
    place = Place(back_url, client)
    place.front = f"http://127.0.0.1:{await front.listen_tcp('127.0.0.1', 0)}"  # type: ignore[attr-defined]
    yield place
    await client.close()
    await front.close()
    await back.close()


async def first(pair: Awaitable[tuple[object, str]]) -> object:
    return (await pair)[0]


Connect = Callable[[Place, str, Options], Awaitable[RemoteSession]]


async def over_spdy(place: Place, path: str, options: Options) -> RemoteSession:
    return await connect_command(place.client, f"{place.url}{path}?{query(options)}", options)


async def over_v5(place: Place, path: str, options: Options) -> RemoteSession:
    return await connect_command_websocket(place.client, f"{place.url}{path}?{query(options)}", options)


async def over_v5_translated(place: Place, path: str, options: Options) -> RemoteSession:
    url = f"{place.front}{path}?{query(options)}"  # type: ignore[attr-defined]
    return await connect_command_websocket(place.client, url, options)


WAYS = pytest.mark.parametrize("connect", [over_spdy, over_v5, over_v5_translated])


@WAYS
async def test_streams_exit_code_and_half_close(place: Place, connect: Connect) -> None:
    session = await connect(place, "/exec", ALL)
    assert session.stdin and session.stdout and session.stderr
    data = b"abcdefgh" * 40_000

    async def send() -> None:
        assert session.stdin
        for i in range(0, len(data), 10_000):
            session.stdin.write(data[i : i + 10_000])
            await session.stdin.drain()
        session.stdin.close()

    sending = asyncio.create_task(send())
    out = await asyncio.wait_for(session.stdout.read_all(1 << 24), 20)
    assert out == data.upper()
    assert await session.stderr.read_all() == str(len(data)).encode()
    status = await session.status()
    assert exit_code(status) == 3 and status["reason"] == "NonZeroExitCode"
    await sending
    session.close()


@WAYS
async def test_terminal_sizes(place: Place, connect: Connect) -> None:
    session = await connect(place, "/exec", Options(stdin=True, stdout=True, stderr=False, tty=True))
    session.resize(80, 24)
    assert session.stdout
    assert await asyncio.wait_for(session.stdout.read_all(), 10) == b"80x24"
    assert exit_code(await session.status()) == 0
    session.close()


@pytest.mark.parametrize("protocol", [rc.V4, rc.BASE64_V4, rc.V1, rc.BASE64_V1])
async def test_older_websocket_protocols(place: Place, protocol: str) -> None:
    options = Options(stdin=True, stdout=True, stderr=False, tty=True)
    session = await connect_command_websocket(
        place.client, f"{place.url}/exec?{query(options)}", options, protocols=[protocol]
    )
    assert session.protocol == protocol and session.stdout
    session.resize(1, 2)
    assert await asyncio.wait_for(session.stdout.read_all(), 10) == b"1x2"
    assert exit_code(await session.status()) == 0


async def test_refusals(place: Place) -> None:
    with pytest.raises(UpgradeError, match="unable to upgrade connection: container not found"):
        await over_spdy(place, "/refuse", ALL)
    with pytest.raises(StatusError, match='pods "x" is forbidden: no'):
        await over_spdy(place, "/forbid", ALL)
    bad = Options(stdin=True, stdout=True, stderr=True, tty=True)
    with pytest.raises(UpgradeError, match="tty and stderr cannot both be true"):
        await over_spdy(place, "/exec", bad)
    with pytest.raises(UpgradeError, match="unable to negotiate protocol: client supports"):
        await spdy.upgrade(place.client, f"{place.url}/exec?stdout=1", ["v9"])
    response = await place.client.request("POST", f"{place.url}/exec?stdout=1")
    assert (response.status, await response.read()) == (
        400,
        b"unable to upgrade: X-Stream-Protocol-Version is required\n",
    )


async def test_the_far_sides_refusal_is_told_on_the_error_channel(place: Place) -> None:
    session = await over_v5_translated(place, "/refuse", ALL)
    status = await session.status()
    assert status["message"] == "Internal error occurred: unable to upgrade connection: container not found"
    session = await over_v5_translated(place, "/forbid", ALL)
    assert (await session.status())["reason"] == "Forbidden"


async def test_a_client_that_goes_ends_stdin(place: Place) -> None:
    ended = asyncio.Event()

    async def wait(request: Request) -> None:
        command = await accept_command(request, ALL)
        assert command.stdin
        await command.closed()
        assert await command.stdin.read() == b""
        ended.set()

    server = Server(wait)
    url = f"http://127.0.0.1:{await server.listen_tcp('127.0.0.1', 0)}"
    for way in (over_spdy, over_v5):
        ended.clear()
        session = await way(Place(url, place.client), "/", ALL)
        session.close()
        await asyncio.wait_for(ended.wait(), 10)
    await server.close()


async def test_slow_reader_holds_a_session_back(place: Place) -> None:
    written = 0

    async def pour(request: Request) -> None:
        nonlocal written
        command = await accept_command(request, Options())
        assert command.stdout
        for _ in range(1000):
            command.stdout.write(bytes(65536))
            written += 65536
            await command.stdout.drain()
        await command.finish(exit_status(0))

    server = Server(pour)
    url = f"http://127.0.0.1:{await server.listen_tcp('127.0.0.1', 0)}"
    session = await over_spdy(Place(url, place.client), "/", Options())
    before = -1
    while before != written:
        before = written
        await asyncio.sleep(0.2)
    assert written < 32 * 1024 * 1024
    assert session.stdout
    assert len(await session.stdout.read_all(1 << 27)) == 65536 * 1000
    session.close()
    await server.close()


@pytest.mark.parametrize("tunnel", [False, True])
async def test_port_forward(place: Place, tunnel: bool) -> None:
    if tunnel:
        forwarder = await portforward.connect_tunnel(place.client, f"{place.front}/portforward")  # type: ignore[attr-defined]
    else:
        forwarder = await connect_port_forward(place.client, f"{place.url}/portforward")
    for word in (b"abc", b"def"):
        data, error = await forwarder.open(80)
        data.write(word)
        assert await data.read() == b"hello "
        assert await data.read() == word[::-1]
        data.close()
        assert await data.read_all() == b""
        assert await error.read_all() == b""
    data, error = await forwarder.open(1)
    assert b"an error occurred forwarding 1: connection refused" in await error.read_all()
    with pytest.raises(ConnectionError):
        await forwarder.session.open({"streamType": "data", "port": "0"})
    forwarder.close()


async def test_port_forward_over_websocket_channels(place: Place) -> None:
    from longshore.machinery.streams import websocket

    _, socket = await websocket.connect(place.client, f"{place.url}/portforward?port=80&port=1", ["v4.channel.k8s.io"])
    assert socket is not None
    socket.send(b"\x00abc")
    got: dict[int, bytes] = {}
    while len(got.get(0, b"")) < 11 or len(got.get(3, b"")) < 10:
        message = await asyncio.wait_for(socket.receive(), 10)
        assert message is not None
        got[message.data[0]] = got.get(message.data[0], b"") + message.data[1:]
    assert got[0] == b"\x50\x00hello cba" and got[1] == b"\x50\x00" and got[2] == b"\x01\x00"
    assert got[3].startswith(b"\x01\x00an error occurred forwarding 1")
    socket.stream.close()


async def test_hostile_websocket_handshakes(place: Place) -> None:
    base = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
    good = [("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", wsw.new_key())]
    for headers, code in (
        (base, 400),
        ([*base, ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "x")], 400),
        ([*base, *good, ("Sec-WebSocket-Protocol", "nonsense")], 403),
    ):
        response, socket = await place.client.upgrade("GET", f"{place.url}/exec?stdout=1", headers=headers)
        assert socket is None and response.status == code
