"""A CRI door on an engine of its own: runtime, image store, a busybox image, a client."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.cri.server import CriServer
from longshore.engine.images import references
from longshore.engine.images.store import ImageStore
from longshore.engine.runtime import cgroups
from longshore.engine.runtime.runtime import Runtime
from longshore.machinery import mounts
from longshore.machinery.grpc import Client
from longshore.wire.cri import cri

APPLETS = [
    "sh",
    "cat",
    "echo",
    "sleep",
    "ls",
    "id",
    "hostname",
    "touch",
    "mkdir",
    "rm",
    "nc",
    "ip",
    "ps",
    "true",
    "false",
    "test",
    "printf",
    "kill",
    "wc",
    "head",
    "tail",
    "tr",
    "stat",
    "mount",
    "umount",
    "env",
    "seq",
    "grep",
    "httpd",
    "wget",
]


def busybox_tar() -> bytes:
    """A root file system with a static busybox and a link per applet."""
    program = shutil.which("busybox")
    if program is None:
        pytest.skip("busybox-static is absent")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("bin", "etc", "tmp", "root", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        data = Path(program).read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(data), 0o755
        tar.addfile(entry, io.BytesIO(data))
        for name in APPLETS:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
        for name, text in (
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"),
            ("etc/group", "root:x:0:\nuser:x:1000:\nextra:x:50000:user\n"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


class Engine:
    """An engine's CRI door that can be killed and started again on the same folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "cri.sock"
        self.cgroup = f"/longshore-test-{os.getpid()}"
        self.runtime: Runtime
        self.images: ImageStore
        self.server: CriServer
        self.client: Client

    async def start(self) -> None:
        self.runtime = Runtime(self.root / "run" / "runtime", cgroup_parent=self.cgroup)
        await self.runtime.recover()
        self.images = ImageStore(self.root / "images", state=self.root / "roots", owner="test")
        self.server = CriServer(
            runtime=self.runtime, images=self.images, data=self.root / "cri", run=self.root / "run" / "cri",
            cni_folder=self.root / "cni",
        )  # fmt: skip
        self.images.users = self.server.image_users
        await self.server.start(self.socket)
        self.client = Client(cri.RuntimeService, cri.ImageService, path=self.socket)

    async def crash(self) -> None:
        """Stop without any cleaning up, as far as one process can."""
        self.client.close()
        await self.server.close()
        self.runtime.close()
        self.images.close()

    async def call(self, name: str, **fields: Any) -> Any:
        return await self.client.call(name, deadline=60, **fields)

    async def add_image(self, name: str = "busybox:latest", config: dict[str, Any] | None = None) -> None:
        async def source() -> AsyncIterator[bytes]:
            yield busybox_tar()

        await self.images.import_(
            source(), name=references.parse(name).with_default_tag(), run_config=config or {"Cmd": ["sh"]}
        )

    def pod_config(self, name: str = "pod", **extra: Any) -> Any:
        linux = extra.pop("linux", None) or cri.LinuxPodSandboxConfig(cgroup_parent=self.cgroup)
        if not linux.cgroup_parent:
            linux.cgroup_parent = self.cgroup
        logs = self.root / "logs" / name
        logs.mkdir(parents=True, exist_ok=True)
        return cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default"),
            log_directory=str(logs), labels={"app": name}, linux=linux, **extra,
        )  # fmt: skip

    async def run_pod(self, name: str = "pod", **extra: Any) -> tuple[str, Any]:
        config = self.pod_config(name, **extra)
        return (await self.call("RunPodSandbox", config=config)).pod_sandbox_id, config

    async def create(self, pod: tuple[str, Any], name: str, command: list[str], **extra: Any) -> str:
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name), image=cri.ImageSpec(image=extra.pop("image", "busybox")),
            command=command, log_path=f"{name}.log", labels={"c": name}, **extra,
        )  # fmt: skip
        answer = await self.call("CreateContainer", pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1])
        return str(answer.container_id)

    async def run(self, pod: tuple[str, Any], name: str, command: list[str], **extra: Any) -> str:
        container = await self.create(pod, name, command, **extra)
        await self.call("StartContainer", container_id=container)
        return container

    async def status(self, container: str) -> Any:
        return (await self.call("ContainerStatus", container_id=container)).status

    async def ended(self, container: str) -> Any:
        """The status of a container once it has ended."""
        await self.runtime.wait(container)
        return await self.status(container)

    async def sh(self, container: str, script: str) -> str:
        answer = await self.call("ExecSync", container_id=container, cmd=["sh", "-c", script], timeout=20)
        assert answer.exit_code == 0, (script, answer)
        return str(answer.stdout.decode().strip())


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    found = Engine(tmp_path)
    await found.start()
    await found.add_image()
    await found.call(
        "UpdateRuntimeConfig",
        runtime_config=cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr="10.88.0.0/24,fd00:88::/64")),
    )
    try:
        yield found
    finally:
        await found.server.purge()
        await found.crash()
        cgroups.remove(found.cgroup)
        mounts.unmount_below(tmp_path)
