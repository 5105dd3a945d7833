"""Bodies of requests as objects: media type, size, decoding, field validation."""

from __future__ import annotations

from typing import Any

from longshore.api import decoding
from longshore.api.mismatches import json_kind
from longshore.machinery.errors import (
    Cause,
    StatusError,
    bad_request,
    invalid,
    request_entity_too_large,
    unsupported_media_type,
)
from longshore.machinery.http import BodyTooLarge, Request
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.negotiation import ACCEPTED, JSON, PROTOBUF, YAML

Object = dict[str, Any]
MAX_BODY = 3 * 1024 * 1024


def media_type(request: Request) -> str:
    text = request.headers.get("content-type")
    return text.split(";")[0].strip().lower() if text else JSON


async def read(request: Request, limit: int = MAX_BODY) -> bytes:
    """The whole body; 413 past the limit."""
    try:
        return await request.read(limit)
    except BodyTooLarge:
        raise request_entity_too_large(f"limit is {limit}") from None


async def read_object(call: Call, resource: Any, version: str, validation: str) -> Object:
    """The object of a create or update, decoded for `resource` in `version`; warnings go to the call."""
    media = media_type(call.request)
    if media not in ACCEPTED:
        raise unsupported_media_type(ACCEPTED)
    data = call.body = await read(call.request)
    try:
        if media == PROTOBUF:
            obj, warnings = _protobuf(resource, version, data, validation)
        else:
            obj, warnings = decoding.read(resource, version, data, yaml_body=media == YAML, validation=validation)
    except decoding.BodyError as error:
        raise bad_request(str(error)) from None
    call.sent = (resource, version)
    for text in warnings:
        call.warn(text)
    if call.endpoint.custom and resource is call.endpoint.resource:
        check_kind(obj, resource)
    return obj


def check_kind(obj: Object, resource: Any) -> None:
    """Custom resources are validated as to their kind; that of built-in ones is known from decoding."""
    if obj["kind"] != resource.kind:
        cause = Cause("FieldValueInvalid", f'Invalid value: "{obj["kind"]}": must be {resource.kind}', "kind")
        raise invalid(resource.group, obj["kind"], obj["metadata"].get("name", ""), [cause])


def _protobuf(resource: Any, version: str, data: bytes, validation: str) -> tuple[Object, list[str]]:
    from longshore.master.apiserver.protobuf import ProtobufError, decode

    try:
        value = decode(data)
    except ProtobufError as error:
        raise bad_request(f"the object provided is unrecognized (must be of type {resource.kind}): {error}") from None
    return decoding.admit(resource, version, value, [], validation)


async def delete_body(call: Call) -> Object | None:
    """The DeleteOptions in a DELETE's body, None when there is none."""
    request = call.request
    if not request.has_body:
        return None
    data = call.body = await read(request)
    if not data:
        return None
    media = media_type(request)
    if media not in ACCEPTED:
        raise unsupported_media_type(ACCEPTED)
    try:
        if media == PROTOBUF:
            from longshore.master.apiserver.protobuf import ProtobufError, decode

            try:
                value: Any = decode(data)
            except ProtobufError as error:
                raise bad_request(str(error)) from None
        elif media == YAML:
            value = decoding.parse_yaml(data).value
        else:
            value = decoding.parse_json(data, duplicates=False).value
    except ValueError as error:
        raise bad_request(f"couldn't get version/kind; json parse error: {error}") from None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise bad_request(
            f"couldn't get version/kind; json parse error: json: cannot unmarshal {json_kind(value)}"
            f" into Go value of type {decoding.HEAD_TYPE}"
        )
    for field in ("apiVersion", "kind"):
        if value.get(field) is not None and not isinstance(value[field], str):
            raise bad_request(
                "couldn't get version/kind; json parse error: json: cannot unmarshal"
                f" {json_kind(value[field])} into Go struct field .{field} of type string"
            )
    kind, api_version = value.get("kind"), value.get("apiVersion") or ""
    if kind not in (None, "", "DeleteOptions"):
        raise bad_request(
            f'no kind "{kind}" is registered for version "{api_version}" in scheme "pkg/apis/meta/internalversion/scheme/register.go:27"'
        )
    from longshore.api.kinds import kind_schema
    from longshore.api.schema import DecodeError

    try:
        options: Object = kind_schema("", "v1", "DeleteOptions").decode(value)
    except DecodeError as error:
        raise bad_request(str(error)) from None
    except KeyError:
        raise StatusError(500, "InternalError", "DeleteOptions has no schema") from None
    return options
