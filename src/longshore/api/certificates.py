"""certificates.k8s.io: CertificateSigningRequest."""

from __future__ import annotations

import base64
import re
from datetime import datetime
from typing import Any

from longshore.api import times
from longshore.api.strategy import Object, Strategy, age_of, human_duration
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_label, dns1123_subdomain, path_segment

USAGES = (
    "any", "cert sign", "client auth", "code signing", "content commitment", "crl sign", "data encipherment", "decipher only",
    "digital signature", "email protection", "encipher only", "ipsec end system", "ipsec tunnel", "ipsec user", "key agreement",
    "key encipherment", "microsoft sgc", "netscape sgc", "ocsp signing", "s/mime", "server auth", "signing", "timestamping",
)  # fmt: skip
_PEM = "PEM block type must be CERTIFICATE REQUEST"


def signer_name(errors: Errors, name: str, path: str) -> None:
    """domain/path."""
    if not name:
        errors.required(path)
        return
    segments = name.split("/")
    if len(segments) != 2:
        errors.invalid(path, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
        return
    domain, rest = segments
    labels = domain.split(".")
    if len(domain) > 253:
        errors.too_long(path, 253)
    for label in labels:
        for message in dns1123_label(label):
            errors.invalid(path, domain, f"validating label {label!r}: {message}".replace("'", '"', 2))
    if len(labels) < 2:
        errors.invalid(path, domain, "should be a domain with at least two segments separated by dots")
    for part in rest.split("."):
        for message in dns1123_subdomain(part):
            errors.invalid(path, rest, f'validating label "{part}": {message}')


class CertificateSigningRequest(Strategy):
    """A certificate that is asked for."""

    def name_check(self, name: str) -> list[str]:
        return path_segment(name)

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {}
        # Who asks is written in by the server, which knows it (see the core's hook).

    def prepare_update(self, new: Object, old: Object) -> None:
        new["spec"] = old["spec"]
        new["status"] = old["status"]

    def prepare_status(self, new: Object, old: Object) -> None:
        self._approvals_stay(new, old)
        self._stamp(new)

    def prepare_subresource(self, new: Object, old: Object, subresource: str) -> None:
        # approval: only the conditions are taken.
        conditions = (new.get("status") or {}).get("conditions")
        new["spec"] = old["spec"]
        new["status"] = dict(old.get("status") or {})
        if conditions:
            new["status"]["conditions"] = conditions
        else:
            new["status"].pop("conditions", None)
        self._stamp(new)

    @staticmethod
    def _approvals_stay(new: Object, old: Object) -> None:
        approvals = ("Approved", "Denied")
        kept = [c for c in (old.get("status") or {}).get("conditions") or () if c.get("type") in approvals]
        rest = [c for c in (new.get("status") or {}).get("conditions") or () if c.get("type") not in approvals]
        if kept or rest:
            new["status"]["conditions"] = [*kept, *rest]

    @staticmethod
    def _stamp(obj: Object) -> None:
        now = times.now()
        for condition in (obj.get("status") or {}).get("conditions") or ():
            if not condition.get("lastUpdateTime"):
                condition["lastUpdateTime"] = now
            if not condition.get("lastTransitionTime"):
                condition["lastTransitionTime"] = now

    def default(self, obj: Object) -> None:
        for condition in (obj.get("status") or {}).get("conditions") or ():
            condition.setdefault("status", "True")

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        request = spec.get("request")
        try:
            text = base64.b64decode(request or "").decode("utf-8", "replace")
        except ValueError:
            text = ""
        if "-----BEGIN CERTIFICATE REQUEST-----" not in text:
            errors.invalid("spec.request", request or None, _PEM)
        else:
            problem = _parse_problem(text)
            if problem:
                errors.invalid("spec.request", request, problem)
        usages = spec.get("usages") or []
        if not usages:
            errors.required("spec.usages")
        for index, usage in enumerate(usages):
            if usage not in USAGES:
                errors.unsupported(f"spec.usages[{index}]", usage, USAGES)
            elif usage in usages[:index]:
                errors.duplicate(f"spec.usages[{index}]", usage)
        signer_name(errors, spec.get("signerName", ""), "spec.signerName")
        seconds = spec.get("expirationSeconds")
        if seconds is not None and seconds < 600:
            errors.invalid(
                "spec.expirationSeconds", seconds, "may not specify a duration less than 600 seconds (10 minutes)"
            )
        self._conditions(obj, errors)

    @staticmethod
    def _conditions(obj: Object, errors: Errors) -> None:
        seen: set[str] = set()
        kinds = {c.get("type") for c in (obj.get("status") or {}).get("conditions") or ()}
        for index, condition in enumerate((obj.get("status") or {}).get("conditions") or ()):
            path = f"status.conditions[{index}]"
            kind, status = condition.get("type", ""), condition.get("status", "")
            if not kind:
                errors.required(f"{path}.type")
            if not status:
                errors.required(f"{path}.status")
            elif kind in ("Approved", "Denied", "Failed") and status != "True":
                errors.unsupported(f"{path}.status", status, ("True",))
            elif status not in ("True", "False", "Unknown"):
                errors.unsupported(f"{path}.status", status, ("False", "True", "Unknown"))
            if (
                kind in ("Approved", "Denied")
                and {"Approved", "Denied"} <= kinds
                and "Approved" in seen | ({"Denied"} & seen)
            ):
                other = "Approved" if kind == "Denied" else "Denied"
                errors.invalid(f"{path}.type", kind, f"{other} and {kind} conditions are mutually exclusive")
            if kind in seen:
                errors.duplicate(f"{path}.type", kind)
            seen.add(kind)

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        was, now = (old.get("status") or {}).get("certificate"), (new.get("status") or {}).get("certificate")
        problem = _certificate_problem(now) if now and now != was else ""
        if problem:
            errors.invalid("status.certificate", "<certificate data>", problem)
        if was and now != was:
            errors.forbidden(
                "status.certificate",
                "updates may not modify existing certificate content"
                if now
                else "updates may not set certificate content to empty",
            )

    def validate_subresource(self, new: Object, old: Object, subresource: str, errors: Errors) -> None:
        self.validate(new, errors, old)
        for kind in ("Approved", "Denied"):
            had = [c for c in (old.get("status") or {}).get("conditions") or () if c.get("type") == kind]
            has = [c for c in (new.get("status") or {}).get("conditions") or () if c.get("type") == kind]
            if had and not has:
                errors.forbidden(
                    "status.conditions", f"updates may not remove a condition of type {kind!r}".replace("'", '"')
                )

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj["spec"], obj.get("status") or {}
        kinds = {c.get("type") for c in status.get("conditions") or ()}
        shown = "Denied" if "Denied" in kinds else "Approved" if "Approved" in kinds else "Pending"
        if "Failed" in kinds:
            shown += ",Failed"
        if status.get("certificate"):
            shown += ",Issued"
        seconds = spec.get("expirationSeconds")
        return [
            obj["metadata"]["name"],
            age_of(obj, now),
            spec.get("signerName", "") or "<none>",
            spec.get("username", ""),
            "<none>" if seconds is None else human_duration(seconds),
            shown,
        ]

    def selectable(self, obj: Object) -> dict[str, str]:
        return {"spec.signerName": obj["spec"].get("signerName", "")}


def _certificate_problem(encoded: str) -> str:
    """Why base64 of PEM text is no chain of certificates; "" when it is one (pkg/apis/certificates/validation)."""
    from cryptography import x509

    text = base64.b64decode(encoded).decode("utf-8", "replace")
    blocks = re.findall(r"-----BEGIN ([^-\n]*)-----\n(.*?)-----END \1-----", text, re.DOTALL)
    if not blocks:
        return "must contain at least one CERTIFICATE PEM block"
    for kind, body in blocks:
        if kind != "CERTIFICATE":
            return f'only CERTIFICATE PEM blocks are allowed, found "{kind}"'
        if ":" in body:
            return "no PEM block headers are permitted"
        try:
            x509.load_der_x509_certificate(base64.b64decode(body))
        except ValueError:
            return "x509: malformed certificate"
    return ""


def _parse_problem(text: str) -> str:
    from cryptography import x509

    try:
        x509.load_pem_x509_csr(text.encode())
    except ValueError as error:
        return f"asn1: structure error: {error}"
    return ""


STRATEGIES = {"CertificateSigningRequest": CertificateSigningRequest}
__all__ = ["STRATEGIES", "metadata", "signer_name"]
