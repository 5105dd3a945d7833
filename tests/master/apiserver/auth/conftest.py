"""A reader of objects without a server behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

Object = dict[str, Any]


class Objects:
    """context.ObjectReader over a dict; `put` and `remove` tell the listeners."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, str, str], Object] = {}
        self.listeners: dict[tuple[str, str], list[Callable[[str, str], None]]] = {}
        self.generations: dict[tuple[str, str], int] = {}

    def get(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        return self.kept.get((group, resource, namespace, name))

    peek = get

    def list(
        self, group: str, resource: str, namespace: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        return [o for (g, r, n, _), o in self.kept.items() if (g, r) == (group, resource) and namespace in ("", n)]

    def generation(self, group: str, resource: str) -> int:
        return self.generations.get((group, resource), 0)

    def on_change(self, group: str, resource: str, listener: Callable[[str, str], None]) -> None:
        self.listeners.setdefault((group, resource), []).append(listener)
        for g, r, n, name in self.kept:
            if (g, r) == (group, resource):
                listener(n, name)

    def put(self, group: str, resource: str, obj: Object) -> None:
        meta = obj["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        self.kept[group, resource, namespace, name] = obj
        self._tell(group, resource, namespace, name)

    def remove(self, group: str, resource: str, namespace: str, name: str) -> None:
        del self.kept[group, resource, namespace, name]
        self._tell(group, resource, namespace, name)

    def _tell(self, group: str, resource: str, namespace: str, name: str) -> None:
        for listener in self.listeners.get((group, resource), ()):
            listener(namespace, name)

    async def get_live(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        return self.get(group, resource, namespace, name)

    async def create(self, group: str, resource: str, namespace: str, obj: Object) -> Object:
        self.put(group, resource, obj)
        return obj

    async def update(self, group: str, resource: str, namespace: str, obj: Object, subresource: str = "") -> Object:
        self.put(group, resource, obj)
        return obj

    async def delete(self, group: str, resource: str, namespace: str, name: str) -> None:
        self.remove(group, resource, namespace, name)


@pytest.fixture
def objects() -> Objects:
    return Objects()
