"""Objects, lists and errors as the bytes of an answer, in every form that a client may ask for."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import orjson

from longshore.api.strategy import utc_now
from longshore.machinery.errors import StatusError, bad_request
from longshore.machinery.http import Request, Response
from longshore.master.apiserver.cache import Item
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.negotiation import JSON, PROTOBUF, YAML, Form
from longshore.master.apiserver.scheme import Endpoint

Object = dict[str, Any]
GZIP_FROM = 128 * 1024
_BROWSERS = ("curl", "Wget", "Mozilla/5.0")
NO_STORE = ("Cache-Control", "no-cache, private")
_PLAIN_HEADERS = (NO_STORE,)
_META_ORDER = (
    "name", "generateName", "namespace", "selfLink", "uid", "resourceVersion", "generation", "creationTimestamp",
    "deletionTimestamp", "deletionGracePeriodSeconds", "labels", "annotations", "ownerReferences", "finalizers",
    "managedFields",
)  # fmt: skip


def ordered_metadata(metadata: Object) -> Object:
    """metadata with its fields in the order in which upstream writes them."""
    out = {k: metadata[k] for k in _META_ORDER if k in metadata}
    if len(out) != len(metadata):
        out.update({k: v for k, v in metadata.items() if k not in out})
    return out


def encode_stored(obj: Object) -> bytes:
    """An object as it goes into the store: kind, apiVersion, metadata without resourceVersion, the rest."""
    metadata = ordered_metadata(obj["metadata"])
    metadata.pop("resourceVersion", None)
    out: Object = {"kind": obj["kind"], "apiVersion": obj["apiVersion"], "metadata": metadata}
    for key, value in obj.items():
        if key not in out:
            out[key] = value
    # A copy: the octets stay for long, and orjson leaves them at the head of a larger piece of memory.
    return bytes(memoryview(orjson.dumps(out)))


def wants_pretty(request: Request) -> bool:
    text = request.param("pretty") if request.raw_query else ""
    if text:
        return text in ("1", "t", "T", "true", "TRUE", "True")
    agent = request.headers.get("user-agent")
    return agent is not None and agent.startswith(_BROWSERS)


def encode(obj: Object, form: Form, request: Request | None = None) -> bytes:
    """A tree as JSON, YAML or protobuf."""
    if form.media == YAML:
        from longshore.master.apiserver import yamlout

        return yamlout.dump(obj)
    if form.media == PROTOBUF:
        from longshore.master.apiserver.protobuf import envelope

        return envelope(obj)
    if request is not None and wants_pretty(request):
        from longshore.master.apiserver.protobuf import go_order

        return orjson.dumps(go_order(obj), option=orjson.OPT_INDENT_2)
    return orjson.dumps(obj) + b"\n"


def warning_headers(warnings: Sequence[str]) -> list[tuple[str, str]]:
    """Warning fields as upstream writes them: code 299, no agent, the text quoted."""
    out = []
    for text in warnings:
        clean = "".join(c if c.isprintable() else " " for c in text)
        escaped = clean.replace("\\", "\\\\").replace('"', '\\"')
        out.append(("Warning", f'299 - "{escaped}"'))
    return out


def respond(
    call: Call, status: int, body: bytes | Sequence[bytes], media: str = JSON, more: Sequence[tuple[str, str]] = ()
) -> Response:
    """The answer with the headers of all resource answers; big ones are compressed when the client takes gzip."""
    headers: list[tuple[str, str]] = [NO_STORE, *more]
    if call.warnings:
        headers += warning_headers(call.warnings)
    accepts = call.request.headers.get("accept-encoding")
    if accepts and "gzip" in accepts:
        size = len(body) if isinstance(body, bytes) else sum(map(len, body))
        if size >= GZIP_FROM:
            body = compress(body)
            headers += [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")]
    return Response(status, body, headers, media)


def compress(body: bytes | Sequence[bytes]) -> bytes:
    try:
        from isal import igzip_lib

        data = body if isinstance(body, bytes) else b"".join(body)
        packed: bytes = igzip_lib.compress(data, level=1, flag=igzip_lib.COMP_GZIP)
        return packed
    except ImportError:
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        pieces = [body] if isinstance(body, bytes) else body
        return b"".join([*(packer.compress(p) for p in pieces), packer.flush()])


def object_answer(call: Call, item: Item, status: int = 200) -> Response:
    """One object out of the cache (or just written)."""
    endpoint, form = call.endpoint, call.form
    if not form.kind and form.media == JSON and endpoint.native and not wants_pretty(call.request):
        return respond(call, status, (endpoint.head, item.body, b"\n"))
    return tree_answer(call, endpoint.present(item.decode()), status)


def tree_answer(call: Call, obj: Object, status: int = 200) -> Response:
    """One object as a tree, in the form asked for."""
    form = call.form
    if form.kind == "Table":
        obj = table(call, [obj], obj["metadata"].get("resourceVersion", ""))
    elif form.kind == "PartialObjectMetadata":
        obj = partial(obj, form.version)
    elif form.kind:
        kind = f"*{_internal(call.endpoint)}.{call.endpoint.kind}"
        raise StatusError(
            406, "NotAcceptable", f"you requested {form.kind}, but the requested object is not a list ({kind})"
        )
    return respond(call, status, encode(obj, form, call.request), form.media)


def _internal(endpoint: Endpoint) -> str:
    if endpoint.custom:
        return "unstructured"
    return (endpoint.group or "core").split(".")[0]


def partial(obj: Object, version: str) -> Object:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": obj.get("metadata", {}),
    }


def list_metadata(version: int | str, token: str = "", remaining: int | None = None) -> Object:
    out: Object = {"resourceVersion": str(version)}
    if token:
        out["continue"] = token
        if remaining is not None:
            out["remainingItemCount"] = remaining
    return out


def list_answer(
    call: Call, items: Sequence[Item], version: int, token: str = "", remaining: int | None = None
) -> Response:
    """A list of objects out of the cache or the store."""
    endpoint, form = call.endpoint, call.form
    metadata = list_metadata(version, token, remaining)
    if not form.kind and form.media == JSON and endpoint.native and not wants_pretty(call.request):
        if endpoint.custom:
            metadata = {"continue": "", **metadata}
        head = endpoint.list_head + b'"metadata":' + orjson.dumps(metadata) + b',"items":['
        if not items:
            return respond(call, 200, head + b"]}\n")
        first = endpoint.separator[1:]
        body = endpoint.separator.join([item.body for item in items])
        return respond(call, 200, (head + first, body, b"]}\n"))
    objects = [endpoint.present(item.decode()) for item in items]
    return trees_answer(call, objects, metadata)


def trees_answer(call: Call, objects: list[Object], metadata: Object, status: int = 200) -> Response:
    """A list of trees in the form asked for."""
    endpoint, form = call.endpoint, call.form
    if form.kind == "Table":
        out = table(call, objects, metadata["resourceVersion"], metadata)
    elif form.kind == "PartialObjectMetadataList":
        out = {
            "kind": form.kind,
            "apiVersion": f"meta.k8s.io/{form.version}",
            "metadata": metadata,
            "items": [partial(o, form.version) for o in objects],
        }
    elif form.kind:
        kind = f"*{_internal(endpoint)}.{endpoint.resource.list_kind}"
        raise StatusError(
            406, "NotAcceptable", f"you requested {form.kind}, but the requested object is a list ({kind})"
        )
    else:
        items = objects if endpoint.custom else [_bare(o) for o in objects]
        if endpoint.custom:
            metadata = {"continue": "", **metadata}
        out = {
            "kind": endpoint.resource.list_kind, "apiVersion": endpoint.api_version, "metadata": metadata, "items": items,
        }  # fmt: skip
    return respond(call, status, encode(out, form, call.request), form.media)


def _bare(obj: Object) -> Object:
    return {k: v for k, v in obj.items() if k not in ("kind", "apiVersion")}


def include_object(call: Call) -> str:
    """What a table's rows carry of their objects: "Metadata", "Object" or "None"."""
    text = call.request.param("includeObject") or "Metadata"
    if text not in ("Metadata", "Object", "None"):
        raise bad_request(
            f'Unable to convert to Table as requested: includeObject: Invalid value: "{text}":'
            " must be 'Metadata', 'Object', 'None', or empty"
        )
    return text


