"""Containers of the runtime room alone: a root of busybox, its configuration, and what comes out of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from longshore.engine.runtime import spec as oci
from longshore.engine.runtime.attachment import Attachment


def make_root(folder: Path) -> Path:
    """A root file system with busybox and a link for each of its applets. Skips where what runs it is absent."""
    if shutil.which("runc") is None or shutil.which("conmon") is None or not os.path.exists("/bin/busybox"):
        pytest.skip("runc, conmon or busybox-static is absent")
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (folder / name).mkdir()
    shutil.copy("/bin/busybox", folder / "bin/busybox")
    for name in subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split():
        if name != "busybox":
            os.symlink("busybox", folder / "bin" / name)
    return folder


def spec(root: Path, *command: str) -> oci.Spec:
    """The configuration of a container with Docker's defaults."""
    return oci.default_spec(rootfs=root, args=command, env=["PATH=/bin"])


async def drain(io: Attachment) -> dict[int, bytes]:
    """All output, by stream."""
    got: dict[int, bytes] = {1: b"", 2: b""}
    while (piece := await io.read()) is not None:
        got[piece[0]] += piece[1]
    return got
