"""What field management (machinery.patch.managedfields) asks of an endpoint."""

from __future__ import annotations

from typing import Any

from longshore.machinery.patch import fieldset
from longshore.machinery.patch.managedfields import Filter
from longshore.machinery.patch.schema import Node
from longshore.master.apiserver.scheme import Endpoint, Scheme, reset_fields


class FieldTypes:
    """The schemas of an endpoint's versions, conversion between them, and the fields that the endpoint does not write."""

    def __init__(self, scheme: Scheme, endpoint: Endpoint, subresource: str) -> None:
        self._scheme = scheme
        self._endpoint = endpoint
        self._zero: dict[str, Any] | None = None
        self._nodes: dict[str, Node | None] = {}  # of a built-in kind: they never change
        reset = reset_fields(endpoint, subresource)
        self._filter: Filter | None = (lambda s: fieldset.recursive_difference(s, reset)) if reset else None

    def node(self, api_version: str) -> Node | None:
        if self._endpoint.custom:
            return self._scheme.node(self._endpoint, api_version)
        if api_version not in self._nodes:
            self._nodes[api_version] = self._scheme.node(self._endpoint, api_version)
        return self._nodes[api_version]

    def convert(self, obj: dict[str, Any], api_version: str) -> dict[str, Any]:
        if obj.get("apiVersion", api_version) == api_version:
            return obj
        version = api_version.rpartition("/")[2]
        if self._endpoint.storage.conversions is not None:
            return self._endpoint.renamed(obj, version)  # who owns what is told apart without asking the webhook
        return self._endpoint.convert(obj, version)

    def reset(self, api_version: str) -> Filter | None:
        return self._filter

    def empty(self, api_version: str) -> dict[str, Any]:
        endpoint = self._endpoint
        head = {"kind": endpoint.kind, "apiVersion": endpoint.api_version}
        if endpoint.custom:
            return {**head, "metadata": {}}
        if self._zero is None:
            self._zero = endpoint.resource.decode({}, endpoint.version)
        return {**head, **self._zero}
