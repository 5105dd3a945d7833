"""Addresses for Services of type LoadBalancer, from a pool that the nodes serve themselves.

A Service gets the lowest free address (or the one of spec.loadBalancerIP, if it is in the pool and free) in its status, where every
kube-proxy finds it. A status that somebody else has filled is left alone, and so is a Service with a loadBalancerClass: that is
another implementation's. Source: kubernetes.io "Service" (type LoadBalancer); reasons of events as the cloud provider's service
controller gives them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from longshore.client.objects import is_deleting
from longshore.client.resources import SERVICES
from longshore.client.store import Object, key_of
from longshore.master.controllers.base import Controller

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def addresses_of(service: Object) -> list[str]:
    """What a Service's status says."""
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return [entry["ip"] for entry in ingress if entry.get("ip")]


class ServiceLoadBalancerController(Controller):
    """Gives and takes back addresses of `load_balancer_pool`."""

    name = "service-lb-controller"
    account = "service-controller"
    component = "service-controller"
    workers = 1  # so that no two Services are given one address

    def setup(self) -> None:
        self.pool = [ipaddress.ip_network(text) for text in self.options.load_balancer_pool]
        self.given: dict[str, str] = {}  # address to the Service's key, before the informer shows it
        self.services = self.watch(
            SERVICES, add=self.enqueue, update=lambda old, new: self.enqueue(new), delete=self._gone
        )

    def _gone(self, service: Object) -> None:
        key = key_of(service)
        self.given = {address: owner for address, owner in self.given.items() if owner != key}
        # An address is free: whoever has none yet may take it.
        for other in self.services.store:
            if self._wants(other) and not addresses_of(other):
                self.enqueue(other)

    @staticmethod
    def _wants(service: Object) -> bool:
        spec = service.get("spec") or {}
        return spec.get("type") == "LoadBalancer" and not spec.get("loadBalancerClass") and not is_deleting(service)

    def _in_pool(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self.pool)

    async def reconcile(self, key: str) -> float | None:
        service = self.services.store.get(key)
        if service is None or not self.pool:
            return None
        held = addresses_of(service)
        if not self._wants(service):
            spec = service.get("spec") or {}
            if held and spec.get("type") != "LoadBalancer" and any(self._in_pool(ip) for ip in held):
                await self._patch(service, None)
                self._gone(service)
            return None
        if held:
            return None
        families = service["spec"].get("ipFamilies") or ["IPv4"]
        found: list[str] = []
        for family in families:
            address = self._free(service, 6 if family == "IPv6" else 4)
            if address:
                found.append(address)
        if not found:
            ranges = ", ".join(map(str, self.pool))
            message = f"Error syncing load balancer: failed to ensure load balancer: no address is free in {ranges}"
            self.event(service, "Warning", "SyncLoadBalancerFailed", message)
            return None
        self.event(service, "Normal", "EnsuringLoadBalancer", "Ensuring load balancer")
        for address in found:
            self.given[address] = key
        await self._patch(service, [{"ip": address, "ipMode": "VIP"} for address in found])
        self.event(service, "Normal", "EnsuredLoadBalancer", "Ensured load balancer")
        return None

    def _free(self, service: Object, family: int) -> str:
        """An address for a Service; "" when there is none."""
        key = key_of(service)
        taken = {ip for other in self.services.store if key_of(other) != key for ip in addresses_of(other)}
        taken |= {address for address, owner in self.given.items() if owner != key}
        wanted = service["spec"].get("loadBalancerIP") or ""
        if wanted:
            fits = self._in_pool(wanted) and wanted not in taken and (":" in wanted) == (family == 6)
            return wanted if fits else ""
        return next((text for text in map(str, self._pool(family)) if text not in taken), "")

    def _pool(self, family: int) -> Iterator[Address]:
        for network in self.pool:
            if network.version == family:
                yield from network.hosts()

    async def _patch(self, service: Object, ingress: list[dict[str, str]] | None) -> None:
        metadata = service["metadata"]
        # The version goes along: somebody else's address that came in between is not overwritten.
        patch = {
            "metadata": {"resourceVersion": metadata["resourceVersion"]},
            "status": {"loadBalancer": {"ingress": ingress}},
        }
        await self.client.patch(SERVICES, metadata["name"], patch, metadata["namespace"], subresource="status")
