"""The downward API: a pod's own fields and its containers' resources as text.

Sources: kubernetes pkg/fieldpath/fieldpath.go, pkg/api/v1/resource/helpers.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from longshore.machinery import quantity
from longshore.node.kubelet.resources import all_containers

_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.*)'\]$", re.DOTALL)
_SIMPLE = {
    "metadata.name": ("metadata", "name"),
    "metadata.namespace": ("metadata", "namespace"),
    "metadata.uid": ("metadata", "uid"),
    "spec.nodeName": ("spec", "nodeName"),
    "spec.serviceAccountName": ("spec", "serviceAccountName"),
}


def quoted(text: str) -> str:
    """A value in double quotes, escaped as Go's %q."""
    out = ['"']
    for char in text:
        code = ord(char)
        if char in '"\\':
            out.append("\\" + char)
        elif char in "\n\t\r\a\b\f\v":
            out.append(
                {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}[char]
            )
        elif char.isprintable():
            out.append(char)
        else:
            out.append(f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return "".join(out) + '"'


def format_map(values: Mapping[str, str] | None) -> str:
    """Labels or annotations as a file shows them: key="value" lines by key."""
    return "\n".join(f"{key}={quoted(value)}" for key, value in sorted((values or {}).items()))


def field(pod: Mapping[str, Any], path: str, status: Mapping[str, Any]) -> str:
    """The text of a fieldRef.

    status: hostIP, hostIPs, podIP, podIPs as known now (they may be newer than the pod's own status).
    Raises ValueError for a path that is not supported.
    """
    if path in _SIMPLE:
        part, name = _SIMPLE[path]
        return str(pod[part].get(name) or "")
    if path in ("metadata.labels", "metadata.annotations"):
        return format_map(pod["metadata"].get(path.rpartition(".")[2]))
    match = _SUBSCRIPT.match(path)
    if match:
        return str((pod["metadata"].get(match.group(1)) or {}).get(match.group(2), ""))
    if path in ("status.hostIP", "status.podIP"):
        return str(status.get(path.rpartition(".")[2]) or "")
    if path in ("status.hostIPs", "status.podIPs"):
        return ",".join(entry["ip"] for entry in status.get(path.rpartition(".")[2]) or ())
    raise ValueError(f"unsupported fieldPath: {path}")


def resource(
    pod: Mapping[str, Any], ref: Mapping[str, Any], container_name: str, allocatable: Mapping[str, str]
) -> str:
    """The text of a resourceFieldRef: the amount divided by the divisor, rounded up.

    container_name: used when the reference names none. allocatable: the node's, the default of missing limits.
    Raises ValueError for an unknown container or resource.
    """
    name = ref.get("containerName") or container_name
    container = next((c for c in all_containers(dict(pod)) if c["name"] == name), None)
    if container is None:
        raise ValueError(f"container {name} not found")
    kind, _, what = ref["resource"].partition(".")
    if kind not in ("limits", "requests") or not (
        what in ("cpu", "memory", "ephemeral-storage") or what.startswith("hugepages-")
    ):
        raise ValueError(f"unsupported container resource : {ref['resource']}")
    resources = container.get("resources") or {}
    text = (resources.get(kind) or {}).get(what)
    if kind == "limits" and (text is None or quantity.parse(str(text)).nanos == 0):
        text = allocatable.get(what)
    value = quantity.parse(str(text)) if text is not None else quantity.parse("0")
    divisor = quantity.parse(str(ref.get("divisor") or "0"))
    step = divisor.nanos or quantity.NANO
    if what == "cpu":
        # Both are cut to thousandths first, as upstream's MilliValue.
        top, bottom = value.milli_value, quantity.Quantity(step, quantity.DECIMAL).milli_value
    else:
        top, bottom = value.value, quantity.Quantity(step, quantity.DECIMAL).value
    return str(-(-top // bottom))
