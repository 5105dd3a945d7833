"""The one shape of every controller: informers in, a keyed queue, `reconcile` to the API.

A controller says in `setup` what it watches and which keys a change concerns, and in `reconcile` how one key is made
right. What is the same for all of them (waiting for informers, workers, back-off, events, who we are) is here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, ClassVar

from longshore.client.events import EventRecorder
from longshore.client.informer import Informer, InformerFactory
from longshore.client.resources import Resource
from longshore.client.rest import Client, is_conflict, is_namespace_terminating
from longshore.client.store import IndexFunction, Object, by_controller, key_of
from longshore.client.workqueue import ShutDown, WorkQueue
from longshore.machinery.errors import StatusError
from longshore.master.controllers.accounts import Accounts
from longshore.master.controllers.options import Options

log = logging.getLogger("longshore.controllers")


class Context:
    """What every controller is given: informers shared by all, a client a service account, recorders, options."""

    def __init__(
        self,
        client: Client,
        options: Options,
        accounts: Accounts | None = None,
        informers: InformerFactory | None = None,
    ) -> None:
        self.client = client
        self.options = options
        self.informers = informers or InformerFactory(client)
        self._own_informers = informers is None
        self._accounts = accounts
        self._recorders: dict[str, EventRecorder] = {}

    def client_for(self, account: str) -> Client:
        """The client that acts as kube-system's service account of that name (or as the manager itself)."""
        return self._accounts.client(account) if self._accounts is not None and account else self.client

    def recorder(self, component: str, client: Client) -> EventRecorder:
        if component not in self._recorders:
            self._recorders[component] = EventRecorder(client, component)
        return self._recorders[component]

    async def stop(self) -> None:
        if self._own_informers:
            await self.informers.stop()
        for recorder in self._recorders.values():
            await recorder.stop()


class Controller:
    """One controller. name: as in --controllers; account: its service account in kube-system; component: event source.

    A subclass may rely on: reconcile is called after its informers have synced, for one key at a time by one worker;
    an exception brings the key back with growing pauses, a returned number after that many seconds.
    """

    name: ClassVar[str]
    account: ClassVar[str] = ""
    component: ClassVar[str] = ""
    workers: ClassVar[int] = 5
    max_delay: ClassVar[float] = 1000.0

    def __init__(self, context: Context) -> None:
        self.context = context
        self.options = context.options
        self.client = context.client_for(self.account or self.name)
        self.recorder = context.recorder(self.component or self.name, self.client)
        self.queue: WorkQueue[str] = WorkQueue(max_delay=self.max_delay)
        self.needs: list[Informer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.setup()

    # -- for subclasses --------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Ask for informers and say which changes put which keys into the queue."""
        raise NotImplementedError

    async def reconcile(self, key: str) -> float | None:
        """Make one key right. Returns seconds after which to look again, or None."""
        raise NotImplementedError

    async def started(self) -> None:
        """Called once, after the informers have synced and before the first reconcile."""

    def watch(
        self,
        resource: Resource,
        *,
        add: Callable[[Object], Any] | None = None,
        update: Callable[[Object, Object], Any] | None = None,
        delete: Callable[[Object], Any] | None = None,
        indexers: dict[str, IndexFunction] | None = None,
    ) -> Informer:
        """The shared informer of a resource, with handlers; `run` waits for its first list."""
        informer = self.context.informers.informer(resource, indexers=indexers)
        if informer not in self.needs:
            self.needs.append(informer)
        if add or update or delete:
            informer.on(add, update, delete)
        return informer

    def watch_owned(self, resource: Resource) -> Informer:
        """watch, with the index "controller": the objects that a uid controls (`orphans/NAMESPACE`: nobody's)."""
        return self.watch(resource, indexers={"controller": by_controller})

    def enqueue(self, obj: Object) -> None:
        self.queue.add(key_of(obj))

    def enqueue_update(self, old: Object, new: Object) -> None:
        self.queue.add(key_of(new))

    def event(self, obj: Object, type: str, reason: str, message: str) -> None:
        self.recorder.event(obj, type, reason, message)

    # -- running ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled."""
        for informer in self.needs:
            await informer.wait_synced()
        await self.started()
        slots = asyncio.Semaphore(self.workers)
        try:
            while True:
                await slots.acquire()
                key = await self.queue.get()
                task = asyncio.create_task(self._work(key, slots))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except ShutDown:
            pass
        finally:
            self.queue.shut_down()
            for task in self._tasks:
                task.cancel()

    async def _work(self, key: str, slots: asyncio.Semaphore) -> None:
        try:
            again = await self.reconcile(key)
            self.queue.forget(key)
            if again is not None:
                self.queue.add_after(key, again)
        except StatusError as error:
            expected = is_conflict(error) or is_namespace_terminating(error) or error.code == 404
            log.log(logging.DEBUG if expected else logging.WARNING, "%s: %s: %s", self.name, key, error)
            self.queue.add_rate_limited(key)
        except (OSError, TimeoutError) as error:
            log.info("%s: %s: %s", self.name, key, error or type(error).__name__)
            self.queue.add_rate_limited(key)
        except Exception:
            log.exception("%s: %s", self.name, key)
            self.queue.add_rate_limited(key)
        finally:
            self.queue.done(key)
            slots.release()
