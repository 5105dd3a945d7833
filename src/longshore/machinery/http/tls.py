"""TLS contexts as the parts need them: HTTP/1.1 only in ALPN, TLS 1.2 and later, certificates as their files are."""

from __future__ import annotations

import ctypes
import ssl
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from longshore.machinery.renewal import load_files

_VERIFY_PEER = 1
# Called by OpenSSL for each certificate of a chain, with its own opinion first: go on, whatever that is.
_GO_ON = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)(lambda opinion, store: 1)


@cache
def _openssl() -> ctypes.CDLL | None:
    """The OpenSSL library under Python's ssl module, None where it is linked into the interpreter without names."""
    import _ssl

    try:
        library = ctypes.CDLL(getattr(_ssl, "__file__", None))
        library.SSL_CTX_set_verify.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        library.SSL_CTX_set_verify.restype = None
        library.SSL_CTX_get_verify_mode.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return library


def accept_any_certificate(context: ssl.SSLContext) -> bool:
    """Clients may show any certificate from now on: who uses the connection checks it (Peer.certificate_der, chain).

    Python's ssl module either asks for a certificate and fails the handshake when OpenSSL does not trust it, or does not
    ask. OpenSSL's own hook for this, SSL_CTX_set_verify, is set past the module: its context object begins with the
    pointer to OpenSSL's (PySSLContext in Modules/_ssl.c, 3.8 to 3.14). False, and nothing changed, where that is not
    possible: an interpreter that is not CPython, is newer than was looked into, or has OpenSSL inside.
    """
    known = sys.implementation.name == "cpython" and sys.version_info < (3, 15)
    library = _openssl() if known else None
    if library is None:
        return False
    context.verify_mode = ssl.CERT_OPTIONAL
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    if library.SSL_CTX_get_verify_mode(pointer) != _VERIFY_PEER:
        return False
    library.SSL_CTX_set_verify(pointer, _VERIFY_PEER, ctypes.cast(_GO_ON, ctypes.c_void_p))
    return True


def intermediates(session: Any) -> list[bytes]:
    """What a client sent besides its own certificate, as DER. session: an SSLObject or SSLSocket of a server."""
    if hasattr(session, "get_unverified_chain"):  # Python 3.13
        return list(session.get_unverified_chain())[1:]
    import _ssl

    chain = session._sslobj.get_unverified_chain()
    return [c.public_bytes(_ssl.ENCODING_DER) for c in (chain or ())[1:]]


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
        load_files(context, Path(certificate), Path(key))
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
        load_files(context, Path(certificate), None if key is None else Path(key))
    return context
