"""Where state and sockets live: two roots, movable by one flag each, so that two clusters can run beside each other."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

DATA_DIR = Path("/var/lib/longshore")
RUN_DIR = Path("/run/longshore")


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders and files of one cluster on this machine.

    data: state that survives a reboot; run: sockets, pids and mounts that do not.
    """

    data: Path = DATA_DIR
    run: Path = RUN_DIR

    @property
    def pki(self) -> Path:
        return self.data / "pki"

    @property
    def logs(self) -> Path:
        """Log files of Longshore's own parts."""
        return self.data / "logs"

    @property
    def audit(self) -> Path:
        """The API server's audit log, where `audit-policy.yaml` beside it asks for one."""
        return self.data / "audit"

    @property
    def images(self) -> Path:
        """The image store: one for all nodes of the machine."""
        return self.data / "images"

    @property
    def registry(self) -> Path:
        return self.data / "registry"

    @property
    def store(self) -> Path:
        """The embedded etcd's SQLite file."""
        return self.data / "etcd" / "store.db"

    @property
    def docker_socket(self) -> Path:
        return self.run / "docker.sock"

    @property
    def state_file(self) -> Path:
        """What the supervisor knows of its parts: pids, ports, addresses (JSON)."""
        return self.run / "state.json"

    def node(self, name: str) -> NodeLayout:
        return NodeLayout(self.data / "nodes" / name, self.run / "nodes" / name)

    def kubeconfig(self, who: str = "admin") -> Path:
        return self.pki / f"{who}.kubeconfig"


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """The folders of one node: its engine's, kubelet's and collector's state and sockets."""

    data: Path
    run: Path

    @property
    def mark(self) -> str:
        """Eight hexadecimal digits that no other cluster's node has, whatever its nodes are called."""
        return hashlib.blake2b(os.fsencode(self.data.resolve()), digest_size=4).hexdigest()

    @property
    def cgroup(self) -> str:
        """The control group of the engine's containers."""
        return f"/longshore/{self.data.name}-{self.mark}"

    @property
    def engine_data(self) -> Path:
        return self.data / "engine"

    @property
    def engine_run(self) -> Path:
        return self.run / "engine"

    @property
    def cri_socket(self) -> Path:
        return self.run / "cri.sock"

    @property
    def kubelet(self) -> Path:
        """The kubelet's root, as /var/lib/kubelet upstream."""
        return self.data / "kubelet"

    @property
    def pod_logs(self) -> Path:
        """Pod log folders, as /var/log/pods upstream."""
        return self.data / "log" / "pods"

    @property
    def log_store(self) -> Path:
        return self.data / "log" / "store"
