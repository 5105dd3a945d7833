"""Claim: a Pod runs a quarter of a second after its creation, thirty of them at once keep the two cores busy and no
longer. Peer in the same run: `docker run -d` of the same image on the same engine (what a container costs without a Pod).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.report import figure

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

RUNS = 10
MANY = 30


def main() -> None:
    from longshore.cli.demo import busybox_root
    from support.cluster import Cluster

    cluster = Cluster()
    try:
        cluster.up()
        host = cluster.env["DOCKER_HOST"]
        subprocess.run(
            ["docker", "-H", host, "import", "-", "b:1"], input=busybox_root(), check=True, capture_output=True
        )
        single, plain = [], []
        for number in range(RUNS):
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"p{number}"},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "c", "image": "b:1", "command": ["sleep", "1000"]}],
                },
            }
            started = time.monotonic()
            cluster.kubectl("create", "-f", "-", stdin=json.dumps(pod))
            cluster.kubectl("wait", f"pod/p{number}", "--for=condition=Ready", "--timeout=30s")
            single.append((time.monotonic() - started) * 1000)
            started = time.monotonic()
            cluster.docker("run", "-d", "--name", f"d{number}", "b:1", "sleep", "1000")
            plain.append((time.monotonic() - started) * 1000)
        figure(
            "Pod, from kubectl create to Ready (two kubectl calls)", statistics.median(single), "ms",
            peer="docker run -d, same engine", theirs=statistics.median(plain),
        )  # fmt: skip
        cluster.kubectl("create", "deployment", "many", "--image=b:1", f"--replicas={MANY}", "--", "sleep", "1000")
        started = time.monotonic()
        cluster.kubectl("rollout", "status", "deploy/many", "--timeout=60s", timeout=70)
        figure(f"Deployment of {MANY} Pods, all Ready", MANY / (time.monotonic() - started), "pods/s")
    finally:
        cluster.destroy()


if __name__ == "__main__":
    main()
