"""Small questions about objects that every controller, the scheduler and the kubelet ask."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import orjson

Object = dict[str, Any]
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"


def copy(obj: Any) -> Any:
    """A deep copy of JSON data (seven times quicker than copy.deepcopy)."""
    return orjson.loads(orjson.dumps(obj))


def now() -> str:
    """The present as metav1.Time is written: RFC 3339, whole seconds, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def timestamp(moment: float) -> str:
    """Seconds since the epoch as metav1.Time."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: str | None) -> float:
    """A metav1.Time or MicroTime as seconds since the epoch; 0 for none."""
    if not text:
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def controller_of(obj: Object) -> Object | None:
    """The owner reference of the controlling owner, or None."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return owner  # type: ignore[no-any-return]
    return None


def is_controlled_by(obj: Object, owner: Object) -> bool:
    ref = controller_of(obj)
    return ref is not None and ref["uid"] == owner["metadata"]["uid"]


def owner_reference(owner: Object) -> Object:
    """The reference that makes owner (with kind and apiVersion) the controller of another object."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_deleting(obj: Object) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))


def condition(obj: Object, type: str) -> Object | None:
    """The status condition of that type, or None."""
    for entry in (obj.get("status") or {}).get("conditions") or ():
        if entry.get("type") == type:
            return entry  # type: ignore[no-any-return]
    return None


def condition_is(obj: Object, type: str, status: str = "True") -> bool:
    found = condition(obj, type)
    return found is not None and found.get("status") == status


def set_condition(conditions: Iterable[Object], new: Object) -> list[Object]:
    """Conditions with `new` in the place of its type's (at the end when it has none yet).

    lastTransitionTime stays as it was while the status stays; otherwise it is new's, or now.
    """
    result: list[Object] = []
    found = False
    for old in conditions or ():
        if old.get("type") != new["type"]:
            result.append(old)
            continue
        found = True
        merged = {**new}
        if old.get("status") == new.get("status") and "lastTransitionTime" in old:
            merged["lastTransitionTime"] = old["lastTransitionTime"]
        merged.setdefault("lastTransitionTime", now())
        result.append(merged)
    if not found:
        result.append({"lastTransitionTime": now(), **new})
    return result


# -- pods ----------------------------------------------------------------------------------------------------------


def phase(pod: Object) -> str:
    return (pod.get("status") or {}).get("phase") or ""


def is_terminal(pod: Object) -> bool:
    """Whether the pod has run to its end."""
    return phase(pod) in ("Succeeded", "Failed")


def is_active(pod: Object) -> bool:
    """Whether the pod counts as one of its controller's: neither ended nor being deleted."""
    return not is_terminal(pod) and not is_deleting(pod)


def is_ready(pod: Object) -> bool:
    return condition_is(pod, "Ready")


def is_available(pod: Object, min_ready_seconds: int, at: float) -> bool:
    """Whether the pod has been ready for min_ready_seconds. at: now, seconds since the epoch."""
    ready = condition(pod, "Ready")
    if ready is None or ready.get("status") != "True":
        return False
    if min_ready_seconds <= 0:
        return True
    since = seconds(ready.get("lastTransitionTime"))
    return since > 0 and since + min_ready_seconds <= at


def containers(pod: Object) -> list[Object]:
    """Containers and init containers of a pod's spec."""
    spec = pod.get("spec") or {}
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


def tolerates(tolerations: Iterable[Object], taint: Object) -> bool:
    """Whether one of the tolerations matches the taint."""
    return any(toleration_matches(t, taint) for t in tolerations)


def toleration_matches(toleration: Object, taint: Object) -> bool:
    """Whether a toleration matches a taint (core/v1 Toleration.ToleratesTaint)."""
    effect, key = toleration.get("effect"), toleration.get("key")
    if effect and effect != taint.get("effect"):
        return False
    if key and key != taint.get("key"):
        return False
    operator = toleration.get("operator") or "Equal"
    if operator == "Exists":
        return True
    if operator == "Equal":
        return (toleration.get("value") or "") == (taint.get("value") or "")
    try:
        want, have = int(toleration.get("value") or ""), int(taint.get("value") or "")
    except ValueError:
        return False
    return have < want if operator == "Lt" else have > want if operator == "Gt" else False


def attachment_name(driver: str, handle: str, node: str) -> str:
    """The VolumeAttachment of a CSI volume on a node, by which attacher, controller and kubelet find it."""
    return "csi-" + hashlib.sha256(f"{handle}{driver}{node}".encode()).hexdigest()


def volume_name(driver: str, handle: str) -> str:
    """A CSI volume in a node's status (volumesInUse, volumesAttached)."""
    return f"kubernetes.io/csi/{driver}^{handle}"


def promised_volume(volume: Object, claim: Object) -> Object:
    """The PersistentVolume with its claimRef on the claim; who set a claimRef first is told by an annotation."""
    meta = claim["metadata"]
    ref = {
        "kind": "PersistentVolumeClaim",
        "apiVersion": "v1",
        "namespace": meta["namespace"],
        "name": meta["name"],
        "uid": meta["uid"],
        "resourceVersion": meta["resourceVersion"],
    }
    metadata = dict(volume["metadata"])
    if not volume["spec"].get("claimRef"):
        metadata["annotations"] = {**(metadata.get("annotations") or {}), BOUND_BY_CONTROLLER: "yes"}
    return {**volume, "metadata": metadata, "spec": {**volume["spec"], "claimRef": ref}}
