"""CEL's standard functions and Kubernetes' libraries: strings, lists, sets, regex, quantity, ip, cidr, url, semver, format, math."""

from __future__ import annotations

import base64
import ipaddress
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs, urlsplit

from longshore.api import times
from longshore.api.cel.conversions import (
    Function,
    compile_pattern,
    double_text,
    matches,
    need,
    size,
    to_bool,
    to_bytes,
    to_double,
    to_duration,
    to_int,
    to_string,
    to_timestamp,
    to_type,
    to_uint,
)
from longshore.api.cel.operators import equal
from longshore.api.cel.values import (
    CIDR,
    IP,
    NONE,
    URL,
    CelType,
    Duration,
    EvalError,
    Format,
    Optional,
    Quantity,
    Semver,
    Uint,
    parse_semver,
)
from longshore.api.validation import names
from longshore.machinery import quantity

# Times.


def _zoned(value: datetime, zone: str | None) -> datetime:
    if zone is None or zone == "UTC":
        return value.astimezone(UTC)
    offset = re.fullmatch(r"([+-]?)(\d\d):(\d\d)", zone)
    if offset:
        span = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        return value.astimezone(timezone(-span if offset[1] == "-" else span))
    import zoneinfo

    try:
        return value.astimezone(zoneinfo.ZoneInfo(zone))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise EvalError(f"unknown time zone {zone}") from None


def _date_part(pick: Callable[[datetime], int]) -> Function:
    def method(value: Any, zone: str | None = None) -> int:
        need(value, datetime)
        return pick(_zoned(value, zone))

    return method


def _time_part(pick: Callable[[datetime], int], unit: int) -> Function:
    def method(value: Any, zone: str | None = None) -> int:
        if isinstance(value, Duration):
            return int(value.nanoseconds / unit)
        need(value, datetime)
        return pick(_zoned(value, zone))

    return method


# Strings.


def _text(function: Function) -> Function:
    def method(value: Any, *arguments: Any) -> Any:
        need(value, str)
        return function(value, *arguments)

    return method


def _char_at(text: str, index: int) -> str:
    if not 0 <= index <= len(text):
        raise EvalError(f"index out of range: {index}")
    return text[index : index + 1]


def _index_of(value: Any, sub: Any, start: int = 0) -> int:
    if isinstance(value, list):
        return next((i for i, x in enumerate(value) if equal(x, sub)), -1)
    need(value, str)
    if not 0 <= start <= len(value):
        raise EvalError(f"index out of range: {start}")
    return int(value.find(sub, start))


def _last_index_of(value: Any, sub: Any, start: int | None = None) -> int:
    if isinstance(value, list):
        return next((i for i in range(len(value) - 1, -1, -1) if equal(value[i], sub)), -1)
    need(value, str)
    return int(value.rfind(sub) if start is None else value.rfind(sub, 0, start + len(sub)))


def _substring(text: str, start: int, end: int | None = None) -> str:
    stop = len(text) if end is None else end
    if not 0 <= start <= len(text):
        raise EvalError(f"index out of range: {start}")
    if not 0 <= stop <= len(text):
        raise EvalError(f"index out of range: {stop}")
    if start > stop:
        raise EvalError(f"invalid substring range. start: {start}, end: {stop}")
    return text[start:stop]


def _split(text: str, separator: str, limit: int = -1) -> list[str]:
    if limit == 0:
        return []
    if not separator:
        return list(text) if limit < 0 else [*text[: limit - 1], text[limit - 1 :]]
    return text.split(separator) if limit < 0 else text.split(separator, limit - 1)


def _replace(text: str, old: str, new: str, limit: int = -1) -> str:
    return text.replace(old, new, limit)


def _join(items: Any, separator: str = "") -> str:
    need(items, list)
    for item in items:
        need(item, str)
    return separator.join(items)


def _quote(text: str) -> str:
    from longshore.api.validation.errors import quote

    return quote(text)


