"""Kubernetes quantities: "100m", "1.5Gi", "2e3" (apimachinery pkg/api/resource).

A quantity is an exact number that remembers which family of suffixes it was written in. Values are kept as integers of
nano units, the finest that upstream keeps; finer input is rounded up.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

BINARY = "BinarySI"
DECIMAL = "DecimalSI"
EXPONENT = "DecimalExponent"

NANO = 10**9
MAX = (2**63 - 1) * NANO
MESSAGE = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"

_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_DECIMAL_OUT = {power: suffix for suffix, power in _DECIMAL.items()}
_BINARY_OUT = {power: suffix for suffix, power in _BINARY.items()}
_FORM = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?([KMGTPE]i|[numkMGTPE]?|[eE][+-]?[0-9]+)")


class QuantityError(ValueError):
    """The text is no quantity; str() is upstream's message."""


class Quantity(NamedTuple):
    """An amount: nanos (value times 10**9, exact) and the family of suffixes it prints in."""

    nanos: int
    format: str

    @property
    def value(self) -> int:
        """The amount as an integer, rounded up (away from zero below it, as upstream's Value())."""
        whole, rest = divmod(abs(self.nanos), NANO)
        whole += rest > 0
        return -whole if self.nanos < 0 else whole

    @property
    def milli_value(self) -> int:
        """The amount in thousandths, rounded up."""
        whole, rest = divmod(abs(self.nanos), 10**6)
        whole += rest > 0
        return -whole if self.nanos < 0 else whole

    def __str__(self) -> str:
        return _canonical(self.nanos, self.format)


def _canonical(nanos: int, form: str) -> str:
    if nanos == 0:
        return "0"
    if form == BINARY and -1024 * NANO < nanos < 1024 * NANO:
        form = DECIMAL
    if form == BINARY and nanos % NANO:
        form = DECIMAL
    sign, amount = ("-", -nanos) if nanos < 0 else ("", nanos)
    if form == BINARY:
        amount //= NANO
        power = 0
        while power < 6 and amount % 1024 == 0:
            amount //= 1024
            power += 1
        return f"{sign}{amount}{_BINARY_OUT.get(power, '')}"
    power = -9
    while power < 18 and amount % 1000 == 0:
        amount //= 1000
        power += 3
    if form == EXPONENT:
        return f"{sign}{amount}" + (f"e{power}" if power else "")
    return f"{sign}{amount}{_DECIMAL_OUT[power]}"


@lru_cache(maxsize=8192)
def parse(text: str) -> Quantity:
    """The quantity that text writes; QuantityError otherwise.

    Source: apimachinery pkg/api/resource/quantity.go, ParseQuantity.
    """
    match = _FORM.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        raise QuantityError(MESSAGE)
    sign, whole, fraction, suffix = match.groups()
    digits = (whole or "") + (fraction or "")
    scale = -len(fraction or "")
    number = int(digits)
    if suffix in _BINARY:
        form = BINARY
        numerator, power = number * 1024 ** _BINARY[suffix], scale
    elif suffix in _DECIMAL:
        form = DECIMAL
        numerator, power = number, scale + _DECIMAL[suffix]
    else:
        form = EXPONENT
        exponent = int(suffix[1:])
        if abs(exponent) > 1000:
            raise QuantityError("exponent too large" if exponent > 0 else MESSAGE)
        numerator, power = number, scale + exponent
    power += 9
    if power >= 0:
        nanos = numerator * 10**power
    else:
        nanos, rest = divmod(numerator, 10**-power)
        nanos += rest > 0
    nanos = min(nanos, MAX)
    return Quantity(-nanos if sign == "-" else nanos, form)


@lru_cache(maxsize=8192)
def canonical(text: str) -> str:
    """text in the canonical form in which upstream prints it ("1000m" -> "1"); QuantityError otherwise."""
    return str(parse(text))


def from_number(value: int, form: str = DECIMAL) -> Quantity:
    """A whole number as a quantity."""
    return Quantity(value * NANO, form)


def add(*amounts: str) -> str:
    """The sum of quantities, in the first one's family ("0" for none)."""
    if not amounts:
        return "0"
    parsed = [parse(a) for a in amounts]
    form = next((p.format for p in parsed if p.nanos), parsed[0].format)
    return str(Quantity(sum(p.nanos for p in parsed), form))
