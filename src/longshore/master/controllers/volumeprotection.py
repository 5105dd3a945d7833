"""Claims and volumes in use are not taken away; claims of pods' ephemeral volumes are made.

Sources: kubernetes pkg/controller/volume/pvcprotection, pvprotection, vacprotection, ephemeral, described behaviour.
"""

from __future__ import annotations

from longshore.client.objects import is_deleting, is_terminal, owner_reference
from longshore.client.resources import (
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    VOLUME_ATTRIBUTES_CLASSES,
    Resource,
)
from longshore.client.rest import Client, is_already_exists, is_namespace_terminating, is_not_found
from longshore.client.store import Object, key_of, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller

CLAIM_FINALIZER = "kubernetes.io/pvc-protection"
VOLUME_FINALIZER = "kubernetes.io/pv-protection"
CLASS_FINALIZER = "kubernetes.io/vac-protection"


def claims_of(pod: Object) -> list[str]:
    """Keys of the claims that a pod mounts."""
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    keys = []
    for volume in pod["spec"].get("volumes") or ():
        if "persistentVolumeClaim" in volume:
            keys.append(f"{namespace}/{volume['persistentVolumeClaim']['claimName']}")
        elif "ephemeral" in volume:
            keys.append(f"{namespace}/{name}-{volume['name']}")
    return keys


async def set_finalizer(client: Client, resource: Resource, obj: Object, name: str, *, on: bool) -> None:
    """Put a finalizer on an object, or take it off."""
    meta = obj["metadata"]
    finalizers = [f for f in meta.get("finalizers") or () if f != name]
    if on:
        finalizers.append(name)
    try:
        await client.update(resource, {**obj, "metadata": {**meta, "finalizers": finalizers}})
    except StatusError as error:
        if not is_not_found(error):
            raise


class ClaimProtection(Controller):
    """A claim that is being deleted stays while a pod uses it."""

    name = "persistentvolumeclaim-protection-controller"
    account = "pvc-protection-controller"
    component = "pvc-protection-controller"

    def setup(self) -> None:
        self.claims = self.watch(PERSISTENT_VOLUME_CLAIMS, add=self.enqueue, update=self.enqueue_update)
        self.pods = self.watch(PODS, update=self._pod_changed, delete=self._pod, indexers={"claim": claims_of})

    def _pod(self, pod: Object) -> None:
        for key in claims_of(pod):
            self.queue.add(key)

    def _pod_changed(self, old: Object, new: Object) -> None:
        if is_terminal(new) and not is_terminal(old):
            self._pod(new)

    async def reconcile(self, key: str) -> float | None:
        claim = self.claims.store.named(*split_key(key))
        if claim is None:
            return None
        held = CLAIM_FINALIZER in (claim["metadata"].get("finalizers") or ())
        if not is_deleting(claim):
            if not held:
                await set_finalizer(self.client, PERSISTENT_VOLUME_CLAIMS, claim, CLAIM_FINALIZER, on=True)
            return None
        if not held or any(self._uses(p) for p in self.pods.store.index("claim", key)):
            return None
        # The cache may not have a pod that was made just now.
        pods = (await self.client.list(PODS, claim["metadata"]["namespace"], resource_version=""))["items"]
        if any(key in claims_of(p) and self._uses(p) for p in pods):
            return 1.0
        await set_finalizer(self.client, PERSISTENT_VOLUME_CLAIMS, claim, CLAIM_FINALIZER, on=False)
        return None

    @staticmethod
    def _uses(pod: Object) -> bool:
        return bool(pod["spec"].get("nodeName")) and not is_terminal(pod)


class VolumeProtection(Controller):
    """A volume that is being deleted stays while it is bound."""

    name = "persistentvolume-protection-controller"
    account = "pv-protection-controller"
    component = "pv-protection-controller"

    def setup(self) -> None:
        self.volumes = self.watch(PERSISTENT_VOLUMES, add=self.enqueue, update=self.enqueue_update)

    async def reconcile(self, key: str) -> float | None:
        volume = self.volumes.store.get(key)
        if volume is None:
            return None
        held = VOLUME_FINALIZER in (volume["metadata"].get("finalizers") or ())
        if not is_deleting(volume):
            if not held:
                await set_finalizer(self.client, PERSISTENT_VOLUMES, volume, VOLUME_FINALIZER, on=True)
        elif held and (volume.get("status") or {}).get("phase") != "Bound":
            await set_finalizer(self.client, PERSISTENT_VOLUMES, volume, VOLUME_FINALIZER, on=False)
        return None


