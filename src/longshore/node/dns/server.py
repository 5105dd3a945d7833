"""Cluster DNS of one node: UDP and TCP on the cluster DNS address, fed by informers."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import Counter

from longshore.client.informer import InformerFactory
from longshore.client.resources import ENDPOINT_SLICES, NAMESPACES, SERVICES
from longshore.client.rest import Client
from longshore.machinery.netlink import Netlink, NetlinkError
from longshore.node.dns import resolvers
from longshore.node.dns.chain import Next, Reply, chain, handler
from longshore.node.dns.zone import Object, Zone
from longshore.wire import dns
from longshore.wire.dns import Message

log = logging.getLogger("longshore.dns")

REQUESTS = Counter("coredns_dns_requests", "Counter of DNS requests made per type", ["proto", "type"])
RESPONSES = Counter("coredns_dns_responses", "Counter of response status codes", ["rcode"])
TYPES = {1: "A", 28: "AAAA", 33: "SRV", 12: "PTR", 5: "CNAME", 16: "TXT", 6: "SOA", 2: "NS"}
PLAIN_UDP, MOST_UDP = 512, 1232
MOST_READY = 10_000
DATAGRAMS_A_TURN = 64
TCP_IDLE_SECONDS, TCP_CONNECTIONS, UNDER_WAY = 10.0, 256, 2000


class Ready:
    """Finished answers by question, both without the identifier: what is the same for every asker is encoded once.

    serial(): the zone's; everything kept is dropped when it changes.
    """

    def __init__(self, serial: Callable[[], int]) -> None:
        self._serial = serial
        self._at = serial()
        self._kept: dict[bytes, tuple[bytes, Counter, Counter]] = {}

    def find(self, packet: bytes) -> bytes | None:
        """The whole answer to a query's octets, counted; None when it must be made."""
        if self._at != self._serial():
            self._kept.clear()
            self._at = self._serial()
            return None
        kept = self._kept.get(packet[2:])
        if kept is None:
            return None
        body, request, response = kept
        request.inc()
        response.inc()
        return packet[:2] + body

    def keep(self, packet: bytes, said: bytes, request: Counter, response: Counter) -> None:
        if len(self._kept) >= MOST_READY:
            self._kept.clear()
        self._kept[packet[2:]] = (said[2:], request, response)


async def respond(packet: bytes, answer: Next, *, tcp: bool, ready: Ready | None = None) -> bytes | None:
    """The answer's octets for a query's; None for what deserves none (an answer, less than a header)."""
    try:
        query = dns.decode(packet)
    except dns.DNSError:
        if len(packet) < 12 or packet[2] & 0x80:
            return None
        return packet[:2] + bytes((0x80 | packet[2] & 0x79, dns.FORMERR, 0, 0, 0, 0, 0, 0, 0, 0))
    if query.flags & dns.QR:
        return None
    lasting: Counter | None = None
    reply = Message(query.id, dns.QR | dns.RA | (query.flags & dns.RD), query.opcode, questions=query.questions)
    reply.edns = MOST_UDP if query.edns is not None else None
    if query.edns is not None and query.edns_version:
        reply.rcode = dns.BADVERS
    elif query.opcode != dns.QUERY:
        reply.rcode = dns.NOTIMP
    elif len(query.questions) != 1:
        reply.rcode = dns.FORMERR
    else:
        question = query.questions[0]
        request = REQUESTS.labels("tcp" if tcp else "udp", TYPES.get(question.type, "other"))
        found: Reply = await answer(question)
        request.inc()  # behind the await: what must wait is begun a second time, in a task
        lasting = request if found.lasting else None
        reply.rcode = found.rcode
        reply.flags |= dns.AA if found.authoritative else 0
        reply.answers, reply.authority = list(found.answers), list(found.authority)
        reply.additional = list(found.additional)
    response = RESPONSES.labels(str(reply.rcode))
    response.inc()
    limit = 65535 if tcp else min(query.edns or PLAIN_UDP, MOST_UDP)
    said = dns.encode(reply, limit)
    if ready is not None and lasting is not None:
        ready.keep(packet, said, lasting, response)
    return said


