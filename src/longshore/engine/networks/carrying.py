"""What netfilter cannot translate to a published port is carried by the engine.

Connections to [::1] (where bridged packets pass the rules, the kernel drops what is translated back to it), and over IPv6
to a container that has only an IPv4 address (or the reverse), are the ones that reach the socket which holds a port: all
others are translated before.
So this costs nothing until somebody comes that way. Source: docker-proxy's behaviour.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from typing import Any

#: An address and a port inside a container.
Target = tuple[str, int]

_PIECE = 1 << 16
_BACKLOG = 128
_ACCEPT_AT_ONCE = 32
_CONNECT_SECONDS = 30.0
# As docker-proxy: how long answers to a datagram are waited for, and how many peers are kept.
_DATAGRAM_SECONDS, _PEERS = 90.0, 1024
_RESET = struct.pack("ii", 1, 0)
# What is read is written at once, or copied: one buffer serves all connections of the loop's thread.
_buffer = bytearray(1 << 18)
_view = memoryview(_buffer)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class _Connection:
    """A connection that came to a held port, and its counterpart in the container."""

    def __init__(self, client: socket.socket, target: Target, open: set[_Connection]) -> None:
        self._loop = asyncio.get_running_loop()
        self._client, self._all = client, open
        self._server = socket.socket(
            _family(target[0]), socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        for sock in (client, self._server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        open.add(self)
        self._left: dict[socket.socket, bytes] = {}
        self._reading: set[socket.socket] = set()
        self._timer = self._loop.call_later(_CONNECT_SECONDS, self.close)
        if self._server.connect_ex(target) not in (0, errno.EINPROGRESS):
            self.close()
        else:
            self._loop.add_writer(self._server.fileno(), self._connected)

    def _connected(self) -> None:
        self._timer.cancel()
        self._loop.remove_writer(self._server.fileno())
        if self._server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.close()
            return
        self._read(self._server, self._client)
        self._read(self._client, self._server)
        # What was asked is often there already.
        self._move(self._client, self._server)

    def _read(self, source: socket.socket, sink: socket.socket) -> None:
        self._reading.add(source)
        self._loop.add_reader(source.fileno(), self._move, source, sink)

    def _stop_reading(self, source: socket.socket) -> None:
        self._reading.discard(source)
        self._loop.remove_reader(source.fileno())

    def _move(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            count = source.recv_into(_buffer)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not count:
            self._stop_reading(source)
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
            if not self._reading and not self._left:
                self.close(reset=False)
            return
        try:
            sent = sink.send(_view[:count])
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent < count:
            # Nothing more is taken from one side until the other has got this.
            self._left[sink] = bytes(_view[sent:count])
            self._stop_reading(source)
            self._loop.add_writer(sink.fileno(), self._flush, source, sink)

    def _flush(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            self._left[sink] = self._left[sink][sink.send(self._left[sink]) :]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self._left[sink]:
            del self._left[sink]
            self._loop.remove_writer(sink.fileno())
            self._read(source, sink)

    def close(self, *, reset: bool = True) -> None:
        """End both sides; reset: as a connection that broke, or never came about."""
        if self not in self._all:
            return
        self._all.discard(self)
        self._timer.cancel()
        for sock in (self._client, self._server):
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()


class Carrier:
    """Carries what arrives at the sockets of one published port to `target`; None: connections are refused."""

    def __init__(self, protocol: str, sockets: list[socket.socket], target: Target | None) -> None:
        self.target = target
        self._loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._open: set[_Connection] = set()
        self._peers: dict[tuple[socket.socket, Any], tuple[socket.socket, asyncio.TimerHandle]] = {}
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
            if self.target is None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
            else:
                _Connection(client, self.target, self._open)

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
        for connection in list(self._open):
            connection.close()
        for sock, peer in list(self._peers):
            self._forget(sock, peer)
