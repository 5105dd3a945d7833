"""Processes that kill themselves before the Nth change that an operation makes to the disk.

A zygote (`serve`, in a process of its own) has imported everything and forks one process an operation; `Zygote` asks it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

_CHANGES = frozenset(
    f"os.{name}" for name in ("rename", "remove", "rmdir", "mkdir", "link", "symlink", "truncate", "chmod", "utime")
)


class _Steps:
    """Counts changes while armed, and ends the process before one of them."""

    def __init__(self, at: int) -> None:
        self.done, self.at, self.armed = 0, at, False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            self.step()

    def step(self) -> None:
        if self.armed:
            self.done += 1
            if self.done == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


def serve(database: type, begin: Callable[[], Any], operate: Callable[[Any, str], Awaitable[object]]) -> None:
    """Read "OPERATION N" from the input until it ends; say "killed" or "done STEPS" of each.

    database: a class whose write() is a transaction, a step each. begin: makes what operate() works on.
    """
    os.write(1, b"ready\n")
    for line in sys.stdin:
        what, at = line.split()
        process = os.fork()
        if not process:
            steps = _Steps(int(at))
            write = database.write  # type: ignore[attr-defined]

            def stepped(self: Any, *, _write: Any = write, _steps: _Steps = steps, **options: Any) -> Any:
                _steps.step()
                return _write(self, **options)

            database.write = stepped  # type: ignore[attr-defined]
            sys.addaudithook(steps.hook)
            try:
                subject = begin()

                async def run(subject: Any = subject, what: str = what) -> None:
                    await operate(subject, what)

                steps.armed = True
                asyncio.run(run())
                steps.armed = False
                os.write(1, f"done {steps.done}\n".encode())
            except BaseException as error:
                os.write(1, f"failed {error!r}\n".encode())
            os._exit(0)
        if os.WIFSIGNALED(os.waitpid(process, 0)[1]):
            os.write(1, b"killed\n")


class Zygote:
    """The other side of serve(). program: source that calls it; arguments: its command line."""

    def __init__(self, program: str, *arguments: str) -> None:
        self._program, self._arguments = program, arguments
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, what: str, at: int = 10**9) -> str:
        """Have an operation done, or killed before its Nth change; "done STEPS" or "killed"."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", self._program, *self._arguments,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert await self._line() == "ready"
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {at}\n".encode())
        answer = await self._line()
        assert not answer.startswith("failed"), answer
        return answer

    async def _line(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        return (await asyncio.wait_for(self._process.stdout.readline(), 60)).decode().strip()

    async def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            await self._process.wait()


def chosen(count: int, seed: int, limit: int) -> Iterable[int]:
    """Some of the steps 1 to count, by a seed; with LONGSHORE_SWEEP=all every one."""
    every = range(1, count + 1)
    if os.environ.get("LONGSHORE_SWEEP") == "all":
        return every
    return sorted(random.Random(seed).sample(every, min(limit, count)))
