"""hosts.toml: by which hosts a registry's images come, in the form that containerd and BuildKit read.

    # /etc/containerd/certs.d/registry.k8s.io/hosts.toml
    server = "https://registry.k8s.io"
    [host."http://127.0.0.1:5000"]
      capabilities = ["pull", "resolve"]

The folder is named after the registry's domain ("docker.io", "localhost:5000"), or `_default` for those without one.
Source: containerd docs/hosts.md and core/remotes/docker/config/hosts.go.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("longshore.engine.images")

FOLDERS = (Path("/etc/docker/certs.d"), Path("/etc/containerd/certs.d"))
_CAPABILITIES = frozenset({"pull", "resolve", "push"})
_SIZE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Host:
    """One base URL to ask. verify: its certificate; capabilities: of "pull", "resolve", "push"; ca: files of trusted
    authorities; clients: (certificate, key) files to show."""

    url: str
    verify: bool = True
    capabilities: frozenset[str] = _CAPABILITIES
    ca: tuple[str, ...] = ()
    clients: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Hosts:
    """A registry's hosts in order; server: the one asked last, None for the registry itself."""

    hosts: tuple[Host, ...] = ()
    server: Host | None = None


def find(domain: str, folders: Sequence[Path] = FOLDERS) -> Hosts | None:
    """The hosts for a registry's domain, or None where no file names any. A file that cannot be read counts as none."""
    for folder in folders:
        for name in (domain, domain.replace(":", "_") if ":" in domain else "", "_default"):
            path = folder / name / "hosts.toml"
            if not name or not path.is_file():
                continue
            try:
                return parse(path.read_bytes()[:_SIZE_LIMIT].decode(), path.parent)
            except (OSError, ValueError) as error:
                log.warning("%s: %s", path, error)
                return None
    return None


def parse(text: str, folder: Path) -> Hosts:
    """Read a file's text; relative certificate names are looked up in `folder`. Raises ValueError."""
    loaded = tomllib.loads(text)
    table = loaded.get("host", {})
    if not isinstance(table, dict):
        raise ValueError("`host` is no table")
    found = tuple(_host(str(url), entry, folder) for url, entry in table.items())
    server = loaded.get("server")
    # The top level describes the server itself with the same keys.
    return Hosts(found, _host(str(server), loaded, folder) if server else None)


def _host(url: str, entry: Any, folder: Path) -> Host:
    if not isinstance(entry, dict):
        raise ValueError(f"host {url!r} is no table")
    base = url if "//" in url else f"https://{url}"
    if not base.startswith(("http://", "https://")):
        raise ValueError(f"host {url!r}: unsupported scheme")
    base = base.rstrip("/").removesuffix("/v2")
    wanted = entry.get("capabilities")
    capabilities = _CAPABILITIES if wanted is None else frozenset(str(item) for item in _list(wanted))
    unknown = capabilities - _CAPABILITIES
    if unknown:
        raise ValueError(f"host {url!r}: unknown capability {min(unknown)!r}")
    authorities = tuple(str(folder / name) for name in _list(entry.get("ca", ())))
    clients = tuple(_pair(item, folder) for item in _list(entry.get("client", ())))
    return Host(base, entry.get("skip_verify") is not True, capabilities, authorities, clients)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _pair(item: Any, folder: Path) -> tuple[str, str]:
    """A client certificate: one file with both, or [certificate, key]."""
    names = _list(item)
    if len(names) not in (1, 2) or not all(isinstance(name, str) for name in names):
        raise ValueError("`client` is no file and no pair of files")
    return str(folder / names[0]), str(folder / names[-1])
