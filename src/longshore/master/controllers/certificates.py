"""CertificateSigningRequests: kubelets' own are approved, approved ones signed, old ones cleared away.

Source: kubernetes pkg/controller/certificates (approver, signer, cleaner), described behaviour.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from longshore.client.objects import now, seconds
from longshore.client.resources import CERTIFICATE_SIGNING_REQUESTS, SUBJECT_ACCESS_REVIEWS
from longshore.client.rest import is_not_found
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller

if TYPE_CHECKING:
    from cryptography import x509

PREFIX = "kubernetes.io/"
CLIENT = PREFIX + "kube-apiserver-client"
KUBELET_CLIENT = PREFIX + "kube-apiserver-client-kubelet"
KUBELET_SERVING = PREFIX + "kubelet-serving"
LEGACY = PREFIX + "legacy-unknown"
SIGNERS = frozenset({CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY})

NODES_GROUP, NODE_PREFIX = "system:nodes", "system:node:"
BACKDATE_SECONDS = 300
LEAST_SECONDS = 600
APPROVED_SECONDS, DENIED_SECONDS, PENDING_SECONDS = 3600.0, 3600.0, 24 * 3600.0


def has(csr: Object, type: str) -> bool:
    conditions = (csr.get("status") or {}).get("conditions") or ()
    return any(c["type"] == type and c.get("status", "True") == "True" for c in conditions)


def condition_time(csr: Object, type: str) -> float:
    for entry in (csr.get("status") or {}).get("conditions") or ():
        if entry["type"] == type:
            return seconds(entry.get("lastUpdateTime"))
    return 0.0


class Request:
    """A decoded certificate request: what signers and the approver ask of it. Raises ValueError."""

    def __init__(self, csr: Object) -> None:
        from cryptography import x509
        from cryptography.x509.oid import NameOID

        try:
            pem = base64.b64decode(csr["spec"]["request"], validate=True)
        except (binascii.Error, KeyError, TypeError) as error:
            raise ValueError("PEM block type must be CERTIFICATE REQUEST") from error
        self.x509: x509.CertificateSigningRequest = x509.load_pem_x509_csr(pem)
        names = self.x509.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        self.common_name = str(names[0].value) if names else ""
        groups = self.x509.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        self.organizations = [str(g.value) for g in groups]
        self.dns: list[str] = []
        self.addresses: list[str] = []
        self.emails: list[str] = []
        self.uris: list[str] = []
        self.alternatives: Any = None
        try:
            found = self.x509.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            return
        self.alternatives = found
        self.dns = found.value.get_values_for_type(x509.DNSName)
        self.addresses = [str(a) for a in found.value.get_values_for_type(x509.IPAddress)]
        self.emails = found.value.get_values_for_type(x509.RFC822Name)
        self.uris = found.value.get_values_for_type(x509.UniformResourceIdentifier)


def unfit(request: Request, signer: str, usages: set[str]) -> str:
    """Why a signer refuses a request; "" when it does not."""
    if signer == CLIENT:
        allowed = {"digital signature", "key encipherment", "client auth"}
        return (
            ""
            if "client auth" in usages and usages <= allowed
            else "invalid usages for client certificate: " + go_set(usages)
        )
    if signer == LEGACY:
        return ""
    if request.organizations != [NODES_GROUP]:
        return "subject organization is not system:nodes"
    if signer == KUBELET_CLIENT:
        for values, what in (
            (request.dns, "DNS"),
            (request.emails, "email"),
            (request.addresses, "IP"),
            (request.uris, "URI"),
        ):
            if values:
                return f"{what} subjectAltNames are not allowed"
        if not request.common_name.startswith(NODE_PREFIX):
            return "subject common name does not begin with system:node:"
        good = usages in (
            {"client auth", "digital signature"},
            {"client auth", "digital signature", "key encipherment"},
        )
        return "" if good else "usages did not match [client auth digital signature key encipherment]"
    if not request.dns and not request.addresses:
        return "DNS or IP subjectAltName is required"
    if request.emails:
        return "email subjectAltNames are not allowed"
    if request.uris:
        return "URI subjectAltNames are not allowed"
    if not request.common_name.startswith(NODE_PREFIX):
        return "subject common name does not begin with system:node:"
    good = usages in ({"digital signature", "server auth"}, {"digital signature", "key encipherment", "server auth"})
    return "" if good else "usages did not match [digital signature key encipherment server auth]"


def go_set(values: set[str]) -> str:
    return "[" + " ".join(sorted(values)) + "]"


class CSRSigner(Controller):
    """Signs approved requests for the signers of the cluster's own CA."""

    name = "certificatesigningrequest-signing-controller"
    account = "certificate-controller"
    component = "csrsigning"

    def setup(self) -> None:
        self.requests = self.watch(
            CERTIFICATE_SIGNING_REQUESTS, add=self.enqueue, update=lambda old, new: self.enqueue(new)
        )

    async def reconcile(self, key: str) -> float | None:
        csr = self.requests.store.get(key)
        if csr is None or csr["spec"].get("signerName") not in SIGNERS:
            return None
        if not has(csr, "Approved") or has(csr, "Denied") or has(csr, "Failed"):
            return None
        if (csr.get("status") or {}).get("certificate"):
            return None
        if self.options.cluster_signing_cert_file is None or self.options.cluster_signing_key_file is None:
            return None
        status = dict(csr.get("status") or {})
        try:
            request = Request(csr)
            why = unfit(request, csr["spec"]["signerName"], set(csr["spec"].get("usages") or ()))
        except ValueError as error:
            request, why = None, str(error)
        if request is None or why:
            stamp = now()
            entry = {"type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": why}
            entry.update(lastUpdateTime=stamp, lastTransitionTime=stamp)
            status["conditions"] = [*(status.get("conditions") or ()), entry]
        else:
            status["certificate"] = await asyncio.to_thread(self._sign, csr, request)
        await self.client.update(CERTIFICATE_SIGNING_REQUESTS, {**csr, "status": status}, subresource="status")
        return None

    def _sign(self, csr: Object, request: Request) -> str:
        """The certificate as base64 of PEM."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import ExtendedKeyUsageOID

        cert_file, key_file = self.options.cluster_signing_cert_file, self.options.cluster_signing_key_file
        assert cert_file is not None and key_file is not None
        ca = x509.load_pem_x509_certificate(cert_file.read_bytes())
        key: Any = serialization.load_pem_private_key(key_file.read_bytes(), None)
        length = self.options.cluster_signing_duration
        if csr["spec"].get("expirationSeconds"):
            length = min(length, max(float(csr["spec"]["expirationSeconds"]), LEAST_SECONDS))
        start = datetime.now(UTC) - timedelta(seconds=BACKDATE_SECONDS)
        end = min(start + timedelta(seconds=length), ca.not_valid_after_utc)
        usages = set(csr["spec"].get("usages") or ())
        extended = [
            oid
            for name, oid in (
                ("client auth", ExtendedKeyUsageOID.CLIENT_AUTH),
                ("server auth", ExtendedKeyUsageOID.SERVER_AUTH),
                ("code signing", ExtendedKeyUsageOID.CODE_SIGNING),
                ("email protection", ExtendedKeyUsageOID.EMAIL_PROTECTION),
                ("timestamping", ExtendedKeyUsageOID.TIME_STAMPING),
                ("ocsp signing", ExtendedKeyUsageOID.OCSP_SIGNING),
                ("any", ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE),
            )
            if name in usages
        ]
        builder = (
            x509.CertificateBuilder()
            .subject_name(request.x509.subject)
            .issuer_name(ca.subject)
            .public_key(request.x509.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature="digital signature" in usages or "signing" in usages,
                    content_commitment="content commitment" in usages,
                    key_encipherment="key encipherment" in usages,
                    data_encipherment="data encipherment" in usages,
                    key_agreement="key agreement" in usages,
                    key_cert_sign=False,
                    crl_sign=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        )
        if extended:
            builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
        if request.alternatives is not None:
            builder = builder.add_extension(request.alternatives.value, critical=request.alternatives.critical)
        certificate = builder.sign(key, hashes.SHA256())
        return base64.b64encode(certificate.public_bytes(serialization.Encoding.PEM)).decode("ascii")


class CSRApprover(Controller):
    """Approves kubelets' requests for client certificates, where RBAC allows the requester to have one."""

    name = "certificatesigningrequest-approving-controller"
    account = "certificate-controller"
    component = "csrapproving"
    signers = frozenset({KUBELET_CLIENT})  # whose requests it looks at

    def setup(self) -> None:
        self.requests = self.watch(
            CERTIFICATE_SIGNING_REQUESTS, add=self.enqueue, update=lambda old, new: self.enqueue(new)
        )

    async def reconcile(self, key: str) -> float | None:
        csr = self.requests.store.get(key)
        if csr is None or (csr.get("status") or {}).get("certificate") or has(csr, "Approved") or has(csr, "Denied"):
            return None
        signer = csr["spec"].get("signerName") or ""
        if signer not in self.signers:
            return None
        try:
            request = Request(csr)
        except ValueError:
            return None
        if not unfit(request, signer, set(csr["spec"].get("usages") or ())):
            await self.decide(csr, signer, request)
        return None

    async def decide(self, csr: Object, signer: str, request: Request) -> None:
        """Approve a well-formed request, or leave it. Raises StatusError to look at it again."""
        own = csr["spec"].get("username") == request.common_name
        tried = (
            [("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.")]
            if own
            else []
        )
        tried.append(("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."))
        for subresource, message in tried:
            if await self._may(csr, subresource):
                await self._approve(csr, message)
                return
        raise StatusError(403, "Forbidden", "recognized csr but subject access review was not approved", None)

    async def _may(self, csr: Object, subresource: str) -> bool:
        spec = csr["spec"]
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": spec.get("username", ""),
                "uid": spec.get("uid", ""),
                "groups": spec.get("groups") or [],
                "extra": spec.get("extra") or {},
                "resourceAttributes": {
                    "group": "certificates.k8s.io",
                    "resource": "certificatesigningrequests",
                    "subresource": subresource,
                    "verb": "create",
                    "version": "*",
                },
            },
        }
        answer = await self.client.create(SUBJECT_ACCESS_REVIEWS, review)
        return bool((answer.get("status") or {}).get("allowed"))

    async def _approve(self, csr: Object, message: str) -> None:
        stamp = now()
        entry = {"type": "Approved", "status": "True", "reason": "AutoApproved", "message": message}
        entry.update(lastUpdateTime=stamp, lastTransitionTime=stamp)
        status = dict(csr.get("status") or {})
        status["conditions"] = [*(status.get("conditions") or ()), entry]
        await self.client.update(CERTIFICATE_SIGNING_REQUESTS, {**csr, "status": status}, subresource="approval")


