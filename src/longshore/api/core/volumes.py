"""PersistentVolume and PersistentVolumeClaim."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api import printing, times
from longshore.api.core.podspec import default_sources
from longshore.api.core.scheduling_validation import node_selector
from longshore.api.core.volume_validation import PERSISTENT_SOURCES, source
from longshore.api.gotypes import dump, indented_diff
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_label, dns1123_subdomain
from longshore.api.validation.quantities import amount, resource_name
from longshore.api.validation.selectors import label_selector
from longshore.machinery import quantity

_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
_PV = "io.k8s.api.core.v1.PersistentVolumeSpec"
_PVC = "io.k8s.api.core.v1.PersistentVolumeClaimSpec"
_BETA_CLASS = "volume.beta.kubernetes.io/storage-class"


def _access_modes(errors: Errors, modes: list[str], path: str, missing: str = "") -> None:
    if not modes:
        errors.required(path, missing)
    for mode in modes:
        if mode not in _MODES:
            errors.unsupported(path, mode, _MODES)
    if "ReadWriteOncePod" in modes and len(set(modes)) > 1:
        errors.forbidden(path, "may not use ReadWriteOncePod with other access modes")


def _positive(errors: Errors, text: str, path: str) -> None:
    if quantity.parse(text).nanos <= 0:
        errors.invalid(path, text, "must be greater than zero")


class PersistentVolume(Strategy):
    """Storage that exists."""

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        obj["status"].setdefault("phase", "Pending")
        spec.setdefault("persistentVolumeReclaimPolicy", "Retain")
        spec.setdefault("volumeMode", "Filesystem")
        default_sources(spec)

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"phase": "Pending", "lastPhaseTransitionTime": times.now()}

    def prepare_status(self, new: Object, old: Object) -> None:
        if new["status"].get("phase") != old["status"].get("phase"):
            was = old["status"].get("lastPhaseTransitionTime")
            given = new["status"].get("lastPhaseTransitionTime")
            if given is None or given == was:
                new["status"]["lastPhaseTransitionTime"] = times.now()

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        _access_modes(errors, spec.get("accessModes") or [], "spec.accessModes")
        capacity = spec.get("capacity") or {}
        if not capacity:
            errors.required("spec.capacity")
        if "storage" not in capacity or len(capacity) > 1:
            errors.unsupported("spec.capacity", capacity or None, ("storage",))
        else:
            amount(errors, "storage", capacity["storage"], "spec.capacity[storage]")
            _positive(errors, capacity["storage"], "spec.capacity[storage]")
        policy = spec.get("persistentVolumeReclaimPolicy", "")
        if policy and policy not in ("Delete", "Recycle", "Retain"):
            errors.unsupported("spec.persistentVolumeReclaimPolicy", policy, ("Delete", "Recycle", "Retain"))
        affinity = (spec.get("nodeAffinity") or {}).get("required") if spec.get("nodeAffinity") is not None else None
        if spec.get("nodeAffinity") is not None:
            if affinity is None:
                errors.required("spec.nodeAffinity.required", "must specify required node constraints")
            else:
                node_selector(errors, affinity, "spec.nodeAffinity.required")
        source(errors, spec, "spec", pod=False)
        if spec.get("local") is not None and affinity is None:
            errors.required("spec.nodeAffinity", "Local volume requires node affinity")
        if (spec.get("hostPath") or {}).get("path") == "/" and policy == "Recycle":
            errors.forbidden("spec.persistentVolumeReclaimPolicy", "may not be 'recycle' for a hostPath mount of '/'")
        if spec.get("storageClassName"):
            for message in dns1123_subdomain(spec["storageClassName"]):
                errors.invalid("spec.storageClassName", spec["storageClassName"], message)
        mode = spec.get("volumeMode")
        if mode is not None and mode not in ("Block", "Filesystem"):
            errors.unsupported("spec.volumeMode", mode, ("Block", "Filesystem"))
        name = spec.get("volumeAttributesClassName")
        if name is not None:
            if not name:
                errors.required("spec.volumeAttributesClassName", "an empty string is disallowed")
            else:
                for message in dns1123_subdomain(name):
                    errors.invalid("spec.volumeAttributesClassName", name, message)
            if spec.get("csi") is None:
                errors.required("spec.csi", "has to be specified when using volumeAttributesClassName")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        # Upstream's strategy validates the whole, and so does its validation of updates: each complaint is there twice.
        self.validate(new, errors, old)
        self.validate(new, errors, old)
        spec, before = new["spec"], old["spec"]
        mine, was = ({k: s[k] for k in PERSISTENT_SOURCES if k in s} for s in (spec, before))
        if mine != was and not _only_secret_added(mine, was):
            text = _source_diff(was, mine)
            errors.forbidden(
                "spec.persistentvolumesource", f"spec.persistentvolumesource is immutable after creation\n{text}"
            )
        if spec.get("volumeMode") != before.get("volumeMode"):
            errors.invalid("volumeMode", spec.get("volumeMode"), "field is immutable")
        if before.get("nodeAffinity") is not None and spec.get("nodeAffinity") != before["nodeAffinity"]:
            errors.invalid(
                "nodeAffinity",
                dump("io.k8s.api.core.v1.VolumeNodeAffinity", spec.get("nodeAffinity")),
                "field is immutable, except for updating from beta label to GA",
            )

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        found = []
        spec = obj["spec"]
        annotations = obj["metadata"].get("annotations") or {}
        if _BETA_CLASS in annotations:
            found.append(
                f'metadata.annotations[{_BETA_CLASS}]: deprecated since v1.8; use "storageClassName" attribute instead'
            )
        if spec.get("persistentVolumeReclaimPolicy") == "Recycle":
            found.append(
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning."
            )
        for kind, text in (
            ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
            ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
            ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
            ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
            ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
            ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
            ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
            ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
        ):
            if spec.get(kind) is not None:
                found.append(f"spec.{kind}: {text}")
        return found

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj["spec"], obj.get("status") or {}
        claim = spec.get("claimRef") or {}
        phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
        return [
            obj["metadata"]["name"],
            (spec.get("capacity") or {}).get("storage", "0"),
            printing.access_modes(spec.get("accessModes")),
            spec.get("persistentVolumeReclaimPolicy", ""),
            phase,
            f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else "",
            (obj["metadata"].get("annotations") or {}).get(_BETA_CLASS, spec.get("storageClassName", "")),
            spec.get("volumeAttributesClassName", "<unset>"),
            status.get("reason", ""),
            age_of(obj, now),
            spec.get("volumeMode", "<unset>"),
        ]

    def selectable(self, obj: Object) -> dict[str, str]:
        return {"name": obj["metadata"].get("name", "")}


def _only_secret_added(new: Object, old: Object) -> bool:
    """A CSI volume may be given the secret for expansion later."""
    if set(new) != {"csi"} or set(old) != {"csi"}:
        return False
    allowed = ("controllerExpandSecretRef", "nodeExpandSecretRef")
    return {k: v for k, v in new["csi"].items() if k not in allowed} == {
        k: v for k, v in old["csi"].items() if k not in allowed
    }


def _source_diff(old: Object, new: Object) -> str:
    import difflib
    import json

    def text(value: Object) -> list[str]:
        full = dump(_PV, value)
        assert isinstance(full, dict)
        skip = (
            "Capacity",
            "AccessModes",
            "ClaimRef",
            "PersistentVolumeReclaimPolicy",
            "StorageClassName",
            "MountOptions",
            "VolumeMode",
            "NodeAffinity",
            "VolumeAttributesClassName",
        )
        return json.dumps({k: v for k, v in full.items() if k not in skip}, indent=1).split("\n")

    return "\n".join(list(difflib.unified_diff(text(old), text(new), lineterm="", n=3))[2:]) + "\n"


def claim_spec(errors: Errors, spec: Object, path: str) -> None:
    """The spec of a claim, also of one that stands in a template."""
    _access_modes(errors, spec.get("accessModes") or [], f"{path}.accessModes", "at least 1 access mode is required")
    if spec.get("selector") is not None:
        label_selector(errors, spec["selector"], f"{path}.selector")
    storage = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    if storage is None:
        errors.required(f"{path}.resources[storage]")
    else:
        if quantity.parse(storage).nanos <= 0:
            errors.invalid(f"{path}.resources[storage]", storage, "must be greater than zero")
    name = spec.get("storageClassName")
    if name:
        for message in dns1123_subdomain(name):
            errors.invalid(f"{path}.storageClassName", name, message)
    mode = spec.get("volumeMode")
    if mode is not None and mode not in ("Block", "Filesystem"):
        errors.unsupported(f"{path}.volumeMode", mode, ("Block", "Filesystem"))
    for field in ("dataSource", "dataSourceRef"):
        reference = spec.get(field)
        if reference is not None:
            _data_source(errors, reference, f"{path}.{field}")
    one, other = spec.get("dataSource"), spec.get("dataSourceRef")
    if one is not None and other is not None and not other.get("namespace"):
        if (one.get("apiGroup") or None, one.get("kind"), one.get("name")) != (
            other.get("apiGroup") or None,
            other.get("kind"),
            other.get("name"),
        ):
            from longshore.api.validation.errors import Raw

            errors.invalid(path, Raw("{}"), "must match dataSourceRef")
    name = spec.get("volumeAttributesClassName")
    if name:
        for message in dns1123_subdomain(name):
            errors.invalid(f"{path}.volumeAttributesClassName", name, message)


def _data_source(errors: Errors, reference: Object, path: str) -> None:
    if not reference.get("name"):
        errors.required(f"{path}.name")
    if not reference.get("kind"):
        errors.required(f"{path}.kind")
    group = reference.get("apiGroup") or ""
    if not group and reference.get("kind") != "PersistentVolumeClaim":
        errors.invalid(
            path, reference.get("kind", ""), "must be 'PersistentVolumeClaim' when referencing the default apiGroup"
        )
    if group:
        for message in dns1123_subdomain(group):
            errors.invalid(f"{path}.apiGroup", group, message)
    if reference.get("namespace"):
        for message in dns1123_label(reference["namespace"]):
            errors.invalid(f"{path}.namespace", reference["namespace"], message)


def normalize_data_sources(spec: Object) -> None:
    """dataSource and dataSourceRef tell the same, unless one of them cannot."""
    one, other = spec.get("dataSource"), spec.get("dataSourceRef")
    if one is not None and other is None:
        spec["dataSourceRef"] = dict(one)
    elif other is not None and one is None and not other.get("namespace"):
        group, kind = other.get("apiGroup") or "", other.get("kind")
        if (group == "snapshot.storage.k8s.io" and kind == "VolumeSnapshot") or (
            group == "" and kind == "PersistentVolumeClaim"
        ):
            spec["dataSource"] = {k: v for k, v in other.items() if k != "namespace"}
            spec["dataSource"].setdefault("apiGroup", None)


class PersistentVolumeClaim(Strategy):
    """Storage that is asked for."""

    def default(self, obj: Object) -> None:
        obj["status"].setdefault("phase", "Pending")
        obj["spec"].setdefault("volumeMode", "Filesystem")

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"phase": "Pending"}
        spec = obj["spec"]
        source_ = spec.get("dataSource")
        if source_ is not None and spec.get("dataSourceRef") is None:
            group, kind = source_.get("apiGroup") or "", source_.get("kind")
            if not (
                (group == "snapshot.storage.k8s.io" and kind == "VolumeSnapshot")
                or (group == "" and kind == "PersistentVolumeClaim")
            ):
                # An unknown source in the old field is dropped, as ever.
                del spec["dataSource"]
        normalize_data_sources(spec)

    def prepare_update(self, new: Object, old: Object) -> None:
        normalize_data_sources(new["spec"])

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        claim_spec(errors, obj["spec"], "spec")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        claim_spec(errors, new["spec"], "spec")
        spec, before = new["spec"], old["spec"]
        munged = {**spec}
        bound = (old.get("status") or {}).get("phase") == "Bound"
        if not before.get("volumeName"):
            # Whoever binds a claim names its volume.
            if spec.get("volumeName"):
                munged.pop("volumeName")
        if before.get("storageClassName") is None and spec.get("storageClassName") is not None:
            # A class may still be given to a claim that has none.
            munged.pop("storageClassName")
        if bound:
            resources = {**(spec.get("resources") or {})}
            was = (before.get("resources") or {}).get("requests")
            if was is not None:
                resources["requests"] = was
            munged["resources"] = resources
            if "volumeAttributesClassName" in before:
                munged["volumeAttributesClassName"] = before["volumeAttributesClassName"]
            else:
                munged.pop("volumeAttributesClassName", None)
        if munged != before:
            difference = indented_diff(_PVC, before, spec)
            errors.forbidden(
                "spec",
                f"spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{difference}",
            )
        new_size = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
        old_size = ((before.get("resources") or {}).get("requests") or {}).get("storage")
        if bound and new_size and old_size:
            capacity = ((old.get("status") or {}).get("capacity") or {}).get("storage")
            if quantity.parse(new_size).nanos < quantity.parse(old_size).nanos:
                if capacity is None or quantity.parse(new_size).nanos <= quantity.parse(capacity).nanos:
                    errors.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity")
        if before.get("volumeMode") != spec.get("volumeMode"):
            errors.invalid("volumeMode", spec.get("volumeMode"), "field is immutable")

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        if not new["metadata"].get("resourceVersion"):
            errors.required("resourceVersion")
        if not new["spec"].get("accessModes"):
            errors.required("Spec.accessModes")
        for name in sorted(new["status"].get("capacity") or ()):
            value = new["status"]["capacity"][name]
            resource_name(errors, name, f"status.capacity[{name}]")
            amount(errors, name, value, f"status.capacity[{name}]")

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        found = []
        spec = obj["spec"]
        annotations = obj["metadata"].get("annotations") or {}
        if _BETA_CLASS in annotations:
            found.append(
                f'metadata.annotations[{_BETA_CLASS}]: deprecated since v1.8; use "storageClassName" attribute instead'
            )
        for part in ("limits", "requests"):
            storage = ((spec.get("resources") or {}).get(part) or {}).get("storage")
            if storage and quantity.parse(storage).nanos % quantity.NANO:
                found.append(
                    f'spec.resources.{part}[storage]: fractional byte value "{storage}" is invalid, must be an integer'
                )
        return found

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj["spec"], obj.get("status") or {}
        bound = spec.get("volumeName", "")
        phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
        return [
            obj["metadata"]["name"],
            phase,
            bound,
            (status.get("capacity") or {}).get("storage", "0") if bound else "",
            printing.access_modes(status.get("accessModes")) if bound else "",
            (obj["metadata"].get("annotations") or {}).get(_BETA_CLASS, spec.get("storageClassName", "")),
            spec.get("volumeAttributesClassName", "<unset>"),
            age_of(obj, now),
            spec.get("volumeMode", "<unset>"),
        ]

    def selectable(self, obj: Object) -> dict[str, str]:
        return {"name": obj["metadata"].get("name", "")}
