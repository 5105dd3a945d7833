"""Claim: a published port costs no more than 5 % over a plain DNAT rule, in connect+GET and in throughput, from another host
and over loopback. [::1], which cannot be translated, beside docker-proxy. All ways lead to one server in one
container of one engine. Peers in the same run: an nft table of one DNAT rule, Debian's docker-proxy. Needs root.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.report import figure, medians

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.docker_engine import DockerEngine, base_image_tar

from longshore.machinery import netns
from longshore.machinery.netlink import Netlink

TURNS, GETS, BIG = 60, 20, 64 << 20
OURS, PLAIN, PROXY = 8091, 8092, 8093
HOST, NEIGHBOUR = "10.213.0.1", "10.213.0.2"
SERVER = f"""
import os, socket, threading
big = os.memfd_create("big")
os.truncate(big, {BIG})
def answer(peer):
    with peer:
        words = peer.recv(4096).split()
        if words[1] == b"/big":
            sent = 0
            while sent < {BIG}:
                sent += os.sendfile(peer.fileno(), big, sent, {BIG} - sent)
        else:
            peer.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
server = socket.create_server(("0.0.0.0", 80), backlog=512)
print("ready", flush=True)
while True:
    threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()
"""
RULES = """table ip plain_dnat {{
  chain prerouting {{ type nat hook prerouting priority dstnat; tcp dport {port} fib daddr type local dnat to {to}:80; }}
  chain output {{ type nat hook output priority -100; tcp dport {port} fib daddr type local dnat to {to}:80; }}
}}"""


def get(address: str, port: int, path: str = "/") -> int:
    """Ask for a page; the number of bytes that came."""
    with socket.create_connection((address, port)) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        buffer, size = bytearray(1 << 20), 0
        while count := sock.recv_into(buffer):
            size += count
    return size


def latency(address: str, port: int) -> Callable[[], float]:
    """Microseconds of a connection with one GET."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(GETS):
            get(address, port)
        return (time.perf_counter() - start) / GETS * 1e6

    return run


def throughput(address: str, port: int) -> Callable[[], float]:
    """MB a second of one large answer."""

    def run() -> float:
        start = time.perf_counter()
        size = get(address, port, "/big")
        return size / (time.perf_counter() - start) / 1e6

    return run


@contextlib.contextmanager
def neighbour(base: Path) -> Iterator[Path]:
    """A host beside this one: a namespace behind a veth pair."""
    pin = base / "neighbour"
    netns.create(pin)
    with netns.opened(pin) as fd, Netlink() as host, Netlink(fd) as far:
        host.add_veth("bench-near", "bench-far", peer_namespace=fd, up=True)
        host.add_address(host.index("bench-near"), ipaddress.ip_interface(f"{HOST}/24"))
        far.add_address(far.index("bench-far"), ipaddress.ip_interface(f"{NEIGHBOUR}/24"))
        far.set_link(far.index("bench-far"), up=True)
    try:
        yield pin
    finally:
        netns.delete(pin)


def within(namespace: Path, work: Callable[[], float]) -> Callable[[], float]:
    """The same work by a thread in another network namespace."""
    return lambda: netns.call(namespace, work)


def main() -> int:
    if os.geteuid() != 0 or any(shutil.which(p) is None for p in ("docker", "runc", "conmon", "nft")):
        print("ports: needs root, docker, runc, conmon and nft")
        return 0
    base = Path(tempfile.mkdtemp(prefix="bench-ports-"))
    engine = DockerEngine(base / "longshore")
    engine.start()
    helpers: list[subprocess.Popen[str]] = []
    try:
        engine.docker("import", "-", "busybox:latest", input=base_image_tar())
        engine.docker("run", "-d", "--name", "web", "-p", f"{OURS}:80", "busybox", "/bin/sleep", "100000")
        pid, address = engine.docker("inspect", "-f", "{{.State.Pid}} {{.NetworkSettings.IPAddress}}", "web").stdout.split()  # fmt: skip
        server = subprocess.Popen(["nsenter", "-t", pid, "--net", sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)  # fmt: skip
        helpers.append(server)
        assert server.stdout is not None
        server.stdout.readline()
        subprocess.run(["nft", "-f", "-"], input=RULES.format(port=PLAIN, to=address), text=True, check=True)
        proxy = shutil.which("docker-proxy")
        if proxy is not None:
            for host in ("127.0.0.1", "::1"):
                words = ["-proto", "tcp", "-host-ip", host, "-host-port", str(PROXY)]
                words += ["-container-ip", address, "-container-port", "80"]
                # It tells on descriptor 3 how its start went.
                helpers.append(subprocess.Popen(["sh", "-c", 'exec "$@" 3>/dev/null', "sh", proxy, *words], text=True))
            for _ in range(100):
                with contextlib.suppress(OSError):
                    get("::1", PROXY)
                    break
                time.sleep(0.05)
        with neighbour(base) as pin:
            compare(pin, proxied=proxy is not None)
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()
        subprocess.run(["nft", "delete", "table", "ip", "plain_dnat"], capture_output=True)
        subprocess.run(["ip", "link", "delete", "bench-near"], capture_output=True)
        engine.stop()
        shutil.rmtree(base, ignore_errors=True)
    return 0


def compare(pin: Path, *, proxied: bool) -> None:
    """Measure all ways in turn."""
    for what, measure, unit, target in (
        ("connect+GET", latency, "us", "<= 1.05"),
        ("throughput", throughput, "MB/s", ">= 0.95"),
    ):
        ways = [within(pin, measure(HOST, port)) for port in (OURS, PLAIN)]
        ours, plain = medians(TURNS, *ways)
        figure(f"published port, {what}, another host", ours, unit, peer="plain DNAT", theirs=plain, target=target)
        local = [measure("127.0.0.1", port) for port in (OURS, PLAIN)] + [measure("::1", OURS)]
        if proxied:
            local += [measure("127.0.0.1", PROXY), measure("::1", PROXY)]
        found = medians(TURNS, *local)
        figure(f"published port, {what}, loopback", found[0], unit, peer="plain DNAT", theirs=found[1], target=target)
        for name, mine, number in (("loopback", found[0], 3), ("[::1]", found[2], 4)):
            theirs = found[number] if proxied else None
            figure(f"published port, {what}, {name}", mine, unit, peer="docker-proxy", theirs=theirs)


if __name__ == "__main__":
    sys.exit(main())
