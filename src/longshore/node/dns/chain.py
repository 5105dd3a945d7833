"""The chain that answers a question: small plugins, each ignorant of its neighbours, the order in one list.

A plugin answers a query or hands it on with `await next(query)`. Source of the idea: CoreDNS's plugin chain.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from longshore.node.dns.zone import Zone
from longshore.wire import dns
from longshore.wire.dns import Message, Question, Record

log = logging.getLogger("longshore.dns")

#: Outcome of one question: code, records of the three sections, whether it is authoritative.
Next = Callable[[Question], Awaitable["Reply"]]


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes into the answer to a question. lasting: the same for every asker until the zone's serial changes."""

    rcode: int = dns.NOERROR
    answers: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    authoritative: bool = False
    lasting: bool = False


class Plugin(Protocol):
    """One link of the chain."""

    name: str

    async def serve(self, question: Question, next: Next) -> Reply: ...


class Errors:
    """What goes wrong further down is logged and answered with SERVFAIL."""

    name = "errors"

    async def serve(self, question: Question, next: Next) -> Reply:
        try:
            return await next(question)
        except Exception as error:
            log.warning("%s %d: %s", question.name, question.type, error or type(error).__name__)
            return Reply(dns.SERVFAIL)


class Refuse:
    """Only class IN is served; zone transfers and their like are refused."""

    name = "refuse"

    async def serve(self, question: Question, next: Next) -> Reply:
        if question.klass != dns.IN or 249 <= question.type <= 254:
            return Reply(dns.REFUSED)
        return await next(question)


class Kubernetes:
    """The cluster's own names, and the addresses that the cluster knows; everything else goes on."""

    name = "kubernetes"

    def __init__(self, zone: Zone) -> None:
        self._zone = zone

    async def serve(self, question: Question, next: Next) -> Reply:
        name = question.name.lower()
        if not self._zone.contains(name):
            if question.type == dns.PTR and (names := self._zone.reverse(name)):
                records = tuple(Record(question.name, dns.PTR, self._zone.ttl, n) for n in names)
                return Reply(answers=records, authoritative=True, lasting=True)
            return await next(question)
        found = self._zone.lookup(name, question.type, question.name)
        if not found.exists:
            return Reply(dns.NXDOMAIN, authority=(self._zone.authority(),), authoritative=True, lasting=True)
        if not found.records:
            return Reply(authority=(self._zone.authority(),), authoritative=True, lasting=True)
        records = tuple(found.records)
        if len(records) > 1:
            # Spread over the endpoints, as round-robin DNS does.
            turn = random.randrange(len(records))
            records = records[turn:] + records[:turn]
        if found.follow:
            rest = await self.serve(Question(found.follow, question.type), next)
            return Reply(rest.rcode, (*records, *rest.answers), rest.authority, authoritative=True)
        return Reply(answers=records, additional=tuple(found.additional), authoritative=True, lasting=len(records) == 1)


class Cache:
    """Keeps what the resolvers said: as long as its ttl, at most `most` seconds; negative answers by their SOA."""

    name = "cache"

    def __init__(self, most: int = 30, capacity: int = 10_000) -> None:
        self._most = most
        self._capacity = capacity
        self._kept: dict[tuple[str, int], tuple[float, float, Reply]] = {}
        self._asking: dict[tuple[str, int], asyncio.Task[Reply]] = {}

    async def serve(self, question: Question, next: Next) -> Reply:
        key = (question.name.lower(), question.type)
        now = time.monotonic()
        kept = self._kept.get(key)
        if kept and kept[1] > now:
            return _aged(kept[2], int(now - kept[0]))
        task = self._asking.get(key)
        if task is None:
            # Questions that come while one is under way share its answer.
            task = self._asking[key] = asyncio.ensure_future(next(question))
            task.add_done_callback(functools.partial(self._asked, key))
        reply = await asyncio.shield(task)
        seconds = self._lifetime(reply)
        if seconds > 0:
            if len(self._kept) >= self._capacity:
                for old in list(self._kept)[: self._capacity // 4]:
                    del self._kept[old]
            self._kept[key] = (now, now + seconds, reply)
        return reply

    def _asked(self, key: tuple[str, int], task: asyncio.Task[Reply]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, though nobody may wait for it any more

    def _lifetime(self, reply: Reply) -> int:
        if reply.rcode not in (dns.NOERROR, dns.NXDOMAIN):
            return 0
        if reply.answers:
            return min(self._most, *(record.ttl for record in reply.answers))
        soa = [min(record.ttl, record.data[6]) for record in reply.authority if record.type == dns.SOA]
        return min(self._most, *soa) if soa else 0


def _aged(reply: Reply, seconds: int) -> Reply:
    def aged(records: tuple[Record, ...]) -> tuple[Record, ...]:
        return tuple(Record(r.name, r.type, max(0, r.ttl - seconds), r.data, r.klass) for r in records)

    return Reply(reply.rcode, aged(reply.answers), aged(reply.authority), aged(reply.additional), reply.authoritative)


class Forward:
    """Asks the host's own resolvers; there is no built-in public one, so without resolvers it is REFUSED."""

    name = "forward"

    def __init__(self, ask: Callable[[Message], Awaitable[Message]] | None) -> None:
        self._ask = ask

    async def serve(self, question: Question, next: Next) -> Reply:
        if self._ask is None:
            return Reply(dns.REFUSED)
        answer = await self._ask(Message(flags=dns.RD, questions=[question], edns=1232))
        return Reply(answer.rcode, tuple(answer.answers), tuple(answer.authority), tuple(answer.additional))


async def end_of_chain(question: Question) -> Reply:
    """What no plugin answers."""
    return Reply(dns.REFUSED)


def chain(zone: Zone, ask: Callable[[Message], Awaitable[Message]] | None) -> list[Plugin]:
    """The plugins in the order in which a question meets them."""
    return [Errors(), Refuse(), Kubernetes(zone), Cache(), Forward(ask)]


def handler(plugins: Sequence[Plugin]) -> Next:
    """The chain as one function."""
    answer: Next = end_of_chain
    for plugin in reversed(plugins):
        answer = _link(plugin, answer)
    return answer


def _link(plugin: Plugin, next: Next) -> Next:
    async def serve(question: Question) -> Reply:
        return await plugin.serve(question, next)

    return serve
