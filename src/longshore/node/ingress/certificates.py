"""Certificates by host name: from Secrets, and one of our own for names that have none."""

from __future__ import annotations

import base64
import binascii
import logging
import os
import ssl
from collections.abc import Callable
from typing import Any

from longshore.machinery import pki

logger = logging.getLogger("longshore.ingress")

Object = dict[str, Any]


def context_of(certificate: bytes, key: bytes) -> ssl.SSLContext:
    """A server's context of PEM bytes. Raises ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # ssl reads certificates only from files: give it one that never touches a disk.
    fd = os.memfd_create("ingress-certificate", os.MFD_CLOEXEC)
    try:
        os.write(fd, certificate.rstrip() + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


class Certificates:
    """The TLS side of a listener.

    secret_for(host): the Secret ("namespace/name") that Ingresses name for a host, "" for none.
    """

    def __init__(self, secret_for: Callable[[str], str]) -> None:
        self._secret_for = secret_for
        self._contexts: dict[str, ssl.SSLContext] = {}
        ca = pki.make_ca("Longshore Ingress")
        own = pki.issue(ca, "Longshore Ingress default certificate", names=["localhost"], server=True)
        self.default = context_of(own.certificate, own.key)
        self.default.sni_callback = self._chosen

    def secret(self, obj: Object) -> None:
        """A Secret of type kubernetes.io/tls is new or changed."""
        key = f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
        data = obj.get("data") or {}
        try:
            certificate, private = (base64.b64decode(data.get(name) or "") for name in ("tls.crt", "tls.key"))
            self._contexts[key] = context_of(certificate, private)
        except (ssl.SSLError, binascii.Error, ValueError) as error:
            self._contexts.pop(key, None)
            logger.warning("Secret %s holds no usable certificate: %s", key, error)

    def secret_gone(self, obj: Object) -> None:
        self._contexts.pop(f"{obj['metadata']['namespace']}/{obj['metadata']['name']}", None)

    def _chosen(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        context = self._contexts.get(self._secret_for((name or "").lower()))
        if context is not None:
            connection.context = context
