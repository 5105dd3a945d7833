"""Every test process lives in a network and mount namespace of its own, when it may.

So engines and clusters of parallel workers never meet, nothing a test does to interfaces, rules or mounts can be left
behind on the machine (the kernel takes it all away with the process), and no packet can leave the machine.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The machine is shared and noisy: how long an example takes says nothing about the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    if os.geteuid() != 0 or os.environ.get("LONGSHORE_TEST_NO_UNSHARE"):
        return
    if config.pluginmanager.hasplugin("dsession"):
        return  # xdist's controller runs no test; its workers come here themselves
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None)  # MS_REC | MS_PRIVATE
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recorded upstream exchanges; tests that need it are skipped where it is absent."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("../shared/golden is absent")
    return folder
