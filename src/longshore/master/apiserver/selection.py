"""Label and field selectors of a list, watch or deletecollection, tested against cached values."""

from __future__ import annotations

from typing import Any

from longshore.machinery import selectors
from longshore.machinery.errors import bad_request
from longshore.master.apiserver.cache import Item
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.scheme import Endpoint


class Selection:
    """What is asked for; false when it is everything. name: the only name that can match, "" when any."""

    __slots__ = ("fields", "labels", "name", "namespace", "plain")

    def __init__(self, labels: Any, fields: Any) -> None:
        self.labels = labels
        self.fields = fields
        required = fields.required() if fields is not None else {}
        self.name: str = required.get("metadata.name", "")
        self.namespace: str = required.get("metadata.namespace", "")
        # Fields that the key itself answers need no object.
        self.plain = fields is None or set(fields.names()) <= {"metadata.name", "metadata.namespace"}

    def __bool__(self) -> bool:
        return self.labels is not None or self.fields is not None

    def matches(self, endpoint: Endpoint, item: Item) -> bool:
        if self.fields is not None:
            if self.plain:
                values = {"metadata.name": item.name, "metadata.namespace": item.namespace}
            else:
                found = item._fields
                if found is None or endpoint.resource is not endpoint.storage.resource:
                    found = endpoint.resource.selectable(endpoint.present(item.decode()))
                    if endpoint.resource is endpoint.storage.resource:
                        item._fields = found
                values = found
            if not self.fields.matches(values):
                return False
        return self.labels is None or self.labels.matches(item.labels)


def selection(call: Call) -> Selection:
    """The selectors of a request, and its name where the path names one object. 400 when one is wrong."""
    request, endpoint = call.request, call.endpoint
    labels = fields = None
    if request.raw_query:
        text = request.param("labelSelector")
        if text:
            try:
                labels = selectors.parse_labels(text)
            except selectors.SelectorError as error:
                raise bad_request(str(error)) from None
        text = request.param("fieldSelector")
        if text:
            try:
                fields = selectors.parse_fields(text)
            except selectors.SelectorError as error:
                raise bad_request(str(error)) from None
            fields = _supported(endpoint, fields)
    return Selection(labels, fields)


_known: dict[tuple[str, str, str], frozenset[str]] = {}


def selectable_names(endpoint: Endpoint) -> frozenset[str]:
    """The names of the fields that a kind can be selected by."""
    key = (endpoint.group, endpoint.version, endpoint.plural)
    if endpoint.custom:
        return _names(endpoint)
    found = _known.get(key)
    if found is None:
        found = _known[key] = _names(endpoint)
    return found


def _names(endpoint: Endpoint) -> frozenset[str]:
    empty = endpoint.resource.decode({"metadata": {"name": "x"}}, endpoint.version)
    return frozenset(endpoint.resource.selectable(empty)) | {"metadata.name", "metadata.namespace"}


def _supported(endpoint: Endpoint, fields: Any) -> Any:
    """Check the field names against what the kind offers."""
    if fields is None:
        return None
    known = selectable_names(endpoint)
    for name in fields.names():
        if name not in known:
            plain = known <= {"metadata.name", "metadata.namespace"}
            if plain:
                raise bad_request(f'"{name}" is not a known field selector: only "metadata.name", "metadata.namespace"')
            raise bad_request(f"field label not supported: {name}")
    return fields
