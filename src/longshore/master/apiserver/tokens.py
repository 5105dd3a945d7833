"""Continue tokens: where a paged list goes on, and at which version of the store.

Source: apiserver's storage.EncodeContinue and DecodeContinue.
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

import orjson

from longshore.machinery.errors import bad_request


class Continue(NamedTuple):
    """key: the first key to show, relative to the resource's folder. version: of the first page; -1: any (inconsistent)."""

    key: str
    version: int


def encode(last_key: str, version: int) -> str:
    """The token after a page that ended with last_key."""
    body = orjson.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": last_key + "\0"})
    return base64.urlsafe_b64encode(body).decode().rstrip("=")


def decode(token: str, prefix: str = "") -> Continue:
    """The meaning of a token; 400 when it is none."""
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        found = orjson.loads(data)
    except (binascii.Error, ValueError):
        raise bad_request("continue key is not valid: illegal base64 data") from None
    if not isinstance(found, dict) or found.get("v") != "meta.k8s.io/v1":
        raise bad_request("continue key is not valid: server does not recognize this encoded version")
    start, version = found.get("start"), found.get("rv", 0)
    if version == 0 or not isinstance(version, int):
        raise bad_request("continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)")
    if not isinstance(start, str) or not start:
        raise bad_request("continue key is not valid: encoded start key empty (version meta.k8s.io/v1)")
    if ".." in start.split("/") or start.startswith("/"):
        raise bad_request(f"continue key is not valid: {start}")
    return Continue(start, version)
