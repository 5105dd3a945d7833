"""The scheduler's process entry."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from longshore.client import metrics
from longshore.client.config import Config, load
from longshore.client.informer import InformerFactory
from longshore.client.leader import lead
from longshore.client.rest import Client
from longshore.master.scheduler.configuration import Configuration, read
from longshore.master.scheduler.core import Scheduler
from longshore.master.scheduler.extender import Extender

log = logging.getLogger("longshore.scheduler")


async def serve(
    *,
    kubeconfig: str | os.PathLike[str] | Config | None = None,
    config: str | os.PathLike[str] | None = None,
    leader_elect: bool = False,
    identity: str = "",
    lease_name: str = "kube-scheduler",
    informers: InformerFactory | None = None,
    ready: asyncio.Event | None = None,
) -> None:
    """Run the scheduler until cancelled.

    kubeconfig: a file, or a Config (identity system:kube-scheduler). config: a KubeSchedulerConfiguration v1 file;
    None means the default profile. leader_elect: wait for the Lease kube-system/`lease_name` first, and stop when it
    is lost. identity: who we are in that lease. informers: another part's factory in this process to share live
    copies with (it is started here when it is not yet, and left running). ready: set when pods are being scheduled.
    Raises ConfigError, ConfigurationError (bad scheduler configuration), StatusError (not allowed to).
    """
    settings = read(Path(config)) if config is not None else Configuration()
    client = Client(
        kubeconfig if isinstance(kubeconfig, Config) else load(kubeconfig), user_agent="longshore-scheduler"
    )
    try:

        async def work() -> None:
            factory = informers or InformerFactory(client)
            scheduler = Scheduler(
                client,
                factory,
                settings.profiles,
                extenders=[Extender(e) for e in settings.extenders],
                initial_backoff=settings.initial_backoff,
                max_backoff=settings.max_backoff,
            )
            factory.start()
            hide = metrics.register(scheduler.samples)
            task = asyncio.create_task(scheduler.run(), name="scheduler")
            try:
                await factory.wait_synced([scheduler.pods, scheduler.nodes])
                log.info("scheduling for %s", ", ".join(scheduler.profiles))
                if ready is not None:
                    ready.set()
                await task
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                hide()
                if informers is None:
                    await factory.stop()

        await lead(client, work, elect=leader_elect, lease=lease_name, identity=identity)
    finally:
        await client.close()
