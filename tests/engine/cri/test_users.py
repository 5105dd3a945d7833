"""Pods with a user namespace of their own: who is who inside and outside, and that nothing stays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from longshore.machinery import mounts, users
from longshore.machinery.grpc import RpcError
from longshore.wire.cri import cri

from .conftest import Engine

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not users.supported(), reason="this kernel has no user namespaces for overlayfs"),
]
BEGIN = 300_000


@pytest.fixture(autouse=True)
def way(tmp_path: Path) -> None:
    """The engine's run folder must be on a way that others may go; pytest's folders are their owner's alone."""
    for folder in (tmp_path, *tmp_path.parents):
        if "pytest" in str(folder):
            folder.chmod(0o711)


def security(kind: Any, **options: Any) -> Any:
    mapping = [cri.IDMapping(host_id=BEGIN, container_id=0, length=65536)]
    namespace = cri.NamespaceOption(
        userns_options=cri.UserNamespace(mode=cri.POD, uids=mapping, gids=mapping), **options
    )
    return kind(namespace_options=namespace)


def sandbox(**options: Any) -> Any:
    return cri.LinuxPodSandboxConfig(security_context=security(cri.LinuxSandboxSecurityContext, **options))


def linux(**options: Any) -> Any:
    return cri.LinuxContainerConfig(security_context=security(cri.LinuxContainerSecurityContext, **options))


def volume(source: Path, target: str, **more: Any) -> Any:
    mapping = [cri.IDMapping(host_id=BEGIN, container_id=0, length=65536)]
    return cri.Mount(host_path=str(source), container_path=target, uidMappings=mapping, gidMappings=mapping, **more)


async def test_owners_inside_and_outside(engine: Engine, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "old").write_text("from the host")
    os.chown(data / "old", 7, 8)
    pod = await engine.run_pod("mapped", hostname="mapped", linux=sandbox())
    container = await engine.run(
        pod, "main", ["sleep", "1000"], linux=linux(),
        mounts=[volume(data, "/data"), volume(data / "old", "/one", readonly=True)],
    )  # fmt: skip
    assert await engine.sh(container, "cat /proc/self/uid_map") == f"0     {BEGIN}      65536"
    assert await engine.sh(container, "stat -c %u:%g / /bin/busybox /data /data/old /one") == "0:0\n0:0\n0:0\n7:8\n7:8"
    await engine.sh(container, "echo new > /data/new; touch /written")
    # What the container's root writes into a volume is root's there, and never is on the host where it runs.
    assert (data / "new").stat().st_uid == 0
    root = engine.images.rootfs(container)
    assert (root.merged / "written").stat().st_uid == BEGIN and (root.upper / "written").stat().st_uid == 0
    pid = engine.runtime.state(container).pid
    assert Path(f"/proc/{pid}").stat().st_uid == BEGIN
    for name in ("StopPodSandbox", "RemovePodSandbox"):
        await engine.call(name, pod_sandbox_id=pod[0])
    assert not [m for m in mounts.table() if pod[0] in m.path or container in m.path]
    assert (data / "old").read_text() == "from the host" and (data / "new").read_text() == "new\n"


async def test_a_shared_pid_namespace_and_a_restart(engine: Engine) -> None:
    pod = await engine.run_pod("shared", hostname="shared", linux=sandbox(pid=cri.POD))
    one = await engine.run(pod, "one", ["sleep", "1000"], linux=linux(pid=cri.POD))
    two = await engine.run(pod, "two", ["sleep", "2000"], linux=linux(pid=cri.POD))
    assert "sleep 2000" in await engine.sh(one, "ps")
    await engine.crash()
    await engine.start()
    assert (await engine.status(two)).state == cri.CONTAINER_RUNNING
    assert "sleep 1000" in await engine.sh(two, "ps")
    await engine.call("StopPodSandbox", pod_sandbox_id=pod[0])
    await engine.call("RemovePodSandbox", pod_sandbox_id=pod[0])


async def test_what_cannot_be(engine: Engine) -> None:
    bare = cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.POD))
    with pytest.raises(RpcError, match="needs mappings"):
        await engine.run_pod(
            "bare",
            linux=cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(namespace_options=bare)),
        )
    with pytest.raises(RpcError, match="cannot share the host's namespaces"):
        await engine.run_pod("host", linux=sandbox(network=cri.NODE))
    pod = await engine.run_pod("proc", hostname="proc", linux=sandbox())
    with pytest.raises(RpcError, match="failed to set MOUNT_ATTR_IDMAP on /proc/sys"):
        await engine.create(pod, "c", ["true"], linux=linux(), mounts=[volume(Path("/proc/sys"), "/x")])
    assert not [m for m in mounts.table() if "/owned/" in m.path]
    await engine.call("StopPodSandbox", pod_sandbox_id=pod[0])
    await engine.call("RemovePodSandbox", pod_sandbox_id=pod[0])
