"""Upstream's own components, where somebody has built them: they are the judges of ours, and stand in for ours.

The folder of their programs is named by LONGSHORE_UPSTREAM; docs/upstream.md says how they were built here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("LONGSHORE_UPSTREAM", "/opt/kubernetes/bin"))


def program(name: str) -> str:
    """The path of one of upstream's programs; skips the journey where it is absent."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"upstream's {name} is not in {FOLDER} (LONGSHORE_UPSTREAM names the folder)")
    return str(path)


@contextlib.contextmanager
def running(log: Path, *argv: str, env: dict[str, str] | None = None, end: int = signal.SIGTERM) -> Iterator[int]:
    """A process for the length of a block, with its words in a file; it has ended when the block is left."""
    with log.open("wb") as words:
        process = subprocess.Popen(argv, stdout=words, stderr=words, env={**os.environ, **(env or {})})
    try:
        yield process.pid
    finally:
        process.send_signal(end)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def longshore(*argv: str) -> list[str]:
    return [sys.executable, "-m", "longshore", *argv]


def complaints(log: Path, *harmless: str) -> list[str]:
    """The lines of a klog that are errors, but for those with one of the `harmless` words in them."""
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith(("E", "F")) and not any(word in line for word in harmless)]
