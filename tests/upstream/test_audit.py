"""The same requests to both API servers leave the same audit events."""

from __future__ import annotations

import json
import re
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from support import differential
from support.upstream import api_server, longshore, loopback, running, serving

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- {level: None, userGroups: ["system:unauthenticated"]}
- {level: Metadata, namespaces: [meta]}
- {level: RequestResponse, namespaces: [full]}
- {level: None}
"""
#: What differs from server to server and from moment to moment.
_OWN = re.compile(
    r'"(uid|resourceVersion|time|creationTimestamp|deletionTimestamp|clusterIP|auditID|stageTimestamp|manager'
    r'|requestReceivedTimestamp)": "[^"]*"'
)
_NAMES = (
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]*", "UID"), (r"g-[a-z0-9]{5}", "g-X"), (r"X509SHA256=\w+", "HASH"),
    (r'"10\.96[0-9.]*"', "ADDRESS"),
)  # fmt: skip


def work(server: differential.Server) -> None:
    """Requests of many kinds, each to a namespace of every level."""
    for namespace in ("meta", "full"):
        server.ask("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        url = f"/api/v1/namespaces/{namespace}/configmaps"
        obj: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "b"}}
        server.ask("POST", url, obj)
        server.ask("POST", url, obj)
        server.ask("POST", url, {**obj, "metadata": {"generateName": "g-"}})
        found = server.ask("GET", f"{url}/a")
        assert found is not None
        server.ask("PUT", f"{url}/a", {**found.body, "data": {"x": "y"}})
        server.ask("PATCH", f"{url}/a", {"data": {"q": "1"}}, "application/merge-patch+json")
        server.ask("GET", f"{url}/none")
        server.ask("GET", url)
        server.ask("GET", f"{url}?watch=1&timeoutSeconds=1&resourceVersion=0")
        server.ask("GET", f"{url}?watch=1&resourceVersion=x")
        server.ask("DELETE", f"{url}/a")
        service = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}
        server.ask("POST", f"/api/v1/namespaces/{namespace}/services", service)
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
        server.ask("DELETE", f"/api/v1/namespaces/{namespace}/services/s", options)
        server.ask("GET", f"/api/v1/namespaces/{namespace}/pods/x/log")
        server.ask("POST", url, "nonsense")


def events(file: Path) -> list[str]:
    out = []
    for line in file.read_text().splitlines():
        event = json.loads(line)
        about = event["objectRef"]
        if event["user"].get("username") != "kubernetes-admin" or about["resource"] == "namespaces":
            continue
        event.pop("userAgent", None)
        text = _OWN.sub(r'"\1": "*"', json.dumps(event, sort_keys=True))
        for pattern, name in _NAMES:
            text = re.sub(pattern, name, text)
        out.append(text)
    return out


def test_events_are_upstreams() -> None:
    loopback()
    folder = Path(tempfile.mkdtemp(prefix="la-", dir="/tmp"))
    policy = folder / "policy.yaml"
    policy.write_text(POLICY)

    def audit(name: str) -> tuple[str, ...]:
        return ("--audit-policy-file", str(policy), "--audit-log-path", str(folder / name))

    ours = longshore("apiserver", "--data-dir", str(folder / "own"), "--secure-port", "7443", *audit("ours"))
    etcd = longshore("etcd", "--data-dir", str(folder / "etcd"))
    with running(folder / "etcd.log", *etcd, end=signal.SIGINT), serving(folder, 7443, *ours) as mine:
        with serving(folder, 6443, *api_server(folder / "own" / "pki", *audit("theirs"))) as judge:
            work(judge)
        work(mine)
    theirs = events(folder / "theirs")
    assert len(theirs) > 50
    assert events(folder / "ours") == theirs
