"""Addresses of the Docker Engine API besides its socket, with dockerd's forms, defaults and words.

Source: dockerd's reference of --host, --tls and --tlsverify.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """PEM files. client_ca: who signs clients' certificates, without which none is let in; None: anybody may ask."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Raises ValueError in dockerd's words when a file cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate, self.key)
        except FileNotFoundError:
            missing = next((p for p in (self.certificate, self.key) if not p.exists()), self.certificate)
            raise ValueError(
                f'could not load X509 key pair (cert: "{self.certificate}", key: "{self.key}"): '
                f"open {missing}: no such file or directory"
            ) from None
        except (OSError, ssl.SSLError) as error:
            raise ValueError(
                f'error reading X509 key pair (cert: "{self.certificate}", key: "{self.key}"): {error}. '
                "Make sure the key is not encrypted"
            ) from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except FileNotFoundError:
                raise ValueError(
                    f'could not read CA certificate "{self.client_ca}": open {self.client_ca}: no such file or directory'
                ) from None
            except (OSError, ssl.SSLError) as error:
                raise ValueError(f'could not read CA certificate "{self.client_ca}": {error}') from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True, slots=True)
class Host:
    """One address: of a unix socket, or host and port."""

    path: Path | None = None
    host: str = ""
    port: int = 0


def parse(text: str, *, tls: bool) -> Host:
    """One --host. Without a port it is 2376 with TLS and 2375 without, without a host it is loopback. Raises ValueError."""
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "tcp", text
    if scheme == "unix":
        return Host(path=Path(rest or "/var/run/docker.sock"))
    if scheme != "tcp":
        raise ValueError(f"invalid bind address format: {text}")
    parts = urlsplit(f"tcp://{rest}")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"invalid bind address ({text}): invalid port") from None
    if parts.path not in ("", "/") or parts.query or parts.username is not None:
        raise ValueError(f"invalid bind address ({text}): should not contain a path element")
    return Host(host=parts.hostname or "127.0.0.1", port=(2376 if tls else 2375) if port is None else port)


def warning(host: str, port: int, *, tls: bool) -> str:
    """What /info says of an address at which clients need no certificate."""
    shown = f"{f'[{host}]' if ':' in host else host}:{port}"
    how = f"https://{shown} without TLS client verification." if tls else f"http://{shown} without encryption."
    return f"""[DEPRECATION NOTICE]: API is accessible on {how}
         Access to the remote API is equivalent to root access on the host. Refer
         to the 'Docker daemon attack surface' section in the documentation for
         more information: https://docs.docker.com/go/attack-surface/
In future versions this will be a hard failure preventing the daemon from starting! Learn more at: https://docs.docker.com/go/api-security/"""
