"""ServiceCIDRs: ready when they may be used, and not gone while addresses of theirs are in use.

Source: kubernetes pkg/controller/servicecidrs, described behaviour.
"""

from __future__ import annotations

import ipaddress

from longshore.client.objects import condition, is_deleting, set_condition
from longshore.client.resources import IP_ADDRESSES, SERVICE_CIDRS
from longshore.client.store import Object
from longshore.master.controllers.base import Controller

FINALIZER = "networking.k8s.io/service-cidr-finalizer"


def networks(cidr: Object) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(text) for text in cidr["spec"].get("cidrs") or ()]


class ServiceCIDRController(Controller):
    """Keeps the finalizer and the Ready condition of ServiceCIDRs."""

    name = "service-cidr-controller"
    account = "service-cidrs-controller"
    component = "service-cidr-controller"

    def setup(self) -> None:
        self.cidrs = self.watch(SERVICE_CIDRS, add=self._any, update=lambda old, new: self._any(new), delete=self._any)
        self.addresses = self.watch(IP_ADDRESSES, delete=self._address_gone)

    def _any(self, cidr: Object) -> None:
        for found in self.cidrs.store:
            self.enqueue(found)

    def _address_gone(self, address: Object) -> None:
        for found in self.cidrs.store:
            if is_deleting(found):
                self.enqueue(found)

    async def reconcile(self, key: str) -> float | None:
        cidr = self.cidrs.store.get(key)
        if cidr is None:
            return None
        finalizers = cidr["metadata"].get("finalizers") or []
        if is_deleting(cidr):
            if self._in_use(cidr):
                message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"
                await self._ready(cidr, "False", "Terminating", message)
                return None
            if FINALIZER in finalizers:
                kept = [f for f in finalizers if f != FINALIZER]
                await self._finalizers(cidr, kept)
            return None
        if FINALIZER not in finalizers:
            await self._finalizers(cidr, [*finalizers, FINALIZER])
            return None
        await self._ready(cidr, "True", "", "Kubernetes Service CIDR is ready")
        return None

    def _in_use(self, cidr: Object) -> bool:
        """Whether an address lies in this range and in no other that stays."""
        own = networks(cidr)
        others = [
            n
            for other in self.cidrs.store
            if other["metadata"]["name"] != cidr["metadata"]["name"] and not is_deleting(other)
            for n in networks(other)
        ]
        for found in self.addresses.store:
            address = ipaddress.ip_address(found["metadata"]["name"])
            if any(address in n for n in own) and not any(address in n for n in others):
                return True
        return False

    async def _finalizers(self, cidr: Object, finalizers: list[str]) -> None:
        meta = {"resourceVersion": cidr["metadata"]["resourceVersion"], "finalizers": finalizers or None}
        await self.client.patch(SERVICE_CIDRS, cidr["metadata"]["name"], {"metadata": meta})

    async def _ready(self, cidr: Object, status: str, reason: str, message: str) -> None:
        known = condition(cidr, "Ready") or {}
        if (known.get("status"), known.get("reason", ""), known.get("message")) == (status, reason, message):
            return
        old = (cidr.get("status") or {}).get("conditions") or []
        entry = {"type": "Ready", "status": status, "reason": reason, "message": message}
        body = {"status": {"conditions": set_condition(old, entry)}}
        await self.client.patch(SERVICE_CIDRS, cidr["metadata"]["name"], body, subresource="status")
