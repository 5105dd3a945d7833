"""The kubelet's settings: a file, and flags over it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from longshore.cli.main import UserError
from longshore.cli.parts import node


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    node.configure(parser)
    return parser.parse_args(["--node", "n", *argv])


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    assert node.kubelet_settings(parsed(), tmp_path) == node.ROTATION
    (tmp_path / "kubelet.yaml").write_text(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 7\npodPidsLimit: 9\n"
    )
    found = node.kubelet_settings(
        parsed(
            "--max-pods", "8", "--eviction-soft", "memory.available<1Gi,nodefs.available<5%",
            "--eviction-soft-grace-period", "memory.available=1m,nodefs.available=2m", "--shutdown-grace-period=30s",
            "--allowed-unsafe-sysctls", "kernel.msg*,net.*",
            "--cpu-manager-policy-options", "full-pcpus-only=true", "--topology-manager-scope", "pod",
            "--reserved-memory", "0:memory=1Gi,hugepages-2Mi=4Mi;1:memory=2Gi",
        ),
        tmp_path,
    )  # fmt: skip
    assert found == {
        **node.ROTATION,
        "maxPods": 8, "podPidsLimit": 9, "evictionSoft": {"memory.available": "1Gi", "nodefs.available": "5%"},
        "evictionSoftGracePeriod": {"memory.available": "1m", "nodefs.available": "2m"}, "shutdownGracePeriod": "30s",
        "allowedUnsafeSysctls": ["kernel.msg*", "net.*"],
        "cpuManagerPolicyOptions": {"full-pcpus-only": "true"}, "topologyManagerScope": "pod",
        "reservedMemory": [
            {"numaNode": 0, "limits": {"memory": "1Gi", "hugepages-2Mi": "4Mi"}},
            {"numaNode": 1, "limits": {"memory": "2Gi"}},
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max-pods", "x"], "--max-pods"),
        (["--eviction-soft", "memory.available=1Gi"], "is not SIGNAL<AMOUNT"),
        (["--eviction-soft", "memory.available<1Gi"], "grace period must be specified"),
        (["--config", "/nowhere"], "failed to load kubelet config file, path: /nowhere"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, argv: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        node.kubelet_settings(parsed(*argv), tmp_path)
