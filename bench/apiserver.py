"""Claims of the API server on its embedded store, on disk, over TLS: ready 0.5 s after exec with 80 MB; 8,000 GETs/s from 16
clients; 600, 2,500 and 2,500 CREATEs/s from 1, 16 and 64; 2,500 merge patches/s and 1,500 applies/s from 16; a LIST of 5,000 pods
in 40 ms, 200 MB with them; 100,000 watch deliveries/s to 100 watchers. Cost grows with what is touched, not with what is
stored: with 50,000 objects more each of these costs the server what it did without.

The load comes from our own client in this process, so on two cores it takes one: beside each rate stands the server's CPU time
for one request, which says what the server alone could do. Upstream's figures (kube-apiserver 1.36 with etcd, 2-core machine) stand
as targets; it cannot run here beside ours.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.report import figure

TICK = os.sysconf("SC_CLK_TCK")
CONFIGMAP = {"data": {"a": "x" * 40, "b": "y" * 40}}


class Server:
    """An API server of its own on a fresh folder. compiled: where its modules lie compiled, as an installed package's do."""

    def __init__(self, folder: Path, compiled: Path) -> None:
        self.folder = folder
        self.environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self.environment["PYTHONPYCACHEPREFIX"] = str(compiled)
        self.kubeconfig = folder / "kubeconfig"
        self.child: asyncio.subprocess.Process | None = None
        self.clients: list[Any] = []

    async def start(self) -> float:
        """Seconds from exec to the first 200 of /readyz."""
        from longshore.client.config import load
        from longshore.client.rest import Client
        from longshore.machinery.errors import StatusError

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = ["-m", "longshore", "apiserver", "--data-dir", str(self.folder / "data"), "--secure-port", str(port)]
        began = time.monotonic()
        with open(self.folder / "log", "ab") as log:
            self.child = await asyncio.create_subprocess_exec(
                sys.executable, *command, "--write-kubeconfig", str(self.kubeconfig),
                stdout=log, stderr=log, env=self.environment,
            )  # fmt: skip
        while not self.kubeconfig.exists():
            await asyncio.sleep(0.002)
        client = Client(load(self.kubeconfig))
        while True:
            try:
                await client.raw("GET", "/readyz")
                break
            except (OSError, StatusError):
                await asyncio.sleep(0.002)
        took = time.monotonic() - began
        await client.close()
        return took

    def more(self, count: int) -> list[Any]:
        """Clients with a connection for each of `count` callers."""
        from longshore.client.config import load
        from longshore.client.rest import CONNECTIONS, Client

        while len(self.clients) * CONNECTIONS < count:
            self.clients.append(Client(load(self.kubeconfig)))
        return self.clients

    def cpu(self) -> float:
        """CPU seconds that the server has used."""
        assert self.child is not None
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory(self) -> float:
        """Resident memory in MB."""
        assert self.child is not None
        lines = Path(f"/proc/{self.child.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    async def stop(self) -> None:
        for client in self.clients:
            await client.close()
        if self.child is not None:
            self.child.terminate()
            await self.child.wait()

    async def rate(
        self,
        claim: str,
        count: int,
        callers: int,
        call: Callable[[Any, int], Awaitable[Any]],
        target: str,
        before: float | None = None,
    ) -> float:
        """Time `count` calls from `callers` at once and tell calls a second and the server's time for each; that time in ms.

        before: what it was without the objects that are stored besides.
        """
        clients = self.more(callers)
        numbers = iter(range(count))

        async def caller(client: Any) -> None:
            for number in numbers:
                await call(client, number)

        used, began = self.cpu(), time.perf_counter()
        await asyncio.gather(*(caller(clients[i % len(clients)]) for i in range(callers)))
        took = time.perf_counter() - began
        figure(f"{claim}, {callers} clients", count / took, "per s", target=target)
        cost = (self.cpu() - used) / count * 1000
        peer = {} if before is None else {"peer": "with few objects", "theirs": before}
        figure(f"{claim}, {callers} clients, server's CPU", cost, "ms each", **peer)
        return cost


async def deliveries(server: Server, watchers: int, events: int) -> None:
    """An unpaced writer and `watchers` watches of what it writes: deliveries a second, and the server's time for each."""
    from longshore.client.resources import CONFIG_MAPS

    client = server.more(1)[0]
    name = f"watched-{time.monotonic_ns()}"
    version = (await client.create(CONFIG_MAPS, {"metadata": {"name": name}}, "default"))["metadata"]["resourceVersion"]
    path = CONFIG_MAPS.path("default")
    query = {"watch": "1", "resourceVersion": version, "fieldSelector": f"metadata.name={name}"}

    async def watch() -> int:
        """Lines are counted, not decoded: the watchers share a core with the server."""
        answer = await client.send("GET", path, query, stream=True)
        ready.append(None)
        seen = 0
        async for chunk in answer.chunks():
            seen += chunk.count(b"\n")
            if seen >= events:
                break
        await answer.close()
        return seen

    ready: list[None] = []
    tasks = [asyncio.create_task(watch()) for _ in range(watchers)]
    while len(ready) < watchers:
        await asyncio.sleep(0.01)
    used, began = server.cpu(), time.perf_counter()
    for number in range(events):
        await client.patch(CONFIG_MAPS, name, {"data": {"n": str(number)}}, "default")
    total = sum(await asyncio.gather(*tasks))
    took = time.perf_counter() - began
    figure(f"deliveries, {watchers} watchers, unpaced", total / took, "per s", target="> 100000 (upstream 16,900)")
    figure("a delivery (and its part of the write), server's CPU", (server.cpu() - used) / total * 1e6, "us each")


async def fill(server: Server, count: int) -> None:
    """Store ConfigMaps that nobody touches afterwards."""
    from longshore.client.resources import CONFIG_MAPS

    clients = server.more(64)
    numbers = iter(range(count))

    async def caller(client: Any) -> None:
        for number in numbers:
            await client.create(CONFIG_MAPS, {"metadata": {"name": f"stored-{number}"}, **CONFIGMAP}, "default")

    await asyncio.gather(*(caller(clients[i % len(clients)]) for i in range(64)))


async def measure(stored: int) -> None:
    from longshore.client.resources import CONFIG_MAPS, PODS, SERVICE_ACCOUNTS

    container = {"name": "c", "image": "registry.example/app:1", "resources": {"requests": {"cpu": "100m"}}}

    def create(prefix: str) -> Callable[[Any, int], Awaitable[Any]]:
        return lambda client, i: client.create(
            CONFIG_MAPS, {"metadata": {"name": f"{prefix}-{i}"}, **CONFIGMAP}, "default"
        )

    def pod(client: Any, i: int) -> Awaitable[Any]:
        made = {"metadata": {"name": f"p-{i}", "labels": {"app": "x"}}, "spec": {"containers": [container]}}
        answer: Awaitable[Any] = client.create(PODS, made, "default")
        return answer

    def get(client: Any, i: int) -> Awaitable[Any]:
        answer: Awaitable[Any] = client.get(CONFIG_MAPS, f"c16-{i % 16}", "default")
        return answer

    def patch(client: Any, i: int) -> Awaitable[Any]:
        answer: Awaitable[Any] = client.patch(CONFIG_MAPS, f"c16-{i % 16}", {"data": {"n": str(i)}}, "default")
        return answer

    def apply(client: Any, i: int) -> Awaitable[Any]:
        name = f"c16-{i % 16}"
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": str(i)}}
        answer: Awaitable[Any] = client.patch(
            CONFIG_MAPS, name, body, "default", kind="apply", field_manager="bench", force=True
        )
        return answer

    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "compiled"
        first = Server(Path(folder) / "first", compiled)
        first.folder.mkdir()
        await first.start()
        await first.stop()
        server = Server(Path(folder), compiled)
        try:
            figure("cold start to /readyz", await server.start(), "s", target="< 0.5 (upstream 3.7)")
            await asyncio.sleep(3)
            figure("idle memory", server.memory(), "MB", target="< 80 (upstream 315 with etcd)")
            table: list[tuple[str, int, int, Callable[[Any, int], Awaitable[Any]], str]] = [
                ("CREATE", 1500, 1, create("c1"), "> 600 (upstream 240)"),
                ("CREATE", 4000, 16, create("c16"), "> 2500 (upstream 815)"),
                ("CREATE", 4000, 64, create("c64"), "> 2500 (upstream 864)"),
                ("GET", 8000, 16, get, "> 8000 (upstream 1,818)"),
                ("merge PATCH", 4000, 16, patch, "> 2500 (upstream 695)"),
                ("server-side apply", 4000, 16, apply, "> 1500 (upstream 753)"),
            ]
            costs = [await server.rate(*row) for row in table]
            await deliveries(server, 100, 500)
            await fill(server, stored)
            figure(f"memory with {stored:,} ConfigMaps", server.memory(), "MB")
            for (claim, count, callers, call, target), cost in zip(table, costs, strict=True):
                if claim == "CREATE":
                    call = create(f"full-{callers}")
                await server.rate(f"with {stored:,} objects: {claim}", count, callers, call, target, cost)
            await deliveries(server, 100, 500)
        finally:
            await server.stop()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), Path(folder) / "compiled")
        try:
            await server.start()
            # What the controller of service accounts would make.
            await server.more(1)[0].create(SERVICE_ACCOUNTS, {"metadata": {"name": "default"}}, "default")
            await server.rate("CREATE of pods", 5000, 16, pod, "")
            path = PODS.path("default")
            client = server.more(1)[0]
            best = 1e9
            for _ in range(10):
                began = time.perf_counter()
                await client.raw("GET", path)
                best = min(best, time.perf_counter() - began)
            figure("LIST of 5,000 pods", best * 1000, "ms", target="< 40 (upstream 410)")
            figure("memory with 5,000 pods", server.memory(), "MB", target="< 200 (upstream 960)")
        finally:
            await server.stop()


def main() -> None:
    asyncio.run(measure(50_000))


if __name__ == "__main__":
    main()
