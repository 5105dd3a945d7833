"""The proxy's figures under upstream's names."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from longshore.machinery.ruleset import RuleSet

_BUCKETS = tuple(0.001 * 2**n for n in range(15))


class ProxyMetrics:
    """Counters of one proxy in a registry (one of its own when None)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.duration = Histogram(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.full = Histogram(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds for full resyncs",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.last = Gauge(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "The last time proxy rules were successfully synced",
            registry=self.registry,
        )
        self.failures = Counter(
            "kubeproxy_sync_proxy_rules_nftables_sync_failures",
            "Cumulative proxy nftables sync failures",
            registry=self.registry,
        )
        self.flows = Counter(
            "kubeproxy_conntrack_reconciler_deleted_entries",
            "Cumulative conntrack flows deleted by conntrack reconciler",
            registry=self.registry,
        )
        self.repairs = Counter(
            "longshore_proxy_repairs", "Times the tables were restored after others' changes", registry=self.registry
        )
        self.services = Gauge("longshore_proxy_services", "Services known", registry=self.registry)
        self.elements = Gauge(
            "longshore_proxy_elements", "Elements in the tables' maps and sets", registry=self.registry
        )

    def synced(self, seconds: float, at: float, full: bool, services: int, sets: Sequence[RuleSet]) -> None:
        """One transaction is in force."""
        self.duration.observe(seconds)
        if full:
            self.full.observe(seconds)
        self.last.set(at)
        self.services.set(services)
        self.elements.set(sum(rules.element_count for rules in sets))
