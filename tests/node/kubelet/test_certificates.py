"""Renewal of the kubelet's two certificates, with the test as the one who approves and signs."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from longshore.client.resources import CERTIFICATE_SIGNING_REQUESTS, LEASES
from longshore.machinery import pki
from longshore.node.kubelet import certificates
from longshore.node.kubelet.certificates import Store

from .conftest import IP, Node

CSRS = CERTIFICATE_SIGNING_REQUESTS


def test_the_kept_certificate_is_used_while_it_follows_the_given_one(tmp_path: Path) -> None:
    ca, other = pki.make_ca("a"), pki.make_ca("b")
    given = pki.issue(ca, "system:node:n", organizations=["system:nodes"], client=True, days=10)
    store = Store(tmp_path / "pki", "kubelet-client")
    assert store.newest(given, subject=True) is given
    later = pki.issue(ca, "system:node:n", organizations=["system:nodes"], client=True, days=20)
    store.keep(pki.issue(ca, "system:node:n", organizations=["system:nodes"], client=True, days=15))
    store.keep(later)
    assert len(list((tmp_path / "pki").glob("kubelet-client-2*.pem"))) == 1
    found = store.newest(given, subject=True)
    assert found.certificate.startswith(later.certificate) and later.key in found.key
    assert store.current.stat().st_mode & 0o777 == 0o600
    # another's, another cluster's, one that ends sooner, and a broken file are not
    for stranger in (
        pki.issue(ca, "system:node:m", organizations=["system:nodes"], client=True, days=20),
        pki.issue(other, "system:node:n", organizations=["system:nodes"], client=True, days=20),
        pki.issue(ca, "system:node:n", organizations=["system:nodes"], client=True, days=5),
    ):
        store.keep(stranger)
        assert store.newest(given, subject=True) is given
    store.current.write_bytes(later.certificate)
    assert store.newest(given, subject=True) is given


def signed(csr: dict[str, Any], ca: pki.KeyPair) -> bytes:
    request = x509.load_pem_x509_csr(base64.b64decode(csr["spec"]["request"]))
    issuer = x509.load_pem_x509_certificate(ca.certificate)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(issuer.subject, request.subject, request.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
    )
    purpose = x509.oid.ExtendedKeyUsageOID
    purposes = [purpose.SERVER_AUTH if "server auth" in csr["spec"]["usages"] else purpose.CLIENT_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    for extension in request.extensions:
        builder = builder.add_extension(extension.value, critical=False)
    key: Any = serialization.load_pem_private_key(ca.key, None)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.root
@pytest.mark.asyncio(loop_scope="module")
async def test_both_are_renewed_while_the_kubelet_runs(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.stop_kubelet()
    ca = pki.KeyPair.read(node.layout.pki / "ca.crt", node.layout.pki / "ca.key")
    renewed: set[bytes] = set()
    real = certificates.deadline

    def once(certificate: bytes) -> float:
        if certificate in renewed or len(renewed) >= 2:
            return real(certificate)
        renewed.add(certificate)
        return 0.0

    monkeypatch.setattr(certificates, "deadline", once)
    node.start_kubelet(settings={"rotateCertificates": True, "serverTLSBootstrap": True})

    async def asked() -> list[dict[str, Any]]:
        return [c for c in (await node.client.list(CSRS))["items"] if not (c.get("status") or {}).get("certificate")]

    async def both() -> bool:
        return len(await asked()) == 2

    await node.until(both, 20)
    issued: dict[str, bytes] = {}
    for csr in await asked():
        assert csr["spec"]["username"] == f"system:node:{node.name}"
        name, signer = csr["metadata"]["name"], csr["spec"]["signerName"]
        issued[signer] = signed(csr, ca)
        agreed = {"type": "Approved", "status": "True", "reason": "Test", "message": "by the test"}
        approval = {**csr, "status": {"conditions": [agreed]}}
        await node.client.update(CSRS, approval, subresource="approval")
        status = {"certificate": base64.b64encode(issued[signer]).decode()}
        await node.client.patch(CSRS, name, {"status": status}, kind="merge", subresource="status")
    folder = node.root / "k" / "pki"

    async def kept() -> bool:
        return (folder / "kubelet-client-current.pem").exists() and (folder / "kubelet-server-current.pem").exists()

    await node.until(kept, 20)
    serving = issued["kubernetes.io/kubelet-serving"].decode()

    async def shown() -> bool:
        try:
            return await asyncio.to_thread(ssl.get_server_certificate, (IP, 10250)) == serving
        except ConnectionRefusedError:
            return False

    await node.until(shown, 10)
    # It still is who it was: leases go on under the new certificate, and pods run.
    lease = (await node.client.get(LEASES, node.name, "kube-node-lease"))["spec"]["renewTime"]

    async def renewed_lease() -> bool:
        return bool((await node.client.get(LEASES, node.name, "kube-node-lease"))["spec"]["renewTime"] > lease)

    await node.create("under-the-new-one", {"command": ["sleep", "1000"]})
    await node.ready("under-the-new-one")
    await node.until(renewed_lease, 20)
    await node.stop_kubelet()
    monkeypatch.undo()
    node.start_kubelet()
    await node.until(shown, 20)
    await node.delete("under-the-new-one")
