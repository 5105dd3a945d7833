"""Health check node ports: what a load balancer asks to learn whether this node has endpoints of a Service; /healthz.

Source: kubernetes.io "Preserving the client source IP" (healthCheckNodePort); the shape of the answers is upstream's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

import orjson
from prometheus_client import CollectorRegistry, generate_latest

from longshore.machinery.http import Request, Response, Server

logger = logging.getLogger("longshore.proxy")


class HealthPorts:
    """One small HTTP server per health check node port.

    healthy(): whether the proxy itself is. host: the address to listen on.
    """

    def __init__(self, healthy: Callable[[], bool], *, host: str = "0.0.0.0") -> None:
        self._healthy = healthy
        self._host = host
        self._wanted: dict[int, tuple[str, str, int]] = {}
        self._servers: dict[int, Server] = {}
        self._changed = asyncio.Event()

    def set(self, ports: Mapping[int, tuple[str, str, int]]) -> None:
        """{port: (namespace, name, number of local endpoints)}, all of them."""
        if self._wanted != ports:
            self._wanted = dict(ports)
            self._changed.set()

    async def run(self) -> None:
        """Open and close servers as wanted until cancelled."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                for port in [p for p in self._servers if p not in self._wanted]:
                    await self._servers.pop(port).close()
                for port in self._wanted:
                    if port not in self._servers:
                        await self._open(port)
        finally:
            for server in self._servers.values():
                await server.close()

    async def _open(self, port: int) -> None:
        def answer(request: Request) -> Response:
            return self._answer(port)

        server = Server(answer)
        try:
            await server.listen_tcp(self._host, port)
        except OSError as error:
            logger.error("health check node port %d cannot be served: %s", port, error)
            return
        self._servers[port] = server

    def _answer(self, port: int) -> Response:
        namespace, name, count = self._wanted.get(port, ("", "", 0))
        healthy = self._healthy()
        body = orjson.dumps(
            {
                "service": {"namespace": namespace, "name": name},
                "localEndpoints": count,
                "serviceProxyHealthy": healthy,
            }
        )
        headers = [("x-content-type-options", "nosniff"), ("x-load-balancing-endpoint-weight", str(count))]
        return Response(200 if count and healthy else 503, body, headers, "application/json")


def status_handler(
    healthy: Callable[[], bool], last_sync: Callable[[], float], registry: CollectorRegistry
) -> Callable[[Request], Response]:
    """/healthz, /livez, /metrics and /proxyMode of the proxy itself."""

    def answer(request: Request) -> Response:
        if request.path in ("/healthz", "/livez"):
            good = healthy()
            body = orjson.dumps(
                {"lastUpdated": _stamp(last_sync()), "currentTime": _stamp(time.time()), "nodeEligible": True}
            )
            return Response(200 if good else 503, body, [("x-content-type-options", "nosniff")], "application/json")
        if request.path == "/metrics":
            return Response(200, generate_latest(registry), (), "text/plain; version=0.0.4; charset=utf-8")
        if request.path == "/proxyMode":
            return Response(200, b"nftables", (), "text/plain; charset=utf-8")
        return Response(404, b"404 page not found\n", (), "text/plain; charset=utf-8")

    return answer


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
