"""The log part of a node: collector, store and Loki's API on one HTTPS port."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from longshore.client.delegated import Delegated
from longshore.client.metrics import register
from longshore.client.rest import Client
from longshore.machinery.http import Client as HTTPClient
from longshore.machinery.http import Server
from longshore.node.logs.cluster import Addresses, ClusterQuerier
from longshore.node.logs.collector import Collector, Describe
from longshore.node.logs.figures import samples
from longshore.node.logs.inputs.emit import StoreEmit
from longshore.node.logs.inputs.forward import ForwardInput
from longshore.node.logs.journald import Journald
from longshore.node.logs.loki import LokiAPI
from longshore.node.logs.objects import EventLog, PodLabels
from longshore.node.logs.parts import AuditLog, LineFiles, PartLogs
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
    audit: Path | None = None,
    journald: Path | None = None,
    events: Client | None = None,
    peers: HTTPClient | None = None,
    addresses: Addresses = dict,
    retention: Retention | None = None,
    forward: tuple[str, int] | None = None,
    fluent_conf: Path | None = None,
) -> None:
    """Collect, store and answer until cancelled.

    pods: the pods' log folder; folder: of the store; client: asks the API server who may read (None: everybody may,
    for tests); describe: labels of a container beyond what its log's path tells; pod_labels: take them from the pods'
    objects through `client` instead; parts: the folder of the parts' own logs; audit: that of the API server's audit
    log; journald: the machine's journal; events: a client that may read the cluster's Events, which become a stream;
    peers: what asks the other nodes' log parts, which `addresses` names, so that one query asks all; forward: where the forward protocol's
    input listens (a port that somebody else has is told in the log, and collecting goes on); fluent_conf: a Fluentd configuration, which takes the place of `forward` where the file is.
    """
    store = LogStore(folder, retention)
    labels = PodLabels(client, node) if client and pod_labels else None
    collector = Collector(pods, store, node, labels.describe if labels else describe)
    collector.start()
    line_files: list[LineFiles] = []
    if parts:
        line_files.append(PartLogs(parts, store, node))
    if audit:
        line_files.append(AuditLog(audit, store, node))
    for files in line_files:
        files.start()
    querier = LogQuerier(store)
    api = LokiAPI(
        querier, Delegated(client) if client else None, store, node, ClusterQuerier(querier, peers, addresses)
    )
    server = Server(api.handle)
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
    unregister = register(lambda: samples(collector, store, fluent))
    try:
        async with asyncio.TaskGroup() as tasks:
            if labels:
                tasks.create_task(labels.run(collector.renew))
            if fluent_conf is not None:
                tasks.create_task(_pipeline(fluent_conf, folder.parent / "fluentd", store, node, client))
            if journald:
                tasks.create_task(Journald(journald, store, node, folder / "journald.cursor").run())
            if events:
                tasks.create_task(EventLog(events, store, node).run())
            await asyncio.get_running_loop().create_future()
    finally:
        unregister()
        if fluent:
            await fluent.close()
        for files in line_files:
            files.close()
        collector.close()
        await server.close()
        await store.close()


async def _pipeline(conf: Path, folder: Path, store: LogStore, node: str, client: Client | None) -> None:
    """Obey a Fluentd configuration beside the collector; one that is wrong is told, and collecting goes on."""
    from longshore.node.logs.fluentd import config, pipeline
    from longshore.node.logs.fluentd.system import system_of

    try:
        root = config.load(conf)
        if system_of(root).workers > 1:
            raise root.error("a node has one worker: `longshore fluentd` runs several")
        await pipeline.run(root, folder, store, node, client)
    except (config.ConfigError, OSError) as error:
        log.error("%s is not obeyed: %s", conf, error)
