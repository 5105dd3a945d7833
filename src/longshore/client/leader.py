"""One of several runs at a time: leader election on a Lease.

Source: client-go tools/leaderelection, described behaviour. Like there, this is not a fence: a leader that is
suspended past its lease may act once more before it notices.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from longshore.client.resources import LEASES
from longshore.client.rest import Client, is_not_found
from longshore.machinery.errors import StatusError

log = logging.getLogger("longshore.client.leader")
_READY_PAUSE_SECONDS = 0.1


def micro_time(moment: datetime | None = None) -> str:
    """RFC 3339 with microseconds, as MicroTime is written."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class LeaseLost(Exception):
    """Somebody else holds the lease, or it could not be renewed in time: what ran under it was cancelled."""


class LeaderElection:
    """Holds, or waits for, one Lease.

    identity: who we are; a process that comes back with the identity in the lease takes it up at once, so give a
    supervised single process a stable one and rivals different ones. Times are seconds.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        identity: str,
        *,
        namespace: str = "kube-system",
        lease_duration: float = 15.0,
        renew_deadline: float = 10.0,
        retry_period: float = 2.0,
    ) -> None:
        self.client, self.name, self.namespace, self.identity = client, name, namespace, identity
        self.lease_duration, self.renew_deadline, self.retry_period = lease_duration, renew_deadline, retry_period
        self.leading = False
        self._seen: tuple[str, str] = ("", "")
        self._seen_at = 0.0
        self._lease: dict[str, Any] | None = None

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the lease, run work while we hold it, return when work ends.

        When the lease is lost work is cancelled and LeaseLost raised. On cancellation the lease is given up, so that
        a rival need not wait for it to run out.
        """
        while not await self._try():  # noqa: ASYNC110
            await asyncio.sleep(self.retry_period * (1 + 0.2 * random.random()))
        self.leading = True
        log.info("%s leads %s", self.identity, self.name)
        task = asyncio.ensure_future(work())
        renewal = asyncio.create_task(self._renew())
        try:
            await asyncio.wait({task, renewal}, return_when=asyncio.FIRST_COMPLETED)
            if renewal.done() and not task.done():
                raise LeaseLost(f"{self.identity} lost {self.name}")
        finally:
            self.leading = False
            renewal.cancel()
            task.cancel()
            await asyncio.gather(task, renewal, return_exceptions=True)
            await self._release()
        if task.done() and not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]

    async def _renew(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(self.retry_period)
            if await self._try():
                last = loop.time()
            elif loop.time() - last >= self.renew_deadline or (self._seen[0] not in ("", self.identity)):
                return

    async def _try(self) -> bool:
        try:
            return await self._acquire()
        except (StatusError, OSError, TimeoutError) as error:
            log.debug("lease %s: %s", self.name, error)
            self._lease = None
            return False

    async def _acquire(self) -> bool:
        loop = asyncio.get_running_loop()
        now = micro_time()
        if self._lease is not None and self.leading:
            # The fast path: we wrote it last, so one write renews it; a conflict makes us look again.
            spec = {**self._lease["spec"], "renewTime": now}
            self._lease = await self.client.update(LEASES, {**self._lease, "spec": spec})
            return True
        fresh = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self.lease_duration),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": 0,
        }
        try:
            lease = await self.client.get(LEASES, self.name, self.namespace)
        except StatusError as error:
            if not is_not_found(error):
                raise
            metadata = {"name": self.name, "namespace": self.namespace}
            self._lease = await self.client.create(LEASES, {"metadata": metadata, "spec": fresh})
            return True
        spec = lease.get("spec") or {}
        holder, renewed = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
        if (holder, renewed) != self._seen:
            self._seen, self._seen_at = (holder, renewed), loop.time()
        if holder and holder != self.identity:
            held_for = float(spec.get("leaseDurationSeconds") or self.lease_duration)
            # Judged by our own clock since we last saw it change: the holder's clock may be wrong.
            if loop.time() - self._seen_at < held_for:
                return False
        if holder == self.identity:
            fresh["acquireTime"] = spec.get("acquireTime") or now
            fresh["leaseTransitions"] = spec.get("leaseTransitions") or 0
        else:
            fresh["leaseTransitions"] = (spec.get("leaseTransitions") or 0) + 1
        self._lease = await self.client.update(LEASES, {**lease, "spec": {**spec, **fresh}})
        return True

    async def _release(self) -> None:
        lease = self._lease
        if lease is None:
            return
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": micro_time()}
        try:
            await asyncio.wait_for(self.client.update(LEASES, {**lease, "spec": spec}), 2.0)
        except (StatusError, OSError, TimeoutError) as error:
            log.debug("lease %s: not given up: %s", self.name, error)
        self._lease = None


async def lead(
    client: Client, work: Callable[[], Awaitable[None]], *, elect: bool, lease: str, identity: str = ""
) -> None:
    """Run a part's work once the API server is ready; elect: only while we hold the lease, see LeaderElection.

    identity: who we are in that lease; "" is a name of this process's own.
    """
    await _wait_for_server(client)
    if elect:
        await LeaderElection(client, lease, identity or f"{socket.gethostname()}_{uuid.uuid4()}").run(work)
    else:
        await work()


async def _wait_for_server(client: Client) -> None:
    """Asked often: it is a start-up of a second, not a wait."""
    while True:
        try:
            await client.raw("GET", "/readyz")
            return
        except StatusError as error:
            if error.code in (401, 403):
                return  # it serves, and its health is not ours to read
        except (OSError, TimeoutError) as error:
            log.debug("API server: %s", error)
        await asyncio.sleep(_READY_PAUSE_SECONDS)
