"""Who owns which field: metadata.managedFields on update, and server-side apply.

Source: apimachinery's managedfields package and structured-merge-diff's merge package; the stages below carry the
names of upstream's managers. Objects are JSON trees; nothing here changes a tree that was passed in, except that
`update` sets metadata.managedFields of the new object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import orjson

from longshore.machinery.patch import fieldset, typed
from longshore.machinery.patch.fieldset import Set
from longshore.machinery.patch.schema import DEDUCED, Node

Object = dict[str, Any]
Filter = Callable[[Set], Set]
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
MAX_UPDATE_MANAGERS = 10
_STRIPPED = (
    "name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields",
    "resourceVersion",
)  # fmt: skip
_STRIP: Set = {"f:apiVersion": {}, "f:kind": {}, "f:metadata": {".": {}, **{"f:" + n: {} for n in _STRIPPED}}}


class Manager(NamedTuple):
    """What tells one managedFields entry from another."""

    name: str
    operation: str
    api_version: str
    subresource: str

    def text(self) -> str:
        """As conflict messages name it."""
        out = orjson.dumps(self.name).decode()
        if self.subresource:
            out += f" with subresource {orjson.dumps(self.subresource).decode()}"
        return f"{out} using {self.api_version}" if self.operation == "Update" else out


class Owned(NamedTuple):
    fields: Set
    api_version: str
    applied: bool
    written: Set | None = None
    """The fields as an entry had them that this server wrote: in order, and good to be written again as they are."""


@dataclass(slots=True)
class Managed:
    owned: dict[Manager, Owned] = field(default_factory=dict)
    times: dict[Manager, Any] = field(default_factory=dict)


class ApplyConflict(Exception):
    """Fields of an applied configuration belong to other managers with other values."""

    def __init__(self, conflicts: list[tuple[Manager, tuple[str, ...]]]) -> None:
        self.conflicts = sorted(conflicts, key=lambda c: c[0])
        super().__init__(self.message())

    def message(self) -> str:
        if len(self.conflicts) == 1:
            manager, path = self.conflicts[0]
            return f"Apply failed with 1 conflict: conflict with {manager.text()}: {fieldset.path_text(path)}"
        lines: list[str] = []
        last = None
        for manager, path in self.conflicts:
            if manager != last:
                lines.append(f"conflicts with {manager.text()}:")
                last = manager
            lines.append(f"- {fieldset.path_text(path)}")
        return f"Apply failed with {len(self.conflicts)} conflicts: " + "\n".join(lines)

    def causes(self) -> list[dict[str, str]]:
        return [
            {"reason": "FieldManagerConflict", "message": f"conflict with {m.text()}", "field": fieldset.path_text(p)}
            for m, p in self.conflicts
        ]


class ApplyRefused(ValueError):
    """An apply request that is wrong in itself (400)."""


class Types(Protocol):
    """What field management asks of a resource."""

    def node(self, api_version: str) -> Node | None:
        """The schema of a version, None when that version is not (any longer) there."""

    def convert(self, obj: Object, api_version: str) -> Object:
        """The object in another version (the same object when it is in that version already)."""

    def reset(self, api_version: str) -> Filter | None:
        """What takes the fields out of a set that this endpoint does not write."""

    def empty(self, api_version: str) -> Object:
        """An object of the kind to which nothing has been given: what a creation is compared with."""


def decode(entries: Any, *, ours: bool = False) -> Managed | None:
    """The managers of a managedFields list; None when it cannot be understood.

    ours: the list comes out of the store, so this server has checked and ordered it.
    """
    managed = Managed()
    for entry in entries or ():
        if not isinstance(entry, dict) or entry.get("operation") not in ("Apply", "Update"):
            return None
        version, fields = entry.get("apiVersion"), entry.get("fieldsV1")
        fields = {} if fields is None else fields
        if not version or entry.get("fieldsType") != "FieldsV1" or not (ours or fieldset.valid(fields)):
            return None
        applied = entry["operation"] == "Apply"
        key = Manager(
            entry.get("manager", ""), entry["operation"], "" if applied else version, entry.get("subresource", "")
        )
        managed.owned[key] = Owned(fields, version, applied, fields if ours else None)
        if entry.get("time"):
            managed.times[key] = entry["time"]
    return managed


def encode(managed: Managed) -> list[Object]:
    entries = []
    for key, owned in managed.owned.items():
        entry: Object = {"manager": key.name, "operation": key.operation, "apiVersion": owned.api_version}
        if managed.times.get(key):
            entry["time"] = managed.times[key]
        entry["fieldsType"] = "FieldsV1"
        entry["fieldsV1"] = owned.fields if owned.fields is owned.written else _ordered(owned.fields)
        if key.subresource:
            entry["subresource"] = key.subresource
        entries.append(entry)
    entries.sort(
        key=lambda e: (e["operation"], e.get("time", ""), e["manager"], e["apiVersion"], e.get("subresource", ""))
    )
    return entries


def _ordered(fields: Set) -> Set:
    return {k: _ordered(fields[k]) if fields[k] else {} for k in sorted(fields)}


def _is_reset(entries: Any) -> bool:
    return isinstance(entries, list) and (not entries or entries == [{}])


def _without(obj: Object) -> Object:
    """The object without its managedFields, which must not own themselves."""
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict) or "managedFields" not in metadata:
        return obj
    return {**obj, "metadata": {k: v for k, v in metadata.items() if k != "managedFields"}}


def update(
    types: Types, live: Object | None, new: Object, manager: str, api_version: str, subresource: str, now: str
) -> None:
    """Set new's managedFields after a create, update or patch by `manager` (live is None on create)."""
    asked = new.get("metadata", {}).get("managedFields")
    before = (live or {}).get("metadata", {}).get("managedFields")
    if subresource:
        managed = decode(before, ours=True) or Managed()
    elif _is_reset(asked):
        managed = Managed()
    else:
        managed = decode(asked, ours=asked is before) or Managed()
        if not managed.owned:
            managed = decode(before, ours=True) or Managed()
    metadata = new.setdefault("metadata", {})
    if managed.owned or live is None or not live.get("metadata", {}).get("uid"):
        old = _without(live) if live is not None else types.empty(api_version)
        managed = _update(types, old, _without(new), managed, manager, api_version, subresource, now)
        _cap(managed)
    entries = encode(managed)
    if entries:
        metadata["managedFields"] = entries
    else:
        metadata.pop("managedFields", None)


