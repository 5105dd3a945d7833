"""Plugins about storage and classes: defaults, protection while in use, resizing, ingress classes."""

from __future__ import annotations

from longshore.machinery import quantity
from longshore.master.apiserver.admission.base import Object, Plugin, refuse
from longshore.master.apiserver.context import AdmissionRequest

PVCS = ("", "persistentvolumeclaims")
_DEFAULT = ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
_BETA_CLASS = "volume.beta.kubernetes.io/storage-class"


def default_storage_class(classes: list[Object]) -> Object | None:
    """The class of claims that name none: the newest default, by name among equals."""
    found = [c for c in classes if any((c["metadata"].get("annotations") or {}).get(k) == "true" for k in _DEFAULT)]
    if not found:
        return None
    newest = max(c["metadata"].get("creationTimestamp", "") for c in found)
    return min(
        (c for c in found if c["metadata"].get("creationTimestamp", "") == newest), key=lambda c: c["metadata"]["name"]
    )


class DefaultStorageClass(Plugin):
    """Source: plugin/pkg/admission/storage/storageclass/setdefault."""

    name = "DefaultStorageClass"
    operations = frozenset(("CREATE",))
    resources = frozenset((PVCS,))

    async def admit(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        if a.object["spec"].get("storageClassName") is not None or _BETA_CLASS in (
            a.object["metadata"].get("annotations") or {}
        ):
            return
        found = default_storage_class(a.api.list("storage.k8s.io", "storageclasses"))
        if found is not None:
            a.object["spec"]["storageClassName"] = found["metadata"]["name"]


class StorageObjectInUseProtection(Plugin):
    """Volumes, claims and their classes go only when nobody uses them. Source: plugin/pkg/admission/storage/storageobjectinuseprotection."""

    name = "StorageObjectInUseProtection"
    operations = frozenset(("CREATE",))
    finalizers = {
        ("", "persistentvolumes"): "kubernetes.io/pv-protection",
        PVCS: "kubernetes.io/pvc-protection",
        ("storage.k8s.io", "volumeattributesclasses"): "kubernetes.io/vac-protection",
    }
    resources = frozenset(finalizers)

    async def admit(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        name = self.finalizers[a.attributes.group, a.attributes.resource]
        given = a.object["metadata"].get("finalizers") or []
        if name not in given:
            a.object["metadata"]["finalizers"] = [*given, name]


class PersistentVolumeClaimResize(Plugin):
    """Only claims of a class that allows it grow. Source: plugin/pkg/admission/storage/persistentvolume/resize."""

    name = "PersistentVolumeClaimResize"
    operations = frozenset(("UPDATE",))
    resources = frozenset((PVCS,))

    async def validate(self, a: AdmissionRequest) -> None:
        if a.object is None or a.old is None:
            return
        new, old = (_storage(o) for o in (a.object, a.old))
        if new is None or old is None or quantity.parse(new).nanos <= quantity.parse(old).nanos:
            return
        if (a.old.get("status") or {}).get("phase") != "Bound":
            raise refuse(a, "Only bound persistent volume claims can be expanded")
        name = a.object["spec"].get("storageClassName") or (a.object["metadata"].get("annotations") or {}).get(
            _BETA_CLASS, ""
        )
        found = a.api.get("storage.k8s.io", "storageclasses", "", name) if name else None
        if found is None or not found.get("allowVolumeExpansion"):
            raise refuse(
                a,
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            )


def _storage(claim: Object) -> str | None:
    value: str | None = ((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage")
    return value


class DefaultIngressClass(Plugin):
    """Source: plugin/pkg/admission/network/defaultingressclass."""

    name = "DefaultIngressClass"
    operations = frozenset(("CREATE",))
    resources = frozenset((("networking.k8s.io", "ingresses"),))

    async def admit(self, a: AdmissionRequest) -> None:
        if a.object is None or a.object["spec"].get("ingressClassName") is not None:
            return
        if "kubernetes.io/ingress.class" in (a.object["metadata"].get("annotations") or {}):
            return
        key = "ingressclass.kubernetes.io/is-default-class"
        found = [
            c
            for c in a.api.list("networking.k8s.io", "ingressclasses")
            if (c["metadata"].get("annotations") or {}).get(key) == "true"
        ]
        if not found:
            return
        found.sort(key=lambda c: c["metadata"]["name"])
        newest = max(found, key=lambda c: c["metadata"].get("creationTimestamp", ""))
        a.object["spec"]["ingressClassName"] = newest["metadata"]["name"]


class DenyServiceExternalIPs(Plugin):
    """No new external addresses on services; off unless asked for. Source: plugin/pkg/admission/network/denyserviceexternalips."""

    name = "DenyServiceExternalIPs"
    resources = frozenset((("", "services"),))

    async def validate(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        had = set(((a.old or {}).get("spec") or {}).get("externalIPs") or ())
        if any(address not in had for address in a.object["spec"].get("externalIPs") or ()):
            raise refuse(a, "Use of external IPs is denied by admission control.")
