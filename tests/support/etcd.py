"""Debian's etcd as a cluster of three members on loopback."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

Three = tuple[list[str], list[subprocess.Popen[bytes]]]


@contextlib.contextmanager
def three_members(folder: Path, first_port: int) -> Iterator[Three]:
    """The members' URLs and processes. They take ports from `first_port` on, and elect quickly."""
    urls = [f"http://127.0.0.1:{first_port + 10 * n}" for n in range(3)]
    peers = [f"http://127.0.0.1:{first_port + 10 * n + 1}" for n in range(3)]
    cluster = ",".join(f"m{n}={peer}" for n, peer in enumerate(peers))
    members = [
        subprocess.Popen(
            [
                "etcd", "--name", f"m{n}", "--data-dir", str(folder / f"m{n}"), "--heartbeat-interval", "50",
                "--election-timeout", "500", "--listen-client-urls", urls[n], "--advertise-client-urls", urls[n],
                "--listen-peer-urls", peers[n], "--initial-advertise-peer-urls", peers[n], "--initial-cluster", cluster,
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for n in range(3)
    ]  # fmt: skip
    yield urls, members
    for member in members:
        member.kill()
        member.wait()
