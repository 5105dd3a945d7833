"""Health checks of running containers. Source: Docker documentation, HEALTHCHECK; dockerd's defaults."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import EngineError

from . import execs
from .model import Container, format_time

if TYPE_CHECKING:
    from .service import ContainerService

Json = dict[str, Any]

_INTERVAL, _TIMEOUT, _RETRIES, _START_INTERVAL = 30.0, 30.0, 3, 5.0
_OUTPUT, _KEPT = 4096, 5


def _test(container: Container) -> list[str] | None:
    """The command of a container's check; None: it has none."""
    check = container.config.get("Healthcheck") or {}
    test = check.get("Test") or []
    if not test or test[0] == "NONE":
        return None
    if test[0] == "CMD":
        return list(test[1:]) or None
    if test[0] == "CMD-SHELL":
        shell = container.config.get("Shell") or ["/bin/sh", "-c"]
        return [*shell, *test[1:]]
    return None


def prepare(container: Container) -> None:
    """Set the state of a container that is about to start."""
    if _test(container) is not None:
        container.state.health = {"Status": "starting", "FailingStreak": 0, "Log": []}
    else:
        container.state.health = None


def start(service: ContainerService, container: Container) -> None:
    """Begin to check, if there is a check."""
    command = _test(container)
    if command is None or container.health_task is not None:
        return
    if container.state.health is None:
        prepare(container)
    container.health_task = asyncio.get_running_loop().create_task(_watch(service, container, command))


def stop(container: Container) -> None:
    if container.health_task is not None:
        container.health_task.cancel()
        container.health_task = None


def _seconds(check: Json, name: str, default: float) -> float:
    return (check.get(name) or 0) / 1e9 or default


async def _watch(service: ContainerService, container: Container, command: list[str]) -> None:
    check = container.config["Healthcheck"]
    interval = _seconds(check, "Interval", _INTERVAL)
    timeout = _seconds(check, "Timeout", _TIMEOUT)
    start_period = _seconds(check, "StartPeriod", 0.0)
    start_interval = _seconds(check, "StartInterval", _START_INTERVAL)
    retries = check.get("Retries") or _RETRIES
    began = time.monotonic()
    while True:
        health = container.state.health
        if health is None:
            return
        starting = health["Status"] == "starting" and time.monotonic() - began < start_period
        await asyncio.sleep(min(start_interval, interval) if starting and start_period else interval)
        result = await _probe(service, container, command, timeout)
        if not container.state.running:
            return
        health["Log"] = [*health["Log"], result][-_KEPT:]
        before = health["Status"]
        if result["ExitCode"] == 0:
            health["FailingStreak"] = 0
            health["Status"] = "healthy"
        else:
            in_start = health["Status"] == "starting" and time.monotonic() - began < start_period
            if not in_start:
                health["FailingStreak"] += 1
                if health["FailingStreak"] >= retries:
                    health["Status"] = "unhealthy"
        if health["Status"] != before:
            container.save()
            service.event(container, f"health_status: {health['Status']}")


async def _probe(service: ContainerService, container: Container, command: list[str], timeout: float) -> Json:
    """Run the check once; its result as the API shows it."""
    began = time.time_ns()
    settings: Json = {"Cmd": command, "AttachStdout": True, "AttachStderr": True, "User": container.config["User"]}
    entry = execs.Exec(container, command, settings)
    container.execs[entry.id] = entry
    execs.announce(service, entry, "exec_create")
    output = b""
    code = -1
    text = ""
    try:
        io = await execs.start(service, entry, attach=True, console=None)
        session = entry.session
        assert io is not None and session is not None
        try:
            async with asyncio.timeout(timeout):
                while (piece := await io.read()) is not None:
                    if len(output) < _OUTPUT:
                        output += piece[1]
                code = await session.wait()
        except TimeoutError:
            session.kill()
            text = f"Health check exceeded timeout ({_duration(timeout)})"
            if output:
                text += ": " + output[:_OUTPUT].decode(errors="replace")
        finally:
            io.close()
            if entry.running:
                with contextlib.suppress(Exception):
                    session.kill()
    except EngineError as error:
        text = error.message
        code = entry.exit_code if entry.exit_code is not None else -1
    container.execs.pop(entry.id, None)
    shown = text or (output[:_OUTPUT] + (b"..." if len(output) > _OUTPUT else b"")).decode(errors="replace")
    return {"Start": format_time(began), "End": format_time(time.time_ns()), "ExitCode": code, "Output": shown}


def _duration(seconds: float) -> str:
    """As Go prints a duration."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
