"""A second machine (a network namespace with folders of its own) joins by token, works, is cut off, heals and leaves."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from longshore.machinery import netns
from longshore.machinery.netlink import Netlink
from support.cluster import Cluster, eventually, need

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

FIRST, SECOND = "10.77.0.1", "10.77.0.2"
IMAGE = "local/busybox:1"
WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      containers:
      - name: web
        image: local/busybox:1
        command: [sh, -c, "mkdir -p /www; hostname > /www/name; exec httpd -f -p 8080 -h /www"]
        readinessProbe: {httpGet: {path: /name, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"""


class Second(Cluster):
    """A machine of its own: every command runs in its network namespace."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.folder / "machine"
        netns.create(self.inside)
        with netns.opened(self.inside) as there, Netlink() as link:
            link.add_veth("machine2", "eth0", peer_namespace=there, up=True)
            link.add_address(link.index("machine2"), ipaddress.ip_interface(f"{FIRST}/24"))
        with Netlink(self.inside) as link:
            index = link.index("eth0")
            link.add_address(index, ipaddress.ip_interface(f"{SECOND}/24"))
            link.set_link(index, up=True)
            link.set_link(link.index("lo"), up=True)
            link.add_route(ipaddress.ip_network("0.0.0.0/0"), gateway=ipaddress.ip_address(FIRST), link=index)

    def run(self, *argv: str, **rest: object) -> str:
        return super().run("nsenter", f"--net={self.inside}", "--", *argv, **rest)  # type: ignore[arg-type]

    def cut(self, *, off: bool) -> None:
        with Netlink() as link:
            link.set_link(link.index("machine2"), up=not off)

    def kill_everything(self) -> None:
        """The machine dies: every part at once, none of them told."""
        for part in self.status()["parts"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(part["pid"], signal.SIGKILL)

    def destroy(self) -> None:
        try:
            super().destroy()
        finally:
            netns.delete(self.inside)


def busybox(cluster: Cluster) -> None:
    """A base image of the machine's static busybox."""
    need("docker")
    path = cluster.folder / "busybox.tar"
    with tarfile.open(path, "w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for name in ("sh", "httpd", "hostname", "mkdir", "sleep", "wget", "timeout", "nslookup"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    cluster.docker("import", str(path), IMAGE)


@pytest.fixture(scope="module")
def machines():
    if not Path("/bin/busybox").exists():
        pytest.skip("busybox-static is not installed")
    second = Second()
    first = Cluster("--node-ip", FIRST, "--node-monitor-grace-period", "12")
    try:
        first.up()
        yield first, second
    finally:
        try:
            second.destroy()
        finally:
            first.destroy()


def command(first: Cluster) -> list[str]:
    words = first.longshore("token", "create", "--ttl", "1h", "--description", "tests").split()
    assert words[:2] == ["longshore", "join"] and words[2] == f"{FIRST}:6443"
    return words[2:]


def nodes(first: Cluster) -> dict[str, str]:
    items = json.loads(first.kubectl("get", "nodes", "-o", "json"))["items"]
    return {
        n["metadata"]["name"]: next(c["status"] for c in n["status"]["conditions"] if c["type"] == "Ready")
        for n in items
    }


def pods(first: Cluster) -> list[dict]:
    items = json.loads(first.kubectl("get", "pods", "-l", "app=web", "-o", "json"))["items"]
    return [p for p in items if not p["metadata"].get("deletionTimestamp")]


def ready_on(first: Cluster) -> list[str]:
    return sorted(
        p["spec"]["nodeName"]
        for p in pods(first)
        if any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", ()))
    )


def test_a_wrong_pin_a_wrong_token_and_no_token_are_refused(machines):
    first, second = machines
    address, *rest = command(first)
    token = rest[rest.index("--token") + 1]
    told = second.longshore_fails("join", address, "--token", token, "--discovery-token-ca-cert-hash", "sha256:00")
    assert "not a pinned one" in told
    told = second.longshore_fails("join", address, "--token", token)
    assert "--discovery-token-ca-cert-hash is needed" in told
    wrong = token[:7] + token[7:][::-1]
    told = second.longshore_fails("join", address, *rest[2:], "--token", wrong)
    assert "signature is wrong" in told
    told = second.longshore_fails("join", address, *rest[2:], "--token", "aaaaaa.aaaaaaaaaaaaaaaa")
    assert "knows no valid token" in told
    assert not (second.data / "cluster.json").exists()
    assert token.split(".")[0] in first.longshore("token", "list")
    first.longshore("token", "delete", token)
    assert token.split(".")[0] not in first.longshore("token", "list")


def test_a_machine_joins_with_signed_certificates(machines):
    first, second = machines
    second.longshore("join", *command(first), "--node-name", "second")
    assert nodes(first)["second"] == "True"
    requests = json.loads(first.kubectl("get", "csr", "-o", "json"))["items"]
    asked = {(r["spec"]["signerName"], r["spec"]["username"].partition(":")[2].split(":")[0]) for r in requests}
    assert ("kubernetes.io/kube-apiserver-client-kubelet", "bootstrap") in asked
    assert ("kubernetes.io/kubelet-serving", "node") in asked
    # What it may do is a node's: no Secrets of the cluster.
    kubeconfig = second.data / "pki" / "kubelet-second.kubeconfig"
    told = first.kubectl("--kubeconfig", str(kubeconfig), "get", "secrets", "-A", check=False)
    assert "orbidden" in told
    told = first.longshore_fails("join", *command(first))
    assert "holds a cluster of its own" in told


def test_pods_services_and_names_span_the_machines(machines):
    first, second = machines
    busybox(first)
    busybox(second)
    first.kubectl("apply", "-f", "-", stdin=WEB)
    eventually(lambda: len(set(ready_on(first))) == 2, seconds=40)
    for pod in pods(first):
        seen = set()

        def asked(name=pod["metadata"]["name"], seen=seen):
            seen.add(first.kubectl("exec", name, "--", "timeout", "5", "wget", "-qO-", "http://web/name", check=False))
            return {p["metadata"]["name"] + "\n" for p in pods(first)} <= seen

        eventually(asked, seconds=20)
    # The API server reaches the other machine's kubelet and pods.
    there = next(p for p in pods(first) if p["spec"]["nodeName"] == "second")["metadata"]["name"]
    assert first.kubectl("get", "--raw", f"/api/v1/namespaces/default/pods/{there}:8080/proxy/name").strip() == there
    assert first.kubectl("get", "--raw", "/api/v1/nodes/second/proxy/healthz") == "ok"


def test_a_partition_is_noticed_pods_are_replaced_and_it_heals(machines):
    first, second = machines
    second.cut(off=True)
    eventually(lambda: nodes(first)["second"] == "Unknown", seconds=40)
    others = {n for n in nodes(first) if n != "second"}
    eventually(lambda: len(ready_on(first)) == 2 and set(ready_on(first)) <= others, seconds=40)
    second.cut(off=False)
    eventually(lambda: nodes(first)["second"] == "True", seconds=40)
    # What was to go there meanwhile has gone.
    eventually(lambda: len(json.loads(first.kubectl("get", "pods", "-o", "json"))["items"]) == 2, seconds=40)
    # Routes that the interface took along are there again.
    first.kubectl("rollout", "restart", "deployment/web")
    first.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    there = next(p for p in pods(first) if p["spec"]["nodeName"] == "second")["metadata"]["name"]
    assert first.kubectl("get", "--raw", f"/api/v1/namespaces/default/pods/{there}:8080/proxy/name").strip() == there


def test_a_machine_that_dies_is_replaced_and_comes_back(machines):
    first, second = machines
    second.kill_everything()
    eventually(lambda: nodes(first)["second"] == "Unknown", seconds=40)
    second.longshore("join")
    eventually(lambda: nodes(first)["second"] == "True", seconds=40)


def test_leaving_moves_the_pods_and_leaves_nothing(machines):
    first, second = machines
    first.kubectl("rollout", "restart", "deployment/web")
    first.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    second.longshore("leave")
    assert "second" not in nodes(first)
    eventually(lambda: len(ready_on(first)) == 2, seconds=40)
    assert not second.data.exists()
    tables = subprocess.run(
        ["nsenter", f"--net={second.inside}", "--", "nft", "list", "tables"], capture_output=True, text=True, check=True
    ).stdout
    assert "longshore" not in tables
    with Netlink(second.inside) as link:
        assert {one.name for one in link.links()} <= {"lo", "eth0"}
        assert not [r for r in link.routes() if str(r.destination).startswith(("10.244", "10.96"))]
