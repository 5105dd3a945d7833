"""Which volume suits which claim, and what both look like once they belong together. Pure functions.

Source: kubernetes component-helpers storage/volume and pkg/controller/volume/persistentvolume, described behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable

from longshore.client.objects import BOUND_BY_CONTROLLER, is_deleting
from longshore.client.selectors import matcher
from longshore.client.store import Object
from longshore.machinery.quantity import parse

BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
PROVISIONER = "volume.kubernetes.io/storage-provisioner"
OLD_PROVISIONER = "volume.beta.kubernetes.io/storage-provisioner"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
NO_PROVISIONER = "kubernetes.io/no-provisioner"


def notes_of(obj: Object) -> dict[str, str]:
    return obj["metadata"].get("annotations") or {}


def size(text: object) -> int:
    return parse(str(text or "0")).value


def refers_to(volume: Object, claim: Object) -> bool:
    """Whether the volume is promised to this very claim (or to its name, without a uid yet)."""
    ref = volume["spec"].get("claimRef") or {}
    meta = claim["metadata"]
    if (ref.get("namespace"), ref.get("name")) != (meta["namespace"], meta["name"]):
        return False
    return not ref.get("uid") or ref["uid"] == meta["uid"]


def mismatch(volume: Object, claim: Object) -> str:
    """Why a claim that asks for this volume by name cannot have it; "" when it can."""
    v, c = volume["spec"], claim["spec"]
    if size((v.get("capacity") or {}).get("storage")) < size(
        ((c.get("resources") or {}).get("requests") or {}).get("storage")
    ):
        return "requested PV is too small"
    if (v.get("storageClassName") or "") != (c.get("storageClassName") or ""):
        return "storageClassName does not match"
    if (v.get("volumeMode") or "Filesystem") != (c.get("volumeMode") or "Filesystem"):
        return "incompatible volumeMode"
    if not set(c.get("accessModes") or ()) <= set(v.get("accessModes") or ()):
        return "incompatible accessMode"
    return ""


def best_match(claim: Object, volumes: Iterable[Object], *, delayed: bool) -> Object | None:
    """The smallest volume that suits, one promised to the claim before all others.

    delayed: the claim waits for its first consumer; then only a promised volume will do.
    """
    spec = claim["spec"]
    wanted = size(((spec.get("resources") or {}).get("requests") or {}).get("storage"))
    chosen = matcher(spec["selector"]) if spec.get("selector") else None
    best: Object | None = None
    best_size = 0
    for volume in volumes:
        if is_deleting(volume):
            continue
        v = volume["spec"]
        if v.get("claimRef"):
            if refers_to(volume, claim) and not mismatch(volume, claim):
                return volume
            continue
        if delayed or (volume.get("status") or {}).get("phase") not in ("Available", "", None):
            continue
        if chosen is not None and not chosen(volume["metadata"].get("labels") or {}):
            continue
        if mismatch(volume, claim):
            continue
        have = size((v.get("capacity") or {}).get("storage"))
        if have >= wanted and (best is None or have < best_size):
            best, best_size = volume, have
    return best


def bound(claim: Object, volume: Object) -> Object:
    """The claim with its volume's name, completed."""
    metadata = dict(claim["metadata"])
    metadata["annotations"] = {**notes_of(claim), BIND_COMPLETED: "yes"}
    if not claim["spec"].get("volumeName"):
        metadata["annotations"][BOUND_BY_CONTROLLER] = "yes"
    return {**claim, "metadata": metadata, "spec": {**claim["spec"], "volumeName": volume["metadata"]["name"]}}
