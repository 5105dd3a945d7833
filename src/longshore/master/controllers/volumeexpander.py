"""Volume expansion: a claim that asks for more than its volume has is told whose work that is.

Every volume that can grow is a CSI driver's here, whose resizer does it. Source: kubernetes pkg/controller/volume/expand.
"""

from __future__ import annotations

from longshore.client.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES
from longshore.client.store import Object, split_key
from longshore.machinery.quantity import parse
from longshore.master.controllers.base import Controller

MESSAGE = (
    "Ignoring the PVC: didn't find a plugin capable of expanding the volume; "
    "waiting for an external controller to process this PVC."
)


def storage(amounts: Object | None) -> int:
    """The storage of requests or of a capacity, in nano bytes."""
    return parse(str((amounts or {}).get("storage", "0"))).nanos


class VolumeExpander(Controller):
    """Keys are claims that ask for more than they have."""

    name = "persistentvolume-expander-controller"
    account = "expand-controller"
    component = "volume_expand"

    def setup(self) -> None:
        self.claims = self.watch(PERSISTENT_VOLUME_CLAIMS, add=self._claim, update=self._changed)
        self.volumes = self.watch(PERSISTENT_VOLUMES)

    def _claim(self, claim: Object) -> None:
        if (claim.get("status") or {}).get("phase") == "Bound" and storage(
            (claim["spec"].get("resources") or {}).get("requests")
        ) > storage((claim.get("status") or {}).get("capacity")):
            self.enqueue(claim)

    def _changed(self, old: Object, new: Object) -> None:
        before, after = (storage((c["spec"].get("resources") or {}).get("requests")) for c in (old, new))
        if after > before:
            self._claim(new)

    async def reconcile(self, key: str) -> float | None:
        claim = self.claims.store.named(*split_key(key))
        volume = self.volumes.store.get((claim or {"spec": {}})["spec"].get("volumeName") or "")
        if claim is not None and volume is not None and (volume["spec"].get("claimRef") or {}).get("uid") == claim["metadata"]["uid"]:  # fmt: skip
            self.event(claim, "Normal", "ExternalExpanding", MESSAGE)
        return None
