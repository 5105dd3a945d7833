"""The engine's process: Docker Engine API, CRI and builds on one runtime and one image store.

`serve` runs until it is cancelled. Containers belong to their monitors and go on; the next engine takes them over.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine import reloading, remapping
from longshore.engine import runtimes as named_runtimes
from longshore.engine.configuration import Configuration
from longshore.engine.containers.events import Events
from longshore.engine.containers.service import ContainerService
from longshore.engine.dockerapi.server import DockerAPI
from longshore.engine.images import references
from longshore.engine.images.store import ImageStore, ImageUser
from longshore.engine.networks.service import NetworkService
from longshore.engine.runtime import cgroups
from longshore.engine.runtime.runtime import Runtime
from longshore.engine.volumes.service import VolumeService
from longshore.machinery.paths import Layout, NodeLayout

if TYPE_CHECKING:
    from longshore.engine.dockerapi.hosts import TLSFiles
    from longshore.machinery.users import Owners

log = logging.getLogger("longshore.engine")

PODS, SERVICES = "10.244.0.0/16", "10.96.0.0/16"


class Engine:
    """One engine, put together. `start()` recovers and listens, `close()` lets go; nothing that runs notices."""

    def __init__(
        self,
        *,
        layout: Layout,
        node_layout: NodeLayout,
        node: str = "",
        bridge: str = "",
        runtimes: dict[str, str] | None = None,
        reserved: Iterable[str] = (PODS, SERVICES),
        configuration: Configuration | None = None,
        registry_namespace: Path | None = None,
    ) -> None:
        """node: this engine's name among those that share the image store. bridge: interface of Docker's default
        network, "": see NetworkService. runtimes: name to program; the first is the default. reserved: ranges that no Docker network may get.
        configuration: what daemon.json says. registry_namespace: the network namespace to reach registries from.
        Raises ConfigurationError where the settings cannot be used on this machine."""
        self.layout, self.node_layout = layout, node_layout
        data, run = node_layout.engine_data, node_layout.engine_run
        for folder in (data, run):
            folder.mkdir(parents=True, exist_ok=True)
        self.data, self.run = data, run
        self.events = Events()
        configuration = self.configuration = configuration or Configuration()
        self.owners: Owners | None = None
        own = data
        mappings = remapping.resolve(configuration.userns_remap)
        if mappings is not None:
            self.owners, own = remapping.prepare(mappings, data, run)
        self.docker_data = own
        self.runtime_scripts = own / "runtimes"
        self._stock_runtimes = runtimes or {"runc": "runc"}
        programs = {**self._stock_runtimes, **named_runtimes.programs(configuration.runtimes, self.runtime_scripts)}
        # The namespace is held open: its path names a process, which may end before this one.
        namespace = os.open(registry_namespace, os.O_RDONLY | os.O_CLOEXEC) if registry_namespace else None
        self._registry_namespace = namespace
        suffix = "".join(c if c.isalnum() else "_" for c in node) or "engine"
        self.runtime = Runtime(
            run, cgroup_parent=node_layout.cgroup, runtimes=programs, launcher=configuration.launcher
        )
        self.images = ImageStore(
            layout.images,
            state=data / "overlay2",
            owner=node,
            users=self._image_users,
            registries=lambda: self.configuration.registries(namespace),
            on_event=self._image_event,
        )
        self.volumes = VolumeService(own / "volumes", self.events.emit, owners=self.owners)
        self.networks = NetworkService(
            data / "networks",
            run / "netns",
            self.events.emit,
            bridge=bridge,
            reserved=reserved,
            name=f"docker_{suffix}_{node_layout.mark}",
            configuration=configuration,
        )
        self.networks.nameservers = configuration.dns
        self.containers = ContainerService(
            own,
            runtime=self.runtime,
            images=self.images,
            networks=self.networks,
            volumes=self.volumes,
            events=self.events,
            state=data / "overlay2",
            cgroup_parent=f"{node_layout.cgroup}/docker",
            configuration=configuration,
            owners=self.owners,
            namespaces=run / "userns",
        )
        set_debug(configuration.debug)
        self.docker: DockerAPI | None = None
        self.cri: Any = None
        #: What parts of the engine do at its end, before what they stand on is closed.
        self.closing: list[Callable[[], Awaitable[None]]] = []

    @property
    def id(self) -> str:
        from longshore.engine.dockerapi.system import engine_id

        return engine_id(self.docker_data)

    def configure(self, configuration: Configuration, programs: Mapping[str, str]) -> None:
        """Take over settings that may change while the engine runs. programs: of the runtimes that they name."""
        self.configuration = self.containers.configuration = configuration
        self.runtime.runtimes = {**self._stock_runtimes, **programs}
        self.images.forget_registries()
        set_debug(configuration.debug)

    def _image_users(self) -> list[ImageUser]:
        users = list(self.containers.image_users())
        if self.cri is not None:
            users += self.cri.image_users()
        return users

    def _image_event(self, action: str, image: str, name: str) -> None:
        attributes = {"name": name}
        found = self.images.get(image)
        if action in ("pull", "push"):
            # What goes between here and a registry is told of by its name there.
            image, attributes = name, {"name": references.parse(name).familiar_name}
        if found is not None:
            attributes = {**found.labels, **attributes}
        self.events.emit("image", action, image, attributes)

    async def start(
        self,
        *,
        docker_socket: Path | None,
        cri_socket: Path | None,
        gateway: str = "pods0",
        mtu: int = 0,
        cluster_cidrs: Sequence[str] = (PODS, SERVICES),
        cni_folder: Path | None = None,
        docker_hosts: Sequence[str] = (),
        docker_tls: TLSFiles | None = None,
        docker_group: str = "docker",
    ) -> None:
        """Take over what an earlier engine left, then serve. Raises OSError when a socket cannot be made, ValueError for
        an address or TLS file that cannot be used."""
        await self.runtime.recover()
        if docker_socket is not None:
            await asyncio.to_thread(self.networks.start)
            self.networks.watch()
            self._resolvers()
            await self.containers.start()
            self.docker = DockerAPI(
                folder=self.docker_data,
                containers=self.containers,
                images=self.images,
                networks=self.networks,
                volumes=self.volumes,
                events=self.events,
            )
            self._builder(self.docker)
            await self.docker.listen(docker_socket, docker_group)
            for host in docker_hosts:
                await self.docker.listen_host(host, docker_tls, docker_group)
        if cri_socket is not None:
            from longshore.engine.cri import cni
            from longshore.engine.cri.server import CriServer

            self.cri = CriServer(
                runtime=self.runtime,
                images=self.images,
                data=self.data / "cri",
                run=self.run / "cri",
                gateway=gateway,
                mtu=mtu,
                cluster_cidrs=cluster_cidrs,
                cni_folder=cni_folder or cni.CONFIG_FOLDER,
            )
            await self.cri.start(cri_socket)

    def _resolvers(self) -> None:
        from longshore.engine.networks.resolver import Resolvers

        self.networks.resolvers = Resolvers(self.networks)

    def _builder(self, docker: DockerAPI) -> None:
        """Give the Docker API its builder."""
        from longshore.engine.build.api import make

        docker.build = make(self)

    async def close(self) -> None:
        """Stop serving; containers and pods go on."""
        for part in (self.docker, self.cri):
            if part is not None:
                with contextlib.suppress(Exception):
                    await part.close()
        for close in self.closing:
            await close()
        await self.containers.close()
        self.runtime.close()
        if self.docker is not None:
            self.networks.close()
        self.images.close()
        if self._registry_namespace is not None:
            os.close(self._registry_namespace)
            self._registry_namespace = None
        # Groups that hold containers are busy and stay.
        await asyncio.to_thread(cgroups.remove_empty, self.containers.cgroup_parent)


def set_debug(wanted: bool) -> None:
    """What dockerd's debug does: more is told in the log."""
    logging.getLogger("longshore.engine").setLevel(logging.DEBUG if wanted else logging.NOTSET)


