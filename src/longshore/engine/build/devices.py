"""RUN --device: CDI devices that a command gets, and who may have them.

Source: BuildKit frontend/dockerfile/instructions/commands_rundevice.go, solver/llbsolver/cdidevices, vertex.go.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from longshore.engine import cdi
from longshore.engine.errors import InvalidParameter, SystemFailure

#: What allows a build to have devices: this, or "device=NAME".
ENTITLEMENT = "device"
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_AUTO = "org.mobyproject.buildkit.device.autoallow"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One --device as written. required: without it the step fails; otherwise it is left out."""

    name: str
    required: bool = False


def parse(text: str) -> Wanted:
    """ "vendor.com/class=name,required" or "name=vendor.com/class=name,required=true". Raises InvalidParameter."""
    name, required = "", False
    for field in next(csv.reader([text]), []):
        key, equals, value = field.partition("=")
        if key.lower() == "required":
            if equals and value not in (*_TRUE, *_FALSE):
                raise InvalidParameter(f"invalid value for required: {value}")
            required = not equals or value in _TRUE
        elif key.lower() == "name" and equals:
            if name:
                raise InvalidParameter(f"device name already set to {name}")
            name = value
        elif not name:
            name = field
        elif not equals:
            raise InvalidParameter(f"invalid field '{field}' must be a key=value pair")
        else:
            raise InvalidParameter(f"unexpected key '{key}' in '{field}'")
    return Wanted(name, required)


def resolve(wanted: Sequence[Wanted], folders: Iterable[Path], entitlements: Iterable[str]) -> list[str]:
    """The devices to give, by their whole names. In a thread. Raises SystemFailure, InvalidParameter."""
    if not wanted:
        return []
    places = list(folders)
    known = cdi.devices(places)[0]
    allowed = set(entitlements)
    named = {text.partition("=")[2].partition(",")[0] for text in allowed if text.startswith(f"{ENTITLEMENT}=")}
    found: list[str] = []
    for one in wanted:
        # A kind without a device means its first.
        fits = [name for name in known if name == one.name or name.partition("=")[0] == one.name]
        if not fits and one.required:
            raise SystemFailure(f'required device "{one.name}" is not registered')
        found += fits[:1]
    forbidden = [
        name
        for name in found
        if ENTITLEMENT not in allowed
        and not named & {name, name.partition("=")[0]}
        and cdi.notes(name, places).get(_AUTO) not in _TRUE
    ]
    if len(forbidden) == 1:
        raise InvalidParameter(f"device {forbidden[0]} is requested by the build but not allowed")
    if forbidden:
        raise InvalidParameter(f"devices {', '.join(forbidden)} are requested by the build but not allowed")
    return found
