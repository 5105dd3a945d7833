"""Two publishers: the ServiceAccount `default` and the ConfigMap kube-root-ca.crt of every namespace.

Sources: kubernetes pkg/controller/serviceaccount and pkg/controller/certificates/rootcacertpublisher.
"""

from __future__ import annotations

from longshore.client.resources import CONFIG_MAPS, NAMESPACES, SERVICE_ACCOUNTS
from longshore.client.rest import is_already_exists, is_namespace_terminating, is_not_found
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller

ROOT_CA = "kube-root-ca.crt"
DESCRIPTION = {
    "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal"
    " endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across"
    " distributions of Kubernetes clusters."
}


def is_active(namespace: Object | None) -> bool:
    return namespace is not None and (namespace.get("status") or {}).get("phase") != "Terminating"


class ServiceAccountController(Controller):
    """Every active namespace has a ServiceAccount named default."""

    name = "serviceaccount-controller"
    account = "service-account-controller"
    component = "service-account-controller"

    def setup(self) -> None:
        self.namespaces = self.watch(NAMESPACES, add=self.enqueue, update=self.enqueue_update)
        self.accounts = self.watch(SERVICE_ACCOUNTS, delete=lambda obj: self.queue.add(obj["metadata"]["namespace"]))

    async def reconcile(self, key: str) -> float | None:
        if not is_active(self.namespaces.store.get(key)) or self.accounts.store.named(key, "default") is not None:
            return None
        try:
            await self.client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "default", "namespace": key}})
        except StatusError as error:
            if not is_already_exists(error) and not is_namespace_terminating(error) and not is_not_found(error):
                raise
        return None


class RootCAPublisher(Controller):
    """Every active namespace has the cluster's CA in a ConfigMap."""

    name = "root-ca-certificate-publisher-controller"
    account = "root-ca-cert-publisher"
    component = "root-ca-cert-publisher"

    def setup(self) -> None:
        path = self.options.root_ca_file
        self.ca = path.read_text() if path is not None else (self.context.client.config.ca or b"").decode()
        self.namespaces = self.watch(NAMESPACES, add=self.enqueue, update=self.enqueue_update)
        self.maps = self.watch(CONFIG_MAPS, update=lambda old, new: self._map(new), delete=self._map)

    def _map(self, obj: Object) -> None:
        if obj["metadata"]["name"] == ROOT_CA:
            self.queue.add(obj["metadata"]["namespace"])

    async def reconcile(self, key: str) -> float | None:
        if not is_active(self.namespaces.store.get(key)):
            return None
        current = self.maps.store.named(key, ROOT_CA)
        data = {"ca.crt": self.ca}
        try:
            if current is None:
                metadata = {"name": ROOT_CA, "namespace": key, "annotations": DESCRIPTION}
                await self.client.create(CONFIG_MAPS, {"metadata": metadata, "data": data})
            elif current.get("data") != data or not current["metadata"].get("annotations"):
                metadata = {**current["metadata"], "annotations": DESCRIPTION}
                await self.client.update(CONFIG_MAPS, {**current, "metadata": metadata, "data": data})
        except StatusError as error:
            if not is_already_exists(error) and not is_namespace_terminating(error) and not is_not_found(error):
                raise
        return None
