"""Certificates of nodes that join: their kubelets' serving certificates and those of the parts beside the kubelet.

Upstream leaves kubelet-serving requests to administrators and their own approvers; this is ours. Who may have such
certificates is RBAC's to say: `create` on certificatesigningrequests/nodeserving, /nodeparts and /nodeingress.
"""

from __future__ import annotations

import ipaddress

from longshore.client.resources import NODES
from longshore.client.store import Object
from longshore.master.controllers.certificates import (
    CLIENT,
    KUBELET_SERVING,
    CSRApprover,
    Request,
)

#: Users of what runs on nodes beside the kubelet, and the right by which a node may have their certificates.
PARTS = {
    "system:kube-proxy": "nodeparts",
    "system:coredns": "nodeparts",
    "longshore:logs": "nodeparts",
    "longshore:ingress": "nodeingress",
}


class NodeCertificateApprover(CSRApprover):
    """Approves what a joined machine asks for, where RBAC lets the requester have it."""

    name = "node-certificate-approving-controller"
    signers = frozenset({KUBELET_SERVING, CLIENT})

    def setup(self) -> None:
        super().setup()
        self.nodes = self.watch(NODES)

    async def decide(self, csr: Object, signer: str, request: Request) -> None:
        if signer == KUBELET_SERVING:
            if self._is_own(csr, request) and await self._may(csr, "nodeserving"):
                await self._approve(csr, "Auto approving the serving certificate of a kubelet for its own addresses.")
        elif request.common_name in PARTS and not request.organizations and request.alternatives is None:
            if await self._may(csr, PARTS[request.common_name]):
                await self._approve(csr, "Auto approving a client certificate of a node's parts.")

    def _is_own(self, csr: Object, request: Request) -> bool:
        """Whether a kubelet asks for itself, under its own name and addresses that nobody else has."""
        name = request.common_name.removeprefix("system:node:")
        if csr["spec"].get("username") != request.common_name or any(dns != name for dns in request.dns):
            return False
        ranges = [
            ipaddress.ip_network(text) for text in (*self.options.cluster_cidr, *self.options.service_cluster_ip_range)
        ]
        asked = [ipaddress.ip_address(text) for text in request.addresses]
        if any(address in network for address in asked for network in ranges) or any(a.is_loopback for a in asked):
            return False
        mine: set[str] | None = None
        for node in self.nodes.store:
            held = {a["address"] for a in (node.get("status") or {}).get("addresses") or () if "IP" in a["type"]}
            if node["metadata"]["name"] == name:
                mine = held
            elif held & set(request.addresses):
                return False
        return not mine or set(request.addresses) <= mine
