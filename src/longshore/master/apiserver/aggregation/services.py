"""One APIService that names a Service: where its server is, and whether it may be spoken to.

Source: k8s.io/kube-aggregator/pkg/controllers/status/remote (remote_available_controller.go), apiserver/resolvers.go.
"""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import Any, NamedTuple

from longshore.machinery.http import Client, client_context
from longshore.master.apiserver.context import Object, ObjectReader

GROUP = "apiregistration.k8s.io"


class Condition(NamedTuple):
    """The Available condition."""

    status: str
    reason: str
    message: str


LOCAL = Condition("True", "Local", "Local APIServices are always available")
PASSED = Condition("True", "Passed", "all checks passed")


class Remote:
    """A remote API group version. `available` is what its condition says."""

    def __init__(self, spec: Object, certificate: Path | None, key: Path | None) -> None:
        self.spec = spec
        self.group: str = spec.get("group") or ""
        self.version: str = spec.get("version") or ""
        service = spec["service"]
        self.namespace: str = service.get("namespace") or ""
        self.name: str = service.get("name") or ""
        self.port: int = service.get("port") or 443
        self.available = False
        self._pair = (certificate, key)
        self._client: Client | None = None

    @property
    def path(self) -> str:
        return f"/apis/{self.group}/{self.version}"

    @property
    def client(self) -> Client:
        """The client with this server's proxy certificate; the far side's is checked as the APIService says."""
        if self._client is None:
            bundle = self.spec.get("caBundle")
            insecure = bool(self.spec.get("insecureSkipTLSVerify"))
            context = client_context(
                ca_data=base64.b64decode(bundle).decode() if bundle else None,
                certificate=self._pair[0],
                key=self._pair[1],
                verify=not insecure,
            )
            name = None if insecure else f"{self.name}.{self.namespace}.svc"
            self._client = Client(ssl=context, server_hostname=name, connect_timeout=5.0)
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def service_port(self, api: ObjectReader) -> tuple[Object, str] | Condition:
        """The Service and the name of its port, or what is wrong with them."""
        where = f'service/{self.name} in "{self.namespace}"'
        service = api.get("", "services", self.namespace, self.name)
        if service is None:
            return Condition("False", "ServiceNotFound", f"{where} is not present")
        ports = [p for p in service["spec"].get("ports") or () if p.get("port") == self.port]
        if not ports:
            if service["spec"].get("type", "ClusterIP") == "ExternalName":
                return service, ""
            return Condition("False", "ServicePortError", f"{where} is not listening on port {self.port}")
        return service, ports[0].get("name") or ""

    def endpoints(self, api: ObjectReader, port_name: str) -> list[tuple[str, int]] | None:
        """Ready addresses with their ports; None when nobody wrote any endpoints."""
        slices = api.list(
            "discovery.k8s.io", "endpointslices", self.namespace, {"kubernetes.io/service-name": self.name}
        )
        if not slices:
            return None
        found: list[tuple[str, int]] = []
        for piece in slices:
            for port in piece.get("ports") or ():
                if (port.get("name") or "") != port_name or not port.get("port"):
                    continue
                for endpoint in piece.get("endpoints") or ():
                    if (endpoint.get("conditions") or {}).get("ready") is not False:
                        found += [(a, port["port"]) for a in endpoint.get("addresses") or ()]
        return found

    def problem(self, api: ObjectReader) -> Condition | None:
        """What the cluster's objects say against speaking to the server."""
        found = self.service_port(api)
        if isinstance(found, Condition):
            return found
        service, port_name = found
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            return None
        addresses = self.endpoints(api, port_name)
        where = f'service/{self.name} in "{self.namespace}"'
        if addresses is None:
            return Condition("False", "EndpointsNotFound", f"cannot find endpoints for {where}")
        if not addresses:
            text = f'endpoints for {where} have no addresses with port name "{port_name}"'
            return Condition("False", "MissingEndpoints", text)
        return None

    def url(self, api: ObjectReader) -> str | None:
        """Where a request goes now: one of the endpoints, so that no proxy rules are needed here; None without any."""
        found = self.service_port(api)
        if isinstance(found, Condition):
            return None
        service, port_name = found
        if service["spec"].get("type") == "ExternalName":
            return f"https://{service['spec'].get('externalName', '')}:{self.port}"
        addresses = self.endpoints(api, port_name)
        if addresses:
            host, port = random.choice(addresses)
        else:
            host, port = service["spec"].get("clusterIP") or "", self.port
            if host in ("", "None"):
                return None
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def entries(resources: list[Any], group: str, version: str) -> list[Object]:
    """An APIResourceList's resources as entries of aggregated discovery."""
    out: dict[str, Object] = {}
    subs: list[tuple[str, str, Object]] = []
    for resource in resources:
        if not isinstance(resource, dict) or not isinstance(resource.get("name"), str):
            continue
        name, _, sub = resource["name"].partition("/")
        kind = {
            "group": resource.get("group") or group,
            "version": resource.get("version") or version,
            "kind": resource.get("kind") or "",
        }
        verbs = list(resource.get("verbs") or ())
        if sub:
            subs.append((name, sub, {"subresource": sub, "responseKind": kind, "verbs": verbs}))
            continue
        entry = out[name] = {
            "resource": name,
            "responseKind": kind,
            "scope": "Namespaced" if resource.get("namespaced") else "Cluster",
            "singularResource": resource.get("singularName") or "",
            "verbs": verbs,
        }
        for field in ("shortNames", "categories"):
            if resource.get(field):
                entry[field] = list(resource[field])
    for name, _, found in subs:
        if name in out:
            out[name].setdefault("subresources", []).append(found)
    return list(out.values())
