"""What an API server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longshore.master.apiserver.audit.flags import Options as AuditOptions


@dataclass(slots=True)
class Config:
    """What a server is started with. Files are PEM.

    service_cidrs: one range, or an IPv4 and an IPv6 one; node_ports: first and last; advertise: (address, port) under
    which Pods reach this server through the `kubernetes` Service; kubelet_certificate, kubelet_key: this server's client
    certificate at kubelets; service_account_keys: PEM keys, the first one signs. bootstrap_rbac: a JSON list of roles and
    bindings that are made, where they are missing, before anybody is answered.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    service_account_keys: list[Path] = field(default_factory=list)
    service_account_issuer: str = "https://kubernetes.default.svc.cluster.local"
    api_audiences: list[str] = field(default_factory=list)
    kubelet_certificate: Path | None = None
    kubelet_key: Path | None = None
    kubelet_ca: Path | None = None
    requestheader_ca: Path | None = None
    proxy_certificate: Path | None = None
    proxy_key: Path | None = None
    service_cidrs: list[str] = field(default_factory=lambda: ["10.96.0.0/16"])
    node_ports: tuple[int, int] = (30000, 32767)
    advertise: tuple[str, int] = ("127.0.0.1", 6443)
    authorization_modes: list[str] = field(default_factory=lambda: ["Node", "RBAC"])
    bootstrap_rbac: Path | None = None
    anonymous: bool = True
    event_ttl: int = 3600
    max_in_flight: int = 400
    max_mutating_in_flight: int = 200
    cluster_domain: str = "cluster.local"
    enable_admission: list[str] = field(default_factory=list)
    disable_admission: list[str] = field(default_factory=list)
    admission_config: Path | None = None
    audit: AuditOptions = field(default_factory=AuditOptions)
    encryption_config: Path | None = None
    encryption_reload: bool = False
    compaction_seconds: float = 300.0
    extra: dict[str, Any] = field(default_factory=dict)
