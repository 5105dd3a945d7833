"""The client side: pool, retries, timeouts, TLS, upgrades, hostile answers."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from longshore.machinery.http import (
    Client,
    ConnectError,
    ProtocolError,
    Request,
    Response,
    Server,
    client_context,
    server_context,
    tunnel,
)


async def scripted(*answers: bytes) -> tuple[asyncio.Server, str, list[bytes]]:
    """A server that gives each connection one of `answers` and then closes it."""
    left = list(answers)
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(left.pop(0))
            await writer.drain()
        except (asyncio.IncompleteReadError, IndexError):
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen


async def test_connections_are_kept() -> None:
    peers = set()

    def handler(request: Request) -> Response:
        peers.add(request.peer.address)
        return Response(200, b"x")

    server = Server(handler)
    port = await server.listen_tcp("127.0.0.1", 0)
    async with Client() as client:
        for _ in range(5):
            assert await (await client.request("GET", f"http://127.0.0.1:{port}/a?b=c")).read() == b"x"
        assert len(peers) == 1
        await asyncio.gather(*(client.request("GET", f"http://127.0.0.1:{port}/") for _ in range(4)))
    await server.close()


async def test_an_answer_is_its_own_though_its_connection_serves_the_next() -> None:
    def handler(request: Request) -> Response:
        return Response(200, request.path.encode() * 100_000)

    server = Server(handler)
    port = await server.listen_tcp("127.0.0.1", 0)
    async with Client() as client:
        urls = [f"http://127.0.0.1:{port}/{n}" for n in range(4)]
        answers = []
        for url in urls:
            answers.append(await client.request("GET", url))
            await asyncio.sleep(0.02)  # the body comes whole, and the connection is free before anybody has read it
        unread = await client.request("GET", urls[0])
        await unread.close()
        pieces = [piece async for piece in answers[0].chunks()]
        assert b"".join(pieces) == b"/0" * 100_000
        assert [await answer.read() for answer in answers[1:]] == [b"/%d" % n * 100_000 for n in range(1, 4)]
    await server.close()


async def test_limit_per_host() -> None:
    now = most = 0

    async def handler(request: Request) -> Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return Response(200, b"x")

    server = Server(handler)
    port = await server.listen_tcp("127.0.0.1", 0)

    async def one(client: Client) -> bytes:
        return await (await client.request("GET", f"http://127.0.0.1:{port}/")).read()

    async with Client(limit_per_host=2) as client:
        await asyncio.wait_for(asyncio.gather(*(one(client) for _ in range(7))), 10)
    assert most == 2
    await server.close()


async def test_a_dead_kept_connection_is_replaced_for_safe_methods_only() -> None:
    # keep-alive is promised, but the second request on the connection meets its end
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        try:
            await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with Client() as client:
        for _ in range(3):
            assert await (await client.request("GET", url)).read() == b"x"
        with pytest.raises(ProtocolError):
            await client.request("POST", url)
    server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense that is not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tcp\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_hostile_heads(answer: bytes) -> None:
    server, url, _ = await scripted(answer)
    async with Client() as client:
        with pytest.raises(ProtocolError):
            await client.request("GET", url)
    server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab",
    ],
)
async def test_cut_bodies(answer: bytes) -> None:
    server, url, _ = await scripted(answer)
    async with Client() as client:
        response = await client.request("GET", url)
        with pytest.raises(ProtocolError):
            await response.read()
    server.close()


async def test_body_to_the_end_of_the_connection_and_early_hints() -> None:
    server, url, seen = await scripted(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.0 200 Fine\r\n\r\nall of it")
    async with Client(headers=[("X-A", "b")]) as client:
        response = await client.request("GET", url + "/p?q")
        assert (response.status, response.reason, await response.read()) == (200, "Fine", b"all of it")
    assert seen[0].startswith(b"GET /p?q HTTP/1.1\r\nHost: 127.0.0.1:") and b"X-A: b" in seen[0]
    server.close()


async def test_refused() -> None:
    async with Client() as client:
        with pytest.raises(ConnectError, match=r"dial tcp 127.0.0.1:1: connect: connection refused"):
            await client.request("GET", "http://127.0.0.1:1/")
    async with Client(unix=Path("/nonexistent.sock")) as client:
        with pytest.raises(ConnectError, match=r"dial unix /nonexistent\.sock: connect: no such file or directory"):
            await client.request("GET", "http://x/")


async def test_timeout() -> None:
    async def never(request: Request) -> Response:
        await asyncio.sleep(60)
        return Response()

    server = Server(never)
    port = await server.listen_tcp("127.0.0.1", 0)
    async with Client() as client:
        with pytest.raises(TimeoutError):
            await client.request("GET", f"http://127.0.0.1:{port}/", timeout=0.05)
    await server.close()


async def test_expect_continue_spares_a_refused_body() -> None:
    asked = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal asked
        asked = True
        yield b"x"

    server = Server(lambda request: Response(403))
    port = await server.listen_tcp("127.0.0.1", 0)
    async with Client() as client:
        response = await client.request(
            "POST", f"http://127.0.0.1:{port}/", headers=[("Expect", "100-continue")], body=body()
        )
        assert response.status == 403 and not asked
    await server.close()


async def test_a_failing_body_source_cuts_the_request() -> None:
    got: list[object] = []

    async def handler(request: Request) -> Response:
        try:
            await request.read(1 << 20)
        except ConnectionError as error:
            got.append(error)
            raise
        return Response()

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        raise ValueError("no more")

    server = Server(handler)
    port = await server.listen_tcp("127.0.0.1", 0)
    async with Client() as client:
        with pytest.raises(ValueError, match="no more"):
            await client.request("POST", f"http://127.0.0.1:{port}/", body=body())
    await asyncio.sleep(0.05)
    assert got
    await server.close()


async def test_upgrade_through_a_tunnel() -> None:
    async def shout(request: Request) -> Response | None:
        if not request.wants_upgrade:
            return Response(400, b"no")
        duplex = await request.upgrade()
        while data := await duplex.read():
            duplex.write(data.upper())
        duplex.write(b"!")
        return None

    back = Server(shout)
    back_port = await back.listen_tcp("127.0.0.1", 0)
    inner = Client()

    async def proxy(request: Request) -> Response | None:
        response, far = await inner.upgrade(
            "POST", f"http://127.0.0.1:{back_port}/", headers=[("Connection", "Upgrade"), ("Upgrade", "tcp")]
        )
        assert far is not None and response.status == 101
        await tunnel(await request.upgrade(), far)
        return None

    front = Server(proxy)
    port = await front.listen_tcp("127.0.0.1", 0)
    async with Client() as client:
        response, duplex = await client.upgrade(
            "POST", f"http://127.0.0.1:{port}/", headers=[("Connection", "Upgrade"), ("Upgrade", "tcp")]
        )
        assert response.status == 101 and response.headers.get("Upgrade") == "tcp" and duplex is not None
        duplex.write(b"x" * 1_000_000)
        duplex.write_eof()
        out = b"".join([piece async for piece in duplex])
        assert out == b"X" * 1_000_000 + b"!"
        response, none = await client.upgrade("POST", f"http://127.0.0.1:{back_port}/")
        assert none is None and response.status == 400 and await response.read() == b"no"
    await inner.close()
    await front.close()
    await back.close()


def _authority(folder: Path) -> dict[str, Path]:
    now = datetime.datetime.now(datetime.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])

    def build(name: x509.Name, key: ec.EllipticCurvePrivateKey, ca: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        return builder.sign(ca_key, hashes.SHA256())

    out = {"ca": folder / "ca.crt"}
    out["ca"].write_bytes(build(ca_name, ca_key, True).public_bytes(serialization.Encoding.PEM))
    for who in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, who),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"),
            ]
        )
        out[who] = folder / f"{who}.pem"
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        out[who].write_bytes(pem + build(name, key, False).public_bytes(serialization.Encoding.PEM))
    return out


@pytest.mark.parametrize("loops", ["asyncio", "uvloop"])
def test_tls_with_and_without_client_certificate(tmp_path: Path, loops: str) -> None:
    files = _authority(tmp_path)

    async def run() -> None:
        seen: list[object] = []

        async def handler(request: Request) -> Response:
            seen.append(request.peer.certificate)
            return Response(200, [b"x" * 70_000] * 50 if request.path == "/big" else await request.read(1 << 24))

        server = Server(handler)
        context = server_context(files["server"], files["server"], client_ca=files["ca"])
        port = await server.listen_tcp("127.0.0.1", 0, ssl=context)
        url = f"https://localhost:{port}/"
        shown = client_context(ca=files["ca"], certificate=files["client"])
        async with Client(ssl=shown) as client:
            assert len(await (await client.request("GET", url + "big")).read()) == 3_500_000
            assert await (await client.request("PUT", url, body=b"y" * 3_000_000)).read() == b"y" * 3_000_000
        async with Client(ssl=client_context(ca=files["ca"])) as client:
            await (await client.request("GET", url)).read()
        async with Client(ssl=client_context()) as client:
            with pytest.raises(ConnectError, match="failed to verify certificate"):
                await client.request("GET", url)
        await server.close()
        certificate, _, nobody = seen
        assert isinstance(certificate, dict)
        assert {"organizationName": "system:masters"} in [dict(part) for part in certificate["subject"]]
        assert nobody is None

    if loops == "uvloop":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    else:
        asyncio.run(run())


async def test_the_end_of_an_upgraded_tls_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Either side may end it; TLS knows no half-closed connection, so neither side says that it keeps its half."""
    files = _authority(tmp_path)
    ends: list[bytes] = []

    async def handler(request: Request) -> None:
        duplex = await request.upgrade(101, (("Upgrade", "tcp"), ("Connection", "upgrade")))
        if request.path == "/server":
            duplex.write(b"bye")
            duplex.close()
            return
        while data := await duplex.read():
            ends.append(data)
        ends.append(b"")

    server = Server(handler)
    port = await server.listen_tcp("127.0.0.1", 0, ssl=server_context(files["server"], files["server"]))
    fields = (("Upgrade", "tcp"), ("Connection", "upgrade"))
    async with Client(ssl=client_context(ca=files["ca"])) as client:
        _, duplex = await client.upgrade("POST", f"https://localhost:{port}/client", headers=fields)
        assert duplex is not None
        duplex.write(b"hello")
        duplex.close()
        await duplex.closed()
        _, duplex = await client.upgrade("POST", f"https://localhost:{port}/server", headers=fields)
        assert duplex is not None
        assert await duplex.read() == b"bye" and await duplex.read() == b""
        await duplex.closed()
        async with asyncio.timeout(5):
            while ends[-1:] != [b""]:
                await asyncio.sleep(0.01)
    await server.close()
    assert ends == [b"hello", b""]
    assert not [r for r in caplog.records if "eof_received" in r.getMessage()]


def test_server_context_requires(tmp_path: Path) -> None:
    files = _authority(tmp_path)
    context = server_context(files["server"], files["server"], client_ca=files["ca"], require=True)
    assert context.verify_mode is ssl.CERT_REQUIRED


async def test_plain_http_where_tls_was_expected_is_told_in_gos_words() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    client = Client(ssl=ssl.create_default_context())
    try:
        with pytest.raises(ConnectError, match=r"^http: server gave HTTP response to HTTPS client$"):
            await client.request("GET", f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    finally:
        await client.close()
        server.close()
