"""Who may approve and sign certificates, and which subject nobody gets."""

from __future__ import annotations

import base64

from longshore.master.apiserver.admission.base import Plugin, refuse
from longshore.master.apiserver.context import AdmissionRequest, Attributes

_CSRS = ("certificates.k8s.io", "certificatesigningrequests")


async def may_sign(a: AdmissionRequest, verb: str, signer: str) -> bool:
    """Whether the user has verb on signers by that name, or on all of its domain."""
    domain = signer.partition("/")[0]
    for name in (signer, f"{domain}/*"):
        asked = Attributes(a.user, verb, "certificates.k8s.io", "*", "signers", "", "", name)
        if (await a.api.authorize(asked)).allowed:
            return True
    return False


class CertificateApproval(Plugin):
    """Source: plugin/pkg/admission/certificates/approval."""

    name = "CertificateApproval"
    operations = frozenset(("UPDATE",))
    resources = frozenset((_CSRS,))
    subresources = frozenset(("approval",))

    async def validate(self, a: AdmissionRequest) -> None:
        signer = ((a.old or {}).get("spec") or {}).get("signerName", "")
        if not await may_sign(a, "approve", signer):
            raise refuse(a, f'user not permitted to approve requests with signerName "{signer}"')


class CertificateSigning(Plugin):
    """Source: plugin/pkg/admission/certificates/signing."""

    name = "CertificateSigning"
    operations = frozenset(("UPDATE",))
    resources = frozenset((_CSRS,))
    subresources = frozenset(("status",))

    async def validate(self, a: AdmissionRequest) -> None:
        new, old = (a.object or {}).get("status") or {}, (a.old or {}).get("status") or {}

        def failed(status: dict[str, object]) -> list[object]:
            conditions = status.get("conditions") or []
            assert isinstance(conditions, list)
            return [c for c in conditions if c.get("type") == "Failed"]

        if new.get("certificate") == old.get("certificate") and failed(new) == failed(old):
            return
        signer = ((a.old or {}).get("spec") or {}).get("signerName", "")
        if not await may_sign(a, "sign", signer):
            raise refuse(a, f'user not permitted to sign requests with signerName "{signer}"')


class CertificateSubjectRestriction(Plugin):
    """Source: plugin/pkg/admission/certificates/subjectrestriction."""

    name = "CertificateSubjectRestriction"
    operations = frozenset(("CREATE",))
    resources = frozenset((_CSRS,))

    async def validate(self, a: AdmissionRequest) -> None:
        spec = (a.object or {}).get("spec") or {}
        if spec.get("signerName") != "kubernetes.io/kube-apiserver-client":
            return
        from cryptography import x509
        from cryptography.x509.oid import NameOID

        try:
            request = x509.load_pem_x509_csr(base64.b64decode(spec.get("request", "")))
        except ValueError as error:
            raise refuse(a, f"failed to parse CSR: {error}") from None
        groups = [part.value for part in request.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        if "system:masters" in groups:
            raise refuse(
                a, "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
            )
