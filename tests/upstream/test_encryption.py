"""Encrypted values of either API server are read by the other: secretbox, AES and a key management service."""

from __future__ import annotations

import base64
import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import differential
from support.kmsplugin import Plugin
from support.upstream import api_server, longshore, loopback, running, serving

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
SECRET = base64.b64encode(bytes(range(32))).decode()
KINDS = {
    "secretbox": ("secrets", {"secretbox": {"keys": [{"name": "box", "secret": SECRET}]}}),
    "aesgcm": ("serviceaccounts", {"aesgcm": {"keys": [{"name": "g", "secret": SECRET}]}}),
    "aescbc": ("services", {"aescbc": {"keys": [{"name": "c", "secret": SECRET}]}}),
    "kms": ("configmaps", {"kms": {"apiVersion": "v2", "name": "keys", "endpoint": "", "timeout": "3s"}}),
}


def objects(name: str) -> Iterator[tuple[str, dict[str, object]]]:
    yield "secrets", {"metadata": {"name": name}, "stringData": {"p": name}}
    yield "serviceaccounts", {"metadata": {"name": name}}
    yield "services", {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}
    yield "configmaps", {"metadata": {"name": name}, "data": {"p": name}}


def write(server: differential.Server, name: str) -> None:
    for plural, obj in objects(name):
        assert server.ask("POST", f"/api/v1/namespaces/default/{plural}", obj).status == 201, plural


def read(server: differential.Server, name: str) -> None:
    found = {p: server.ask("GET", f"/api/v1/namespaces/default/{p}/{name}") for p, _ in objects(name)}
    assert {p: f.status for p, f in found.items()} == dict.fromkeys(found, 200)
    assert found["configmaps"].body["data"] == {"p": name}
    assert base64.b64decode(found["secrets"].body["data"]["p"]).decode() == name


def test_each_reads_what_the_other_wrote() -> None:
    loopback()
    folder = Path(tempfile.mkdtemp(prefix="le-", dir="/tmp"))
    KINDS["kms"][1]["kms"]["endpoint"] = f"unix://{folder}/kms.sock"
    entries = [{"resources": [plural], "providers": [p, {"identity": {}}]} for plural, p in KINDS.values()]
    file = folder / "encryption.yaml"
    kind = {"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1"}
    file.write_text(json.dumps({**kind, "resources": entries}))
    pki = folder / "own" / "pki"
    common = ("--encryption-provider-config", str(file))
    ours = longshore(
        *("apiserver", "--data-dir", str(folder / "own"), "--secure-port", "7443", *common),
        *("--etcd-servers", "http://127.0.0.1:2379"),
    )
    # Ours keeps and reads JSON; upstream's would write protobuf.
    theirs = api_server(pki, *common, "--storage-media-type", "application/json")
    etcd = longshore("etcd", "--data-dir", str(folder / "etcd"))
    with Plugin(folder / "kms.sock"), running(folder / "etcd.log", *etcd, end=signal.SIGINT):
        with serving(folder, 7443, *ours) as server:
            write(server, "ours")
        with serving(folder, 6443, *theirs) as server:
            read(server, "ours")
            write(server, "theirs")
        with serving(folder, 7443, *ours) as server:
            read(server, "theirs")
        held = b"".join(f.read_bytes() for f in (folder / "etcd").rglob("*") if f.is_file())
        for name in ("secretbox:v1:box", "aesgcm:v1:g", "aescbc:v1:c", "kms:v2:keys"):
            assert held.count(f"k8s:enc:{name}:".encode()) >= 2
