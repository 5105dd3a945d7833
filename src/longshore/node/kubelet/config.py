"""What a kubelet is told at its start. Names and defaults are those of upstream's KubeletConfiguration and flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Config:
    """node_ips: the node's addresses, one a family, the primary first. Times in seconds."""

    node_name: str
    node_ips: list[str]
    root: Path
    pod_logs: Path
    cluster_dns: list[str] = field(default_factory=list)
    cluster_domain: str = "cluster.local"
    static_pods: Path | None = None
    address: str = "0.0.0.0"
    port: int = 10250
    cgroup_root: str = "/"
    cgroups_per_qos: bool = True
    resolv_conf: str = "/etc/resolv.conf"
    max_pods: int = 110
    pod_pids_limit: int = -1
    cpu_cfs_quota: bool = True
    node_labels: dict[str, str] = field(default_factory=dict)
    register_with_taints: list[dict[str, str]] = field(default_factory=list)
    register_node: bool = True
    kube_reserved: dict[str, str] = field(default_factory=dict)
    system_reserved: dict[str, str] = field(default_factory=dict)
    allowed_unsafe_sysctls: list[str] = field(default_factory=list)
    lease_seconds: int = 40
    status_report_seconds: float = 300.0
    status_update_seconds: float = 10.0
    max_container_restart_period: float = 300.0
    container_log_max_size: int = 10 * 2**20
    container_log_max_files: int = 5
    # The store is shared with `docker build`: what cannot be pulled again, the engine tells as pinned.
    image_gc_high_percent: int = 85
    image_gc_low_percent: int = 80
    image_minimum_age: float = 120.0
    image_verification: str = "NeverVerifyPreloadedImages"
    preloaded_allowlist: list[str] = field(default_factory=list)
    #: a CredentialProviderConfig (file or folder) and the folder of its programs
    credential_providers: Path | None = None
    credential_provider_folder: Path | None = None
    eviction_hard: dict[str, str] = field(
        default_factory=lambda: {
            # Upstream's 10 % of a disk is much on a person's own machine, where a full disk is not the cluster's doing.
            "memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
            "imagefs.available": "1%", "imagefs.inodesFree": "1%",
        }
    )  # fmt: skip
    eviction_soft: dict[str, str] = field(default_factory=dict)
    eviction_soft_grace: dict[str, float] = field(default_factory=dict)
    cpu_manager_policy: str = "none"
    cpu_manager_options: dict[str, str] = field(default_factory=dict)
    reserved_system_cpus: str = ""
    memory_manager_policy: str = "None"
    #: (NUMA node, kind -> amount) of what is nobody's own
    reserved_memory: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    topology_manager_policy: str = "none"
    topology_manager_scope: str = "container"
    topology_manager_options: dict[str, str] = field(default_factory=dict)
    #: where the kernel tells what the machine is made of
    sys_root: Path = Path("/sys")
    feature_gates: dict[str, bool] = field(default_factory=dict)
    swap_behavior: str = "NoSwap"
    rotate_certificates: bool = False
    server_tls_bootstrap: bool = False
    #: (priority from which on, seconds), the lowest first; none: pods go on when the kubelet ends
    shutdown_periods: list[tuple[int, float]] = field(default_factory=list)
    version: str = "v1.36.1"

    def pod_folder(self, uid: str) -> Path:
        return self.root / "pods" / uid

    def pod_log_folder(self, namespace: str, name: str, uid: str) -> Path:
        return self.pod_logs / f"{namespace}_{name}_{uid}"
