"""What the server serves: its resources, by aggregated discovery (or group by group from servers without it).

Source: kubernetes.io "Kubernetes API Concepts", section API discovery.
"""

from __future__ import annotations

from typing import NamedTuple

from longshore.client.resources import Resource
from longshore.client.rest import Client, Object
from longshore.machinery.errors import StatusError

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"


class Served(NamedTuple):
    """A resource that the server serves, and what may be done with it."""

    resource: Resource
    verbs: frozenset[str]


class Discovery(NamedTuple):
    """All resources in their groups' preferred versions; group versions that could not be asked."""

    served: list[Served]
    failures: dict[str, str]


async def discover(client: Client) -> Discovery:
    """Ask what is served. Raises StatusError or OSError when not even the roots answer."""
    result = Discovery([], {})
    for root in ("/api", "/apis"):
        answer = await client.call("GET", root, accept=AGGREGATED)
        if answer.get("kind") == "APIGroupDiscoveryList":
            for group in answer.get("items") or ():
                _aggregated(group, result)
        elif root == "/api":
            for version in answer.get("versions") or ():
                await _plain(client, "", version, f"/api/{version}", result)
        else:
            for group in answer.get("groups") or ():
                version = group.get("preferredVersion", {}).get("version", "")
                await _plain(client, group["name"], version, f"/apis/{group['name']}/{version}", result)
    return result


def _aggregated(group: Object, result: Discovery) -> None:
    name = group.get("metadata", {}).get("name", "")
    seen: set[str] = set()
    for version in group.get("versions") or ():
        if version.get("freshness") == "Stale":
            result.failures[f"{name}/{version['version']}"] = "stale GroupVersion discovery"
        for entry in version.get("resources") or ():
            plural = entry["resource"]
            if plural in seen:
                continue
            seen.add(plural)
            kind = (entry.get("responseKind") or {}).get("kind", "")
            resource = Resource(name, version["version"], plural, kind, entry.get("scope") == "Namespaced")
            result.served.append(Served(resource, frozenset(entry.get("verbs") or ())))


async def _plain(client: Client, group: str, version: str, path: str, result: Discovery) -> None:
    try:
        answer = await client.call("GET", path)
    except StatusError as error:
        result.failures[f"{group}/{version}" if group else version] = error.message
        return
    for entry in answer.get("resources") or ():
        if "/" not in entry["name"]:
            resource = Resource(group, version, entry["name"], entry.get("kind", ""), bool(entry.get("namespaced")))
            result.served.append(Served(resource, frozenset(entry.get("verbs") or ())))
