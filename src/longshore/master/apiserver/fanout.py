"""From one event to many watches: who is told the same shares a channel, and all are written to a few at a time.

Watches that ask for the same (form, namespace, selectors) get the same octets: an event is chosen, encoded, joined and framed
once for all of them. What remains for each is the write: 12 us of TLS and system call, whatever its size.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Protocol

from longshore.machinery.http import Chunk

if TYPE_CHECKING:
    from longshore.master.apiserver.cache import CacheEvent

JOIN_SECONDS = 0.001
JOIN_SECONDS_MOST = 0.05
JOIN_TIMES = 4  # so much longer than a delivery takes is the pause before the next: at most a fifth of the loop's time
PART = 256  # watches that are written to in one turn of the loop


class Member(Protocol):
    """One watch."""

    @property
    def channel(self) -> Hashable:
        """What its client asked for: equal for watches that are told the same."""

    def line(self, event: CacheEvent) -> bytes | None:
        """An event as this watch and those of its channel tell it; None where they tell nothing."""

    def send(self, chunk: Chunk) -> None: ...

    def expire(self) -> None:
        """The cache is replaced: the watch must end."""


class Channel:
    """Watches that are told the same, and what they have not been told yet."""

    __slots__ = ("lines", "members")

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.lines: list[bytes] = []

    def offer(self, event: CacheEvent) -> None:
        line = self.members[0].line(event)
        if line is not None:
            self.lines.append(line)

    def parcels(self) -> list[tuple[Member, Chunk]]:
        """To whom is sent what."""
        if not self.lines:
            return []
        chunk = Chunk(self.lines)
        self.lines = []
        return [(member, chunk) for member in self.members]


class Fanout:
    """The watches of one resource, and when they are written to.

    An event that comes alone goes out at once. In a stream of them, those of a few milliseconds go out together. A delivery to
    many takes several turns of the loop, so that requests are answered, and the disk is waited for, meanwhile.
    """

    def __init__(self) -> None:
        self.channels: dict[Hashable, Channel] = {}
        self._parcels: list[tuple[Member, Chunk]] = []  # of the delivery that is under way
        self._at = 0
        self._used = 0.0  # seconds of CPU it has taken
        self._ended = 0.0  # when the last one ended
        self._pause = JOIN_SECONDS
        self._next: asyncio.Handle | None = None

    def __len__(self) -> int:
        return sum(len(channel.members) for channel in self.channels.values())

    def join(self, member: Member) -> None:
        """Events from here on are for this watch too."""
        channel = self.channels.get(member.channel)
        if channel is None:
            channel = self.channels[member.channel] = Channel()
        elif channel.lines:
            self.settle()
        channel.members.append(member)

    def leave(self, member: Member) -> None:
        """Without effect for one that has not joined."""
        channel = self.channels.get(member.channel)
        if channel is not None and member in channel.members:
            channel.members.remove(member)
            if not channel.members:
                del self.channels[member.channel]

    def expire(self) -> None:
        for channel in list(self.channels.values()):
            for member in list(channel.members):
                member.expire()

    def offer(self, event: CacheEvent) -> None:
        for channel in self.channels.values():
            channel.offer(event)

    def deliver(self) -> None:
        """Have the watches sent what they were offered."""
        if self._next is not None:
            return
        loop = asyncio.get_running_loop()
        wait = self._ended + self._pause - loop.time()
        if wait > 0:
            self._next = loop.call_later(wait, self._begin)
        else:
            self._begin()

    def settle(self) -> None:
        """Send now whatever was offered: what is told next is newer."""
        if self._next is not None:
            self._next.cancel()
        for member, chunk in [*self._parcels[self._at :], *self._collect()]:
            member.send(chunk)
        self._end()

    def _collect(self) -> list[tuple[Member, Chunk]]:
        return [parcel for channel in self.channels.values() for parcel in channel.parcels()]

    def _begin(self) -> None:
        self._parcels = self._collect()
        self._send_part()

    def _send_part(self) -> None:
        began = time.thread_time()
        end = self._at + PART
        for member, chunk in self._parcels[self._at : end]:
            member.send(chunk)
        self._used += time.thread_time() - began
        if end < len(self._parcels):
            self._at = end
            self._next = asyncio.get_running_loop().call_soon(self._send_part)
            return
        self._end()
        if any(channel.lines for channel in self.channels.values()):
            self.deliver()

    def _end(self) -> None:
        self._pause = min(JOIN_SECONDS + JOIN_TIMES * self._used, JOIN_SECONDS_MOST)
        self._parcels, self._at, self._used, self._next = [], 0, 0.0, None
        self._ended = asyncio.get_running_loop().time()
