"""The table of Kubernetes' protobuf messages: which JSON field has which number and type.

Facts from the API's Go structures (protobuf and json tags), kept as text and parsed a message at a time when first
needed.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

DATA = Path(__file__).parent / "data" / "protobuf.txt"
_PACKAGES = {
    "": "~a.core",
    "rbac.authorization.k8s.io": "~a.rbac",
    "flowcontrol.apiserver.k8s.io": "~a.flowcontrol",
    "internal.apiserver.k8s.io": "~a.apiserverinternal",
    "apiextensions.k8s.io": "~x",
    "apiregistration.k8s.io": "~g.apiregistration",
    "meta.k8s.io": "~m",
}
# Kinds of meta.k8s.io that every group version knows.
_COMMON = frozenset(
    ("DeleteOptions", "CreateOptions", "UpdateOptions", "PatchOptions", "ListOptions", "GetOptions", "WatchEvent")
)
_CORE_META = frozenset(("Status", "APIGroup", "APIGroupList", "APIResourceList", "APIVersions"))


class Field:
    """json: the name ("" when inlined or nameless); type: a scalar's letter or "" for a message; key: a map key's letter."""

    __slots__ = ("inline", "json", "key", "message_name", "number", "repeated", "type")

    def __init__(self, text: str) -> None:
        parts = text.split(":")
        self.json = parts[0]
        self.number = int(parts[1])
        kind = parts[2]
        self.inline = len(parts) > 3
        self.repeated = kind.startswith("*")
        if self.repeated:
            kind = kind[1:]
        self.key = ""
        if kind[0] == "m" and len(kind) > 2:
            self.key, kind = kind[1], kind[2:]
        self.type = kind if len(kind) == 1 else ""
        self.message_name = "" if self.type else kind

    @property
    def message(self) -> Message:
        return message(self.message_name)


class Message:
    """One message; `fields` in the order of the Go structure."""

    __slots__ = ("by_number", "fields", "is_list", "name", "writable")

    def __init__(self, name: str, is_list: bool, fields: list[Field]) -> None:
        self.name = name
        self.is_list = is_list
        self.fields = fields
        self.by_number = {f.number: f for f in fields}
        self.writable = sorted(fields, key=lambda f: f.number)


@lru_cache(maxsize=1)
def _lines() -> dict[str, str]:
    out = {}
    for line in DATA.read_text().splitlines():
        if line[0] != "#":
            name, _, rest = line.partition(" ")
            out[name.rstrip("=")] = ("=" if name.endswith("=") else "") + rest
    return out


@cache
def message(name: str) -> Message:
    """A message by its short name ("~a.core.v1.Pod"); KeyError when there is none."""
    text = _lines()[name]
    is_list = text.startswith("=")
    return Message(name, is_list, [Field(t) for t in text.lstrip("=").split()])


@cache
def for_kind(api_version: str, kind: str) -> Message | None:
    """The message of a kind, None where it has no protobuf form."""
    group, _, version = api_version.rpartition("/")
    if kind in _COMMON or (not group and kind in _CORE_META):
        name = f"~m.v1.{kind}"
    else:
        name = f"{_PACKAGES.get(group) or '~a.' + group.split('.')[0]}.{version}.{kind}"
    try:
        return message(name)
    except KeyError:
        return None
