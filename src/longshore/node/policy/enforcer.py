"""Carries policies into the kernel: one transaction whenever something has changed, the whole table at a start or a repair."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from longshore.machinery import netns
from longshore.machinery.nftables import ChangeMonitor, Nftables, NftablesError
from longshore.node.policy.state import PolicyState, rule_set

logger = logging.getLogger("longshore.policy")

T = TypeVar("T")

TABLE = "longshore-policy"
_RETRY_SECONDS = (0.5, 30.0)


class Enforcer:
    """Keeps the tables of one node right; tell it of every change of `state` with `touch`.

    namespace: network namespace to work in (None: the caller's own).
    """

    def __init__(
        self,
        state: PolicyState,
        *,
        families: tuple[int, ...] = (4, 6),
        namespace: netns.Namespace | None = None,
        metrics: CollectorRegistry | None = None,
    ) -> None:
        self.state = state
        self.synced = asyncio.Event()
        self.idle = asyncio.Event()
        """Set while everything that was told is in force."""
        self._families = families
        self._sets = [rule_set(TABLE, family) for family in families]
        self._namespace = namespace
        self._wake = asyncio.Event()
        self._rebuild = True
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy-nft")
        self._nft: Nftables | None = None
        self._monitor: ChangeMonitor | None = None
        registry = metrics or CollectorRegistry()
        self._seconds = Histogram(
            "longshore_policy_sync_duration_seconds", "Time of one change of the policies' rules", registry=registry,
            buckets=tuple(0.001 * 2**n for n in range(14)),
        )  # fmt: skip
        self._failures = Counter("longshore_policy_sync_failures", "Transactions that failed", registry=registry)
        self._count = Gauge("longshore_policy_policies", "NetworkPolicies known", registry=registry)

    def touch(self) -> None:
        """The state has changed."""
        self.idle.clear()
        self._wake.set()

    def repair(self) -> None:
        """Someone else has changed the tables."""
        if not self._rebuild:
            logger.warning("the rules of NetworkPolicies were changed by someone else; restoring them")
        self._rebuild = True
        self.touch()

    async def run(self) -> None:
        """Carry changes into the kernel until cancelled. The rules stay."""
        self._nft = await self._call(lambda: Nftables(self._namespace))
        pause = _RETRY_SECONDS[0]
        try:
            while True:
                if not self.state.dirty and not self._rebuild:
                    self.idle.set()
                    self._wake.clear()
                    await self._wake.wait()
                try:
                    await self._sync()
                    pause = _RETRY_SECONDS[0]
                except (NftablesError, OSError) as error:
                    logger.error("policies cannot be put in force, trying the whole table: %s", error)
                    self._failures.inc()
                    self._rebuild = True
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _RETRY_SECONDS[1])
        finally:
            if self._monitor is not None:
                self._monitor.close()
            self._nft.close()
            self._thread.shutdown(wait=False)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _sync(self) -> None:
        started = time.monotonic()
        nft = self._nft
        assert nft is not None
        rebuild, self._rebuild = self._rebuild, False
        texts = [
            rules.update(self.state.take(family)) for family, rules in zip(self._families, self._sets, strict=True)
        ]
        self.state.clear()
        if rebuild:
            texts = [rules.text() for rules in self._sets]
            if self._monitor is not None:
                self._monitor.close()
        text = "\n".join(part for part in texts if part)
        try:
            if text:
                await self._call(lambda: nft.run(text))
        except BaseException:
            self._rebuild = True
            raise
        finally:
            if rebuild:
                self._monitor = ChangeMonitor(
                    {TABLE}, self.repair, own_ports={nft.port}, namespace=self._namespace, removals_only=True
                )
        self._seconds.observe(time.monotonic() - started)
        self._count.set(len(self.state.policies))
        self.synced.set()
