"""kill -9 of the node's processes while pods come up: every pod once, and nothing left behind them."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cluster import Cluster, eventually, need

pytestmark = [pytest.mark.root, pytest.mark.slow]
PODS = 10


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    need("kubectl")
    need("docker")
    found = Cluster()
    try:
        found.up()
        yield found
    finally:
        found.destroy()


def image(folder: Path) -> Path:
    file = folder / "root.tar"
    with tarfile.open(file, "w") as tar:
        data = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(data), 0o755
        tar.addfile(entry, io.BytesIO(data))
    return file


def mine(cluster: Cluster) -> list[str]:
    """Mounts, interfaces and folders that pods of this cluster have now."""
    folder = str(cluster.folder)
    found = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if folder in line]
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    found += [line.split()[0] for line in links.splitlines() if line.startswith("pod") and not line.startswith("pods0")]
    found += [str(p) for p in cluster.data.glob("nodes/*/kubelet/pods/*")]
    found += [str(p) for p in cluster.data.glob("nodes/*/engine/cri/*/*") if p.is_dir()]
    return found


def test_kill_while_pods_start(cluster: Cluster, tmp_path: Path) -> None:
    cluster.docker("import", str(image(tmp_path)), "kill/busybox:1")
    before = set(mine(cluster))
    container = {
        "name": "c", "image": "kill/busybox:1", "imagePullPolicy": "Never",
        "command": ["/bin/busybox", "sh", "-c", "echo begun; exec /bin/busybox sleep 100000"],
    }  # fmt: skip
    for number in range(PODS):
        pod = {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{number}"},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
        }  # fmt: skip
        cluster.kubectl("create", "-f", "-", stdin=json.dumps(pod))
        if number in (3, 6):
            os.kill(cluster.pid("node"), signal.SIGKILL)
        if number in (4, 8):
            os.kill(cluster.pid("engine"), signal.SIGKILL)

    def all_run() -> bool:
        pods = json.loads(cluster.kubectl("get", "pods", "-o", "json"))["items"]
        return (
            len(pods) == PODS
            and all(
                c.get("type") != "Ready" or c["status"] == "True"
                for p in pods
                for c in p["status"].get("conditions") or [{}]
            )
            and all(p["status"].get("phase") == "Running" for p in pods)
        )

    eventually(all_run, seconds=60)
    time.sleep(1)
    assert len(_running(cluster)) == PODS
    for number in range(PODS):
        assert cluster.kubectl("logs", f"p{number}") == "begun\n"
    cluster.kubectl("delete", "pod", "--all", "--wait=true", timeout=60)
    eventually(lambda: set(mine(cluster)) <= before, seconds=20)


def _running(cluster: Cluster) -> list[str]:
    """The monitors of containers that this cluster's engine runs."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        text = _read(process)
        if "conmon" in text.partition("\0")[0] and str(cluster.run_dir) in text:
            found.append(text)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_a_killed_node_part_takes_no_pod_out_of_its_service(cluster: Cluster, tmp_path: Path) -> None:
    """Ready stays Ready, in the pod and in its EndpointSlice, until a probe of the new process really fails."""
    cluster.docker("import", str(image(tmp_path)), "kill/busybox:1")
    probe = {"periodSeconds": 5, "failureThreshold": 1, "timeoutSeconds": 20}
    script = "touch /ready; while :; do echo -e 'HTTP/1.0 200 OK\\r\\n\\r\\nok' | /bin/busybox nc -l -p 8080; done"
    container = {
        "name": "c", "image": "kill/busybox:1", "imagePullPolicy": "Never", "ports": [{"containerPort": 8080}],
        "command": ["/bin/busybox", "sh", "-c", script.replace("touch", "/bin/busybox touch")],
        "startupProbe": {"exec": {"command": ["/bin/busybox", "test", "-e", "/ready"]}, "periodSeconds": 1},
        "readinessProbe": {"exec": {"command": ["/bin/busybox", "test", "-e", "/ready"]}, **probe},
    }  # fmt: skip
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probed", "labels": {"app": "probed"}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }  # fmt: skip
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    cluster.kubectl("expose", "pod", "probed", "--port=80", "--target-port=8080")
    cluster.kubectl("wait", "pod/probed", "--for=condition=Ready", "--timeout=30s")
    slices = ["get", "endpointslices", "-l", "kubernetes.io/service-name=probed"]
    eventually(lambda: "true" in cluster.kubectl(*slices, "-o", "jsonpath={.items[*].endpoints[*].conditions.ready}"))
    ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status} {.status.containerStatuses[0].started}{'\\n'}"
    watches = [
        (tmp_path / "pod", ["get", "pod", "probed", "-w", "-o", ready]),
        (tmp_path / "slice", [*slices, "-w", "-o", "jsonpath={.endpoints[*].conditions.ready}{'\\n'}"]),
    ]
    processes = []
    try:
        for file, argv in watches:
            with file.open("wb") as out:
                processes.append(subprocess.Popen(["kubectl", *argv], stdout=out, stderr=out, env=cluster.env))
        eventually(lambda: all(file.read_text() for file, _ in watches))
        for _ in range(2):
            cluster.kill("node")
            time.sleep(3)
        assert set((tmp_path / "pod").read_text().splitlines()) == {"True true"}
        assert set((tmp_path / "slice").read_text().splitlines()) == {"true"}
        cluster.kubectl("exec", "probed", "--", "/bin/busybox", "rm", "/ready")
        eventually(lambda: "False true" in (tmp_path / "pod").read_text())
        eventually(lambda: "false" in (tmp_path / "slice").read_text())
    finally:
        for process in processes:
            process.terminate()
            process.wait()
