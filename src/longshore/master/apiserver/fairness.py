"""Priority and fairness: how many requests of which kind are under way at once, and what happens to the rest.

FlowSchemas put a request into a priority level; each level has seats in proportion to its shares. What finds no seat
waits in one of the level's queues, chosen by shuffle sharding on who asks, and is refused (429) when its queue is full
or it has waited too long. Seats are served to the queues in turn, so that one client cannot starve another.
Source: apiserver's util/flowcontrol and the flowcontrol API's documentation.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from longshore.machinery.errors import too_many_requests
from longshore.master.apiserver.context import ObjectReader, UserInfo

Object = dict[str, Any]
_GROUP = "flowcontrol.apiserver.k8s.io"
WAIT_LIMIT = 15.0


@dataclass(slots=True)
class Level:
    """A priority level: seats to give, requests that have one, queues of those that wait."""

    name: str
    exempt: bool
    seats: int
    queue_limit: int = 0
    hand: int = 0
    queues: list[deque[asyncio.Future[None]]] = field(default_factory=list)
    executing: int = 0
    turn: int = 0
    dispatched: int = 0
    rejected: int = 0
    waiting: int = 0  # in all queues together


@dataclass(slots=True)
class Flow:
    """A FlowSchema ready to be matched."""

    name: str
    level: str
    precedence: int
    by: str
    rules: list[Object]


class Fairness:
    """Decides for each request. total: all seats of the server."""

    def __init__(self, api: ObjectReader, total: int) -> None:
        self._api = api
        self._total = total
        self._generation: tuple[int, int] = (-1, -1)
        self.levels: dict[str, Level] = {}
        self.flows: list[Flow] = []
        self._chosen: dict[tuple[Any, ...], tuple[Flow, Level]] = {}

    def _refresh(self) -> None:
        now = (self._api.generation(_GROUP, "flowschemas"), self._api.generation(_GROUP, "prioritylevelconfigurations"))
        if now == self._generation:
            return
        self._generation = now
        self._chosen.clear()
        objects = {o["metadata"]["name"]: o["spec"] for o in self._api.list(_GROUP, "prioritylevelconfigurations")}
        objects.setdefault("exempt", {"type": "Exempt"})
        objects.setdefault(
            "catch-all",
            {"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "limitResponse": {"type": "Reject"}}},
        )
        shares = {n: _shares(s) for n, s in objects.items()}
        whole = sum(shares.values()) or 1
        levels: dict[str, Level] = {}
        for name, spec in objects.items():
            exempt = spec.get("type") == "Exempt"
            seats = max(1, -(-self._total * shares[name] // whole))
            level = self.levels.get(name) or Level(name, exempt, seats)
            level.exempt, level.seats = exempt, seats
            response = (spec.get("limited") or {}).get("limitResponse") or {}
            queuing = response.get("queuing") if response.get("type") == "Queue" else None
            if queuing:
                level.queue_limit, level.hand = queuing.get("queueLengthLimit", 50), queuing.get("handSize", 8)
                wanted = queuing.get("queues", 64)
                while len(level.queues) < wanted:
                    level.queues.append(deque())
            else:
                level.queue_limit = level.hand = 0
            levels[name] = level
        self.levels = levels
        flows = []
        for obj in self._api.list(_GROUP, "flowschemas"):
            spec = obj["spec"]
            level_name = spec["priorityLevelConfiguration"]["name"]
            if level_name in levels:
                by = (spec.get("distinguisherMethod") or {}).get("type", "")
                flows.append(
                    Flow(
                        obj["metadata"]["name"],
                        level_name,
                        spec.get("matchingPrecedence", 1000),
                        by,
                        spec.get("rules") or [],
                    )
                )
        flows.sort(key=lambda f: (f.precedence, f.name))
        flows.append(Flow("catch-all", "catch-all", 10001, "ByUser", []))
        self.flows = flows

    def classify(
        self, user: UserInfo, verb: str, group: str, resource: str, subresource: str, namespace: str, path: str
    ) -> tuple[Flow, Level]:
        """The flow schema and level of a request; path "" for a resource request."""
        self._refresh()
        key = (user.name, user.groups, verb, group, resource, subresource, namespace, path)
        found = self._chosen.get(key)
        if found is None:
            named = f"{resource}/{subresource}" if subresource else resource
            flow = next(
                (f for f in self.flows if _matches(f, user, verb, group, named, namespace, path)), self.flows[-1]
            )
            found = (flow, self.levels[flow.level])
            if len(self._chosen) > 4096:
                self._chosen.clear()
            self._chosen[key] = found
        return found

    def enter(self, flow: Flow, level: Level, user: UserInfo, namespace: str) -> Awaitable[None] | None:
        """Take a seat. None: it is taken; otherwise wait for it. StatusError 429 when there is no place to wait."""
        level.dispatched += 1
        if level.exempt or level.executing < level.seats:
            level.executing += 1
            return None
        if not level.hand:
            level.rejected += 1
            raise too_many_requests()
        who = user.name if flow.by == "ByUser" else namespace if flow.by == "ByNamespace" else ""
        queue = _deal(level, f"{flow.name}/{who}")
        if len(queue) >= level.queue_limit:
            level.rejected += 1
            raise too_many_requests()
        return self._wait(level, queue)

    async def _wait(self, level: Level, queue: deque[asyncio.Future[None]]) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(future)
        level.waiting += 1
        try:
            async with asyncio.timeout(WAIT_LIMIT):
                await future
        except BaseException as error:
            if future.done() and not future.cancelled():
                self.leave(level)
            else:
                try:
                    queue.remove(future)
                    level.waiting -= 1
                except ValueError:
                    pass
            if isinstance(error, TimeoutError):
                level.rejected += 1
                raise too_many_requests() from None
            raise

    def leave(self, level: Level) -> None:
        """Give a seat back: to the next queue in turn where somebody waits."""
        if level.waiting and level.executing <= level.seats:
            count = len(level.queues)
            for step in range(count):
                queue = level.queues[(level.turn + step) % count]
                while queue:
                    future = queue.popleft()
                    level.waiting -= 1
                    if not future.done():
                        level.turn = (level.turn + step + 1) % count
                        future.set_result(None)
                        return
        level.executing -= 1

    def dump(self, what: str) -> str | None:
        """The debugging pages of /debug/api_priority_and_fairness/."""
        self._refresh()
        if what == "dump_priority_levels":
            lines = ["PriorityLevelName, ActiveQueues, IsIdle, IsQuiescing, WaitingRequests, ExecutingRequests, DispatchedRequests, RejectedRequests, TimedoutRequests, CancelledRequests"]  # fmt: skip
            for level in self.levels.values():
                active = sum(1 for q in level.queues if q)
                idle = str(not level.executing and not level.waiting).lower()
                lines.append(
                    f"{level.name}, {active}, {idle}, false, {level.waiting}, {level.executing}, {level.dispatched}, {level.rejected}, 0, 0"
                )
            return "\n".join(lines) + "\n"
        if what == "dump_queues":
            lines = [
                "PriorityLevelName, Index, PendingRequests, ExecutingRequests, SeatsInUse, NextDispatchR, InitialSeatsSum, MaxSeatsSum, TotalWorkSum"
            ]
            for level in self.levels.values():
                lines += [f"{level.name}, {i}, {len(q)}, 0, 0, 0, 0, 0, 0" for i, q in enumerate(level.queues) if q]
            return "\n".join(lines) + "\n"
        if what == "dump_requests":
            return "PriorityLevelName, FlowSchemaName, QueueIndex, RequestIndexInQueue, FlowDistingsher, ArriveTime, InitialSeats, FinalSeats, AdditionalLatency, StartTime\n"
        return None


def _shares(spec: Object) -> int:
    part = spec.get("exempt") if spec.get("type") == "Exempt" else spec.get("limited")
    found = (part or {}).get("nominalConcurrencyShares")
    return int(found) if found is not None else (0 if spec.get("type") == "Exempt" else 30)


def _deal(level: Level, who: str) -> deque[asyncio.Future[None]]:
    """The shortest of the queues that shuffle sharding deals to a flow."""
    number = int.from_bytes(hashlib.sha256(who.encode()).digest()[:16], "big")
    left = list(range(len(level.queues)))
    best: deque[asyncio.Future[None]] | None = None
    for _ in range(min(level.hand, len(left))):
        number, at = divmod(number, len(left))
        queue = level.queues[left.pop(at)]
        if best is None or len(queue) < len(best):
            best = queue
    assert best is not None
    return best


def _matches(flow: Flow, user: UserInfo, verb: str, group: str, resource: str, namespace: str, path: str) -> bool:
    for rule in flow.rules:
        if not any(_subject(s, user) for s in rule.get("subjects") or ()):
            continue
        if path:
            if any(
                _in(verb, r.get("verbs")) and _path(path, r.get("nonResourceURLs"))
                for r in rule.get("nonResourceRules") or ()
            ):
                return True
            continue
        for r in rule.get("resourceRules") or ():
            if not (_in(verb, r.get("verbs")) and _in(group, r.get("apiGroups")) and _in(resource, r.get("resources"))):
                continue
            if _in(namespace, r.get("namespaces")) if namespace else r.get("clusterScope", False):
                return True
    return False


def _in(value: str, wanted: Any) -> bool:
    return bool(wanted) and ("*" in wanted or value in wanted)


def _path(path: str, wanted: Any) -> bool:
    return any(w == "*" or w == path or (w.endswith("*") and path.startswith(w[:-1])) for w in wanted or ())


def _subject(subject: Object, user: UserInfo) -> bool:
    kind = subject.get("kind")
    if kind == "User":
        name = (subject.get("user") or {}).get("name")
        return bool(name in ("*", user.name))
    if kind == "Group":
        name = (subject.get("group") or {}).get("name")
        return bool(name == "*" or name in user.groups)
    account = subject.get("serviceAccount") or {}
    prefix = f"system:serviceaccount:{account.get('namespace', '')}:"
    if account.get("name") == "*":
        return user.name.startswith(prefix)
    return user.name == prefix + str(account.get("name", ""))


async def seated(fairness: Fairness, level: Level, turn: Awaitable[None] | None, work: Awaitable[Any]) -> Any:
    """Do the work when its turn has come, and give the seat back."""
    if turn is not None:
        try:
            await turn
        except BaseException:
            if inspect.iscoroutine(work):
                work.close()
            raise
    try:
        return await work
    finally:
        fairness.leave(level)
