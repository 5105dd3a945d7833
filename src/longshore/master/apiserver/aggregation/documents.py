"""What aggregated servers say of themselves in OpenAPI, to be shown together with our own.

Source: k8s.io/kube-aggregator/pkg/controllers/openapi and openapiv3, k8s.io/kube-openapi/pkg/aggregator (which
definitions are renamed).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import orjson

from longshore.machinery.http import Client
from longshore.master.apiserver.context import Object

LIMIT = 32 << 20
TIMEOUT = 10.0
_REFERENCE = "#/definitions/"
_SHARED = "#/parameters/"


class Documents(NamedTuple):
    """One remote group version. tag: of its version 3 document, "" when it has none; paths, definitions: its share of the
    Swagger document; etag: of that document."""

    tag: str
    paths: Object
    definitions: Object
    etag: str


async def fetch(
    client: Client, base: str, group: str, version: str, headers: Sequence[tuple[str, str]], old: Documents | None
) -> Documents:
    """Ask a server for both documents; what it does not have is empty. Raises OSError, TimeoutError, ValueError."""
    wanted = [("Accept", "application/json"), *headers]
    tag = ""
    index = await client.request("GET", base + "/openapi/v3", headers=wanted, timeout=TIMEOUT)
    body = await index.read(LIMIT)
    if index.status == 200:
        entry = (orjson.loads(body).get("paths") or {}).get(f"apis/{group}/{version}") or {}
        query = parse_qs(urlsplit(str(entry.get("serverRelativeURL") or "")).query)
        tag = (query.get("hash") or [""])[0]
    if old is not None and old.etag:
        wanted.append(("If-None-Match", old.etag))
    answer = await client.request("GET", base + "/openapi/v2", headers=wanted, timeout=TIMEOUT)
    body = await answer.read(LIMIT)
    if answer.status == 304 and old is not None:
        return old._replace(tag=tag)
    if answer.status != 200:
        return Documents(tag, {}, {}, "")
    document = orjson.loads(body)
    prefix = f"/apis/{group}/{version}/"
    shared = document.get("parameters") or {}
    items = {p: item for p, item in (document.get("paths") or {}).items() if p.startswith(prefix)}
    paths = {p: _inlined(item, shared) for p, item in items.items() if isinstance(item, dict)}
    definitions = _reached(paths, document.get("definitions") or {})
    return Documents(tag, paths, definitions, answer.headers.get("etag") or "")


def _inlined(item: Object, shared: Object) -> Object:
    """A path's item (or one of its operations) with the document's shared parameters in the place of references to them.

    What is no parameter is left out: one server's mistake must not spoil the document of all.
    """
    out: Object = {}
    for key, value in item.items():
        if key == "parameters":
            out[key] = [found for node in value or () if (found := _parameter(node, shared)) is not None]
        else:
            out[key] = _inlined(value, shared) if isinstance(value, dict) and key != "responses" else value
    return out


def _parameter(node: Any, shared: Object) -> Object | None:
    if isinstance(node, dict) and isinstance(reference := node.get("$ref"), str):
        node = shared.get(reference.removeprefix(_SHARED))
    return node if isinstance(node, dict) and node.get("in") and node.get("name") else None


def _reached(paths: Object, definitions: Object) -> Object:
    """The definitions that the paths lead to."""
    out: Object = {}
    queue = list(_references(paths))
    while queue:
        name = queue.pop()
        if name in definitions and name not in out:
            out[name] = definitions[name]
            queue += _references(definitions[name])
    return out


def _references(node: Any) -> Iterable[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref" and isinstance(value, str):
                yield value.removeprefix(_REFERENCE)
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for item in node:
            yield from _references(item)


def merge(paths: Object, definitions: Object, more: Documents) -> None:
    """Add a remote's share to a Swagger document's paths and definitions, in place.

    What is there stays; a definition of the same name that says something else gets a name with a number.
    """
    names: dict[str, str] = {}
    for name, schema in more.definitions.items():
        chosen, number = name, 1
        while chosen in definitions and definitions[chosen] != schema:
            number += 1
            chosen = f"{name}_v{number}"
        names[name] = chosen
    for name, schema in more.definitions.items():
        definitions.setdefault(names[name], _renamed(schema, names))
    for path, item in more.paths.items():
        paths.setdefault(path, _renamed(item, names))


def _renamed(node: Any, names: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {
            key: _REFERENCE + names.get(name := value.removeprefix(_REFERENCE), name)
            if key == "$ref" and isinstance(value, str)
            else _renamed(value, names)
            for key, value in node.items()
        }
    return [_renamed(item, names) for item in node] if isinstance(node, list) else node
