"""Names of containers in user-defined networks: a DNS server at 127.0.0.11 inside each container's namespace.

It is no process: its sockets are made inside the namespace and served by the engine's loop. It answers for the containers
that share a network with the asker; all else is asked of the resolvers of the container or of the host (see upstreams).
Queries to port 53 are translated to the sockets' own ports, so that a container may serve DNS itself.
Source: Docker documentation, "Embedded DNS server"; RFC 1035, RFC 7766.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.machinery import netns
from longshore.machinery.nftables import Nftables
from longshore.wire import dns

from . import upstreams

if TYPE_CHECKING:
    from .service import NetworkService

log = logging.getLogger("longshore.engine.networks")

ADDRESS = "127.0.0.11"
_TTL = 600
_MOST_QUERIES = 256
_TCP_IDLE = 30.0


@dataclass(eq=False)
class _Served:
    container: Any
    udp: socket.socket
    tcp: asyncio.Server
    upstreams: list[upstreams.Upstream]
    #: Names without a dot are the container's to complete with its search domains: nobody else is asked.
    ndots: bool
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Resolvers:
    """The resolvers of all running containers. Upstream servers are read when a container starts."""

    def __init__(self, networks: NetworkService) -> None:
        self._networks = networks
        self._served: dict[str, _Served] = {}

    async def serve(self, container: Any, sandbox: Path) -> None:
        """Serve names inside a container's namespace, if one of its networks has names. Safe to repeat."""
        if container.id in self._served or not any(s.get("DNSNames") for s in container.networks.values()):
            return
        loop = asyncio.get_running_loop()
        udp, listener = await loop.run_in_executor(None, _sockets, sandbox)
        own = container.host["Dns"] or self._networks.nameservers
        servers, options = await loop.run_in_executor(None, upstreams.of, own, sandbox)
        ndots = any(
            re.fullmatch(r"ndots:0*[1-9]\d*", option)
            for option in container.host.get("DnsOptions") or self._networks.dns_options or options
        )
        served: _Served

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._stream(served, reader, writer)

        server = await asyncio.start_server(connected, sock=listener)
        served = _Served(container, udp, server, servers, ndots)
        self._served[container.id] = served
        loop.add_reader(udp, self._readable, served)

    def stop(self, container_id: str) -> None:
        """Close a container's resolver."""
        served = self._served.pop(container_id, None)
        if served is None:
            return
        asyncio.get_running_loop().remove_reader(served.udp)
        served.udp.close()
        served.tcp.close()
        for task in served.tasks:
            task.cancel()

    def close(self) -> None:
        for id in list(self._served):
            self.stop(id)

    # ------------------------------------------------------------------ queries

    def _readable(self, served: _Served) -> None:
        for _ in range(32):
            try:
                data, peer = served.udp.recvfrom(4096)
            except (BlockingIOError, OSError):
                return
            answer = self._local(served, data, 512)
            if answer is not None:
                with contextlib.suppress(OSError):
                    served.udp.sendto(answer, peer)
            elif len(served.tasks) < _MOST_QUERIES:
                task = asyncio.get_running_loop().create_task(self._forward_udp(served, data, peer))
                served.tasks.add(task)
                task.add_done_callback(served.tasks.discard)

    async def _forward_udp(self, served: _Served, data: bytes, peer: Any) -> None:
        answer = await self._ask(served, data, stream=False)
        with contextlib.suppress(OSError):
            served.udp.sendto(answer, peer)

    async def _stream(self, served: _Served, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(_TCP_IDLE):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    data = await reader.readexactly(length)
                answer = self._local(served, data, 65535)
                if answer is None:
                    answer = await self._ask(served, data, stream=True)
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass
        finally:
            writer.close()

    def _local(self, served: _Served, data: bytes, limit: int) -> bytes | None:
        """The answer, when it is ours to give; None: ask elsewhere."""
        try:
            query = dns.decode(data)
        except dns.DNSError:
            number = int.from_bytes(data[:2], "big") if len(data) >= 2 else 0
            return dns.encode(dns.Message(number, dns.QR, rcode=dns.FORMERR))
        if query.flags & dns.QR:
            return dns.encode(dns.Message(query.id, dns.QR, rcode=dns.FORMERR))
        if query.opcode != dns.QUERY or len(query.questions) != 1:
            return dns.encode(dns.Message(query.id, dns.QR, query.opcode, dns.NOTIMP, query.questions))
        question = query.questions[0]
        if question.klass != dns.IN:
            return None
        limit = max(limit, query.edns or 0)
        answer = dns.Message(query.id, dns.QR | dns.RA | query.flags & dns.RD, questions=query.questions)
        if query.edns is not None:
            answer.edns = 1232
        if question.type == dns.PTR:
            name = self._name_of(served, question.name)
            if name is None:
                return None
            answer.answers.append(dns.Record(question.name, dns.PTR, _TTL, name))
            return dns.encode(answer, limit)
        addresses = self._addresses(served, question.name)
        if (
            addresses is None
            and served.ndots
            and question.type in (dns.A, dns.AAAA)
            and "." not in question.name.rstrip(".")
        ):
            return dns.encode(answer, limit)
        if addresses is None:
            return None
        random.shuffle(addresses)
        for address in addresses:
            kind = dns.AAAA if ":" in address else dns.A
            if question.type in (kind, dns.ANY):
                answer.answers.append(dns.Record(question.name, kind, _TTL, address))
        return dns.encode(answer, limit)

    def _addresses(self, served: _Served, name: str) -> list[str] | None:
        """The addresses of a container's name, as seen by one container; None: no such name."""
        wanted = name.rstrip(".").lower()
        container = served.container
        for network_name, settings in container.networks.items():
            network = self._networks.find(network_name)
            if network is None or not settings.get("EndpointID"):
                continue
            plain = wanted.removesuffix("." + network.name.lower())
            aliases = {}
            for link in settings.get("Links") or []:
                target, _, alias = link.partition(":")
                aliases[(alias or target).lower()] = target.lstrip("/").lower()
            plain = aliases.get(plain, plain)
            found: list[str] = []
            for endpoint in self._networks.endpoints(network).values():
                if plain in (n.lower() for n in endpoint.names):
                    found += [str(address) for address, _ in endpoint.addresses]
            if found:
                return found
        return None

    def _name_of(self, served: _Served, name: str) -> str | None:
        """The name behind a reverse query for an address in one of the container's networks."""
        for network_name in served.container.networks:
            network = self._networks.find(network_name)
            if network is None:
                continue
            for endpoint in self._networks.endpoints(network).values():
                for address, _ in endpoint.addresses:
                    if dns.reverse_name(str(address)) == name.lower():
                        return f"{endpoint.name}.{network.name}."
        return None

    # ------------------------------------------------------------------ elsewhere

    async def _ask(self, served: _Served, data: bytes, *, stream: bool) -> bytes:
        """What the upstream servers answer; SERVFAIL when none does."""
        query = dns.decode(data)
        internal = all(
            (network := self._networks.find(name)) is None or network.internal for name in served.container.networks
        )
        wanted = [server for server in served.upstreams if server.sandbox is not None or not internal]
        answer = await upstreams.ask(wanted, data, stream=stream)
        return answer or dns.encode(
            dns.Message(query.id, dns.QR | dns.RA | query.flags & dns.RD, rcode=dns.SERVFAIL, questions=query.questions)
        )


def _sockets(sandbox: Path) -> tuple[socket.socket, socket.socket]:
    """A datagram and a listening socket inside a namespace, with port 53 translated to them. Blocking."""

    def make() -> tuple[socket.socket, socket.socket]:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        udp.bind((ADDRESS, 0))
        tcp.bind((ADDRESS, 0))
        tcp.listen(64)
        return udp, tcp

    udp, tcp = netns.call(sandbox, make)
    rules = "\n".join(
        f"ip daddr {ADDRESS} {protocol} dport 53 dnat to {ADDRESS}:{sock.getsockname()[1]}"
        for protocol, sock in (("udp", udp), ("tcp", tcp))
    )
    with Nftables(sandbox) as nft:
        nft.run(
            "table ip longshore_dns\ndelete table ip longshore_dns\n"
            f"table ip longshore_dns {{ chain output {{ type nat hook output priority -100; policy accept;\n{rules}\n}}\n}}"
        )
    return udp, tcp
