"""The runtime with conmon and runc: streams, ends, execs, recovery."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.support.oci import drain, spec

from longshore.engine.runtime import cgroups
from longshore.engine.runtime import spec as oci
from longshore.engine.runtime.runtime import NoSuchContainer, NotRunning, Runtime, RuntimeFailed
from longshore.machinery import netns

pytestmark = pytest.mark.root


async def test_streams_exit_code_and_log(runtime: Runtime, root: Path, tmp_path: Path, parent: str) -> None:
    await runtime.create(
        "one",
        spec(root, "sh", "-c", "cat; echo err >&2; exit 3"),
        log_path=tmp_path / "log",
        stdin=True,
        stdin_once=True,
    )
    assert runtime.state("one").status == "created"
    io = runtime.attach("one")
    await runtime.start("one")
    await io.write(b"fed\n")
    io.close_input()
    assert await drain(io) == {1: b"fed\n", 2: b"err\n"}
    assert (await runtime.wait("one")).code == 3
    records = [line.split(" ", 3)[1:] for line in (tmp_path / "log").read_text().splitlines()]
    assert records == [["stdout", "F", "fed"], ["stderr", "F", "err"]]
    await runtime.delete("one")
    with pytest.raises(NoSuchContainer):
        runtime.state("one")
    assert not cgroups.folders(f"{parent}/one")


async def test_failures_leave_nothing(runtime: Runtime, root: Path, tmp_path: Path, parent: str) -> None:
    with pytest.raises(RuntimeFailed, match="executable file not found"):
        await runtime.create("bad", spec(root, "nosuch"))
    assert runtime.ids() == [] and list((tmp_path / "run" / "containers").iterdir()) == []
    assert not cgroups.folders(f"{parent}/bad")


async def test_exec_signals_pause_and_figures(runtime: Runtime, root: Path) -> None:
    ends: list[int] = []
    runtime.on_exit(lambda _, status: ends.append(status.code))
    await runtime.create("two", spec(root, "sleep", "1000"))
    await runtime.start("two")
    process = {"args": ["sh", "-c", "echo in; exit 4"], "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
    session = await runtime.exec("two", process, exec_id="e1")
    assert session.io is not None and (await drain(session.io))[1] == b"in\n" and await session.wait() == 4
    detached = await runtime.exec("two", process, exec_id="e2", attach=False)
    assert await detached.wait() == 4
    with pytest.raises(RuntimeFailed, match="executable file not found"):
        await runtime.exec("two", {**process, "args": ["nosuch"]}, exec_id="e3")
    assert runtime.stats("two").memory_usage > 0 and len(runtime.processes("two")) == 1
    await runtime.pause("two")
    assert runtime.state("two").status == "paused"
    runtime.kill("two", signal.SIGKILL)
    assert (await asyncio.wait_for(runtime.wait("two"), 10)).code == 137
    assert ends == [137]
    with pytest.raises(NotRunning):
        runtime.kill("two")


async def test_a_terminal(runtime: Runtime, root: Path) -> None:
    await runtime.create("tty", spec(root, "sh", "-c", "read x; stty size; echo got $x"), terminal=True, stdin=True)
    io = runtime.attach("tty")
    await runtime.start("tty")
    runtime.resize("tty", 33, 77)
    await asyncio.sleep(0.1)
    await io.write(b"hello\n")
    assert (await drain(io))[1].split(b"\r\n") == [b"hello", b"33 77", b"got hello", b""]


async def test_a_new_runtime_takes_over(runtime: Runtime, root: Path, tmp_path: Path, parent: str) -> None:
    await runtime.create("runs", spec(root, "sleep", "1000"), log_path=tmp_path / "l1", labels={"a": "b"})
    await runtime.create("ends", spec(root, "sh", "-c", "exit 5"), log_path=tmp_path / "l2")
    await runtime.create("waits", spec(root, "sh", "-c", "exit 6"))
    await runtime.start("runs")
    pid = runtime.state("runs").pid
    runtime.close()
    other = Runtime(tmp_path / "run", cgroup_parent=parent)
    # A creation that was cut short: its folder has no record.
    (tmp_path / "run" / "containers" / "half").mkdir()
    assert sorted(await other.recover()) == ["ends", "runs", "waits"]
    state = other.state("runs")
    assert (state.status, state.pid, state.labels) == ("running", pid, {"a": "b"})
    assert other.state("ends").status == "created"
    await other.start("ends")
    assert (await other.wait("ends")).code == 5
    other.kill("runs")
    assert (await other.wait("runs")).code == 137
    for id in other.ids():
        await other.delete(id, force=True)
    other.close()


async def test_a_killed_monitor_ends_its_container(runtime: Runtime, root: Path) -> None:
    await runtime.create("lost", spec(root, "sleep", "1000"))
    await runtime.start("lost")
    monitor = int(Path(f"/proc/{runtime.state('lost').pid}/status").read_text().split("PPid:")[1].split()[0])
    assert Path(f"/proc/{monitor}/comm").read_text().strip() == "conmon"
    os.kill(monitor, signal.SIGKILL)
    assert (await asyncio.wait_for(runtime.wait("lost"), 10)).code == 137


async def test_a_network_namespace_is_joined(runtime: Runtime, root: Path, tmp_path: Path) -> None:
    space = tmp_path / "net"
    netns.create(space)
    try:
        chosen = spec(root, "readlink", "/proc/self/ns/net")
        oci.set_namespace(chosen, "network", space)
        await runtime.create("net", chosen)
        io = runtime.attach("net")
        await runtime.start("net")
        assert (await drain(io))[1].decode().strip() == f"net:[{os.stat(space).st_ino}]"
    finally:
        netns.delete(space)
    assert not space.exists()
