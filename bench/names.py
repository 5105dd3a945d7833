"""Claim: cluster DNS answers 30,000 questions/s and more on one core, p99 under 2 ms at half load. (CoreDNS is not packaged by
Debian; its figure on two cores of such a machine is 33,669/s.)
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import socket
import time

import uvloop

from bench.report import figure
from longshore.node.dns.chain import chain, handler
from longshore.node.dns.server import Ready, listen
from longshore.node.dns.zone import Zone
from longshore.wire import dns

PORT, SECONDS = 5399, 3.0


def serve(services: int, up: multiprocessing.synchronize.Event) -> None:
    async def main() -> None:
        zone = Zone("cluster.local", ["10.96.0.10"])
        for number in range(services):
            ip = f"10.97.{number // 250}.{number % 250}"
            spec = {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "name": "http", "protocol": "TCP"}]}
            zone.set_service({"metadata": {"namespace": "default", "name": f"s{number}"}, "spec": spec})
        await listen(handler(chain(zone, None)), "127.0.0.1", PORT, Ready(lambda: zone.serial))
        up.set()
        await asyncio.Event().wait()

    uvloop.run(main())


def questions(count: int) -> list[bytes]:
    chance = random.Random(3)
    found = []
    for _ in range(2000):
        # Three of four end in the search path's misses, as resolvers ask them.
        name = f"s{chance.randrange(count)}.default.svc.cluster.local."
        if chance.random() < 0.3:
            name = f"s{chance.randrange(count)}.default.svc.cluster.local.default.svc.cluster.local."
        query = dns.Message(
            chance.randrange(65536), dns.RD, questions=[dns.Question(name, chance.choice((dns.A, dns.AAAA)))]
        )
        found.append(dns.encode(query))
    return found


def flood(packets: list[bytes]) -> float:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", PORT))
        sock.settimeout(2)
        answers = 0
        for place in range(64):
            sock.send(packets[place])
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            for _ in range(100):
                sock.recv(4096)
                answers += 1
                sock.send(packets[answers % len(packets)])
        return answers / SECONDS


def paced(packets: list[bytes], rate: float) -> float:
    """The 99th percentile in milliseconds at `rate` questions/s, a few at a time."""
    took: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", PORT))
        sock.settimeout(2)
        started = time.perf_counter()
        sent = 0
        while sent < rate * SECONDS:
            before = time.perf_counter()
            for _ in range(4):
                sock.send(packets[sent % len(packets)])
                sent += 1
            for _ in range(4):
                sock.recv(4096)
            took += [time.perf_counter() - before] * 4
            wait = started + sent / rate - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
    return sorted(took)[int(len(took) * 0.99)] * 1000


def main() -> None:
    for services in (200, 10_000):
        up = multiprocessing.Event()
        server = multiprocessing.Process(target=serve, args=(services, up), daemon=True)
        server.start()
        up.wait()
        packets = questions(services)
        figure(f"answers, {services:,} Services, one core", flood(packets), "/s", target="> 30,000")
        figure(f"p99 at 15,000/s, {services:,} Services", paced(packets, 15_000), "ms", target="< 2")
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
