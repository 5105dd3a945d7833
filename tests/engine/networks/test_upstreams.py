"""Names that are asked of a container's nameservers or the host's, and from where."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from longshore.engine.networks import upstreams
from longshore.engine.networks.upstreams import Upstream
from longshore.machinery import netns
from longshore.machinery.netlink import Netlink
from longshore.wire import dns

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]
QUERY = dns.encode(dns.Message(7, dns.RD, questions=[dns.Question("name.example.", dns.A)]))


class Nameserver:
    """Answers every query at 127.0.0.1:53 of a namespace (None: our own) with one code."""

    def __init__(self, sandbox: Path | None, code: int) -> None:
        self.code, self.asked = code, 0
        self.udp = netns.make_socket(sandbox, socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.tcp = netns.make_socket(sandbox, socket.AF_INET, socket.SOCK_STREAM)
        for sock in (self.udp, self.tcp):
            sock.bind(("127.0.0.1", 53))

    def _answer(self, data: bytes) -> bytes:
        self.asked += 1
        query = dns.decode(data)
        return dns.encode(dns.Message(query.id, dns.QR, rcode=self.code, questions=query.questions))

    def _readable(self) -> None:
        data, peer = self.udp.recvfrom(4096)
        self.udp.sendto(self._answer(data), peer)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = self._answer(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        writer.write(len(answer).to_bytes(2, "big") + answer)
        writer.close()

    async def start(self) -> None:
        asyncio.get_running_loop().add_reader(self.udp, self._readable)
        self.server = await asyncio.start_server(self._stream, sock=self.tcp)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self.udp)
        self.udp.close()
        self.server.close()


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "ns"
    netns.create(path)
    with Netlink(path) as inside:
        inside.set_link(inside.index("lo"), up=True)
    yield path
    netns.delete(path)


@pytest.mark.parametrize("stream", [False, True])
async def test_servers_that_fail_are_passed_over(sandbox: Path, stream: bool) -> None:
    ours, theirs = Nameserver(None, dns.SERVFAIL), Nameserver(sandbox, dns.NXDOMAIN)
    await ours.start()
    await theirs.start()
    host, inside = Upstream("127.0.0.1", None), Upstream("127.0.0.1", sandbox)
    try:
        answer = await upstreams.ask([host, inside], QUERY, stream=stream)
        assert answer is not None and dns.decode(answer).rcode == dns.NXDOMAIN
        assert (ours.asked, theirs.asked) == (1, 1)
        assert await upstreams.ask([host], QUERY, stream=stream) is None
        # Nobody is there, and there is no way.
        away = [Upstream("127.0.0.2", sandbox), Upstream("192.0.2.1", sandbox), Upstream("2001:db8::1", sandbox)]
        answer = await upstreams.ask([*away, inside], QUERY, stream=stream)
        assert answer is not None
    finally:
        ours.stop()
        theirs.stop()


def test_who_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from longshore.engine.containers import files

    monkeypatch.setattr(files, "host_resolver", lambda: (["127.0.0.1", "192.0.2.1", "::1"], [], ["ndots:2"]))
    servers, options = upstreams.of([], tmp_path)
    assert [(s.address, s.sandbox) for s in servers] == [("127.0.0.1", None), ("192.0.2.1", tmp_path), ("::1", None)]
    assert options == ["ndots:2"]
    # What a container names is asked from where it is; never the resolver itself.
    assert upstreams.of(["127.0.0.11", "127.0.0.1"], tmp_path)[0] == [Upstream("127.0.0.1", tmp_path)]
