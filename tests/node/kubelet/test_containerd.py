"""The kubelet on Debian's containerd: the same pods, no event stream, CNI plugins for the network."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.engine.cri.conftest import busybox_tar

from longshore.client.resources import PODS
from longshore.engine.cri.namespaces import pause_program
from longshore.engine.images import references
from longshore.engine.images.store import ImageStore
from longshore.machinery.grpc import Client
from longshore.wire.cri import cri

from .conftest import Node, condition

pytestmark = [
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        not shutil.which("containerd") or not Path("/usr/lib/cni/bridge").exists(),
        reason="containerd and containernetworking-plugins are not installed",
    ),
]

CONFIG = """version = 2
root = "{root}/containerd"
state = "{root}/state"
[grpc]
  address = "{root}/cri.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.test/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{root}/net.d"
"""


def pause_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        data = pause_program()
        entry = tarfile.TarInfo("pause")
        entry.size, entry.mode = len(data), 0o755
        tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


class ContainerdNode(Node):
    """A node whose containers are containerd's."""

    daemon: subprocess.Popen[bytes] | None = None

    async def start_engine(self) -> None:
        (self.root / "net.d").mkdir(exist_ok=True)
        network = {
            "cniVersion": "1.0.0", "name": "test", "plugins": [
                {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False,
                 "ipam": {"type": "host-local", "dataDir": str(self.root / "ipam"),
                          "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }  # fmt: skip
        (self.root / "net.d" / "10-test.conflist").write_text(json.dumps(network))
        (self.root / "config.toml").write_text(CONFIG.format(root=self.root))
        log = open(self.root / "containerd.log", "ab")  # noqa: SIM115 - the child's
        self.daemon = subprocess.Popen(["containerd", "-c", str(self.root / "config.toml")], stdout=log, stderr=log)
        client = Client(cri.RuntimeService, path=self.root / "cri.sock")

        async def answers() -> bool:
            try:
                await client.call("Version", deadline=5)
            except Exception:
                return False
            return True

        await self.until(answers)
        client.close()
        await self._images()

    async def _images(self) -> None:
        store = ImageStore(self.root / "images", state=self.root / "roots", owner="x")
        for name, data in (("busybox:latest", busybox_tar()), ("registry.test/pause:1", pause_tar())):

            async def source(data: bytes = data) -> AsyncIterator[bytes]:
                yield data

            config = {"Cmd": ["sh"]} if "busybox" in name else {"Entrypoint": ["/pause"]}
            await store.import_(source(), name=references.parse(name), run_config=config)
            file = self.root / "image.tar"
            with open(file, "wb") as out:
                out.writelines(await store.save([name]))
            argv = ["ctr", "-a", str(self.root / "cri.sock"), "-n", "k8s.io", "images", "import", str(file)]
            done = await asyncio.to_thread(subprocess.run, argv, capture_output=True)
            assert done.returncode == 0, done.stderr
        store.close()

    async def stop_engine(self) -> None:
        assert self.daemon is not None
        self.daemon.terminate()
        await asyncio.to_thread(self.daemon.wait)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def containerd() -> AsyncIterator[ContainerdNode]:
    folder = Path(tempfile.mkdtemp(prefix="kc", dir="/tmp"))
    node = ContainerdNode(folder)
    try:
        await node.start()
        yield node
    finally:
        for pod in (await node.client.list(PODS, "default"))["items"]:
            await node.delete(pod["metadata"]["name"], grace_seconds=0)
        await node.stop()
        if node.daemon is not None and node.daemon.poll() is None:
            await node.stop_engine()
        shutil.rmtree(folder, ignore_errors=True)


async def test_pods_on_containerd(containerd: ContainerdNode) -> None:
    node = containerd
    image = {"image": "busybox", "imagePullPolicy": "IfNotPresent"}
    await node.create(
        "main",
        {
            "command": ["sh", "-c", "cat /w/x; mkdir /www; echo page > /www/x; httpd -p 80 -h /www; sleep 1000"],
            "volumeMounts": [{"name": "w", "mountPath": "/w"}],
            "readinessProbe": {"httpGet": {"path": "/x", "port": 80}, "periodSeconds": 1},
            "livenessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1},
        },
        volumes=[{"name": "w", "emptyDir": {}}],
        initContainers=[
            {"name": "i", **image, "command": ["sh", "-c", "echo init > /w/x"], "volumeMounts": [{"name": "w", "mountPath": "/w"}]}
        ],
    )  # fmt: skip
    await node.create("once", {"command": ["sh", "-c", "exit 3"]}, restartPolicy="Never")
    await node.create("again", {"command": ["false"]})
    pod = await node.ready("main")
    assert pod["status"]["podIP"].startswith("10.244.0.")
    assert pod["status"]["containerStatuses"][0]["containerID"].startswith("containerd://")
    assert await node.logs("main") == "init\n"
    once = await node.phase("once", "Failed")
    assert once["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3

    def backed_off(found: dict[str, Any]) -> bool:
        status = found["status"]["containerStatuses"][0]
        return (
            status["restartCount"] >= 1 and (status["state"].get("waiting") or {}).get("reason") == "CrashLoopBackOff"
        )

    await node.wait("again", backed_off, 30)
    await node.stop_kubelet()
    node.start_kubelet()
    await asyncio.sleep(1)
    after = await node.ready("main")
    assert condition(after, "Initialized") == "True"
    one, two = (p["status"]["containerStatuses"][0]["containerID"] for p in (pod, after))
    assert one == two
    await asyncio.gather(*(node.delete(n) for n in ("main", "once", "again")))
    assert not list((node.root / "k" / "pods").iterdir())
