"""What every answer says of this registry: its version of the protocol and its own URL."""

from __future__ import annotations

from longshore.machinery.http import Request

VERSION = ("Docker-Distribution-API-Version", "registry/2.0")


def base_url(request: Request) -> str:
    """This registry's URL as the client reached it (through a proxy that says so)."""
    scheme = request.headers.get("X-Forwarded-Proto") or ("https" if request.peer.tls else "http")
    host = request.headers.get("X-Forwarded-Host") or request.headers.get("Host") or "localhost"
    return f"{scheme.partition(',')[0].strip()}://{host.partition(',')[0].strip()}"
