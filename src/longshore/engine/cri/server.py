"""The CRI door of an engine: everything put together, recovered, and served on a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from longshore.engine.cri import cni
from longshore.engine.cri.containers import Containers
from longshore.engine.cri.hostports import HostPorts
from longshore.engine.cri.images import Images
from longshore.engine.cri.network import BuiltinNetwork
from longshore.engine.cri.records import Container, Sandbox
from longshore.engine.cri.sandboxes import Sandboxes
from longshore.engine.cri.service import Events, RuntimeService
from longshore.engine.cri.stats import Statistics
from longshore.engine.cri.streaming import StreamingServer
from longshore.engine.errors import EngineError
from longshore.engine.images.store import ImageStore, ImageUser
from longshore.engine.runtime.runtime import Runtime
from longshore.machinery.grpc import RpcError, Server, Status
from longshore.machinery.nftables import NftablesError, NftablesUnavailable
from longshore.wire.cri import cri

log = logging.getLogger("longshore.engine.cri")
_CODES = {400: Status.INVALID_ARGUMENT, 404: Status.NOT_FOUND, 409: Status.FAILED_PRECONDITION, 501: Status.UNIMPLEMENTED}  # fmt: skip


class CriServer:
    """CRI v1 on one engine. Construct it, then `await start()` after the runtime's own recovery."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        images: ImageStore,
        data: Path,
        run: Path,
        gateway: str = "pods0",
        mtu: int = 0,
        cluster_cidrs: Sequence[str] = (),
        cni_folder: Path = cni.CONFIG_FOLDER,
    ) -> None:
        """data, run: folders of this door alone. gateway: the pod network's interface on the node. mtu: of pods, 0: 1500.

        cluster_cidrs: ranges to which pods keep their own address (every node's pods, Services, other nodes).
        cni_folder: where an administrator's CNI configuration would lie.
        """
        data.mkdir(parents=True, exist_ok=True)
        self.events = Events()
        self.sandboxes = Sandboxes(
            data / "sandboxes",
            run / "sandboxes",
            network=BuiltinNetwork(data / "network.json", gateway=gateway, mtu=mtu),
            hostports=HostPorts(cluster=cluster_cidrs),
            cni_folder=cni_folder,
            handlers=lambda: list(runtime.runtimes),
            changed=self._sandbox_changed,
        )
        self.containers = Containers(
            data / "containers",
            runtime=runtime,
            images=images,
            sandboxes=self.sandboxes,
            changed=self._container_changed,
        )
        self.statistics = Statistics(self.sandboxes, self.containers)
        self.streaming = StreamingServer()
        self.service = RuntimeService(self.sandboxes, self.containers, self.statistics, self.streaming, self.events)
        self.images = Images(images)
        self._server = Server((cri.RuntimeService, self.service), (cri.ImageService, self.images), translate=_translate)

    async def start(self, socket: Path) -> None:
        """Recover what an earlier engine left, then listen. Raises OSError."""
        await self.sandboxes.recover()
        await self.containers.recover()
        for sandbox in self.sandboxes.records:
            if not sandbox.ready:
                # Its namespaces have gone, so its containers cannot go on.
                await asyncio.gather(*(self.containers.stop(c, 0) for c in self.containers.of_sandbox(sandbox.id)))
        for container in list(self.containers.records):
            if container.sandbox_id not in self.sandboxes.records:
                await self.containers.remove(container)
        try:
            self.sandboxes.hostports.rebuild(list(self.sandboxes.records), self.sandboxes.network.ranges)
            self.sandboxes.hostports.watch(lambda: list(self.sandboxes.records), lambda: self.sandboxes.network.ranges)
        except (NftablesError, NftablesUnavailable) as error:
            log.warning("host ports are not in force: %s", error)
        await self.streaming.start()
        await self._server.listen_unix(socket)

    async def close(self) -> None:
        """Stop serving; containers go on."""
        await self._server.close()
        await self.streaming.close()
        self.sandboxes.hostports.close()

    async def purge(self) -> None:
        """End and remove every sandbox and container and the pod network (when the node is taken down for good)."""
        for sandbox in list(self.sandboxes.records):
            with contextlib.suppress(RpcError):
                await self.service.remove_pod_sandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox.id))
        with contextlib.suppress(NftablesError, NftablesUnavailable):
            await asyncio.to_thread(self.sandboxes.hostports.purge)
        await asyncio.to_thread(self.sandboxes.network.purge)

    def image_users(self) -> list[ImageUser]:
        """Which container uses which image (for ImageStore.users)."""
        return self.containers.image_users()

    def _sandbox_changed(self, sandbox: Sandbox, kind: int) -> None:
        self.service.changed(sandbox, sandbox.id, kind)

    def _container_changed(self, container: Container, kind: int) -> None:
        self.service.changed(self.sandboxes.records.find(container.sandbox_id), container.id, kind)


def _translate(error: Exception) -> RpcError | None:
    if isinstance(error, EngineError):
        return RpcError(_CODES.get(error.status, Status.UNKNOWN), error.message)
    return None
