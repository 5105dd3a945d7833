"""Where the kubelet of a node listens, and the clients that speak to kubelets and Pods.

Source: k8s.io/kubernetes/pkg/kubelet/client/kubelet_client.go, apiserver/pkg/util/proxy.
"""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import NamedTuple

from longshore.machinery.errors import bad_request, not_found
from longshore.machinery.http import Client, client_context
from longshore.master.apiserver.context import Object, ObjectReader

ADDRESS_TYPES = ("InternalIP", "ExternalIP", "Hostname", "InternalDNS", "ExternalDNS")
KUBELET_PORT = 10250


class Location(NamedTuple):
    """Where something is reached: scheme, host (an address or a name), port ("" for the scheme's)."""

    scheme: str
    host: str
    port: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}"


class Kubelets:
    """Knows the nodes' addresses; holds the clients.

    certificate, key: this server's client certificate at kubelets. ca: what their serving certificates are checked
    against; without it they are not, as upstream has it.
    """

    def __init__(
        self, api: ObjectReader, *, certificate: Path | None = None, key: Path | None = None, ca: Path | None = None
    ) -> None:
        self._api = api
        self._certificate, self._key, self._ca = certificate, key, ca
        self._checked: Client | None = None
        self._unchecked: Client | None = None
        self._pods: Client | None = None

    def location(self, node: str) -> Location:
        """The kubelet of a node; 404 without such a node, 500 when it has no address."""
        found = self._api.get("", "nodes", "", node)
        if found is None:
            raise not_found("", "nodes", node)
        return kubelet_location(found)

    def client(self, *, insecure: bool = False) -> Client:
        """The client for kubelets; `insecure` does not check their certificates."""
        if self._ca is None or insecure:
            if self._unchecked is None:
                self._unchecked = Client(ssl=self._context(verify=False))
            return self._unchecked
        if self._checked is None:
            self._checked = Client(ssl=self._context(verify=True))
        return self._checked

    def _context(self, verify: bool) -> ssl.SSLContext:
        return client_context(ca=self._ca, certificate=self._certificate, key=self._key, verify=verify)

    def pods(self) -> Client:
        """The client for Pods and Services: no certificate of ours, theirs are not checked."""
        if self._pods is None:
            self._pods = Client(ssl=client_context(verify=False))
        return self._pods

    async def close(self) -> None:
        for client in (self._checked, self._unchecked, self._pods):
            if client is not None:
                await client.close()


def kubelet_location(node: Object) -> Location:
    status = node.get("status") or {}
    addresses = status.get("addresses") or []
    for kind in ADDRESS_TYPES:
        for address in addresses:
            if address.get("type") == kind and address.get("address"):
                port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port") or KUBELET_PORT
                return Location("https", address["address"], str(port))
    raise bad_request(f"no preferred addresses found; known addresses: {[a.get('type') for a in addresses]}")


def check_address(address: str) -> None:
    """400 for addresses that the server does not carry anyone to (proxyutil.IsProxyableIP)."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        raise bad_request("address not allowed") from None
    if ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        raise bad_request("address not allowed")
