"""Client certificates: what is no good is answered with 401 by HTTP, as upstream's server answers it."""

from __future__ import annotations

import datetime
import http.client
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from longshore.machinery.http.message import Peer
from longshore.master.apiserver.auth.certificates import Authorities, CertificateError

DAY = datetime.timedelta(days=1)


class Party:
    """A certificate and its key; `by` signs it, nobody: itself."""

    def __init__(
        self, name: str, by: Party | None = None, *, ca: bool = False, path: int | None = None, days: int = 2,
        usage: Any = ExtendedKeyUsageOID.CLIENT_AUTH, constraints: bool = True, organization: str = "",
    ) -> None:  # fmt: skip
        self.key = ec.generate_private_key(ec.SECP256R1())
        parts = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if organization:
            parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        subject = x509.Name(parts)
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(by.certificate.subject if by else subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 10 * DAY)
            .not_valid_after(now + days * DAY)
        )
        if ca and constraints:
            builder = builder.add_extension(x509.BasicConstraints(True, path), critical=True)
        if not ca and usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        self.certificate = builder.sign((by or self).key, hashes.SHA256())

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def write(self, file: Path, chain: Sequence[Party] = ()) -> Path:
        private = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(private + self.pem + b"".join(c.pem for c in chain))
        return file


def test_the_way_to_an_authority(tmp_path: Path) -> None:
    root, other = Party("root", ca=True, path=1), Party("root", ca=True)
    middle = Party("middle", root, ca=True, path=0)
    below = Party("below", middle, ca=True)
    file = tmp_path / "ca.crt"
    file.write_bytes(root.pem)

    def verdict(leaf: Party, *chain: Party) -> str:
        try:
            authorities.verify(Peer(certificate_der=leaf.der, chain=[c.der for c in chain]))
        except CertificateError as error:
            return str(error).removeprefix("x509: ")
        return ""

    authorities = Authorities(file)
    assert verdict(Party("a", root)) == ""
    leaf = Party("a", middle)
    unknown = "certificate signed by unknown authority"
    assert verdict(leaf) == unknown
    assert verdict(leaf, middle) == "" and verdict(leaf) == ""  # a resumed session brings no chain
    assert verdict(Party("a", other)) == unknown
    assert verdict(Party("a", other), other) == unknown
    assert "expired" in verdict(Party("a", root, days=-1))
    assert "incompatible key usage" in verdict(Party("a", root, usage=ExtendedKeyUsageOID.SERVER_AUTH))
    assert verdict(Party("a", root, usage=None)) == ""
    assert "too many intermediates" in verdict(Party("a", below), below, middle)
    no_authority = Party("plain", root)
    assert "not authorized to sign" in verdict(Party("a", no_authority), no_authority)
    # Many of one name end by themselves.
    assert verdict(Party("a", other), *[Party("root", ca=True) for _ in range(9)]) == unknown
    generation = authorities.generation
    file.write_bytes(middle.pem)
    authorities.load()
    assert authorities.generation == generation + 1
    assert verdict(leaf) == "" and verdict(Party("a", root)) == unknown


def ask(running: Any, file: Path | None, path: str = "/api/v1/namespaces", **headers: str) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=str(running.ca))
    if file is not None:
        context.load_cert_chain(str(file))
    connection = http.client.HTTPSConnection(running.host, running.port, context=context, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_a_server_answers_401(tmp_path: Path, start_server: Any) -> None:
    root = Party("clients", ca=True)
    middle = Party("middle", root, ca=True)
    bundle = tmp_path / "clients.crt"
    bundle.write_bytes(root.pem)
    tokens = tmp_path / "tokens.csv"
    tokens.write_text('t0ken,jane,1,"system:masters"\n')
    running = start_server("--client-ca-file", str(bundle), "--token-auth-file", str(tokens))
    masters = {"organization": "system:masters"}
    good = Party("jane", root, **masters).write(tmp_path / "good.pem")
    assert ask(running, good)[0] == 200
    assert ask(running, Party("jane", middle, **masters).write(tmp_path / "chain.pem", [middle]))[0] == 200
    unknown = Party("jane", Party("clients", ca=True), **masters).write(tmp_path / "unknown.pem")
    status, text = ask(running, unknown)
    assert status == 401 and '"message":"Unauthorized"' in text and '"reason":"Unauthorized"' in text
    assert ask(running, unknown, "/healthz")[0] == 401  # not even what everybody may read
    assert ask(running, Party("jane", root, days=-1, **masters).write(tmp_path / "expired.pem"))[0] == 401
    serving = Party("jane", root, usage=ExtendedKeyUsageOID.SERVER_AUTH, **masters)
    assert ask(running, serving.write(tmp_path / "serving.pem"))[0] == 401
    # A good token beside a bad certificate is enough; nothing at all is anonymous.
    assert ask(running, unknown, Authorization="Bearer t0ken")[0] == 200
    assert ask(running, None)[0] == 403 and ask(running, None, "/healthz")[0] == 200
    # The proxies' CA is another one: nobody becomes a user by it, and its proxies name users.
    assert running.send("GET", "/api").status == 401
    front = running.data / "pki"
    proxy = tmp_path / "proxy.pem"
    proxy.write_bytes((front / "front-proxy-client.key").read_bytes() + (front / "front-proxy-client.crt").read_bytes())
    named = {"X-Remote-User": "joe", "X-Remote-Group": "system:masters"}
    assert ask(running, proxy, **named)[0] == 200
    assert ask(running, proxy)[0] == 401 and ask(running, good, **named)[0] == 200
