"""What an informer knows: objects by key, with indexes that stay right as objects change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from sys import intern
from typing import Any

Object = dict[str, Any]
list_ = list  # the class below has a method of that name
IndexFunction = Callable[[Object], Iterable[str]]


def key_of(obj: Object) -> str:
    """`namespace/name`, or `name` for what no namespace holds."""
    metadata = obj["metadata"]
    namespace = metadata.get("namespace")
    # One text for all who keep it.
    return intern(f"{namespace}/{metadata['name']}") if namespace else metadata["name"]


def split_key(key: str) -> tuple[str, str]:
    """(namespace, name) of a key; namespace is "" for what no namespace holds."""
    namespace, slash, name = key.rpartition("/")
    return (namespace, name) if slash else ("", key)


def by_namespace(obj: Object) -> Iterable[str]:
    return (obj["metadata"].get("namespace", ""),)


def by_controller(obj: Object) -> Iterable[str]:
    """Index by the uid of the controlling owner; "" holds the orphans, as `/`-prefixed namespace."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return (owner["uid"],)
    return ("orphans/" + obj["metadata"].get("namespace", ""),)


class Store:
    """Objects by key. Objects are shared by every reader of the process: never change one, copy it first."""

    def __init__(self, indexers: dict[str, IndexFunction] | None = None) -> None:
        self._objects: dict[str, Object] = {}
        self._indexers: dict[str, IndexFunction] = {}
        self._indexes: dict[str, dict[str, dict[str, Object]]] = {}
        for name, function in (indexers or {}).items():
            self.add_index(name, function)

    def add_index(self, name: str, function: IndexFunction) -> None:
        """Index by the strings that function gives for an object. Adding a name twice keeps the first."""
        if name in self._indexers:
            return
        self._indexers[name] = function
        index = self._indexes[name] = {}
        for key, obj in self._objects.items():
            for value in function(obj):
                index.setdefault(value, {})[key] = obj

    def get(self, key: str) -> Object | None:
        return self._objects.get(key)

    def named(self, namespace: str, name: str) -> Object | None:
        return self._objects.get(f"{namespace}/{name}" if namespace else name)

    def index(self, name: str, value: str) -> list[Object]:
        """The objects for which the named index gives value, in order of arrival."""
        return list(self._indexes[name].get(value, {}).values())

    def index_values(self, name: str) -> list_[str]:
        return list(self._indexes[name])

    def list(self, namespace: str = "") -> list_[Object]:
        """All objects, or those of a namespace (quick when an index called "namespace" exists)."""
        if not namespace:
            return list(self._objects.values())
        if "namespace" in self._indexes:
            return self.index("namespace", namespace)
        prefix = namespace + "/"
        return [obj for key, obj in self._objects.items() if key.startswith(prefix)]

    def keys(self) -> list_[str]:
        return list(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[Object]:
        return iter(list(self._objects.values()))

    def __contains__(self, key: str) -> bool:
        return key in self._objects

    def put(self, key: str, obj: Object) -> Object | None:
        """Store obj; the object that it replaces, or None."""
        old = self._objects.get(key)
        self._objects[key] = obj
        for name, function in self._indexers.items():
            index = self._indexes[name]
            values = list(function(obj))
            if old is not None:
                for value in function(old):
                    if value not in values:
                        self._unindex(index, value, key)
            for value in values:
                index.setdefault(value, {})[key] = obj
        return old

    def remove(self, key: str) -> Object | None:
        """Take an object out; it, or None when it was not there."""
        old = self._objects.pop(key, None)
        if old is not None:
            for name, function in self._indexers.items():
                for value in function(old):
                    self._unindex(self._indexes[name], value, key)
        return old

    @staticmethod
    def _unindex(index: dict[str, dict[str, Object]], value: str, key: str) -> None:
        entries = index.get(value)
        if entries is not None:
            entries.pop(key, None)
            if not entries:
                del index[value]
