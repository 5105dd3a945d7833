"""The metrics server: asks the kubelets while somebody asks for figures, and only then."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from typing import Any

from longshore.client.resources import NODES, PODS
from longshore.client.rest import Client
from longshore.machinery.errors import StatusError
from longshore.machinery.http import Client as HTTPClient
from longshore.machinery.http import ClientError, Request, Response, Server
from longshore.master.metrics.samples import NODE, Reading, Usage, cpu_quantity, memory_quantity, read, usage

log = logging.getLogger("longshore.metrics")

GROUP, VERSION = "metrics.k8s.io", "v1beta1"
DEFAULT_PORT, KUBELET_PORT = 10443, 10250
RESOLUTION_SECONDS = 15.0
#: Readings go on for so long after the last question; an idle cluster is not read at all.
IDLE_SECONDS = 120.0
SHORTEST_WINDOW = 1.0
LARGEST_PAGE = 16 * 2**20


class Usages:
    """The last two readings of every node."""

    def __init__(self, client: Client, kubelets: HTTPClient) -> None:
        self._client = client
        self._kubelets = kubelets
        self._before: dict[str, Reading] = {}
        self._after: dict[str, Reading] = {}
        self._read_at = 0.0
        self._asked_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._first = asyncio.Event()

    async def asked(self) -> None:
        """Somebody wants figures: go on reading, and wait for the second reading where there was none lately."""
        self._asked_at = time.monotonic()
        if self._reading is None or self._reading.done():
            self._first.clear()
            self._reading = asyncio.create_task(self._read_on(), name="metrics readings")
        await self._first.wait()

    async def _read_on(self) -> None:
        try:
            self._before.clear()
            self._after.clear()
            await self.read_all()
            await asyncio.sleep(SHORTEST_WINDOW)
            await self.read_all()
            self._first.set()
            while time.monotonic() - self._asked_at < IDLE_SECONDS:
                await asyncio.sleep(RESOLUTION_SECONDS)
                await self.read_all()
        finally:
            self._first.set()

    async def read_all(self) -> None:
        """One reading of every node; a node that does not answer keeps none."""
        try:
            nodes = (await self._client.list(NODES, resource_version="0"))["items"]
        except (StatusError, OSError) as error:
            log.warning("cannot list the nodes: %s", error)
            return
        readings = await asyncio.gather(*(self._read_node(node) for node in nodes))
        self._before = self._after
        self._after = {
            node["metadata"]["name"]: reading
            for node, reading in zip(nodes, readings, strict=True)
            if reading is not None
        }

    async def _read_node(self, node: dict[str, Any]) -> Reading | None:
        status = node.get("status", {})
        address = next((a["address"] for a in status.get("addresses", []) if a["type"] == "InternalIP"), "")
        port = status.get("daemonEndpoints", {}).get("kubeletEndpoint", {}).get("Port", KUBELET_PORT)
        host = f"[{address}]" if ":" in address else address
        try:
            answer = await self._kubelets.request("GET", f"https://{host}:{port}/metrics/resource", timeout=10)
            body = await answer.read(LARGEST_PAGE)
        except (OSError, ClientError, TimeoutError) as error:
            log.warning("node %s: %s", node["metadata"]["name"], error)
            return None
        if answer.status != 200:
            log.warning("node %s answers %d", node["metadata"]["name"], answer.status)
            return None
        return read(body.decode("utf-8", "replace"), time.time())

    def node(self, name: str) -> Usage | None:
        """One node's usage."""
        before, after = self._before.get(name), self._after.get(name)
        return usage(before, after, NODE) if before and after else None

    def pod(self, node: str, namespace: str, name: str) -> dict[str, Usage]:
        """One pod's usage by container; empty while there are not two readings of each."""
        before, after = self._before.get(node), self._after.get(node)
        if before is None or after is None:
            return {}
        found = {}
        for key in after.points:
            if key[:2] == (namespace, name) and key[2]:
                used = usage(before, after, key)
                if used is None:
                    return {}
                found[key[2]] = used
        return found


