"""Kubernetes' protobuf: JSON trees to messages and back, in the envelope `k8s\\0` + runtime.Unknown.

Source: apimachinery's runtime/serializer/protobuf and the generated marshallers (what is present is written, fields by
number, map keys sorted).
"""

from __future__ import annotations

import base64
import binascii
import datetime
import struct
from typing import Any

import orjson

from longshore.api import times
from longshore.machinery.errors import StatusError
from longshore.master.apiserver.prototable import Message, for_kind, message

Object = dict[str, Any]
MAGIC = b"k8s\x00"
MAX_DEPTH = 64


class ProtobufError(ValueError):
    """The bytes are no such message."""


# Reading.


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ProtobufError("unexpected EOF")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(data: bytes) -> list[tuple[int, int, Any]]:
    """(number, wire type, value) of everything in a message; value: an int or the bytes."""
    out: list[tuple[int, int, Any]] = []
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            out.append((number, 0, value))
        elif wire == 2:
            size, at = _varint(data, at)
            if at + size > end:
                raise ProtobufError("unexpected EOF")
            out.append((number, 2, data[at : at + size]))
            at += size
        elif wire == 1:
            if at + 8 > end:
                raise ProtobufError("unexpected EOF")
            out.append((number, 1, data[at : at + 8]))
            at += 8
        elif wire == 5:
            if at + 4 > end:
                raise ProtobufError("unexpected EOF")
            out.append((number, 5, data[at : at + 4]))
            at += 4
        else:
            raise ProtobufError(f"proto: illegal wireType {wire}")
    return out


def _scalar_in(kind: str, wire: int, value: Any) -> Any:
    if kind == "s":
        if wire != 2:
            raise ProtobufError("proto: wrong wireType for field")
        return value.decode("utf-8", "replace")
    if kind == "b":
        return bool(value)
    if kind in "il":
        if wire != 0:
            raise ProtobufError("proto: wrong wireType for field")
        number = _signed(value)
        return number if kind == "l" else (number + 0x80000000) % 0x100000000 - 0x80000000
    if kind == "y":
        if wire != 2:
            raise ProtobufError("proto: wrong wireType for field")
        return base64.b64encode(value).decode()
    if kind == "d":
        return struct.unpack("<d", value)[0] if wire == 1 else value
    return value


def from_message(m: Message, data: bytes, depth: int = 0) -> Any:
    """The JSON value of a message."""
    if depth > MAX_DEPTH:
        raise ProtobufError("nested too deep")
    special = _READERS.get(m.name)
    if special is not None:
        return special(data, depth)
    if m.is_list:
        field = m.fields[0]
        return [_value_in(field, wire, value, depth) for number, wire, value in _fields(data) if number == field.number]
    out: Object = {}
    by_number = m.by_number
    for number, wire, value in _fields(data):
        found = by_number.get(number)
        if found is None:
            continue
        name = found.json
        if found.inline:
            inner = from_message(found.message, value, depth + 1)
            for key, item in inner.items():
                out.setdefault(key, item)
        elif found.key:
            key, item = _entry_in(found, value, depth)
            out.setdefault(name, {})[key] = item
        elif found.repeated:
            out.setdefault(name, []).append(_value_in(found, wire, value, depth))
        else:
            out[name] = _value_in(found, wire, value, depth)
    return out


def _value_in(found: Any, wire: int, value: Any, depth: int) -> Any:
    if found.type:
        return _scalar_in(found.type, wire, value)
    if wire != 2:
        raise ProtobufError("proto: wrong wireType for field")
    return from_message(found.message, value, depth + 1)


def _entry_in(found: Any, data: Any, depth: int) -> tuple[str, Any]:
    key: Any = ""
    item: Any = "" if found.type in ("s", "y") else {} if not found.type else 0
    seen = False
    for number, wire, value in _fields(data):
        if number == 1:
            key = _scalar_in(found.key, wire, value)
        elif number == 2:
            item, seen = _value_in(found, wire, value, depth), True
    if not seen and not found.type:
        item = from_message(found.message, b"", depth + 1)
    return str(key), item


