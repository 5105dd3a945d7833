"""`longshore leave`: this machine's pods move elsewhere, its node goes from the cluster, nothing stays here."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from longshore.cli import cluster
from longshore.cli.down import down
from longshore.cli.joining import node_identity
from longshore.cli.main import UserError, layout_of, need_root
from longshore.client.resources import NODES, PODS
from longshore.client.rest import Client, is_not_found
from longshore.machinery.errors import StatusError
from longshore.machinery.http import ClientError

TOO_MANY_REQUESTS = 429
MIRROR = "kubernetes.io/config.mirror"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="seconds for pods to go elsewhere (default %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="leave whatever the cluster says, or if it says nothing")


def run(arguments: argparse.Namespace) -> int:
    need_root("leave")
    layout = layout_of(arguments)
    config = cluster.load(layout)
    if config is None or not config.remote:
        raise UserError(f"the machine of {layout.data} has joined no cluster")
    name = config.nodes[0].name

    async def main() -> None:
        client = Client(node_identity(layout, name), user_agent="longshore-leave")
        try:
            async with asyncio.timeout(arguments.timeout):
                await drain(client, name)
                await _delete_node(client, name)
        except (StatusError, OSError, ClientError, TimeoutError) as error:
            words = str(error) or f"pods are still here after {arguments.timeout:g} s"
            if not arguments.force:
                raise UserError(f"{words} (--force leaves all the same)") from None
            print(f"left without the cluster's knowledge: {words}")
        finally:
            await client.close()
        await down(layout, purge=True)

    asyncio.run(main())
    return 0


async def drain(client: Client, name: str) -> None:
    """Cordon a node and evict its pods (not those of DaemonSets, nor static ones); return when they have gone.

    An eviction that a disruption budget refuses is asked for again. Raises StatusError, OSError.
    """
    await client.patch(NODES, name, {"spec": {"unschedulable": True}})
    said = 0.0
    while pods := await _evictable(client, name):
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"evicting {len(pods)} pod(s)", flush=True)
        for pod in pods:
            if pod["metadata"].get("deletionTimestamp"):
                continue
            meta = pod["metadata"]
            eviction = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
            }
            try:
                await client.create(PODS, eviction, meta["namespace"], name=meta["name"], subresource="eviction")
            except StatusError as error:
                if error.code != TOO_MANY_REQUESTS and not is_not_found(error):
                    raise
        await asyncio.sleep(0.5)


async def _evictable(client: Client, name: str) -> list[dict[str, Any]]:
    found = await client.list(PODS, field_selector=f"spec.nodeName={name}")
    return [
        pod
        for pod in found["items"]
        if MIRROR not in (pod["metadata"].get("annotations") or {})
        and not any(
            o["kind"] == "DaemonSet" and o.get("controller") for o in pod["metadata"].get("ownerReferences") or ()
        )
        and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
    ]


async def _delete_node(client: Client, name: str) -> None:
    try:
        await client.delete(NODES, name)
    except StatusError as error:
        if not is_not_found(error):
            raise
