"""The values of daemon.json, each checked and in the form that the engine uses. All raise ValueError in dockerd's words.

Source: moby daemon/config/config.go, opts; docker/go-units.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}


def texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of texts is wanted")
    return tuple(value)


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is wanted")
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is wanted")
    return value


def count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"invalid max: {value}")
    return value


def mirrors(value: Any) -> tuple[str, ...]:
    """Source: moby registry/config.go, ValidateMirror."""
    found = []
    for item in texts(value):
        parts = urlsplit(item)
        if parts.scheme not in ("http", "https"):
            raise ValueError(f'invalid mirror: unsupported scheme "{parts.scheme}" in "{item}"')
        if parts.query or parts.fragment:
            raise ValueError(f'invalid mirror: query or fragment at end of the URI "{item}"')
        if parts.username is not None:
            raise ValueError("invalid mirror: username/password not allowed in URI")
        found.append(item.rstrip("/"))
    return tuple(found)


def size(value: Any) -> int:
    """A number of bytes, or a text with a unit ("64M", "1gb"). Source: docker/go-units RAMInBytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = text(value).strip().lower().removesuffix("b").removesuffix("i")
    unit = number[-1:] if number[-1:].isalpha() else ""
    if unit not in _UNITS:
        raise ValueError(f"invalid size: '{value}'")
    return int(float(number.removesuffix(unit)) * (1 << _UNITS[unit]))


def options(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError("texts by name are wanted")
    return dict(value)


def interface(version: int) -> Callable[[Any], str]:
    """Reads an address with its prefix, as bip and fixed-cidr have it."""

    def read(value: Any) -> str:
        given = text(value)
        try:
            if "/" not in given or ipaddress.ip_interface(given).version != version:
                raise ValueError(given)
        except ValueError:
            raise ValueError(f"invalid CIDR address: {given}") from None
        return given

    return read


def address(value: Any) -> str:
    return str(ipaddress.ip_address(text(value)))


def addresses(value: Any) -> tuple[str, ...]:
    """At most one of each family."""
    found = tuple(map(address, [value] if isinstance(value, str) else texts(value)))
    if len({":" in address for address in found}) != len(found):
        raise ValueError("only one IPv4 and one IPv6 address can be given")
    return found


def network_options(value: Any) -> dict[str, dict[str, str]]:
    if not isinstance(value, dict):
        raise ValueError("options by driver are wanted")
    return {driver: options(given) for driver, given in value.items()}


def pools(value: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, list):
        raise ValueError("a list of pools is wanted")
    found = []
    for entry in value:
        base, size = ipaddress.ip_network(entry["base"]), entry["size"]
        if not isinstance(size, int) or not base.prefixlen <= size <= base.max_prefixlen:
            raise ValueError(f"invalid pool size {size} of {base}")
        found.append((str(base), size))
    return tuple(found)


def ulimits(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, dict):
        raise ValueError("limits by name are wanted")
    return tuple(
        {"Name": name, "Hard": int(limit["Hard"]), "Soft": int(limit["Soft"])} for name, limit in value.items()
    )


def ipc_mode(value: Any) -> str:
    """Reads the IPC mode of containers that say nothing."""
    hint = 'use "shareable" or "private"'
    if value in ("none", "host") or (isinstance(value, str) and value.startswith("container:")):
        raise ValueError(f'IPC mode "{value}" is not supported as default value; {hint}')
    if value not in ("", "private", "shareable"):
        raise ValueError(f"default IPC mode setting ({value}) is invalid; {hint}")
    return str(value)


def cgroup_namespace(value: Any) -> str:
    """Reads the cgroup namespace of containers that say nothing."""
    if value not in ("", "host", "private"):
        raise ValueError(f'invalid default cgroup namespace ({value}): use "host" or "private"')
    return str(value)


def most(default: int) -> Callable[[Any], int]:
    """Reads how many of something there may be; 0 is dockerd's own number."""
    return lambda value: count(value) or default


def seconds(value: Any) -> int:
    """Reads a time; negative: no end."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"invalid timeout: {value}")
    return value


def features(value: Any) -> dict[str, bool]:
    """Reads what is switched on or off by name."""
    if not isinstance(value, dict):
        raise ValueError("features by name are wanted")
    return {str(name): flag(wanted) for name, wanted in value.items()}


def folders(value: Any) -> tuple[str, ...]:
    """Reads folders of CDI specifications; a single empty one is none."""
    found = texts(value)
    return () if found == ("",) else found
