"""`longshore logs`: LogQL over every node, or plainly a Deployment's (pod's, ...) lines, coloured by pod."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
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
            address = await answering(http, await node_addresses(layout))
            if not query.lstrip().startswith("{"):
                await metric_now(http, address, query)
                return
            await past(http, address, query, arguments, show)
            if arguments.follow:
                await follow(http, address, query, show)
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
    return [f"https://{cluster.authority(address, DEFAULT_PORT)}" for address in found]


async def answering(http: Client, addresses: list[str]) -> str:
    """The first node whose log part answers: it asks the others. Raises the last one's error."""
    last: Exception = UserError("the cluster has no nodes")
    for address in addresses:
        try:
            answer = await http.request("GET", f"{address}/ready", timeout=5)
            await answer.read()
            return address
        except (OSError, ClientError, TimeoutError) as error:
            last = error
    raise last


async def past(http: Client, address: str, query: str, arguments: argparse.Namespace, show: Any) -> None:
    """Show the newest `limit` lines of all nodes, oldest first."""
    parameters = {"query": query, "since": arguments.since, "limit": arguments.limit, "direction": "backward"}
    lines: list[tuple[int, dict[str, str], str]] = []
    for stream in await ask(http, f"{address}/loki/api/v1/query_range", parameters):
        lines.extend((int(when), stream["stream"], line) for when, line in stream["values"])
    lines.sort(key=lambda item: item[0])
    for _, labels, line in lines:
        show(labels, line)


async def metric_now(http: Client, address: str, query: str) -> None:
    """Print the series of a metric query over all nodes, one a line."""
    for series in await ask(http, f"{address}/loki/api/v1/query", {"query": query}):
        print(orjson.dumps(series).decode())


async def ask(http: Client, url: str, parameters: dict[str, Any]) -> list[Any]:
    """An answer's result; what it lacks is told on stderr. Raises UserError with the words of a refusal."""
    answer = await http.request("GET", f"{url}?{urlencode(parameters)}", timeout=90)
    body = await answer.read()
    if answer.status != 200:
        raise UserError(body.decode(errors="replace").strip())
    told = orjson.loads(body)
    for warning in told.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    result: list[Any] = told["data"]["result"]
    return result


async def follow(http: Client, address: str, query: str, show: Any) -> None:
    """Show what the nodes collect from now on."""
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
