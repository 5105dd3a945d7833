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

from support import differential
from support.cluster import eventually

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


def loopback() -> None:
    """The addresses that upstream's API server wants to have."""
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
    subprocess.run(("ip", "addr", "replace", "10.9.9.1/32", "dev", "lo"), check=True)


def api_server(pki: Path, *more: str) -> tuple[str, ...]:
    """The command of upstream's API server on port 6443 and a store on 2379, with the certificates of ours."""
    return (
        *(program("kube-apiserver"), "--etcd-servers", "http://127.0.0.1:2379", "--secure-port", "6443"),
        *("--bind-address", "127.0.0.1", "--advertise-address", "10.9.9.1", "--allow-privileged=true"),
        *("--client-ca-file", str(pki / "ca.crt"), "--authorization-mode", "Node,RBAC"),
        *("--tls-cert-file", str(pki / "apiserver.crt"), "--tls-private-key-file", str(pki / "apiserver.key")),
        *("--service-account-key-file", str(pki / "sa.key"), "--service-account-signing-key-file", str(pki / "sa.key")),
        *("--service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        *("--service-cluster-ip-range", "10.96.0.0/16", *more),
    )


@contextlib.contextmanager
def serving(folder: Path, port: int, *argv: str) -> Iterator[differential.Server]:
    """An API server that is ready; its certificates are in folder/own/pki."""

    def ready() -> differential.Server | None:
        try:
            server = differential.Server(port, folder / "own" / "pki")
            found = server.ask("GET", "/readyz")
        except (KeyError, OSError, AssertionError):
            return None
        return server if found is not None and found.status == 200 else None

    with running(folder / f"{port}.log", *argv):
        server = eventually(ready, seconds=120)
        assert isinstance(server, differential.Server)
        yield server
