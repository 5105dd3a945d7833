"""Object metadata: upstream's checks at creation and at update (apimachinery pkg/api/validation/objectmeta.go)."""

from __future__ import annotations

from typing import Any

from longshore.api.validation.errors import Errors
from longshore.api.validation.names import (
    NameCheck,
    dns1123_label,
    dns1123_subdomain,
    for_generation,
    label_value,
    qualified_name,
)

IMMUTABLE = "field is immutable"
NEGATIVE = "must be greater than or equal to 0"
ANNOTATIONS_LIMIT = 256 * 1024

_STANDARD_FINALIZERS = frozenset(("foregroundDeletion", "kubernetes", "orphan"))


def labels(errors: Errors, value: dict[str, str], path: str) -> None:
    """Labels: keys are qualified names, values label values."""
    for key, text in value.items():
        for message in qualified_name(key):
            errors.invalid(path, key, message)
        if text:
            for message in label_value(text):
                errors.invalid(path, text, message)


def annotation_map(errors: Errors, value: dict[str, str], path: str) -> None:
    """Annotations: keys are qualified names in any case, 256 KiB altogether."""
    size = 0
    for key, text in value.items():
        for message in qualified_name(key.lower()):
            errors.invalid(path, key, message)
        size += len(key.encode()) + len(text.encode())
    if size > ANNOTATIONS_LIMIT:
        errors.too_long(path, ANNOTATIONS_LIMIT)


def owner_references(errors: Errors, references: list[dict[str, Any]], path: str) -> None:
    """Owner references: complete, and at most one controller."""
    controller = ""
    for reference in references:
        version = reference.get("apiVersion", "")
        group, _, short = version.rpartition("/")
        if not short or version.count("/") > 1:
            errors.invalid(f"{path}.apiVersion", version, "version must not be empty")
        if not reference.get("kind"):
            errors.invalid(f"{path}.kind", reference.get("kind", ""), "must not be empty")
        if not reference.get("name"):
            errors.invalid(f"{path}.name", reference.get("name", ""), "must not be empty")
        if not reference.get("uid"):
            errors.invalid(f"{path}.uid", reference.get("uid", ""), "must not be empty")
        if version in ("v1", "events.k8s.io/v1") and reference.get("kind") == "Event" and not group:
            errors.invalid(path, _owner(reference), f"{group}/{short}, Kind=Event is disallowed from being an owner")
    for reference in references:
        if reference.get("controller"):
            current = f"{reference.get('kind', '')}/{reference.get('name', '')}"
            if controller:
                errors.invalid(
                    path,
                    [_owner(r) for r in references],
                    f'Only one reference can have Controller set to true. Found "true" in references for {controller} and {current}',
                )
            else:
                controller = current


def _owner(reference: dict[str, Any]) -> dict[str, Any]:
    order = ("apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion")
    return {key: reference[key] for key in order if key in reference}


def finalizers(errors: Errors, names: list[str], path: str) -> None:
    """Finalizers: qualified names; foreground deletion and orphan exclude one another."""
    both = 0
    for name in names:
        for message in qualified_name(name):
            errors.invalid(path, name, message)
        both |= {"foregroundDeletion": 1, "orphan": 2}.get(name, 0)
    if both == 3:
        errors.invalid(path, names, "finalizer orphan and finalizer foregroundDeletion cannot be both set")


def standard_finalizers(errors: Errors, meta: dict[str, Any], path: str = "metadata") -> None:
    """Finalizers of built-in kinds: those without a domain must be Kubernetes' own."""
    for index, name in enumerate(meta.get("finalizers") or ()):
        if "/" not in name and name not in _STANDARD_FINALIZERS:
            errors.invalid(
                f"{path}.finalizers[{index}]",
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            )


