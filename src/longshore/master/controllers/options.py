"""The controllers' settings, with kube-controller-manager's names and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """Flags of kube-controller-manager (1.36), durations in seconds.

    controllers: '*' for all that are on by default, NAME or -NAME to add or leave out one.
    """

    controllers: tuple[str, ...] = ("*",)
    cluster_name: str = "kubernetes"
    cluster_cidr: tuple[str, ...] = ("10.244.0.0/16",)
    service_cluster_ip_range: tuple[str, ...] = ("10.96.0.0/16",)
    load_balancer_pool: tuple[str, ...] = ()  # ranges for Services of type LoadBalancer; none: they stay pending
    allocate_node_cidrs: bool = True
    node_cidr_mask_size_ipv4: int = 24
    node_cidr_mask_size_ipv6: int = 64
    root_ca_file: Path | None = None
    service_account_private_key_file: Path | None = None
    cluster_signing_cert_file: Path | None = None
    cluster_signing_key_file: Path | None = None
    cluster_signing_duration: float = 365 * 24 * 3600.0
    node_monitor_period: float = 5.0
    node_monitor_grace_period: float = 50.0
    node_startup_grace_period: float = 60.0
    node_eviction_rate: float = 0.1
    secondary_node_eviction_rate: float = 0.01
    unhealthy_zone_threshold: float = 0.55
    large_cluster_size_threshold: int = 50
    terminated_pod_gc_threshold: int = 12500
    namespace_sync_period: float = 300.0
    resource_quota_sync_period: float = 300.0
    max_endpoints_per_slice: int = 100
    mirroring_max_endpoints_per_subset: int = 1000
    horizontal_pod_autoscaler_sync_period: float = 15.0
    horizontal_pod_autoscaler_tolerance: float = 0.1
    horizontal_pod_autoscaler_downscale_stabilization: float = 300.0
    horizontal_pod_autoscaler_initial_readiness_delay: float = 30.0
    horizontal_pod_autoscaler_cpu_initialization_period: float = 300.0
    local_path: Path = Path("/var/lib/longshore/volumes")
    service_accounts: bool = True  # --use-service-account-credentials
    disabled_by_default: frozenset[str] = field(
        default=frozenset(
            {"bootstrap-signer-controller", "token-cleaner-controller", "node-certificate-approving-controller"}
        )
    )
