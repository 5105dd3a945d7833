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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from cryptography import x509

CA_DAYS, LEAF_DAYS = 3650, 365
_BACKDATE = datetime.timedelta(minutes=5)  # clocks differ a little between machines


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    def write(self, certificate: Path, key: Path) -> None:
        """Both files, the key readable by its owner only."""
        write_file(certificate, self.certificate, 0o644)
        write_file(key, self.key, 0o600)

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
    days: int = LEAF_DAYS,
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


def covers(certificate: bytes, names: Iterable[str], margin_days: int = 30) -> bool:
    """Whether a certificate is good for all `names` and for another `margin_days`."""
    from cryptography import x509

    found = x509.load_pem_x509_certificate(certificate)
    if found.not_valid_after_utc < datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=margin_days):
        return False
    try:
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return not list(names)
    have = {str(n.value) for n in alternatives}
    return all(str(n) in have for n in names)


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
