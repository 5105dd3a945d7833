"""The actions that probes and lifecycle hooks share: HTTP, TCP, gRPC, exec, sleep.

Sources: kubernetes pkg/probe, pkg/kubelet/lifecycle/handlers.go, grpc health checking protocol v1.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from longshore.machinery.grpc import Client as GrpcClient
from longshore.machinery.grpc import RpcError, Status
from longshore.machinery.http import Client, ClientResponse
from longshore.node.kubelet.runtime import Runtime
from longshore.wire.protobuf import Schema

BODY_LIMIT = 10 * 1024
#: by how much a timeout may come late before the lateness is this process's own and not the container's
LATE_SECONDS = 0.1
MAX_REDIRECTS = 10
USER_AGENT = "kube-probe/1.36"
_HEALTH = """
service Health: Check(HealthCheckRequest)HealthCheckResponse
enum ServingStatus: UNKNOWN SERVING NOT_SERVING SERVICE_UNKNOWN
HealthCheckRequest: 1 service string
HealthCheckResponse: 1 status ServingStatus
"""


@contextlib.asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """asyncio.timeout, but an answer that came while this process itself had no time is still taken.

    The loop runs what is over before it reads: late by a second, it would call a container silent whose answer lies there.
    """
    loop, due = asyncio.get_running_loop(), time.monotonic() + seconds
    async with asyncio.timeout(None) as limit:

        def over() -> None:
            late = time.monotonic() - due
            limit.reschedule(loop.time() + (min(late, seconds) if late > LATE_SECONDS else 0.0))

        timer = loop.call_later(seconds, over)
        try:
            yield
        finally:
            timer.cancel()


def resolve_port(port: int | str, container: Mapping[str, Any]) -> int:
    """A port's number; names are looked up among the container's ports. Raises ValueError."""
    if isinstance(port, int):
        number = port
    else:
        found = next((p["containerPort"] for p in container.get("ports") or () if p.get("name") == port), None)
        if found is None:
            if not str(port).isdigit():
                raise ValueError(f"couldn't find port: {port!r} in container {container['name']!r}")
            found = int(port)
        number = int(found)
    if not 0 < number < 65536:
        raise ValueError(f"invalid port number: {number}")
    return number


class Handlers:
    """Does one action at a time against a container or its pod's address."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._plain = Client()
        self._tls: Client | None = None
        self._health: Schema | None = None

    async def close(self) -> None:
        for client in filter(None, (self._plain, self._tls)):
            closing = client.close()
            if asyncio.iscoroutine(closing):
                await closing

    def _client(self, scheme: str) -> Client:
        if scheme != "https":
            return self._plain
        if self._tls is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self._tls = Client(ssl=context)
        return self._tls

    async def http(
        self,
        action: Mapping[str, Any],
        container: Mapping[str, Any],
        pod_ip: str,
        timeout: float,
        agent: str = USER_AGENT,
    ) -> tuple[int, bytes, str]:
        """(status, body's beginning, final URL) of a GET. Raises OSError, TimeoutError, ValueError."""
        scheme = str(action.get("scheme") or "HTTP").lower()
        host = action.get("host") or pod_ip
        port = resolve_port(action["port"], container)
        path = action.get("path") or "/"
        shown = f"[{host}]" if ":" in host else host
        url = f"{scheme}://{shown}:{port}{path if path.startswith('/') else '/' + path}"
        own = [(str(h["name"]), str(h.get("value") or "")) for h in action.get("httpHeaders") or ()]
        names = {name.lower() for name, _ in own}
        headers = [(n, v) for n, v in own if not (n.lower() in ("user-agent", "accept") and not v)]
        if "user-agent" not in names:
            headers.append(("User-Agent", agent))
        if "accept" not in names:
            headers.append(("Accept", "*/*"))
        headers.append(("Connection", "close"))
        async with within(timeout):
            for _ in range(MAX_REDIRECTS):
                response: ClientResponse = await self._client(scheme).request("GET", url, headers=headers)
                try:
                    body = b""
                    async for piece in response.chunks():
                        body += piece
                        if len(body) > BODY_LIMIT:
                            break
                finally:
                    await response.close()
                target = urljoin(url, response.headers.get("location") or "")
                if response.status not in (301, 302, 303, 307, 308) or target == url:
                    return response.status, body[:BODY_LIMIT], url
                where = urlsplit(target)
                if where.scheme not in ("http", "https") or where.hostname != urlsplit(url).hostname:
                    # Another host is not asked: the redirect itself counts.
                    return response.status, body[:BODY_LIMIT], url
                scheme, url = where.scheme, target
            raise OSError(f"stopped after {MAX_REDIRECTS} redirects")

    async def tcp(self, action: Mapping[str, Any], container: Mapping[str, Any], pod_ip: str, timeout: float) -> None:
        """Connect and close. Raises OSError, TimeoutError, ValueError."""
        async with within(timeout):
            _, writer = await asyncio.open_connection(
                action.get("host") or pod_ip, resolve_port(action["port"], container)
            )
            writer.close()

    async def grpc(self, action: Mapping[str, Any], pod_ip: str, timeout: float) -> tuple[bool, str]:
        """(healthy, what the server said). Raises TimeoutError with upstream's text."""
        if self._health is None:
            self._health = Schema("grpc.health.v1", _HEALTH)
        health = self._health
        client = GrpcClient(health.Health, host=pod_ip, port=int(action["port"]), metadata=[("user-agent", USER_AGENT)])
        try:
            answer = await client.call("Check", deadline=timeout, service=action.get("service") or "")
        except RpcError as error:
            if error.status is Status.UNIMPLEMENTED:
                return False, f"error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {error.message}"  # fmt: skip
            if error.status is Status.DEADLINE_EXCEEDED:
                raise TimeoutError(f"timeout: health rpc did not complete within {timeout:g}s") from error
            if error.status is Status.UNAVAILABLE:
                return False, f'timeout: failed to connect service "{pod_ip}:{action["port"]}" within {timeout:g}s: {error.message}'  # fmt: skip
            return False, f"error: health rpc probe failed: {error.message}"
        finally:
            client.close()
        word = health.value_name("ServingStatus", answer.status)
        return answer.status == health.SERVING, f"service unhealthy (responded with {word!r})"

    async def exec(self, container_id: str, command: list[str], timeout: float) -> tuple[int, bytes]:
        """(exit code, output). Raises RpcError (DEADLINE_EXCEEDED past the timeout)."""
        return await self._runtime.exec_sync(container_id, command, timeout)
