"""Client certificates checked against the CAs of a file, as Go's x509 checks them for upstream's API server.

TLS lets every certificate pass (machinery.http.tls.accept_any_certificate), so that one that is no good is answered with
401 and not with a failed handshake. Whether it is good is decided here, and nowhere else.
Source: crypto/x509 Certificate.Verify; k8s.io/apiserver/pkg/authentication/request/x509.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.machinery.http.message import Peer

if TYPE_CHECKING:
    from cryptography import x509

_MAX_LINKS = 10
_MAX_SIGNATURES = 100  # as Go: whoever sends many certificates of one name must not make us check for long
_MAX_KEPT = 4096
_CLIENT_AUTH, _ANY_USAGE = "1.3.6.1.5.5.7.3.2", "2.5.29.37.0"
#: Basic constraints, key usage, extended key usage, alternative names: the critical extensions that are understood.
_UNDERSTOOD = frozenset(("2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.17"))
UNKNOWN = "x509: certificate signed by unknown authority"
EXPIRED = "x509: certificate has expired or is not yet valid"
USAGE = "x509: certificate specifies an incompatible key usage"
CRITICAL = "x509: unhandled critical extension"


class CertificateError(ValueError):
    """A certificate is not good for its sender; the text is Go's."""


class Authorities:
    """The CAs in a PEM file: who may vouch for clients. Each of them is an anchor, self-signed or not.

    generation: grows when the file has been read again; what was decided before is to be decided anew.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.generation = 0
        self._anchors: list[x509.Certificate] | None = None
        self._good: dict[bytes, float] = {}

    def load(self) -> None:
        """Reads the file (again). ValueError when there is no certificate in it; OSError."""
        from cryptography import x509

        self._anchors = list(x509.load_pem_x509_certificates(self.file.read_bytes()))
        self._good.clear()
        self.generation += 1

    def verify(self, peer: Peer) -> float:
        """Until when (seconds of the epoch) the certificate that a peer shows is good. CertificateError."""
        leaf = peer.certificate_der or b""
        now = datetime.datetime.now(datetime.UTC)
        key = hashlib.sha256(leaf).digest()
        until = self._good.get(key)
        if until is None or until < now.timestamp():
            if self._anchors is None:
                self.load()
            until = self._until(leaf, peer.chain, now)
            if len(self._good) >= _MAX_KEPT:
                self._good.clear()
            # A resumed TLS session carries no intermediate certificates: the verdict stands for it.
            self._good[key] = until
        return until

    def _until(self, leaf: bytes, chain: Sequence[bytes], now: datetime.datetime) -> float:
        from cryptography import x509

        try:
            first = x509.load_der_x509_certificate(leaf)
            others = [x509.load_der_x509_certificate(c) for c in chain[:_MAX_LINKS]]
            links = self._links(first, others, now)
        except CertificateError:
            raise
        except ValueError as error:  # what cannot be parsed, in the certificate or in an extension of it
            raise CertificateError(f"x509: malformed certificate: {error}") from None
        return min(c.not_valid_after_utc for c in links).timestamp()

    def _links(
        self, first: x509.Certificate, others: Sequence[x509.Certificate], now: datetime.datetime
    ) -> list[x509.Certificate]:
        """The way from a leaf to an anchor. CertificateError with what was wrong with the last way that was tried."""
        _check_times(first, now)
        _check_usage(first)
        anchors = self._anchors or []
        if first in anchors:
            return [first]
        problem = CertificateError(UNKNOWN)
        ways = [[first]]
        checked = 0
        while ways:
            way = ways.pop()
            for issuer, is_anchor in [*((c, False) for c in others), *((c, True) for c in anchors)]:
                if issuer in way or way[-1].issuer != issuer.subject:
                    continue
                checked += 1
                if checked > _MAX_SIGNATURES:
                    raise problem
                if not _signed(way[-1], issuer):
                    continue
                try:
                    _check_times(issuer, now)
                    _check_usage(issuer)
                    _check_issuer(issuer, len(way) - 1)
                except CertificateError as error:
                    problem = error
                    continue
                if is_anchor:
                    return [*way, issuer]
                if len(way) < _MAX_LINKS:
                    ways.append([*way, issuer])
        raise problem


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_times(certificate: x509.Certificate, now: datetime.datetime) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise CertificateError(EXPIRED)


def _check_usage(certificate: x509.Certificate) -> None:
    """A certificate that names usages must name that of clients; one that asks for something unknown is refused."""
    for extension in certificate.extensions:
        name = extension.oid.dotted_string
        if name == "2.5.29.37":
            usages: Any = extension.value
            if not any(u.dotted_string in (_CLIENT_AUTH, _ANY_USAGE) for u in usages):
                raise CertificateError(USAGE)
        elif extension.critical and name not in _UNDERSTOOD:
            raise CertificateError(CRITICAL)


def _check_issuer(issuer: x509.Certificate, beneath: int) -> None:
    """Whether a certificate may sign others with `beneath` intermediate ones between it and the leaf."""
    from cryptography import x509

    # Version 1 certificates have no extensions: Go lets them be anchors, and nobody makes them any more.
    find = issuer.extensions.get_extension_for_class
    try:
        constraints = find(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        raise CertificateError("x509: certificate is not authorized to sign other certificates") from None
    if not constraints.ca:
        raise CertificateError("x509: certificate is not authorized to sign other certificates")
    if constraints.path_length is not None and beneath > constraints.path_length:
        raise CertificateError("x509: too many intermediates for path length constraint")
    try:
        if not find(x509.KeyUsage).value.key_cert_sign:
            raise CertificateError("x509: invalid signature: parent certificate cannot sign this kind of certificate")
    except x509.ExtensionNotFound:
        pass
    try:
        find(x509.NameConstraints)
    except x509.ExtensionNotFound:
        return
    raise CertificateError(CRITICAL)
