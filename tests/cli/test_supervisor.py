"""The supervisor: starts again what dies, one a folder, stops in order even where its folder has gone."""

import asyncio
import os
import shutil
import signal

import pytest

from longshore.cli.supervisor import AlreadyRunning, Part, Supervisor, recorded_parts, start_time
from longshore.machinery.paths import Layout


async def well() -> str:
    return "ok"


def part(name: str) -> Part:
    return Part(name, ["sleep", "1000"], well)


async def until(check, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.01)


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "d", tmp_path / "r")


async def test_what_dies_is_started_again_and_told(layout):
    supervisor = Supervisor(layout, [part("a"), part("b")])
    running = asyncio.create_task(supervisor.run())
    await until(lambda: all(p.process for p in supervisor.parts))
    first = supervisor.parts[0].process.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: supervisor.parts[0].process and supervisor.parts[0].process.pid != first)
    status = {p["name"]: p for p in (await supervisor.status())["parts"]}
    assert status["a"]["restarts"] == 1 and status["a"]["lastExit"] == -9 and status["b"]["restarts"] == 0
    assert sorted(recorded_parts(layout.run)) == sorted(p.process.pid for p in supervisor.parts)
    with pytest.raises(AlreadyRunning):
        Supervisor(layout, []).take_lock()
    pids = [p.process.pid for p in supervisor.parts]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [start_time(pid) for pid in pids] == [0, 0]


async def test_every_part_is_stopped_where_the_folder_has_gone(layout):
    supervisor = Supervisor(layout, [part("a"), part("b"), part("c")])
    running = asyncio.create_task(supervisor.run())
    await until(lambda: all(p.process for p in supervisor.parts))
    pids = [p.process.pid for p in supervisor.parts]
    shutil.rmtree(layout.run)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [start_time(pid) for pid in pids] == [0, 0, 0]
