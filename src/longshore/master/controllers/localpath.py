"""The default storage: folders on the node, made when a pod that wants one has got its node.

STORAGE_CLASS is the cluster's default; whoever sets a cluster up creates it (no controller may). A volume is a hostPath with the node's
affinity, so that a kubelet elsewhere makes the folder; when the claim goes, the folder is removed, if it is on this machine.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from longshore.client.objects import is_deleting
from longshore.client.resources import NODES, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES
from longshore.client.rest import is_already_exists, is_not_found
from longshore.client.store import Object, key_of, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers import storagematch as match
from longshore.master.controllers.base import Controller

PROVISIONER = "longshore.io/local-path"
STORAGE_CLASS: Object = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "local-path", "annotations": {match.DEFAULT_CLASS: "true"}},
    "provisioner": PROVISIONER,
    "reclaimPolicy": "Delete",
    "volumeBindingMode": "WaitForFirstConsumer",
}


def make_folder(folder: Path) -> None:
    """Make a volume's folder writable for whatever user its pod runs as.

    A node of another machine makes its own (as hostPath folders are: writable for root only).
    """
    folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)


class LocalPathProvisioner(Controller):
    """Provisions and deletes hostPath volumes of its classes. Keys as those of the binder."""

    name = "local-path-provisioner-controller"
    account = "persistent-volume-binder"
    component = PROVISIONER

    def setup(self) -> None:
        self.claims = self.watch(PERSISTENT_VOLUME_CLAIMS, add=self._claim, update=lambda old, new: self._claim(new))
        self.volumes = self.watch(PERSISTENT_VOLUMES, add=self._volume, update=lambda old, new: self._volume(new))
        self.classes = self.watch(STORAGE_CLASSES)
        self.nodes = self.watch(NODES)

    def _claim(self, claim: Object) -> None:
        if match.notes_of(claim).get(match.PROVISIONER) == PROVISIONER and not claim["spec"].get("volumeName"):
            self.queue.add("claim:" + key_of(claim))

    def _volume(self, volume: Object) -> None:
        if match.notes_of(volume).get(match.PROVISIONED_BY) == PROVISIONER:
            if (volume.get("status") or {}).get("phase") == "Released":
                self.queue.add("volume:" + volume["metadata"]["name"])

    async def reconcile(self, key: str) -> float | None:
        kind, _, rest = key.partition(":")
        if kind == "volume":
            volume = self.volumes.store.get(rest)
            if volume is not None and not is_deleting(volume):
                await self._delete(volume)
            return None
        claim = self.claims.store.named(*split_key(rest))
        if claim is not None and not is_deleting(claim) and not claim["spec"].get("volumeName"):
            await self._provision(claim)
        return None

    async def _provision(self, claim: Object) -> None:
        cls = self.classes.store.get(claim["spec"].get("storageClassName") or "")
        if cls is None or cls.get("provisioner") != PROVISIONER:
            return
        name = f"pvc-{claim['metadata']['uid']}"
        if self.volumes.store.get(name) is not None:
            return
        if claim["spec"].get("volumeMode") == "Block":
            message = f'failed to provision volume with StorageClass "{cls["metadata"]["name"]}": block volumes are not supported'
            self.event(claim, "Warning", "ProvisioningFailed", message)
            return
        node = match.notes_of(claim).get(match.SELECTED_NODE)
        if node is None:
            candidates = sorted(n["metadata"]["name"] for n in self.nodes.store)
            if not candidates:
                return
            node = candidates[0]
        parent = Path((cls.get("parameters") or {}).get("path") or self.options.local_path)
        folder = parent / f"{name}_{claim['metadata']['namespace']}_{claim['metadata']['name']}"
        host = self.nodes.store.get(node)
        label = ((host or {"metadata": {}})["metadata"].get("labels") or {}).get("kubernetes.io/hostname", node)
        expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": [label]}
        meta = claim["metadata"]
        body = {
            "metadata": {"name": name, "annotations": {match.PROVISIONED_BY: PROVISIONER}},
            "spec": {
                "accessModes": claim["spec"].get("accessModes"),
                "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": meta["namespace"],
                    "name": meta["name"],
                    "uid": meta["uid"],
                    "resourceVersion": meta["resourceVersion"],
                },
                "hostPath": {"path": str(folder), "type": "DirectoryOrCreate"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
                "persistentVolumeReclaimPolicy": cls.get("reclaimPolicy") or "Delete",
                "storageClassName": cls["metadata"]["name"],
                "volumeMode": "Filesystem",
            },
        }
        message = f'External provisioner is provisioning volume for claim "{key_of(claim)}"'
        self.event(claim, "Normal", "Provisioning", message)
        await asyncio.to_thread(make_folder, folder)
        try:
            await self.client.create(PERSISTENT_VOLUMES, body)
        except StatusError as error:
            if is_already_exists(error):
                return
            message = f'failed to provision volume with StorageClass "{cls["metadata"]["name"]}": {error.message}'
            self.event(claim, "Warning", "ProvisioningFailed", message)
            raise
        self.event(claim, "Normal", "ProvisioningSucceeded", f"Successfully provisioned volume {name}")

    async def _delete(self, volume: Object) -> None:
        spec = volume["spec"]
        if spec.get("persistentVolumeReclaimPolicy") != "Delete":
            return
        folder = Path((spec.get("hostPath") or {}).get("path") or "")
        # Only folders that bear the volume's name, as we made them: a path that somebody wrote in is left alone.
        if folder.name.startswith(volume["metadata"]["name"] + "_") and not folder.is_symlink() and folder.is_dir():
            await asyncio.to_thread(shutil.rmtree, folder, True)
        try:
            await self.client.delete(PERSISTENT_VOLUMES, volume["metadata"]["name"])
        except StatusError as error:
            if not is_not_found(error):
                raise
