"""File systems on local volumes that are block devices (loop devices here)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshore.machinery import mounts
from longshore.node.kubelet.volumes.localdevices import DeviceError, LocalDevices

pytestmark = pytest.mark.root


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    if shutil.which("losetup") is None or shutil.which("mkfs.ext4") is None:
        pytest.skip("losetup or mkfs.ext4 is not installed")
    file = tmp_path / "disk"
    with file.open("wb") as disk:
        disk.truncate(8 << 20)
    try:
        found = Path(run("losetup", "--find", "--show", str(file)))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device: {error.stderr}")
    yield found
    mounts.unmount_below(tmp_path)
    run("losetup", "--detach", str(found))


async def test_made_once_mounted_once_kept_while_a_pod_has_it(tmp_path: Path, device: Path) -> None:
    devices = LocalDevices(tmp_path)
    with pytest.raises(DeviceError, match="cannot mount unformatted disk"):
        await devices.stage("v", device, "", (), readonly=True)
    where = await devices.stage("v", device, "", ("noatime",), readonly=False)
    assert await devices.stage("v", device, "", (), readonly=False) == where
    (mounted,) = (m for m in mounts.table() if m.path == str(where))
    assert (mounted.kind, mounted.source) == ("ext4", str(device)) and "noatime" in mounted.options
    (where / "kept").write_text("here")
    folder = tmp_path / "pods" / "uid" / "volumes" / "kubernetes.io~local-volume" / "v"
    folder.mkdir(parents=True)
    mounts.bind(where, folder)
    await devices.release()
    assert (folder / "kept").read_text() == "here" and mounts.is_mounted(where)
    mounts.unmount(folder)
    await LocalDevices(tmp_path).release()
    assert not where.exists()
    where = await devices.stage("v", device, "ext4", (), readonly=True)
    assert (where / "kept").read_text() == "here"
    with pytest.raises(OSError):
        (where / "more").touch()
    await devices.release()


async def test_what_is_on_a_device_is_not_overwritten(tmp_path: Path, device: Path) -> None:
    devices = LocalDevices(tmp_path)
    entry = bytes.fromhex("00 010100 83 0a0a0a 01000000 00100000")  # one Linux partition of 2 MiB
    device.open("r+b").write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
    with pytest.raises(DeviceError, match="probably partitions"):
        await devices.stage("v", device, "ext4", (), readonly=False)
    run("wipefs", "--all", str(device))
    with pytest.raises(DeviceError, match=r"format of disk .* failed"):
        await devices.stage("v", device, "nosuchfs", (), readonly=False)
    run("mkfs.ext4", "-q", str(device))
    with pytest.raises(DeviceError, match="failed to mount the volume"):
        await devices.stage("v", device, "tmpfsx", (), readonly=False)
