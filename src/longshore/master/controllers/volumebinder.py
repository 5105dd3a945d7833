"""PersistentVolumes and their claims: bound to each other, released, reclaimed.

Keys are `claim:NAMESPACE/NAME` and `volume:NAME`.
Source: kubernetes pkg/controller/volume/persistentvolume, described behaviour.
"""

from __future__ import annotations

from longshore.client.objects import BOUND_BY_CONTROLLER, is_deleting, now, promised_volume
from longshore.client.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES
from longshore.client.rest import is_not_found
from longshore.client.store import Object, key_of, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers import storagematch as match
from longshore.master.controllers.base import Controller


class PersistentVolumeBinder(Controller):
    """Binds claims to volumes, and tells provisioners that one is wanted."""

    name = "persistentvolume-binder-controller"
    account = "persistent-volume-binder"
    component = "persistentvolume-controller"
    workers = 1  # two claims must not be promised one volume

    def setup(self) -> None:
        self.claims = self.watch(
            PERSISTENT_VOLUME_CLAIMS,
            add=self._claim,
            update=lambda old, new: self._claim(new),
            delete=self._claim_gone,
        )
        self.volumes = self.watch(
            PERSISTENT_VOLUMES, add=self._volume, update=lambda old, new: self._volume(new), delete=self._volume
        )
        self.classes = self.watch(STORAGE_CLASSES, add=self._class, update=lambda old, new: self._class(new))

    def _claim(self, claim: Object) -> None:
        self.queue.add("claim:" + key_of(claim))

    def _claim_gone(self, claim: Object) -> None:
        if claim["spec"].get("volumeName"):
            self.queue.add("volume:" + claim["spec"]["volumeName"])

    def _volume(self, volume: Object) -> None:
        self.queue.add("volume:" + volume["metadata"]["name"])
        ref = volume["spec"].get("claimRef")
        if ref:
            self.queue.add(f"claim:{ref.get('namespace')}/{ref.get('name')}")
        elif (volume.get("status") or {}).get("phase") == "Available":
            self._pending(volume["spec"].get("storageClassName") or "")

    def _class(self, cls: Object) -> None:
        self._pending(cls["metadata"]["name"])

    def _pending(self, cls: str) -> None:
        """Claims of a class that wait for a volume look again."""
        for claim in self.claims.store:
            if not claim["spec"].get("volumeName") and (claim["spec"].get("storageClassName") or "") == cls:
                self._claim(claim)

    async def reconcile(self, key: str) -> float | None:
        kind, _, rest = key.partition(":")
        if kind == "volume":
            volume = self.volumes.store.get(rest)
            if volume is not None:
                await self._sync_volume(volume)
            return None
        claim = self.claims.store.named(*split_key(rest))
        if claim is None:
            return None
        if match.BIND_COMPLETED in match.notes_of(claim):
            await self._sync_bound(claim)
        elif not is_deleting(claim):
            await self._sync_unbound(claim)
        return None

    # -- claims ------------------------------------------------------------------------------------------------------------

    async def _sync_unbound(self, claim: Object) -> None:
        name = claim["spec"].get("volumeName")
        if name:
            volume = self.volumes.store.get(name)
            if volume is None:
                await self._claim_phase(claim, "Pending")
            elif not volume["spec"].get("claimRef"):
                why = match.mismatch(volume, claim)
                if why:
                    message = f'Cannot bind to requested volume "{name}": {why}'
                    self.event(claim, "Warning", "VolumeMismatch", message)
                    await self._claim_phase(claim, "Pending")
                else:
                    await self._bind(volume, claim)
            elif match.refers_to(volume, claim):
                await self._bind(volume, claim)
            else:
                ref = volume["spec"]["claimRef"]
                message = f'volume "{name}" already bound to a different claim.'
                if ref.get("uid"):
                    self.event(claim, "Warning", "FailedBinding", message)
                await self._claim_phase(claim, "Pending")
            return
        delayed = self._delayed(claim)
        volume = match.best_match(claim, self.volumes.store, delayed=delayed)
        if volume is not None:
            await self._bind(volume, claim)
            return
        if delayed:
            message = "waiting for first consumer to be created before binding"
            self.event(claim, "Normal", "WaitForFirstConsumer", message)
        elif claim["spec"].get("storageClassName"):
            claim = await self._ask_provisioner(claim)
        else:
            message = "no persistent volumes available for this claim and no storage class is set"
            self.event(claim, "Normal", "FailedBinding", message)
        await self._claim_phase(claim, "Pending")

    def _delayed(self, claim: Object) -> bool:
        if match.SELECTED_NODE in match.notes_of(claim):
            return False
        found = self.classes.store.get(claim["spec"].get("storageClassName") or "")
        return found is not None and found.get("volumeBindingMode") == "WaitForFirstConsumer"

    async def _ask_provisioner(self, claim: Object) -> Object:
        """Name the provisioner in the claim, and tell that it is its turn."""
        name = claim["spec"]["storageClassName"]
        cls = self.classes.store.get(name)
        if cls is None:
            message = f'storageclass.storage.k8s.io "{name}" not found'
            self.event(claim, "Warning", "ProvisioningFailed", message)
            return claim
        provisioner = cls.get("provisioner", "")
        if provisioner == match.NO_PROVISIONER:
            message = "no persistent volumes available for this claim and no storage class is set"
            self.event(claim, "Normal", "FailedBinding", message)
            return claim
        wanted = {match.PROVISIONER: provisioner, match.OLD_PROVISIONER: provisioner}
        have = match.notes_of(claim)
        if any(have.get(k) != v for k, v in wanted.items()):
            metadata = {**claim["metadata"], "annotations": {**have, **wanted}}
            claim = await self.client.update(PERSISTENT_VOLUME_CLAIMS, {**claim, "metadata": metadata})
        message = (
            f"Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by "
            "the system administrator. If volume creation is delayed, please verify that the provisioner is running "
            "and correctly registered."
        )
        self.event(claim, "Normal", "ExternalProvisioning", message)
        return claim

    async def _bind(self, volume: Object, claim: Object) -> None:
        """Four writes, each of which a restart may follow: promise, volume's phase, name, claim's phase."""
        ref = volume["spec"].get("claimRef") or {}
        if ref.get("uid") != claim["metadata"]["uid"]:
            volume = await self.client.update(PERSISTENT_VOLUMES, promised_volume(volume, claim))
        volume = await self._volume_phase(volume, "Bound")
        if match.BIND_COMPLETED not in match.notes_of(claim) or not claim["spec"].get("volumeName"):
            claim = await self.client.update(PERSISTENT_VOLUME_CLAIMS, match.bound(claim, volume))
        await self._claim_phase(claim, "Bound", volume)

    async def _sync_bound(self, claim: Object) -> None:
        name = claim["spec"].get("volumeName")
        if not name:
            message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!"
            await self._lost(claim, message)
            return
        volume = self.volumes.store.get(name)
        if volume is None:
            await self._lost(claim, "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
        elif (
            not volume["spec"].get("claimRef")
            or (volume["spec"]["claimRef"].get("uid") or claim["metadata"]["uid"]) == claim["metadata"]["uid"]
        ):
            await self._bind(volume, claim)
        else:
            message = "Two claims are bound to the same volume, this one is bound incorrectly"
            await self._lost(claim, message, reason="ClaimMisbound")

    async def _lost(self, claim: Object, message: str, reason: str = "ClaimLost") -> None:
        if (claim.get("status") or {}).get("phase") != "Lost":
            await self._claim_phase(claim, "Lost")
            self.event(claim, "Warning", reason, message)

    async def _claim_phase(self, claim: Object, phase: str, volume: Object | None = None) -> None:
        old = claim.get("status") or {}
        status = {**old, "phase": phase}
        if volume is None:
            status.pop("accessModes", None)
            status.pop("capacity", None)
        else:
            status["accessModes"] = volume["spec"].get("accessModes")
            if old.get("phase") != "Bound" or "capacity" not in old:
                status["capacity"] = {"storage": (volume["spec"].get("capacity") or {}).get("storage", "0")}
        if status != old:
            await self.client.update(PERSISTENT_VOLUME_CLAIMS, {**claim, "status": status}, subresource="status")

    # -- volumes -----------------------------------------------------------------------------------------------------------

    async def _volume_phase(self, volume: Object, phase: str, message: str = "") -> Object:
        old = volume.get("status") or {}
        if old.get("phase") == phase and old.get("message", "") == message:
            return volume
        status = {**old, "phase": phase}
        if old.get("phase") != phase:
            status["lastPhaseTransitionTime"] = now()
        status.pop("message", None)
        if message:
            status["message"] = message
        return await self.client.update(PERSISTENT_VOLUMES, {**volume, "status": status}, subresource="status")

    async def _sync_volume(self, volume: Object) -> None:
        ref = volume["spec"].get("claimRef")
        if not ref or not ref.get("uid"):
            await self._volume_phase(volume, "Available")
            return
        claim = self.claims.store.named(ref.get("namespace", ""), ref.get("name", ""))
        if claim is None:
            # Whether it is really gone is for the server to say: a volume released by mistake loses its data.
            try:
                claim = await self.client.get(PERSISTENT_VOLUME_CLAIMS, ref["name"], ref["namespace"])
            except StatusError as error:
                if not is_not_found(error):
                    raise
        if claim is not None and claim["metadata"]["uid"] != ref["uid"]:
            claim = None
        if claim is None:
            if (volume.get("status") or {}).get("phase") not in ("Released", "Failed"):
                volume = await self._volume_phase(volume, "Released")
            await self._reclaim(volume)
        elif claim["spec"].get("volumeName") == volume["metadata"]["name"]:
            await self._volume_phase(volume, "Bound")
        elif not claim["spec"].get("volumeName"):
            self._claim(claim)
        elif BOUND_BY_CONTROLLER in match.notes_of(volume):
            # The claim went with another volume: this one is free again.
            metadata = {**volume["metadata"], "annotations": {**match.notes_of(volume)}}
            metadata["annotations"].pop(BOUND_BY_CONTROLLER)
            spec = {k: v for k, v in volume["spec"].items() if k != "claimRef"}
            await self.client.update(PERSISTENT_VOLUMES, {**volume, "metadata": metadata, "spec": spec})

    async def _reclaim(self, volume: Object) -> None:
        policy = volume["spec"].get("persistentVolumeReclaimPolicy", "Retain")
        provisioner = match.notes_of(volume).get(match.PROVISIONED_BY)
        if policy == "Recycle":
            message = "Recycling of volumes is not supported"
            await self._volume_phase(volume, "Failed", message)
            self.event(volume, "Warning", "VolumeFailedRecycle", message)
        elif policy == "Delete" and not provisioner and (volume.get("status") or {}).get("phase") != "Failed":
            message = "error getting deleter volume plugin for volume"
            message = f'{message} "{volume["metadata"]["name"]}": no deletable volume plugin matched'
            await self._volume_phase(volume, "Failed", message)
            self.event(volume, "Warning", "VolumeFailedDelete", message)
