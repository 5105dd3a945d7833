"""The kubelet's certificates and their renewal: a new one is asked of the cluster before the old one ends.

Source: client-go util/certificate (when, and how a store's files are called), kubernetes pkg/kubelet/certificate.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from longshore.client import signing
from longshore.client.config import load_pair
from longshore.client.rest import Client
from longshore.machinery import pki, renewal
from longshore.machinery.errors import StatusError
from longshore.machinery.http import ClientError
from longshore.node.kubelet.config import Config

log = logging.getLogger("longshore.kubelet.certificates")
_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_SLEEP = 10.0, 600.0, 3600.0


def _follows(later: bytes, earlier: bytes, *, subject: bool) -> bool:
    """Whether a certificate is of the same issuer (and subject) as another, is good now, and is so for longer."""
    from cryptography import x509

    new, old = x509.load_pem_x509_certificate(later), x509.load_pem_x509_certificate(earlier)
    return bool(
        (new.subject == old.subject or not subject)
        and new.issuer == old.issuer
        and new.not_valid_after_utc.timestamp() > max(time.time(), old.not_valid_after_utc.timestamp())
    )


def deadline(certificate: bytes) -> float:
    """When a certificate is to be renewed: after 70 to 90 % of its time, not all nodes at once."""
    begin, end = pki.validity(certificate)
    return begin + (end - begin) * random.uniform(0.7, 0.9)


class Store:
    """FOLDER/PREFIX-<time>.pem, certificate and key; PREFIX-current.pem leads to the newest."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._prefix = folder, prefix
        self.current = folder / f"{prefix}-current.pem"

    def newest(self, given: pki.KeyPair, *, subject: bool) -> pki.KeyPair:
        """The kept pair where it follows the given one, else the given one. subject: it must be the same. Blocking."""
        from cryptography.hazmat.primitives import serialization

        try:
            data = self.current.read_bytes()
            if not _follows(data, given.certificate, subject=subject):
                return given
            serialization.load_pem_private_key(data, None)
        except (OSError, ValueError):
            return given
        return pki.KeyPair(data, data)

    def keep(self, pair: pki.KeyPair) -> None:
        """Keep a new pair and remove those before it. Blocking."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        stamp = datetime.now(UTC).strftime("%Y-%m-%d-%H-%M-%S-%f")
        path = self._folder / f"{self._prefix}-{stamp}.pem"
        pki.write_file(path, pair.certificate.rstrip() + b"\n" + pair.key, 0o600)
        link = self._folder / f".{self._prefix}-current.pem"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        os.replace(link, self.current)
        for other in self._folder.glob(f"{self._prefix}-2*.pem"):
            if other.name < path.name:
                other.unlink(missing_ok=True)


def serving(config: Config, certificate: Path | None, key: Path | None) -> pki.KeyPair:
    """What the port shows at first: the given pair, or one of our own making. Blocking."""
    if certificate is not None and key is not None:
        return pki.KeyPair.read(certificate, key)
    folder = config.root / "pki"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    own, own_key = folder / "kubelet.crt", folder / "kubelet.key"
    names = [config.node_name, *config.node_ips]
    if not own.exists() or not pki.covers(own.read_bytes(), names):
        ca = pki.make_ca(f"{config.node_name}-ca")
        pki.issue(ca, config.node_name, names=names, server=True).write(own, own_key)
    return pki.KeyPair.read(own, own_key)


def show_newest(context: ssl.SSLContext, folder: Path, certificate: Path, key: Path) -> None:
    """Have a server of the node show what its kubelet's port does: the given pair, then each that the kubelet renews.

    folder: the kubelet's pki. Blocking.
    """
    store = Store(folder, "kubelet-server")

    def load(context: ssl.SSLContext) -> None:
        pair = store.newest(pki.KeyPair.read(certificate, key), subject=False)
        load_pair(context, pair.certificate, pair.key)

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    renewal.hold(context, [certificate, store.current], load)
    load(context)


class Rotation:
    """Renews one certificate for as long as it runs."""

    def __init__(
        self,
        client: Client,
        store: Store,
        node_name: str,
        pair: pki.KeyPair,
        install: Callable[[pki.KeyPair], None],
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        """pair: the present one. install: told of each new one. names: of the serving certificate; None: the client's."""
        self._client, self._store, self._pair, self._install = client, store, pair, install
        self._node, self._names = node_name, names

    async def run(self) -> None:
        """Renew until cancelled."""
        pause, wanted = _FIRST_PAUSE, deadline(self._pair.certificate)
        while True:
            rest = wanted - time.time()
            if rest > 0:
                # A machine that sleeps stops the clock that sleeping tasks go by: look again after a while.
                await asyncio.sleep(min(rest, _LONGEST_SLEEP))
                continue
            while True:
                try:
                    await self._renew()
                    break
                except (StatusError, ClientError, OSError, TimeoutError, signing.Refused, ValueError) as error:
                    log.warning("the certificate of %s is not renewed: %s", self._node, error or "nobody has approved it")  # fmt: skip
                await asyncio.sleep(pause * random.uniform(1.0, 1.1))
                pause = min(pause * 2, _LONGEST_PAUSE)
            pause, wanted = _FIRST_PAUSE, deadline(self._pair.certificate)

    async def _renew(self) -> None:
        pair = await signing.certificate(
            self._client,
            f"system:node:{self._node}",
            signer=signing.KUBELET_CLIENT if self._names is None else signing.KUBELET_SERVING,
            organizations=["system:nodes"],
            names=self._names or (),
            patience=15 * 60.0,
        )
        await asyncio.to_thread(self._store.keep, pair)
        self._pair = pair
        self._install(pair)
        kind = "client" if self._names is None else "serving"
        log.info(
            "a new %s certificate, good until %s", kind, datetime.fromtimestamp(pki.validity(pair.certificate)[1], UTC)
        )
