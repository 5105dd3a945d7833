"""Ingress as a part of every node's process: informers in, HTTP and HTTPS served at the node's address."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from longshore.client import Client, Informer, InformerFactory, is_conflict, is_not_found, resources
from longshore.machinery.errors import StatusError
from longshore.machinery.http import Client as HTTPClient
from longshore.machinery.http import Server
from longshore.node.ingress.certificates import Certificates
from longshore.node.ingress.forward import Forwarder
from longshore.node.ingress.routes import Object, Routes

logger = logging.getLogger("longshore.ingress")


async def serve(
    *,
    client: Client,
    host: str,
    http_port: int = 80,
    https_port: int = 443,
    informers: InformerFactory | None = None,
    ready: Callable[[int, int], None] | None = None,
) -> None:
    """Serve Ingresses of our class at the node's addresses until cancelled.

    client: may list and watch ingresses, ingressclasses and Secrets (and Services and slices, when informers is None), and
    patch ingresses' status. host: the node's address ("v4,v6" for two); it is put into the status. http_port, https_port: 0 takes a free
    one, a negative number none. A port that is taken already is told and left. ready: told the ports.
    Nothing is opened before there is an Ingress of our class.
    """
    routes = Routes()
    wanted, stale = asyncio.Event(), asyncio.Event()

    def changed() -> None:
        stale.set()
        if routes.entries:
            wanted.set()

    routes.changed = changed
    ingresses = Informer(client, resources.INGRESSES)
    classes = Informer(client, resources.INGRESS_CLASSES)
    ingresses.on(routes.ingress, lambda old, new: routes.ingress(new), routes.ingress_gone)
    classes.on(routes.ingress_class, lambda old, new: routes.ingress_class(new), routes.ingress_class_gone)
    async with asyncio.TaskGroup() as group:
        group.create_task(ingresses.run(), name="ingresses")
        group.create_task(classes.run(), name="ingress classes")
        await wanted.wait()
        own = InformerFactory(client) if informers is None else None
        shared = informers or own
        assert shared is not None
        services, slices = shared.informer(resources.SERVICES), shared.informer(resources.ENDPOINT_SLICES)
        services.on(routes.service, lambda old, new: routes.service(new), routes.service_gone)
        slices.on(routes.slice, lambda old, new: routes.slice(new), routes.slice_gone)
        if own is not None:
            own.start()
        await shared.wait_synced([services, slices])
        opened: list[Server] = []
        async with HTTPClient(connect_timeout=5.0) as upstream:
            try:
                certificates = Certificates(routes.secret_for)
                plain = secure = 0
                for address in host.split(","):
                    # A port that was chosen for the first address is the second's as well.
                    plain = await _listen(opened, routes, upstream, "http", address, plain or http_port, None)
                    secure = await _listen(
                        opened, routes, upstream, "https", address, secure or https_port, certificates
                    )
                logger.info("Ingress at %s, ports %s and %s", host, plain or "none", secure or "none")
                group.create_task(_secrets(client, routes, certificates, stale), name="ingress secrets")
                group.create_task(_tell(client, routes, host, stale), name="ingress status")
                if ready is not None:
                    ready(plain, secure)
                await asyncio.Event().wait()
            finally:
                for server in opened:
                    await server.close()
                if own is not None:
                    await own.stop()


async def _listen(
    opened: list[Server],
    routes: Routes,
    upstream: HTTPClient,
    scheme: str,
    host: str,
    port: int,
    certificates: Certificates | None,
) -> int:
    """Open one listener; its port, 0 when there is none."""
    if port < 0:
        return 0
    server = Server(Forwarder(routes, upstream, scheme, port))
    try:
        bound = await server.listen_tcp(host, port, ssl=certificates.default if certificates else None)
    except OSError as error:
        logger.warning("no Ingress over %s: %s port %d: %s", scheme, host, port, error.strerror)
        return 0
    opened.append(server)
    return bound


async def _secrets(client: Client, routes: Routes, certificates: Certificates, stale: asyncio.Event) -> None:
    """Watch certificates from the first Ingress on that names one."""
    while not routes.wants_secrets:
        await stale.wait()
        await asyncio.sleep(0.05)
    secrets = Informer(client, resources.SECRETS, field_selector="type=kubernetes.io/tls")
    secrets.on(certificates.secret, lambda old, new: certificates.secret(new), certificates.secret_gone)
    await secrets.run()


async def _tell(client: Client, routes: Routes, host: str, stale: asyncio.Event) -> None:
    """Keep our address in the status of our Ingresses."""
    while True:
        stale.clear()
        for _, obj in routes.entries:
            try:
                await _tell_one(client, obj, host)
            except (StatusError, OSError) as error:
                if isinstance(error, StatusError) and (is_conflict(error) or is_not_found(error)):
                    continue  # a newer one is on its way here
                logger.info("the status of Ingress %s is not written: %s", obj["metadata"]["name"], error)
                await asyncio.sleep(1)
                stale.set()
        await stale.wait()
        await asyncio.sleep(0.05)


async def _tell_one(client: Client, obj: Object, host: str) -> None:
    there = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    missing = [address for address in host.split(",") if all(entry.get("ip") != address for entry in there)]
    if not missing:
        return
    metadata = obj["metadata"]
    patch = {
        "metadata": {"resourceVersion": metadata["resourceVersion"]},
        "status": {"loadBalancer": {"ingress": [*there, *({"ip": address} for address in missing)]}},
    }
    await client.patch(resources.INGRESSES, metadata["name"], patch, metadata["namespace"], subresource="status")
