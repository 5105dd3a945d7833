"""Who owns the fields of a new object. For pods, whose fields are those of their template, this is worked out once a template."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import orjson

from longshore.machinery.patch import managedfields
from longshore.machinery.patch.managedfields import Types
from longshore.master.apiserver.scheme import Endpoint

Object = dict[str, Any]
_MOST = 256
# Their values are nobody's, or do not tell which fields there are.
_OF_NO_MATTER = frozenset(
    ("name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "resourceVersion", "generateName",
     "labels", "annotations")
)  # fmt: skip


class Ownership:
    """Sets metadata.managedFields of new objects."""

    def __init__(self) -> None:
        self._known: dict[bytes, Object] = {}  # what names fields in a pod: the fields

    def of_new(self, types: Types, endpoint: Endpoint, obj: Object, manager: str, now: str) -> None:
        """The manager who creates obj owns what it gives. now: the time of the entry."""
        metadata = obj["metadata"]
        if endpoint.plural != "pods" or endpoint.group or "managedFields" in metadata:
            managedfields.update(types, None, obj, manager, endpoint.api_version, "", now)
            return
        labels, annotations = metadata.get("labels"), metadata.get("annotations")
        what = [
            manager,
            obj["spec"],
            labels and list(labels),
            annotations and list(annotations),
            "generateName" in metadata,
            {k: v for k, v in metadata.items() if k not in _OF_NO_MATTER},
        ]
        try:
            key = blake2b(orjson.dumps(what), digest_size=16).digest()
        except TypeError:  # a number past 64 bits
            key = b""
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
