"""Which form an answer takes: JSON, YAML or protobuf, whole objects, tables or metadata.

Two stages as upstream: the route's media types first (a 406 of its own), then media types with parameters.
Source: go-restful's route matching, apiserver's negotiation package.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from longshore.machinery.errors import StatusError, not_acceptable

JSON, YAML, PROTOBUF = "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"
ACCEPTED = (JSON, YAML, PROTOBUF)
_STREAMS = (JSON + ";stream=watch", PROTOBUF + ";stream=watch")


class Form(NamedTuple):
    """media: one of JSON, YAML, PROTOBUF; kind: "", "Table", "PartialObjectMetadata" or its List; version: of meta.k8s.io."""

    media: str = JSON
    kind: str = ""
    version: str = ""


PLAIN = Form()


def _route_not_acceptable(lists: bool) -> StatusError:
    available = ", ".join(ACCEPTED + (_STREAMS if lists else ()))
    return StatusError(406, "NotAcceptable", f"406: Not Acceptable\n\nAvailable representations: {available}", {})


@lru_cache(maxsize=512)
def negotiate(accept: str, lists: bool = False, custom: bool = False, tables: bool = True) -> Form:
    """The form for an Accept field; lists: the path also answers watches; custom: objects have no protobuf form;
    tables: what is answered has columns. StatusError 406."""
    if not accept or accept == JSON:
        return PLAIN
    clauses = _clauses(accept)
    offered = (JSON, YAML) if custom else ACCEPTED
    if not any(media in ACCEPTED or media == "*/*" for media, _ in clauses):
        raise _route_not_acceptable(lists)
    for media, params in clauses:
        if media in ("*/*", "application/*"):
            media = JSON
        kind = params.get("as", "")
        if media not in (ACCEPTED if kind else offered):
            continue
        if kind:
            group, version = params.get("g", ""), params.get("v", "")
            if group != "meta.k8s.io" or version not in ("v1", "v1beta1"):
                continue
            if kind not in ("Table", "PartialObjectMetadata", "PartialObjectMetadataList"):
                continue
            if kind == "Table" and (not tables or media == PROTOBUF):
                continue
            return Form(media, kind, version)
        if "g" in params or "v" in params:
            continue
        return Form(media)
    raise not_acceptable(offered)


def _clauses(accept: str) -> list[tuple[str, dict[str, str]]]:
    found = []
    for at, part in enumerate(accept.split(",")):
        pieces = [p.strip() for p in part.split(";")]
        params = {}
        quality = 1.0
        for piece in pieces[1:]:
            name, _, value = piece.partition("=")
            if name == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 1.0
            else:
                params[name] = value
        found.append((-quality, at, pieces[0].lower(), params))
    found.sort(key=lambda c: c[:2])
    return [(media, params) for _, _, media, params in found]
