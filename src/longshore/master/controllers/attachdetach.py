"""Attach and detach: VolumeAttachments for the CSI volumes of a node's pods, which drivers' attachers carry out.

Source: kubernetes pkg/controller/volume/attachdetach and pkg/volume/csi/csi_attacher.go, described behaviour.
"""

from __future__ import annotations

import time

from longshore.client.objects import attachment_name, is_terminal, volume_name
from longshore.client.resources import (
    CSI_DRIVERS,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    VOLUME_ATTACHMENTS,
)
from longshore.client.rest import is_already_exists, is_not_found
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller
from longshore.master.controllers.pods import text
from longshore.master.controllers.volumeprotection import claims_of

UNMOUNT_SECONDS = 360.0  # how long a node may take to unmount what no pod uses any more
RETRY_SECONDS = 10.0  # until a volume that is attached elsewhere is looked at again
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
MANY = {"ReadWriteMany", "ReadOnlyMany"}


def _csi(volume: Object) -> tuple[str, str]:
    """Driver and handle of a volume."""
    csi = volume["spec"]["csi"]
    return csi["driver"], csi["volumeHandle"]


class AttachDetachController(Controller):
    """Keys are nodes: what of a node's volumes should be attached, and what is."""

    name = "persistentvolume-attach-detach-controller"
    account = "attachdetach-controller"
    component = "attachdetach-controller"

    def setup(self) -> None:
        self._unused: dict[str, float] = {}  # attachment -> since when no pod uses it (monotonic)
        self._told: set[tuple[str, str]] = set()  # (attachment, pod uid) whose success was told
        self.pods = self.watch(
            PODS,
            add=self._pod,
            update=self._pod_changed,
            delete=self._pod,
            indexers={"node": lambda p: (p["spec"].get("nodeName") or "",), "claim": claims_of},
        )
        self.claims = self.watch(PERSISTENT_VOLUME_CLAIMS, update=self._claim_changed)
        self.volumes = self.watch(PERSISTENT_VOLUMES)
        self.drivers = self.watch(CSI_DRIVERS)
        self.nodes = self.watch(NODES, update=self._node_changed, delete=self._node)
        self.attachments = self.watch(
            VOLUME_ATTACHMENTS,
            add=self._attachment,
            update=lambda old, new: self._attachment(new),
            delete=self._attachment,
            indexers={"node": lambda a: (a["spec"]["nodeName"],), "volume": _volume_names},
        )

    def _pod(self, pod: Object) -> None:
        if pod["spec"].get("nodeName") and claims_of(pod):
            self.queue.add(pod["spec"]["nodeName"])

    def _pod_changed(self, old: Object, new: Object) -> None:
        if old["spec"].get("nodeName") != new["spec"].get("nodeName") or is_terminal(old) != is_terminal(new):
            self._pod(new)

    def _claim_changed(self, old: Object, new: Object) -> None:
        if old["spec"].get("volumeName") != new["spec"].get("volumeName"):
            for pod in self.pods.store.index("claim", f"{new['metadata']['namespace']}/{new['metadata']['name']}"):
                self._pod(pod)

    def _node(self, node: Object) -> None:
        self.queue.add(node["metadata"]["name"])

    def _node_changed(self, old: Object, new: Object) -> None:
        fields = ("volumesInUse", "volumesAttached")
        if any((old.get("status") or {}).get(f) != (new.get("status") or {}).get(f) for f in fields):
            self._node(new)

    def _attachment(self, attachment: Object) -> None:
        self.queue.add(attachment["spec"]["nodeName"])

    # -- reconcile -------------------------------------------------------------------------------------------------------

    def _wanted(self, node: str) -> dict[str, tuple[Object, list[Object]]]:
        """By volume, the volumes that pods on the node need attached, and those pods."""
        found: dict[str, tuple[Object, list[Object]]] = {}
        for pod in self.pods.store.index("node", node):
            if is_terminal(pod):
                continue
            for key in claims_of(pod):
                claim = self.claims.store.get(key)
                volume = self.volumes.store.get((claim or {"spec": {}})["spec"].get("volumeName") or "")
                if volume is not None and self._needs(volume):
                    found.setdefault(volume["metadata"]["name"], (volume, []))[1].append(pod)
        return found

    def _needs(self, volume: Object) -> bool:
        """Whether a volume is to be attached at all: its driver says so."""
        csi = volume["spec"].get("csi")
        if not csi:
            return False
        driver = self.drivers.store.get(csi["driver"])
        return bool((driver or {"spec": {}})["spec"].get("attachRequired", True))

    async def reconcile(self, key: str) -> float | None:
        node = self.nodes.store.get(key)
        wanted = self._wanted(key) if node is not None else {}
        ours: dict[str, Object] = {}
        for attachment in self.attachments.store.index("node", key):
            volume = self.volumes.store.get(attachment["spec"]["source"].get("persistentVolumeName") or "")
            if volume is not None and volume["spec"].get("csi"):
                if attachment["metadata"]["name"] == attachment_name(
                    *_csi(volume), key
                ):  # others may be somebody else's
                    ours[volume["metadata"]["name"]] = attachment
        waits = [await self._attach(key, *wanted[name]) for name in wanted if name not in ours]
        leaving = []
        for name in ours:
            if name in wanted:
                self._unused.pop(ours[name]["metadata"]["name"], None)
                self._tell(ours[name], *wanted[name])
                continue
            wait = self._before_detach(node, self.volumes.store.get(name) or {}, ours[name])
            if wait > 0:
                waits.append(wait)
            else:
                leaving.append(name)
        if node is not None:
            staying = [
                volume_name(*_csi(volume))
                for name, attachment in ours.items()
                if name not in leaving
                and (attachment.get("status") or {}).get("attached")
                and (volume := self.volumes.store.get(name)) is not None
            ]
            await self._report(node, sorted(staying))
        for name in leaving:
            await self._detach(ours[name])
        return min((w for w in waits if w is not None), default=None)

    async def _attach(self, node: str, volume: Object, pods: list[Object]) -> float | None:
        """Ask for an attachment; seconds until the next look when the volume is held elsewhere."""
        name, modes = volume["metadata"]["name"], set(volume["spec"].get("accessModes") or ())
        elsewhere = [a for a in self.attachments.store.index("volume", name) if a["spec"]["nodeName"] != node]
        if elsewhere and modes and not modes & MANY:
            message = f'Multi-Attach error for volume "{name}" Volume is already exclusively attached to one node and can\'t be attached to another'
            for pod in pods:
                self.event(pod, "Warning", "FailedAttachVolume", message)
            return RETRY_SECONDS
        spec = {"attacher": volume["spec"]["csi"]["driver"], "nodeName": node, "source": {"persistentVolumeName": name}}
        try:
            metadata = {"name": attachment_name(*_csi(volume), node)}
            await self.client.create(VOLUME_ATTACHMENTS, {"metadata": metadata, "spec": spec})
        except StatusError as error:
            if is_already_exists(error):
                return None
            for pod in pods:
                message = f'AttachVolume.Attach failed for volume "{name}" : {text(error)}'
                self.event(pod, "Warning", "FailedAttachVolume", message)
            raise
        return None

    def _tell(self, attachment: Object, volume: Object, pods: list[Object]) -> None:
        """Tell the pods how the attaching went."""
        name, status = volume["metadata"]["name"], attachment.get("status") or {}
        problem = (status.get("attachError") or {}).get("message")
        for pod in pods:
            told = (attachment["metadata"]["name"], pod["metadata"]["uid"])
            if problem and not status.get("attached"):
                message = f'AttachVolume.Attach failed for volume "{name}" : rpc error: {problem}'
                self.event(pod, "Warning", "FailedAttachVolume", message)
            elif status.get("attached") and told not in self._told:
                self._told.add(told)
                message = f'AttachVolume.Attach succeeded for volume "{name}" '
                self.event(pod, "Normal", "SuccessfulAttachVolume", message)

    def _before_detach(self, node: Object | None, volume: Object, attachment: Object) -> float:
        """Seconds to wait for the node to unmount a volume that no pod there uses any more."""
        if node is None or any(t["key"] == OUT_OF_SERVICE for t in node["spec"].get("taints") or ()):
            return 0.0
        name = attachment["metadata"]["name"]
        if volume_name(*_csi(volume)) not in ((node.get("status") or {}).get("volumesInUse") or ()):
            return 0.0
        since = self._unused.setdefault(name, time.monotonic())
        return since + UNMOUNT_SECONDS - time.monotonic()

    async def _report(self, node: Object, names: list[str]) -> None:
        """Keep the node's status true: the kubelet mounts only what stands there as attached."""
        have = (node.get("status") or {}).get("volumesAttached") or []
        others = [v for v in have if not v["name"].startswith("kubernetes.io/csi/")]
        wanted = [*others, *({"name": name, "devicePath": ""} for name in names)]
        if wanted == have:
            return
        meta = node["metadata"]
        patch = {"metadata": {"uid": meta["uid"]}, "status": {"volumesAttached": wanted or None}}
        try:
            await self.client.patch(NODES, meta["name"], patch, subresource="status")
        except StatusError as error:
            if not is_not_found(error):
                raise

    async def _detach(self, attachment: Object) -> None:
        name = attachment["metadata"]["name"]
        self._unused.pop(name, None)
        self._told = {told for told in self._told if told[0] != name}
        if attachment["metadata"].get("deletionTimestamp"):
            return
        try:
            await self.client.delete(VOLUME_ATTACHMENTS, name, uid=attachment["metadata"]["uid"])
        except StatusError as error:
            if not is_not_found(error):
                raise


def _volume_names(attachment: Object) -> tuple[str, ...]:
    name = attachment["spec"]["source"].get("persistentVolumeName")
    return (name,) if name else ()
