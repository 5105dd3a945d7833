"""Encryption at rest: what lies in the store, reading it back over restarts, and changing keys."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from longshore.master.apiserver.encryption import Configuration, EncryptedStore, EncryptionError
from longshore.master.etcd.model import KeyValue

SECRET = base64.b64encode(bytes(range(32))).decode()


def configuration(*providers: Any, resources: tuple[str, ...] = ("secrets", "things.example.com")) -> Configuration:
    entry = {"resources": list(resources), "providers": list(providers)}
    return Configuration({"kind": "EncryptionConfiguration", "resources": [entry]})


def keyed(kind: str, name: str = "one") -> Any:
    return {kind: {"keys": [{"name": name, "secret": SECRET}]}}


@pytest.mark.parametrize("kind", ["aesgcm", "aescbc"])
def test_values(kind: str) -> None:
    store = EncryptedStore(None, configuration(keyed(kind), {"identity": {}}))
    key = b"/registry/secrets/default/a"
    sealed = store._seal(key, b'{"a":1}')
    assert sealed.startswith(b"k8s:enc:%b:v1:one:" % kind.encode()) and b'"a"' not in sealed
    assert store._open(KeyValue(key, sealed)).value == b'{"a":1}'
    assert not store.stale
    # What was written before is read, and told apart.
    assert store._open(KeyValue(key, b"{}")).value == b"{}" and store.stale == {key}
    # Others are left alone.
    assert store._seal(b"/registry/pods/default/a", b"{}") == b"{}"
    assert store._seal(b"/registry/example.com/things/default/a", b"{}").startswith(b"k8s:enc:")
    # A value that was changed, or moved to another key, is not believed.
    with pytest.raises(EncryptionError):
        store._open(
            KeyValue(key, sealed[:-1] + bytes([sealed[-1] ^ 1])) if kind == "aesgcm" else KeyValue(key, sealed[:-1])
        )


def test_keys_and_wildcards() -> None:
    key = b"/registry/secrets/default/a"
    old = EncryptedStore(None, configuration(keyed("aesgcm", "old")))
    new = EncryptedStore(None, configuration(keyed("aescbc", "new"), keyed("aesgcm", "old")))
    assert new._open(KeyValue(key, old._seal(key, b"{}"))).value == b"{}" and key in new.stale
    with pytest.raises(EncryptionError, match="no matching prefix"):
        old._open(KeyValue(key, new._seal(key, b"{}")))
    every = configuration(keyed("aesgcm"), resources=("*.*",))
    assert every.ciphers(b"/registry/minions/a") and every.ciphers(b"/other") is None
    apps = configuration(keyed("aesgcm"), resources=("*.apps",))
    assert apps.ciphers(b"/registry/deployments/a/b") and not apps.ciphers(b"/registry/secrets/a/b")


@pytest.mark.parametrize(
    "provider", [{"kms": {"name": "x"}}, {"aescbc": {"keys": [{"name": "a", "secret": "eA=="}]}}, {}]
)
def test_bad_configurations(provider: Any) -> None:
    with pytest.raises(EncryptionError):
        configuration(provider)


def test_a_server(tmp_path: Path, start_server: Any) -> None:
    file = tmp_path / "encryption.yaml"
    file.write_text(
        "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: [secrets]\n"
        f"  providers: [{{aesgcm: {{keys: [{{name: k, secret: {SECRET}}}]}}}}, {{identity: {{}}}}]\n"
    )
    running = start_server("--encryption-provider-config", str(file))
    body = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "a"}, "stringData": {"p": "correct horse"}}
    url = "/api/v1/namespaces/default/secrets"
    assert running.send("POST", url, body).status == 201
    patch = {"metadata": {"labels": {"x": "y"}}}
    assert running.send("PATCH", f"{url}/a", patch, Content_Type="application/merge-patch+json").status == 200
    found = running.send("GET", f"{url}?labelSelector=x%3Dy").json["items"]
    assert base64.b64decode(found[0]["data"]["p"]) == b"correct horse"
    running.stop()
    plain = base64.b64encode(b"correct horse")
    stored = b"".join(f.read_bytes() for f in running.data.rglob("*") if f.is_file())
    assert b"/registry/secrets/default/a" in stored and b"k8s:enc:aesgcm:v1:k:" in stored
    assert plain not in stored
