"""What was found out about a pod's spec holds for every pod of the same template, so it is found out once.

Specs are known by a digest of their content. Pods of one template differ in nothing, except for the random end of the
name of the volume with their token, which stands in no relation to anything else.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

import orjson

_TOKEN = re.compile(rb'"(kube-api-access-[a-z0-9]{5})"')
# No octet of JSON: a spec that has the same text without a token's name cannot be written.
_ANY_TOKEN = b"\xff"


def digest(spec: dict[str, Any]) -> bytes:
    """What tells specs apart (16 octets); b"" for one that JSON cannot hold in 64-bit numbers."""
    try:
        text = orjson.dumps(spec)
    except TypeError:
        return b""
    if b'"kube-api-access-' in text and (found := _TOKEN.search(text)) is not None:
        text = text.replace(found[1], _ANY_TOKEN)
    return blake2b(text, digest_size=16).digest()


class Known:
    """The specs of which something was seen to be true, the oldest forgotten first. most: how many are kept."""

    __slots__ = ("_digests", "_most")

    def __init__(self, most: int = 1024) -> None:
        self._digests: dict[bytes, None] = {}
        self._most = most

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests

    def add(self, digest: bytes) -> None:
        if digest:
            if len(self._digests) >= self._most:
                del self._digests[next(iter(self._digests))]
            self._digests[digest] = None
