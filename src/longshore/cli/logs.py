"""`longshore logs`: LogQL over every node, or plainly a Deployment's (pod's, ...) lines, coloured by pod."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import time
import zlib
from typing import Any
from urllib.parse import urlencode

import orjson

from longshore.cli import cluster, control
from longshore.cli.main import UserError, layout_of
from longshore.client.resources import NODES, Resource
from longshore.machinery.errors import StatusError
from longshore.machinery.http import Client, ClientError, client_context
from longshore.node.logs.server import DEFAULT_PORT

COLOURS = (31, 32, 33, 34, 35, 36, 91, 92, 93, 94, 95, 96)
#: kind -> resource, and how the names of its pods follow from its own.
KINDS: dict[str, tuple[Resource, str]] = {
    "pod": (Resource("", "v1", "pods"), "{}"),
    "deployment": (Resource("apps", "v1", "deployments"), "{}-[a-z0-9]+-[a-z0-9]{{5}}"),
    "replicaset": (Resource("apps", "v1", "replicasets"), "{}-[a-z0-9]{{5}}"),
    "daemonset": (Resource("apps", "v1", "daemonsets"), "{}-[a-z0-9]{{5}}"),
    "statefulset": (Resource("apps", "v1", "statefulsets"), "{}-[0-9]+"),
    "job": (Resource("batch", "v1", "jobs"), "{}-[a-z0-9]{{5}}"),
}
SHORT = {"po": "pod", "deploy": "deployment", "rs": "replicaset", "ds": "daemonset", "sts": "statefulset"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", help='LogQL such as \'{namespace="shop"} |= "error"\', or deployment/front')
    parser.add_argument("--namespace", "-n", default="default", help="of kind/name (default %(default)s)")
    parser.add_argument("--since", default="1h", help="how far back (default %(default)s)")
    parser.add_argument("--limit", type=int, default=1000, help="most lines (default %(default)s)")
    parser.add_argument("--follow", "-f", action="store_true", help="go on with new lines")
    parser.add_argument("--container", "-c", default="", help="one container only, of kind/name")
    parser.add_argument("--no-color", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    layout = layout_of(arguments)
    config = cluster.load(layout)
    if config is None:
        raise UserError("no cluster: `longshore up` comes first")
    query = arguments.query if "{" in arguments.query else selector(arguments.query, arguments)
    colour = sys.stdout.isatty() and not arguments.no_color and "NO_COLOR" not in os.environ

    def show(labels: dict[str, str], line: str) -> None:
        name = labels.get("pod", labels.get("part", ""))
        if colour:
            code = COLOURS[zlib.crc32(name.encode()) % len(COLOURS)]
            name = f"\x1b[{code}m{name}\x1b[0m"
        print(f"{name} {line}", flush=arguments.follow)

    async def main() -> None:
        pki = layout.pki
        context = client_context(ca=pki / "ca.crt", certificate=pki / "admin.crt", key=pki / "admin.key")
        http = Client(ssl=context)
        try:
            addresses = await node_addresses(layout)
            await past(http, addresses, query, arguments, show)
            if arguments.follow:
                await asyncio.gather(*(follow(http, address, query, show) for address in addresses))
        except (OSError, ClientError, StatusError) as error:
            raise UserError(str(error)) from error
        finally:
            await http.close()

    asyncio.run(main())
    return 0


def selector(name: str, arguments: argparse.Namespace) -> str:
    """`kind/name` (or a pod's name) as a stream selector; pods that are gone are found by their names' form."""
    kind, _, plain = name.rpartition("/")
    kind = SHORT.get(kind, kind.removesuffix("s")) or "pod"
    if kind not in KINDS:
        raise UserError(f"the server doesn't have logs of a {kind!r}; known: {', '.join(KINDS)}")
    pattern = KINDS[kind][1].format(re.escape(plain).replace("\\-", "-"))
    parts = [f'namespace="{arguments.namespace}"', f'pod=~"{pattern}"']
    if arguments.container:
        parts.append(f'container="{arguments.container}"')
    return "{" + ", ".join(parts) + "}"


async def node_addresses(layout: Any) -> list[str]:
    """Where the nodes' log parts answer."""
    api = control.api_client(layout)
    try:
        nodes = await api.list(NODES)
    finally:
        await api.close()
    found = []
    for node in nodes["items"]:
        found += [a["address"] for a in node["status"].get("addresses", []) if a["type"] == "InternalIP"][:1]
    return [f"https://{address}:{DEFAULT_PORT}" for address in found]


async def past(http: Client, addresses: list[str], query: str, arguments: argparse.Namespace, show: Any) -> None:
    """Ask every node, merge by time, show the newest `limit` lines oldest first; of a metric its value now."""
    if not query.lstrip().startswith("{"):
        await metric_now(http, addresses, query)
        return
    parameters = {"query": query, "since": arguments.since, "limit": arguments.limit, "direction": "backward"}
    lines: list[tuple[int, dict[str, str], str]] = []
    for address in addresses:
        result = await ask(http, f"{address}/loki/api/v1/query_range", parameters)
        for stream in result["result"]:
            lines.extend((int(when), stream["stream"], line) for when, line in stream["values"])
    lines.sort(key=lambda item: item[0])
    for _, labels, line in lines[-arguments.limit :]:
        show(labels, line)


async def metric_now(http: Client, addresses: list[str], query: str) -> None:
    """Print the series of a metric query over all nodes, one a line."""
    from longshore.node.logs.logql.ast import LogQLError
    from longshore.node.logs.logql.parser import parse
    from longshore.node.logs.merge import instant

    at = time.time_ns()

    async def leaf(address: str, number: int) -> dict[str, Any]:
        return await ask(http, f"{address}/loki/api/v1/query", {"query": query, "time": at, "leaf": number})

    try:
        series = await instant(parse(query), at, addresses, leaf)
    except LogQLError as error:
        raise UserError(str(error)) from error
    for key, row in series.items():
        if row[0] is not None:
            print(orjson.dumps({"metric": dict(key), "value": [at / 1e9, f"{row[0]:.17g}"]}).decode())


async def ask(http: Client, url: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The `data` of one node's answer. Raises UserError with its words when it refuses."""
    answer = await http.request("GET", f"{url}?{urlencode(parameters)}", timeout=60)
    body = await answer.read()
    if answer.status != 200:
        raise UserError(body.decode(errors="replace").strip())
    data: dict[str, Any] = orjson.loads(body)["data"]
    return data


async def follow(http: Client, address: str, query: str, show: Any) -> None:
    """Show what one node collects from now on."""
    answer = await http.request("GET", f"{address}/loki/api/v1/follow?{urlencode({'query': query})}")
    if answer.status != 200:
        raise UserError((await answer.read()).decode(errors="replace").strip())
    rest = b""
    async for chunk in answer.chunks():
        *lines, rest = (rest + chunk).split(b"\n")
        for raw in lines:
            entry = orjson.loads(raw)
            if "dropped" in entry:
                print(f"({entry['dropped']} lines came too fast and were not shown)", file=sys.stderr)
            else:
                show(entry["stream"], entry["line"])
