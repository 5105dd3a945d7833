"""Encryption at rest: what lies in the store, reading it back over restarts, and changing keys."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from nacl.secret import SecretBox

from longshore.master.apiserver.encryption import ciphers
from longshore.master.apiserver.encryption.configuration import Configuration
from longshore.master.apiserver.encryption.errors import EncryptionError, TransformError
from longshore.master.apiserver.encryption.store import EncryptedStore
from longshore.master.etcd.model import KeyValue
from support.cluster import eventually
from support.kmsplugin import Plugin

SECRET = base64.b64encode(bytes(range(32))).decode()


def configuration(*providers: Any, resources: tuple[str, ...] = ("secrets", "things.example.com")) -> Configuration:
    entry = {"resources": list(resources), "providers": list(providers)}
    return Configuration({"kind": "EncryptionConfiguration", "resources": [entry]})


def keyed(kind: str, name: str = "one") -> Any:
    return {kind: {"keys": [{"name": name, "secret": SECRET}]}}


@pytest.mark.parametrize("kind", ["aesgcm", "aescbc", "secretbox"])
def test_values(kind: str) -> None:
    store = EncryptedStore(None, configuration(keyed(kind), {"identity": {}}))
    key = b"/registry/secrets/default/a"
    sealed = store._seal(key, b'{"a":1}')
    assert sealed.startswith(b"k8s:enc:%b:v1:one:" % kind.encode()) and b'"a"' not in sealed
    assert store._open(KeyValue(key, sealed)).value == b'{"a":1}'
    assert key not in store.stale
    # What was written before is read, and told apart.
    assert store._open(KeyValue(key, b"{}")).value == b"{}" and key in store.stale
    # Others are left alone.
    assert store._seal(b"/registry/pods/default/a", b"{}") == b"{}"
    assert store._seal(b"/registry/example.com/things/default/a", b"{}").startswith(b"k8s:enc:")
    # A value that was changed, or moved to another key, is not believed.
    with pytest.raises(TransformError):
        store._open(
            KeyValue(key, sealed[:-1] + bytes([sealed[-1] ^ 1])) if kind != "aescbc" else KeyValue(key, sealed[:-1])
        )


def test_keys_and_wildcards() -> None:
    key = b"/registry/secrets/default/a"
    old = EncryptedStore(None, configuration(keyed("aesgcm", "old")))
    new = EncryptedStore(None, configuration(keyed("aescbc", "new"), keyed("aesgcm", "old")))
    assert new._open(KeyValue(key, old._seal(key, b"{}"))).value == b"{}" and key in new.stale
    with pytest.raises(TransformError, match="no matching prefix"):
        old._open(KeyValue(key, new._seal(key, b"{}")))
    every = configuration(keyed("aesgcm"), resources=("*.*",))
    assert every.ciphers(b"/registry/minions/a") and every.ciphers(b"/other") is None
    apps = configuration(keyed("aesgcm"), resources=("*.apps",))
    assert apps.ciphers(b"/registry/deployments/a/b") and not apps.ciphers(b"/registry/secrets/a/b")


def test_secretbox_is_nacls() -> None:
    """The example of "Cryptography in NaCl", sections 9 and 10 (its message begins with be075fc5)."""
    key = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
    nonce = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
    message = bytes.fromhex(
        "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561"
        "f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde048977eb48f59ffd4924ca1c6090"
        "2e52f0a089bc76897040e082f937763848645e0705"
    )
    seal, unseal = ciphers.secretbox(key)
    begin = bytes.fromhex("f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4")
    sealed = seal(message, b"")
    assert len(sealed) == 24 + 16 + len(message) and unseal(sealed, b"") == message
    assert SecretBox(key).encrypt(message, nonce).ciphertext.startswith(begin)
    assert unseal(bytes(SecretBox(key).encrypt(message, nonce)), b"") == message
    for broken in (sealed[:-1], sealed[:30], b""):
        with pytest.raises(ValueError):
            unseal(broken, b"")
    assert unseal(seal(b"", b""), b"") == b""


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ([{"resources": ["secrets"], "providers": [{"kms": {"name": "x"}}]}], "endpoint is a mandatory field for a kms"),
        (
            [{"resources": ["secrets"], "providers": [{"kms": {"name": "x", "endpoint": "http://a", "apiVersion": "v2"}}]}],
            'unsupported scheme "http" for KMS provider, only unix is supported',
        ),
        (
            [{"resources": ["secrets"], "providers": [{"kms": {"name": "x", "endpoint": "unix:///a"}}]}],
            "KMSv1 is deprecated",
        ),
        (
            [{"resources": ["secrets"], "providers": [{"aescbc": {"keys": [{"name": "a", "secret": "eA=="}]}}]}],
            "secret is not of the expected length, got 1, expected one of \\[16 24 32\\]",
        ),
        ([{"resources": ["secrets"], "providers": [{}]}], "does not contain any of the expected providers"),
        ([{"resources": ["secrets"], "providers": []}], "at least one resources\\[0\\].providers is required"),
        ([{"resources": ["*"], "providers": [{"identity": {}}]}], "use '\\*.' to encrypt all the resources from core"),
        ([{"resources": ["secrets", "*."], "providers": [{"identity": {}}]}], "using overlapping resources"),
        ([{"resources": ["Secrets"], "providers": [{"identity": {}}]}], "should not contain capital letters"),
        (
            [{"resources": ["*.*"], "providers": [{"identity": {}}]}, {"resources": ["secrets"], "providers": [{"identity": {}}]}],
            'resource "secrets" is masked by earlier rule "\\*.\\*"',
        ),
        ([], "at least one resources is required"),
    ],
)  # fmt: skip
def test_bad_configurations(resources: Any, words: str) -> None:
    with pytest.raises(EncryptionError, match=words):
        Configuration({"kind": "EncryptionConfiguration", "resources": resources})


def write(file: Path, *resources: tuple[list[str], list[Any]]) -> Path:
    """An EncryptionConfiguration file, put in place as a whole."""
    entries = [{"resources": names, "providers": providers} for names, providers in resources]
    value = {"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1", "resources": entries}
    new = file.with_name("new")
    new.write_text(json.dumps(value))
    new.rename(file)
    return file


def stored(running: Any) -> bytes:
    return b"".join(f.read_bytes() for f in running.data.rglob("*") if f.is_file())


def service(socket: Path, name: str = "keys") -> Any:
    return {"kms": {"apiVersion": "v2", "name": name, "endpoint": f"unix://{socket}", "timeout": "2s"}}


CRD = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.example.com"},
    "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": True}}}],
    },
}  # fmt: skip


def test_a_key_management_service(tmp_path: Path, start_server: Any) -> None:
    file, socket = tmp_path / "encryption.yaml", tmp_path / "kms.sock"
    configmaps = "/api/v1/namespaces/default/configmaps"
    with Plugin(socket) as plugin:
        write(file, (["configmaps", "*.example.com"], [service(socket), {"identity": {}}]))
        running = start_server("--encryption-provider-config", str(file))
        assert running.send("POST", configmaps, {"metadata": {"name": "a"}, "data": {"p": "battery"}}).status == 201
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        assert running.send("POST", crds, CRD).status == 201
        things = "/apis/example.com/v1/namespaces/default/things"
        thing = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "word": "staple"}
        eventually(lambda: running.send("POST", things, thing).status == 201)
        plain = running.send("POST", "/api/v1/namespaces/default/secrets", {"metadata": {"name": "plain"}})
        assert plain.status == 201 and plugin.opened == 0
        verbose = running.send("GET", "/livez?verbose").raw
        assert b"[+]etcd ok\n[+]kms-providers ok\n" in verbose
        assert running.send("GET", "/readyz/kms-providers").raw == b"ok"
        running.stop()
        held = stored(running)
        assert held.count(b"k8s:enc:kms:v2:keys:") >= 2 and b"battery" not in held and b"staple" not in held
        # The next server has to have the seed opened, once.
        again = start_server("--encryption-provider-config", str(file), data=running.data)
        assert again.send("GET", f"{configmaps}/a").json["data"] == {"p": "battery"}
        assert again.send("GET", f"{things}/t").json["word"] == "staple"
        assert plugin.opened == 1


def test_a_service_that_is_not_there(tmp_path: Path, start_server: Any) -> None:
    file, socket = tmp_path / "encryption.yaml", tmp_path / "kms.sock"
    write(file, (["configmaps"], [service(socket)]))
    running = start_server("--encryption-provider-config", str(file))
    refused = running.send("POST", "/api/v1/namespaces/default/configmaps", {"metadata": {"name": "a"}})
    assert refused.status == 500
    assert refused.json["message"] == "Internal error occurred: got unexpected nil transformer"
    checked = running.send("GET", "/readyz")
    assert checked.status == 500 and b"[-]kms-providers failed: reason withheld" in checked.raw
    assert running.send("POST", "/api/v1/namespaces/default/secrets", {"metadata": {"name": "a"}}).status == 201


def test_the_file_is_read_again(tmp_path: Path, start_server: Any) -> None:
    file, socket = tmp_path / "encryption.yaml", tmp_path / "kms.sock"
    one, two = keyed("aescbc", "one"), keyed("secretbox", "two")
    secrets = "/api/v1/namespaces/default/secrets"
    write(file, (["secrets"], [one]))
    running = start_server("--encryption-provider-config", str(file), "--encryption-provider-config-automatic-reload")
    assert running.send("POST", secrets, {"metadata": {"name": "a"}, "stringData": {"p": "horse"}}).status == 201

    def told(text: str) -> bool:
        return text in running.send("GET", "/metrics").raw.decode()

    def rewritten() -> None:
        """An update that changes nothing writes with the key of now."""
        was = running.send("GET", f"{secrets}/a").json
        now = running.send("PUT", f"{secrets}/a", was).json
        assert now["metadata"]["resourceVersion"] != was["metadata"]["resourceVersion"]
        again = running.send("PUT", f"{secrets}/a", now).json
        assert again["metadata"]["resourceVersion"] == now["metadata"]["resourceVersion"]

    write(file, (["secrets"], [two, one]))
    name = "apiserver_encryption_config_controller_automatic_reloads_total"
    eventually(lambda: any(name in line and 'status="success"} 1' in line for line in metrics(running)))
    rewritten()
    write(file, (["secrets"], [{"aescbc": {"keys": []}}]))
    eventually(lambda: any(name in line and 'status="failure"} 1' in line for line in metrics(running)))
    with Plugin(socket):
        write(file, (["secrets"], [service(socket), two]))
        eventually(lambda: any(name in line and 'status="success"} 2' in line for line in metrics(running)))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert told(f'hash="sha256:{digest}"') and told("automatic_reload_last_timestamp_seconds")
        rewritten()
        assert base64.b64decode(running.send("GET", f"{secrets}/a").json["data"]["p"]) == b"horse"
        assert running.send("GET", "/livez/kms-providers").status == 200
        running.stop()
    held = stored(running)
    assert b"horse" not in held
    assert all(f"k8s:enc:{kind}:".encode() in held for kind in ("aescbc:v1:one", "secretbox:v1:two", "kms:v2:keys"))


def metrics(running: Any) -> list[str]:
    lines: list[str] = running.send("GET", "/metrics").raw.decode().splitlines()
    return lines


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
