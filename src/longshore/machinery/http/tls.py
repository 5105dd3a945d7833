"""TLS contexts as the parts need them: HTTP/1.1 only in ALPN, TLS 1.2 and later."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path


def server_context(
    certificate: Path | str | None = None,
    key: Path | str | None = None,
    *,
    client_ca: Path | str | Sequence[Path | str] | None = None,
    require: bool = False,
) -> ssl.SSLContext:
    """A server's context (without a certificate: the caller loads one). With `client_ca` (PEM bundles) a client may show a certificate; with `require` it must."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None and key is not None:
        context.load_cert_chain(str(certificate), str(key))
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    if client_ca is not None:
        for bundle in [client_ca] if isinstance(client_ca, Path | str) else client_ca:
            context.load_verify_locations(str(bundle))
        context.verify_mode = ssl.CERT_REQUIRED if require else ssl.CERT_OPTIONAL
    return context


def client_context(
    *,
    ca: Path | str | None = None,
    ca_data: str | None = None,
    certificate: Path | str | None = None,
    key: Path | str | None = None,
    verify: bool = True,
) -> ssl.SSLContext:
    """A client's context: trusted by `ca` (PEM file) or `ca_data` (PEM text), else by the system's store."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca is not None or ca_data is not None:
        context.load_verify_locations(None if ca is None else str(ca), None, ca_data)
    else:
        context.load_default_certs()
    if certificate is not None:
        context.load_cert_chain(str(certificate), None if key is None else str(key))
    return context
