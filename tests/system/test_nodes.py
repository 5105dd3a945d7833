"""Three nodes on one machine: pods are spread, and pods of different nodes reach each other."""

import json

import pytest

from support.cluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def shop():
    made = Cluster("--nodes", "3")
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


def test_one_log_query_asks_all_nodes(shop):
    words = eventually(lambda: shop.longshore("logs", "deployment/back", "-n", "shop"))
    assert "answers" in words
