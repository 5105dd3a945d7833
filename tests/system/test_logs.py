"""Logs of a cluster of two nodes: one query asks both, RBAC decides what it finds, audit and Events are streams."""

import contextlib
import json
import os
import pty
import re
import select
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest

from support.cluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [create]
  resources: [{group: "", resources: [configmaps]}]
"""
READER = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: shop}
rules:
- {apiGroups: [""], resources: [pods/log], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: shop}]
"""


@pytest.fixture(scope="module")
def shop():
    made = Cluster("--nodes", "2")
    made.data.mkdir()
    (made.data / "audit-policy.yaml").write_text(POLICY)
    try:
        made.up()
        made.longshore("demo", timeout=200)
        yield made
    finally:
        made.destroy()


def asked(shop, address, path, token, **parameters):
    context = ssl.create_default_context(cafile=shop.data / "pki" / "ca.crt")
    url = f"https://{address}:3100/loki/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, context=context, timeout=30) as answer:
        return json.loads(answer.read())


def addresses(shop):
    nodes = json.loads(shop.kubectl("get", "nodes", "-o", "json"))["items"]
    return {
        n["metadata"]["name"]: next(a["address"] for a in n["status"]["addresses"] if a["type"] == "InternalIP")
        for n in nodes
    }


def test_one_query_at_any_node_finds_what_both_have_and_rbac_allows(shop):
    shop.kubectl("create", "namespace", "bank")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "till", "namespace": "bank"}}
    pod["spec"] = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["echo", "gold"]}]}  # fmt: skip
    shop.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    shop.kubectl("apply", "-f", "-", stdin=READER)
    token = shop.kubectl("create", "token", "reader", "-n", "shop").strip()
    nodes = addresses(shop)
    # The demonstration's own requests may have met the pods of one node only.
    for pod_name in shop.kubectl("get", "pods", "-n", "shop", "-o", "jsonpath={.items[*].metadata.name}").split():
        with contextlib.suppress(
            AssertionError
        ):  # one of the back tier refuses who has no token, and says so in its log
            shop.kubectl("get", "--raw", f"/api/v1/namespaces/shop/pods/{pod_name}:8080/proxy/cgi-bin/tier")
    eventually(lambda: "gold" in shop.longshore("logs", "till", "-n", "bank"))
    for address in nodes.values():

        def both(address=address):
            found = asked(shop, address, "query_range", token, query='{namespace="shop"}', limit=5000)
            assert "warnings" not in found
            return {stream["stream"]["node"] for stream in found["data"]["result"]} == set(nodes)

        eventually(both, 60)  # a refusal is remembered for half a minute
        assert asked(shop, address, "label/namespace/values", token)["data"] == ["shop"]
        assert asked(shop, address, "query_range", token, query='{namespace="bank"}')["data"]["result"] == []
        assert asked(shop, address, "query_range", token, query='{job=~".+"}')["data"]["result"] == []
        counted = asked(
            shop, address, "query", token, query='count(sum by (node) (count_over_time({namespace="shop"}[1h])))'
        )
        assert counted["data"]["result"][0]["value"][1] == "2"


def test_pods_labels_are_labels_of_their_lines(shop):
    found = eventually(
        lambda: shop.longshore("logs", '{label_app="back", namespace="shop", stream=~".+"}', "--limit", "3")
    )
    assert "back-" in found


def test_audit_and_events_are_streams_under_an_identity_of_their_own(shop):
    shop.kubectl("create", "configmap", "written", "-n", "shop")
    query = '{job="audit"} | json | objectRef_namespace="shop" | user_username="kubernetes-admin"'
    line = eventually(lambda: shop.longshore("logs", query))
    event = json.loads(line[line.index("{") :].splitlines()[0])
    assert event["verb"] == "create" and event["objectRef"]["resource"] == "configmaps"
    assert "Scheduled" in eventually(lambda: shop.longshore("logs", '{job="events"} |= "Scheduled"'))
    config = str(shop.data / "pki" / "logs.kubeconfig")
    assert shop.kubectl("--kubeconfig", config, "auth", "can-i", "list", "events", "-A").strip() == "yes"
    for refused in (("get", "secrets"), ("delete", "pods"), ("list", "configmaps")):
        assert (
            shop.kubectl("--kubeconfig", config, "auth", "can-i", *refused, "-A", check=False).strip().startswith("no")
        )


def test_earlier_lives_and_gone_pods_are_found_in_colour_and_followed(shop):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "twice", "namespace": "shop"}}
    pod["spec"] = {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", "echo a life; exit 1"]}]}  # fmt: skip
    shop.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    eventually(lambda: shop.longshore("logs", "twice", "-n", "shop").count("a life") >= 2, 60)
    shop.kubectl("delete", "pod", "twice", "-n", "shop")
    assert shop.longshore("logs", "twice", "-n", "shop").count("a life") >= 2
    mine, its = pty.openpty()
    command = [sys.executable, "-m", "longshore", "logs", *shop.folders, "deployment/back", "-n", "shop", "-f"]
    child = subprocess.Popen(command, stdout=its, env=shop.env)
    os.close(its)
    try:
        # Which pods have answered so far is chance: each says something now.
        for name in shop.kubectl("get", "pods", "-n", "shop", "-l", "app=back", "-o", "name").split():
            shop.kubectl("exec", "-n", "shop", name, "--", "sh", "-c", "echo here > /proc/1/fd/1")
        seen = b""
        while len(set(re.findall(rb"\x1b\[\d+mback-[^\x1b]*\x1b\[0m", seen))) < 2:
            assert select.select([mine], [], [], 30)[0], seen
            seen += os.read(mine, 65536)
    finally:
        child.terminate()
        child.wait()
        os.close(mine)