def attributes_classes(obj: Object) -> tuple[str, ...]:
    """Names of the VolumeAttributesClasses that a claim or a volume has, wants or is being changed to."""
    spec, status = obj["spec"], obj.get("status") or {}
    names = (
        spec.get("volumeAttributesClassName"),
        status.get("currentVolumeAttributesClassName"),
        (status.get("modifyVolumeStatus") or {}).get("targetVolumeAttributesClassName"),
    )
    return tuple({name for name in names if name})


class AttributesClassProtection(Controller):
    """A VolumeAttributesClass that is being deleted stays while a claim or a volume names it."""

    name = "volumeattributesclass-protection-controller"
    component = "volumeattributesclass-protection-controller"

    def setup(self) -> None:
        self.classes = self.watch(VOLUME_ATTRIBUTES_CLASSES, add=self.enqueue, update=self.enqueue_update)
        self.users = [
            self.watch(
                resource,
                update=lambda old, new: self._left(old),
                delete=self._left,
                indexers={"attributes class": attributes_classes},
            )
            for resource in (PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES)
        ]

    def _left(self, user: Object) -> None:
        for name in attributes_classes(user):
            self.queue.add(name)

    async def reconcile(self, key: str) -> float | None:
        found = self.classes.store.get(key)
        if found is None:
            return None
        held = CLASS_FINALIZER in (found["metadata"].get("finalizers") or ())
        if not is_deleting(found):
            if not held:
                await set_finalizer(self.client, VOLUME_ATTRIBUTES_CLASSES, found, CLASS_FINALIZER, on=True)
        elif held and not any(i.store.index("attributes class", key) for i in self.users):
            await set_finalizer(self.client, VOLUME_ATTRIBUTES_CLASSES, found, CLASS_FINALIZER, on=False)
        return None


class EphemeralVolumes(Controller):
    """Makes the claims of pods' generic ephemeral volumes; they go with the pod."""

    name = "ephemeral-volume-controller"
    component = "ephemeral_volume"

    def setup(self) -> None:
        self.pods = self.watch(PODS, add=self._pod)
        self.claims = self.watch(PERSISTENT_VOLUME_CLAIMS, delete=self._claim_gone)

    def _pod(self, pod: Object) -> None:
        if any("ephemeral" in v for v in pod["spec"].get("volumes") or ()):
            self.enqueue(pod)

    def _claim_gone(self, claim: Object) -> None:
        for owner in claim["metadata"].get("ownerReferences") or ():
            if owner["kind"] == "Pod":
                self.queue.add(f"{claim['metadata']['namespace']}/{owner['name']}")

    async def reconcile(self, key: str) -> float | None:
        pod = self.pods.store.named(*split_key(key))
        if pod is None or is_deleting(pod):
            return None
        for volume in pod["spec"].get("volumes") or ():
            if "ephemeral" in volume:
                await self._ensure(pod, volume)
        return None

    async def _ensure(self, pod: Object, volume: Object) -> None:
        namespace = pod["metadata"]["namespace"]
        name = f"{pod['metadata']['name']}-{volume['name']}"
        known = self.claims.store.named(namespace, name)
        if known is not None:
            if not any(o["uid"] == pod["metadata"]["uid"] for o in known["metadata"].get("ownerReferences") or ()):
                message = f"PVC {namespace}/{name} was not created for pod {key_of(pod)} (pod is not owner)"
                raise StatusError(409, "Conflict", message, None)
            return
        template = volume["ephemeral"]["volumeClaimTemplate"]
        source = template.get("metadata") or {}
        metadata: Object = {"name": name, "namespace": namespace, "ownerReferences": [owner_reference(pod)]}
        for field in ("labels", "annotations"):
            if source.get(field):
                metadata[field] = source[field]
        try:
            await self.client.create(PERSISTENT_VOLUME_CLAIMS, {"metadata": metadata, "spec": template["spec"]})
        except StatusError as error:
            if is_already_exists(error) or is_namespace_terminating(error):
                return
            self.event(pod, "Warning", "EphemeralVolumeFailed", f"failed to create PVC {name}: {error.message}")
            raise