class CSRCleaner(Controller):
    """Deletes requests that are done with, or that nobody answered for a day."""

    name = "certificatesigningrequest-cleaner-controller"
    account = "certificate-controller"
    component = "csrcleaner"

    def setup(self) -> None:
        self.requests = self.watch(
            CERTIFICATE_SIGNING_REQUESTS, add=self.enqueue, update=lambda old, new: self.enqueue(new)
        )

    async def reconcile(self, key: str) -> float | None:
        csr = self.requests.store.get(key)
        if csr is None:
            return None
        left = self._ends_at(csr) - time.time()
        if left > 0:
            return left
        try:
            await self.client.delete(CERTIFICATE_SIGNING_REQUESTS, key, uid=csr["metadata"]["uid"])
        except StatusError as error:
            if not is_not_found(error):
                raise
        return None

    @staticmethod
    def _ends_at(csr: Object) -> float:
        created = seconds(csr["metadata"].get("creationTimestamp"))
        if (csr.get("status") or {}).get("certificate"):
            return condition_time(csr, "Approved") + APPROVED_SECONDS
        if has(csr, "Denied"):
            return condition_time(csr, "Denied") + DENIED_SECONDS
        if has(csr, "Failed"):
            return condition_time(csr, "Failed") + DENIED_SECONDS
        if has(csr, "Approved"):
            return condition_time(csr, "Approved") + APPROVED_SECONDS
        return created + PENDING_SECONDS
