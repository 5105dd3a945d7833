"""Names that no network of a container knows: asked of its own nameservers, or of the host's.

A nameserver is asked from the container's namespace, so that it may be in the container itself or on a network without a
way out. Only those at a loopback address of the host, which the host's resolv.conf names, are asked from the host.
Source: Docker documentation, "DNS services"; RFC 1035.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshore.machinery import netns
from longshore.wire import dns

_TIMEOUT = 4.0
_OURS = "127.0.0.11"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A nameserver's address. sandbox: the namespace from which it is asked; None: the engine's own."""

    address: str
    sandbox: Path | None


def of(own: Sequence[str], sandbox: Path) -> tuple[list[Upstream], list[str]]:
    """The nameservers of a container: its own, or those of the host; and the options of the host's resolv.conf. Blocking."""
    from longshore.engine.containers.files import host_resolver, loopback

    servers, _, options = host_resolver()
    if own:
        return [Upstream(server, sandbox) for server in own if server != _OURS], options
    return [Upstream(s, None if loopback(s) else sandbox) for s in servers], options


async def ask(servers: Sequence[Upstream], query: bytes, *, stream: bool) -> bytes | None:
    """The first answer that is no failure of its server; None: there is none."""
    for server in servers:
        try:
            async with asyncio.timeout(_TIMEOUT):
                answer = await (_over_tcp(server, query) if stream else _over_udp(server, query))
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            continue
        if answer[:2] == query[:2] and len(answer) > 3 and answer[3] & 0x0F not in (dns.SERVFAIL, dns.REFUSED):
            return answer
    return None


async def _connected(server: Upstream, kind: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
    kind |= socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    if server.sandbox is None:
        sock = socket.socket(family, kind)
    else:
        sock = await loop.run_in_executor(None, netns.make_socket, server.sandbox, family, kind)
    try:
        await loop.sock_connect(sock, (server.address, 53))
    except BaseException:
        sock.close()
        raise
    return sock


class _Once(asyncio.DatagramProtocol):
    def __init__(self, answer: asyncio.Future[bytes]) -> None:
        self._answer = answer

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self._answer.done():
            self._answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc)


async def _over_udp(server: Upstream, query: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()
    sock = await _connected(server, socket.SOCK_DGRAM)
    transport, _ = await loop.create_datagram_endpoint(lambda: _Once(answer), sock=sock)
    try:
        transport.sendto(query)
        return await answer
    finally:
        transport.close()


async def _over_tcp(server: Upstream, query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(sock=await _connected(server, socket.SOCK_STREAM))
    try:
        writer.write(len(query).to_bytes(2, "big") + query)
        length = int.from_bytes(await reader.readexactly(2), "big")
        return await reader.readexactly(length)
    finally:
        writer.close()
