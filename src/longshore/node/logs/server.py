"""The log part of a node: collector, store and Loki's API on one HTTPS port."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from longshore.client.delegated import Delegated
from longshore.client.rest import Client
from longshore.machinery.http import Server
from longshore.node.logs.collector import Collector, Describe
from longshore.node.logs.inputs.emit import StoreEmit
from longshore.node.logs.inputs.forward import ForwardInput
from longshore.node.logs.loki import LokiAPI
from longshore.node.logs.objects import EventLog, PodLabels
from longshore.node.logs.parts import PartLogs
from longshore.node.logs.query import LogQuerier
from longshore.node.logs.store.store import LogStore, Retention

log = logging.getLogger("longshore.logs")

DEFAULT_PORT = 3100


async def serve(
    *,
    pods: Path,
    folder: Path,
    node: str,
    host: str = "0.0.0.0",
    port: int = DEFAULT_PORT,
    tls: ssl.SSLContext | None = None,
    client: Client | None = None,
    describe: Describe | None = None,
    pod_labels: bool = False,
    parts: Path | None = None,
    events: Client | None = None,
    retention: Retention | None = None,
    forward: tuple[str, int] | None = None,
    fluent_conf: Path | None = None,
) -> None:
    """Collect, store and answer until cancelled.

    pods: the pods' log folder; folder: of the store; client: asks the API server who may read (None: everybody may,
    for tests); describe: labels of a container beyond what its log's path tells; pod_labels: take them from the pods'
    objects through `client` instead; parts: the folder of the parts' own logs; events: a client that may read the
    cluster's Events, which become a stream; forward: where the forward protocol's
    input listens (a port that somebody else has is told in the log, and collecting goes on); fluent_conf: a Fluentd configuration, which takes the place of `forward` where the file is.
    """
    store = LogStore(folder, retention)
    labels = PodLabels(client, node) if client and pod_labels else None
    collector = Collector(pods, store, node, labels.describe if labels else describe)
    collector.start()
    part_logs = PartLogs(parts, store, node) if parts else None
    if part_logs:
        part_logs.start()
    server = Server(LokiAPI(LogQuerier(store), Delegated(client) if client else None, store, node).handle)
    await server.listen_tcp(host, port, ssl=tls)
    log.info("collecting %s, answering on %s:%d", pods, host, port)
    if fluent_conf is not None and not fluent_conf.exists():
        fluent_conf = None
    if fluent_conf is not None:
        forward = None
    fluent = ForwardInput(StoreEmit(store, node, "forward"), host=forward[0], port=forward[1]) if forward else None
    if fluent:
        try:
            await fluent.start()
        except OSError as error:
            log.warning("no forward input: %s", error)
    try:
        async with asyncio.TaskGroup() as tasks:
            if labels:
                tasks.create_task(labels.run(collector.renew))
            if fluent_conf is not None:
                tasks.create_task(_pipeline(fluent_conf, folder.parent / "fluentd", store, node))
            if events:
                tasks.create_task(EventLog(events, store, node).run())
            await asyncio.get_running_loop().create_future()
    finally:
        if fluent:
            await fluent.close()
        if part_logs:
            part_logs.close()
        collector.close()
        await server.close()
        await store.close()


async def _pipeline(conf: Path, folder: Path, store: LogStore, node: str) -> None:
    """Obey a Fluentd configuration beside the collector; one that is wrong is told, and collecting goes on."""
    from longshore.node.logs.fluentd import config, pipeline

    try:
        await pipeline.run(config.load(conf), folder, store, node)
    except (config.ConfigError, OSError) as error:
        log.error("%s is not obeyed: %s", conf, error)
