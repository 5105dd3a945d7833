"""The host's own resolvers, asked over UDP and, where the answer was cut, over TCP."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from longshore.wire import dns
from longshore.wire.dns import Message

TRY_SECONDS = 2.0


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


class _Ask(asyncio.DatagramProtocol):
    def __init__(self, message: Message, result: asyncio.Future[Message]) -> None:
        self._message = message
        self._result = result

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.DatagramTransport, transport).sendto(dns.encode(self._message))

    def datagram_received(self, data: bytes, addr: object) -> None:
        try:
            answer = dns.decode(data)
        except dns.DNSError:
            return
        if answers(self._message, answer) and not self._result.done():
            self._result.set_result(answer)

    def error_received(self, error: Exception) -> None:
        if not self._result.done():
            self._result.set_exception(error)


def answers(question: Message, answer: Message) -> bool:
    """Whether a message answers ours: same number, same question (a forged one guesses both)."""
    same = [(q.name.lower(), q.type) for q in answer.questions] == [
        (q.name.lower(), q.type) for q in question.questions
    ]
    return bool(answer.flags & dns.QR) and answer.id == question.id and same


class Resolvers:
    """Asks one after another until one answers. Raises OSError when none does."""

    def __init__(self, servers: list[str], port: int = 53) -> None:
        self._servers = servers
        self._port = port

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

    async def _udp(self, server: str, message: Message) -> Message:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Message] = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Ask(message, result), remote_addr=(server, self._port)
        )
        try:
            return await result
        finally:
            transport.close()

    async def _tcp(self, server: str, message: Message) -> Message:
        reader, writer = await asyncio.open_connection(server, self._port)
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
