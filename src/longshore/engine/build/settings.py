"""The builder's settings in daemon.json ("builder"): what clients may be allowed, garbage collection, history.

Source: moby daemon/config/builder.go, daemon/internal/builder-next/controller.go, worker/gc.go.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOUR = 3600 * 10**9
_LOCAL = ("type==source.local", "type==exec.cachemount", "type==source.git.checkout")
_FIELDS = ("id", "parent", "type", "description", "inuse", "shared", "private")
_DURATION = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": HOUR, "d": 24 * HOUR}


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of garbage collection. filters: BuildKit's, any of them; keep: nanoseconds since the last use in which an
    entry stays; everything: what is kept for the builder itself too; reserved, most, free: bytes, see usage.Space."""

    everything: bool = False
    filters: tuple[str, ...] = ()
    keep: int = 0
    reserved: int = 0
    most: int = 0
    free: int = 0


@dataclass(frozen=True, slots=True)
class BuilderSettings:
    """entitlements: what builds may be allowed by who asks for them. collect: whether the cache is kept small; rules: how
    (None: BuildKit's own rules with reserved, most and free). history: how many builds are kept, and how long (ns)."""

    entitlements: frozenset[str] = frozenset({"network.host", "device"})
    collect: bool = True
    rules: tuple[Rule, ...] | None = None
    reserved: int = 0
    most: int = 0
    free: int = 0
    history: int = 50
    history_age: int = 48 * HOUR

    def policy(self, root: Path) -> tuple[Rule, ...]:
        """The rules for a cache in a folder; none where nothing is to be collected."""
        if not self.collect:
            return ()
        return self.rules if self.rules is not None else default_rules(root, self.reserved, self.most, self.free)


def default_rules(root: Path, reserved: int, most: int, free: int) -> tuple[Rule, ...]:
    """BuildKit's rules; what is not said is a part of the disk."""
    if not (reserved or most or free):
        disk = os.statvfs(root)
        total = disk.f_blocks * disk.f_frsize
        reserved, most, free = ((total * part // 100 // (1 << 30) + 1) * 10**9 for part in (10, 80, 20))
    brief = round(reserved / 100 * math.e * math.pi * (1 + math.sqrt(5)) / 2)
    return (
        Rule(filters=_LOCAL, keep=48 * HOUR, most=max(brief, 512 * 10**6)),
        Rule(keep=60 * 24 * HOUR, reserved=reserved, most=most, free=free),
        Rule(reserved=reserved, most=most, free=free),
        Rule(everything=True, reserved=reserved, most=most, free=free),
    )


def parse(value: Any, size: Callable[[Any], int], flag: Callable[[Any], bool]) -> BuilderSettings:
    """daemon.json's "builder" (names in any case). size, flag: read one value. Raises ValueError."""
    settings = _lower(value)
    allowed = {name: flag(item) for name, item in _lower(settings.get("entitlements")).items()}
    entitlements = {"network.host"} if allowed.get("network-host", True) else set()
    if allowed.get("security-insecure"):
        entitlements.add("security.insecure")
    if allowed.get("device", True):
        entitlements.add("device")
    collection, history = _lower(settings.get("gc")), _lower(settings.get("history"))
    rules = collection.get("policy")
    if rules is not None and not isinstance(rules, list):
        raise ValueError("a list of rules is wanted")

    def amount(given: Mapping[str, Any], name: str, prefix: str = "", old: str = "keepstorage") -> int:
        text = given.get(prefix + name.lower()) or (given.get(prefix + old) if name == "reservedSpace" else None) or 0
        try:
            return size(text)
        except ValueError as error:
            shown = prefix + name.upper() if prefix else name
            raise ValueError(f"failed to parse {shown}: {error}") from None

    def rule(given: Any) -> Rule:
        found = _lower(given)
        filters, keep = _filters(found.get("filter"))
        spaces = (amount(found, name) for name in ("reservedSpace", "maxUsedSpace", "minFreeSpace"))
        return Rule(flag(found.get("all", False)), filters, keep, *spaces)

    reserved, most, free = (
        amount(collection, name, "default") for name in ("reservedSpace", "maxUsedSpace", "minFreeSpace")
    )
    return BuilderSettings(
        frozenset(entitlements),
        flag(collection.get("enabled", True)),
        None if rules is None else tuple(rule(item) for item in rules),
        reserved,
        most,
        free,
        int(history.get("maxentries") or 50),
        duration(str(history.get("maxage") or "48h")),
    )


def _lower(value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ValueError("settings by name are wanted")
    return {str(key).lower(): item for key, item in (value or {}).items()}


def _filters(value: Any) -> tuple[tuple[str, ...], int]:
    """A rule's filters as BuildKit's, and the age among them. value: ["name=value"], or {name: {value: true}}."""
    found: dict[str, list[str]] = {}
    if isinstance(value, dict):
        found = {str(name): list(values) for name, values in value.items()}
    else:
        for text in value or []:
            name, _, item = str(text).partition("=")
            found.setdefault(name.strip().lower(), []).append(item.strip())
    ages = [*found.get("until", ()), *found.get("unused-for", ())]
    if found.get("until") and found.get("unused-for"):
        raise ValueError('conflicting filters: "until" and "unused-for"')
    if len(ages) > 1 or any(len(found.get(name, ())) > 1 for name in _FIELDS):
        raise ValueError("filters expect only one value")
    terms = [
        f"{name}{'~=' if name == 'id' else '=='}{found[name][0]}" if found[name] else name
        for name in _FIELDS
        if name in found
    ]
    return (",".join(terms),) if terms else (), duration(ages[0]) if ages else 0


def duration(text: str) -> int:
    """A duration as Go writes it ("48h", "1h30m", or seconds) in nanoseconds. Raises ValueError."""
    if text.isdigit():
        return int(text) * 10**9
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"invalid duration {text}")
    return int(sum(float(number) * _DURATION[unit] for number, unit in parts))
