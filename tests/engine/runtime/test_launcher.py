"""The launcher: execs without runc and conmon. What it does is compared with runc; what it must not do is tried."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import select
import signal
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.oci import drain, spec

from longshore.engine.runtime import capabilities
from longshore.engine.runtime import spec as oci
from longshore.engine.runtime.attachment import Attachment
from longshore.engine.runtime.launcher import filters, kernel
from longshore.engine.runtime.launcher.client import LaunchedExec, Launcher
from longshore.engine.runtime.records import MonitoredExec
from longshore.engine.runtime.runtime import Runtime, RuntimeFailed

pytestmark = pytest.mark.root

Json = dict[str, Any]
BASE: Json = {"args": ["true"], "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
USER = {"uid": 7, "gid": 8, "additionalGids": [8, 9]}


_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")


def granted(names: list[str], sets: tuple[str, ...] = _SETS[:3]) -> Json:
    return dict.fromkeys(sets, names)


def shell(text: str, **fields: Any) -> Json:
    return {**BASE, "args": ["sh", "-c", text], **fields}


async def started(runtime: Runtime, root: Path, id: str = "box", **process: Any) -> str:
    made = spec(root, "sleep", "1000")
    made["process"].update(process)
    await runtime.create(id, made)
    await runtime.start(id)
    return id


async def output(runtime: Runtime, id: str, process: Json, name: str = "x", **how: Any) -> tuple[int, bytes, bytes]:
    session = await runtime.exec(id, process, exec_id=name, **how)
    assert session.io is not None
    got = await drain(session.io)
    session.io.close()
    return await session.wait(), got[1], got[2]


# ------------------------------------------------------------------------------------------------ the same as runc

_STATUS = 'grep -E "^(Uid|Gid|Groups|Cap|NoNew|Seccomp:|Umask|SigBlk)" /proc/self/status; cat /proc/self/oom_score_adj'
_LIMITS = "for n in c n u; do ulimit -S$n; ulimit -H$n; done"
_SPACES = "for n in /proc/self/ns/*; do readlink $n; done; cat /proc/self/cgroup; pwd; readlink /proc/self/root"

CASES: dict[str, tuple[Json, bool]] = {
    "rights": (shell(_STATUS), False),
    "rights of a user": (shell(_STATUS, user={**USER, "umask": 0o77}), False),
    "ambient rights": (shell(_STATUS, user=USER, capabilities=granted(["CAP_CHOWN", "CAP_KILL"], _SETS)), False),
    "fewer rights": (shell(_STATUS, capabilities=granted(["CAP_CHOWN"]), noNewPrivileges=True), False),
    "limits": (shell(_LIMITS, rlimits=[{"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1}]), False),
    "a limit too high": (shell("", rlimits=[{"type": "RLIMIT_NPROC", "soft": 2**30, "hard": 2**30}]), False),
    "namespaces": (shell(_SPACES), False),
    "a terminal": (
        shell("tty; stty size; cut -d' ' -f4,7 /proc/$$/stat", consoleSize={"height": 9, "width": 33}),
        True,
    ),
    "environment": (shell("env", env=["PATH=/bin", "A=1", "B=2", "A=3"], user=USER), False),
    "a variable without a value": (shell("", env=["PATH=/bin", "A"]), False),
    "own output again": (shell("echo a > /dev/stdout; echo b > /dev/stderr", user=USER), False),
    "descriptors": (shell("for f in /proc/self/fd/*; do readlink $f | tr -d 0-9; done; kill -TERM $$"), False),
    "a missing folder": (shell("", cwd="/nosuch"), False),
    "a file for a folder": (shell("", cwd="/bin/busybox"), False),
    "a missing command": ({**BASE, "args": ["nosuch"]}, False),
    "a missing program": ({**BASE, "args": ["/nosuch"]}, False),
    "a folder": ({**BASE, "args": ["/etc"]}, False),
    "no program": ({**BASE, "args": ["/etc/passwd"]}, False),
    "no interpreter": ({**BASE, "args": ["/tmp/bad"]}, False),
    "no PATH": ({**BASE, "env": []}, False),
}


async def test_an_exec_is_what_it_is_by_runc(runtime: Runtime, root: Path, tmp_path: Path, parent: str) -> None:
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nuser:x:7:8::/home/user:/bin/sh\n")
    (root / "tmp/bad").write_text("#!/no/such\n")
    (root / "tmp/bad").chmod(0o755)
    await started(runtime, root, oomScoreAdj=100)
    runc = Runtime(tmp_path / "run", cgroup_parent=parent, launcher=False)
    await runc.recover()
    sides: list[dict[str, Any]] = []
    for side in (runtime, runc):
        found: dict[str, Any] = {}
        for name, (process, terminal) in CASES.items():
            try:
                found[name] = await output(side, "box", process, name.replace(" ", ""), terminal=terminal)
            except RuntimeFailed as error:
                found[name] = str(error)
        sides.append(found)
    runc.close()
    assert sides[0] == sides[1]
    assert sides[0]["a missing command"].endswith('exec: "nosuch": executable file not found in $PATH')
    assert sides[0]["a terminal"][1].split() == [b"/dev/pts/0", b"9", b"33", b"0", b"34816"]


async def test_soft_limits_hold(runtime: Runtime, root: Path) -> None:
    """Debian's runc 1.1.5 gives an exec the hard limit of open files."""
    await started(runtime, root, rlimits=[{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}])
    assert (await output(runtime, "box", shell("ulimit -n; ulimit -Hn")))[1].split() == [b"100", b"200"]