def _format(text: str, arguments: list[Any]) -> str:
    index = 0

    def one(match: re.Match[str]) -> str:
        nonlocal index
        if match[0] == "%%":
            return "%"
        if index >= len(arguments):
            raise EvalError(f"index {index} out of range")
        value = arguments[index]
        index += 1
        verb, precision = match[2], match[1]
        if verb == "s":
            return _shown(value)
        if verb == "d":
            need(value, int, float)
            return str(int(value)) if isinstance(value, int) else double_text(value)
        if verb in ("f", "e"):
            return f"{float(value):.{int(precision[1:]) if precision else 6}{verb}}"
        if verb in ("x", "X"):
            raw = (
                value.encode().hex()
                if isinstance(value, str)
                else value.hex()
                if isinstance(value, bytes)
                else f"{value:x}"
            )
            return str(raw.upper() if verb == "X" else raw)
        return f"{int(value):{'b' if verb == 'b' else 'o'}}"

    return re.sub(r"%(\.\d+)?([sdfexXbo])|%%", one, text)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_inner(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_inner(k)}: {_inner(value[k])}" for k in sorted(value, key=str)) + "}"
    return "null" if value is None else value.name if isinstance(value, CelType) else to_string(value)


def _inner(value: Any) -> str:
    return _shown(value)


def _find(text: str, pattern: str) -> str:
    found = compile_pattern(pattern).search(text)
    return found[0] if found else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [m[0] for m in compile_pattern(pattern).finditer(text)]
    return found if limit < 0 else found[:limit]


# Lists and sets.


def _comparable(items: Any) -> list[Any]:
    need(items, list)
    return [i.nanoseconds if isinstance(i, Duration) else i for i in items]


def _is_sorted(items: Any) -> bool:
    keys = _comparable(items)
    return all(a <= b for a, b in pairwise(keys))


def _sum(items: Any) -> Any:
    need(items, list)
    if not items:
        return 0
    if isinstance(items[0], Duration):
        return Duration(sum(i.nanoseconds for i in items))
    total = sum(items)
    return Uint(total) if isinstance(items[0], Uint) else total


def _extreme(pick: Callable[..., Any], name: str) -> Function:
    def method(items: Any) -> Any:
        need(items, list)
        if not items:
            raise EvalError(f"{name} called on empty list")
        return pick(items)

    return method


def _contains(value: Any, other: Any) -> bool:
    if isinstance(value, CIDR):
        return _contains_ip(value, other)
    need(value, str)
    need(other, str)
    return other in value


def _distinct(items: Any) -> list[Any]:
    out: list[Any] = []
    for item in items:
        if not any(equal(item, o) for o in out):
            out.append(item)
    return out


def _flatten(items: Any, depth: int = 1) -> list[Any]:
    out: list[Any] = []
    for item in items:
        out.extend(_flatten(item, depth - 1) if isinstance(item, list) and depth > 0 else [item])
    return out


def _reverse(value: Any) -> Any:
    need(value, str, list)
    return value[::-1]


def _slice(items: Any, start: int, end: int) -> list[Any]:
    need(items, list)
    if not 0 <= start <= end <= len(items):
        raise EvalError(
            "slice index out of range"
            if start <= end
            else "cannot slice: start index must be less than or equal to end index"
        )
    return list(items[start:end])


def _set_contains(items: list[Any], others: list[Any]) -> bool:
    return all(any(equal(o, i) for i in items) for o in others)


# Quantities.


def to_quantity(text: Any) -> Quantity:
    need(text, str)
    try:
        return Quantity(quantity.parse(text))
    except quantity.QuantityError as error:
        raise EvalError(str(error)) from None


def is_quantity(text: Any) -> bool:
    try:
        to_quantity(text)
        return True
    except EvalError:
        return False


def _order(value: Any) -> Any:
    if isinstance(value, Quantity):
        return value.nanos
    if isinstance(value, Semver):
        return value.key()
    raise EvalError("no such overload")


def _add(sign: int) -> Function:
    def method(a: Any, b: Any) -> Quantity:
        need(a, Quantity)
        other = b.nanos if isinstance(b, Quantity) else int(b) * quantity.NANO
        return Quantity(quantity.Quantity(a.nanos + sign * other, a.amount.format))

    return method


