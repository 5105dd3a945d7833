"""storage.k8s.io: StorageClass, VolumeAttachment, CSIDriver, CSINode, CSIStorageCapacity, VolumeAttributesClass."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.core.volume_validation import csi_driver
from longshore.api.gotypes import dump
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors, Raw
from longshore.api.validation.names import dns1123_subdomain, qualified_name
from longshore.api.validation.quantities import NOT_NEGATIVE
from longshore.api.validation.selectors import label_selector
from longshore.machinery import quantity

_STORAGE = "io.k8s.api.storage.v1."
#: The one field whose name upstream's messages spell otherwise.
_SPELT = {"attachRequired": "attachedRequired"}
_TOKENS_IN_SECRETS = (
    "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible "
    "logging of tokens in volume attributes"
)


def _provisioner(errors: Errors, name: str, path: str) -> None:
    if not name:
        errors.required(path)
        return
    for message in qualified_name(name.lower()):
        errors.invalid(path, name.lower(), message)


class StorageClass(Strategy):
    """A sort of storage that can be asked for."""

    def default(self, obj: Object) -> None:
        obj.setdefault("reclaimPolicy", "Delete")
        obj.setdefault("volumeBindingMode", "Immediate")

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        _provisioner(errors, obj.get("provisioner", ""), "provisioner")
        self._parameters(errors, obj.get("parameters") or {})
        policy = obj.get("reclaimPolicy", "")
        if policy and policy not in ("Delete", "Retain"):
            errors.unsupported("reclaimPolicy", policy, ("Delete", "Retain"))
        mode = obj.get("volumeBindingMode")
        if mode is None:
            errors.required("volumeBindingMode")
        elif mode not in ("Immediate", "WaitForFirstConsumer"):
            errors.unsupported("volumeBindingMode", mode, ("Immediate", "WaitForFirstConsumer"))
        self._topologies(errors, obj.get("allowedTopologies") or [])

    @staticmethod
    def _parameters(errors: Errors, parameters: dict[str, str]) -> None:
        if len(parameters) > 512:
            errors.too_long("parameters", 512)
            return
        size = 0
        for key, value in parameters.items():
            if not key:
                errors.invalid("parameters", key, "field can not be empty.")
            size += len(key) + len(value)
        if size > 256 * 1024:
            errors.too_long("parameters", 256 * 1024)

    @staticmethod
    def _topologies(errors: Errors, topologies: list[Object]) -> None:
        seen: list[Any] = []
        for index, topology in enumerate(topologies):
            path = f"allowedTopologies[{index}]"
            terms = topology.get("matchLabelExpressions") or []
            keys: set[str] = set()
            for at, term in enumerate(terms):
                here = f"{path}.matchLabelExpressions[{at}]"
                key, values = term.get("key", ""), term.get("values") or []
                if not values:
                    errors.required(f"{here}.values")
                for position, value in enumerate(values):
                    if value in values[:position]:
                        errors.duplicate(f"{here}.values[{position}]", value)
                for message in qualified_name(key):
                    errors.invalid(f"{here}.key", key, message)
                if key in keys:
                    errors.duplicate(f"{here}.key", key)
                keys.add(key)
            # Upstream compares with as many empty terms as there are terms.
            if not terms:
                for _ in topologies:
                    errors.duplicate(f"{path}.matchLabelExpressions", "")
            elif terms in seen:
                errors.duplicate(f"{path}.matchLabelExpressions", "")
            seen.append(terms)

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        if (new.get("parameters") or {}) != (old.get("parameters") or {}):
            errors.invalid("parameters", new.get("parameters"), metadata.IMMUTABLE)
        for key in ("provisioner", "reclaimPolicy", "volumeBindingMode"):
            if new.get(key) != old.get(key):
                errors.invalid(key, new.get(key, ""), metadata.IMMUTABLE)

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        found = []
        labels = {
            "beta.kubernetes.io/arch": "kubernetes.io/arch",
            "beta.kubernetes.io/os": "kubernetes.io/os",
            "failure-domain.beta.kubernetes.io/region": "topology.kubernetes.io/region",
            "failure-domain.beta.kubernetes.io/zone": "topology.kubernetes.io/zone",
            "beta.kubernetes.io/instance-type": "node.kubernetes.io/instance-type",
        }
        for index, topology in enumerate(obj.get("allowedTopologies") or ()):
            for at, term in enumerate(topology.get("matchLabelExpressions") or ()):
                if term.get("key") in labels:
                    since = (
                        "v1.14"
                        if term["key"].startswith("beta.kubernetes.io/") and "instance" not in term["key"]
                        else "v1.17"
                    )
                    found.append(
                        f'allowedTopologies[{index}].matchLabelExpressions[{at}].key: deprecated since {since}; use "{labels[term["key"]]}" instead'
                    )
        return found

    def row(self, obj: Object, now: datetime) -> list[Any]:
        name = obj["metadata"]["name"]
        annotations = obj["metadata"].get("annotations") or {}
        if any(
            annotations.get(k) == "true"
            for k in ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
        ):
            name += " (default)"
        return [
            name,
            obj.get("provisioner", ""),
            obj.get("reclaimPolicy", "Delete"),
            obj.get("volumeBindingMode", "<unset>"),
            bool(obj.get("allowVolumeExpansion")),
            age_of(obj, now),
        ]


class VolumeAttachment(Strategy):
    """A volume to be attached to a node."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        attacher = spec.get("attacher", "")
        if not attacher:
            errors.required("spec.attacher")
        else:
            csi_driver(errors, attacher, "spec.attacher")
        source = spec["source"]
        name, inline = source.get("persistentVolumeName"), source.get("inlineVolumeSpec")
        if name is None and inline is None:
            errors.required("spec.source", "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
        elif name is not None and inline is not None:
            errors.forbidden("spec.source", "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
        elif name is not None and not name:
            errors.required("spec.source.persistentVolumeName", "must specify non empty persistentVolumeName")
        for message in dns1123_subdomain(spec.get("nodeName", "")):
            errors.invalid("spec.nodeName", spec.get("nodeName", ""), message)
        self._status(obj, errors)
        for message in dns1123_subdomain(name) if name is not None else ():
            errors.invalid("spec.source.persistentVolumeName", name, message)

    @staticmethod
    def _status(obj: Object, errors: Errors) -> None:
        status = obj["status"]
        for key in sorted(status.get("attachmentMetadata") or {}):
            if len(key) > 128:
                errors.too_long("status.attachmentMetadata", 128)
        for key in ("attachError", "detachError"):
            message = (status.get(key) or {}).get("message", "")
            if len(message) > 256 * 1024:
                errors.too_long(f"status.{key}.message", 256 * 1024)

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        if new["spec"] != old["spec"]:
            errors.invalid("spec", dump(_STORAGE + "VolumeAttachmentSpec", new["spec"]), metadata.IMMUTABLE)

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        self._status(new, errors)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj["spec"]
        return [
            obj["metadata"]["name"],
            spec.get("attacher", ""),
            spec["source"].get("persistentVolumeName", ""),
            spec.get("nodeName", ""),
            bool(obj["status"].get("attached")),
            age_of(obj, now),
        ]


class CSIDriver(Strategy):
    """What a storage driver wants."""

    generation = False

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        spec.setdefault("attachRequired", True)
        spec.setdefault("podInfoOnMount", False)
        spec.setdefault("storageCapacity", False)
        spec.setdefault("fsGroupPolicy", "ReadWriteOnceWithFSType")
        if not spec.get("volumeLifecycleModes"):
            spec["volumeLifecycleModes"] = ["Persistent"]
        spec.setdefault("requiresRepublish", False)
        spec.setdefault("seLinuxMount", False)

    def prepare_create(self, obj: Object) -> None:
        return

    def prepare_update(self, new: Object, old: Object) -> None:
        spec, before = new["spec"], old["spec"]
        changed = any(
            spec.get(k) != before.get(k)
            for k in (
                "tokenRequests",
                "requiresRepublish",
                "seLinuxMount",
                "storageCapacity",
                "podInfoOnMount",
                "fsGroupPolicy",
                "nodeAllocatableUpdatePeriodSeconds",
                "serviceAccountTokenInSecrets",
            )
        )
        if changed:
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        for key in ("attachRequired", "podInfoOnMount", "storageCapacity"):
            if spec.get(key) is None:
                errors.required(f"spec.{_SPELT.get(key, key)}")
        policy = spec.get("fsGroupPolicy")
        if policy is not None and policy not in ("File", "None", "ReadWriteOnceWithFSType"):
            errors.unsupported("spec.fsGroupPolicy", policy, ("File", "None", "ReadWriteOnceWithFSType"))
        seen: set[str] = set()
        for index, request in enumerate(spec.get("tokenRequests") or ()):
            here = f"spec.tokenRequests[{index}]"
            audience, seconds = request.get("audience", ""), request.get("expirationSeconds")
            if audience in seen:
                errors.duplicate(f"{here}.audience", audience)
                continue
            seen.add(audience)
            if seconds is None:
                continue
            if seconds < 600:
                errors.invalid(f"{here}.expirationSeconds", seconds, "may not specify a duration less than 10 minutes")
            if seconds > 1 << 32:
                errors.invalid(
                    f"{here}.expirationSeconds", seconds, "may not specify a duration larger than 2^32 seconds"
                )
        for mode in spec.get("volumeLifecycleModes") or ():
            if mode not in ("Persistent", "Ephemeral"):
                errors.unsupported("spec.volumeLifecycleModes", mode, ("Persistent", "Ephemeral"))
        if spec.get("serviceAccountTokenInSecrets") is not None and not spec.get("tokenRequests"):
            errors.invalid(
                "spec.serviceAccountTokenInSecrets",
                spec["serviceAccountTokenInSecrets"],
                "serviceAccountTokenInSecrets is set but no tokenRequests are specified",
            )
        period = spec.get("nodeAllocatableUpdatePeriodSeconds")
        if period is not None and period < 10:
            errors.invalid(
                "spec.nodeAllocatableUpdatePeriodSeconds", period, "must be greater than or equal to 10 seconds"
            )

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        for key in ("attachRequired", "volumeLifecycleModes"):
            if new["spec"].get(key) != old["spec"].get(key):
                errors.invalid(f"spec.{_SPELT.get(key, key)}", new["spec"].get(key), metadata.IMMUTABLE)

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        spec = obj["spec"]
        requests = spec.get("tokenRequests")
        if not requests or "serviceAccountTokenInSecrets" in spec:
            return []
        if old is not None and old["spec"].get("tokenRequests") == requests:
            return []
        return [_TOKENS_IN_SECRETS]

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj["spec"]
        tokens = (
            ",".join(t.get("audience") or '""' for t in spec.get("tokenRequests") or ())
            if spec.get("tokenRequests")
            else "<unset>"
        )
        modes = ",".join(spec.get("volumeLifecycleModes") or ()) or "<none>"
        return [
            obj["metadata"]["name"],
            bool(spec.get("attachRequired", True)),
            bool(spec.get("podInfoOnMount")),
            bool(spec.get("storageCapacity")),
            tokens,
            bool(spec.get("requiresRepublish")),
            modes,
            age_of(obj, now),
        ]


class CSINode(Strategy):
    """The drivers on a node."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        names: set[str] = set()
        for index, driver in enumerate(obj["spec"].get("drivers") or ()):
            path = f"spec.drivers[{index}]"
            name, node = driver.get("name", ""), driver.get("nodeID", "")
            csi_driver(errors, name, f"{path}.name")
            if not node:
                errors.required(f"{path}.nodeID")
            elif len(node) > 256:
                errors.invalid(f"{path}.nodeID", node, "must be 256 characters or less")
            count = (driver.get("allocatable") or {}).get("count")
            if count is not None and count < 0:
                errors.invalid(f"{path}.allocatable.count", count, NOT_NEGATIVE)
            if name in names:
                errors.duplicate(f"{path}.name", name)
            names.add(name)
            keys: set[str] = set()
            for key in driver.get("topologyKeys") or ():
                if not key:
                    errors.required(path)
                if key in keys:
                    errors.duplicate(path, key)
                keys.add(key)
                for message in qualified_name(key):
                    errors.invalid(path, key, message)

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors)
        known = {d.get("name"): d for d in new["spec"].get("drivers") or ()}
        for driver in old["spec"].get("drivers") or ():
            now = known.get(driver.get("name"))
            if now is None:
                continue
            before, after = ({k: v for k, v in one.items() if k != "allocatable"} for one in (driver, now))
            if before != after:
                errors.invalid("spec.drivers", dump(_STORAGE + "CSINodeDriver", after), metadata.IMMUTABLE)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], len(obj["spec"].get("drivers") or ()), age_of(obj, now)]


class CSIStorageCapacity(Strategy):
    """How much storage is left somewhere."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        label_selector(errors, obj.get("nodeTopology"), "nodeTopology")
        for message in dns1123_subdomain(obj.get("storageClassName", "")):
            errors.invalid("storageClassName", obj.get("storageClassName", ""), message)
        value = obj.get("capacity")
        if value is not None and quantity.parse(value).nanos < 0:
            errors.invalid("capacity", value, NOT_NEGATIVE)

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        if new.get("nodeTopology") != old.get("nodeTopology"):
            errors.invalid("nodeTopology", new.get("nodeTopology"), metadata.IMMUTABLE)
        if new.get("storageClassName") != old.get("storageClassName"):
            errors.invalid("storageClassName", new.get("storageClassName"), metadata.IMMUTABLE)


class VolumeAttributesClass(Strategy):
    """Properties of volumes that can change."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        name, parameters = obj.get("driverName", ""), obj.get("parameters") or {}
        _provisioner(errors, name, "driverName")
        StorageClass._parameters(errors, parameters)
        if not parameters:
            errors.required("parameters", "must contain at least one key/value pair")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        if new.get("driverName") != old.get("driverName"):
            errors.forbidden("driverName", "updates to driverName are forbidden.")
        if (new.get("parameters") or {}) != (old.get("parameters") or {}):
            errors.forbidden("parameters", "updates to parameters are forbidden.")
        self.validate(new, errors, old)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], obj.get("driverName", ""), age_of(obj, now)]


STRATEGIES = {
    "CSIDriver": CSIDriver,
    "CSINode": CSINode,
    "CSIStorageCapacity": CSIStorageCapacity,
    "StorageClass": StorageClass,
    "VolumeAttachment": VolumeAttachment,
    "VolumeAttributesClass": VolumeAttributesClass,
}
__all__ = ["STRATEGIES", "Raw"]
