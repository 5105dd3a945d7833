"""Clusters of both IP families and of IPv6 alone, two nodes each: pods, Services, names, host ports, policies, load balancers."""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from support.cluster import Cluster, eventually
from support.machines import busybox

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

SERVER = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web, who: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: local/busybox:1
    command: [sh, -c, "mkdir -p /www; hostname > /www/name; exec httpd -f -p '[::]:8080' -h /www"]
    ports: [{ports}]
    readinessProbe: {{httpGet: {{path: /name, port: 8080}}, periodSeconds: 1}}
---
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: {kind}
  ipFamilyPolicy: {policy}
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
---
"""
DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-a}
spec:
  podSelector: {matchLabels: {who: b}}
  ingress:
  - from: [{podSelector: {matchLabels: {who: nobody}}}]
"""


@pytest.fixture(scope="module", params=["dual", "ipv6"])
def family(request):
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("the kernel has no IPv6")
    made = Cluster("--nodes", "2", "--ip-family", request.param)
    try:
        made.up()
        busybox(made)
        nodes = sorted(n["metadata"]["name"] for n in json.loads(made.kubectl("get", "nodes", "-o", "json"))["items"])
        text = SERVER.format(name="a", node=nodes[0], ports="")
        text += SERVER.format(name="b", node=nodes[1], ports="{containerPort: 8080, hostPort: 8088}")
        policy = "RequireDualStack" if request.param == "dual" else "SingleStack"
        for name, kind in (("web", "NodePort"), ("front", "LoadBalancer")):
            text += SERVICE.format(name=name, kind=kind, policy=policy)
        made.kubectl("apply", "-f", "-", stdin=text)
        made.kubectl("wait", "--for=condition=ready", "pod/a", "pod/b", "--timeout=60s")
        yield made, [4, 6] if request.param == "dual" else [6]
    finally:
        made.destroy()


def get(made: Cluster, *what: str) -> dict:
    return json.loads(made.kubectl("get", *what, "-o", "json"))


def url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}/name" if ":" in address else f"http://{address}:{port}/name"


def versions(addresses: list[str]) -> list[int]:
    return [ipaddress.ip_address(address).version for address in addresses]


def from_pod(made: Cluster, address: str, port: int, pod: str = "a") -> str:
    return made.kubectl("exec", pod, "--", "timeout", "3", "wget", "-qO-", url(address, port), check=False).strip()


def from_host(address: str, port: int) -> str:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url(address, port), timeout=2) as answer:
            return answer.read().decode().strip()
    except (OSError, urllib.error.URLError):
        return ""


def node_addresses(made: Cluster) -> list[str]:
    items = get(made, "nodes")["items"]
    return [a["address"] for n in items for a in n["status"]["addresses"] if a["type"] == "InternalIP"]


def test_pods_have_addresses_of_every_family_and_reach_each_other(family):
    made, wanted = family
    addresses = [entry["ip"] for entry in get(made, "pod", "b")["status"]["podIPs"]]
    assert versions(addresses) == wanted
    for address in addresses:
        assert from_pod(made, address, 8080) == "b"
        assert from_host(address, 8080) == "b"
    for node in get(made, "nodes")["items"]:
        assert [ipaddress.ip_network(text).version for text in node["spec"]["podCIDRs"]] == wanted


def test_services_are_reached_by_every_address(family):
    made, wanted = family
    spec = get(made, "service", "web")["spec"]
    assert versions(spec["clusterIPs"]) == wanted
    for address in spec["clusterIPs"]:
        seen: set[str] = set()

        def both(address=address, seen=seen):
            seen.add(from_pod(made, address, 80))
            return {"a", "b"} <= seen

        eventually(both)
    for address in node_addresses(made):
        eventually(lambda address=address: from_host(address, spec["ports"][0]["nodePort"]))
    balancer = eventually(lambda: get(made, "service", "front")["status"]["loadBalancer"].get("ingress"))
    assert versions([entry["ip"] for entry in balancer]) == wanted
    for entry in balancer:
        eventually(lambda ip=entry["ip"]: from_host(ip, 80) in ("a", "b"))
    # The API server's own Service, of the primary family.
    address = get(made, "service", "kubernetes")["spec"]["clusterIP"]
    assert versions([address]) == wanted[:1]
    assert made.kubectl("get", "--raw", "/api/v1/namespaces/default/services/web:80/proxy/name").strip() in ("a", "b")


def test_names_have_records_of_every_family(family):
    made, wanted = family
    servers = get(made, "service", "-n", "kube-system", "kube-dns")["spec"]["clusterIPs"]
    assert versions(servers) == wanted
    addresses = get(made, "service", "web")["spec"]["clusterIPs"]
    for server in servers:
        words = made.kubectl("exec", "a", "--", "nslookup", "web.default.svc.cluster.local", server, check=False)
        for address in addresses:
            assert address in words


def test_host_ports_answer_on_every_address_of_the_node(family):
    made, _ = family
    node = get(made, "pod", "b")["spec"]["nodeName"]
    addresses = [a["address"] for a in get(made, "node", node)["status"]["addresses"] if a["type"] == "InternalIP"]
    for address in addresses:
        assert from_pod(made, address, 8088) == "b"
        assert from_host(address, 8088) == "b"


def test_an_ingress_is_served_at_every_address_of_the_nodes(family):
    made, _ = family
    made.kubectl("create", "ingress", "web", "--rule=shop.test/*=web:80")
    for address in node_addresses(made):
        host = f"[{address}]" if ":" in address else address
        request = urllib.request.Request(f"http://{host}:80/name", headers={"Host": "shop.test"})

        def answers(request=request):
            try:
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=2) as answer:
                    return answer.read().decode().strip() in ("a", "b")
            except (OSError, urllib.error.URLError):
                return False

        eventually(answers)

    def told():
        found = get(made, "ingress", "web")["status"]["loadBalancer"].get("ingress", [])
        return sorted(entry["ip"] for entry in found) == sorted(node_addresses(made))

    eventually(told)
    made.kubectl("delete", "ingress", "web")


def test_policies_hold_for_every_family(family):
    made, _ = family
    addresses = [entry["ip"] for entry in get(made, "pod", "b")["status"]["podIPs"]]
    made.kubectl("apply", "-f", "-", stdin=DENY)
    for address in addresses:
        eventually(lambda address=address: from_pod(made, address, 8080) != "b")
    made.kubectl("delete", "networkpolicy", "only-a")
    for address in addresses:
        eventually(lambda address=address: from_pod(made, address, 8080) == "b")


def test_nothing_of_either_family_stays(family):
    made, _ = family
    made.down()
    links = {name for _, name in socket.if_nameindex()}
    assert not {name for name in links if name.startswith(("nodes0", "pod", "longshore"))}
    for version in ("-4", "-6"):
        words = subprocess.run(["ip", version, "route"], capture_output=True, text=True, check=True).stdout
        assert not [line for line in words.splitlines() if "10.244" in line or "10.96" in line or "fd00:10" in line]
    made.up()