def _update(
    types: Types, live: Object, new: Object, managed: Managed, name: str, api_version: str, subresource: str, now: str
) -> Managed:
    manager = Manager(name or "unknown", "Update", api_version, subresource)
    node = types.node(api_version) or DEDUCED
    owned = managed.owned
    comparison = _take(types, node, live, new, api_version, owned, None, force=True)
    changed = fieldset.union(comparison.modified, comparison.added)
    reset = types.reset(api_version)
    if reset is not None:
        changed = reset(changed)
    changed = fieldset.difference(changed, _STRIP)
    times = dict(managed.times)
    if changed:
        previous = owned.get(manager)
        fields = fieldset.union(changed, previous.fields) if previous else changed
        owned[manager] = Owned(fields, api_version, False)
        times[manager] = now
    return Managed(owned, times)


def _take(
    types: Types,
    node: Node,
    live: Object,
    new: Object,
    version: str,
    owned: dict[Manager, Owned],
    self: Manager | None,
    force: bool,
) -> typed.Comparison:
    """Compare live with new and take what changed from everybody but `self`. ApplyConflict unless forced."""
    first = _filtered(types, typed.compare(node, types.convert(live, version), types.convert(new, version)), version)
    versions: dict[str, typed.Comparison | None] = {version: first}
    conflicts: dict[Manager, Set] = {}
    for manager, entry in list(owned.items()):
        if manager == self:
            continue
        at = entry.api_version
        if at not in versions:
            other = types.node(at)
            versions[at] = (
                None
                if other is None
                else _filtered(types, typed.compare(other, types.convert(live, at), types.convert(new, at)), at)
            )
        comparison = versions[at]
        if comparison is None:
            del owned[manager]
            continue
        if comparison.same:
            continue
        touched = fieldset.intersection(entry.fields, fieldset.union(comparison.modified, comparison.added))
        if touched:
            conflicts[manager] = touched
        fields = fieldset.difference(entry.fields, comparison.removed) if comparison.removed else entry.fields
        if fields is not entry.fields and (force or not conflicts):
            owned[manager] = entry._replace(fields=fields)
    if conflicts and not force:
        raise ApplyConflict([(m, p) for m, touched in conflicts.items() for p in fieldset.paths(touched)])
    for manager, touched in conflicts.items():
        entry = owned[manager]
        owned[manager] = entry._replace(fields=fieldset.difference(entry.fields, touched))
    for manager in [m for m, entry in owned.items() if not entry.fields]:
        del owned[manager]
    return first


