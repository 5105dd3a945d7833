"""A second machine (a network namespace with folders of its own) joins by token, works, is cut off, heals and leaves."""

from __future__ import annotations

import json
import subprocess

import pytest

from longshore.cli import cluster
from longshore.machinery.netlink import Netlink
from support.cluster import Cluster, eventually
from support.machines import Machine, busybox

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

FIRST, SECOND = "10.77.0.1", "10.77.0.2"
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


@pytest.fixture(scope="module")
def machines():
    second = Machine()
    second.plug("machine2", f"{FIRST}/24", f"{SECOND}/24")
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
    told = first.kubectl("--kubeconfig", str(kubeconfig), "delete", "node", cluster.host_name(), check=False)
    assert "orbidden" in told and cluster.host_name() in nodes(first)
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
    # Both serve Ingress: the one that joined has had a certificate for that signed as well.
    first.kubectl("create", "ingress", "web", "--rule=web.example/*=web:80")
    for machine in (FIRST, SECOND):
        asked = ("timeout", "5", "curl", "-s", "-H", "Host: web.example", f"http://{machine}/name")
        eventually(lambda asked=asked: first.run(*asked).strip() in {p["metadata"]["name"] for p in pods(first)})
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
