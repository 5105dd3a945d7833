"""Options of log drivers, and rotation of the log file that they all share."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgtpKMGTP]?)(?:i?[bB])?$")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def parse_size(text: str) -> int:
    """ "10m" in bytes. Raises ValueError with dockerd's text."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"invalid size: '{text}'")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def rotation(driver: str, options: Mapping[str, str]) -> tuple[int, int]:
    """(bytes, files) at which a log is rotated and how many files stay; (0, 1): never."""
    defaults = {"local": ("20m", "5")}.get(driver, ("", "1"))
    try:
        size = parse_size(options.get("max-size") or defaults[0] or "0")
        count = int(options.get("max-file") or defaults[1])
    except ValueError:
        return 0, 1
    return size, max(count, 1)


def details(driver_options: Mapping[str, str], labels: Mapping[str, str], environment: list[str]) -> dict[str, str]:
    """The extra attributes that a log driver was told to keep (options labels, labels-regex, env, env-regex)."""
    found: dict[str, str] = {}
    variables = dict(entry.split("=", 1) for entry in environment if "=" in entry)
    for option, source in (("labels", labels), ("env", variables)):
        for name in (driver_options.get(option) or "").split(","):
            if name and name in source:
                found[name] = source[name]
        pattern = driver_options.get(f"{option}-regex")
        if pattern:
            try:
                expression = re.compile(pattern)
            except re.error:
                continue
            found.update({name: value for name, value in source.items() if expression.search(name)})
    return dict(sorted(found.items()))
