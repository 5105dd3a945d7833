"""CEL values that Python has no type for, and the errors of evaluation."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, NamedTuple

from longshore.machinery import quantity


class EvalError(Exception):
    """Evaluation failed; str() is cel-go's message."""


class Uint(int):
    """An unsigned integer."""


class Duration(NamedTuple):
    """A span in nanoseconds."""

    nanoseconds: int


class CelType(NamedTuple):
    """A type as a value."""

    name: str


class Optional:
    """optional.of(x) or optional.none()."""

    __slots__ = ("present", "value")

    def __init__(self, present: bool, value: Any = None) -> None:
        self.present = present
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Optional) and self.present == other.present and self.value == other.value

    def __hash__(self) -> int:
        return hash((self.present, repr(self.value)))


NONE = Optional(False)


class Quantity(NamedTuple):
    """A Kubernetes quantity."""

    amount: quantity.Quantity

    @property
    def nanos(self) -> int:
        return self.amount.nanos


class IP(NamedTuple):
    """An IP address."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address


class CIDR(NamedTuple):
    """An address range (host bits kept)."""

    interface: ipaddress.IPv4Interface | ipaddress.IPv6Interface


class URL(NamedTuple):
    """A parsed URL."""

    text: str
    parts: Any


class Format(NamedTuple):
    """A named string format with its check."""

    name: str
    check: Any


_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-((?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*))?(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
)


class Semver(NamedTuple):
    """A semantic version."""

    major: int
    minor: int
    patch: int
    pre: tuple[Any, ...]

    def key(self) -> tuple[Any, ...]:
        """Orders versions by precedence."""
        pre = tuple((0, p, "") if isinstance(p, int) else (1, 0, p) for p in self.pre)
        return (self.major, self.minor, self.patch, 1 if not self.pre else 0, pre)


def parse_semver(text: str, normalize: bool = False) -> Semver | None:
    """The version that text writes; normalize takes v1.2 and the like."""
    if normalize:
        text = text.removeprefix("v")
        head, sign, rest = re.match(r"([\d.]*)([-+]?)(.*)", text).groups()  # type: ignore[union-attr]
        numbers = [p.lstrip("0") or "0" for p in head.split(".")] if head else []
        while 0 < len(numbers) < 3:
            numbers.append("0")
        text = ".".join(numbers) + sign + rest
    match = _SEMVER.fullmatch(text)
    if match is None:
        return None
    pre = tuple(int(p) if p.isdigit() else p for p in match[4].split(".")) if match[4] else ()
    return Semver(int(match[1]), int(match[2]), int(match[3]), pre)
