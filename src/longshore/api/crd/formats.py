"""String formats of custom resource schemas (go-openapi/strfmt, as far as upstream supports them)."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import uuid
from collections.abc import Callable
from datetime import date

from longshore.api import times

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_HOSTNAME = re.compile(
    r"(?=.{1,255}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)
_MAC = re.compile(r"([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}|([0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4}")
_DURATION = re.compile(
    r"(\d+(\.\d+)?\s*(ns|us|µs|ms|s|m|h|d|w|nanoseconds?|microseconds?|milliseconds?|seconds?|minutes?|hours?|days?|weeks?)\s*)+"
)


def _works(test: Callable[[str], object]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            test(text)
        except (ValueError, binascii.Error):
            return False
        return True

    return check


def _uuid(version: int) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            parsed = uuid.UUID(text)
        except ValueError:
            return False
        return not version or parsed.version == version

    return check


def _duration(text: str) -> bool:
    try:
        times.parse_duration(text)
        return True
    except ValueError:
        return _DURATION.fullmatch(text) is not None


def _digits(text: str) -> bool:
    digits = re.sub(r"[- ]", "", text)
    return digits.isdigit() and 13 <= len(digits) <= 19


CHECKS: dict[str, Callable[[str], bool]] = {
    "bsonobjectid": lambda t: re.fullmatch("[0-9a-fA-F]{24}", t) is not None,
    "uri": lambda t: re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", t) is not None or t.startswith("/"),
    "email": lambda t: _EMAIL.fullmatch(t) is not None,
    "hostname": lambda t: _HOSTNAME.fullmatch(t) is not None,
    "ipv4": _works(ipaddress.IPv4Address),
    "ipv6": _works(ipaddress.IPv6Address),
    "cidr": lambda t: "/" in t and _works(lambda x: ipaddress.ip_interface(x))(t),
    "mac": lambda t: _MAC.fullmatch(t) is not None,
    "uuid": _uuid(0),
    "uuid3": _uuid(3),
    "uuid4": _uuid(4),
    "uuid5": _uuid(5),
    "isbn": lambda t: re.fullmatch(r"(97[89][- ]?)?[0-9][0-9 -]{7,14}[0-9Xx]", t) is not None,
    "isbn10": lambda t: re.fullmatch(r"[0-9][0-9 -]{7,11}[0-9Xx]", t) is not None,
    "isbn13": lambda t: re.fullmatch(r"97[89][0-9 -]{9,14}[0-9]", t) is not None,
    "creditcard": _digits,
    "ssn": lambda t: re.fullmatch(r"\d{3}[- ]?\d{2}[- ]?\d{4}", t) is not None,
    "hexcolor": lambda t: re.fullmatch("#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})", t) is not None,
    "rgbcolor": lambda t: re.fullmatch(r"rgb\(\s*\d{1,3}\s*,\s*\d{1,3}\s*,\s*\d{1,3}\s*\)", t) is not None,
    "byte": _works(lambda t: base64.b64decode(t, validate=True)),
    "date": _works(date.fromisoformat),
    "duration": _duration,
    "datetime": _works(lambda t: times.parse(t)),
    "date-time": _works(lambda t: times.parse(t)),
    "k8s-short-name": lambda t: re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", t) is not None and len(t) <= 63,
    "k8s-long-name": lambda t: (
        re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", t) is not None
        and len(t) <= 253
    ),
}


def valid(form: str, text: str) -> bool:
    """Whether text has the format; formats that nobody knows are fine."""
    check = CHECKS.get(form)
    return check is None or check(text)
