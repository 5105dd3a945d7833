"""Watches that are told the same share a channel: each gets every event after it joined, once and in order, whenever it joins."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Hashable
from typing import Any

import pytest

from longshore.machinery.http import Chunk
from longshore.master.apiserver import fanout
from longshore.master.apiserver.cache import CacheEvent, Item


class Member:
    """A watch of the events whose version is a multiple of something."""

    def __init__(self, of: int) -> None:
        self.channel: Hashable = of
        self.of = of
        self.told: list[bytes] = []
        self.chunks: list[Chunk] = []
        self.asked = 0

    def line(self, event: CacheEvent) -> bytes | None:
        self.asked += 1
        return b"%d " % event.version if event.version % self.of == 0 else None

    def send(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.told += chunk.data.split()

    def expire(self) -> None:
        self.told.append(b"expired")


def event(version: int) -> CacheEvent:
    return CacheEvent("ADDED", Item("a", version, b"{}"), None, version)


def expected(member: Member, first: int, last: int) -> list[bytes]:
    return [b"%d" % version for version in range(first, last) if version % member.of == 0]


async def test_an_event_is_chosen_and_framed_once_for_all_that_ask_the_same() -> None:
    shared, other = [Member(1) for _ in range(5)], Member(2)
    room = fanout.Fanout()
    for member in (*shared, other):
        room.join(member)
    assert len(room) == 6
    for version in range(4):
        room.offer(event(version))
    room.deliver()
    assert sum(member.asked for member in shared) == 4
    assert len({id(member.chunks[0]) for member in shared}) == 1
    assert shared[0].chunks[0].framed == b"8\r\n0 1 2 3 \r\n"
    assert other.told == [b"0", b"2"]
    room.leave(other)
    room.leave(other)
    room.expire()
    assert shared[3].told[-1] == b"expired" and other.told == [b"0", b"2"]


@pytest.mark.parametrize("seed", range(4))
async def test_members_come_and_go_while_events_are_under_way(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(fanout, "PART", 3)
    chance, room, version = random.Random(seed), fanout.Fanout(), 1
    joined: list[tuple[Member, int]] = []
    left: list[tuple[Member, int, int]] = []
    for _ in range(1500):
        act = chance.random()
        if act < 0.2:
            joined.append((Member(chance.randrange(1, 4)), version))
            room.join(joined[-1][0])
        elif act < 0.3 and joined:
            member, first = joined.pop(chance.randrange(len(joined)))
            room.settle()
            room.leave(member)
            left.append((member, first, version))
        elif act < 0.35:
            room.settle()
            assert all(member.told == expected(member, first, version) for member, first in joined)
        elif act < 0.5:
            await asyncio.sleep(chance.choice([0, 0, 0.002]))
        else:
            room.offer(event(version))
            room.deliver()
            version += 1
    await asyncio.sleep(0.1)
    ends: list[tuple[Any, int, int]] = [*left, *((member, first, version) for member, first in joined)]
    assert len(ends) > 200
    for member, first, last in ends:
        assert member.told == expected(member, first, last)


async def test_a_delivery_to_many_lets_the_loop_do_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "PART", 10)
    members = [Member(1) for _ in range(35)]
    room = fanout.Fanout()
    for member in members:
        room.join(member)
    room.offer(event(1))
    room.deliver()
    seen = []
    while not members[-1].told:
        seen.append(sum(bool(member.told) for member in members))
        room.offer(event(2 + len(seen)))  # goes out with the next delivery
        room.deliver()
        await asyncio.sleep(0)
    assert seen == [10, 20, 30]
    assert all(member.told == [b"1"] for member in members)
    await asyncio.sleep(0.1)
    assert all(member.told == [b"1", b"3", b"4", b"5"] for member in members)
