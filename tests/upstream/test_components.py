"""Kubernetes' own components in our house: each on one side of a protocol, ours on the other.

Upstream's clients ask for protobuf first, list by watch, and check what they read far more closely than kubectl does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cluster import eventually, need
from support.upstream import complaints, longshore, program, running

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
ADDRESS = "10.9.9.1"
RANGE = "10.244.0.0/16"
#: What every klog of these programs says on a machine like this one, with containerd and etcd as well.
HARMLESS = (
    "manifest file is empty",
    "broadcaster already stopped",
    "is not as new as written version",
    "socket receive",
)
WEB = "mkdir -p /www; hostname > /www/index.html; echo started; exec httpd -f -p 80 -h /www"


class Place:
    """A folder, an address, and kubectl on it. Every command's words are in what fails."""

    def __init__(self) -> None:
        need("kubectl")
        self.folder = Path(tempfile.mkdtemp(prefix="lu-", dir="/tmp"))
        self.kubeconfig = self.folder / "kc"
        for command in (
            ("link", "set", "lo", "up"),
            ("link", "add", "up0", "type", "bridge"),
            ("addr", "add", f"{ADDRESS}/24", "dev", "up0"),
            ("link", "set", "up0", "up"),
            ("route", "add", "default", "via", "10.9.9.254"),
        ):
            subprocess.run(("ip", *command), check=True)

    def close(self) -> None:
        subprocess.run(("ip", "link", "delete", "up0"), check=True)
        # Upstream's kubelet unmounts a pod's volumes some time after the pod object has gone.
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for path in reversed([path for path in mounted if path.startswith(f"{self.folder}/")]):
            subprocess.run(("umount", "-l", path), check=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *argv: str, stdin: str | None = None, **env: str) -> str:
        full = {**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.folder), **env}
        done = subprocess.run(argv, input=stdin, env=full, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
        return done.stdout

    def kubectl(self, *argv: str, stdin: str | None = None) -> str:
        return self.run("kubectl", *argv, stdin=stdin)

    def json(self, *argv: str) -> dict:
        return json.loads(self.kubectl(*argv, "-o", "json"))

    def ready(self) -> bool:
        return self.kubeconfig.exists() and self.kubectl("get", "--raw", "/readyz") == "ok"


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def our_api_server(place: Place) -> Iterator[None]:
    command = longshore(
        *("apiserver", "--data-dir", str(place.folder), "--secure-port", "6443", "--bind-address", "0.0.0.0"),
        *("--advertise-address", ADDRESS, "--write-kubeconfig", str(place.kubeconfig)),
    )
    with running(place.folder / "apiserver.log", *command):
        eventually(place.ready, seconds=60)
        yield


@contextlib.contextmanager
def upstreams_managers(place: Place) -> Iterator[None]:
    """Upstream's controller manager and scheduler; they may complain of nothing."""
    kubeconfig, pki = str(place.kubeconfig), place.folder / "pki"
    same = ("--kubeconfig", kubeconfig, "--authentication-kubeconfig", kubeconfig, "--bind-address", "127.0.0.1")
    same = (*same, "--authorization-kubeconfig", kubeconfig)
    manager = (
        *(program("kube-controller-manager"), *same, "--root-ca-file", str(pki / "ca.crt")),
        *("--service-account-private-key-file", str(pki / "sa.key"), "--use-service-account-credentials=true"),
        *("--cluster-signing-cert-file", str(pki / "ca.crt"), "--cluster-signing-key-file", str(pki / "ca.key")),
        *("--cluster-cidr", RANGE, "--allocate-node-cidrs=true"),
    )
    logs = place.folder / "manager.log", place.folder / "scheduler.log"
    with running(logs[0], *manager), running(logs[1], program("kube-scheduler"), *same):
        place.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s")
        yield
    for log in logs:
        assert complaints(log, *HARMLESS) == []


def image(place: Place, docker: str) -> None:
    """local:1, a busybox, in the engine behind a docker socket."""
    folder = place.folder / "image"
    folder.mkdir()
    shutil.copy("/bin/busybox", folder)
    install = 'RUN ["/bin/busybox","--install","-s","/bin"]'
    (folder / "Dockerfile").write_text(f"FROM scratch\nCOPY busybox /bin/busybox\n{install}\n")
    place.run(
        "docker", "build", "-q", "-t", "local:1", str(folder), DOCKER_HOST=f"unix://{docker}", DOCKER_BUILDKIT="0"
    )


def test_upstreams_controllers_and_scheduler_work_on_our_api_server(place: Place) -> None:
    program("kube-controller-manager"), program("kube-scheduler")
    nodes = longshore("simulate", "nodes", "--count", "3", "--kubeconfig", str(place.kubeconfig))
    with our_api_server(place), upstreams_managers(place), running(place.folder / "nodes.log", *nodes):
        place.kubectl("create", "deployment", "web", "--image=x", "--replicas=4")
        place.kubectl("create", "job", "once", "--image=x")
        place.kubectl("expose", "deployment", "web", "--port=80")
        place.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
        place.kubectl("set", "image", "deployment/web", "x=y")
        place.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
        place.kubectl("wait", "--for=condition=Complete", "job/once", "--timeout=60s")

        def addresses() -> bool:
            slices = place.json("get", "endpointslices", "-l", "kubernetes.io/service-name=web")["items"]
            return [len(s["endpoints"]) for s in slices] == [4]

        eventually(addresses)
        place.kubectl("create", "namespace", "gone")
        place.kubectl("create", "deployment", "-n", "gone", "z", "--image=x")
        place.kubectl("delete", "namespace", "gone", "--timeout=60s")
        used = place.json("get", "pods")["items"]
        assert {p["spec"]["nodeName"] for p in used} == {f"simulated-{n}" for n in range(3)}


def test_upstreams_kubelet_and_proxy_work_on_our_engine_and_api_server(place: Place) -> None:
    program("kubelet"), program("kube-proxy")
    need("docker")
    folder, pki = place.folder, place.folder / "pki"
    engine = longshore(
        *("engine", "--docker", "--cri", "--node", "n1", "--registry-port", "0"),
        *("--data-dir", str(folder / "e"), "--run-dir", str(folder / "r")),
    )
    cri = folder / "r" / "nodes" / "n1" / "cri.sock"
    settings = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{folder.name}",
        "authentication": {"x509": {"clientCAFile": str(pki / "ca.crt")}},
        "podLogsDir": str(folder / "logs"),
        "containerRuntimeEndpoint": f"unix://{cri}",
        "oomScoreAdj": 0,
    }
    (folder / "kubelet.yaml").write_text(json.dumps(settings))
    kubelet = (
        *(program("kubelet"), "--config", str(folder / "kubelet.yaml"), "--kubeconfig", str(place.kubeconfig)),
        *("--hostname-override", "n1", "--node-ip", ADDRESS, "--root-dir", str(folder / "kubelet")),
    )
    proxy = (
        *(program("kube-proxy"), "--proxy-mode", "nftables", "--kubeconfig", str(place.kubeconfig)),
        *("--hostname-override", "n1", "--cluster-cidr", RANGE, "--conntrack-max-per-core", "0"),
        *("--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0"),
    )
    groups = _groups(folder.name)
    with contextlib.ExitStack() as parts:
        parts.callback(_remove, groups)
        parts.enter_context(our_api_server(place))
        parts.enter_context(running(folder / "engine.log", *engine))
        eventually(cri.exists)
        parts.enter_context(upstreams_managers(place))
        parts.enter_context(running(folder / "proxy.log", *proxy))
        parts.enter_context(running(folder / "kubelet.log", *kubelet))
        place.kubectl("wait", "--for=create", "node/n1", "--timeout=60s")
        place.kubectl("wait", "--for=condition=Ready", "node/n1", "--timeout=60s")
        image(place, str(folder / "r" / "docker.sock"))
        place.kubectl("create", "deployment", "web", "--image=local:1", "--replicas=2", "--", "sh", "-c", WEB)
        try:
            place.kubectl("expose", "deployment", "web", "--port=80")
            place.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
            assert place.kubectl("logs", "deployment/web") == "started\n"
            names = {p["metadata"]["name"] for p in place.json("get", "pods")["items"]}
            assert place.kubectl("exec", "deployment/web", "--", "hostname").strip() in names
            address = place.json("get", "service", "web")["spec"]["clusterIP"]
            assert eventually(lambda: _fetch(address)) in names
            summary = json.loads(place.kubectl("get", "--raw", "/api/v1/nodes/n1/proxy/stats/summary"))
            assert names <= {p["podRef"]["name"] for p in summary["pods"]}
        finally:
            place.kubectl("delete", "deployment", "web")
            place.kubectl("wait", "--for=delete", "pod", "--all", "--timeout=60s")


