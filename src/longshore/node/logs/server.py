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
    retention: Retention | None = None,
    forward: tuple[str, int] | None = None,
) -> None:
    """Collect, store and answer until cancelled.

    pods: the pods' log folder; folder: of the store; client: asks the API server who may read (None: everybody may,
    for tests); describe: labels of a container beyond what its log's path tells; forward: where the forward protocol's
    input listens (a port that somebody else has is told in the log, and collecting goes on).
    """
    store = LogStore(folder, retention)
    collector = Collector(pods, store, node, describe)
    collector.start()
    server = Server(LokiAPI(LogQuerier(store), Delegated(client) if client else None, store, node).handle)
    await server.listen_tcp(host, port, ssl=tls)
    log.info("collecting %s, answering on %s:%d", pods, host, port)
    events = ForwardInput(StoreEmit(store, node, "forward"), host=forward[0], port=forward[1]) if forward else None
    if events:
        try:
            await events.start()
        except OSError as error:
            log.warning("no forward input: %s", error)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        if events:
            await events.close()
        collector.close()
        await server.close()
        await store.close()
