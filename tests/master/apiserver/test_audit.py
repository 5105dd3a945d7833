"""The audit log: what the policy asks for, and nothing else."""

from __future__ import annotations

import argparse
import gzip
import http.server
import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from longshore.machinery import pki
from longshore.master.apiserver.audit import backends
from longshore.master.apiserver.audit import flags as audit_flags
from longshore.master.apiserver.audit.flags import Batch, Truncate
from longshore.master.apiserver.audit.policy import Policy, PolicyError
from longshore.master.apiserver.audit.rotation import RotatingFile
from longshore.master.apiserver.context import Attributes, UserInfo
from support.cluster import eventually

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


def event(level: str = "Request", size: int = 10) -> bytes:
    user = {"username": "jane", "groups": ["a", "b"]}
    return json.dumps(
        {"level": level, "auditID": "1", "stage": "ResponseComplete", "verb": "get", "requestURI": "/x", "user": user,
         "requestReceivedTimestamp": "2026-01-01T00:00:00.000000Z", "requestObject": "x" * size}
    ).encode()  # fmt: skip


class Kept:
    """A backend that keeps what it is given."""

    def __init__(self, taken: bool = True) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        self.taken, self.closed = taken, False

    async def process(self, events: Any) -> bool:
        self.batches.append([json.loads(e) for e in events])
        return self.taken

    async def close(self) -> None:
        self.closed = True


async def test_truncation() -> None:
    kept, failed = Kept(), []
    backend = backends.Truncating(kept, Truncate(True, batch=700, event=400), lambda *a: failed.append(a))
    assert await backend.process([event(), event(size=1000), event(), event("Metadata", 1000)])
    assert [len(b) for b in kept.batches] == [2, 1] and failed == [("truncate", 1)]
    cut = kept.batches[0][1]
    assert "requestObject" not in cut and cut["annotations"] == {"audit.k8s.io/truncated": "true"}


async def test_batches() -> None:
    kept, failed = Kept(), []
    batch = Batch(buffer=5, size=2, wait=30, throttle=True, rate=1000, burst=1, concurrent=True)
    backend = backends.Buffered(kept, batch, lambda *a: failed.append(a))
    for _ in range(6):
        assert backend.process([event()])
    await backend.close()
    assert sorted(len(b) for b in kept.batches) == [1, 2, 2] and kept.closed
    assert failed == [("buffered", 1)]
    strict = backends.Union([Kept(), backends.Lenient(Kept(taken=False))])
    assert await strict.process([event()])
    assert not await backends.Union([Kept(), Kept(taken=False)]).process([event()])


def test_one_line_of_text() -> None:
    assert backends.legacy(json.loads(event())) == (
        '2026-01-01T00:00:00.000000Z AUDIT: id="1" stage="ResponseComplete" ip="<unknown>" method="get" user="jane"'
        ' groups="\\"a\\",\\"b\\"" as="<self>" asgroups="<lookup>" user-agent="" namespace="<none>" uri="/x"'
        ' response="<deferred>"'
    )


def test_rotation(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "audit.log"
    old = file.parent / "audit-2020-01-01T00-00-00.000.log"
    old.parent.mkdir()
    old.write_text("old")
    (file.parent / "audit-other.log").write_text("not ours")
    out = RotatingFile(file, size=100, age=1, backups=2, compress=True)
    for n in range(8):
        out.write(b"%060d\n" % n)
        time.sleep(0.002)  # the name has milliseconds
    with pytest.raises(ValueError, match="exceeds maximum file size"):
        out.write(b"x" * 101)
    out.close()

    def aside() -> list[Path]:
        return sorted(f for f in file.parent.iterdir() if f.name.startswith("audit-2"))

    eventually(lambda: [f.suffix for f in aside()] == [".gz", ".gz"])
    assert [int(gzip.decompress(f.read_bytes())) for f in aside()] == [5, 6]
    assert int(file.read_text()) == 7 and file.stat().st_mode & 0o777 == 0o600
    assert (file.parent / "audit-other.log").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--audit-log-path", "x", "--audit-log-mode", "now"], "invalid audit log mode now, allowed modes are"),
        (["--audit-log-path", "x", "--audit-log-format", "xml"], "invalid audit log format xml"),
        (["--audit-log-path", "x", "--audit-log-maxage", "-1"], "--audit-log-maxage -1 can't be a negative number"),
        (["--audit-webhook-config-file", "x", "--audit-webhook-batch-throttle-qps", "0"], "webhook throttle QPS 0"),
        (["--audit-log-path", "x", "--audit-log-truncate-max-batch-size", "9"], "must be greater than max event size"),
    ],
)
def test_bad_flags(flags: list[str], words: str) -> None:
    parser = argparse.ArgumentParser()
    audit_flags.add(parser)
    with pytest.raises(ValueError, match=words):
        audit_flags.options(parser.parse_args(flags))


