"""Claim: from `longshore up` (installed, warm) to node Ready under 3 s, to the sample's first answer under 6 s;
idle under 250 MB PSS and 2 % of a core. Peer in the same run: Debian's dockerd from start to `docker version` answering.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from bench.peers import dockerd
from bench.report import figure

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

IDLE_SECONDS = 20


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of processes so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / ticks


def main() -> None:
    from support.cluster import Cluster

    ready: list[float] = []
    answered: list[float] = []
    cluster = Cluster()
    try:
        cluster.up()
        cluster.longshore("demo")  # images are built once
        for _ in range(3):
            cluster.run("kubectl", "delete", "ns", "shop", "--timeout=60s", timeout=70)
            cluster.down()
            started = time.monotonic()
            cluster.up()
            ready.append(time.monotonic() - started)
            cluster.longshore("demo")
            answered.append(time.monotonic() - started)
        time.sleep(5)
        parts = cluster.status()["parts"]
        pids = [p["pid"] for p in parts]
        before = cpu_seconds(pids)
        time.sleep(IDLE_SECONDS)
        used = (cpu_seconds(pids) - before) / IDLE_SECONDS * 100
    finally:
        cluster.destroy()
    with dockerd() as peer:
        theirs = peer[1] if peer else None
    figure("longshore up to node Ready", sorted(ready)[1], "s", peer="dockerd to its API", theirs=theirs, target="< 3")
    figure("longshore up to the sample's first answer", sorted(answered)[1], "s", target="< 6")
    figure("idle memory, all parts (PSS)", sum(p["memoryBytes"] for p in parts) / 1e6, "MB", target="< 250")
    for part in parts:
        figure(f"  {part['name']}", part["memoryBytes"] / 1e6, "MB")
    figure("idle CPU, all parts", used, "% of a core", target="< 2")


if __name__ == "__main__":
    main()
