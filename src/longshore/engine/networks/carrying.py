"""What netfilter cannot translate to a published port is carried by the engine.

Connections to [::1] (the kernel routes no translated loopback traffic of IPv6), and over IPv6 to a container that has only an
IPv4 address (or the reverse), are the ones that reach the socket which holds a port: all others are translated before.
So this costs nothing until somebody comes that way. Bytes are spliced from socket to socket and never seen here.
Source: docker-proxy's behaviour; splice(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

log = logging.getLogger("longshore.engine.networks")

#: An address and a port inside a container.
Target = tuple[str, int]

_PIECE = 1 << 16
_SPLICE = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
_BACKLOG = 128
_ACCEPT_AT_ONCE = 32
_CONNECT_SECONDS = 30.0
# As docker-proxy: how long answers to a datagram are waited for, and how many peers are kept.
_DATAGRAM_SECONDS, _PEERS = 90.0, 1024
_RESET = struct.pack("ii", 1, 0)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class _Stream:
    """One direction of a connection: what arrives at `source` goes to `sink`; its end is passed on."""

    def __init__(self, source: socket.socket, sink: socket.socket, ended: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._source, self._sink, self._ended = source, sink, ended
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._held = 0
        self._writing = False
        self.done = False
        self._loop.add_reader(source.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            read = os.splice(self._source.fileno(), self._in, _PIECE, flags=_SPLICE)
        except BlockingIOError:
            return
        except OSError:
            self._fail()
            return
        if read == 0:
            with contextlib.suppress(OSError):
                self._sink.shutdown(socket.SHUT_WR)
            self.close()
            self._ended()
            return
        self._held += read
        self._write()

    def _fail(self) -> None:
        """Neither side hears the other any more."""
        for sock in (self._source, self._sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.close()
        self._ended()

    def _write(self) -> None:
        try:
            while self._held:
                self._held -= os.splice(self._out, self._sink.fileno(), self._held, flags=_SPLICE)
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._loop.remove_reader(self._source.fileno())
                self._loop.add_writer(self._sink.fileno(), self._write)
            return
        except OSError:
            self._fail()
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sink.fileno())
            self._loop.add_reader(self._source.fileno(), self._readable)

    def close(self) -> None:
        if self.done:
            return
        self.done = True
        self._loop.remove_reader(self._source.fileno())
        if self._writing:
            self._loop.remove_writer(self._sink.fileno())
        os.close(self._in)
        os.close(self._out)


class Carrier:
    """Carries what arrives at the sockets of one published port to `target`; None: connections are refused."""

    def __init__(self, protocol: str, sockets: list[socket.socket], target: Target | None) -> None:
        self.target = target
        self._loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._open: set[tuple[socket.socket, socket.socket]] = set()
        self._peers: dict[tuple[socket.socket, Any], tuple[socket.socket, asyncio.TimerHandle]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        for sock in sockets:
            sock.setblocking(False)
            if protocol == "tcp":
                sock.listen(_BACKLOG)
                self._loop.add_reader(sock.fileno(), self._accept, sock)
            elif protocol == "udp":
                self._loop.add_reader(sock.fileno(), self._datagram, sock)

    # ------------------------------------------------------------------ connections

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setblocking(False)
            if self.target is None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                continue
            task = self._loop.create_task(self._connect(client, self.target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: socket.socket, target: Target) -> None:
        server = socket.socket(_family(target[0]), socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._loop.sock_connect(server, target)
        except BaseException as error:
            # The client sees what it would see without us: the connection does not come about.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            server.close()
            if not isinstance(error, OSError):
                raise
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = (client, server)
        streams: list[_Stream] = []

        def ended() -> None:
            if all(stream.done for stream in streams) and len(streams) == 2:
                self._open.discard(pair)
                client.close()
                server.close()

        self._open.add(pair)
        streams.append(_Stream(client, server, ended))
        streams.append(_Stream(server, client, ended))

    # ------------------------------------------------------------------ datagrams

    def _datagram(self, sock: socket.socket) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                data, peer = sock.recvfrom(_PIECE)
            except OSError:
                return
            entry = self._peers.get((sock, peer))
            if entry is None:
                if self.target is None or len(self._peers) >= _PEERS:
                    continue
                inner = socket.socket(_family(self.target[0]), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                inner.setblocking(False)
                try:
                    inner.connect(self.target)
                except OSError:
                    inner.close()
                    continue
                self._loop.add_reader(inner.fileno(), self._answer, sock, peer, inner)
            else:
                inner, timer = entry
                timer.cancel()
            self._peers[sock, peer] = inner, self._loop.call_later(_DATAGRAM_SECONDS, self._forget, sock, peer)
            with contextlib.suppress(OSError):
                inner.send(data)

    def _answer(self, sock: socket.socket, peer: Any, inner: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.sendto(inner.recv(_PIECE), peer)

    def _forget(self, sock: socket.socket, peer: Any) -> None:
        inner, timer = self._peers.pop((sock, peer))
        timer.cancel()
        self._loop.remove_reader(inner.fileno())
        inner.close()

    def close(self) -> None:
        """Stop; what is being carried ends. The sockets belong to who gave them."""
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
        for task in self._tasks:
            task.cancel()
        for pair in self._open:
            for sock in pair:
                # Their streams see the end and let go.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for sock, peer in list(self._peers):
            self._forget(sock, peer)
