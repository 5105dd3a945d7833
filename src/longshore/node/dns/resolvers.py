"""The host's own resolvers, asked over UDP and, where the answer was cut, over TCP."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from longshore.machinery import netns
from longshore.wire import dns
from longshore.wire.dns import Message

TRY_SECONDS = 2.0
_IP_RECVERR, _IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h


def of_host(path: Path = Path("/etc/resolv.conf"), leave_out: Iterable[str] = ()) -> list[str]:
    """The nameservers of a resolv.conf, without our own addresses (asking ourselves would go round for ever)."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ipaddress.ip_address(words[1].split("%")[0])
            except ValueError:
                continue
            if words[1] not in leave_out:
                found.append(words[1])
    return found


def answers(question: Message, answer: Message) -> bool:
    """Whether a message answers ours: same number, same question (a forged one guesses both)."""
    same = [(q.name.lower(), q.type) for q in answer.questions] == [
        (q.name.lower(), q.type) for q in question.questions
    ]
    return bool(answer.flags & dns.QR) and answer.id == question.id and same


class Resolvers:
    """Asks one after another until one answers. Raises OSError when none does.

    namespace: the network namespace from which they are reached (a node that is a namespace asks as its machine does, whose
    resolver may well be on the loopback interface); None: our own.
    """

    def __init__(self, servers: list[str], port: int = 53, *, namespace: netns.Namespace | None = None) -> None:
        self._servers = servers
        self._port = port
        self._namespace = namespace

    async def ask(self, message: Message) -> Message:
        """The answer to a query; its id is replaced by one that cannot be guessed."""
        last: Exception = OSError("no resolver")
        for server in self._servers * 2:
            message.id = int.from_bytes(os.urandom(2))
            try:
                async with asyncio.timeout(TRY_SECONDS):
                    answer = await self._udp(server, message)
                    return await self._tcp(server, message) if answer.flags & dns.TC else answer
            except TimeoutError:
                last = OSError(f"{server} does not answer")
            except (OSError, dns.DNSError) as error:
                last = error
        raise last

    async def _socket(self, server: str, kind: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        flags = kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        if self._namespace is None:
            return socket.socket(family, flags)
        return await asyncio.to_thread(netns.make_socket, self._namespace, family, flags)

    async def _udp(self, server: str, message: Message) -> Message:
        loop = asyncio.get_running_loop()
        with await self._socket(server, socket.SOCK_DGRAM) as sock:
            # Routers' words (no route, no such host) are wanted too: otherwise only silence would be left of them.
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            sock.connect((server, self._port))
            sock.send(dns.encode(message))
            while True:
                data = await loop.sock_recv(sock, 65535)
                try:
                    answer = dns.decode(data)
                except dns.DNSError:
                    continue
                if answers(message, answer):
                    return answer

    async def _tcp(self, server: str, message: Message) -> Message:
        sock = await self._socket(server, socket.SOCK_STREAM)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (server, self._port))
        except BaseException:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            packet = dns.encode(message)
            writer.write(len(packet).to_bytes(2) + packet)
            size = int.from_bytes(await reader.readexactly(2))
            answer = dns.decode(await reader.readexactly(size))
            if not answers(message, answer):
                raise OSError(f"{server} answers something else")
            return answer
        except asyncio.IncompleteReadError as error:
            raise OSError(f"{server} breaks off") from error
        finally:
            writer.close()
