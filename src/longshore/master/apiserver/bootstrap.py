"""What a fresh server makes by itself, and makes again at a start when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.api import times
from longshore.machinery.errors import StatusError
from longshore.master.apiserver.flowschemas import GROUP as _FLOW
from longshore.master.apiserver.flowschemas import MANAGER, dangling
from longshore.master.apiserver.presence import Presence

if TYPE_CHECKING:
    from longshore.master.apiserver.server import APIServer

Object = dict[str, Any]
log = logging.getLogger("longshore.apiserver.bootstrap")
NAMESPACES = ("kube-system", "kube-public", "kube-node-lease", "default")
_NETWORKING = "networking.k8s.io"
LEASE_SECONDS = 3600
LEASE_RENEWAL = 600.0

# group, version, groupPriorityMinimum, versionPriority: how discovery orders what this server serves itself.
LOCAL_SERVICES = (
    ("", "v1", 18000, 1), ("apps", "v1", 17800, 15), ("events.k8s.io", "v1", 17750, 15),
    ("authentication.k8s.io", "v1", 17700, 15), ("authorization.k8s.io", "v1", 17600, 15), ("autoscaling", "v1", 17500, 15),
    ("autoscaling", "v2", 17500, 30), ("batch", "v1", 17400, 15), ("certificates.k8s.io", "v1", 17300, 15),
    ("networking.k8s.io", "v1", 17200, 15), ("policy", "v1", 17100, 15), ("rbac.authorization.k8s.io", "v1", 17000, 15),
    ("storage.k8s.io", "v1", 16800, 15), ("admissionregistration.k8s.io", "v1", 16700, 15),
    ("apiextensions.k8s.io", "v1", 16700, 15), ("scheduling.k8s.io", "v1", 16600, 15), ("coordination.k8s.io", "v1", 16500, 15),
    ("node.k8s.io", "v1", 16300, 15), ("discovery.k8s.io", "v1", 16200, 15), ("resource.k8s.io", "v1", 16200, 21),
    (_FLOW, "v1", 16100, 21),
)  # fmt: skip
_CLASSES = (
    ("system-cluster-critical", 2000000000,
     "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."),
    ("system-node-critical", 2000001000, "Used for system critical pods that must not be moved from their current node."),
)  # fmt: skip


class Bootstrap:
    """Creates the objects that upstream's server creates."""

    def __init__(self, server: APIServer) -> None:
        self.server = server
        self.identity = ""

    async def run(self) -> None:
        """Everything, in the order in which it depends on one another."""
        await asyncio.gather(*(self.namespace(n) for n in NAMESPACES))
        await self.service_cidr()
        work = [
            *(self.priority_class(*c) for c in _CLASSES), *self._flow_control(), *self._api_services(),
            self.kubernetes_service(), self._authentication_info(), self._token_tracking(), self._lease(),
        ]  # fmt: skip
        await asyncio.gather(*work)
        self.server.spawn(self._renew(), "identity lease")

    async def ensure(
        self, group: str, resource: str, namespace: str, obj: Object, manager: str = "kube-apiserver"
    ) -> None:
        """Create an object unless it is there."""
        if self.server.api.get(group, resource, namespace, obj["metadata"]["name"]) is not None:
            return
        try:
            await self.server.api.create(group, resource, namespace, obj, manager)
        except StatusError as error:
            if error.reason != "AlreadyExists":
                log.warning("%s %s could not be made: %s", resource, obj["metadata"]["name"], error.message)

    async def rbac(self, file: Path) -> None:
        """Roles and bindings of this cluster's own parts, so that none of them is ever told "forbidden"."""
        group = "rbac.authorization.k8s.io"
        found: list[Object] = orjson.loads(await asyncio.to_thread(file.read_bytes))
        work = [
            self.ensure(group, obj["kind"].lower() + "s", obj["metadata"].get("namespace", ""), obj, "longshore")
            for obj in found
        ]
        await asyncio.gather(*work)

    async def namespace(self, name: str) -> None:
        await self.ensure(
            "", "namespaces", "", {"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}}
        )

    async def priority_class(self, name: str, value: int, description: str) -> None:
        obj = {"metadata": {"name": name}, "value": value, "description": description}
        await self.ensure("scheduling.k8s.io", "priorityclasses", "", obj)

    def _flow_control(self) -> list[Any]:
        api = self.server.api
        wanted: Object = orjson.loads((Path(__file__).parent / "data" / "flowcontrol.json").read_bytes())
        work = []
        for plural, named in wanted.items():
            for name, spec in named.items():
                if api.get(_FLOW, plural, "", name) is None:
                    work.append(self._flow_object(plural, name, spec))
        return work

    async def _flow_object(self, plural: str, name: str, spec: Object) -> None:
        obj: Object = {
            "metadata": {"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}},
            "spec": spec,
        }
        manager = "api-priority-and-fairness-config-producer-v1"
        await self.ensure(_FLOW, plural, "", obj, manager)
        if plural != "flowschemas":
            return
        level = spec["priorityLevelConfiguration"]["name"]
        made = self.server.api.get(_FLOW, plural, "", name)
        if made is None:
            await self.server.hub.fresh()
            made = self.server.api.get(_FLOW, plural, "", name)
        if made is not None:
            made["status"] = {"conditions": [dangling(level, True)]}
            with contextlib.suppress(StatusError):
                await self.server.api.update(_FLOW, plural, "", made, "status", MANAGER)

    def _api_services(self) -> list[Any]:
        api = self.server.api
        work = []
        for group, version, minimum, priority in LOCAL_SERVICES:
            name = f"{version}.{group}"
            if api.get("apiregistration.k8s.io", "apiservices", "", name) is None:
                work.append(self.local_service(group, version, minimum, priority, "onstart"))
        return work

    async def local_service(self, group: str, version: str, minimum: int, priority: int, managed: str) -> None:
        """An APIService for what this server serves itself."""
        spec: Object = {"version": version, "groupPriorityMinimum": minimum, "versionPriority": priority}
        if group:
            spec["group"] = group
        metadata = {"name": f"{version}.{group}", "labels": {"kube-aggregator.kubernetes.io/automanaged": managed}}
        await self.ensure("apiregistration.k8s.io", "apiservices", "", {"metadata": metadata, "spec": spec})

    # The way in for Pods.

    async def service_cidr(self) -> None:
        """The default range of Service addresses."""
        api = self.server.api
        cidrs = self.server.config.service_cidrs
        await self.ensure(
            _NETWORKING, "servicecidrs", "", {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}}
        )
        await self.server.hub.fresh()
        made = api.get(_NETWORKING, "servicecidrs", "", "kubernetes")
        if made is not None and not (made.get("status") or {}).get("conditions"):
            condition = {
                "type": "Ready", "status": "True", "reason": "", "lastTransitionTime": times.now(),
                "message": "Kubernetes default Service CIDR is ready",
            }  # fmt: skip
            made["status"] = {"conditions": [condition]}
            with contextlib.suppress(StatusError):
                await api.update(_NETWORKING, "servicecidrs", "", made, "status", "kubernetes-service-cidr-controller")

    async def kubernetes_service(self) -> None:
        """The `kubernetes` Service at the first address of the range, with this server behind it."""
        config = self.server.config
        address = str(ipaddress.ip_network(config.service_cidrs[0])[1])
        target = config.advertise[1]
        spec = {
            "clusterIP": address, "ipFamilyPolicy": "SingleStack", "type": "ClusterIP", "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": target}],
        }  # fmt: skip
        labels = {"component": "apiserver", "provider": "kubernetes"}
        await self.ensure(
            "", "services", "default", {"metadata": {"name": "kubernetes", "labels": labels}, "spec": spec}
        )
        own = config.advertise[0]
        if ipaddress.ip_address(own).is_loopback:
            return  # such an address cannot be told there
        if self.server.store.shared:
            presence = Presence(self.server.store, own, lambda found: self._endpoints(found, target))
            await presence.look()
            self.server.spawn(presence.run(), "presence")
            self.server.closers.append(presence.close)
        else:
            await self._endpoints([own], target)

    async def _endpoints(self, addresses: list[str], port: int) -> None:
        """Endpoints and EndpointSlice of the `kubernetes` Service: the servers at these addresses."""
        with contextlib.suppress(StatusError):
            await self._tell_endpoints(addresses, port)

    async def _tell_endpoints(self, addresses: list[str], port: int) -> None:
        api = self.server.api
        found = [{"ip": address} for address in addresses]
        subsets = [{"addresses": found, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]
        label = "endpointslice.kubernetes.io/skip-mirror"
        endpoints: Object = {"metadata": {"name": "kubernetes", "labels": {label: "true"}}, "subsets": subsets}
        present = api.get("", "endpoints", "default", "kubernetes")
        if present is None:
            await self.ensure("", "endpoints", "default", endpoints)
        elif present.get("subsets") != subsets:
            await api.update("", "endpoints", "default", {**present, "subsets": subsets})
        endpoint_list = [{"addresses": [address], "conditions": {"ready": True}} for address in addresses]
        ports = [{"name": "https", "port": port, "protocol": "TCP"}]
        family = "IPv6" if ":" in addresses[0] else "IPv4"
        piece: Object = {
            "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": family, "endpoints": endpoint_list, "ports": ports,
        }  # fmt: skip
        there = api.get("discovery.k8s.io", "endpointslices", "default", "kubernetes")
        if there is None:
            await self.ensure("discovery.k8s.io", "endpointslices", "default", piece)
        elif there.get("endpoints") != endpoint_list or there.get("ports") != ports:
            await api.update(
                "discovery.k8s.io", "endpointslices", "default", {**there, "endpoints": endpoint_list, "ports": ports}
            )

    # What others read to trust this server.

    async def _authentication_info(self) -> None:
        """The ConfigMap from which extension API servers learn the client CAs."""
        config = self.server.config
        data: dict[str, str] = {}
        if config.client_ca is not None:
            data["client-ca-file"] = config.client_ca.read_text()
        proxy_ca = config.requestheader_ca or config.client_ca
        if proxy_ca is not None:
            data |= {
                "requestheader-allowed-names": '["front-proxy-client"]',
                "requestheader-client-ca-file": proxy_ca.read_text(),
                "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
                "requestheader-group-headers": '["X-Remote-Group"]',
                "requestheader-username-headers": '["X-Remote-User"]',
            }
        name = "extension-apiserver-authentication"
        present = self.server.api.get("", "configmaps", "kube-system", name)
        if present is None:
            await self.ensure("", "configmaps", "kube-system", {"metadata": {"name": name}, "data": data})
        elif present.get("data") != data:
            with contextlib.suppress(StatusError):
                await self.server.api.update("", "configmaps", "kube-system", {**present, "data": data})

    async def _token_tracking(self) -> None:
        name = "kube-apiserver-legacy-service-account-token-tracking"
        await self.ensure(
            "", "configmaps", "kube-system", {"metadata": {"name": name}, "data": {"since": times.now()[:10]}}
        )

    async def _lease(self) -> None:
        """The Lease that tells that this server is alive."""
        host = socket.gethostname()
        digest = hashlib.sha256(f"{host}{self.server.config.advertise}".encode()).hexdigest()[:26]
        self.identity = f"apiserver-{digest}"
        lease: Object = {
            "metadata": {
                "name": self.identity,
                "labels": {"apiserver.kubernetes.io/identity": "kube-apiserver", "kubernetes.io/hostname": host},
                "annotations": {"kubernetes.io/peer-advertise-address": "{}:{}".format(*self.server.config.advertise)},
            },
            "spec": {
                "holderIdentity": f"{self.identity}_{uuid.uuid4()}", "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": times.now_micro(),
            },
        }  # fmt: skip
        present = self.server.api.get("coordination.k8s.io", "leases", "kube-system", self.identity)
        if present is None:
            await self.ensure("coordination.k8s.io", "leases", "kube-system", lease)
        else:
            with contextlib.suppress(StatusError):
                await self.server.api.update(
                    "coordination.k8s.io", "leases", "kube-system", {**present, "spec": lease["spec"]}
                )

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE_RENEWAL)
            present = self.server.api.get("coordination.k8s.io", "leases", "kube-system", self.identity)
            try:
                if present is None:
                    await self._lease()
                else:
                    present["spec"]["renewTime"] = times.now_micro()
                    await self.server.api.update("coordination.k8s.io", "leases", "kube-system", present)
            except StatusError as error:
                log.warning("the identity lease could not be renewed: %s", error.message)
