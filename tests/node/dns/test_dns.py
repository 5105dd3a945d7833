"""Cluster DNS: what the specification says of each kind of Service, the chain, and the wire."""

import asyncio
import ipaddress
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from longshore.machinery import netns
from longshore.machinery.netlink import Netlink
from longshore.node.dns import resolvers, server
from longshore.node.dns.chain import chain, handler
from longshore.node.dns.zone import Zone
from longshore.wire import dns
from longshore.wire.dns import Message, Question, Record


def service(name, ips=(), namespace="shop", ports=((80, "http", "TCP"),), **spec):
    made = [{"port": p, "name": n, "protocol": t} for p, n, t in ports]
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": ips[0] if ips else "None", "clusterIPs": list(ips) or ["None"], "ports": made, **spec},
    }


def endpoint_slice(name, of, *endpoints, port=8080):
    return {
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": port}],
        "endpoints": list(endpoints),
    }


@pytest.fixture
def zone():
    made = Zone("cluster.local", ["10.96.0.10"])
    made.set_namespace({"metadata": {"name": "shop"}})
    made.set_namespace({"metadata": {"name": "empty"}})
    made.set_service(service("front", ["10.96.1.1", "fd00::1"]))
    made.set_service(service("db"))
    made.set_service(service("none"))
    made.set_service(service("out", externalName="example.org", type="ExternalName"))
    made.set_slice(
        endpoint_slice(
            "db-1",
            "db",
            {"addresses": ["10.244.0.5"], "hostname": "db-0"},
            {"addresses": ["10.244.0.6"]},
            {"addresses": ["10.244.0.7"], "conditions": {"ready": False}},
        )
    )
    return made


async def ask(zone, name, kind, upstream=None):
    reply = await handler(chain(zone, upstream))(Question(name, kind))
    return reply.rcode, sorted(str(r.data) for r in reply.answers), reply


@pytest.mark.parametrize(
    ("name", "kind", "rcode", "data"),
    [
        ("front.shop.svc.cluster.local.", dns.A, 0, ["10.96.1.1"]),
        ("FRONT.Shop.svc.Cluster.Local.", dns.A, 0, ["10.96.1.1"]),
        ("front.shop.svc.cluster.local.", dns.AAAA, 0, ["fd00::1"]),
        ("front.shop.svc.cluster.local.", dns.MX, 0, []),
        ("_http._tcp.front.shop.svc.cluster.local.", dns.SRV, 0, ["(0, 100, 80, 'front.shop.svc.cluster.local.')"]),
        ("_nope._tcp.front.shop.svc.cluster.local.", dns.SRV, 3, []),
        ("db.shop.svc.cluster.local.", dns.A, 0, ["10.244.0.5", "10.244.0.6"]),
        ("db-0.db.shop.svc.cluster.local.", dns.A, 0, ["10.244.0.5"]),
        ("10-244-0-6.db.shop.svc.cluster.local.", dns.A, 0, ["10.244.0.6"]),
        (
            "_http._tcp.db.shop.svc.cluster.local.",
            dns.SRV,
            0,
            [
                "(0, 50, 8080, '10-244-0-6.db.shop.svc.cluster.local.')",
                "(0, 50, 8080, 'db-0.db.shop.svc.cluster.local.')",
            ],
        ),
        ("none.shop.svc.cluster.local.", dns.A, 3, []),
        ("nothing.shop.svc.cluster.local.", dns.A, 3, []),
        ("shop.svc.cluster.local.", dns.A, 0, []),
        ("empty.svc.cluster.local.", dns.A, 0, []),
        ("nowhere.svc.cluster.local.", dns.A, 3, []),
        ("10-1-2-3.shop.pod.cluster.local.", dns.A, 0, ["10.1.2.3"]),
        ("x.shop.pod.cluster.local.", dns.A, 3, []),
        ("dns-version.cluster.local.", dns.TXT, 0, ["(b'1.1.0',)"]),
        ("1.1.96.10.in-addr.arpa.", dns.PTR, 0, ["front.shop.svc.cluster.local."]),
        ("5.0.244.10.in-addr.arpa.", dns.PTR, 0, ["db-0.db.shop.svc.cluster.local."]),
        ("cluster.local.", dns.NS, 0, ["ns.dns.cluster.local."]),
        ("example.org.", dns.A, 5, []),
    ],
)
async def test_answers(zone, name, kind, rcode, data):
    assert (await ask(zone, name, kind))[:2] == (rcode, data)


