"""Claim: pushing and pulling blobs of 1 GB is no slower than with the reference registry, at half its CPU.

Peer in the same run: Debian's docker-registry. Beside them the floor: one thread that reads the socket, hashes, writes and
syncs (push), and one that maps the file and sends it (pull), without any protocol.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.report import figure, medians

RUNS = 3
SIZE = 1 << 30
OURS = """
import asyncio, sys, uvloop
from pathlib import Path
from longshore.registry.server import serve
uvloop.install()
asyncio.run(serve(data_dir=Path(sys.argv[1]), port=5100))
"""
FLOOR = """
import hashlib, mmap, os, socket, sys
with socket.create_server(("127.0.0.1", 5300)) as listener:
    while True:
        peer = listener.accept()[0]
        if peer.recv(1) == b"<":
            with open(sys.argv[1], "rb") as file:
                size, window = os.fstat(file.fileno()).st_size, 16 << 20
                for begin in range(0, size, window):
                    length, flags = min(window, size - begin), mmap.MAP_SHARED | mmap.MAP_POPULATE
                    with mmap.mmap(file.fileno(), length, flags, mmap.PROT_READ, offset=begin) as content:
                        for at in range(0, length, 1 << 20):
                            with memoryview(content) as whole, whole[at : at + (1 << 20)] as piece:
                                peer.sendall(piece)
        else:
            room = memoryview(bytearray(1 << 20))
            total = hashlib.sha256()
            with open(sys.argv[2], "wb", buffering=0) as file:
                while count := peer.recv_into(room, 0, socket.MSG_WAITALL):
                    total.update(room[:count])
                    file.write(room[:count])
                os.fsync(file.fileno())
            os.unlink(sys.argv[2])
            peer.send(b".")
        peer.close()
"""
THEIRS = """version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: 127.0.0.1:5200}}
log: {{accesslog: {{disabled: true}}, level: error}}
"""


def cpu(pid: int) -> float:
    """CPU milliseconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def curl(*words: str) -> str:
    return subprocess.run(["curl", "-s", *words], check=True, capture_output=True, text=True).stdout


class Side:
    def __init__(self, port: int, pid: int, blob: Path, digest: str) -> None:
        self.base, self.pid, self.blob, self.digest = f"http://127.0.0.1:{port}", pid, blob, digest
        self.cpu: dict[str, list[float]] = {"push": [], "pull": []}

    def push(self) -> float:
        """Milliseconds of a monolithic upload into a new repository."""
        name = f"a{time.monotonic_ns()}"
        head = curl("-i", "-X", "POST", f"{self.base}/v2/{name}/blobs/uploads/")
        location = next(
            line.split(" ", 1)[1].strip() for line in head.splitlines() if line.lower().startswith("location:")
        )
        url = location if "://" in location else self.base + location
        url += f"{'&' if '?' in url else '?'}digest={self.digest}"
        used, started = cpu(self.pid), time.monotonic()
        code = curl(
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-X",
            "PUT",
            "-H",
            "Content-Type: application/octet-stream",
            "-T",
            str(self.blob),
            url,
        )
        took = (time.monotonic() - started) * 1000
        assert code == "201", code
        self.cpu["push"].append(cpu(self.pid) - used)
        self.name = name
        return took

    def pull(self) -> float:
        used, started = cpu(self.pid), time.monotonic()
        curl("-o", "/dev/null", f"{self.base}/v2/{self.name}/blobs/{self.digest}")
        took = (time.monotonic() - started) * 1000
        self.cpu["pull"].append(cpu(self.pid) - used)
        return took


class Floor(Side):
    """The same octets without a registry."""

    def push(self) -> float:
        return self._counted("push", b">")

    def pull(self) -> float:
        return self._counted("pull", b"<")

    def _counted(self, what: str, word: bytes) -> float:
        used, started = cpu(self.pid), time.monotonic()
        with socket.create_connection(("127.0.0.1", 5300)) as peer:
            peer.send(word)
            if word == b">":
                with self.blob.open("rb") as file:
                    peer.sendfile(file)
                peer.shutdown(socket.SHUT_WR)
            room = bytearray(1 << 20)
            while peer.recv_into(room):
                pass
        self.cpu[what].append(cpu(self.pid) - used)
        return (time.monotonic() - started) * 1000


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="br-", dir="/tmp"))
    blob = folder / "blob"
    total = hashlib.sha256()
    with blob.open("wb") as file:
        for _ in range(SIZE >> 20):
            data = os.urandom(1 << 20)
            total.update(data)
            file.write(data)
    digest = "sha256:" + total.hexdigest()
    daemons = [subprocess.Popen([sys.executable, "-c", OURS, str(folder / "ours")])]
    if shutil.which("docker-registry"):
        (folder / "config.yml").write_text(THEIRS.format(folder=folder / "theirs"))
        daemons.append(
            subprocess.Popen(
                ["docker-registry", "serve", str(folder / "config.yml")],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
    peers = len(daemons) - 1
    daemons.append(subprocess.Popen([sys.executable, "-c", FLOOR, str(blob), str(folder / "floor")]))
    try:
        sides = [Side(port, daemon.pid, blob, digest) for port, daemon in zip((5100, 5200), daemons[:-1], strict=False)]
        for side in sides:
            for _ in range(200):
                if subprocess.run(["curl", "-s", "-o", "/dev/null", f"{side.base}/v2/"], check=False).returncode == 0:
                    break
                time.sleep(0.05)
        sides.append(Floor(5300, daemons[-1].pid, blob, digest))
        for what in ("push", "pull"):
            calls: list[Callable[[], float]] = [getattr(side, what) for side in sides]
            found = medians(RUNS, *calls)
            peer = peers > 0
            figure(
                f"registry: {what} of 1 GB",
                found[0],
                "ms",
                peer="docker-registry",
                theirs=found[1] if peer else None,
                target="no slower",
            )
            used = [sorted(side.cpu[what])[len(side.cpu[what]) // 2] for side in sides]
            figure(
                f"registry: {what} of 1 GB, CPU",
                used[0],
                "ms",
                peer="docker-registry",
                theirs=used[1] if peer else None,
                target="half",
            )
            figure(f"floor: {what} of 1 GB", found[-1], "ms")
            figure(f"floor: {what} of 1 GB, CPU", used[-1], "ms")
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
