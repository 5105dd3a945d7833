"""The audit log: what the policy asks for, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longshore.master.apiserver.audit import Policy, PolicyError
from longshore.master.apiserver.context import Attributes, UserInfo

POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  resources: [{group: "", resources: [events]}]
- level: None
  nonResourceURLs: ["/healthz*", /version]
- level: RequestResponse
  omitManagedFields: true
  namespaces: [default]
  resources: [{group: "", resources: [configmaps, pods/log]}]
- level: Request
  verbs: [create]
- level: Metadata
"""


def attributes(verb: str = "get", **given: Any) -> Attributes:
    return Attributes(UserInfo("jane", groups=("dev",)), verb, **given)


def test_rules(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    policy = Policy.load(file)

    def level(*args: Any, **given: Any) -> str:
        return policy.evaluate(attributes(*args, **given))[0]

    assert level(resource="events", namespace="default") == "None"
    assert level(path="/healthz/etcd", is_resource=False) == "None"
    assert level(path="/metrics", is_resource=False) == "Metadata"
    assert level(resource="configmaps", namespace="default") == "RequestResponse"
    assert level(resource="configmaps", namespace="other") == "Metadata"
    assert level(resource="pods", namespace="default") == "Metadata"
    assert level(resource="pods", subresource="log", namespace="default") == "RequestResponse"
    assert level("create", resource="pods", namespace="default") == "Request"


@pytest.mark.parametrize(
    "text", ["", "a: [", "kind: Policy", "kind: Policy\napiVersion: audit.k8s.io/v1\nrules: [{level: x}]"]
)
def test_bad_policies(tmp_path: Path, text: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(PolicyError):
        Policy.load(file)


def test_events_are_written(tmp_path: Path, start_server: Any) -> None:
    policy, out = tmp_path / "policy.yaml", tmp_path / "audit.log"
    policy.write_text(POLICY)
    running = start_server("--audit-policy-file", str(policy), "--audit-log-path", str(out))
    url = "/api/v1/namespaces/default/configmaps"
    body = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"x": "1"}}
    assert running.send("POST", url, body, User_Agent="me/1").status == 201
    assert running.send("POST", url, body).status == 409
    assert running.send("GET", "/version").status == 200
    assert running.send("GET", "/api/v1/nodes/x", Impersonate_User="joe").status == 403
    events = [json.loads(line) for line in out.read_text().splitlines()]
    events = [e for e in events if e["user"].get("username") == "kubernetes-admin"]
    made, again, refused = events
    assert made["level"] == "RequestResponse" and made["stage"] == "ResponseComplete"
    assert made["objectRef"] == {"resource": "configmaps", "namespace": "default", "apiVersion": "v1"}
    assert made["requestObject"]["data"] == {"x": "1"}
    assert made["responseObject"]["metadata"]["name"] == "a"
    assert "managedFields" not in made["responseObject"]["metadata"]
    assert made["responseStatus"]["code"] == 201 and made["userAgent"] == "me/1"
    assert made["annotations"]["authorization.k8s.io/decision"] == "allow"
    assert again["responseStatus"]["reason"] == "AlreadyExists"
    assert refused["impersonatedUser"]["username"] == "joe" and refused["responseStatus"]["code"] == 403
    assert refused["annotations"]["authorization.k8s.io/decision"] == "forbid"