class Receiver(http.server.BaseHTTPRequestHandler):
    """A webhook: keeps the lists of events, refuses the first one and everything while `failing`."""

    lists: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[int] = 0
    failing: ClassVar[bool] = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Receiver.asked += 1
        refused = Receiver.asked == 1 or Receiver.failing
        if not refused:
            Receiver.lists.append(json.loads(body))
        self.send_response(400 if refused else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Path]:
    """The kubeconfig of a webhook."""
    Receiver.lists, Receiver.asked, Receiver.failing = [], 0, False
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    file = tmp_path / "webhook.kubeconfig"
    file.write_bytes(pki.kubeconfig(f"http://127.0.0.1:{server.server_port}/audit", b""))
    yield file
    server.shutdown()
    server.server_close()


def test_a_webhook(tmp_path: Path, receiver: Path, start_server: Any) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    given = ["--audit-policy-file", str(policy), "--audit-webhook-config-file", str(receiver)]
    running = start_server(*given, "--audit-webhook-initial-backoff", "10ms", "--audit-webhook-batch-max-wait", "50ms")
    answer = running.send("GET", "/api/v1/nodes/x", Audit_ID="mine")
    assert answer.status == 404 and answer.headers["Audit-Id"] == "mine"

    def mine() -> list[dict[str, Any]]:
        return [e for found in Receiver.lists for e in found["items"] if e["auditID"] == "mine"]

    eventually(mine)
    assert Receiver.lists[0]["kind"] == "EventList" and Receiver.lists[0]["apiVersion"] == "audit.k8s.io/v1"
    assert mine()[0]["responseStatus"]["reason"] == "NotFound" and mine()[0]["stage"] == "ResponseComplete"
    metrics = running.send("GET", "/metrics").raw.decode()
    assert "apiserver_audit_event_total" in metrics and 'apiserver_audit_level_total{level="Metadata"}' in metrics


def test_a_webhook_that_must_be_told(tmp_path: Path, receiver: Path, start_server: Any) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]")
    running = start_server(
        *("--audit-policy-file", str(policy), "--audit-webhook-config-file", str(receiver)),
        *("--audit-webhook-mode", "blocking-strict", "--audit-webhook-initial-backoff", "1ms"),
    )
    assert running.send("GET", "/api/v1/nodes").status == 200
    stages = [e["stage"] for found in Receiver.lists for e in found["items"]][-2:]
    assert stages == ["RequestReceived", "ResponseComplete"]  # before the answer
    Receiver.failing = True
    refused = running.send("GET", "/api/v1/nodes")
    assert refused.status == 500
    assert refused.raw == b'Internal Server Error: "/api/v1/nodes": failed to store audit event\n'
    Receiver.failing = False
    watched = running.send("GET", "/api/v1/nodes?watch=1&timeoutSeconds=1")
    assert watched.status == 200
    eventually(lambda: Receiver.lists[-1]["items"][0]["stage"] == "ResponseComplete")
    last = [e for found in Receiver.lists for e in found["items"]][-3:]
    assert [e["stage"] for e in last] == ["RequestReceived", "ResponseStarted", "ResponseComplete"]
    assert last[1]["responseStatus"] == {"metadata": {}, "code": 200}
    anonymous = ssl.create_default_context(cafile=str(running.ca))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        bad = urllib.request.Request(f"{running.url}/api", headers={"Authorization": "Bearer x"})
        urllib.request.urlopen(bad, context=anonymous)
    last = Receiver.lists[-1]["items"]
    assert [e["stage"] for e in last] == ["ResponseStarted"] and last[0]["responseStatus"]["code"] == 401


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
    assert made["objectRef"] == {"resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1"}
    assert made["requestObject"]["data"] == {"x": "1"}
    assert made["responseObject"]["metadata"]["name"] == "a"
    assert "managedFields" not in made["responseObject"]["metadata"]
    assert made["responseStatus"]["code"] == 201 and made["userAgent"] == "me/1"
    assert made["annotations"]["authorization.k8s.io/decision"] == "allow"
    assert again["responseStatus"]["reason"] == "AlreadyExists"
    assert refused["impersonatedUser"]["username"] == "joe" and refused["responseStatus"]["code"] == 403
    assert refused["annotations"]["authorization.k8s.io/decision"] == "forbid"
