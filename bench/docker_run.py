"""Claim: `docker run --rm busybox true` takes no longer than 120 ms on a bridge, 90 ms without a network; `docker exec`
of true no longer than 50 ms. Peers in the same run: Debian's dockerd and podman.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.peers import dockerd
from bench.report import figure, medians

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

RUNS = 20


def timed(*argv: str) -> Callable[[], float]:
    """A command's wall time in milliseconds."""

    def once() -> float:
        started = time.monotonic()
        subprocess.run(argv, check=True, capture_output=True)
        return (time.monotonic() - started) * 1000

    return once


def main() -> None:
    from longshore.cli.demo import busybox_root
    from support.cluster import Cluster

    image = busybox_root()
    cluster = Cluster()
    try:
        cluster.up()
        ours = cluster.env["DOCKER_HOST"]
        with dockerd() as peer:
            hosts = [ours] + ([peer[0]] if peer else [])
            for host in hosts:
                subprocess.run(
                    ["docker", "-H", host, "import", "-", "busybox"], input=image, check=True, capture_output=True
                )
            for network, target in (("bridge", "< 120"), ("none", "< 90")):
                argv = ("run", "--rm", "--network", network, "busybox", "true")
                found = medians(RUNS, *(timed("docker", "-H", host, *argv) for host in hosts))
                theirs = found[1] if peer else None
                figure(
                    f"docker run --rm busybox true, {network}",
                    found[0],
                    "ms",
                    peer="dockerd",
                    theirs=theirs,
                    target=target,
                )
            for host in hosts:
                subprocess.run(
                    ["docker", "-H", host, "run", "-d", "--network", "none", "--name", "bench", "busybox", "sleep", "1000"],
                    check=True, capture_output=True,
                )  # fmt: skip
            found = medians(RUNS, *(timed("docker", "-H", host, "exec", "bench", "true") for host in hosts))
            theirs = found[1] if peer else None
            figure("docker exec of true", found[0], "ms", peer="dockerd", theirs=theirs, target="< 50")
            for host in hosts:
                subprocess.run(["docker", "-H", host, "rm", "-f", "bench"], check=True, capture_output=True)
        if shutil.which("podman"):
            root = ["--root", str(cluster.folder / "p"), "--runroot", str(cluster.folder / "pr")]
            podman = ["podman", *root, "--cgroup-manager=cgroupfs", "--runtime=runc"]
            done = subprocess.run([*podman, "import", "-", "busybox"], input=image, capture_output=True, check=False)
            command = (*podman, "run", "--rm", "--network", "none", "busybox", "true")
            if done.returncode == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0:
                none = ("docker", "-H", ours, "run", "--rm", "--network", "none", "busybox", "true")
                found = medians(RUNS, timed(*none), timed(*command))
                figure("docker run --rm busybox true, none", found[0], "ms", peer="podman", theirs=found[1])
            subprocess.run([*podman, "rmi", "-af"], capture_output=True, check=False)
    finally:
        cluster.destroy()


if __name__ == "__main__":
    main()
