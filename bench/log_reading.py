"""Claim: `docker logs` and `kubectl logs` of a million lines of 100 bytes at 200 MB/s and no slower than dockerd's `docker
logs`. Peer in the same run: Debian's dockerd. Needs root, docker, kubectl, runc and conmon.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.peers import dockerd
from bench.report import figure, medians

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

LINES, RUNS = 1_000_000, 5
WORDS = ["sh", "-c", f"yes $(printf %0100d 7) | head -n {LINES}"]
CHANGES = ["-c", 'CMD ["sh"]', "-c", "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin"]


def speed(command: list[str], env: dict[str, str]) -> Callable[[], float]:
    """A function that reads all that a command writes and gives MB/s."""

    def run() -> float:
        started = time.perf_counter()
        child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
        assert child.stdout is not None
        size = 0
        while piece := os.read(child.stdout.fileno(), 2**20):
            size += len(piece)
        assert child.wait() == 0 and size == LINES * 101
        return size / (time.perf_counter() - started) / 1e6

    return run


def main() -> int:
    if os.geteuid() != 0 or any(shutil.which(p) is None for p in ("docker", "kubectl", "runc", "conmon")):
        print("log_reading: needs root, docker, kubectl, runc and conmon")
        return 0
    from support.cluster import Cluster, eventually
    from support.docker_engine import base_image_tar

    image = base_image_tar()
    cluster = Cluster()
    with dockerd() as peer:
        try:
            cluster.up()
            hosts = [cluster.env["DOCKER_HOST"], *([peer[0]] if peer else [])]
            for host in hosts:
                docker = ["docker", "-H", host]
                subprocess.run(
                    [*docker, "import", *CHANGES, "-", "busybox:latest"], input=image, check=True, capture_output=True
                )
                command = [*docker, "run", "--network", "none", "--name", "lines", "busybox", *WORDS]
                subprocess.run(command, check=True, capture_output=True)
            found = medians(RUNS, *(speed(["docker", "-H", host, "logs", "lines"], cluster.env) for host in hosts))
            theirs = found[1] if peer else None
            figure("docker logs of a million lines", found[0], "MB/s", peer="dockerd", theirs=theirs, target="> 200")
            spec = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox", "imagePullPolicy": "Never", "command": WORDS}]}  # fmt: skip
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lines"}, "spec": spec}
            cluster.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
            eventually(lambda: "Succeeded" in cluster.kubectl("get", "pod", "lines", "-o", "jsonpath={.status.phase}"))
            (kubectl,) = medians(RUNS, speed(["kubectl", "logs", "lines"], cluster.env))
            figure("kubectl logs of a million lines", kubectl, "MB/s", peer="dockerd", theirs=theirs, target="> 200")
            subprocess.run(["docker", "-H", hosts[-1], "rm", "-f", "lines"], capture_output=True)
        finally:
            cluster.destroy()
    return 0


if __name__ == "__main__":
    sys.exit(main())
