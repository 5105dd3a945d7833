"""What a container gives back when it has ended, and when it is removed.

A part of Lifecycle, kept apart for its size; the container's lock is held by who calls.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from longshore.engine import durable
from longshore.engine.networks import model as network_model
from longshore.engine.networks.service import remove_sandbox
from longshore.engine.runtime.runtime import NoSuchContainer, RuntimeFailed
from longshore.machinery import mounts

from . import namespaces
from .model import Container
from .preparation import Preparation

if TYPE_CHECKING:
    from .service import ContainerService


class Cleaning(Preparation):
    """Addresses, namespace, mounts and files of a container, given back."""

    def __init__(self, service: ContainerService) -> None:
        super().__init__(service)
        self._runtime = service.runtime

    async def _undo(self, container: Container, sandbox: Path | None, created: bool) -> None:
        container.state.running = False
        if container.forwarder is not None:
            container.forwarder.close()
            container.forwarder = None
        if created:
            with contextlib.suppress(Exception):
                await self._runtime.delete(container.id, force=True)
        await self._clean(container)

    async def _delete_from_runtime(self, container: Container) -> None:
        with contextlib.suppress(NoSuchContainer, RuntimeFailed):
            await self._runtime.delete(container.id)

    async def _clean(self, container: Container) -> None:
        """Give back addresses, namespace, volumes and root. Safe to repeat."""
        service = self._service
        sandbox = service.networks.sandbox_path(container.sandbox_id) if container.sandbox_id else None
        if service.networks.resolvers is not None:
            service.networks.resolvers.stop(container.id)
        for name, settings in container.networks.items():
            network = service.networks.find(name)
            if network is not None and settings["EndpointID"]:
                endpoint = service.networks.connected(network, container)
                if endpoint is not None:
                    service.networks.release(endpoint)
                    service.networks.announce("disconnect", network, container.id)
            network_model.clear(settings)
        container.sandbox_id = ""
        container.ports = {}
        for point in container.mounts:
            if point["Type"] == "volume" and service.volumes.mounted(point["Name"], container.id):
                service.volume_event(container, "unmount", point)
        await service.in_thread(self._clean_mounts, container, sandbox)

    def _clean_mounts(self, container: Container, sandbox: Path | None) -> None:
        service = self._service
        if sandbox is not None:
            remove_sandbox(sandbox)
        if service.owners is not None:
            namespaces.release(service.namespaces / container.id)
        service.roots.unmount(container)
        for point in container.mounts:
            if point["Type"] == "volume":
                service.volumes.unmount(point["Name"], container.id)
            elif point["Type"] == "image":
                service.unmount_image(container, point)
        shm = container.folder / "shm"
        if shm.exists():
            with contextlib.suppress(OSError):
                mounts.unmount(shm)

    def _remove_files(self, container: Container) -> None:
        self._clean_mounts(container, None)
        self._service.roots.release(container)
        for point in container.mounts:
            if point["Type"] == "image":
                self._service.release_image_mount(container, point)
        # Nothing may be mounted in a folder that is removed with all that is in it.
        mounts.unmount_below(container.folder)
        if not container.host["AutoRemove"]:
            durable.remove(container.folder / "container.json")
        shutil.rmtree(container.folder, ignore_errors=True)
