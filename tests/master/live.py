"""A real API server on a store of its own, in this process's network namespace, for journeys of the manager.

Processes are ours and end with the `Live` object.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

from longshore.cli import certificates, cluster
from longshore.cli.supervise import parts
from longshore.client.config import load
from longshore.client.rest import Client
from longshore.machinery.errors import StatusError
from longshore.machinery.paths import Layout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Live:
    """One API server, and on demand the manager."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder / "data", folder / "run")
        self.layout.run.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.config = cluster.plan(host_ip="127.0.0.1", secure_port=self.port)
        cluster.save(self.layout, self.config)
        certificates.ensure(self.layout, self.config)
        self.children: list[asyncio.subprocess.Process] = []
        self.client = Client(load(self.layout.kubeconfig("admin")))

    async def spawn(self, name: str) -> asyncio.subprocess.Process:
        """Start a part with the command line that the supervisor gives it."""
        command = next(p.argv for p in parts(self.layout, self.config) if p.name == name)
        with open(self.layout.run / f"{name}.log", "ab") as log:
            child = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        self.children.append(child)
        return child

    async def apiserver(self) -> None:
        await self.spawn("apiserver")
        async with asyncio.timeout(30):
            while True:
                try:
                    await self.client.raw("GET", "/readyz")
                    return
                except (OSError, StatusError):
                    await asyncio.sleep(0.05)

    def log(self, name: str) -> str:
        path = self.layout.run / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def stop(self) -> None:
        await self.client.close()
        for child in self.children:
            if child.returncode is None:
                child.send_signal(signal.SIGTERM)
        for child in self.children:
            try:
                await asyncio.wait_for(child.wait(), 5)
            except TimeoutError:
                child.kill()
                await child.wait()