def table_columns(endpoint: Endpoint) -> list[Object]:
    from longshore.master.apiserver.columntexts import descriptions

    known = descriptions(endpoint.group, endpoint.version, endpoint.plural, endpoint.kind)
    return [
        {
            "name": c.name, "type": c.type, "format": c.format, "priority": c.priority,
            "description": c.description or known.get(c.name, ""),
        }
        for c in endpoint.resource.columns(endpoint.version)
    ]  # fmt: skip


def table_row(call: Call, obj: Object, include: str, now: Any) -> Object:
    row: Object = {"cells": call.endpoint.resource.row(obj, call.endpoint.version, now)}
    if include == "Metadata":
        row["object"] = partial(obj, call.form.version)
    elif include == "Object":
        row["object"] = obj
    else:
        row["object"] = None
    return row


def table(
    call: Call, objects: list[Object], version: str, metadata: Object | None = None, columns: bool = True
) -> Object:
    """A meta.k8s.io Table."""
    include = include_object(call)
    now = utc_now()
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{call.form.version}",
        "metadata": metadata if metadata is not None else {"resourceVersion": version},
        "columnDefinitions": table_columns(call.endpoint) if columns else None,
        "rows": [table_row(call, o, include, now) for o in objects],
    }


def error_answer(error: StatusError, request: Request | None = None, warnings: Sequence[str] = ()) -> Response:
    """A Status object for an error, in the media type that the client takes."""
    headers = [NO_STORE]
    if error.retry_after:
        headers.append(("Retry-After", str(error.retry_after)))
    if warnings:
        headers += warning_headers(warnings)
    accept = (request.headers.get("accept") or "") if request is not None else ""
    refused = error.code == 406  # nothing that is taken was found: JSON, for a person's eyes
    if refused:
        accept = ""
    if PROTOBUF in accept and "json" not in accept.split(PROTOBUF)[0]:
        from longshore.master.apiserver.protobuf import envelope

        return Response(error.code, envelope(error.status()), headers, PROTOBUF)
    if accept.startswith(YAML):
        from longshore.master.apiserver import yamlout

        return Response(error.code, yamlout.dump(error.status()), headers, YAML)
    body = (
        orjson.dumps(error.status(), option=orjson.OPT_INDENT_2)
        if refused or (request is not None and wants_pretty(request))
        else (orjson.dumps(error.status()) + b"\n")
    )
    return Response(error.code, body, headers, JSON)


def status_success(call: Call, details: Object | None = None, status: int = 200, code: int = 0) -> Response:
    """A Status that says that something was done."""
    out: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if details is not None:
        out["details"] = details
    if code:
        out["code"] = code
    media = call.form.media
    return respond(call, status, encode(out, call.form._replace(kind=""), call.request), media)
