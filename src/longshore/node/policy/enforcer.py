"""Carries policies into the kernel: one transaction whenever something has changed, the whole table at a start or a repair."""

from __future__ import annotations

import logging
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from longshore.machinery import netns
from longshore.machinery.nftables import ChangeMonitor
from longshore.machinery.tablekeeper import TableKeeper
from longshore.node.policy.state import PolicyState, rule_set

logger = logging.getLogger("longshore.policy")

TABLE = "longshore-policy"


class Enforcer(TableKeeper):
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
        super().__init__("NetworkPolicies", logger, namespace)
        self.state = state
        self._families = families
        self._sets = [rule_set(TABLE, family) for family in families]
        registry = metrics or CollectorRegistry()
        self._seconds = Histogram(
            "longshore_policy_sync_duration_seconds", "Time of one change of the policies' rules", registry=registry,
            buckets=tuple(0.001 * 2**n for n in range(14)),
        )  # fmt: skip
        self._failures = Counter("longshore_policy_sync_failures", "Transactions that failed", registry=registry)
        self._repairs = Counter("longshore_policy_repairs", "Changes of others that were undone", registry=registry)
        self._count = Gauge("longshore_policy_policies", "NetworkPolicies known", registry=registry)

    def _is_pending(self) -> bool:
        return self.state.dirty

    def _repaired(self) -> None:
        self._repairs.inc()

    def _failed(self) -> None:
        self._failures.inc()

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
