"""The build step that writes `openapi.types` and `openapi.docs` beside this file.

It runs inside setup.py, where Longshore itself is not importable, and takes the Kubernetes definitions from the build
requirement kubernetes-validate. What that package has lost (formats, defaults, enumerations, which Go fields are
pointers) comes back from `fields.txt`.

`openapi.types` is msgpack: definition name -> JSON bytes of `[schema, go]`; the schema is an OpenAPI v3 schema without
descriptions, `go` is field -> flags. `openapi.docs` is a zstd frame (or zlib where the build has no zstandard) of
msgpack: definition name -> {"": description, field -> description}.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

KUBERNETES = "1.36.0"
SHORT = {
    "~a.": "io.k8s.api.",
    "~m.": "io.k8s.apimachinery.pkg.apis.",
    "~x.": "io.k8s.apiextensions-apiserver.pkg.apis.",
    "~g.": "io.k8s.kube-aggregator.pkg.apis.",
}
ZERO: dict[str, Any] = {"string": "", "boolean": False, "integer": 0, "number": 0}
Facts = dict[str, dict[str, dict[str, str]]]


def read_facts(text: str) -> Facts:
    """fields.txt as {"go" | "defaults" | "enums": {definition: {field: text}}}."""
    facts: Facts = {}
    section: dict[str, dict[str, str]] = {}
    name = ""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            name = line.strip("[]")
            section = facts.setdefault(name, {})
            continue
        definition, rest = line.split(" ", 1)
        definition = SHORT[definition[:3]] + definition[3:]
        if name == "go":
            section[definition] = {
                match[1]: match[2] for match in (re.fullmatch(r"([\w$-]+?)([*!0]*(?:=.*)?)", t) for t in rest.split()) if match
            }
        else:
            field, value = rest.split(" ", 1)
            section.setdefault(definition, {})[field] = value
    return facts


def _references(node: Any) -> list[str]:
    found: list[str] = []
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref" and isinstance(value, str):
                found.append(value.rsplit("/", 1)[1])
            else:
                found.extend(_references(value))
    elif isinstance(node, list):
        for value in node:
            found.extend(_references(value))
    return found


def _plain(node: dict[str, Any]) -> dict[str, Any]:
    """A schema node without description and without the `null` that kubernetes-validate adds to each type."""
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "description":
            continue
        if key == "type" and isinstance(value, list):
            value = value[0]
        elif key == "$ref":
            value = "#/components/schemas/" + value.rsplit("/", 1)[1]
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            value = _plain(value)
        elif key == "properties":
            value = {name: _plain(child) for name, child in value.items()}
        out[key] = value
    return out


def _restore(name: str, schema: dict[str, Any], objects: set[str], facts: Facts) -> None:
    go = facts["go"].get(name, {})
    defaults = facts["defaults"].get(name, {})
    enums = facts["enums"].get(name, {})
    required = set(schema.get("required", ()))
    for field, node in schema.get("properties", {}).items():
        flags = go.get(field, "").split("=")[0]
        reference = node.pop("$ref", None)
        if field in ("apiVersion", "kind") and "enum" in node:
            del node["enum"]
        value: Any = None
        if reference:
            if "*" not in flags and reference.rsplit("/", 1)[1] in objects:
                value = {}
        elif "*" not in flags and (field in required or "!" in flags) and field not in ("apiVersion", "kind"):
            value = ZERO.get(node.get("type", ""))
        elif "*" not in flags and field in required:
            value = ZERO.get(node.get("type", ""))
        if field in defaults:
            value = None if defaults[field] == "-" else json.loads(defaults[field])
        if reference:
            # OpenAPI v3 keeps siblings of a reference by wrapping it.
            if value is not None or len(node) or "description" in node:
                node["allOf"] = [{"$ref": reference}]
            else:
                node["$ref"] = reference
        if value is not None:
            node["default"] = value
        if field in enums:
            node["enum"] = ["" if v == '""' else v for v in enums[field].split("|")]
        if field + "[]" in enums:
            inner = node["items"] if "items" in node else node["additionalProperties"]
            inner["enum"] = ["" if v == '""' else v for v in enums[field + "[]"].split("|")]


def build(folder: Path) -> None:
    """Write openapi.types and openapi.docs into folder; OSError or ImportError where the build requirement is absent."""
    import kubernetes_validate
    import msgpack

    root = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{KUBERNETES}-local"
    source: dict[str, dict[str, Any]] = json.loads((root / "_definitions.json").read_bytes())["$defs"]
    facts = read_facts((folder / "fields.txt").read_text())
    wanted = [n for n in source if not re.search(r"\.v\d+(alpha|beta)\d+\.", n)]
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in seen:
            seen.add(name)
            wanted.extend(_references(source[name]))
    objects = {n for n in seen if "properties" in source[n]}
    types: dict[str, bytes] = {}
    docs: dict[str, dict[str, str]] = {}
    for name in sorted(seen):
        node = source[name]
        described = {field: str(child["description"]) for field, child in node.get("properties", {}).items() if "description" in child}
        docs[name] = {"": str(node.get("description", "")), **described}
        schema = _plain(node)
        _restore(name, schema, objects, facts)
        for field in described:
            child = schema["properties"][field]
            if "$ref" in child:
                child["allOf"] = [{"$ref": child.pop("$ref")}]
        if name.endswith((".IntOrString", ".Quantity")):
            first = "integer" if name.endswith(".IntOrString") else "string"
            schema["oneOf"] = [{"type": first}, {"type": "string" if first == "integer" else "number"}]
            if first == "integer":
                schema["format"] = "int-or-string"
        types[name] = json.dumps([schema, facts["go"].get(name, {})], separators=(",", ":")).encode()
    packed = msgpack.packb(docs)
    try:
        import zstandard

        packed = zstandard.ZstdCompressor(level=19).compress(packed)
    except ImportError:
        packed = zlib.compress(packed, 9)
    for file, data in (("openapi.types", msgpack.packb(types)), ("openapi.docs", packed)):
        temporary = folder / (file + ".new")
        temporary.write_bytes(data)
        temporary.replace(folder / file)