def _filtered(types: Types, comparison: typed.Comparison, version: str) -> typed.Comparison:
    reset = types.reset(version)
    if reset is None:
        return comparison
    return typed.Comparison(reset(comparison.removed), reset(comparison.modified), reset(comparison.added))


def _cap(managed: Managed) -> None:
    """Merge the oldest updaters, so that no object gathers more than ten of them."""
    updaters = [m for m, o in managed.owned.items() if not o.applied]
    if len(updaters) <= MAX_UPDATE_MANAGERS:
        return
    updaters.sort(key=lambda m: (managed.times.get(m, ""), m))
    count = len(updaters)
    first: dict[str, Manager] = {}
    for manager in updaters:
        if count <= MAX_UPDATE_MANAGERS:
            break
        entry = managed.owned[manager]
        bucket = Manager("ancient-changes", "Update", entry.api_version, "")
        if entry.api_version not in first:
            first[entry.api_version] = manager
            continue
        if bucket not in managed.owned:
            managed.owned[bucket] = managed.owned.pop(first[entry.api_version])
        held = managed.owned[bucket]
        managed.owned[bucket] = entry._replace(fields=fieldset.union(entry.fields, held.fields))
        if manager != bucket:
            del managed.owned[manager]
        count -= 1
        managed.times[bucket] = managed.times.get(manager, "")


def apply(
    types: Types, live: Object, config: Object, manager: str, api_version: str, subresource: str, force: bool, now: str
) -> Object:
    """The object after `manager` has applied its configuration, with managedFields; live itself when nothing changed.

    live: the present object (in the request's version), or an empty one (only metadata) on create. ApplyConflict,
    ApplyRefused (400), typed.TypedError (500, text as upstream's).
    """
    managed = decode(live.get("metadata", {}).get("managedFields"), ours=True)
    if managed is None:
        raise typed.TypedError("failed to decode managed fields")
    if config.get("metadata", {}).get("managedFields") is not None:
        raise ApplyRefused("metadata.managedFields must be nil")
    try:
        out, result = _apply_tracked(types, live, config, managed, manager, api_version, subresource, force, now)
    except ApplyConflict as conflict:
        if manager != "kubectl":
            raise
        allowed = _from_last_applied(types, live, api_version)
        left = [c for c in conflict.conflicts if allowed is None or not fieldset.has(allowed, c[1])]
        if left:
            raise ApplyConflict(left) from None
        managed = decode(live.get("metadata", {}).get("managedFields"), ours=True) or Managed()
        out, result = _apply_tracked(types, live, config, managed, manager, api_version, subresource, True, now)
    if manager == "kubectl":
        out = _sync_last_applied(out, config)
    entries = encode(result)
    metadata = {k: v for k, v in out.get("metadata", {}).items() if k != "managedFields"}
    if entries:
        metadata["managedFields"] = entries
    return {**out, "metadata": metadata}


def _apply_tracked(
    types: Types,
    live: Object,
    config: Object,
    managed: Managed,
    name: str,
    version: str,
    sub: str,
    force: bool,
    now: str,
) -> tuple[Object, Managed]:
    bare = _without(live)
    if not managed.owned:
        managed = _update(types, types.empty(version), bare, managed, "before-first-apply", version, sub, now)
    manager = Manager(name or "unknown", "Apply", "", sub)
    node = types.node(version) or DEDUCED
    errors = typed.validate(node, config)
    if errors:
        text = errors[0] if len(errors) == 1 else "\n".join(["errors:", *("  " + e for e in errors)])
        raise typed.TypedError(f"failed to create typed patch object ({describe(config)}): {text}")
    out, owned = _apply(types, node, bare, config, dict(managed.owned), manager, version, force)
    times = dict(managed.times)
    if out is not bare:
        times[manager] = now
    return out, Managed(owned, times)


