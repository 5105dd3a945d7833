"""API servers inside the test process: one background thread with an event loop, any number of servers on it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
START_SECONDS = 30.0


@dataclass(slots=True)
class RunningAPIServer:
    """A started API server with an empty store of its own. Everything in it goes with the test.

    server: its URL; kubeconfig: of an administrator (system:masters); ca: the certificate that signed the server's.
    """

    server: str
    kubeconfig: Path
    ca: Path
    _thread: LoopThread = field(repr=False)
    _tasks: list[asyncio.Task[Any]] = field(default_factory=list, repr=False)
    _store: Any = field(default=None, repr=False)

    def client(self) -> Any:
        """A `kubernetes.client.ApiClient` for this server (the kubernetes package must be installed)."""
        from kubernetes import config

        made: Any = config.new_client_from_config(str(self.kubeconfig))  # type: ignore[no-untyped-call]
        return made

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig whose client certificate says `user` in `groups`: to try out RBAC."""
        from longshore.machinery import pki

        folder = self.ca.parent
        pair = pki.issue(pki.KeyPair.read(self.ca, folder / "ca.key"), user, organizations=groups, client=True)
        path = self.kubeconfig.with_name(f"{self.kubeconfig.stem}-{user.replace('/', '_')}.kubeconfig")
        pki.write_kubeconfig(path, pki.kubeconfig(self.server, self.ca.read_bytes(), user=user, client=pair))
        return path

    def run_controllers(self, names: Sequence[str] = ("*",)) -> None:
        """Run controllers of the controller manager (named as in --controllers) and the scheduler on this server."""
        self._thread.call(self._run_controllers(names))

    async def _run_controllers(self, names: Sequence[str]) -> None:
        from longshore.master.controllers.options import Options
        from longshore.master.controllers.server import serve as controllers
        from longshore.master.scheduler.server import serve as scheduler

        options = Options(controllers=tuple(names), service_accounts=False, root_ca_file=self.ca)
        ready = asyncio.Event(), asyncio.Event()
        self._tasks += [
            asyncio.create_task(controllers(kubeconfig=self.kubeconfig, options=options, ready=ready[0])),
            asyncio.create_task(scheduler(kubeconfig=self.kubeconfig, ready=ready[1])),
        ]
        async with asyncio.timeout(START_SECONDS):
            await asyncio.gather(*(event.wait() for event in ready))

    def run_nodes(self, count: int, rules: Sequence[Mapping[str, Any]] = (), **shape: Any) -> None:
        """Run simulated nodes on this server: what is bound to them runs, without a container.

        rules: what their pods do, as in the file of `longshore simulate nodes --rules` (docs/simulate.md); shape: cpu,
        memory, pods, zones, name ... of `longshore.simulate.nodes.serve`. Returns when the nodes are Ready.
        """
        self._thread.call(self._run_nodes(count, rules, shape))

    async def _run_nodes(self, count: int, rules: Sequence[Mapping[str, Any]], shape: dict[str, Any]) -> None:
        from longshore.client.config import load
        from longshore.client.rest import Client
        from longshore.simulate import nodes
        from longshore.simulate import rules as simulated

        parsed = simulated.parse({"rules": list(rules)})

        async def serve(ready: asyncio.Event) -> None:
            client = Client(load(self.kubeconfig))
            try:
                await nodes.serve(client=client, count=count, rules=parsed, ready=ready, **shape)
            finally:
                await client.close()

        ready = asyncio.Event()
        serving = asyncio.create_task(serve(ready))
        waiting = asyncio.create_task(ready.wait())
        self._tasks.append(serving)
        await asyncio.wait({serving, waiting}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if serving.done():
            serving.result()
        if not ready.is_set():
            raise TimeoutError(f"{count} nodes were not registered within {START_SECONDS:g} s")

    def stop(self) -> None:
        """End the server and forget its store."""
        self._thread.call(self._stop())

    async def _stop(self) -> None:
        for task in reversed(self._tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._store.close()


class LoopThread:
    """A thread with an event loop, and the certificates that all its servers share. folder: for files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="longshore", daemon=True)
        self._thread.start()
        started.wait()

    def _run(self, started: threading.Event) -> None:
        import uvloop

        self._loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(started.set)
        self._loop.run_forever()
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the thread's loop and give its result."""
        assert self._loop is not None
        future: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result()

    def start(self, flags: Sequence[str] = ()) -> RunningAPIServer:
        """Start an API server on a free port of loopback, its store in memory. flags: kube-apiserver's."""
        return self.call(self._start(flags))

    async def _start(self, flags: Sequence[str]) -> RunningAPIServer:
        from longshore.machinery import pki
        from longshore.master.apiserver import command
        from longshore.master.apiserver.server import serve

        # Without controllers nobody makes the namespaces' service accounts: Pods are admitted without, as in envtest.
        own = ["--bind-address", "127.0.0.1", "--secure-port", "0", "--disable-admission-plugins", "ServiceAccount"]
        arguments = command.parser().parse_args([*own, *flags])
        config, admin, ca = command.prepare(arguments, self.folder)
        store = await command.open_store(arguments)
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            serve(store=store, config=config, port=0, ready=lambda _server, port: ready.set_result(port))
        )
        either: set[asyncio.Future[Any]] = {serving, ready}
        await asyncio.wait(either, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        url = f"https://127.0.0.1:{ready.result()}"
        kubeconfig = self.folder / f"server-{next(self._numbers)}.kubeconfig"
        pki.write_kubeconfig(kubeconfig, pki.kubeconfig(url, ca, client=admin))
        return RunningAPIServer(url, kubeconfig, self.folder / "ca.crt", self, [serving], store)

    def close(self) -> None:
        """End the loop and the thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
