"""How long kubelets may keep Secrets and ConfigMaps without asking again: an annotation that grows with the cluster.

Source: kubernetes pkg/controller/ttl, boundaries and annotation.
"""

from __future__ import annotations

from longshore.client.resources import NODES
from longshore.client.rest import is_not_found
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller

ANNOTATION = "node.alpha.kubernetes.io/ttl"
# (fewest, most nodes, seconds): the ranges overlap, so that a cluster at a boundary does not flap.
BOUNDARIES = ((0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, 2**62, 300))


class NodeTTLController(Controller):
    """Writes the annotation on every node."""

    name = "ttl-controller"
    component = "ttl-controller"

    def setup(self) -> None:
        self.step = 0
        self.nodes = self.watch(NODES, add=self._counted, update=self._changed, delete=self._counted)

    def _changed(self, old: Object, new: Object) -> None:
        if (new["metadata"].get("annotations") or {}).get(ANNOTATION) != self.wanted:
            self.enqueue(new)

    @property
    def wanted(self) -> str:
        return str(BOUNDARIES[self.step][2])

    def _counted(self, node: Object) -> None:
        count, before = len(self.nodes.store), self.step
        while count > BOUNDARIES[self.step][1]:
            self.step += 1
        while count < BOUNDARIES[self.step][0]:
            self.step -= 1
        if self.step != before:
            for each in self.nodes.store:
                self.enqueue(each)
        else:
            self.enqueue(node)

    async def reconcile(self, key: str) -> float | None:
        node = self.nodes.store.get(key)
        if node is None or (node["metadata"].get("annotations") or {}).get(ANNOTATION) == self.wanted:
            return None
        try:
            patch = {"metadata": {"annotations": {ANNOTATION: self.wanted}}}
            await self.client.patch(NODES, key, patch, kind="strategic")
        except StatusError as error:
            if not is_not_found(error):
                raise
        return None
