"""A throw-away cluster in the test process's own namespaces, driven only as a person would drive it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Cluster:
    """`longshore up` with folders of its own. Commands raise CalledProcessError with what they said."""

    def __init__(self, *flags: str) -> None:
        # Short: a unix socket's path has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))
        self.data, self.run_dir = self.folder / "d", self.folder / "r"
        self.folders = ["--data-dir", str(self.data), "--run-dir", str(self.run_dir)]
        self.flags = flags
        home = self.folder / "home"
        home.mkdir()
        self.env = {
            **os.environ,
            "HOME": str(home),
            "KUBECONFIG": str(self.data / "pki" / "admin.kubeconfig"),
            "DOCKER_HOST": f"unix://{self.run_dir / 'docker.sock'}",
        }

    def up(self) -> str:
        return self.longshore("up", *self.flags, timeout=150)

    def longshore(self, command: str, *arguments: str, timeout: float = 120) -> str:
        return self.run(sys.executable, "-m", "longshore", command, *self.folders, *arguments, timeout=timeout)

    def longshore_fails(self, command: str, *arguments: str, timeout: float = 120) -> str:
        """What a command says that must not succeed."""
        argv = (sys.executable, "-m", "longshore", command, *self.folders, *arguments)
        told = self.run(*argv, timeout=timeout, check=False)
        assert "longshore: " in told and "Traceback" not in told, told
        return told

    def run(self, *argv: str, stdin: str | None = None, timeout: float = 60, check: bool = True) -> str:
        """Run a command; what it wrote to stdout (and stderr after it when check is off)."""
        done = subprocess.run(argv, input=stdin, env=self.env, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(argv)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.words()}"
            )
        return done.stdout if check else done.stdout + done.stderr

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60, check: bool = True) -> str:
        need("kubectl")
        return self.run("kubectl", *arguments, stdin=stdin, timeout=timeout, check=check)

    def docker(self, *arguments: str, stdin: str | None = None, timeout: float = 60, check: bool = True) -> str:
        need("docker")
        return self.run("docker", *arguments, stdin=stdin, timeout=timeout, check=check)

    def status(self) -> dict:
        text = self.run(sys.executable, "-m", "longshore", "status", *self.folders, "-o", "json", check=False)
        return json.loads(text)

    def pid(self, part: str) -> int:
        return next(p["pid"] for p in self.status()["parts"] if p["name"] == part)

    def words(self) -> str:
        """The last words of every part, for a failed test's report."""
        found = []
        for log in sorted((self.data / "logs").glob("*.log")):
            found.append(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(found)

    def kill(self, part: str) -> None:
        """kill -9 a part and return when another process has taken its place and is well."""
        before = self.pid(part)
        os.kill(before, signal.SIGKILL)

        def back() -> bool:
            now = next(p for p in self.status()["parts"] if p["name"] == part)
            return now["pid"] not in (None, before) and now["health"] == "ok"

        eventually(back, seconds=30)

    def down(self, *flags: str) -> None:
        self.longshore("down", *flags)

    def destroy(self) -> None:
        """The end of a test: nothing may stay."""
        try:
            self.down("--purge")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def need(program: str) -> None:
    """Skip a journey whose client is absent."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def eventually(check: Callable[[], object], seconds: float = 30.0, pause: float = 0.1) -> object:
    """The first true value of `check`; an AssertionError of it is taken as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = check()
            if value:
                return value
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, f"not after {seconds:g} s"
        time.sleep(pause)
