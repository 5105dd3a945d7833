"""`ContainerService`: the door of this room. It holds the containers and what their lives need of the other rooms."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from longshore.engine.configuration import Configuration
from longshore.engine.errors import Conflict, EngineError, InvalidParameter, SystemFailure
from longshore.engine.images import platforms
from longshore.engine.networks.model import Endpoint, Network
from longshore.engine.networks.service import NetworkService
from longshore.engine.networks.validation import check_endpoint
from longshore.engine.runtime.runtime import NotRunning, RuntimeFailed
from longshore.engine.volumes.service import VolumeService

from . import create, execs, lifecycle, links, ocispec, preparation, validate
from .events import Events
from .model import HOST_FIELDS, Container, endpoint, normalized
from .rootfs import Roots
from .store import ContainerStore

if TYPE_CHECKING:
    from longshore.engine.images.model import Image
    from longshore.engine.images.store import ImageStore, ImageUser
    from longshore.engine.runtime.attachment import Attachment
    from longshore.engine.runtime.runtime import Runtime
    from longshore.machinery.users import Owners

log = logging.getLogger("longshore.engine.containers")
Json = dict[str, Any]
T = TypeVar("T")


class ContainerService:
    """Docker's containers. Construct it, then `await start()`.

    data: folder for records and logs. state: the image store's folder for roots. cgroup_parent: of containers that name none.
    configuration: what daemon.json says. owners: whose ids containers have (userns-remap), None: the host's.
    namespaces: the folder where their user namespaces are pinned while they are made.
    """

    def __init__(
        self,
        data: Path,
        *,
        runtime: Runtime,
        images: ImageStore,
        networks: NetworkService,
        volumes: VolumeService,
        events: Events,
        state: Path,
        cgroup_parent: str = "/longshore",
        configuration: Configuration | None = None,
        owners: Owners | None = None,
        namespaces: Path | None = None,
    ) -> None:
        self.runtime, self.images, self.networks, self.volumes, self.events = runtime, images, networks, volumes, events
        self.store = ContainerStore(data / "containers")
        self.owners, self.namespaces = owners, namespaces or data / "userns"
        self.roots = Roots(images, state, owners)
        self.configuration = configuration or Configuration()
        self.cgroup_parent = self.configuration.cgroup_parent or cgroup_parent
        self.seccomp = self.configuration.seccomp()
        self.init_program = next(
            (
                p
                for p in (
                    self.configuration.init_program,
                    "/usr/bin/docker-init",
                    "/usr/bin/tini-static",
                    "/usr/bin/tini",
                    "/usr/bin/catatonit",
                )
                if os.path.exists(p)
            ),
            "",
        )
        self.execs: dict[str, execs.Exec] = {}
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="containers")
        self._tasks: set[asyncio.Task[Any]] = set()
        self.lifecycle = lifecycle.Lifecycle(self)

    async def start(self) -> None:
        """Read the containers back and take over those that run."""
        await self.in_thread(preparation.unpin_all, self.store.root)
        await self.in_thread(self.store.load)
        await self.lifecycle.recover()

    @property
    def runtimes(self) -> Mapping[str, str]:
        """Name to program of the runtimes that containers may ask for."""
        known = self.runtime.runtimes
        return {**known, "io.containerd.runc.v2": known[self.runtime.default_runtime]}

    async def close(self) -> None:
        """The engine ends; containers go on, unless the settings say otherwise."""
        if not self.configuration.live_restore:
            await self.lifecycle.shut_down(self.configuration.shutdown_timeout)
        await self.lifecycle.close()
        for task in list(self._tasks):
            task.cancel()
        self._pool.shutdown(wait=False)

    # ------------------------------------------------------------------ helpers of the other modules

    def in_thread(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Run blocking work in a thread of this service."""
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def keep(self, container: Container) -> None:
        """Make a change of a container survive a lost power supply, before it is acknowledged.

        What --rm removes would be removed after that anyway, and waits for no disk.
        """
        if not container.host["AutoRemove"] and not container.removed:
            await self.in_thread(container.keep)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a task in the background."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background task failed", exc_info=task.exception())

    def event(self, container: Container, action: str, more: Mapping[str, str] | None = None) -> None:
        """Tell of something that happened to a container."""
        attributes = {
            **(container.config["Labels"] or {}),
            "image": container.config["Image"],
            "name": container.name.lstrip("/"),
        }
        attributes.update(more or {})
        self.events.emit("container", action, container.id, attributes)

    def volume_event(self, container: Container, action: str, point: Json) -> None:
        """Tell that a container has got a volume's content ("mount"), or has it no more ("unmount")."""
        attributes = {"driver": point["Driver"], "container": container.id}
        if action == "mount":
            attributes["destination"] = point["Destination"]
            attributes["read/write"] = str(point["RW"]).lower()
            attributes["propagation"] = point["Propagation"]
        self.events.emit("volume", action, point["Name"], attributes)

    def image_users(self) -> list[ImageUser]:
        """Which images are in use, for the image store's conflicts."""
        from longshore.engine.images.store import ImageUser

        users = [ImageUser(c.id, c.image_id, c.state.running) for c in self.store]
        for container in self.store:
            for point in container.mounts:
                if point.get("_image"):
                    users.append(ImageUser(container.id, point["_image"], container.state.running))
        return users

    def find_image(self, reference: str, platform: str = "") -> Image:
        """The image of a new container. Raises NotFound, InvalidParameter."""
        return self.images.resolve(reference, platforms.parse(platform) if platform else "")

    def image_family(self, term: str) -> set[str]:
        """The ids of an image and of all images made from it; none when there is no such image."""
        try:
            first = self.images.find(term)
        except EngineError:
            return set()
        if first is None:
            return set()
        family, todo = {first.id}, [first.id]
        while todo:
            for child in self.images.children(todo.pop()):
                if child not in family:
                    family.add(child)
                    todo.append(child)
        return family

    def shown_image(self, container: Container) -> str:
        """The image's name in a list: as given, unless the name has moved to another image since."""
        name = str(container.config["Image"])
        if not name or not container.image_id:
            return name
        try:
            found = self.images.find(name)
        except EngineError:
            found = None
        return name if found is not None and found.id == container.image_id else container.image_id

    def host_gateways(self) -> list[str]:
        """The addresses under which containers reach the host: the default bridge's, unless daemon.json names others."""
        if self.configuration.host_addresses:
            return list(self.configuration.host_addresses)
        bridge = self.networks.find("bridge")
        return [str(gateway) for gateway in bridge.gateways if gateway is not None] if bridge else []

    def graph_driver(self, container: Container) -> Json:
        try:
            return self.roots.graph_driver(container)
        except EngineError:
            return {"Data": None, "Name": "overlay2"}

    # ------------------------------------------------------------------ image mounts

    def _image_mount_id(self, container: Container, point: Json) -> str:
        import hashlib

        return container.id[:40] + hashlib.sha256(point["Destination"].encode()).hexdigest()[:24]

    def prepare_image_mount(self, container: Container, point: Json) -> None:
        """Make the folders of an image that is mounted into a container. Raises NotFound."""
        image = self.images.resolve(point["Name"])
        root = self.images.prepare(self._image_mount_id(container, point), image)
        point["Source"], point["_image"] = str(root.merged), image.id

    def mount_image(self, container: Container, point: Json) -> Path:
        """Mount it read-only; returns the folder."""
        owners = self.roots.owners_of(container)
        return self.images.rootfs(self._image_mount_id(container, point)).mount(readonly=True, owners=owners)

    def unmount_image(self, container: Container, point: Json) -> None:
        with contextlib.suppress(Exception):
            self.images.rootfs(self._image_mount_id(container, point)).unmount()

    def release_image_mount(self, container: Container, point: Json) -> None:
        self.images.release(self._image_mount_id(container, point))

    # ------------------------------------------------------------------ what the API asks for

    async def create(
        self, body: Json, *, name: str = "", platform: str = "", version: tuple[int, int] = (1, 51)
    ) -> tuple[Container, list[str]]:
        """Make a container: see create.create."""
        return await create.create(self, body, name=name, platform=platform, version=version)

    def find(self, term: str) -> Container:
        """By id, name or an id's beginning. Raises NotFound, InvalidParameter."""
        return self.store.find(term)

    async def attachment(self, container: Container, *, stdin: bool) -> Attachment:
        """The stdio of a container: at once when it runs, else when it starts. Raises CancelledError when that fails."""
        if container.state.running and not container.state.restarting:
            try:
                return self.runtime.attach(container.id, stdin=stdin)
            except (NotRunning, KeyError):
                raise Conflict(f"container {container.id} is not running") from None
        future: asyncio.Future[Attachment] = WaitingAttach(stdin)
        container.pending_attach.append(future)
        try:
            return await future
        finally:
            with contextlib.suppress(ValueError):
                container.pending_attach.remove(future)

    async def unlink(self, name: str) -> None:
        """Take a link away by its name, "holder/alias"; its containers stay. Raises NotFound, SystemFailure."""
        self.find(name)
        holder, alias = links.find(self, name)
        holder.links.pop(alias, None)
        holder.save()
        links.forgotten(self, holder, alias)
        await self.keep(holder)

    async def wait(self, container: Container, condition: str) -> Json:
        """Wait for not-running, next-exit or removed; the API's answer."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Json] = loop.create_future()
        if condition == "removed":
            container.remove_waiters.append(future)
        elif condition == "next-exit" or container.state.running:
            container.exit_waiters.append(future)
        else:
            answer: Json = {"StatusCode": container.state.exit_code}
            if container.state.error:
                answer["Error"] = {"Message": container.state.error}
            return answer
        return await future

    def rename(self, container: Container, wanted: str) -> None:
        """Give a container another name. Raises InvalidParameter, Conflict."""
        if not wanted:
            raise InvalidParameter("Neither old nor new names may be empty")
        full = wanted if wanted.startswith("/") else "/" + wanted
        if full == container.name:
            raise InvalidParameter("Renaming a container with the same name as its current name")
        try:
            self.store.reserve(full, container.id)
        except EngineError as error:
            raise type(error)(f"Error when allocating new name: {error.message}") from None
        old, container.name = container.name, full
        self.store.free_name(old, container.id)
        for network_name, settings in container.networks.items():
            network = self.networks.find(network_name)
            if network is not None and settings.get("EndpointID"):
                held = self.networks.connected(network, container)
                if held is not None:
                    held.name = full.lstrip("/")
                settings["DNSNames"] = preparation.dns_names(container, settings)
                if held is not None and network.user_defined:
                    held.names = settings["DNSNames"]
        container.save()
        self.event(container, "rename", {"oldName": old})

    async def update(self, container: Container, body: Json, version: tuple[int, int] = (1, 51)) -> list[str]:
        """Change limits and the restart policy. Raises InvalidParameter, Conflict, SystemFailure."""
        given = normalized(body, HOST_FIELDS)
        validate.check_restart_policy(given["RestartPolicy"] or {})
        warnings = validate.check_resources(given, update=True)
        if container.state.removing:
            raise Conflict(
                f'Cannot update container {container.id}: Container is marked for removal and cannot be "update".'
            )
        host = dict(container.host)
        for field in (
            "CpuShares", "CpuPeriod", "CpuQuota", "CpuRealtimePeriod", "CpuRealtimeRuntime", "CpusetCpus", "CpusetMems",
            "Memory", "MemorySwap", "MemoryReservation", "NanoCpus", "BlkioWeight",
            "BlkioWeightDevice", "BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps",
        ):  # fmt: skip
            if given[field]:
                host[field] = given[field]
        prefix = f"Cannot update container {container.id}: "
        if given["NanoCpus"] and (container.host["CpuPeriod"] or container.host["CpuQuota"]):
            raise Conflict(
                prefix + "Conflicting options: Nano CPUs cannot be updated as CPU Period/Quota has already been set"
            )
        if (given["CpuPeriod"] or given["CpuQuota"]) and container.host["NanoCpus"]:
            what = "Period" if given["CpuPeriod"] else "Quota"
            raise Conflict(
                prefix + f"Conflicting options: CPU {what} cannot be updated as NanoCPUs has already been set"
            )
        if (
            given["Memory"]
            and not given["MemorySwap"]
            and container.host["MemorySwap"] > 0
            and given["Memory"] > container.host["MemorySwap"]
        ):
            raise Conflict(
                prefix
                + "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
            )
        if given["PidsLimit"] is not None and version >= (1, 40):
            host["PidsLimit"] = max(given["PidsLimit"], 0)
        policy = given["RestartPolicy"] or {}
        if policy.get("Name"):
            if container.host["AutoRemove"] and policy["Name"] != "no":
                raise Conflict(
                    prefix + "Restart policy cannot be updated because AutoRemove is enabled for the container"
                )
            host["RestartPolicy"] = {"Name": policy["Name"], "MaximumRetryCount": policy.get("MaximumRetryCount") or 0}
        if container.state.running and not container.state.restarting:
            changed = ocispec.resources(host)
            if changed and any(host[f] != container.host[f] for f in host if f not in ("RestartPolicy",)):
                try:
                    await self.runtime.update(container.id, changed)
                except (RuntimeFailed, NotRunning) as error:
                    raise SystemFailure(prefix + str(error)) from None
        container.host.clear()
        container.host.update(host)
        container.save()
        self.event(container, "update")
        return warnings

    def sizes(self, container: Container) -> tuple[int, int]:
        """(SizeRw, SizeRootFs) in bytes. Blocking."""
        try:
            written = self.images.usage(container.id)
        except (EngineError, OSError):
            return 0, 0
        image = self.images.get(container.image_id) if container.image_id else None
        return written, written + (image.size if image else 0)

    # ------------------------------------------------------------------ networks of a container

    async def connect(self, network: Network, container: Container, given: Json) -> None:
        """Put a container into a further network, live when it runs. Raises EngineError classes."""
        settings = endpoint(given)
        mac = settings["MacAddress"]
        check_endpoint(network, network.name, settings)
        mode = container.network_mode
        async with container.lock:
            if container.removed or container.state.removing or container.state.dead:
                raise Conflict(
                    f"Container {container.id} is marked for removal and cannot be connected to the network {network.name}"
                )
            if mode == "host" or mode.startswith("container:"):
                raise InvalidParameter(
                    "container sharing network namespace with another container or host cannot be connected to any other network"
                )
            if network.name in ("none",) or "none" in container.networks:
                raise InvalidParameter(
                    "container cannot be connected to multiple networks with one of the networks in private (none) mode"
                )
            if network.name == "host":
                raise InvalidParameter("container cannot be connected to host network")
            if mac:
                settings["_mac"] = mac
            if not container.state.running:
                settings["DNSNames"] = preparation.dns_names(container, settings) if network.user_defined else None
                container.networks[network.name] = settings
                container.save()
                return
            held = self.networks.allocate(network, container, settings, ipv6=preparation.has_ipv6(container))
            settings["DNSNames"] = preparation.dns_names(container, settings) if network.user_defined else None
            held.names = settings["DNSNames"] or []
            sandbox = self.networks.sandbox_path(container.sandbox_id)
            try:
                await self.in_thread(self.networks.join, sandbox, held)
            except BaseException as error:
                self.networks.release(held)
                if isinstance(error, OSError):
                    raise SystemFailure(f"failed to connect: {(error.strerror or str(error)).lower()}") from None
                raise
            container.networks[network.name] = settings
            try:
                await self._choose_gateways(container)
            except BaseException:
                del container.networks[network.name]
                await self.in_thread(self.networks.unplug, sandbox, held)
                self.networks.release(held)
                raise
            self._rewrite_hosts(container)
            if network.user_defined and self.networks.resolvers is not None:
                await self.networks.resolvers.serve(container, self.networks.sandbox_path(container.sandbox_id))
            container.save()
        self.networks.announce("connect", network, container.id)

    async def _choose_gateways(self, container: Container, leaving: Endpoint | None = None) -> None:
        """Set a running container's default routes anew; its published ports follow. leaving: an endpoint on its way out."""
        found = (self.networks.find(name) for name in container.networks)
        held = [self.networks.connected(network, container) for network in found if network is not None]
        endpoints = [endpoint for endpoint in held if endpoint is not None]
        gateways = preparation.choose_gateways(container, endpoints)
        await self.in_thread(self.networks.route, self.networks.sandbox_path(container.sandbox_id), gateways)
        target = gateways.get(4) or gateways.get(6)
        source = next((e for e in [*endpoints, *([leaving] if leaving else [])] if e.rules), None)
        if source is target:
            return
        if target is None:
            if source is not None:
                self.networks.publishing.withdraw(source)
                container.ports = {}
        elif source is not None:
            self.networks.publishing.move(source, target, container.ports)
        elif bindings := self.lifecycle.bindings(container):
            container.ports = self.networks.publishing.publish(target, bindings)

    def _rewrite_hosts(self, container: Container) -> None:
        """Put the addresses of all networks into /etc/hosts; the file stays the same, as it is mounted."""
        file = container.folder / "hosts"
        if not file.exists():
            return
        lines = file.read_text().splitlines()
        names = container.host_names
        kept = [line for line in lines if line.partition("\t")[2] != names]
        addresses = [s[kind] for s in container.networks.values() for kind in ("IPAddress", "GlobalIPv6Address")]
        own = [f"{address}\t{names}" for address in addresses if address]
        file.write_text("\n".join([*kept, *own]) + "\n")

    async def disconnect(self, network: Network, container: Container) -> None:
        """Take a container out of a network. Raises EngineError classes."""
        async with container.lock:
            if container.network_mode == "host" and network.name == "host":
                raise InvalidParameter(
                    "cannot disconnect container from host network - container was created in host network mode"
                )
            settings = container.networks.get(network.name)
            if settings is None:
                raise SystemFailure(f"container {container.id} is not connected to network {network.name}")
            del container.networks[network.name]
            if container.state.running and settings["EndpointID"]:
                held: Endpoint | None = self.networks.connected(network, container)
                if held is not None:
                    await self.in_thread(self.networks.unplug, self.networks.sandbox_path(container.sandbox_id), held)
                    await self._choose_gateways(container, leaving=held)
                    self.networks.release(held)
                self._rewrite_hosts(container)
            container.save()
        self.networks.announce("disconnect", network, container.id)

    # ------------------------------------------------------------------ prune

    async def prune(self, accept: Callable[[Container], bool]) -> tuple[list[str], int]:
        """Remove stopped containers; returns their ids and the bytes won back."""
        gone: list[str] = []
        space = 0
        for container in self.store.all():
            if container.state.running or container.state.removing or not accept(container):
                continue
            size = (await self.in_thread(self.sizes, container))[0]
            with contextlib.suppress(EngineError):
                await self.lifecycle.remove(container)
                gone.append(container.id)
                space += size
        return gone, space


class WaitingAttach(asyncio.Future["Attachment"]):
    """An attachment to a container that does not run yet."""

    def __init__(self, stdin: bool) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.wants_stdin = stdin
