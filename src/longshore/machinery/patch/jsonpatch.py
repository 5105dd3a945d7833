"""RFC 6902 JSON patch, with the liberties that upstream's library takes and clients lean on.

Those are (github.com/evanphx/json-patch v4 as kube-apiserver sets it up): `replace` of a missing map key adds it,
negative array indices count from the end, `remove` of a missing key fails.
"""

from __future__ import annotations

from typing import Any

from longshore.machinery.patch.typed import equal

MAX_OPERATIONS = 10000
_MAX_COPIED = 3 * 1024 * 1024


class PatchFailed(ValueError):
    """The patch does not fit the document (422 with upstream's general text)."""


def _tokens(path: Any) -> list[str]:
    if not isinstance(path, str):
        raise PatchFailed("path is no text")
    if path == "":
        return []
    if path[0] != "/":
        raise PatchFailed("path does not begin with a slash")
    return [token.replace("~1", "/").replace("~0", "~") for token in path.split("/")[1:]]


def _index(token: str, length: int, grow: bool) -> int:
    if token == "-":
        if grow:
            return length
        raise PatchFailed("'-' names no element")
    digits = token[1:] if token[:1] == "-" else token
    if not digits.isascii() or not digits.isdigit():
        raise PatchFailed(f"{token!r} is no index")
    index = int(token)
    limit = length + 1 if grow else length
    if index < 0:
        index += limit
    if not 0 <= index < limit:
        raise PatchFailed(f"index {token} is out of range")
    return index


def _parent(document: Any, tokens: list[str]) -> Any:
    node = document
    for token in tokens[:-1]:
        node = _get(node, token)
    if not isinstance(node, (dict, list)):
        raise PatchFailed("missing parent")
    return node


def _get(node: Any, token: str) -> Any:
    if isinstance(node, dict):
        if token not in node:
            raise PatchFailed(f"missing key {token!r}")
        return node[token]
    if isinstance(node, list):
        return node[_index(token, len(node), False)]
    raise PatchFailed("missing path")


def _find(document: Any, tokens: list[str]) -> Any:
    for token in tokens:
        document = _get(document, token)
    return document


def _add(document: Any, tokens: list[str], value: Any) -> Any:
    if not tokens:
        return value
    parent = _parent(document, tokens)
    if isinstance(parent, dict):
        parent[tokens[-1]] = value
    else:
        parent.insert(_index(tokens[-1], len(parent), True), value)
    return document


def _remove(document: Any, tokens: list[str]) -> Any:
    if not tokens:
        raise PatchFailed("the document cannot be removed")
    parent = _parent(document, tokens)
    if isinstance(parent, dict):
        if tokens[-1] not in parent:
            raise PatchFailed(f"missing key {tokens[-1]!r}")
        return parent.pop(tokens[-1])
    return parent.pop(_index(tokens[-1], len(parent), False))


def _replace(document: Any, tokens: list[str], value: Any) -> Any:
    if not tokens:
        return value
    parent = _parent(document, tokens)
    if isinstance(parent, dict):
        parent[tokens[-1]] = value
    else:
        parent[_index(tokens[-1], len(parent), False)] = value
    return document


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


def _weight(value: Any) -> int:
    if isinstance(value, dict):
        return 2 + sum(len(k) + 4 + _weight(v) for k, v in value.items())
    if isinstance(value, list):
        return 2 + sum(1 + _weight(v) for v in value)
    return len(value) + 2 if isinstance(value, str) else 5


def apply(document: Any, operations: list[Any]) -> Any:
    """The patched document; `document` itself is changed and must not be used afterwards. PatchFailed.

    operations: decoded JSON objects (their number is the caller's to limit, see MAX_OPERATIONS).
    """
    copied = 0
    for operation in operations:
        if not isinstance(operation, dict):
            raise PatchFailed("an operation is no object")
        kind = operation.get("op")
        tokens = _tokens(operation.get("path"))
        if kind == "add":
            document = _add(document, tokens, _copied(operation.get("value")))
        elif kind == "replace":
            document = _replace(document, tokens, _copied(operation.get("value")))
        elif kind == "remove":
            _remove(document, tokens)
        elif kind == "move":
            document = _add(document, tokens, _remove(document, _tokens(operation.get("from"))))
        elif kind == "copy":
            value = _copied(_find(document, _tokens(operation.get("from"))))
            copied += _weight(value)
            if copied > _MAX_COPIED:
                raise PatchFailed("copied too much")
            document = _add(document, tokens, value)
        elif kind == "test":
            try:
                have = _find(document, tokens)
            except PatchFailed:
                have = None
                if operation.get("value") is not None:
                    raise
            if not equal(have, operation.get("value")):
                raise PatchFailed("test failed")
        else:
            raise PatchFailed(f"unknown operation {kind!r}")
    return document
