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
                # Built-in kinds: the fields of the stored form, whichever version is asked for.
                known, version = item.fields, endpoint.version if endpoint.custom else ""
                found = known.get(version) if known is not None else None
                if found is None:
                    found = _values(endpoint, item)
                    item.fields = {**(known or {}), version: found}
                values = found
            if not self.fields.matches(values):
                return False
        return self.labels is None or self.labels.matches(item.labels)


def _values(endpoint: Endpoint, item: Item) -> dict[str, str]:
    stored = endpoint.storage.resource
    obj = {"kind": stored.kind, "apiVersion": endpoint.stored_head, **item.decode()}
    if endpoint.custom:
        obj = endpoint.convert(obj, endpoint.version)
    found: dict[str, str] = stored.selectable(obj)
    return found


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


_META = frozenset(("metadata.name", "metadata.namespace"))
_GENERIC = '"{name}" is not a known field selector: only "metadata.name", "metadata.namespace"'
_PLAIN = "field label not supported: {name}"
_OWN = {
    # Kinds with field labels of their own, and how each says that it does not know one.
    ("", "pods"): _PLAIN, ("", "nodes"): _PLAIN, ("", "namespaces"): _PLAIN, ("", "secrets"): _PLAIN, ("", "events"): _PLAIN,
    ("", "replicationcontrollers"): _PLAIN, ("", "services"): _PLAIN, ("events.k8s.io", "events"): _PLAIN,
    ("certificates.k8s.io", "certificatesigningrequests"): _PLAIN,
    ("batch", "jobs"): 'field label "{name}" not supported for Job',
    ("resource.k8s.io", "resourceslices"): "field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: {name}",
}  # fmt: skip
_MORE = {
    ("", "pods"): ("status.podIPs",),
    ("batch", "jobs"): ("status.successful",),
    ("certificates.k8s.io", "certificatesigningrequests"): ("spec.signerName",),
    ("resource.k8s.io", "resourceslices"): ("spec.nodeName", "spec.driver"),
}
# The newer event API's names of the labels of the older one.
_EVENT_NAMES = {"reportingController": "reportingComponent", **{
    f"regarding.{n}": f"involvedObject.{n}" for n in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
}}  # fmt: skip
_known: dict[tuple[str, str, str], frozenset[str]] = {}


def selectable_names(endpoint: Endpoint) -> frozenset[str]:
    """The names of the fields that a kind can be selected by."""
    key = (endpoint.group, endpoint.version, endpoint.plural)
    if endpoint.custom:
        return frozenset(endpoint.resource.selectable_names(endpoint.version)) | _META
    found = _known.get(key)
    if found is None:
        own = (endpoint.group, endpoint.plural)
        found = _META
        if own in _OWN:
            found = _names(endpoint) | frozenset(_MORE.get(own, ()))
        if own == ("events.k8s.io", "events"):
            found = _META | {"reason", "type"} | _EVENT_NAMES.keys()
        _known[key] = found
    return found


def _names(endpoint: Endpoint) -> frozenset[str]:
    empty = endpoint.resource.decode({"metadata": {"name": "x"}}, endpoint.version)
    return frozenset(endpoint.resource.selectable(empty)) | _META


def _supported(endpoint: Endpoint, fields: Any) -> Any:
    """Check the field names against what the kind offers."""
    if fields is None:
        return None
    known = selectable_names(endpoint)
    for name in fields.names():
        if name not in known:
            if endpoint.custom:
                raise bad_request(_PLAIN.format(name=name))
            raise bad_request(_OWN.get((endpoint.group, endpoint.plural), _GENERIC).format(name=name))
    if endpoint.group == "events.k8s.io":
        terms = tuple(t._replace(field=_EVENT_NAMES.get(t.field, t.field)) for t in fields.terms)
        return selectors.FieldSelector(terms)
    return fields
