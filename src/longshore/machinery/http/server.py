"""Listening sockets and the connections that came in through them."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl as tls
from collections.abc import Callable
from pathlib import Path

from .connection import Connection
from .message import Handler, Response


def plain_error(status: int, message: str) -> Response:
    """An error as text, for servers that have no error shape of their own."""
    return Response(status, (message + "\n").encode(), (), "text/plain; charset=utf-8")


class Server:
    """An HTTP/1.1 server.

    handler: answers each request; a plain return of a Response makes no task.
    error: shapes what the core itself answers (400, 408, 413, 417, 431, 500, 501, 505).
    max_head: octets of request line and header fields. Times in seconds: idle_timeout between requests, head_timeout
    for a whole head, body_timeout without progress while a handler reads a whole body, write_timeout without progress
    while a large whole answer is written (streams may wait as long as they like).
    """

    def __init__(
        self,
        handler: Handler,
        *,
        error: Callable[[int, str], Response] = plain_error,
        max_head: int = 65536,
        idle_timeout: float = 180.0,
        head_timeout: float = 30.0,
        body_timeout: float = 60.0,
        write_timeout: float = 60.0,
    ) -> None:
        self.handler = handler
        self.error = error
        self.max_head = max_head
        self.idle_timeout = idle_timeout
        self.head_timeout = head_timeout
        self.body_timeout = body_timeout
        self.write_timeout = write_timeout
        self.connections: set[Connection] = set()
        self.closing = False
        self._listeners: list[asyncio.Server] = []
        self._paths: list[tuple[Path, int]] = []

    async def listen_tcp(
        self, host: str, port: int, *, ssl: tls.SSLContext | None = None, sock: socket.socket | None = None
    ) -> int:
        """Listens; gives the port (of use where 0 was asked for). `sock`: a bound or listening socket to take instead.

        OSError where the address is in use or not ours.
        """
        if sock is None:
            sock = bind(host, port)
        sock.setblocking(False)
        # accepted sockets inherit these
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        bound = int(sock.getsockname()[1])
        if ssl is None:
            listener = await loop.create_server(lambda: Connection(self), sock=sock, backlog=1024)
        else:
            listener = await loop.create_server(
                lambda: Connection(self),
                sock=sock,
                backlog=1024,
                ssl=ssl,
                ssl_handshake_timeout=15.0,
                ssl_shutdown_timeout=2.0,
            )
        self._listeners.append(listener)
        return bound

    async def listen_unix(self, path: Path, *, mode: int = 0o660, gid: int | None = None) -> None:
        """Listens on a unix socket. A dead socket file in the way is removed; OSError when a live server has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise OSError(98, f"listen unix {path}: bind: address already in use")
        finally:
            probe.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        old = os.umask(0o777 & ~mode)  # never a moment in which others could connect
        try:
            sock.bind(str(path))
        finally:
            os.umask(old)
        os.chmod(path, mode)
        if gid is not None:
            os.chown(path, -1, gid)
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_unix_server(lambda: Connection(self), sock=sock, backlog=1024))
        self._paths.append((path, path.stat().st_ino))

    async def close(self, grace: float = 0) -> None:
        """Stops listening, cuts streams, lets whole answers under way end for `grace` seconds, then cuts what is left."""
        self.closing = True
        for listener in self._listeners:
            listener.close()
        for path, inode in self._paths:
            try:
                if path.stat().st_ino == inode:
                    path.unlink()
            except FileNotFoundError:
                pass
        tasks = [c._task for c in self.connections if c._task is not None]
        # Only answers under way are waited for: a TLS peer that is idle may take its time to say goodbye.
        busy = [c for c in self.connections if c.busy]
        for connection in list(self.connections):
            connection.shut()
        if grace > 0 and busy:
            waits = [asyncio.ensure_future(c.closed()) for c in busy]
            await asyncio.wait(waits, timeout=grace)
            for wait in waits:
                wait.cancel()
        for connection in list(self.connections):
            connection.kill()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        self._listeners.clear()


def bind(host: str, port: int) -> socket.socket:
    flags = socket.AI_PASSIVE | socket.AI_NUMERICSERV
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    found.sort(key=lambda f: f[0] != socket.AF_INET6 if host in ("", "::") else f[0] != socket.AF_INET)
    last: OSError | None = None
    for family, kind, proto, _, address in found:
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host in ("", "::") else 1)
            sock.bind(address)
            return sock
        except OSError as error:
            sock.close()
            last = error
    assert last is not None
    raise OSError(last.errno, f"listen tcp {host}:{port}: bind: {(last.strerror or str(last)).lower()}")
