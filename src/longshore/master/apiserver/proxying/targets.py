"""Where pods/proxy, services/proxy and nodes/proxy lead.

Source: k8s.io/kubernetes/pkg/registry/core/{pod,service,node} ResourceLocation, apimachinery/pkg/util/net SplitSchemeNamePort.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from longshore.machinery.errors import bad_request, not_found, service_unavailable
from longshore.machinery.http import Client
from longshore.master.apiserver.context import Object, ObjectReader

from .kubelets import Kubelets, Location, check_address

_PORT = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


class Target(NamedTuple):
    location: Location
    client: Client


def split(text: str) -> tuple[str, str, str] | None:
    """(scheme, name, port) of `name`, `name:port` or `scheme:name:port`; None when it is none of these."""
    parts = text.split(":")
    if len(parts) == 1:
        scheme, name, port = "", parts[0], ""
    elif len(parts) == 2:
        scheme, (name, port) = "", (parts[0], parts[1])
    elif len(parts) == 3:
        scheme, name, port = parts
    else:
        return None
    if scheme not in ("", "http", "https") or not name or (port and not _PORT.fullmatch(port)):
        return None
    return scheme, name, port


def pod_target(api: ObjectReader, kubelets: Kubelets, namespace: str, text: str) -> Target:
    found = split(text)
    if found is None:
        raise bad_request(f'invalid pod request "{text}"')
    scheme, name, port = found
    pod = api.get("", "pods", namespace, name)
    if pod is None:
        raise not_found("", "pods", name)
    if not port:
        for container in pod["spec"].get("containers") or ():
            if container.get("ports"):
                port = str(container["ports"][0]["containerPort"])
                break
    status = pod.get("status") or {}
    address = status.get("podIP") or next((i["ip"] for i in status.get("podIPs") or ()), "")
    check_address(address)
    return Target(Location(scheme or "http", address, port), kubelets.pods())


def service_target(api: ObjectReader, kubelets: Kubelets, namespace: str, text: str) -> Target:
    found = split(text)
    if found is None:
        raise bad_request(f'invalid service request "{text}"')
    scheme, name, port = found
    service = api.get("", "services", namespace, name)
    if service is None:
        raise not_found("", "services", name)
    if port.isdigit():
        declared = [p for p in service["spec"].get("ports") or () if p.get("port") == int(port)]
        if not declared:
            raise service_unavailable(f'no service port {port} found for service "{name}"')
        port = declared[0].get("name") or ""
    slices = api.list("discovery.k8s.io", "endpointslices", namespace, {"kubernetes.io/service-name": name})
    choices: list[tuple[Object, int]] = []
    for piece in slices:
        for p in piece.get("ports") or ():
            if (p.get("name") or "") == port and p.get("port"):
                choices += [(e, p["port"]) for e in piece.get("endpoints") or () if _ready(e)]
    random.shuffle(choices)
    for endpoint, number in choices:
        address = _checked(api, namespace, endpoint)
        if address:
            return Target(Location(scheme or "http", address, str(number)), kubelets.pods())
    raise service_unavailable(f'no endpoints available for service "{text}"')


def _ready(endpoint: Object) -> bool:
    return (endpoint.get("conditions") or {}).get("ready") is not False


def _checked(api: ObjectReader, namespace: str, endpoint: Object) -> str:
    """An address of an endpoint that really is its pod's: nobody is carried to addresses that someone wrote down."""
    reference = endpoint.get("targetRef") or {}
    if reference.get("kind") != "Pod":
        return ""
    pod = api.get("", "pods", reference.get("namespace") or namespace, reference.get("name") or "")
    if pod is None:
        return ""
    addresses = {i["ip"] for i in (pod.get("status") or {}).get("podIPs") or ()}
    return next((a for a in endpoint.get("addresses") or () if a in addresses), "")


def node_target(kubelets: Kubelets, text: str) -> Target:
    found = split(text)
    if found is None:
        raise bad_request(f'invalid node request "{text}"')
    scheme, name, port = found
    location = kubelets.location(name)
    if not port or port == location.port:
        return Target(Location(scheme or location.scheme, location.host, location.port), kubelets.client())
    check_address(location.host)
    return Target(Location(scheme or "http", location.host, port), kubelets.pods())