async def test_negative_answers_carry_the_soa(zone):
    for name in ("nothing.shop.svc.cluster.local.", "shop.svc.cluster.local."):
        reply = (await ask(zone, name, dns.A))[2]
        assert [r.type for r in reply.authority] == [dns.SOA] and reply.authoritative


async def test_an_external_name_is_followed_and_cached(zone):
    asked = []

    async def upstream(message):
        asked.append(message.questions[0].name)
        return Message(rcode=0, answers=[dns.Record("example.org.", dns.A, 60, "192.0.2.7")])

    answer = handler(chain(zone, upstream))
    for _ in range(3):
        reply = await answer(Question("out.shop.svc.cluster.local.", dns.A))
        assert [str(r.data) for r in reply.answers] == ["example.org.", "192.0.2.7"]
    assert asked == ["example.org."]


async def test_questions_under_way_are_asked_once(zone):
    asked = 0

    async def upstream(message):
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.01)
        return Message(answers=[dns.Record("example.org.", dns.A, 60, "192.0.2.7")])

    answer = handler(chain(zone, upstream))
    await asyncio.gather(*(answer(Question("example.org.", dns.A)) for _ in range(20)))
    assert asked == 1


async def test_a_dead_resolver_is_servfail(zone):
    async def upstream(message):
        raise OSError("nobody there")

    assert (await ask(zone, "example.org.", dns.A, upstream))[0] == dns.SERVFAIL


async def test_changes_show_at_once(zone):
    zone.set_service(service("front", ["10.96.9.9"]))
    assert (await ask(zone, "front.shop.svc.cluster.local.", dns.A))[1] == ["10.96.9.9"]
    assert (await ask(zone, "1.1.96.10.in-addr.arpa.", dns.PTR))[0] == dns.REFUSED
    zone.remove_slice(endpoint_slice("db-1", "db"))
    assert (await ask(zone, "db.shop.svc.cluster.local.", dns.A))[0] == dns.NXDOMAIN
    zone.remove_service(service("front"))
    assert (await ask(zone, "front.shop.svc.cluster.local.", dns.A))[0] == dns.NXDOMAIN


@pytest.mark.root
def test_namespaces_that_are_gone_leave_nothing(zone):
    before = dict(zone._namespaces)
    for number in range(5):
        passing = service("a", ["10.96.9.9"], namespace=f"passing-{number}")
        zone.set_service(passing)
        zone.set_service(passing)
        assert zone._is_namespace(f"passing-{number}")
        zone.remove_service(passing)
        assert not zone._is_namespace(f"passing-{number}")
    assert zone._namespaces == before


