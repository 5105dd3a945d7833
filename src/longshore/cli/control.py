"""Talking to a running cluster from the command line: the supervisor's socket, the API server's readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from longshore.cli import addons
from longshore.cli.cluster import ClusterConfig
from longshore.cli.main import UserError
from longshore.client import config as client_config
from longshore.client.resources import BY_KIND, NODES
from longshore.client.rest import Client as APIClient
from longshore.machinery.errors import StatusError
from longshore.machinery.http import Client, ClientError
from longshore.machinery.paths import Layout

RETRY_SECONDS = 0.05


async def ask(layout: Layout, method: str, path: str) -> dict[str, Any] | None:
    """One request to the supervisor; None when there is none."""
    client = Client(unix=layout.run / "control.sock")
    try:
        answer = await client.request(method, f"http://localhost{path}", timeout=10)
        body = await answer.read()
        return orjson.loads(body) if body else {}
    except (OSError, ClientError):
        return None
    finally:
        await client.close()


async def status(layout: Layout) -> dict[str, Any] | None:
    """Every part as the supervisor sees it; None when no supervisor runs."""
    return await ask(layout, "GET", "/status")


async def is_running(layout: Layout) -> bool:
    return await status(layout) is not None


def api_client(layout: Layout, who: str = "admin") -> APIClient:
    """A client of the API server with one of the cluster's own kubeconfigs. Raises UserError where there is none."""
    try:
        return APIClient(client_config.load(layout.kubeconfig(who)), user_agent="longshore")
    except client_config.ConfigError as error:
        raise UserError(f"{error}: is there a cluster of this machine's own?") from None


async def _supervised(layout: Layout) -> None:
    """Return when the supervisor answers: what a killed one left running, and would answer for now, has ended by then."""
    client = Client(unix=layout.run / "control.sock")
    try:
        while True:
            try:
                await (await client.request("GET", "http://localhost/", timeout=10)).read()
                return
            except (OSError, ClientError):
                await asyncio.sleep(RETRY_SECONDS)
    finally:
        await client.close()


async def wait_ready(layout: Layout, config: ClusterConfig, say: Callable[[str], None]) -> None:
    """Return when every node of the cluster is Ready: the API server is asked until it answers, then watched."""
    await _supervised(layout)
    client = api_client(layout)
    try:
        while True:
            try:
                await client.raw("GET", "/readyz")
                break
            except (OSError, ClientError, StatusError):
                await asyncio.sleep(RETRY_SECONDS)
        say("API server ready")
        wanted = addons.manifests(config, (layout.pki / "ca.crt").read_bytes())
        await asyncio.gather(*(apply(client, obj) for obj in wanted))
        await _nodes(client, config, say)
    finally:
        await client.close()


async def wait_nodes(
    layout: Layout, config: ClusterConfig, identity: client_config.Config, say: Callable[[str], None]
) -> None:
    """Return when this machine's node is Ready, as the node itself sees it in the cluster that it has joined."""
    await _supervised(layout)
    client = APIClient(identity, user_agent="longshore")
    try:
        await _nodes(client, config, say)
    finally:
        await client.close()


async def _nodes(client: APIClient, config: ClusterConfig, say: Callable[[str], None]) -> None:
    missing = {node.name for node in config.nodes}
    # A node may look at itself alone.
    only = f"metadata.name={config.nodes[0].name}" if config.remote else ""
    while missing:
        try:
            found = await client.list(NODES, field_selector=only)
            for node in found["items"]:
                _note(node, missing, say)
            if not missing:
                return
            version = found["metadata"]["resourceVersion"]
            async for batch in client.watch(NODES, resource_version=version, field_selector=only):
                for _, node in batch:
                    _note(node, missing, say)
                if not missing:
                    return
        except (OSError, ClientError, StatusError):
            await asyncio.sleep(RETRY_SECONDS)


def _note(node: dict[str, Any], missing: set[str], say: Callable[[str], None]) -> None:
    name = node["metadata"].get("name", "")
    conditions = node.get("status", {}).get("conditions", [])
    if name in missing and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
        missing.discard(name)
        say(f"node {name} Ready")


async def apply(api: APIClient, obj: dict[str, Any]) -> dict[str, Any]:
    """Server-side apply of one manifest, by the `longshore` field manager."""
    group, _, version = obj["apiVersion"].rpartition("/")
    known = BY_KIND.get((group, obj["kind"]))
    if known is None:
        raise StatusError(404, "NotFound", f'no matches for kind "{obj["kind"]}" in version "{obj["apiVersion"]}"')
    namespace = obj["metadata"].get("namespace", "")
    resource = known._replace(version=version)
    return await api.patch(
        resource, obj["metadata"]["name"], obj, namespace, kind="apply", field_manager="longshore", force=True
    )
