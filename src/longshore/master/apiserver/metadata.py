"""What a write keeps, takes away and settles in an object's metadata.

Source: apiserver's registry/rest (BeforeCreate, BeforeUpdate) and endpoints/handlers (deduplicated owner references).
"""

from __future__ import annotations

from typing import Any

from longshore.master.apiserver.call import Call

Object = dict[str, Any]


def clear_system(metadata: Object) -> None:
    """What a client may not set at creation."""
    for name in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
        metadata.pop(name, None)


def keep_system(metadata: Object, old: Object) -> None:
    """What an update can never change."""
    if not metadata.get("uid"):
        metadata["uid"] = old.get("uid", "")
    if old.get("creationTimestamp"):
        metadata["creationTimestamp"] = old["creationTimestamp"]
    if old.get("deletionTimestamp"):
        metadata["deletionTimestamp"] = old["deletionTimestamp"]
    if old.get("deletionGracePeriodSeconds") is not None and metadata.get("deletionGracePeriodSeconds") is None:
        metadata["deletionGracePeriodSeconds"] = old["deletionGracePeriodSeconds"]
    metadata.pop("selfLink", None)
    metadata["resourceVersion"] = old.get("resourceVersion", "")


def keep_reset(metadata: Object, old: Object, names: tuple[str, ...]) -> None:
    """What of metadata a status endpoint does not write stays as it was."""
    for name in names:
        if name in old:
            metadata[name] = old[name]
        else:
            metadata.pop(name, None)


def settle_times(new: Object, old: Object) -> None:
    """An update that changes nothing but managedFields' times is no change: keep the old times."""
    fields, before = new["metadata"].get("managedFields"), old["metadata"].get("managedFields")
    if not fields or not before or len(fields) != len(before) or fields == before:
        return
    index = {_entry_key(e): e for e in before}
    for entry in fields:
        there = index.get(_entry_key(entry))
        if there is None or there.get("fieldsV1") != entry.get("fieldsV1"):
            return
    rest = {
        **new,
        "metadata": {k: v for k, v in new["metadata"].items() if k not in ("managedFields", "resourceVersion")},
    }
    was = {
        **old,
        "metadata": {k: v for k, v in old["metadata"].items() if k not in ("managedFields", "resourceVersion")},
    }
    if rest == was:
        new["metadata"]["managedFields"] = before


def _entry_key(entry: Object) -> tuple[Any, ...]:
    return tuple(entry.get(k) for k in ("manager", "operation", "apiVersion", "subresource"))


def dedup_owners(call: Call, metadata: Object, stage: str) -> None:
    """Remove duplicate owner references, with upstream's warning."""
    owners = metadata.get("ownerReferences")
    if not owners or len(owners) < 2:
        return
    seen: set[str] = set()
    doubled: list[str] = []
    kept = []
    for owner in owners:
        uid = owner.get("uid", "")
        if uid in seen and owner in kept:
            if uid not in doubled:
                doubled.append(uid)
            continue
        seen.add(uid)
        kept.append(owner)
    if not doubled:
        return
    metadata["ownerReferences"] = kept
    after = " after mutating admission happens" if "after" in stage else ""
    call.warn(
        f".metadata.ownerReferences contains duplicate entries{after}; API server dedups owner references in 1.20+, and"
        f" may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {', '.join(doubled)}"
    )