def test_upstreams_api_server_goes_on_with_our_store_and_our_parts_with_it(place: Place) -> None:
    program("kube-apiserver")
    need("docker")
    folder = place.folder
    folders = ("--data-dir", str(folder / "d"), "--run-dir", str(folder / "r"))
    pki = folder / "d" / "pki"
    place.kubeconfig = pki / "admin.kubeconfig"
    docker = folder / "r" / "docker.sock"
    try:
        place.run(*longshore("up", *folders, "-q"))
        image(place, str(docker))
        place.kubectl("create", "deployment", "web", "--image=local:1", "--", "sh", "-c", WEB)
        # OpenShift's build of the API server mounts this into every pod.
        place.kubectl("create", "configmap", "openshift-service-ca.crt", "--from-literal=service-ca.crt=")
        place.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
        node = place.json("get", "nodes")["items"][0]["metadata"]["name"]
        before = place.kubectl("get", "deployments,services,serviceaccounts,clusterroles", "-A", "-o", "name")
        place.run(*longshore("down", *folders))
        store = folder / "d" / "etcd" / "etcd" / "store.db"
        api = (
            *(program("kube-apiserver"), "--etcd-servers", "http://127.0.0.1:2379", "--secure-port", "6443"),
            *("--bind-address", "0.0.0.0", "--advertise-address", ADDRESS, "--authorization-mode", "Node,RBAC"),
            *("--tls-cert-file", str(pki / "apiserver.crt"), "--tls-private-key-file", str(pki / "apiserver.key")),
            *("--client-ca-file", str(pki / "ca.crt"), "--service-account-key-file", str(pki / "sa.key")),
            *("--service-account-signing-key-file", str(pki / "sa.key"), "--service-cluster-ip-range", "10.96.0.0/16"),
            *("--service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
            *("--kubelet-client-certificate", str(pki / "apiserver-kubelet-client.crt")),
            *("--kubelet-client-key", str(pki / "apiserver-kubelet-client.key")),
        )
        with contextlib.ExitStack() as parts:
            etcd = longshore("etcd", "--data-dir", str(folder / "e"))
            parts.enter_context(running(folder / "etcd.log", *etcd, end=signal.SIGINT))
            eventually(lambda: _listens(2379))
            place.run(*longshore("etcd", "move", "--from", str(store), "--to", "http://127.0.0.1:2379"))
            parts.enter_context(running(folder / "api.log", *api))
            eventually(place.ready, seconds=90)
            after = place.kubectl("get", "deployments,services,serviceaccounts,clusterroles", "-A", "-o", "name")
            assert set(before.split()) <= set(after.split())
            for part in (("engine", "--docker", "--cri", "--node", node), ("manager",), ("node", "--node", node)):
                parts.enter_context(running(folder / f"{part[0]}.log", *longshore(part[0], *folders, *part[1:])))
            eventually(docker.exists)
            place.kubectl("rollout", "restart", "deployment/web")
            place.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
            assert "started" in place.kubectl("logs", "deployment/web")
            place.kubectl("delete", "deployment", "web")
            place.kubectl("wait", "--for=delete", "pod", "--all", "--timeout=60s")
    finally:
        place.run(*longshore("down", *folders, "--purge"))


def _fetch(address: str) -> str:
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://{address}", timeout=3) as answer:
            return answer.read().decode().strip()
    except OSError:
        return ""


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _groups(name: str) -> list[Path]:
    """Where upstream's kubelet keeps its pods' control groups; it wants the root to be there."""
    roots = [p for p in Path("/sys/fs/cgroup").iterdir() if (p / "cgroup.procs").exists() and not p.is_symlink()]
    made = [root / name for root in roots]
    for group in made:
        group.mkdir(exist_ok=True)
        if (group / "cpuset.cpus").exists():
            for file in ("cpuset.cpus", "cpuset.mems"):
                (group / file).write_text((group.parent / file).read_text())
    return made


def _remove(groups: list[Path]) -> None:
    for group in groups:
        for folder in sorted((p for p in group.rglob("*") if p.is_dir()), reverse=True):
            folder.rmdir()
        group.rmdir()
