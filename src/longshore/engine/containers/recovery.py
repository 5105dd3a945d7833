"""Containers after a restart of the engine: taken over, noted as ended, or started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from longshore.engine.networks.model import Endpoint

from . import health, links, logoptions
from .model import Container, format_time, now
from .preparation import choose_gateways

if TYPE_CHECKING:
    from .forwarding import Forwarder
    from .lifecycle import Lifecycle

log = logging.getLogger("longshore.engine.containers")

#: Seconds that a container waits for those that it needs, and the API for all. Source: moby daemon/daemon.go, restore.
_PATIENCE = 5


async def recover(lifecycle: Lifecycle) -> None:
    """Take over what runs, note what ended meanwhile, restart what its policy says."""
    service = lifecycle._service
    known = set(lifecycle._runtime.ids())
    restart: list[Container] = []
    for container in service.store:
        state = container.state
        for point in container.mounts:
            if point["Type"] == "volume" and service.volumes.exists(point["Name"]):
                service.volumes.use(point["Name"], container.id)
        held = lifecycle._runtime.state(container.id) if container.id in known else None
        runs = held is not None and held.status in ("running", "paused") and state.running
        if held is not None and runs and service.configuration.live_restore:
            _adopt(lifecycle, container, held.pid, held.status == "paused")
            continue
        if held is not None:
            if held.exit is not None and state.running:
                state.exit_code, state.oom_killed = held.exit.code, held.exit.oom_killed
                state.finished_at = format_time(int(held.exit.at * 1e9))
            with contextlib.suppress(Exception):
                await lifecycle._runtime.delete(container.id, force=True)
            if runs:
                # An engine that was killed could not end it (live-restore is off).
                state.exit_code, state.finished_at = 137, now()
        was_running = state.running
        if was_running and held is None and not state.restarting:
            # The machine was started anew: nobody saw how the container ended.
            state.exit_code, state.finished_at = 255, now()
        state.running = state.restarting = state.paused = state.removing = False
        state.pid = 0
        await lifecycle._clean(container)
        container.save()
        if container.host["LogConfig"]["Type"] in logoptions.REMOTE:
            _forward_rest(container)
        policy = container.host["RestartPolicy"]["Name"]
        if container.host["AutoRemove"] and (was_running or state.status == "exited"):
            await lifecycle.remove(container, force=True, volumes=True)
        elif policy == "always" or (policy == "unless-stopped" and not container.manually_stopped):
            if (
                was_running
                or (not container.manually_stopped and state.status == "exited")
                or (policy == "always" and state.status == "exited")
            ):
                restart.append(container)
        elif policy == "on-failure" and was_running and state.exit_code != 0:
            restart.append(container)
    for id in lifecycle._runtime.ids():
        if service.store.get(id) is None and lifecycle._runtime.state(id).labels.get("owner") == "docker":
            with contextlib.suppress(Exception):
                await lifecycle._runtime.delete(id, force=True)
    running = [container.sandbox_id for container in service.store if container.state.running and container.sandbox_id]
    await service.in_thread(service.networks.forget_sandboxes, running)
    service.networks.publishing.refresh()
    for container in service.store:
        if container.state.running:
            links.permit(service, container)
    starting: dict[str, asyncio.Event] = {container.id: asyncio.Event() for container in restart}
    for container in restart:
        lifecycle._spawn(_start_again(lifecycle, container, starting))
    # Who finds the engine there finds its containers there too, unless one takes long.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            for event in starting.values():
                await event.wait()


def _needed(container: Container) -> set[str]:
    """The ids of the containers that one links to, or whose namespaces it joins."""
    modes = (container.network_mode, container.host["IpcMode"], container.host["PidMode"])
    return {*container.links.values(), *(mode.partition(":")[2] for mode in modes if mode.startswith("container:"))}


async def _start_again(lifecycle: Lifecycle, container: Container, starting: dict[str, asyncio.Event]) -> None:
    """Start a container after those that it needs. starting: what is told when each was tried."""
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                for id in _needed(container) - {container.id}:
                    if id in starting:
                        await starting[id].wait()
        async with container.lock:
            if not container.state.running and not container.removed:
                await lifecycle._start(container)
    except Exception as error:
        log.warning("container %s could not be started again: %s", container.short, error)
    finally:
        starting[container.id].set()


def _forwarder(container: Container) -> Forwarder | None:
    """What sends an adopted container's log on; the receiver need not answer yet."""
    if container.host["LogConfig"]["Type"] not in logoptions.REMOTE:
        return None
    from . import forwarding

    try:
        return forwarding.make(container)
    except (ValueError, OSError) as error:
        log.warning("log lines of %s are not sent on: %s", container.short, error)
        return None


def _forward_rest(container: Container) -> None:
    """Send what an ended container's log holds beyond the checkpoint."""
    from . import forwarding

    if forwarding.behind(container):
        container.forwarder = _forwarder(container)
        if container.forwarder is not None:
            container.forwarder.start()
            container.forwarder.end()


def _adopt(lifecycle: Lifecycle, container: Container, pid: int, paused: bool) -> None:
    service = lifecycle._service
    container.ended = asyncio.get_running_loop().create_future()
    container.state.pid, container.state.paused = pid, paused
    container.state.restarting = False
    for point in container.mounts:
        if point["Type"] == "volume" and service.volumes.exists(point["Name"]):
            service.volumes.adopt(point["Name"], container.id)
    adopted: list[Endpoint] = []
    for name, settings in container.networks.items():
        network = service.networks.find(name)
        if network is not None and network.driver in ("bridge", "macvlan", "ipvlan"):
            endpoint = service.networks.adopt(network, container, settings)
            if endpoint is not None:
                adopted.append(endpoint)
    gateways = choose_gateways(container, adopted)
    published = gateways.get(4) or gateways.get(6) or next(iter(adopted), None)
    if published is not None and container.ports:
        service.networks.publishing.adopt(published, container.ports)
    if service.networks.resolvers is not None and container.sandbox_id:
        lifecycle._spawn(
            service.networks.resolvers.serve(container, service.networks.sandbox_path(container.sandbox_id))
        )
    container.forwarder = _forwarder(container)
    lifecycle.watch_memory(container)
    lifecycle._rotate_log(container)
    # What was found before says nothing of now, to dockerd: the first probe tells.
    health.prepare(container)
    if not paused:
        health.start(service, container)