async def test_over_the_wire(zone):
    for number in range(60):
        zone.set_slice(endpoint_slice(f"many-{number}", "db", {"addresses": [f"10.244.9.{number}"]}))
    server.own_address("10.96.0.10")
    server.own_address("10.96.0.10")
    server.own_address("fd00:96::10")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
        # What the node itself begins never comes from the DNS address.
        elsewhere.connect(("127.0.0.1", 9))
        assert elsewhere.getsockname()[0] == "127.0.0.1"
    shown = subprocess.run(["ip", "-o", "addr", "show", "lo"], capture_output=True, text=True, check=True).stdout
    assert "10.96.0.10/32 scope host" in shown and "deprecated" in shown.partition("fd00:96::10/128")[2].split("\n")[0]
    server.disown_address("fd00:96::10")
    doors = await server.listen(handler(chain(zone, None)), "10.96.0.10")

    def udp(packet: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ask:
            ask.settimeout(3)
            ask.connect(("10.96.0.10", 53))
            ask.send(packet)
            return ask.recv(4096)

    def tcp(packet: bytes) -> bytes:
        with socket.create_connection(("10.96.0.10", 53), timeout=3) as ask:
            ask.sendall(len(packet).to_bytes(2) + packet)
            size = int.from_bytes(ask.recv(2))
            data = b""
            while len(data) < size:
                data += ask.recv(size - len(data))
            return data

    query = Message(7, dns.RD, questions=[Question("db.shop.svc.cluster.local.", dns.A)])
    try:
        short = dns.decode(await asyncio.to_thread(udp, dns.encode(query)))
        assert short.flags & dns.TC and len(dns.encode(short)) <= 512
        whole = dns.decode(await asyncio.to_thread(tcp, dns.encode(query)))
        assert len(whole.answers) == 62 and not whole.flags & dns.TC and whole.id == 7
        broken = dns.decode(await asyncio.to_thread(udp, dns.encode(query)[:-3]))
        assert broken.rcode == dns.FORMERR
        update = dns.decode(await asyncio.to_thread(udp, dns.encode(Message(8, opcode=5))))
        assert update.rcode == dns.NOTIMP
        # Our resolver's side: the cut answer is asked for again over TCP.
        answer = await resolvers.Resolvers(["10.96.0.10"]).ask(Message(flags=dns.RD, questions=query.questions))
        assert len(answer.answers) == 62
    finally:
        for door in doors:
            door.close()
        server.disown_address("10.96.0.10")


async def test_finished_answers_are_kept_until_the_zone_changes(zone):
    kept = server.Ready(lambda: zone.serial)
    doors = await server.listen(handler(chain(zone, None)), "127.0.0.1", 0, kept)
    loop = asyncio.get_running_loop()

    async def ask_udp(number, name, kind=dns.A):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ask:
            ask.setblocking(False)
            ask.connect(("127.0.0.1", doors[0].port))
            ask.send(dns.encode(Message(number, dns.RD, questions=[Question(name, kind)])))
            return dns.decode(await asyncio.wait_for(loop.sock_recv(ask, 4096), 3))

    try:
        for number in (1, 2, 3):
            reply = await ask_udp(number, "front.shop.svc.cluster.local.")
            assert (reply.id, [r.data for r in reply.answers]) == (number, ["10.96.1.1"])
            assert (await ask_udp(number, "nothing.shop.svc.cluster.local.")).rcode == dns.NXDOMAIN
            # Several addresses are told in turn, and never kept.
            assert len((await ask_udp(number, "db.shop.svc.cluster.local.")).answers) == 2
        assert len(kept._kept) == 2
        zone.set_service(service("front", ["10.96.9.9"]))
        zone.set_service(service("nothing", ["10.96.9.10"]))
        assert [r.data for r in (await ask_udp(4, "front.shop.svc.cluster.local.")).answers] == ["10.96.9.9"]
        assert (await ask_udp(5, "nothing.shop.svc.cluster.local.")).rcode == dns.NOERROR
    finally:
        for door in doors:
            door.close()


def test_resolvers_of_the_host(tmp_path):
    conf = tmp_path / "resolv.conf"
    conf.write_text("search x\nnameserver 10.96.0.10\nnameserver 192.0.2.1\nnameserver bad\n# nameserver 1.1.1.1\n")
    assert resolvers.of_host(conf, leave_out=["10.96.0.10"]) == ["192.0.2.1"]
    assert resolvers.of_host(tmp_path / "none") == []


@pytest.mark.root
async def test_resolvers_are_asked_from_another_namespace_and_routers_are_heard(tmp_path):
    query = Message(flags=dns.RD, questions=[Question("example.test.", dns.A)])
    inside = tmp_path / "node"
    netns.create(inside)
    try:
        with netns.opened(inside) as there, Netlink() as link:
            link.add_veth("dnstest0", "eth0", peer_namespace=there, up=True)
            link.add_address(link.index("dnstest0"), ipaddress.ip_interface("10.9.53.1/24"))
        netns.write_sysctl(None, "net/ipv4/ip_forward", "1")
        with Netlink(inside) as link:
            index = link.index("eth0")
            link.add_address(index, ipaddress.ip_interface("10.9.53.2/24"))
            link.set_link(index, up=True)
            link.add_route(ipaddress.ip_network("0.0.0.0/0"), gateway=ipaddress.ip_address("10.9.53.1"), link=index)
        # A router that has no way says so: nobody waits for an answer that cannot come.
        with pytest.raises(OSError, match="unreachable"):
            await resolvers.Resolvers(["192.0.2.53"], namespace=inside).ask(query)
        # The machine's own loopback, as a node that is a namespace asks it.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stub:
            stub.bind(("127.0.0.1", 0))
            stub.setblocking(False)
            port = stub.getsockname()[1]
            here = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net")
            asking = asyncio.create_task(resolvers.Resolvers(["127.0.0.1"], port, namespace=here).ask(query))
            packet, peer = await asyncio.get_running_loop().sock_recvfrom(stub, 512)
            asked = dns.decode(packet)
            record = Record("example.test.", dns.A, 60, "192.0.2.7")
            reply = Message(id=asked.id, flags=dns.QR, questions=asked.questions, answers=[record])
            stub.sendto(b"nonsense", peer)
            stub.sendto(dns.encode(reply), peer)
            assert [r.data for r in (await asking).answers] == ["192.0.2.7"]
    finally:
        with Netlink() as link:
            link.delete_link(link.index("dnstest0"))
        netns.delete(inside)
