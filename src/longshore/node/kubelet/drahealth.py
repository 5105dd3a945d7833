"""Health of DRA devices, as their drivers stream it.

Source: k8s.io/kubelet/pkg/apis/dra-health/v1alpha1, kubernetes pkg/kubelet/cm/dra/healthinfo.go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from longshore.machinery.grpc import Client, RpcError, Status
from longshore.wire.protobuf import Schema

log = logging.getLogger("longshore.kubelet.dra")
HEALTH = """
service DRAResourceHealth: NodeWatchResources(NodeWatchResourcesRequest)~NodeWatchResourcesResponse
enum HealthStatus: UNKNOWN HEALTHY UNHEALTHY
NodeWatchResourcesRequest:
NodeWatchResourcesResponse: 1 devices *DeviceHealth
DeviceHealth: 1 device DeviceIdentifier, 2 health HealthStatus, 3 last_updated_time int64,
 4 health_check_timeout_seconds int64, 5 message string
DeviceIdentifier: 1 pool_name string, 2 device_name string
"""
#: How long a device is believed, where its driver does not say; the pause before a stream that broke off is opened anew.
TIMEOUT, RETRY = 30.0, 5.0
MESSAGE_LIMIT = 1024
_WORDS = {0: "Unknown", 1: "Healthy", 2: "Unhealthy"}
UNKNOWN = _WORDS[0]
Device = tuple[str, str]


@cache
def schema() -> Schema:
    """The protocol's messages, made at first use."""
    return Schema("v1alpha1", HEALTH)


@dataclass(frozen=True, slots=True)
class Health:
    """state: Healthy, Unhealthy or Unknown. until: when it is no longer believed (time.monotonic)."""

    state: str
    message: str
    timeout: float
    until: float

    def says(self, other: Health | None) -> bool:
        """Whether it tells the same as another."""
        return other is not None and (self.state, self.message) == (other.state, other.message)


def _shown(message: str) -> str:
    return message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 3] + "..."


class DeviceHealths:
    """What is known of drivers' devices now."""

    def __init__(self, changed: Callable[[str, set[Device]], None]) -> None:
        """changed(driver, devices (pool, name)): they are as they were not before."""
        self._changed = changed
        self._known: dict[str, dict[Device, Health]] = {}
        self._watches: dict[tuple[str, Path], asyncio.Task[None]] = {}
        self._expiry: dict[str, asyncio.TimerHandle] = {}

    def of(self, driver: str, pool: str, device: str) -> tuple[str, str]:
        """(state, message) of a device."""
        found = self._known.get(driver, {}).get((pool, device))
        if found is None or found.until < time.monotonic():
            return UNKNOWN, ""
        return found.state, found.message

    def follow(self, driver: str, endpoint: Path) -> None:
        """A driver's instance has come."""
        self.leave(driver, endpoint)
        self._watches[driver, endpoint] = asyncio.create_task(self._watch(driver, endpoint), name=f"health {driver}")

    def leave(self, driver: str, endpoint: Path) -> None:
        """A driver's instance has gone."""
        task = self._watches.pop((driver, endpoint), None)
        if task is not None:
            task.cancel()
            self._clear(driver)

    def close(self) -> None:
        for driver, endpoint in list(self._watches):
            self.leave(driver, endpoint)

    async def _watch(self, driver: str, endpoint: Path) -> None:
        while True:
            client = Client(schema().DRAResourceHealth, path=endpoint)
            try:
                async for answer in client.stream("NodeWatchResources"):
                    self._take(driver, answer.devices)
            except RpcError as error:
                if error.status is Status.UNIMPLEMENTED:
                    return  # this driver tells nothing of health
                log.info("health of the devices of %s: %s", driver, error.message)
            finally:
                client.close()
            self._clear(driver)
            await asyncio.sleep(RETRY)

    def _take(self, driver: str, devices: Any) -> None:
        now, known = time.monotonic(), self._known.setdefault(driver, {})
        changed = set()
        for one in devices:
            key = (one.device.pool_name, one.device.device_name)
            timeout = float(one.health_check_timeout_seconds) if one.health_check_timeout_seconds > 0 else TIMEOUT
            fresh = Health(_WORDS.get(one.health, UNKNOWN), _shown(one.message), timeout, now + timeout)
            if not fresh.says(known.get(key)):
                changed.add(key)
            known[key] = fresh
        self._expire(driver, changed)

    def _expire(self, driver: str, changed: set[Device]) -> None:
        """Tell what has changed, with what is no longer believed; and again when the next one no longer is."""
        now, known = time.monotonic(), self._known.get(driver, {})
        for key, health in list(known.items()):
            if health.until <= now:
                del known[key]
                if health.state != UNKNOWN:
                    changed.add(key)
        if changed:
            self._changed(driver, changed)
        timer = self._expiry.pop(driver, None)
        if timer is not None:
            timer.cancel()
        if known:
            wait = min(health.until for health in known.values()) - now + 0.01
            self._expiry[driver] = asyncio.get_running_loop().call_later(wait, self._expire, driver, set())

    def _clear(self, driver: str) -> None:
        timer = self._expiry.pop(driver, None)
        if timer is not None:
            timer.cancel()
        known = self._known.pop(driver, {})
        if known:
            self._changed(driver, set(known))