async def serve(
    *,
    layout: Layout,
    node_layout: NodeLayout,
    docker_socket: Path | None = None,
    cri_socket: Path | None = None,
    node: str = "",
    bridge: str = "",
    gateway: str = "pods0",
    mtu: int = 0,
    cluster_cidrs: Sequence[str] = (PODS, SERVICES),
    cni_folder: Path | None = None,
    runtimes: dict[str, str] | None = None,
    configuration: Configuration | None = None,
    registry_namespace: Path | None = None,
    reread: Callable[[], Mapping[str, Any]] | None = None,
    beside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    ready: Callable[[Engine], None] | None = None,
    docker_hosts: Sequence[str] = (),
    docker_tls: TLSFiles | None = None,
    docker_group: str = "docker",
) -> None:
    """Run an engine until cancelled.

    docker_socket, cri_socket: unix sockets to serve the Docker Engine API and CRI v1 on; None: not at all. node: the
    engine's name among those that share the machine's image store. bridge: interface of Docker's default network, "": see
    NetworkService. gateway, mtu, cluster_cidrs, cni_folder: the pod network, see engine.cri.CriServer. beside: further servers to run in
    this process (the registry). docker_hosts, docker_tls: further addresses of the Docker Engine API in dockerd's form,
    and the files for TLS on those over TCP. configuration, registry_namespace: see Engine. docker_group: the group that owns the docker socket. reread: gives what daemon.json says now, see reloading. ready: called when everything listens. Raises OSError when a socket cannot be made.
    """
    engine = Engine(
        layout=layout, node_layout=node_layout, node=node, bridge=bridge, runtimes=runtimes,
        reserved=cluster_cidrs, configuration=configuration, registry_namespace=registry_namespace,
    )  # fmt: skip
    tasks: list[asyncio.Task[None]] = []
    try:
        await engine.start(
            docker_socket=docker_socket,
            cri_socket=cri_socket,
            gateway=gateway,
            mtu=mtu,
            cluster_cidrs=cluster_cidrs,
            cni_folder=cni_folder,
            docker_hosts=docker_hosts,
            docker_tls=docker_tls,
            docker_group=docker_group,
        )
        tasks = [asyncio.create_task(make()) for make in beside]
        gc.collect()
        gc.freeze()
        if reread is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloading.reload, engine, reread)
        if ready is not None:
            ready(engine)
        log.info("engine is ready")
        if tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        await asyncio.Event().wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.close()


async def tear_down(
    *,
    layout: Layout,
    node_layout: NodeLayout,
    node: str = "",
    network: bool = True,
    cluster_cidrs: Sequence[str] = (PODS, SERVICES),
) -> None:
    """End every process of a stopped engine and take away what it made on the machine; its records and images stay.

    network: also interfaces, rules and routes (False where they go with the node's network namespace).
    """
    if not node_layout.engine_run.exists():
        return
    engine = Engine(layout=layout, node_layout=node_layout, node=node, reserved=cluster_cidrs)
    try:
        await engine.runtime.recover()
        ids = engine.runtime.ids()
        await asyncio.gather(*(engine.runtime.delete(id, force=True) for id in ids), return_exceptions=True)
        await asyncio.to_thread(remapping.release, engine.run)
        if network:
            from longshore.engine.cri.server import CriServer

            cri = CriServer(
                runtime=engine.runtime, images=engine.images, data=engine.data / "cri", run=engine.run / "cri"
            )
            await cri.sandboxes.recover()
            await cri.containers.recover()
            await cri.purge()
            await asyncio.to_thread(engine.networks.start)
            await asyncio.to_thread(engine.networks.remove_everything)
    finally:
        await engine.close()
