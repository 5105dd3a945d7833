"""OCI runtimes that daemon.json names: what is told of them, and the program that is run for each.

Source: moby daemon/runtime_unix.go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]

STOCK = ("runc", "io.containerd.runc.v2")
_SHIM = "io.containerd.runc.v2"


def check(value: Any) -> dict[str, Json]:
    """Check daemon.json's "runtimes": name to {"path", "runtimeArgs"} or {"runtimeType", "options"}. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("runtimes by name are wanted")
    for name, entry in value.items():
        if name == STOCK[0]:
            raise ValueError(f"runtime name '{name}' is reserved")
        path, kind = entry.get("path") or "", entry.get("runtimeType") or ""
        arguments, options = entry.get("runtimeArgs") or [], entry.get("options") or {}
        if not path and not kind:
            raise ValueError(f"runtime {name}: either a runtimeType or a path must be configured")
        if path and kind:
            raise ValueError(f"runtime {name}: cannot configure both path and runtimeType for the same runtime")
        if path and options:
            raise ValueError(f"runtime {name}: options cannot be used with a path runtime")
        if kind and arguments:
            raise ValueError(f"runtime {name}: args cannot be used with a runtimeType runtime")
        if kind and kind != _SHIM:
            # There is no containerd here whose shims could be others than that of runc and its like.
            raise ValueError(f"runtime {name}: runtimeType {kind} is not supported by this engine")
    return dict(value)


def programs(configured: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, str]:
    """Name to program. folder: for scripts that add a runtime's arguments; containers that run keep theirs. Raises OSError."""
    found = {}
    for name, entry in configured.items():
        path = str(entry.get("path") or (entry.get("options") or {}).get("BinaryName") or "runc")
        arguments = entry.get("runtimeArgs") or []
        found[name] = str(_script(folder, name, path, arguments)) if arguments else path
    return found


def _script(folder: Path, name: str, path: str, arguments: list[str]) -> Path:
    text = f'#!/bin/sh\nexec {path} {" ".join(arguments)} "$@"\n'
    file = folder / f"{name}.{hashlib.sha256(text.encode()).hexdigest()[:20]}"
    if not file.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = file.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o700)
        new.replace(file)
    return file


def shown(configured: Mapping[str, Mapping[str, Any]], name: str) -> Json:
    """A runtime as /info tells of it."""
    entry = configured.get(name)
    if entry is None:
        return {"path": STOCK[0]}
    return {key: entry[key] for key in ("path", "runtimeArgs", "runtimeType", "options") if entry.get(key)}