def _as_integer(a: Any) -> int:
    need(a, Quantity)
    if a.nanos % quantity.NANO:
        raise EvalError("cannot convert value to integer")
    return int(a.nanos // quantity.NANO)


# Addresses.


def to_ip(value: Any) -> IP:
    if isinstance(value, CIDR):
        return IP(value.interface.ip)
    need(value, str)
    address = names.parse_ip(value)
    if address is None or (address.version == 6 and getattr(address, "ipv4_mapped", None) is not None):
        raise EvalError(
            f'IP Address "{value}" parse error during conversion from string: unable to parse IP'
            if address is None
            else "IPv4-mapped IPv6 address is not allowed"
        )
    return IP(address)


def is_ip(value: Any) -> bool:
    try:
        to_ip(value)
        return True
    except EvalError:
        return False


def to_cidr(value: Any) -> CIDR:
    need(value, str)
    parsed = names.parse_cidr(value)
    if parsed is None:
        raise EvalError(
            f"network address parse error during conversion from string: netip.ParsePrefix(\"{value}\"): no '/'"
        )
    return CIDR(parsed)


def is_cidr(value: Any) -> bool:
    try:
        to_cidr(value)
        return True
    except EvalError:
        return False


def _contains_ip(value: Any, other: Any) -> bool:
    need(value, CIDR)
    address = to_ip(other) if isinstance(other, str) else other
    return address.address.version == value.interface.version and address.address in value.interface.network


def _contains_cidr(value: Any, other: Any) -> bool:
    need(value, CIDR)
    inner = to_cidr(other) if isinstance(other, str) else other
    if inner.interface.version != value.interface.version:
        return False
    return bool(inner.interface.network.subnet_of(value.interface.network))


def _masked(value: Any) -> CIDR:
    return CIDR(ipaddress.ip_interface(str(value.interface.network)))


def _family(value: Any) -> int:
    return int(value.address.version if isinstance(value, IP) else value.interface.version)


# URLs.


def to_url(value: Any) -> URL:
    need(value, str)
    parts = urlsplit(value)
    if not (parts.scheme and parts.netloc) and not value.startswith("/"):
        raise EvalError(f'URL parse error during conversion from string: parse "{value}": invalid URI for request')
    return URL(value, parts)


def is_url(value: Any) -> bool:
    try:
        to_url(value)
        return True
    except (EvalError, ValueError):
        return False


def _host(url: URL) -> str:
    return str(url.parts.netloc.rpartition("@")[2])


def _hostname(url: URL) -> str:
    return re.sub(r":\d*$", "", _host(url)).strip("[]")


def _port(url: URL) -> str:
    found = re.search(r":(\d*)$", _host(url))
    return found[1] if found else ""


# Semantic versions.


def to_semver(value: Any, normalize: bool = False) -> Semver:
    found = parse_semver(value, normalize)
    if found is None:
        raise EvalError("Invalid Semantic Version" if value else "Version string empty")
    return found


# Formats.


def _k8s_format(check: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    return check


FORMATS = {
    "dns1123Label": names.dns1123_label,
    "dns1123Subdomain": names.dns1123_subdomain,
    "dns1035Label": names.dns1035_label,
    "qualifiedName": names.qualified_name,
    "dns1123LabelPrefix": names.for_generation(names.dns1123_label),
    "dns1123SubdomainPrefix": names.for_generation(names.dns1123_subdomain),
    "dns1035LabelPrefix": names.for_generation(names.dns1035_label),
    "labelValue": names.label_value,
    "uri": lambda t: [] if is_url(t) else ["must be a valid URI"],
    "uuid": lambda t: (
        []
        if re.fullmatch(r"(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", t)
        else ["does not match the UUID format"]
    ),
    "byte": lambda t: (
        [] if re.fullmatch(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", t) else ["invalid base64"]
    ),
    "date": lambda t: [] if re.fullmatch(r"\d{4}-\d\d-\d\d", t) else ["invalid date"],
    "datetime": lambda t: [] if _is_time(t) else ["invalid datetime"],
}


def _is_time(text: str) -> bool:
    try:
        times.parse(text)
        return True
    except times.TimeError:
        return False


def _named_format(name: str) -> Optional:
    return Optional(True, Format(name, FORMATS[name])) if name in FORMATS else NONE


def _validate(form: Any, text: Any) -> Any:
    need(form, Format)
    problems = form.check(text)
    return Optional(True, problems) if problems else NONE


def _constant(name: str) -> Function:
    return lambda: Format(name, FORMATS[name])


def _or_value(value: Any, other: Any) -> Any:
    need(value, Optional)
    return value.value if value.present else other


def _value(value: Any) -> Any:
    need(value, Optional)
    if not value.present:
        raise EvalError("optional.none() dereference")
    return value.value


def _sign(value: Any) -> Any:
    result = (value > 0) - (value < 0)
    return type(value)(result) if isinstance(value, float | Uint) else result


FUNCTIONS: dict[str, Function] = {
    "int": to_int, "uint": to_uint, "double": to_double, "string": to_string, "bool": to_bool, "bytes": to_bytes, "dyn": lambda v: v,
    "duration": to_duration, "timestamp": to_timestamp, "type": to_type, "size": size, "matches": matches, "quantity": to_quantity,
    "isQuantity": is_quantity, "ip": to_ip, "isIP": is_ip, "ip.isCanonical": lambda t: str(to_ip(t).address) == t, "cidr": to_cidr,
    "isCIDR": is_cidr, "url": to_url, "isURL": is_url, "semver": to_semver,
    "isSemver": lambda t, n=False: parse_semver(t, n) is not None, "sets.contains": _set_contains,
    "sets.equivalent": lambda a, b: _set_contains(a, b) and _set_contains(b, a),
    "sets.intersects": lambda a, b: any(equal(x, y) for x in a for y in b), "format.named": _named_format,
    "optional.of": lambda v: Optional(True, v), "optional.none": lambda: NONE,
    "optional.ofNonZeroValue": lambda v: Optional(True, v) if v not in (None, 0, "", False, [], {}, b"") else NONE,
    "strings.quote": _quote, "math.greatest": lambda *v: max(v[0] if len(v) == 1 and isinstance(v[0], list) else v),
    "math.least": lambda *v: min(v[0] if len(v) == 1 and isinstance(v[0], list) else v), "math.abs": abs, "math.ceil": lambda v: float(math.ceil(v)),
    "math.floor": lambda v: float(math.floor(v)), "math.round": lambda v: float(math.floor(abs(v) + 0.5) * (1 if v >= 0 else -1)),
    "math.trunc": lambda v: float(math.trunc(v)), "math.sign": _sign, "math.isNaN": math.isnan, "math.isInf": math.isinf,
    "math.isFinite": math.isfinite, "math.bitAnd": lambda a, b: a & b, "math.bitOr": lambda a, b: a | b, "math.bitXor": lambda a, b: a ^ b,
    "math.bitNot": lambda a: ~a, "math.bitShiftLeft": lambda a, b: a << b, "math.bitShiftRight": lambda a, b: a >> b,
    "base64.encode": lambda b: base64.b64encode(b).decode(), "base64.decode": lambda t: base64.b64decode(t + "=" * (-len(t) % 4)),
    "lists.range": lambda n: list(range(n)), **{f"format.{name}": _constant(name) for name in FORMATS},
}  # fmt: skip

METHODS: dict[str, Function] = {
    "size": size, "matches": matches, "startsWith": _text(str.startswith), "endsWith": _text(str.endswith), "contains": _contains,
    "charAt": _text(_char_at), "indexOf": _index_of, "lastIndexOf": _last_index_of, "lowerAscii": _text(lambda t: "".join(c.lower() if c.isascii() else c for c in t)),
    "upperAscii": _text(lambda t: "".join(c.upper() if c.isascii() else c for c in t)), "replace": _text(_replace), "split": _text(_split),
    "substring": _text(_substring), "trim": _text(str.strip), "join": _join, "reverse": _reverse, "format": _text(_format),
    "find": _text(_find), "findAll": _text(_find_all), "isSorted": _is_sorted, "sum": _sum, "min": _extreme(min, "min"), "max": _extreme(max, "max"),
    "distinct": _distinct, "flatten": _flatten, "slice": _slice, "sort": lambda v: sorted(v), "first": lambda v: Optional(True, v[0]) if v else NONE,
    "last": lambda v: Optional(True, v[-1]) if v else NONE,
    "isGreaterThan": lambda a, b: _order(a) > _order(b), "isLessThan": lambda a, b: _order(a) < _order(b),
    "compareTo": lambda a, b: (_order(a) > _order(b)) - (_order(a) < _order(b)), "add": _add(1), "sub": _add(-1), "asInteger": _as_integer,
    "isInteger": lambda a: a.nanos % quantity.NANO == 0, "asApproximateFloat": lambda a: a.nanos / quantity.NANO,
    "sign": lambda a: (a.nanos > 0) - (a.nanos < 0), "family": _family, "isUnspecified": lambda a: a.address.is_unspecified,
    "isLoopback": lambda a: a.address.is_loopback, "isLinkLocalMulticast": lambda a: a.address.is_multicast and str(a.address).startswith(("224.0.0.", "ff02:")),
    "isLinkLocalUnicast": lambda a: a.address.is_link_local, "isGlobalUnicast": lambda a: not (a.address.is_unspecified or a.address.is_loopback or a.address.is_multicast or a.address.is_link_local),
    "containsIP": _contains_ip, "containsCIDR": _contains_cidr, "ip": to_ip, "prefixLength": lambda a: a.interface.network.prefixlen, "masked": _masked,
    "getScheme": lambda u: u.parts.scheme, "getHost": _host, "getHostname": _hostname, "getPort": _port, "getEscapedPath": lambda u: u.parts.path,
    "getQuery": lambda u: parse_qs(u.parts.query, keep_blank_values=True), "major": lambda v: v.major, "minor": lambda v: v.minor, "patch": lambda v: v.patch,
    "validate": _validate, "hasValue": lambda v: v.present, "value": _value, "orValue": _or_value, "or": lambda a, b: a if a.present else b,
    "getFullYear": _date_part(lambda t: t.year), "getMonth": _date_part(lambda t: t.month - 1), "getDate": _date_part(lambda t: t.day),
    "getDayOfMonth": _date_part(lambda t: t.day - 1), "getDayOfWeek": _date_part(lambda t: (t.weekday() + 1) % 7),
    "getDayOfYear": _date_part(lambda t: t.timetuple().tm_yday - 1), "getHours": _time_part(lambda t: t.hour, 3600 * 10**9),
    "getMinutes": _time_part(lambda t: t.minute, 60 * 10**9), "getSeconds": _time_part(lambda t: t.second, 10**9),
    "getMilliseconds": _time_part(lambda t: t.microsecond // 1000, 10**6),
}  # fmt: skip

RESULTS = {
    "int": "int", "uint": "uint", "double": "double", "string": "string", "bool": "bool", "bytes": "bytes", "duration": "duration",
    "timestamp": "timestamp", "type": "type", "size": "int", "matches": "bool", "isQuantity": "bool", "isIP": "bool", "isCIDR": "bool", "isURL": "bool",
    "isSemver": "bool", ".size": "int", ".matches": "bool", ".startsWith": "bool", ".endsWith": "bool", ".contains": "bool", ".charAt": "string",
    ".lowerAscii": "string", ".upperAscii": "string", ".replace": "string", ".substring": "string", ".trim": "string", ".join": "string",
    ".format": "string", ".find": "string", ".isSorted": "bool", ".isGreaterThan": "bool", ".isLessThan": "bool", ".compareTo": "int",
    ".hasValue": "bool", ".indexOf": "int", ".lastIndexOf": "int", ".split": "list", ".getFullYear": "int", ".containsIP": "bool", ".containsCIDR": "bool",
}  # fmt: skip
