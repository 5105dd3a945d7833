"""Certificates in files are read again when they are replaced; their dates are read without a library."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import pytest

from longshore.client import config as client_config
from longshore.client.resources import NODES
from longshore.client.rest import Client
from longshore.machinery import pki, renewal
from longshore.machinery.http import Client as HTTPClient
from longshore.machinery.http import Request, Response, Server, client_context, server_context

DAY = 86400.0


async def until(check, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.01)


@pytest.fixture
async def following():
    task = asyncio.create_task(renewal.follow())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("days", [0.01, 10, 365, 40000])
def test_dates_are_those_that_cryptography_reads(days: float) -> None:
    from cryptography import x509

    pem = pki.issue(pki.make_ca(days=60000), "who", client=True, days=days).certificate
    found = x509.load_pem_x509_certificate(pem)
    begin, end = pki.validity(pem)
    assert (begin, end) == (found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())
    assert begin < pki.due(pem) < end
    for broken in (b"", b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", pem[:200]):
        with pytest.raises(ValueError):
            pki.validity(broken)


def test_what_is_near_its_end_is_issued_anew(tmp_path: Path) -> None:
    ca = pki.make_ca()
    first = pki.ensure_issued(tmp_path, "a", ca, "a", client=True)
    assert pki.ensure_issued(tmp_path, "a", ca, "a", client=True) == first
    pki.issue(ca, "a", client=True, days=60 / DAY).write(tmp_path / "a.crt", tmp_path / "a.key")
    again = pki.ensure_issued(tmp_path, "a", ca, "a", client=True)
    assert pki.validity(again.certificate)[1] > time.time() + 300 * DAY
    assert pki.ensure_issued(tmp_path, "a", ca, "a", client=True, names=["b"]) != again


async def test_a_server_and_its_clients_go_on_under_new_certificates(tmp_path: Path, following: None) -> None:
    ca = pki.make_ca()
    (tmp_path / "ca.crt").write_bytes(ca.certificate)

    def issue(name: str, **fields) -> pki.KeyPair:
        pair = pki.issue(ca, name, server=True, client=True, names=["127.0.0.1"], **fields)
        pair.write(tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
        return pair

    issue("server")
    seen: list[str] = []

    def answer(request: Request) -> Response:
        assert request.peer.certificate
        seen.append(request.peer.certificate["serialNumber"])
        return Response(200, b'{"kind": "Node", "metadata": {"name": "n"}}', content_type="application/json")

    tls = server_context(tmp_path / "server.crt", tmp_path / "server.key", client_ca=tmp_path / "ca.crt", require=True)
    server = Server(answer)
    port = await server.listen_tcp("127.0.0.1", 0, ssl=tls)
    url = f"https://127.0.0.1:{port}"
    plain_pair = issue("plain")
    plain = HTTPClient(
        ssl=client_context(ca=tmp_path / "ca.crt", certificate=tmp_path / "plain.crt", key=tmp_path / "plain.key")
    )
    kubeconfig = tmp_path / "api.kubeconfig"
    pki.write_kubeconfig(kubeconfig, pki.kubeconfig(url, ca.certificate, client=issue("api")))
    api = Client(client_config.load(kubeconfig))
    try:
        await (await plain.request("GET", url)).read()
        await api.get(NODES, "n")
        first = list(seen)

        async def shown() -> str:
            return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))

        # One half of a pair is not taken: the other one comes.
        fresh = pki.issue(ca, "server", server=True, names=["127.0.0.1"])
        pki.write_file(tmp_path / "server.key", fresh.key, 0o600)
        pki.write_file(tmp_path / "server.crt", fresh.certificate, 0o644)

        renewed = pki.KeyPair(issue("plain").certificate, b"")
        assert renewed.certificate != plain_pair.certificate
        pki.write_kubeconfig(kubeconfig, pki.kubeconfig(url, ca.certificate, client=issue("api")))

        async def known_anew() -> bool:
            await (await plain.request("GET", url)).read()
            await api.get(NODES, "n")
            return not {*seen[-2:]} & {*first}

        await until(known_anew)
        context = client_context(ca=tmp_path / "ca.crt", certificate=tmp_path / "api.crt", key=tmp_path / "api.key")
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        assert der == ssl.PEM_cert_to_DER_cert(fresh.certificate.decode())
    finally:
        await api.close()
        await plain.close()
        await server.close()


class Owner:
    """Somebody who reads files."""


async def test_every_way_in_which_a_file_is_replaced(tmp_path: Path, following: None) -> None:
    plain, (one, two) = tmp_path / "plain", (tmp_path / "v1", tmp_path / "v2")
    plain.write_text("a")
    for folder in (one, two):
        folder.mkdir()
        (folder / "key").write_text(folder.name)
    data, linked = tmp_path / "..data", tmp_path / "key"
    data.symlink_to("v1")
    linked.symlink_to("..data/key")
    seen: asyncio.Queue[str] = asyncio.Queue()
    owner = Owner()

    async def changed(of: Owner) -> None:
        assert of is owner
        await seen.put(f"{plain.read_text()} {linked.read_text()}")
        raise RuntimeError("the next change is told nevertheless")

    async def next_is(content: str) -> None:
        async with asyncio.timeout(10):
            while await seen.get() != content:
                pass

    renewal.hold(owner, [plain, linked], changed, loop=asyncio.get_running_loop())
    plain.write_text("b")
    await next_is("b v1")
    (tmp_path / "new").write_text("c")
    (tmp_path / "new").rename(plain)
    await next_is("c v1")
    (tmp_path / "next").symlink_to("v2")
    (tmp_path / "next").rename(data)
    await next_is("c v2")
    plain.unlink()
    plain.write_text("d")
    await next_is("d v2")
    renewal.release(owner)
    assert renewal.files_of(owner) == ()


async def test_what_belongs_to_another_loop_is_left_to_it(tmp_path: Path, following: None) -> None:
    file, here, elsewhere = tmp_path / "file", Owner(), Owner()
    file.write_text("a")
    seen: list[Owner] = []
    other = asyncio.new_event_loop()
    renewal.hold(elsewhere, [file], seen.append, loop=other)
    renewal.hold(here, [file], seen.append)
    file.write_text("b")

    async def told() -> bool:
        return bool(seen)

    try:
        await until(told)
        assert seen == [here]
    finally:
        renewal.release(elsewhere)
        other.close()
