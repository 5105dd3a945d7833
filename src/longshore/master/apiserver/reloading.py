"""What the server reads again while it runs: the CAs of its clients, its configuration files.

Source: k8s.io/apiserver/pkg/server/dynamiccertificates; kubeapiserver/options/authentication.go (reload of
AuthenticationConfiguration); pkg/controlplane/apiserver/options; encryptionconfig/controller.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from longshore.machinery import renewal

if TYPE_CHECKING:
    from longshore.master.apiserver.server import APIServer

log = logging.getLogger("longshore.apiserver.reloading")


def identity_hash() -> str:
    """The hash of this server's identity that its metrics carry."""
    digest = hashlib.sha256(socket.gethostname().encode()).digest()[:16]
    identity = "apiserver-" + base64.b32encode(digest).decode().rstrip("=").lower()
    return f"sha256:{hashlib.sha256(identity.encode()).hexdigest()}"


class Reloading:
    """Has the files of one server followed (machinery.renewal)."""

    def __init__(self, server: APIServer) -> None:
        self._server = server
        self._identity = identity_hash()
        self._moments: dict[str, dict[str, float]] = {}

    def start(self) -> None:
        server, config = self._server, self._server.config
        assert server.access is not None
        for authorities in server.access.authorities:
            self._held([authorities.file], self._logged(authorities.file, authorities.load))
        options = server.access.options
        if options.authentication_config is not None:
            self._counted("authentication", options.authentication_config, server.access.reload_authentication)
        if options.authorization_config is not None:
            self._counted("authorization", options.authorization_config, server.access.reload_authorization)
        if server.encryption is not None and config.encryption_config is not None:
            encryption = server.encryption
            self._tell("encryption", lambda: encryption.digest)
            if encryption.automatic:
                self._counted("encryption", config.encryption_config, encryption.reload)

    def close(self) -> None:
        renewal.release(self)

    def _held(self, files: list[Path], changed: Callable[[], Awaitable[None] | None]) -> None:
        renewal.hold(self, files, lambda _: changed(), loop=asyncio.get_running_loop())

    def _logged(self, file: Path, load: Callable[[], None]) -> Callable[[], None]:
        def changed() -> None:
            try:
                load()
            except (OSError, ValueError) as error:
                log.warning("%s is not taken: %s", file, error)
            else:
                log.info("%s is taken as it is now", file)

        return changed

    def _counted(self, kind: str, file: Path, reload: Callable[[], Awaitable[None]]) -> None:
        """Read a configuration file again, and count how that went under upstream's names."""
        metrics, moments = self._server.metrics, self._moments.setdefault(kind, {})
        name = f"apiserver_{kind}_config_controller_automatic_reload"
        digest = _digest(file)

        async def changed() -> None:
            nonlocal digest
            try:
                if (now := _digest(file)) == digest:
                    return
                await reload()
                status, digest = "success", now
                log.info("%s is taken as it is now", file)
            except (OSError, ValueError) as error:
                status = "failure"
                log.error("%s is not taken: %s", file, error)
            moments[status] = time.time()
            metrics.count(f"{name}s_total", (("apiserver_id_hash", self._identity), ("status", status)))

        metrics.gauges[f"{name}_last_timestamp_seconds"] = (
            f"[ALPHA] When the {kind} configuration was read again, by how that went.",
            lambda: [([("apiserver_id_hash", self._identity), ("status", s)], at) for s, at in moments.items()],
        )
        self._tell(kind, lambda: digest)
        self._held([file], changed)

    def _tell(self, kind: str, digest: Callable[[], str]) -> None:
        self._server.metrics.gauges[f"apiserver_{kind}_config_controller_last_config_info"] = (
            f"[ALPHA] The hash of the {kind} configuration in force.",
            lambda: [([("apiserver_id_hash", self._identity), ("hash", digest())], 1)],
        )


def _digest(file: Path) -> str:
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
