"""kubectl as its users use it, against a real server."""

from __future__ import annotations

import json
import subprocess
from typing import Any

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {tier: front}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: "nginx:1", ports: [{containerPort: 80}]}]}
"""


def test_namespaces_are_there(kubectl: Any) -> None:
    names = kubectl("get", "ns", "-o", "name").split()
    assert {"namespace/default", "namespace/kube-system", "namespace/kube-public", "namespace/kube-node-lease"} <= set(
        names
    )


def test_apply_both_ways(kubectl: Any) -> None:
    assert "created" in kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    assert "configured" in kubectl("apply", "-f", "-", stdin=DEPLOYMENT.replace("nginx:1", "nginx:2"))
    assert "serverside-applied" in kubectl(
        "apply", "--server-side", "-f", "-", stdin=DEPLOYMENT.replace("nginx:1", "nginx:3")
    )
    out = json.loads(kubectl("get", "deploy", "web", "-o", "json", "--show-managed-fields"))
    assert out["spec"]["template"]["spec"]["containers"][0]["image"] == "nginx:3"
    assert ("kubectl", "Apply") in {(m["manager"], m["operation"]) for m in out["metadata"]["managedFields"]}
    refused = kubectl(
        "apply", "--server-side", "--field-manager=other", "-f", "-", stdin=DEPLOYMENT.replace("nginx:1", "z"), ok=False
    )
    assert 'conflict with "kubectl"' in refused
    assert "scaled" in kubectl("scale", "deploy/web", "--replicas=5")
    assert kubectl("get", "deploy", "web", "-o", "jsonpath={.spec.replicas}") == "5"
    kubectl("label", "deploy", "web", "x=y")
    kubectl("annotate", "deploy", "web", "note=here")
    kubectl("patch", "deploy", "web", "-p", '{"spec":{"template":{"spec":{"containers":[{"name":"d","image":"e"}]}}}}')
    names = kubectl("get", "deploy", "web", "-o", "jsonpath={.spec.template.spec.containers[*].name}").split()
    assert sorted(names) == ["c", "d"]
    assert kubectl("get", "deploy", "-l", "x=y", "-o", "name").strip() == "deployment.apps/web"
    assert "Name:" in kubectl("describe", "deploy", "web")
    kubectl("delete", "deploy", "web", "--wait=false")


def test_services_get_addresses(kubectl: Any) -> None:
    kubectl("create", "service", "nodeport", "s", "--tcp=80:8080")
    spec = json.loads(kubectl("get", "svc", "s", "-o", "json"))["spec"]
    assert spec["clusterIP"].startswith("10.96.")
    assert 30000 <= spec["ports"][0]["nodePort"] <= 32767
    address = spec["clusterIP"]
    assert address in kubectl("get", "ipaddresses", "-o", "name")
    kubectl("delete", "svc", "s")
    assert address not in kubectl("get", "ipaddresses", "-o", "name")


def test_explain_and_api_resources(kubectl: Any) -> None:
    assert "strategy" in kubectl("explain", "deployment.spec")
    assert len(kubectl("explain", "pods", "--recursive").splitlines()) > 1000
    assert "deployments" in kubectl("api-resources", "--api-group=apps", "-o", "name")


def test_watch_ends_on_delete(kubectl: Any, server: Any) -> None:
    kubectl("create", "configmap", "w", "--from-literal=a=b")
    environment = {"KUBECONFIG": str(server.kubeconfig), "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent"}
    command = ["kubectl", "wait", "--for=delete", "configmap/w", "--timeout=30s"]
    waiting = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kubectl("delete", "configmap", "w")
    _, errors = waiting.communicate(timeout=40)
    assert waiting.returncode == 0, errors


def test_component_statuses(kubectl: Any) -> None:
    lines = kubectl("get", "componentstatuses").splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["controller-manager", "Unknown"],
        ["etcd-0", "Healthy"],
        ["scheduler", "Unknown"],
    ]
    assert kubectl("get", "cs", "etcd-0", "-o", "jsonpath={.conditions[0].status}") == "True"