def describe(obj: Object) -> str:
    """namespace/name; group/version, Kind=kind — as these errors name an object."""
    metadata = obj.get("metadata") or {}
    version = obj.get("apiVersion", "")
    return f"{metadata.get('namespace', '')}/{metadata.get('name', '')}; {version if '/' in version else '/' + version}, Kind={obj.get('kind', '')}"


def _apply(
    types: Types,
    node: Node,
    live: Object,
    config: Object,
    owned: dict[Manager, Owned],
    manager: Manager,
    version: str,
    force: bool,
) -> tuple[Object, dict[Manager, Owned]]:
    merged = typed.merge(node, live, config)
    last = owned.get(manager)
    fields = typed.field_set(node, config)
    reset = types.reset(version)
    if reset is not None:
        fields = reset(fields)
    owned[manager] = Owned(fields, version, True)
    new = _prune(types, merged, owned, version, last)
    _take(types, node, live, new, version, owned, manager, force)
    mine = owned.get(manager)
    if mine is not None:
        kept = fieldset.difference(mine.fields, _STRIP)
        if kept:
            owned[manager] = mine._replace(fields=kept)
        else:
            del owned[manager]
    return (live if typed.equal(live, new) else new), owned


def _prune(types: Types, merged: Object, owned: dict[Manager, Owned], version: str, last: Owned | None) -> Object:
    """Take away what this manager applied last time, does not apply now, and nobody else owns."""
    if last is None or not last.fields:
        return merged
    at = last.api_version
    node = types.node(at)
    if node is None:
        return merged
    whole = types.convert(merged, at)
    last_named = typed.ensure_named_fields(node, last.fields)
    pruned = typed.remove(node, whole, last_named) or {}
    by_version: dict[str, Set] = {}
    for entry in owned.values():
        by_version[entry.api_version] = fieldset.union(by_version.get(entry.api_version, {}), entry.fields)
    for at_version in sorted(by_version, key=lambda v: v != at):
        there = types.node(at_version)
        if there is None:
            continue
        whole, pruned = types.convert(whole, at_version), types.convert(pruned, at_version)
        have = typed.ensure_named_fields(there, typed.field_set(there, whole))
        left = typed.ensure_named_fields(there, typed.field_set(there, pruned))
        keep = fieldset.union(left, typed.ensure_named_fields(there, by_version[at_version]))
        pruned = typed.remove(there, whole, fieldset.difference(have, keep)) or {}
    whole, pruned = types.convert(whole, at), types.convert(pruned, at)
    have = typed.ensure_named_fields(node, typed.field_set(node, whole))
    left = typed.ensure_named_fields(node, typed.field_set(node, pruned))
    gone = fieldset.intersection(fieldset.difference(have, left), last_named)
    result: Object = typed.remove(node, whole, gone) or {}
    return types.convert(result, version)


def _from_last_applied(types: Types, live: Object, version: str) -> Set | None:
    """The fields that kubectl's last-applied annotation holds with the very values of the live object."""
    text = (live.get("metadata", {}).get("annotations") or {}).get(LAST_APPLIED)
    if not text:
        return None
    try:
        last = orjson.loads(text)
    except ValueError:
        return None
    node = types.node(version)
    if node is None or not isinstance(last, dict) or last.get("apiVersion") != version or typed.validate(node, last):
        return None
    fields = typed.field_set(node, last)
    comparison = typed.compare(node, last, types.convert(live, version))
    for changed in (comparison.modified, comparison.added, comparison.removed):
        fields = fieldset.difference(fields, changed)
    return fields


def _sync_last_applied(obj: Object, config: Object) -> Object:
    annotations = obj.get("metadata", {}).get("annotations") or {}
    if not annotations.get(LAST_APPLIED):
        return obj
    bare = dict(config)
    own = bare.get("metadata", {}).get("annotations")
    if own and LAST_APPLIED in own:
        bare["metadata"] = {**bare["metadata"], "annotations": {k: v for k, v in own.items() if k != LAST_APPLIED}}
    text = orjson.dumps(bare, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE).decode()
    return {**obj, "metadata": {**obj["metadata"], "annotations": {**annotations, LAST_APPLIED: text}}}
