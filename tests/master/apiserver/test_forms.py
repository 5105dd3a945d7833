"""In which form an answer comes: tables only where there are columns, aggregated discovery as protobuf."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest

from longshore.master.apiserver import protobuf

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
REVIEW = {
    "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
    "spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}},
}  # fmt: skip
TABLE = "application/{};as=Table;v=v1;g=meta.k8s.io"


def test_what_has_no_columns_is_no_table(server: Any) -> None:
    refused = server.send("POST", REVIEWS, REVIEW, Accept=TABLE.format("json"))
    assert (refused.status, refused.json["reason"]) == (406, "NotAcceptable")
    either = server.send("POST", REVIEWS, REVIEW, Accept=TABLE.format("json") + ",application/json")
    assert either.json["kind"] == "SelfSubjectAccessReview"
    nodes = "/api/v1/nodes"
    assert server.send("GET", nodes, Accept=TABLE.format("json")).json["kind"] == "Table"
    refused = server.send("GET", nodes, Accept=TABLE.format("vnd.kubernetes.protobuf"))
    assert (refused.status, refused.headers["Content-Type"]) == (406, "application/json")


def test_aggregated_discovery_as_protobuf(server: Any) -> None:
    form = "application/{};g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    for path in ("/api", "/apis"):
        answer = server.send("GET", path, Accept=form.format("vnd.kubernetes.protobuf"))
        assert answer.headers["Content-Type"] == form.format("vnd.kubernetes.protobuf")
        told = protobuf.decode(answer.raw)
        plain = server.send("GET", path, Accept=form.format("json")).json
        assert told["kind"] == plain["kind"] == "APIGroupDiscoveryList"

        def shown(document: Any) -> list[Any]:
            return [
                (g["metadata"].get("name", ""), v["version"], r["resource"], r["verbs"], r["scope"])
                for g in document["items"] for v in g["versions"] for r in v.get("resources", ())
            ]  # fmt: skip

        assert shown(told) == shown(plain) != []


@pytest.fixture
def request_pem(tmp_path: Path) -> bytes:
    command = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=a",
               "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "csr")]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return (tmp_path / "csr").read_bytes()


def test_a_status_takes_only_certificates(server: Any, request_pem: bytes) -> None:
    path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    spec = {"request": base64.b64encode(request_pem).decode(), "signerName": "example.com/x", "usages": ["client auth"]}
    body = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "a"}}
    assert server.send("POST", path, {**body, "spec": spec}).status == 201
    merge = "application/merge-patch+json"

    def issue(text: bytes) -> Any:
        patch = {"status": {"certificate": base64.b64encode(text).decode()}}
        return server.send("PATCH", f"{path}/a/status", patch, Content_Type=merge)

    for wrong, why in (
        (b"nothing", "must contain at least one CERTIFICATE PEM block"),
        (request_pem, 'only CERTIFICATE PEM blocks are allowed, found "CERTIFICATE REQUEST"'),
        (b"-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n", "x509"),
    ):
        refused = issue(wrong)
        assert refused.status == 422 and why in refused.json["message"], refused.raw
    assert issue(server.certificate.read_bytes()).status == 200


def test_columns_of_versions_that_are_not_stored(server: Any) -> None:
    event = {
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e1"}, "reason": "Test", "action": "Do",
        "type": "Normal", "note": "a note", "reportingController": "c", "reportingInstance": "i",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "eventTime": "2024-01-02T03:04:05.000006Z",
    }  # fmt: skip
    assert server.send("POST", "/apis/events.k8s.io/v1/namespaces/default/events", event).status == 201
    scaler = {
        "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}, "maxReplicas": 3,
                 "targetCPUUtilizationPercentage": 50},
    }  # fmt: skip
    assert server.send("POST", "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers", scaler).status == 201
    pairs = (
        ("/apis/events.k8s.io/v1/namespaces/default/events", "/api/v1/namespaces/default/events"),
        *[("/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers",
           "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers")],
    )  # fmt: skip
    for one, other in pairs:
        rows = [server.send("GET", path, Accept=TABLE.format("json")).json["rows"] for path in (one, other)]
        assert [r["cells"] for r in rows[0]] == [r["cells"] for r in rows[1]] and len(rows[0]) == 1
    assert rows[0][0]["cells"][:3] == ["h", "Deployment/d", "cpu: <unknown>/50%"]


def test_some_statuses_leave_metadata_alone(server: Any) -> None:
    claims = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
    request = {"name": "r", "exactly": {"deviceClassName": "c"}}
    claim = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "c"}}
    assert server.send("POST", claims, {**claim, "spec": {"devices": {"requests": [request]}}}).status == 201
    patch = {"metadata": {"annotations": {"a": "b"}, "finalizers": ["x.y/z"]}, "status": {"allocation": {}}}
    merge = "application/merge-patch+json"
    got = server.send("PATCH", f"{claims}/c/status?fieldManager=m", patch, Content_Type=merge).json
    assert got["status"]["allocation"] is not None and not {"annotations", "finalizers"} & set(got["metadata"])
    entry = next(e for e in got["metadata"]["managedFields"] if e.get("subresource") == "status")
    assert set(entry["fieldsV1"]) == {"f:status"}