async def test_the_filter_is_the_one_of_the_first_process(runtime: Runtime, root: Path) -> None:
    await started(runtime, root)
    session = await runtime.exec("box", {**BASE, "args": ["sleep", "1000"]}, exec_id="x")
    profile = runtime.spec("box")["linux"]["seccomp"]
    body = filters.compiled(profile)[0][len(filters.newer_calls(profile)) :]
    theirs, ours = _filter(runtime.state("box").pid), _filter(session.pid)
    assert len(body) > 4000 and theirs.endswith(body) and ours == filters.compiled(profile)[0]
    session.kill()
    assert await session.wait() == 137


def _filter(pid: int) -> bytes:
    """The seccomp filter of a process. ptrace(2)."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(request: int, address: int = 0, data: Any = None) -> int:
        return int(libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address), data))

    assert call(0x4206) == 0 and call(0x4207) == 0  # SEIZE, INTERRUPT
    os.waitpid(pid, 0x40000000)
    buffer = ctypes.create_string_buffer(8 * call(0x420C))  # SECCOMP_GET_FILTER
    call(0x420C, 0, buffer)
    call(17)
    return buffer.raw


@pytest.mark.parametrize("action", ["SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"])
async def test_filters_that_hinder_the_launcher(runtime: Runtime, root: Path, action: str) -> None:
    """A profile without a call that the launcher makes is loaded by the command's own process, as the last thing."""
    made = spec(root, "sleep", "1000")
    rule = {"names": ["setsid", "sendto"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    made["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule] if action == "SCMP_ACT_ERRNO" else [],
    }
    await runtime.create("box", made)
    await runtime.start("box")
    assert filters.compiled(made["linux"]["seccomp"])[2] is (action == "SCMP_ACT_ALLOW")
    code, text, _ = await output(
        runtime, "box", {**BASE, "args": ["grep", "-E", "^(Seccomp|CapEff):", "/proc/self/status"]}
    )
    assert code == 0 and text.split()[-1] == b"2" and int(text.split()[1], 16) == _mask(capabilities.DEFAULT)


def _mask(names: list[str]) -> int:
    return sum(1 << capabilities.NAMES.index(name) for name in names)


# ------------------------------------------------------------------------------------- what a container may not do to it


@contextmanager
def held(program: Path) -> Iterator[int]:
    """Hold processes at the moment in which they run `program`: they are still what they were. Gives a descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.fanotify_init(0x4 | 0x1, os.O_RDONLY)  # FAN_CLASS_CONTENT, FAN_CLOEXEC
    if (
        fd < 0 or libc.fanotify_mark(fd, 1, ctypes.c_uint64(0x40000), -100, os.fsencode(program)) != 0
    ):  # FAN_OPEN_EXEC_PERM
        pytest.skip("this kernel has no fanotify permission events")
    try:
        yield fd
    finally:
        os.close(fd)


def caught(fd: int) -> tuple[int, int]:
    """(the descriptor to let it go by, its pid)"""
    *_, event, pid = struct.unpack("=IBBHQii", os.read(fd, 24))
    return event, pid


def let_go(fd: int, event: int) -> None:
    os.write(fd, struct.pack("=iI", event, 1))
    os.close(event)


class Attacker:
    """The container's first process, a shell that does as it is told."""

    def __init__(self, io: Attachment) -> None:
        self._io = io

    async def does(self, text: str) -> str:
        await self._io.write(f"({text}) 2>&1; echo END\n".encode())
        said = b""
        while not said.endswith(b"END\n"):
            piece = await self._io.read()
            assert piece is not None
            said += piece[1]
        return said.decode(errors="replace").removesuffix("END\n")


@asynccontextmanager
async def half_way(runtime: Runtime, root: Path, caps: list[str]) -> AsyncIterator[tuple[Attacker, str, int]]:
    """An exec in a container whose process has been born there and is not the command yet: who may try, its pid inside
    and outside."""
    program = root / "bin/slow"
    program.write_bytes((root / "bin/busybox").read_bytes())
    program.chmod(0o755)
    made = spec(root, "sh")
    made["process"]["capabilities"] = granted([*capabilities.DEFAULT, *caps])
    # What every process may do to others of its user is what is tried; the filter is not what is to stop it.
    made["linux"].pop("seccomp")
    await runtime.create("box", made, stdin=True)
    io = runtime.attach("box")
    await runtime.start("box")
    await output(runtime, "box", shell("true", env=["PATH=/bin", "OTHER=sesame"]), "before")
    with held(program) as fd:
        going = asyncio.ensure_future(runtime.exec("box", {**BASE, "args": ["slow"]}, exec_id="x"))
        event, pid = await asyncio.to_thread(caught, fd)
        inside = Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].splitlines()[0].split()[-1]
        try:
            yield Attacker(io), inside, pid
        finally:
            let_go(fd, event)
    session = await going
    await session.wait()


async def test_a_process_on_its_way_cannot_be_looked_into(runtime: Runtime, root: Path) -> None:
    """CVE-2016-9962: what has entered the container is not the container's to trace."""
    async with half_way(runtime, root, []) as (attacker, pid, _):
        assert f" {pid} " in f" {await attacker.does('echo $(ls /proc)')} "
        assert await attacker.does(f"ls /proc/{pid}/map_files/") == ""
        for name in ("environ", "maps", "mem"):
            assert "Permission denied" in await attacker.does(f"head -c 1 /proc/{pid}/{name}")
        for name in ("exe", "cwd", "root", "fd/0", "fd/3"):
            assert await attacker.does(f"readlink /proc/{pid}/{name}") == ""


async def test_a_process_on_its_way_has_nothing_to_take(runtime: Runtime, root: Path) -> None:
    """CVE-2016-9962, CVE-2019-5736: also who may trace it finds the command's rights, its stdio, no secret of another
    exec, and no file that can be written."""
    wanted = [
        name
        for name in ("CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE")
        if name in capabilities.available()
    ]
    async with half_way(runtime, root, wanted) as (attacker, pid, outside):
        shown = await attacker.does(f"grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/{pid}/status")
        given = _mask([*capabilities.DEFAULT, *wanted])
        assert [int(line.split()[1], 16) & ~given for line in shown.splitlines()] == [0, 0, 0, 0]
        links = await attacker.does(f"for f in /proc/{pid}/fd/*; do readlink $f; done")
        assert 4 <= len(links.splitlines()) <= 5 and not re.search("^/(?!dev/null)", links, re.M), links
        assert await attacker.does(f"readlink /proc/{pid}/cwd; readlink /proc/{pid}/root") == "/\n/\n"
        # A change of times needs what writing needs, and harms nothing should it succeed.
        tried = await attacker.does(
            f"for f in /proc/{pid}/exe /proc/{pid}/map_files/*; do touch -c $f && echo $f; done"
        )
        assert len(tried.splitlines()) > 4
        assert all("Read-only file system" in line for line in tried.splitlines()), tried
        assert b"sesame" not in _memory(outside)


def _memory(pid: int) -> bytes:
    parts = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            first, last = (int(n, 16) for n in line.split()[0].split("-"))
            if " rw" in line and "[v" not in line:
                memory.seek(first)
                parts.append(memory.read(last - first))
    return b"".join(parts)


async def test_the_interpreter_run_as_an_interpreter(runtime: Runtime, root: Path) -> None:
    """CVE-2019-5736: a script whose interpreter is /proc/self/exe runs what cannot be written."""
    (root / "tmp/me").write_text("#!/proc/self/exe\n")
    (root / "tmp/me").chmod(0o755)
    os.symlink("/proc/self/exe", root / "bin/me")
    await started(runtime, root)
    for command in ("/tmp/me", "/bin/me", "/proc/self/exe", "/proc/self/fd/3"):
        try:
            code, text, _ = await output(runtime, "box", {**BASE, "args": [command]}, command.replace("/", "-"))
        except RuntimeFailed as error:
            assert "no such file or directory" in str(error)
        else:
            assert code == 1 and not text


async def test_a_folder_of_the_host_is_no_working_directory(runtime: Runtime, root: Path) -> None:
    """CVE-2024-21626."""
    await started(runtime, root)
    for number in range(12):
        with pytest.raises(RuntimeFailed, match="chdir to cwd"):
            await output(runtime, "box", shell("pwd", cwd=f"/proc/self/fd/{number}"), f"e{number}")


async def test_the_host_s_folder_by_its_processes(runtime: Runtime, root: Path) -> None:
    """CVE-2024-21626 by another way: with the host's processes in sight their folders are none to work in."""
    made = spec(root, "sleep", "1000")
    oci.set_namespace(made, "pid", host=True)
    await runtime.create("box", made)
    await runtime.start("box")
    for name in ("root", "cwd"):
        with pytest.raises(RuntimeFailed, match="possible container breakout detected"):
            await output(runtime, "box", shell("", cwd=f"/proc/{os.getpid()}/{name}"), name)


async def test_the_host_s_null_stays_as_it_is(runtime: Runtime, root: Path) -> None:
    """A descriptor of the host's /dev/null is no way to change the host's device."""
    await started(runtime, root)
    code, _, text = await output(runtime, "box", shell("chmod 666 /proc/self/fd/0"))
    assert code == 1 and b"Read-only file system" in text


async def test_a_multiplexer_that_is_none(runtime: Runtime, root: Path) -> None:
    """CVE-2025-52565 and its like: the terminal's names in the container may be anything."""
    await started(runtime, root)
    await output(runtime, "box", shell("rm /dev/ptmx; mkfifo /dev/ptmx"), "fifo")
    with pytest.raises(RuntimeFailed, match="/dev/ptmx"):
        await output(runtime, "box", BASE, "t1", terminal=True)
    await output(runtime, "box", shell("rm /dev/ptmx; ln -s /dev/zero /dev/ptmx"), "zero")
    with pytest.raises(RuntimeFailed, match="/dev/ptmx"):
        await output(runtime, "box", BASE, "t2", terminal=True)
    await output(runtime, "box", shell("rm /dev/ptmx; ln -s pts/ptmx /dev/ptmx"), "back")
    assert (await output(runtime, "box", shell("tty"), "t3", terminal=True))[1] == b"/dev/pts/0\r\n"


# --------------------------------------------------------------------------------------------------- ends and beginnings


async def test_who_carries_what_out(runtime: Runtime, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher, and the OCI runtime for what it does not carry, where it cannot start, and where it is not wanted."""
    await started(runtime, root)
    kinds: list[type] = []

    async def run(**fields: Any) -> None:
        session = await runtime.exec("box", {**BASE, **fields}, exec_id=f"e{len(kinds)}")
        kinds.append(type(session))
        assert await session.wait() == 0

    await run()
    await run(scheduler={"policy": "SCHED_BATCH"})
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(kernel, "_NUMBERS", {})
        await run()
    runtime.launcher = Launcher()
    monkeypatch.setattr("longshore.engine.runtime.launcher.housing._PROGRAM", "raise SystemExit(1)")
    await run()
    assert runtime.launcher is None
    await run()
    assert kinds == [LaunchedExec, *[MonitoredExec] * 4] and runtime.state("box").exec_ids == ()


async def test_nothing_is_left_of_execs(runtime: Runtime, root: Path) -> None:
    await started(runtime, root)

    def held() -> list[int]:
        assert runtime.launcher is not None
        children = [p for p in Path("/proc").glob("[0-9]*/stat") if _parent(p) == runtime.launcher.pid]
        return [*(len(os.listdir(f"/proc/{pid}/fd")) for pid in ("self", runtime.launcher.pid)), len(children)]

    async def turn(turn: int) -> None:
        for n in range(8):
            await output(runtime, "box", BASE, f"e{turn}.{n}", terminal=n % 2 == 0, stdin=n % 3 == 0)
            with pytest.raises(RuntimeFailed):
                await runtime.exec("box", {**BASE, "args": ["nosuch"]}, exec_id=f"f{turn}.{n}")
            left = await runtime.exec("box", BASE, exec_id=f"d{turn}.{n}", terminal=n % 2 == 0, attach=False)
            assert await left.wait() == 0

    await output(runtime, "box", BASE)
    before = held()
    for number in range(3):
        await turn(number)
    async with asyncio.timeout(10):
        while held() != before:  # the launcher closes its ends after it has told of the end
            await asyncio.sleep(0.01)


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


async def test_a_container_full_of_processes_is_entered_by_runc(
    runtime: Runtime, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is how one is helped: runc moves a process in, which is counted and not refused as a fork inside would be.
    (Whether its own threads then find room is chance.)"""
    made = spec(root, "sleep", "1000")
    made["linux"]["resources"]["pids"] = {"limit": 1}
    await runtime.create("box", made)
    await runtime.start("box")
    asked: list[str] = []
    by_runc = Runtime._monitored

    async def monitored(self: Runtime, record: Any, process: Any, exec_id: str, *how: bool) -> Any:
        asked.append(exec_id)
        return await by_runc(self, record, process, exec_id, *how)

    monkeypatch.setattr(Runtime, "_monitored", monitored)
    try:
        session = await runtime.exec("box", shell("exit 3"), exec_id="x")
    except RuntimeFailed as error:
        assert "clone" not in str(error)
    else:
        assert await session.wait() == 3
    assert asked == ["x"]


async def test_much_in_and_out(runtime: Runtime, root: Path) -> None:
    await started(runtime, root)
    session = await runtime.exec("box", shell("cat; echo end >&2"), exec_id="x", stdin=True)
    assert session.io is not None
    data = os.urandom(1 << 20) * 3
    reading = asyncio.ensure_future(drain(session.io))
    await session.io.write(data)
    session.io.close_input()
    assert await reading == {1: data, 2: b"end\n"} and await session.wait() == 0


async def test_many_at_once(runtime: Runtime, root: Path) -> None:
    await started(runtime, root)
    found = await asyncio.gather(*(output(runtime, "box", shell(f"echo {n}; exit {n}"), f"e{n}") for n in range(40)))
    assert found == [(n, f"{n}\n".encode(), b"") for n in range(40)]


async def test_a_terminal_is_resized_and_hung_up(runtime: Runtime, root: Path) -> None:
    await started(runtime, root)
    session = await runtime.exec("box", shell("read x; stty size; sleep 1000"), exec_id="x", terminal=True, stdin=True)
    assert session.io is not None
    session.resize(21, 43)
    await session.io.write(b"go\n")
    said = b""
    while b"43" not in said:
        piece = await session.io.read()
        assert piece is not None
        said += piece[1]
    assert b"21 43" in said
    session.hang_up()
    assert await session.wait() == 128 + signal.SIGHUP


async def test_hanging_up_breaks_the_pipe_and_closing_does_not(runtime: Runtime, root: Path) -> None:
    await started(runtime, root)
    process = shell("while echo more; do :; done; exit 9")
    left = await runtime.exec("box", process, exec_id="left")
    hung = await runtime.exec("box", process, exec_id="hung")
    assert left.io is not None and hung.io is not None
    left.io.close()
    hung.hang_up()
    assert await hung.wait() == 128 + signal.SIGPIPE
    assert left.exit_code is None
    left.kill()
    assert await left.wait() == 137


async def test_commands_outlive_the_engine(runtime: Runtime, root: Path, tmp_path: Path, parent: str) -> None:
    """Their output is read on, so that they neither break nor stand still; the launcher goes with the last of them."""
    await started(runtime, root)
    long = await runtime.exec("box", shell("head -c 3000000 /dev/zero; touch /tmp/done; sleep 1000"), exec_id="x")
    launcher = int(Path(f"/proc/{long.pid}/status").read_text().split("PPid:")[1].split()[0])
    watch = os.pidfd_open(launcher)
    runtime.close()
    other = Runtime(tmp_path / "run", cgroup_parent=parent)
    await other.recover()
    while not (root / "tmp/done").exists():
        await asyncio.sleep(0.01)
    os.kill(long.pid, signal.SIGTERM)
    ended = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(watch, ended.set_result, None)
    await asyncio.wait_for(ended, 10)
    asyncio.get_running_loop().remove_reader(watch)
    os.close(watch)
    await other.delete("box", force=True)
    other.close()


async def test_a_killed_launcher_is_replaced(runtime: Runtime, root: Path) -> None:
    await started(runtime, root)
    session = await runtime.exec("box", {**BASE, "args": ["sleep", "1000"]}, exec_id="x")
    watch = os.pidfd_open(session.pid)
    os.kill(int(Path(f"/proc/{session.pid}/status").read_text().split("PPid:")[1].split()[0]), signal.SIGKILL)
    assert await session.wait() == 137
    assert await asyncio.to_thread(select.select, [watch], [], [], 10) == ([watch], [], [])
    os.close(watch)
    assert (await output(runtime, "box", shell("echo back"), "y"))[1] == b"back\n"


async def test_an_idle_launcher_goes(runtime: Runtime, root: Path) -> None:
    await started(runtime, root)
    runtime.launcher = launcher = Launcher(idle=0.05)
    assert (await output(runtime, "box", BASE))[0] == 0
    first = launcher.pid
    assert first
    while launcher.pid:
        await asyncio.sleep(0.01)
    assert (await output(runtime, "box", BASE, "y"))[0] == 0 and launcher.pid not in (0, first)
    launcher.close()


async def test_an_ended_container_takes_its_execs_with_it(runtime: Runtime, root: Path) -> None:
    await started(runtime, root)
    session = await runtime.exec("box", {**BASE, "args": ["sleep", "1000"]}, exec_id="x")
    runtime.kill("box")
    assert await session.wait() == 137
