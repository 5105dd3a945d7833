"""Three nodes on one machine: pods are spread, and pods of different nodes reach each other."""

import json

import pytest

from support.cluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def shop():
    made = Cluster("--nodes", "3")
    made.data.mkdir()
    (made.data / "daemon.json").write_text(json.dumps({"registry-mirrors": ["http://127.0.0.1:5000"]}))
    try:
        made.up()
        made.longshore("demo", timeout=200)
        yield made
    finally:
        made.destroy()


def test_three_nodes_are_ready(shop):
    nodes = json.loads(shop.kubectl("get", "nodes", "-o", "json"))["items"]
    assert len(nodes) == 3
    ranges = {n["spec"]["podCIDR"] for n in nodes}
    assert len(ranges) == 3
    for node in nodes:
        assert any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])


def test_pods_are_spread_over_the_nodes(shop):
    items = json.loads(shop.kubectl("get", "pods", "-n", "shop", "-l", "app=back", "-o", "json"))["items"]
    assert len({p["spec"]["nodeName"] for p in items}) == 3


def test_every_pod_reaches_every_other(shop):
    items = json.loads(shop.kubectl("get", "pods", "-n", "shop", "-o", "json"))["items"]
    front = [p for p in items if p["metadata"]["labels"]["app"] == "front"]
    for asker in front:
        for other in items:
            address = f"http://{other['status']['podIP']}:8080/healthz"
            words = shop.kubectl(
                "exec", "-n", "shop", asker["metadata"]["name"], "--", "timeout", "5", "wget", "-qO-", address
            )
            assert words == "ok\n"


def test_the_api_server_reaches_the_pods_and_services_of_every_node(shop):
    items = json.loads(shop.kubectl("get", "pods", "-n", "shop", "-l", "app=back", "-o", "json"))["items"]
    for pod in items:
        path = f"/api/v1/namespaces/shop/pods/{pod['metadata']['name']}:8080/proxy/healthz"
        assert shop.kubectl("get", "--raw", path) == "ok\n"
    assert shop.kubectl("get", "--raw", "/api/v1/namespaces/shop/services/back:http/proxy/healthz") == "ok\n"


def test_one_log_query_asks_all_nodes(shop):
    words = eventually(lambda: shop.longshore("logs", "deployment/back", "-n", "shop"))
    assert "answers" in words


def test_every_node_pulls_by_the_mirror_on_this_machines_loopback(shop):
    pushed = "localhost:5000/library/only-there:1"
    shop.docker("tag", "busybox:latest", pushed)
    shop.docker("push", "-q", pushed)
    shop.docker("rmi", pushed)
    nodes = json.loads(shop.kubectl("get", "nodes", "-o", "json"))["items"]
    for number, node in enumerate(nodes):
        name = node["metadata"]["name"]
        # Each node's engine asks: the policy is Always, though the nodes of one machine share the image store.
        spec = {"nodeName": name, "containers": [{"name": "c", "image": "only-there:1", "imagePullPolicy": "Always"}]}
        spec["containers"][0]["command"] = ["sleep", "60"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"mirror-{number}"}, "spec": spec}
        shop.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    for number in range(len(nodes)):
        shop.kubectl("wait", "--for=condition=Ready", f"pod/mirror-{number}", "--timeout=30s")
    assert "Successfully pulled image" in shop.kubectl("get", "events", "-o", "wide")
    assert "http://127.0.0.1:5000/" in shop.docker("info")
