"""A Swagger 2.0 document as the protobuf that clients of older habits ask for (openapi.v2 of gnostic).

Field numbers: gnostic's openapiv2/OpenAPIv2.proto. Values of any kind are YAML text in it; JSON is YAML.
"""

from __future__ import annotations

import struct
from typing import Any

import orjson

Object = dict[str, Any]


def _varint(value: int) -> bytes:
    out = bytearray()
    if value < 0:
        value += 1 << 64
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _text(number: int, value: Any) -> bytes:
    return _bytes(number, str(value).encode()) if value not in (None, "") else b""


def _flag(number: int, value: Any) -> bytes:
    return _varint(number << 3) + b"\x01" if value else b""


def _whole(number: int, value: Any) -> bytes:
    return _varint(number << 3) + _varint(int(value)) if value else b""


def _double(number: int, value: Any) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", float(value)) if value else b""


def _texts(number: int, values: Any) -> bytes:
    return b"".join(_bytes(number, str(v).encode()) for v in values or ())


def _any(value: Any) -> bytes:
    return _text(2, orjson.dumps(value).decode())


def _named(number: int, name: str, value: bytes) -> bytes:
    return _bytes(number, _text(1, name) + _bytes(2, value))


def _extensions(number: int, node: Object) -> bytes:
    return b"".join(_named(number, k, _any(v)) for k, v in node.items() if k.startswith("x-"))


def _schema(node: Object) -> bytes:
    out = [
        _text(1, node.get("$ref")),
        _text(2, node.get("format")),
        _text(3, node.get("title")),
        _text(4, node.get("description")),
    ]
    if "default" in node:
        out.append(_bytes(5, _any(node["default"])))
    out += [_double(6, node.get("multipleOf")), _double(7, node.get("maximum")), _flag(8, node.get("exclusiveMaximum"))]
    out += [_double(9, node.get("minimum")), _flag(10, node.get("exclusiveMinimum")), _whole(11, node.get("maxLength"))]
    out += [_whole(12, node.get("minLength")), _text(13, node.get("pattern")), _whole(14, node.get("maxItems"))]
    out += [_whole(15, node.get("minItems")), _flag(16, node.get("uniqueItems")), _whole(17, node.get("maxProperties"))]
    out += [_whole(18, node.get("minProperties")), _texts(19, node.get("required"))]
    out += [_bytes(20, _any(v)) for v in node.get("enum") or ()]
    additional = node.get("additionalProperties")
    if isinstance(additional, dict):
        out.append(_bytes(21, _bytes(1, _schema(additional))))
    elif additional is not None:
        out.append(_bytes(21, _flag(2, additional)))
    if node.get("type"):
        out.append(_bytes(22, _text(1, node["type"])))
    if isinstance(node.get("items"), dict):
        out.append(_bytes(23, _bytes(1, _schema(node["items"]))))
    if node.get("properties"):
        out.append(_bytes(25, b"".join(_named(1, n, _schema(s)) for n, s in node["properties"].items())))
    out.append(_extensions(31, node))
    return b"".join(out)


def _parameter(node: Object) -> bytes:
    if node["in"] == "body":
        body = (
            _text(1, node.get("description"))
            + _text(2, node["name"])
            + _text(3, "body")
            + _flag(4, node.get("required"))
        )
        return _bytes(1, _bytes(1, body + _bytes(5, _schema(node.get("schema") or {}))))
    common = (
        _flag(1, node.get("required"))
        + _text(2, node["in"])
        + _text(3, node.get("description"))
        + _text(4, node["name"])
    )
    if node["in"] == "path":
        inner = _bytes(4, common + _text(5, node.get("type")) + _flag(19, node.get("uniqueItems")))
    else:
        inner = _bytes(3, common + _text(6, node.get("type")) + _flag(20, node.get("uniqueItems")))
    return _bytes(1, _bytes(2, inner))


def _operation(node: Object) -> bytes:
    responses = b"".join(
        _named(
            1,
            code,
            _bytes(
                1,
                _text(1, r.get("description")) + (_bytes(2, _bytes(1, _schema(r["schema"]))) if "schema" in r else b""),
            ),
        )
        for code, r in node.get("responses", {}).items()
    )
    return b"".join(
        (
            _texts(1, node.get("tags")), _text(3, node.get("description")), _text(5, node.get("operationId")),
            _texts(6, node.get("produces")), _texts(7, node.get("consumes")),
            *(_bytes(8, _parameter(p)) for p in node.get("parameters", ())), _bytes(9, responses),
            _texts(10, node.get("schemes")), _extensions(13, node),
        )
    )  # fmt: skip


_METHODS = {"get": 2, "put": 3, "post": 4, "delete": 5, "options": 6, "head": 7, "patch": 8}


def _path(node: Object) -> bytes:
    out = [_bytes(number, _operation(node[method])) for method, number in _METHODS.items() if method in node]
    out += [_bytes(9, _parameter(p)) for p in node.get("parameters", ())]
    return b"".join(out)


def encode(document: Object) -> bytes:
    """The document as an openapi.v2.Document message."""
    info = document["info"]
    out = [_text(1, document["swagger"]), _bytes(2, _text(1, info["title"]) + _text(2, info["version"]))]
    out.append(_bytes(8, b"".join(_named(2, p, _path(item)) for p, item in document["paths"].items())))
    out.append(_bytes(9, b"".join(_named(1, n, _schema(s)) for n, s in document["definitions"].items())))
    for requirement in document.get("security", ()):
        entries = b"".join(_named(1, name, _texts(1, scopes)) for name, scopes in requirement.items())
        out.append(_bytes(12, entries))
    definitions = b""
    for name, item in document.get("securityDefinitions", {}).items():
        key = _text(1, item["type"]) + _text(2, item["name"]) + _text(3, item["in"]) + _text(4, item.get("description"))
        definitions += _named(1, name, _bytes(2, key))
    out.append(_bytes(13, definitions))
    return b"".join(out)