class UDP:
    """Answers datagrams; past UNDER_WAY questions new ones are dropped (the asker tries again).

    Reads its socket itself, many datagrams a turn of the loop: a transport would cost as much as an answer does.
    """

    def __init__(self, address: str, port: int, answer: Next, ready: Ready | None) -> None:
        self._answer = answer
        self._ready = ready
        self._tasks: set[asyncio.Task[None]] = set()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            self._socket.bind((address, port))
        except OSError:
            self._socket.close()
            raise
        self.port = int(self._socket.getsockname()[1])
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        for _ in range(DATAGRAMS_A_TURN):
            try:
                data, peer = self._socket.recvfrom(4096)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP answer to one of ours
                log.debug("receiving: %s", error)
                continue
            said = self._ready.find(data) if self._ready is not None else None
            if said is not None:
                self._send(said, peer)
            elif len(self._tasks) < UNDER_WAY:
                self._begin(data, peer)

    def _begin(self, data: bytes, peer: Any) -> None:
        # Most answers need no waiting: run the coroutine until it first does, and make a task only of the rest.
        answering = respond(data, self._answer, tcp=False, ready=self._ready)
        try:
            answering.send(None)
        except StopIteration as done:
            if done.value is not None:
                self._send(done.value, peer)
            return
        answering.close()
        task = self._loop.create_task(self._later(data, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _later(self, data: bytes, peer: Any) -> None:
        packet = await respond(data, self._answer, tcp=False)
        if packet is not None:
            self._send(packet, peer)

    def _send(self, packet: bytes, peer: Any) -> None:
        try:
            self._socket.sendto(packet, peer)
        except OSError as error:
            log.debug("answering %s: %s", peer, error)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        for task in self._tasks:
            task.cancel()


def _tcp(answer: Next) -> asyncio.Server | object:
    open_connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_connections
        open_connections += 1
        try:
            while open_connections <= TCP_CONNECTIONS:
                async with asyncio.timeout(TCP_IDLE_SECONDS):
                    size = int.from_bytes(await reader.readexactly(2))
                    packet = await respond(await reader.readexactly(size), answer, tcp=True)
                if packet is None:
                    return
                writer.write(len(packet).to_bytes(2) + packet)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            open_connections -= 1
            writer.close()

    return serve


async def listen(
    answer: Next, address: str, port: int = 53, ready: Ready | None = None
) -> list[UDP | asyncio.base_events.Server]:
    """Answer on one address over UDP and TCP; close what is returned to stop. Raises OSError."""
    datagrams = UDP(address, port, answer, ready)
    try:
        streams = await asyncio.start_server(_tcp(answer), address, datagrams.port)  # type: ignore[arg-type]
    except OSError:
        datagrams.close()
        raise
    return [datagrams, streams]


def own_address(address: str) -> None:
    """Give the node the DNS Service's address (on the loopback interface), so that it answers pods and itself."""
    with Netlink() as link:
        try:
            prefix = ipaddress.ip_address(address).max_prefixlen
            where = ipaddress.ip_interface(f"{address}/{prefix}")
            link.add_address(link.index("lo"), where, never_source=True)
        except NetlinkError as error:
            if error.errno != 17:  # EEXIST: an earlier start gave it already
                raise


def disown_address(address: str) -> None:
    """Take the address away again, if it is there."""
    with Netlink() as link:
        try:
            prefix = ipaddress.ip_address(address).max_prefixlen
            link.delete_address(link.index("lo"), ipaddress.ip_interface(f"{address}/{prefix}"))
        except NetlinkError as error:
            if error.errno not in (99, 19):  # EADDRNOTAVAIL, ENODEV
                raise


def _new_only(put: Callable[[Object], None]) -> Callable[[Object, Object], None]:
    return lambda _old, new: put(new)


async def serve(
    *,
    client: Client,
    addresses: Sequence[str],
    domain: str = "cluster.local",
    port: int = 53,
    resolv_conf: Path = Path("/etc/resolv.conf"),
    informers: InformerFactory | None = None,
    resolver_namespace: Path | None = None,
) -> None:
    """Answer until cancelled. addresses: of the cluster DNS Service, made this node's own; they stay for the next start.

    informers: another part's factory in this process, whose Services and EndpointSlices are shared (started by it).
    resolver_namespace: the network namespace from which the host's resolvers are asked (None: this one).
    Questions that come before the first lists have been read find nobody and are asked again.
    """
    zone = Zone(domain, addresses)
    factory = InformerFactory(client)
    shared = informers or factory
    needed = []
    for source, resource, put, remove in (
        (shared, SERVICES, zone.set_service, zone.remove_service),
        (shared, ENDPOINT_SLICES, zone.set_slice, zone.remove_slice),
        (factory, NAMESPACES, zone.set_namespace, zone.remove_namespace),
    ):
        informer = source.informer(resource)
        needed.append(informer)
        informer.on(put, _new_only(put), remove)
    servers = resolvers.of_host(resolv_conf, leave_out=addresses)
    asking = resolvers.Resolvers(servers, namespace=resolver_namespace)
    answer = handler(chain(zone, asking.ask if servers else None))
    factory.start()
    await factory.wait_synced(needed)
    ready = Ready(lambda: zone.serial)
    opened: list[UDP | asyncio.base_events.Server] = []
    try:
        for address in addresses:
            own_address(address)
            opened += await listen(answer, address, port, ready)
        log.info("answering for %s on %s; resolvers: %s", domain, ", ".join(addresses), ", ".join(servers) or "none")
        await asyncio.get_running_loop().create_future()
    finally:
        for door in opened:
            door.close()
        await factory.stop()
