"""The auditor that the flags ask for.

Source: k8s.io/apiserver/pkg/server/options/audit.go.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from longshore.master.apiserver.remote import Remote

from . import backends
from .auditor import Auditor, Count
from .backends import Backend, Failed
from .flags import Batch, Log, Options, Truncate
from .policy import Policy
from .rotation import RotatingFile


def open_auditor(options: Options, policy: Path, count: Count) -> Auditor | None:
    """An auditor by a policy file; None when events have nowhere to go. PolicyError, ConfigError, OSError."""

    def failed(plugin: str, number: int) -> None:
        count("apiserver_audit_error_total", (("plugin", plugin),), number)

    read = Policy.load(policy)
    found: list[Backend] = []
    log, webhook = options.log, options.webhook
    if log.file is not None:
        lines = backends.LogFile(_output(log.file, log), log.format, failed)
        found.append(_wrapped(lines, log.batch, log.truncate, failed))
    if webhook.file is not None:
        remote = Remote(webhook.file, first_wait=webhook.first_wait, retry=lambda error: True)
        remote.open()
        found.append(_wrapped(backends.Webhook(remote, failed), webhook.batch, webhook.truncate, failed))
    if not found:
        return None
    return Auditor(read, found[0] if len(found) == 1 else backends.Union(found), count)


def _wrapped(backend: Backend, batch: Batch, cut: Truncate, failed: Failed) -> Backend:
    if batch.mode == "blocking":
        backend = backends.Lenient(backend)
    elif batch.mode == "batch":
        backend = backends.Buffered(backend, batch, failed)
    return backends.Truncating(backend, cut, failed) if cut.enabled else backend


def _output(file: Path, given: Log) -> backends.Output:
    if str(file) == "-":
        return _Standard()
    return RotatingFile(
        file, size=given.size << 20, age=given.age, backups=given.backups, compress=given.compress
    )  # fmt: skip


class _Standard:
    """The standard output."""

    def write(self, data: bytes) -> None:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), data)

    def close(self) -> None:
        """It stays open."""