def _quantity_in(data: bytes, depth: int) -> Any:
    return next((v.decode("utf-8", "replace") for n, w, v in _fields(data) if n == 1 and w == 2), "0") or "0"


def _int_or_string_in(data: bytes, depth: int) -> Any:
    kind, number, text = 0, 0, ""
    for n, w, v in _fields(data):
        if n == 1:
            kind = v
        elif n == 2:
            number = _scalar_in("i", w, v)
        elif n == 3:
            text = v.decode("utf-8", "replace")
    return text if kind == 1 else number


def _moment(data: bytes) -> datetime.datetime | None:
    if not data:
        return None
    seconds = nanos = 0
    for n, _, v in _fields(data):
        if n == 1:
            seconds = _signed(v)
        elif n == 2:
            nanos = _signed(v)
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC) + datetime.timedelta(microseconds=nanos // 1000)
    except (ValueError, OverflowError, OSError):
        raise ProtobufError("time out of range") from None


def _iso(moment: datetime.datetime, precision: str) -> str:
    """In RFC 3339 with four digits of the year, which strftime does not promise: Go's zero time is in the year 1."""
    return moment.replace(tzinfo=None).isoformat(timespec=precision) + "Z"


def _time_in(data: bytes, depth: int) -> Any:
    moment = _moment(data)
    return _iso(moment, "seconds") if moment is not None else None


def _micro_time_in(data: bytes, depth: int) -> Any:
    moment = _moment(data)
    return _iso(moment, "microseconds") if moment is not None else None


def _duration_in(data: bytes, depth: int) -> Any:
    return times.format_duration(next((_signed(v) for n, _, v in _fields(data) if n == 1), 0))


def _raw_in(data: bytes, depth: int) -> Any:
    raw = next((v for n, w, v in _fields(data) if n == 1 and w == 2), b"")
    if not raw:
        return None
    if raw.startswith(MAGIC):
        return decode(raw)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise ProtobufError("invalid JSON in a raw field") from None


def _or_bool_in(data: bytes, depth: int) -> Any:
    allows = False
    for n, _, v in _fields(data):
        if n == 2:
            return from_message(message("~x.v1.JSONSchemaProps"), v, depth + 1)
        if n == 1:
            allows = bool(v)
    return allows


def _or_array_in(data: bytes, depth: int) -> Any:
    props = message("~x.v1.JSONSchemaProps")
    many = []
    for n, _, v in _fields(data):
        if n == 1:
            return from_message(props, v, depth + 1)
        many.append(from_message(props, v, depth + 1))
    return many


def _or_strings_in(data: bytes, depth: int) -> Any:
    names = []
    for n, _, v in _fields(data):
        if n == 1:
            return from_message(message("~x.v1.JSONSchemaProps"), v, depth + 1)
        names.append(v.decode("utf-8", "replace"))
    return names


_READERS = {
    "~p.api.resource.Quantity": _quantity_in,
    "~p.util.intstr.IntOrString": _int_or_string_in,
    "~m.v1.Time": _time_in,
    "~m.v1.MicroTime": _micro_time_in,
    "~m.v1.Duration": _duration_in,
    "~p.runtime.RawExtension": _raw_in,
    "~x.v1.JSON": _raw_in,
    "~m.v1.FieldsV1": _raw_in,
    "~x.v1.JSONSchemaPropsOrBool": _or_bool_in,
    "~x.v1.JSONSchemaPropsOrArray": _or_array_in,
    "~x.v1.JSONSchemaPropsOrStringArray": _or_strings_in,
}


def decode(data: bytes) -> Object:
    """An enveloped message as a JSON tree with apiVersion and kind. ProtobufError."""
    if not data.startswith(MAGIC):
        raise ProtobufError("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    api_version = kind = ""
    raw, media = b"", ""
    for number, wire, value in _fields(data[4:]):
        if wire != 2:
            raise ProtobufError("proto: wrong wireType for field")
        if number == 1:
            for n, _, v in _fields(value):
                if n == 1:
                    api_version = v.decode("utf-8", "replace")
                elif n == 2:
                    kind = v.decode("utf-8", "replace")
        elif number == 2:
            raw = value
        elif number == 4:
            media = value.decode("utf-8", "replace")
    if media and media != "application/vnd.kubernetes.protobuf":
        try:
            tree = orjson.loads(raw)
        except orjson.JSONDecodeError:
            raise ProtobufError("the raw object cannot be read") from None
        return tree if isinstance(tree, dict) else {}
    found = for_kind(api_version, kind)
    if found is None:
        raise ProtobufError(f'no kind "{kind}" is registered for version "{api_version}"')
    out = from_message(found, raw)
    return {"kind": kind, "apiVersion": api_version, **out} if isinstance(out, dict) else {}


# Writing.


def _put_varint(out: bytearray, value: int) -> None:
    if value < 0:
        value += 1 << 64
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _put_bytes(out: bytearray, number: int, data: bytes) -> None:
    _put_varint(out, number << 3 | 2)
    _put_varint(out, len(data))
    out += data


def _put_value(out: bytearray, found: Any, number: int, value: Any) -> None:
    kind = found.type
    if kind == "s":
        _put_bytes(out, number, str(value).encode("utf-8", "surrogatepass"))
    elif kind == "b":
        _put_varint(out, number << 3)
        out.append(1 if value else 0)
    elif kind in ("i", "l", "u", "v"):
        _put_varint(out, number << 3)
        _put_varint(out, int(value))
    elif kind == "y":
        try:
            _put_bytes(out, number, base64.b64decode(value))
        except (binascii.Error, ValueError):
            _put_bytes(out, number, b"")
    elif kind == "d":
        _put_varint(out, number << 3 | 1)
        out += struct.pack("<d", float(value))
    else:
        inner = bytearray()
        _put_message(inner, found.message, value)
        _put_bytes(out, number, bytes(inner))


def _put_message(out: bytearray, m: Message, value: Any) -> None:
    special = _WRITERS.get(m.name)
    if special is not None:
        special(out, value)
        return
    if m.is_list:
        for item in value or ():
            _put_value(out, m.fields[0], m.fields[0].number, item)
        return
    if not isinstance(value, dict):
        return
    for found in m.writable:
        if found.inline:
            inner = bytearray()
            _put_message(inner, found.message, value)
            if inner:
                _put_bytes(out, found.number, bytes(inner))
            continue
        item = value.get(found.json)
        if item is None:
            continue
        if found.key:
            for key in sorted(item):
                entry = bytearray()
                _put_bytes(entry, 1, key.encode("utf-8", "surrogatepass"))
                _put_value(entry, found, 2, item[key])
                _put_bytes(out, found.number, bytes(entry))
        elif found.repeated:
            for each in item:
                _put_value(out, found, found.number, each)
        else:
            _put_value(out, found, found.number, item)


def _quantity_out(out: bytearray, value: Any) -> None:
    _put_bytes(out, 1, str(value).encode())


def _int_or_string_out(out: bytearray, value: Any) -> None:
    text = isinstance(value, str)
    out += b"\x08\x01" if text else b"\x08\x00"
    _put_varint(out, 2 << 3)
    _put_varint(out, 0 if text else int(value))
    _put_bytes(out, 3, value.encode() if text else b"")


def _time_out(out: bytearray, value: Any) -> None:
    if not value:
        return
    moment = times.parse(value)
    delta = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    out.append(8)
    _put_varint(out, delta.days * 86400 + delta.seconds)
    out.append(16)
    _put_varint(out, delta.microseconds * 1000)


def _duration_out(out: bytearray, value: Any) -> None:
    out.append(8)
    _put_varint(out, times.parse_duration(value))


def _raw_out(out: bytearray, value: Any) -> None:
    if value is not None:
        _put_bytes(out, 1, orjson.dumps(value))


def _props_out(value: Any) -> bytes:
    inner = bytearray()
    _put_message(inner, message("~x.v1.JSONSchemaProps"), value)
    return bytes(inner)


def _or_bool_out(out: bytearray, value: Any) -> None:
    out += b"\x08\x01" if value is not False else b"\x08\x00"
    if isinstance(value, dict):
        _put_bytes(out, 2, _props_out(value))


def _or_array_out(out: bytearray, value: Any) -> None:
    if isinstance(value, dict):
        _put_bytes(out, 1, _props_out(value))
    else:
        for item in value or ():
            _put_bytes(out, 2, _props_out(item))


def _or_strings_out(out: bytearray, value: Any) -> None:
    if isinstance(value, dict):
        _put_bytes(out, 1, _props_out(value))
    else:
        for item in value or ():
            _put_bytes(out, 2, str(item).encode())


_WRITERS = {
    "~p.api.resource.Quantity": _quantity_out,
    "~p.util.intstr.IntOrString": _int_or_string_out,
    "~m.v1.Time": _time_out,
    "~m.v1.MicroTime": _time_out,
    "~m.v1.Duration": _duration_out,
    "~p.runtime.RawExtension": _raw_out,
    "~x.v1.JSON": _raw_out,
    "~m.v1.FieldsV1": _raw_out,
    "~x.v1.JSONSchemaPropsOrBool": _or_bool_out,
    "~x.v1.JSONSchemaPropsOrArray": _or_array_out,
    "~x.v1.JSONSchemaPropsOrStringArray": _or_strings_out,
}


def to_message(m: Message, value: Any) -> bytes:
    """A JSON value as a message."""
    out = bytearray()
    _put_message(out, m, value)
    return bytes(out)


def wrap(api_version: str, kind: str, raw: bytes) -> bytes:
    """A message in its envelope."""
    meta = bytearray()
    _put_bytes(meta, 1, api_version.encode())
    _put_bytes(meta, 2, kind.encode())
    out = bytearray(MAGIC)
    _put_bytes(out, 1, bytes(meta))
    _put_bytes(out, 2, raw)
    out += b"\x1a\x00\x22\x00"
    return bytes(out)


def envelope(obj: Object) -> bytes:
    """A JSON tree with its kind as an enveloped message; 406 where the kind has no protobuf form.

    The resource list of the core group has no apiVersion (upstream keeps that of old), and none is put in.
    """
    version, kind = obj.get("apiVersion", ""), obj.get("kind", "")
    found = for_kind(version, kind)
    if found is None:
        raise StatusError(
            406,
            "NotAcceptable",
            "object does not implement the protobuf marshalling interface and cannot be encoded to a protobuf message",
        )
    return wrap(version, kind, to_message(found, obj))


def watch_frame(kind: str, obj: Object) -> bytes:
    """A watch event in a protobuf stream: four octets of length, then the WatchEvent."""
    raw = bytearray()
    _put_bytes(raw, 1, envelope(obj))
    event = bytearray()
    _put_bytes(event, 1, kind.encode())
    _put_bytes(event, 2, bytes(raw))
    return struct.pack(">I", len(event)) + bytes(event)


# The order of fields.


def go_order(obj: Any) -> Any:
    """A tree with its keys in the order of the Go structures (what pretty-printed answers show)."""
    if not isinstance(obj, dict):
        return obj
    head = {k: obj[k] for k in ("kind", "apiVersion") if k in obj}
    found = for_kind(obj.get("apiVersion", ""), obj.get("kind", ""))
    if found is None:
        from longshore.master.apiserver.rendering import ordered_metadata

        rest = {k: v for k, v in obj.items() if k not in head}
        if isinstance(rest.get("metadata"), dict):
            rest["metadata"] = ordered_metadata(rest["metadata"])
        return {**head, **rest}
    rest = _ordered(found, {k: v for k, v in obj.items() if k not in head})
    return {**head, **rest}


def _ordered(m: Message, value: Any) -> Any:
    if m.name in _READERS:
        return value
    if not isinstance(value, dict):
        return value
    out: Object = {}
    for found in m.fields:
        if found.inline:
            for key, item in _ordered(found.message, value).items():
                out.setdefault(key, item)
        elif found.json in value:
            item = value[found.json]
            if not found.type and item is not None:
                if found.key:
                    item = {k: _ordered(found.message, item[k]) for k in sorted(item)}
                elif found.repeated:
                    item = [_ordered(found.message, i) for i in item]
                else:
                    item = _ordered(found.message, item)
            elif found.key and isinstance(item, dict):
                item = {k: item[k] for k in sorted(item)}
            out[found.json] = item
    return out