class MetricsAPI:
    """metrics.k8s.io/v1beta1. Only the API server's front proxy is let in; it has asked RBAC already."""

    def __init__(
        self, client: Client, usages: Usages, allowed_names: tuple[str, ...] = ("front-proxy-client",)
    ) -> None:
        self._client = client
        self._usages = usages
        self._allowed = allowed_names

    async def handle(self, request: Request) -> Response:
        """One request of the aggregation layer."""
        if request.path in ("/healthz", "/livez", "/readyz"):
            return Response(200, b"ok", content_type="text/plain; charset=utf-8")
        if _common_name(request) not in self._allowed:
            return _error(StatusError(401, "Unauthorized", "Unauthorized"))
        try:
            return Response.json(await self._answer(request))
        except StatusError as error:
            return _error(error)
        except (OSError, ClientError) as error:
            return _error(StatusError(503, "ServiceUnavailable", str(error)))

    async def _answer(self, request: Request) -> Any:
        parts = request.path.strip("/").split("/")
        if parts[:1] != ["apis"] or (len(parts) > 1 and parts[1] != GROUP):
            raise StatusError(404, "NotFound", "the server could not find the requested resource")
        if request.method != "GET":
            raise StatusError(
                405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
            )
        if len(parts) == 1:
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group()]}
        if len(parts) == 2:
            return {"kind": "APIGroup", "apiVersion": "v1", **_group()}
        if parts[2] != VERSION:
            raise StatusError(404, "NotFound", "the server could not find the requested resource")
        match parts[3:]:
            case []:
                return _resources()
            case ["nodes"]:
                return await self._nodes(request)
            case ["nodes", name]:
                return await self._node(name)
            case ["pods"]:
                return await self._pods(request, "")
            case ["namespaces", namespace, "pods"]:
                return await self._pods(request, namespace)
            case ["namespaces", namespace, "pods", name]:
                return await self._pod(namespace, name)
        raise StatusError(404, "NotFound", "the server could not find the requested resource")

    async def _nodes(self, request: Request) -> Any:
        await self._usages.asked()
        nodes = await self._client.list(
            NODES, label_selector=request.param("labelSelector"), field_selector=request.param("fieldSelector")
        )
        items = [self._node_metrics(node) for node in nodes["items"]]
        return _list("NodeMetricsList", [item for item in items if item])

    async def _node(self, name: str) -> Any:
        node = await self._client.get(NODES, name)
        await self._usages.asked()
        return self._node_metrics(node) or _not_found("nodemetrics", name)

    def _node_metrics(self, node: dict[str, Any]) -> dict[str, Any] | None:
        name = node["metadata"]["name"]
        used = self._usages.node(name)
        if used is None:
            return None
        return {**_head("NodeMetrics", node["metadata"], used), "usage": _quantities(used)}

    async def _pods(self, request: Request, namespace: str) -> Any:
        await self._usages.asked()
        pods = await self._client.list(
            PODS,
            namespace,
            label_selector=request.param("labelSelector"),
            field_selector=request.param("fieldSelector"),
        )
        items = [self._pod_metrics(pod) for pod in pods["items"]]
        return _list("PodMetricsList", [item for item in items if item])

    async def _pod(self, namespace: str, name: str) -> Any:
        pod = await self._client.get(PODS, name, namespace)
        await self._usages.asked()
        return self._pod_metrics(pod) or _not_found("podmetrics", f"{namespace}/{name}")

    def _pod_metrics(self, pod: dict[str, Any]) -> dict[str, Any] | None:
        meta = pod["metadata"]
        used = self._usages.pod(pod.get("spec", {}).get("nodeName", ""), meta["namespace"], meta["name"])
        if not used or pod.get("status", {}).get("phase") != "Running":
            return None
        first = min(used.values(), key=lambda u: u.at)
        containers = [{"name": name, "usage": _quantities(u)} for name, u in sorted(used.items())]
        return {**_head("PodMetrics", meta, first), "containers": containers}


def _quantities(used: Usage) -> dict[str, str]:
    return {"cpu": cpu_quantity(used.cpu), "memory": memory_quantity(used.memory)}


def _head(kind: str, meta: dict[str, Any], used: Usage) -> dict[str, Any]:
    metadata = {"name": meta["name"], "creationTimestamp": _stamp(time.time())}
    if meta.get("namespace"):
        metadata["namespace"] = meta["namespace"]
    if meta.get("labels"):
        metadata["labels"] = meta["labels"]
    return {
        "kind": kind,
        "apiVersion": f"{GROUP}/{VERSION}",
        "metadata": metadata,
        "timestamp": _stamp(used.at),
        "window": f"{used.window:.3f}".rstrip("0").rstrip(".") + "s",
    }


def _stamp(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def _list(kind: str, items: list[Any]) -> dict[str, Any]:
    return {"kind": kind, "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": items}


def _group() -> dict[str, Any]:
    version = {"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION}
    return {"name": GROUP, "versions": [version], "preferredVersion": version}


def _resources() -> dict[str, Any]:
    rows = [("nodes", "NodeMetrics", False), ("pods", "PodMetrics", True)]
    found = [
        {"name": n, "singularName": "", "namespaced": ns, "kind": k, "verbs": ["get", "list"]} for n, k, ns in rows
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{VERSION}", "resources": found}


def _not_found(what: str, name: str) -> Any:
    raise StatusError(
        404, "NotFound", f'{what}.{GROUP} "{name}" not found', {"name": name, "group": GROUP, "kind": what}
    )


def _error(error: StatusError) -> Response:
    return Response.json(error.status(), error.code)


def _common_name(request: Request) -> str:
    for part in (request.peer.certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""


async def serve(
    *,
    client: Client,
    kubelet_tls: ssl.SSLContext,
    tls: ssl.SSLContext,
    host: str = "0.0.0.0",
    port: int = DEFAULT_PORT,
    ready: Callable[[int], None] | None = None,
) -> None:
    """Serve metrics.k8s.io until cancelled.

    client: may list nodes and pods; kubelet_tls: shows the kubelets a certificate whose user may `get nodes/metrics`;
    tls: this server's, whose client CA is the front proxy's. ready: told the port.
    """
    kubelets = HTTPClient(ssl=kubelet_tls)
    server = Server(MetricsAPI(client, Usages(client, kubelets)).handle)
    bound = await server.listen_tcp(host, port, ssl=tls)
    if ready is not None:
        ready(bound)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await server.close()
        await kubelets.close()
