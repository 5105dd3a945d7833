"""The types that schemas give to what expressions read, and how expressions write the names of properties."""

from __future__ import annotations

from typing import Any


class ObjectType:
    """The type of values of a structural schema: fields and items are known."""

    __slots__ = ("node", "root")

    def __init__(self, node: Any, root: bool = False) -> None:
        self.node = node
        self.root = root

    def __str__(self) -> str:
        return {
            "object": "map" if self.node.values is not None else "object",
            "array": "list",
            "integer": "int",
            "number": "double",
            "boolean": "bool",
        }.get(self.node.type, self.node.type or "dyn")


Type = Any


def of_node(node: Any, root: bool = False) -> Type:
    """The CEL type of a schema node."""
    if node is None or node.int_or_string or (node.preserve and not node.properties):
        return "dyn"
    if node.type in ("object", "array"):
        return ObjectType(node, root or node.embedded)
    if node.type == "string":
        form = node.raw.get("format", "")
        return {"date-time": "timestamp", "date": "timestamp", "duration": "duration", "byte": "bytes"}.get(
            form, "string"
        )
    return {"integer": "int", "number": "double", "boolean": "bool"}.get(node.type, "dyn")


class _Metadata:
    """Stands in for the schema of metadata in custom resource rules: name and generateName."""

    type = "object"
    values = None
    int_or_string = preserve = embedded = False
    raw: dict[str, Any] = {}


class _Text:
    type = "string"
    int_or_string = preserve = False
    raw: dict[str, Any] = {}


_Metadata.properties = {"name": _Text, "generateName": _Text}  # type: ignore[attr-defined]
METADATA = ObjectType(_Metadata)


_ESCAPES = {"__underscores__": "__", "__dot__": ".", "__dash__": "-", "__slash__": "/"}
_KEYWORDS = frozenset(
    [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ]
)


def unescape(name: str) -> str:
    """A property's name out of the form in which CEL can write it (__dash__ for -, __if__ for a keyword)."""
    if "__" not in name:
        return name
    if name.startswith("__") and name.endswith("__") and name[2:-2] in _KEYWORDS:
        return name[2:-2]
    for escape, char in _ESCAPES.items():
        name = name.replace(escape, char)
    return name
