"""Certificates of a cluster: a CA, serving and client certificates, service account keys, kubeconfigs.

EC P-256 throughout: a key takes microseconds to make and to use, RSA tens of milliseconds. `cryptography` is imported
only when something is really made.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from cryptography import x509

CA_DAYS, LEAF_DAYS = 3650, 365
#: How much of a certificate's time passes before it is renewed.
RENEWED_AFTER = 0.8
_BACKDATE = datetime.timedelta(minutes=5)  # clocks differ a little between machines


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    def write(self, certificate: Path, key: Path) -> None:
        """Both files, the key readable by its owner only."""
        # The certificate last: a pair that a crash has left in halves has the old one, which is due still.
        write_file(key, self.key, 0o600)
        write_file(certificate, self.certificate, 0o644)

    @classmethod
    def read(cls, certificate: Path, key: Path) -> KeyPair:
        return cls(certificate.read_bytes(), key.read_bytes())


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Replace a file at once: a crash leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        os.fchmod(descriptor, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def private_key() -> bytes:
    """A new P-256 private key, PEM (SEC 1, as upstream writes "EC PRIVATE KEY")."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return _pem(ec.generate_private_key(ec.SECP256R1()))


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    pem: bytes = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.TraditionalOpenSSL, s.NoEncryption())
    return pem


def public_key(key: bytes) -> bytes:
    """The public half of a private key, PEM."""
    from cryptography.hazmat.primitives import serialization as s

    public = s.load_pem_private_key(key, None).public_key()
    return public.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)


def _name(common_name: str, organizations: Iterable[str] = ()) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def make_ca(common_name: str = "kubernetes", days: int = CA_DAYS) -> KeyPair:
    """A self-signed certificate authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(_certificate_pem(certificate), _pem(key))


def _certificate_pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    pem: bytes = certificate.public_bytes(Encoding.PEM)
    return pem


def _usage(*, sign: bool = False) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=not sign, data_encipherment=False,
        key_agreement=False, key_cert_sign=sign, crl_sign=sign, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def issue(
    ca: KeyPair,
    common_name: str,
    *,
    organizations: Sequence[str] = (),
    names: Sequence[str] = (),
    server: bool = False,
    client: bool = False,
    days: float = LEAF_DAYS,
) -> KeyPair:
    """A certificate signed by `ca`.

    organizations: the groups of a client certificate's user. names: DNS names and IP addresses of a server. server,
    client: what it may be used for (a kubelet's may be both).
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    ca_certificate = x509.load_pem_x509_certificate(ca.certificate)
    ca_key = serialization.load_pem_private_key(ca.key, None)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH] * server + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common_name, organizations))
        .issuer_name(ca_certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(min(now + datetime.timedelta(days=days), ca_certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(n) for n in names]), critical=False)
    return KeyPair(_certificate_pem(builder.sign(ca_key, hashes.SHA256())), _pem(key))  # type: ignore[arg-type]


def signing_request(
    common_name: str, *, organizations: Sequence[str] = (), names: Sequence[str] = ()
) -> tuple[bytes, bytes]:
    """A new private key and a request (PKCS #10) to have it certified, both PEM. names: as in `issue`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(common_name, organizations))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(n) for n in names]), critical=False)
    return _pem(key), builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _general(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def validity(certificate: bytes) -> tuple[float, float]:
    """Not before and not after of a PEM certificate, seconds since 1970. Raises ValueError.

    Read from the DER (RFC 5280 section 4.1) by hand: every part looks at dates, and `cryptography` costs it ten megabytes.
    """
    try:
        text = certificate.split(b"-----BEGIN CERTIFICATE-----", 1)[1].split(b"-----END CERTIFICATE-----", 1)[0]
        der = base64.b64decode(text)
        _, at, _ = _element(der, 0)
        _, at, _ = _element(der, at)
        tag, _, _ = _element(der, at)
        skipped = 4 if tag == 0xA0 else 3  # version (where it is told), serial number, algorithm, issuer
        for _ in range(skipped):
            _, _, at = _element(der, at)
        _, first, _ = _element(der, at)
        _, _, second = _element(der, first)
        return _time(der, first), _time(der, second)
    except IndexError:
        raise ValueError("not a certificate") from None


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """An element's tag, where its content begins, where it ends."""
    tag, length, begin = der[at], der[at + 1], at + 2
    if length & 0x80:
        more = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + more]), begin + more
    return tag, begin, begin + length


def _time(der: bytes, at: int) -> float:
    """UTCTime or GeneralizedTime."""
    tag, begin, end = _element(der, at)
    text = der[begin:end].decode("ascii")
    if tag == 0x17:  # two digits a year: 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC).timestamp()


def due(certificate: bytes) -> float:
    """When a certificate is to be renewed (seconds since 1970): after four fifths of its time."""
    begin, end = validity(certificate)
    return begin + (end - begin) * RENEWED_AFTER


def covers(certificate: bytes, names: Iterable[str]) -> bool:
    """Whether a certificate is good for all `names` and need not be renewed yet."""
    if due(certificate) <= time.time():
        return False
    wanted = set(map(str, names))
    if not wanted:
        return True
    from cryptography import x509

    found = x509.load_pem_x509_certificate(certificate)
    try:
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return wanted <= {str(n.value) for n in alternatives}


def kubeconfig(
    server: str,
    ca: bytes,
    *,
    user: str = "admin",
    client: KeyPair | None = None,
    token: str = "",
    cluster: str = "longshore",
    namespace: str = "",
) -> bytes:
    """A kubeconfig with everything inside it. server: "https://127.0.0.1:6443"; one of client (a certificate) and token."""
    who: dict[str, str] = {}
    if client is not None:
        who = {
            "client-certificate-data": base64.b64encode(client.certificate).decode(),
            "client-key-data": base64.b64encode(client.key).decode(),
        }
    elif token:
        who = {"token": token}
    context = {"cluster": cluster, "user": user}
    if namespace:
        context["namespace"] = namespace
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": cluster,
                "cluster": {"server": server, "certificate-authority-data": base64.b64encode(ca).decode()},
            }
        ],
        "users": [{"name": user, "user": who}],
        "contexts": [{"name": f"{user}@{cluster}", "context": context}],
        "current-context": f"{user}@{cluster}",
    }
    return yaml.safe_dump(document, sort_keys=False).encode()


def write_kubeconfig(path: Path, content: bytes) -> None:
    """A kubeconfig file, readable by its owner only."""
    write_file(path, content, 0o600)


def ensure_ca(folder: Path, name: str = "ca", common_name: str = "kubernetes") -> KeyPair:
    """The CA in folder/<name>.crt and .key, made when it is not there."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    if certificate.exists() and key.exists():
        return KeyPair.read(certificate, key)
    pair = make_ca(common_name)
    pair.write(certificate, key)
    return pair


def ensure_issued(
    folder: Path, name: str, ca: KeyPair, common_name: str, *, organizations: Sequence[str] = (), names: Sequence[str] = (),
    server: bool = False, client: bool = False,
) -> KeyPair:  # fmt: skip
    """The certificate in folder/<name>.crt and .key; made anew when absent, near its end, or lacking a name."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    if certificate.exists() and key.exists() and covers(certificate.read_bytes(), names):
        return KeyPair.read(certificate, key)
    pair = issue(ca, common_name, organizations=organizations, names=names, server=server, client=client)
    pair.write(certificate, key)
    return pair


def ensure_key(path: Path) -> bytes:
    """A private key for service account tokens, made when it is not there."""
    if path.exists():
        return path.read_bytes()
    key = private_key()
    write_file(path, key, 0o600)
    return key
