"""Who owns the fields of a new object. That depends on which fields it has, and is worked out once for objects that have the same."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import orjson

from longshore.machinery.patch import managedfields
from longshore.machinery.patch.managedfields import Types
from longshore.master.apiserver.scheme import Endpoint

Object = dict[str, Any]
_MOST = 256


class Ownership:
    """Sets metadata.managedFields of new objects."""

    def __init__(self) -> None:
        self._known: dict[bytes, Object] = {}  # what fields an object has: those that its manager owns

    def of_new(self, types: Types, endpoint: Endpoint, obj: Object, manager: str, now: str) -> None:
        """The manager who creates obj owns what it gives. now: the time of the entry."""
        metadata = obj["metadata"]
        key = b"" if endpoint.custom or "managedFields" in metadata else _key(endpoint, obj, manager)
        fields = self._known.get(key)
        if fields is not None:
            entry = {"manager": manager or "unknown", "operation": "Update", "apiVersion": endpoint.api_version}
            entry["time"] = now
            metadata["managedFields"] = [{**entry, "fieldsType": "FieldsV1", "fieldsV1": fields}]
            return
        managedfields.update(types, None, obj, manager, endpoint.api_version, "", now)
        entries: list[Object] = metadata.get("managedFields") or []
        if len(entries) == 1 and key:
            if len(self._known) >= _MOST:
                del self._known[next(iter(self._known))]
            self._known[key] = entries[0]["fieldsV1"]


def _key(endpoint: Endpoint, obj: Object, manager: str) -> bytes:
    """Equal for objects in which the same fields are owned; empty where that cannot be told."""
    what = (endpoint.plural, endpoint.api_version, obj.get("apiVersion"), manager, _fields(obj))
    try:
        return blake2b(orjson.dumps(what), digest_size=16).digest()
    except TypeError:  # a number past 64 bits in a list
        return b""


def _fields(obj: Object) -> Object:
    """What decides on ownership: names, elements of lists (their keys or values are names), and which values are zero.

    A field with Go's zero value may be one that every object has, and then it is nobody's.
    """
    return {
        name: _fields(value) if value.__class__ is dict else value if value.__class__ is list or not value else True
        for name, value in obj.items()
    }