def create(
    errors: Errors, meta: dict[str, Any], namespaced: bool, name_check: NameCheck, path: str = "metadata"
) -> None:
    """Metadata of an object, new or old; name_check complains about the name."""
    generate = meta.get("generateName")
    if generate:
        for message in for_generation(name_check)(generate):
            errors.invalid(f"{path}.generateName", generate, message)
    name = meta.get("name", "")
    if not name:
        errors.required(f"{path}.name", "name or generateName is required")
    else:
        for message in name_check(name):
            errors.invalid(f"{path}.name", name, message)
    namespace = meta.get("namespace", "")
    if namespaced:
        if not namespace:
            errors.required(f"{path}.namespace")
        else:
            for message in dns1123_label(namespace):
                errors.invalid(f"{path}.namespace", namespace, message)
    elif namespace:
        errors.forbidden(f"{path}.namespace", "not allowed on this type")
    common(errors, meta, path)


def common(errors: Errors, meta: dict[str, Any], path: str) -> None:
    """What creation and update check alike."""
    if meta.get("generation", 0) < 0:
        errors.invalid(f"{path}.generation", meta["generation"], NEGATIVE)
    if "labels" in meta:
        labels(errors, meta["labels"], f"{path}.labels")
    if "annotations" in meta:
        annotation_map(errors, meta["annotations"], f"{path}.annotations")
    if "ownerReferences" in meta:
        owner_references(errors, meta["ownerReferences"], f"{path}.ownerReferences")
    if "finalizers" in meta:
        finalizers(errors, meta["finalizers"], f"{path}.finalizers")
    if "managedFields" in meta:
        managed_fields(errors, meta["managedFields"], f"{path}.managedFields")


def managed_fields(errors: Errors, entries: list[dict[str, Any]], path: str) -> None:
    """Managed fields: known operation, type and lengths."""
    for index, entry in enumerate(entries):
        here = f"{path}[{index}]"
        operation = entry.get("operation", "")
        if operation not in ("Apply", "Update"):
            errors.invalid(f"{here}.operation", operation, "must be `Apply` or `Update`")
        kind = entry.get("fieldsType", "")
        if kind and kind != "FieldsV1":
            errors.invalid(f"{here}.fieldsType", kind, "must be `FieldsV1`")
        manager = entry.get("manager", "")
        if len(manager) > 128:
            errors.too_long(f"{here}.manager", 128)
        for at, char in enumerate(manager):
            if not char.isprintable():
                errors.invalid(f"{here}.manager", manager, f"invalid character {char!r} (at position {at})")
        if len(entry.get("subresource", "")) > 256:
            errors.too_long(f"{here}.subresource", 256)


def update(errors: Errors, new: dict[str, Any], old: dict[str, Any], path: str = "metadata") -> None:
    """Metadata of an update: what may not change."""
    deleted_new, deleted_old = new.get("deletionTimestamp"), old.get("deletionTimestamp")
    if deleted_old:
        for name in new.get("finalizers", ()):
            if name not in old.get("finalizers", ()):
                added = [f for f in new.get("finalizers", ()) if f not in old.get("finalizers", ())]
                errors.forbidden(
                    f"{path}.finalizers",
                    f"no new finalizers can be added if the object is being deleted, found new finalizers {go_list(added)}",
                )
                break
    if not new.get("resourceVersion"):
        errors.invalid(f"{path}.resourceVersion", new.get("resourceVersion", ""), "must be specified for an update")
    if new.get("generation", 0) < old.get("generation", 0):
        errors.invalid(f"{path}.generation", new.get("generation", 0), "must not be decremented")
    for key in ("name", "namespace", "uid", "creationTimestamp"):
        if new.get(key, "") != old.get(key, ""):
            errors.invalid(f"{path}.{key}", new.get(key, ""), IMMUTABLE)
    if deleted_new != deleted_old:
        errors.invalid(f"{path}.deletionTimestamp", deleted_new, IMMUTABLE)
    if new.get("deletionGracePeriodSeconds") != old.get("deletionGracePeriodSeconds"):
        errors.invalid(f"{path}.deletionGracePeriodSeconds", new.get("deletionGracePeriodSeconds"), IMMUTABLE)
    common(errors, new, path)


def go_list(values: list[str]) -> str:
    """A list of strings as Go's %#v prints it."""
    return "[]string{" + ", ".join(f'"{v}"' for v in values) + "}"


__all__ = [
    "IMMUTABLE",
    "NEGATIVE",
    "annotation_map",
    "common",
    "create",
    "dns1123_subdomain",
    "finalizers",
    "labels",
    "owner_references",
    "standard_finalizers",
    "update",
]
