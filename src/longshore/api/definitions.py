"""The OpenAPI definitions of the built-in kinds, read from the file that the build step writes.

Only the parts that are asked for are decoded; descriptions stay compressed on disk until somebody wants them.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgpack
import orjson

DATA = Path(__file__).parent / "data"


@lru_cache(maxsize=1)
def _types() -> dict[str, bytes]:
    file = DATA / "openapi.types"
    if not file.exists():
        raise RuntimeError(f"{file} is absent: run `python setup.py build_definitions` in Longshore's source folder")
    types: dict[str, bytes] = msgpack.unpackb(file.read_bytes())
    return types


def names() -> list[str]:
    """All definition names, sorted ("io.k8s.api.core.v1.Pod")."""
    return list(_types())


def definition(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """One definition: its OpenAPI v3 schema without descriptions, and facts of its Go structure (field -> flags).

    Flags: "*" pointer, "!" the opposite of the usual omitempty, "0" omitzero, "=v1.Name" a named scalar.
    KeyError when there is no such definition. The answer is the caller's to change.
    """
    schema, go = orjson.loads(_types()[name])
    return schema, go


def descriptions() -> dict[str, dict[str, str]]:
    """Definition -> {"": its description, field: the field's description}. Decompressed on each call: keep it no longer than needed."""
    raw = (DATA / "openapi.docs").read_bytes()
    if raw.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        raw = zstandard.ZstdDecompressor().decompress(raw)
    else:
        raw = zlib.decompress(raw)
    docs: dict[str, dict[str, str]] = msgpack.unpackb(raw)
    return docs


@lru_cache(maxsize=1)
def by_kind() -> dict[tuple[str, str, str], str]:
    """(group, version, kind) -> definition name, for every definition that has them."""
    out: dict[tuple[str, str, str], str] = {}
    for name, raw in _types().items():
        if b"x-kubernetes-group-version-kind" not in raw:
            continue
        for gvk in orjson.loads(raw)[0].get("x-kubernetes-group-version-kind", ()):
            out[gvk["group"], gvk["version"], gvk["kind"]] = name
    return out
