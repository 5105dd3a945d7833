"""What a URL path asks for: the request info that routing, authorization and metrics share.

Source: apiserver's request.RequestInfoFactory.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote


class PathInfo(NamedTuple):
    """A resource path in its parts. prefix: "api" or "apis"; legacy_watch: the old /watch/ prefix; rest: what follows a subresource."""

    is_resource: bool
    prefix: str = ""
    group: str = ""
    version: str = ""
    namespace: str = ""
    resource: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""
    legacy_watch: bool = False
    bad: bool = False


NON_RESOURCE = PathInfo(False)


@lru_cache(maxsize=4096)
def parse(path: str) -> PathInfo:
    """The parts of a path (still percent-encoded, so that an encoded slash stays within a part)."""
    parts = path.split("/")
    trailing = len(parts) > 2 and parts[-1] == ""
    parts = [unquote(p) if "%" in p else p for p in parts[1:]]
    if trailing:
        parts = parts[:-1]
    if not parts or parts[0] not in ("api", "apis"):
        return NON_RESOURCE
    prefix = parts[0]
    if prefix == "api":
        if len(parts) < 3:
            return NON_RESOURCE
        group, version, rest = "", parts[1], parts[2:]
    else:
        if len(parts) < 4:
            return NON_RESOURCE
        group, version, rest = parts[1], parts[2], parts[3:]
    legacy_watch = False
    if rest[0] == "watch" and len(rest) > 1:
        legacy_watch, rest = True, rest[1:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        # /namespaces/x is the object itself, /namespaces/x/status and /finalize its subresources.
        if len(rest) > 2 and not (rest[2] in ("status", "finalize") and len(rest) == 3 and not group):
            rest = rest[2:]
        else:
            sub = rest[2] if len(rest) > 2 else ""
            return PathInfo(True, prefix, group, version, "", "namespaces", namespace, sub, "", legacy_watch)
    resource = rest[0]
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    tail = ""
    bad = any("/" in p for p in rest) and subresource != "proxy"
    if subresource == "proxy":
        tail = "/" + path.split("/proxy", 1)[1].lstrip("/") if "/proxy/" in path else ""
    elif len(rest) > 3:
        bad = True
    return PathInfo(True, prefix, group, version, namespace, resource, name, subresource, tail, legacy_watch, bad)
