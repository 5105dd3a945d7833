"""Sessions whose client goes away: the process loses its stdio, and nobody reads for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from longshore.machinery.http import Client
from longshore.machinery.streams import Options, remotecommand

from .conftest import Engine

pytestmark = pytest.mark.root


async def left(engine: Engine, container: str, word: str) -> bool:
    return word in await engine.sh(container, "ps")


async def until_gone(engine: Engine, container: str, word: str) -> None:
    async with asyncio.timeout(15):
        while await left(engine, container, word):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("tty", [False, True])
async def test_a_writer_whose_client_has_gone_ends(engine: Engine, tty: bool) -> None:
    """EPIPE without a terminal, SIGHUP with one; its monitor and its folder do not stay either."""
    pod = await engine.run_pod("streams")
    container = await engine.run(pod, "main", ["sleep", "1000"])
    asked: dict[str, Any] = {"stdin": tty, "stdout": True, "stderr": not tty, "tty": tty}
    command = ["sh", "-c", "while :; do echo 7654; sleep 0.02; done"]
    answer = await engine.call("Exec", container_id=container, cmd=command, **asked)
    async with Client() as client:
        session = await remotecommand.connect(client, answer.url, Options(**asked))
        assert session.stdout is not None and b"7654" in await session.stdout.read()
        assert await left(engine, container, "echo 7654")
        session.close()
        await until_gone(engine, container, "echo 7654")
    record = engine.runtime._running(container)
    async with asyncio.timeout(5):
        while record.execs:
            await asyncio.sleep(0.02)


async def test_a_silent_process_goes_on_without_its_client(engine: Engine) -> None:
    """What neither writes nor reads notices nothing, as on containerd, and ends with its container."""
    pod = await engine.run_pod("silent")
    container = await engine.run(pod, "main", ["sleep", "1000"])
    answer = await engine.call("Exec", container_id=container, cmd=["sleep", "4567"], stdout=True)
    async with Client() as client:
        session = await remotecommand.connect(client, answer.url, Options(False, True, False, False))
        async with asyncio.timeout(10):
            while not await left(engine, container, "4567"):
                await asyncio.sleep(0.02)
        session.close()
    record = engine.runtime._running(container)
    (session,) = (e for e in record.execs.values() if "4567" in cmdline(e.pid))
    async with asyncio.timeout(5):
        while session.io is not None and not session.io.closed:
            await asyncio.sleep(0.02)
    assert await left(engine, container, "4567")
    await engine.call("StopContainer", container_id=container, timeout=0)
    await engine.ended(container)
    assert await session.wait() == 137


def cmdline(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


async def test_the_end_of_a_session_gives_the_exit_code(engine: Engine) -> None:
    pod = await engine.run_pod("ends")
    container = await engine.run(pod, "main", ["sleep", "1000"])
    answer = await engine.call("Exec", container_id=container, cmd=["sh", "-c", "cat; exit 4"], stdin=True, stdout=True)
    async with Client() as client:
        session = await remotecommand.connect(client, answer.url, Options(True, True, False, False))
        assert session.stdin is not None and session.stdout is not None
        session.stdin.write(b"words")
        session.stdin.close()
        assert await session.stdout.read_all() == b"words"
        status = await session.status()
        assert status["details"]["causes"][0]["message"] == "4"
        session.close()
