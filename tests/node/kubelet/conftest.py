"""A node to test with: the real API server and controllers as processes, an engine's CRI door and the kubelet in this one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.engine.cri.conftest import busybox_tar

from longshore.cli import certificates, cluster
from longshore.client.config import load
from longshore.client.resources import NAMESPACES, NODES, PODS
from longshore.client.rest import Client, is_not_found
from longshore.engine.cri.server import CriServer
from longshore.engine.images import references
from longshore.engine.images.store import ImageStore
from longshore.engine.runtime import cgroups
from longshore.engine.runtime.runtime import Runtime
from longshore.machinery import mounts
from longshore.machinery.errors import StatusError
from longshore.machinery.paths import Layout
from longshore.node.kubelet import server

IP = "10.99.0.1"


class Node:
    """One node and its cluster; the kubelet and the engine can be stopped and started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = Layout(root / "d", root / "r")
        self.name = "node-a"
        self.config = cluster.ClusterConfig([cluster.NodeConfig(self.name, IP)], IP, None, secure_port=16443)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.kubelet: asyncio.Task[None] | None = None
        self.client: Client
        self.cri: CriServer | None = None
        self.cgroup_root = server.default_cgroup_root(self.name, self.root / "k")

    async def start(self) -> None:
        subprocess.run(["ip", "addr", "replace", f"{IP}/32", "dev", "lo"], check=True)
        self.layout.data.mkdir(parents=True, exist_ok=True)
        certificates.ensure(self.layout, self.config)
        pki = self.layout.pki
        self._spawn(
            "apiserver", "--bind-address", "0.0.0.0", "--data-dir", str(self.layout.store.parent), "--secure-port", "16443",
            "--advertise-address", IP, "--service-cluster-ip-range", self.config.service_cidr,
            "--client-ca-file", str(pki / "ca.crt"), "--tls-cert-file", str(pki / "apiserver.crt"),
            "--tls-private-key-file", str(pki / "apiserver.key"),
            "--service-account-key-file", str(pki / "sa.key"),
            "--service-account-signing-key-file", str(pki / "sa.key"),
            "--service-account-issuer", "https://kubernetes.default.svc.cluster.local",
            "--kubelet-client-certificate", str(pki / "apiserver-kubelet-client.crt"),
            "--kubelet-client-key", str(pki / "apiserver-kubelet-client.key"),
            "--kubelet-certificate-authority", str(pki / "ca.crt"),
        )  # fmt: skip
        self.client = Client(load(self.layout.kubeconfig()))
        await self.until(self._answers, 60)
        await asyncio.to_thread((self.layout.data / "cluster.json").exists)
        self._spawn_manager()
        await self.start_engine()
        self.start_kubelet()
        await self.until(self._node_ready, 60)

    def _spawn(self, *argv: str) -> None:
        log = open(self.root / f"{argv[0]}.log", "ab")  # noqa: SIM115 - the child's
        self.processes.append(subprocess.Popen([sys.executable, "-m", "longshore", *argv], stdout=log, stderr=log))

    def _spawn_manager(self) -> None:
        code = (
            "import asyncio,sys;from pathlib import Path;"
            "from longshore.master.controllers.options import Options;"
            "from longshore.master.controllers.server import serve;"
            "p=Path(sys.argv[2]);"
            "asyncio.run(serve(kubeconfig=Path(sys.argv[1]),options=Options(controllers=('*',),"
            "cluster_cidr=('10.244.0.0/16',),service_cluster_ip_range=('10.96.0.0/16',),root_ca_file=p/'ca.crt'),"
            "leader_elect=False,identity='test'))"
        )
        log = open(self.root / "manager.log", "ab")  # noqa: SIM115 - the child's
        argv = [sys.executable, "-c", code, str(self.layout.kubeconfig("controller-manager")), str(self.layout.pki)]
        self.processes.append(subprocess.Popen(argv, stdout=log, stderr=log))

    async def start_engine(self) -> None:
        self.runtime = Runtime(self.root / "e", cgroup_parent=f"/longshore-test-{os.getpid()}")
        await self.runtime.recover()
        self.images = ImageStore(self.layout.images, state=self.root / "roots", owner=self.name)
        self.cri = CriServer(
            runtime=self.runtime, images=self.images, data=self.root / "cri", run=self.root / "c",
            cluster_cidrs=["10.244.0.0/16", "10.96.0.0/16"], cni_folder=self.root / "cni",
        )  # fmt: skip
        self.images.users = self.cri.image_users
        await self.cri.start(self.root / "cri.sock")
        if self.images.find("busybox:latest") is None:

            async def source() -> AsyncIterator[bytes]:
                yield busybox_tar()

            for name in ("busybox:latest", "registry.test/tools:1"):
                await self.images.import_(source(), name=references.parse(name), run_config={"Cmd": ["sh"]})

    async def stop_engine(self) -> None:
        await self.cri.close()
        self.runtime.close()
        self.images.close()

    def start_kubelet(self, **more: Any) -> None:
        pki = self.layout.pki
        self.kubelet = asyncio.create_task(
            server.serve(
                kubeconfig=self.layout.kubeconfig(f"kubelet-{self.name}"), node_name=self.name, node_ip=IP,
                cri_endpoint=f"unix://{self.root / 'cri.sock'}", root_dir=self.root / "k",
                pod_logs_dir=self.root / "logs", cluster_dns=[self.config.cluster_dns], client_ca=pki / "ca.crt",
                certificate=pki / f"kubelet-server-{self.name}.crt", key=pki / f"kubelet-server-{self.name}.key",
                **more,
            )
        )  # fmt: skip

    async def stop_kubelet(self) -> None:
        if self.kubelet is not None:
            self.kubelet.cancel()
            await asyncio.gather(self.kubelet, return_exceptions=True)
            self.kubelet = None

    async def stop(self) -> None:
        try:
            await self.stop_kubelet()
            if self.cri is not None:
                await self.cri.purge()
                await self.stop_engine()
        finally:
            for process in self.processes:
                process.terminate()
            for process in self.processes:
                await asyncio.to_thread(process.wait)
            await self.client.close()
            cgroups.remove(self.cgroup_root)
            cgroups.remove(f"/longshore-test-{os.getpid()}")
            mounts.unmount_below(self.root)

    # -- words of tests ----------------------------------------------------------------------------------------------

    async def until(self, check: Callable[[], Awaitable[Any]], seconds: float = 20.0) -> Any:
        """The first true value of a check."""
        value = None
        try:
            async with asyncio.timeout(seconds):
                while not (value := await check()):
                    if self.kubelet is not None and self.kubelet.done():
                        self.kubelet.result()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not within {seconds} s: {check}") from None
        return value

    async def _answers(self) -> bool:
        with contextlib.suppress(StatusError, OSError):
            await self.client.get(NAMESPACES, "default")
            return True
        return False

    async def _node_ready(self) -> bool:
        with contextlib.suppress(StatusError, OSError):
            node = await self.client.get(NODES, self.name)
            return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions") or ())
        return False

    async def create(self, name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
        """A pod bound to this node; containers default to busybox and no grace."""
        metadata = spec.pop("metadata", {})
        body = {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata},
            "spec": {
                "nodeName": self.name, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent", **c} for c in containers],
                **spec,
            },
        }  # fmt: skip
        await self.until(self._account, 20)
        return await self.client.create(PODS, body, "default")

    async def _account(self) -> bool:
        from longshore.client.resources import SERVICE_ACCOUNTS

        with contextlib.suppress(StatusError):
            await self.client.get(SERVICE_ACCOUNTS, "default", "default")
            return True
        return False

    async def pod(self, name: str) -> dict[str, Any]:
        return await self.client.get(PODS, name, "default")

    async def wait(self, name: str, check: Callable[[dict[str, Any]], Any], seconds: float = 20.0) -> dict[str, Any]:
        """The pod once the check of it is true."""
        last: dict[str, Any] = {}

        async def look() -> bool:
            nonlocal last
            last = await self.pod(name)
            return bool(check(last))

        try:
            await self.until(look, seconds)
        except AssertionError:
            raise AssertionError(f"{name}: {last.get('status')}") from None
        return last

    async def ready(self, name: str, seconds: float = 20.0) -> dict[str, Any]:
        return await self.wait(name, lambda p: condition(p, "Ready") == "True", seconds)

    async def phase(self, name: str, phase: str, seconds: float = 20.0) -> dict[str, Any]:
        return await self.wait(name, lambda p: p["status"].get("phase") == phase, seconds)

    async def logs(self, name: str, **query: str) -> str:
        data = await self.client.raw("GET", PODS.path("default", name, "log"), query)
        return data.decode()

    async def delete(self, name: str, **options: Any) -> None:
        """Delete, and wait until it has gone."""
        await self.client.delete(PODS, name, "default", **options)
        await self.until(lambda: self.gone(name), 20)

    async def gone(self, name: str) -> bool:
        try:
            await self.pod(name)
        except StatusError as error:
            if is_not_found(error):
                return True
            raise
        return False


def condition(pod: dict[str, Any], kind: str) -> str:
    return next((c["status"] for c in pod["status"].get("conditions") or () if c["type"] == kind), "")


@pytest.fixture(scope="module")
def node_folder() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="k", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(node_folder: Path) -> AsyncIterator[Node]:
    found = Node(node_folder)
    try:
        await found.start()
        yield found
    except BaseException:
        for log in node_folder.glob("*.log"):
            print(f"--- {log.name}\n{log.read_text()[-3000:]}")
        raise
    finally:
        await found.stop()
