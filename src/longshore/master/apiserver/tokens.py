"""Continue tokens: where a paged list goes on, and at which version of the store.

Source: apiserver's storage.EncodeContinue and DecodeContinue.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple

import orjson

from longshore.api.decoding import syntax_error
from longshore.machinery.errors import bad_request

_INVALID = "invalid continue token: continue key is not valid: "
_ILLEGAL = re.compile(r"[^A-Za-z0-9_-]")


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
        if (bad := _ILLEGAL.search(token)) is not None or len(token) % 4 == 1:
            at = bad.start() if bad is not None else len(token) - 1
            raise bad_request(f"{_INVALID}illegal base64 data at input byte {at}")
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        found = orjson.loads(data)
    except (binascii.Error, ValueError):
        raise bad_request(_INVALID + syntax_error(data)) from None
    if not isinstance(found, dict) or found.get("v") != "meta.k8s.io/v1":
        raise bad_request(_INVALID + "server does not recognize this encoded version")
    start, version = found.get("start"), found.get("rv", 0)
    if version == 0 or not isinstance(version, int):
        raise bad_request(_INVALID + "incorrect encoded start resourceVersion (version meta.k8s.io/v1)")
    if not isinstance(start, str) or not start:
        raise bad_request(_INVALID + "encoded start key empty (version meta.k8s.io/v1)")
    if ".." in start.split("/") or start.startswith("/"):
        raise bad_request(_INVALID + start)
    return Continue(start, version)
