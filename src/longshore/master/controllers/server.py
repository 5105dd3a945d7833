"""The controller manager's process entry."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator

from longshore.client import metrics
from longshore.client.config import Config, load
from longshore.client.informer import InformerFactory
from longshore.client.leader import lead
from longshore.client.rest import Client
from longshore.master.controllers.accounts import Accounts
from longshore.master.controllers.base import Context, Controller
from longshore.master.controllers.options import Options
from longshore.master.controllers.registry import chosen

log = logging.getLogger("longshore.controllers")

RESTART_SECONDS = 1.0


async def serve(
    *,
    kubeconfig: str | os.PathLike[str] | Config | None = None,
    options: Options | None = None,
    leader_elect: bool = False,
    identity: str = "",
    lease_name: str = "kube-controller-manager",
    informers: InformerFactory | None = None,
    ready: asyncio.Event | None = None,
) -> None:
    """Run the controllers until cancelled.

    kubeconfig: a file, or a Config (identity system:kube-controller-manager). leader_elect: wait for the Lease
    kube-system/`lease_name` first, and stop when it is lost. identity: who we are in that lease; a stable one lets a
    restarted process go on at once. informers: another part's factory in this process to share live copies with.
    ready: set when all informers have synced and the controllers work.
    Raises ConfigError, ValueError (an unknown controller), StatusError (not allowed to).
    """
    options = options or Options()
    classes = chosen(options.controllers, options.disabled_by_default)
    config = kubeconfig if isinstance(kubeconfig, Config) else load(kubeconfig)
    client = Client(config, user_agent="longshore-controller-manager")
    accounts = Accounts(client) if options.service_accounts else None
    try:

        async def work() -> None:
            await _run(client, options, accounts, classes, informers, ready)

        await lead(client, work, elect=leader_elect, lease=lease_name, identity=identity)
    finally:
        if accounts is not None:
            await accounts.close()
        await client.close()


async def _run(
    client: Client,
    options: Options,
    accounts: Accounts | None,
    classes: list[type[Controller]],
    informers: InformerFactory | None,
    ready: asyncio.Event | None,
) -> None:
    context = Context(client, options, accounts, informers)
    controllers = [cls(context) for cls in classes]
    context.informers.start()
    hide = metrics.register(lambda: _samples(controllers))
    tasks = [asyncio.create_task(_keep(c), name=c.name) for c in controllers]
    try:
        await context.informers.wait_synced()
        log.info("%d controllers work", len(controllers))
        if ready is not None:
            ready.set()
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        hide()
        await context.stop()


def _samples(controllers: list[Controller]) -> Iterator[metrics.Sample]:
    """The queues' figures under upstream's names."""
    for controller in controllers:
        labels, queue = {"name": controller.name.removesuffix("-controller")}, controller.queue
        yield metrics.Sample("workqueue_depth", "gauge", "Current depth of workqueue", labels, len(queue))
        yield metrics.Sample(
            "workqueue_adds", "counter", "Total number of adds handled by workqueue", labels, queue.adds
        )
        text = "Total number of retries handled by workqueue"
        yield metrics.Sample("workqueue_retries", "counter", text, labels, queue.retries)
        text = "How long in seconds an item stays in workqueue before being requested"
        yield metrics.Sample("workqueue_queue_duration_seconds", "histogram", text, labels, queue.waited)
        text = "How long in seconds processing an item from workqueue takes"
        yield metrics.Sample("workqueue_work_duration_seconds", "histogram", text, labels, queue.worked)


async def _keep(controller: Controller) -> None:
    """A controller that falls over is told in the log and goes on."""
    while True:
        try:
            await controller.run()
            return
        except Exception:
            log.exception("%s stopped", controller.name)
            await asyncio.sleep(RESTART_SECONDS)
