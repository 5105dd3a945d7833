"""Claim: the embedded store takes 1,100 puts/s and more from one writer and 20,000 from 64, each on disk (4 KB values).
Peer in the same run: Debian's etcd over gRPC on loopback, asked by our own client (skipped when absent).
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import uvloop

from bench.report import figure
from longshore.master.etcd.client import EtcdStore
from longshore.master.etcd.embedded import EmbeddedStore
from longshore.master.etcd.model import Unavailable
from longshore.master.etcd.store import Store

VALUE = b"v" * 4096
TURNS = 5
URL = "http://127.0.0.1:22379"


async def puts(store: Store, writers: int, each: int, turn: int) -> float:
    async def one(number: int) -> None:
        for count in range(each):
            await store.put(b"/bench/%d/%d/%d" % (turn, number, count), VALUE)

    started = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(writers)))
    return writers * each / (time.perf_counter() - started)


def middle(found: list[float]) -> float:
    return sorted(found)[len(found) // 2]


async def etcd(folder: Path) -> tuple[subprocess.Popen[bytes], EtcdStore] | None:
    if not shutil.which("etcd"):
        return None
    peer = "http://127.0.0.1:22380"
    server = subprocess.Popen(
        [
            "etcd", "--data-dir", str(folder), "--listen-client-urls", URL, "--advertise-client-urls", URL,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while True:
        try:
            return server, await EtcdStore.open([URL])
        except Unavailable:
            await asyncio.sleep(0.1)


async def measure(folder: Path) -> None:
    ours = await EmbeddedStore.open(folder / "store.db")
    peer = await etcd(folder / "etcd")
    for writers, each, target in ((1, 300, "> 1,100"), (16, 100, ""), (64, 60, "> 20,000")):
        mine: list[float] = []
        theirs: list[float] = []
        for turn in range(TURNS):
            mine.append(await puts(ours, writers, each * (4 if writers > 1 else 1), turn))
            if peer is not None:
                theirs.append(await puts(peer[1], writers, each, turn))
        figure(
            f"puts of 4 KB on disk, {writers} writer{'s' * (writers > 1)}",
            middle(mine),
            "puts/s",
            peer="etcd",
            theirs=middle(theirs) if theirs else None,
            target=target,
        )
    memory = await EmbeddedStore.open(None)
    started = time.process_time()
    await puts(memory, 1, 20_000, 0)
    figure("CPU of a put in memory", (time.process_time() - started) / 20_000 * 1e6, "µs", target="tens")
    await memory.close()
    count = (await ours.range(b"/bench/", b"/bench0", count_only=True)).count
    started = time.perf_counter()
    await ours.range(b"/bench/", b"/bench0", limit=5000)
    figure(f"range of 5,000 of {count} keys", (time.perf_counter() - started) * 1000, "ms")
    await ours.close()
    started = time.perf_counter()
    again = await EmbeddedStore.open(folder / "store.db")
    figure(f"open a store of {count} keys", (time.perf_counter() - started) * 1000, "ms")
    await again.close()
    if peer is not None:
        await peer[1].close()
        peer[0].kill()
        peer[0].wait()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="longshore-bench-") as folder:
        uvloop.run(measure(Path(folder)))


if __name__ == "__main__":
    main()
