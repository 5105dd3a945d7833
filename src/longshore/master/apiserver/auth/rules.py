"""RBAC policy rules: what one matches, what one covers, how it is shown.

Source: k8s.io/kubernetes/pkg/apis/rbac/v1/evaluation_helpers.go, k8s.io/component-helpers/auth/rbac/validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from longshore.master.apiserver.context import Attributes

from .users import quoted_list


class Rule:
    """One policy rule, made ready for matching. `raw` is the API object."""

    __slots__ = ("_prefixes", "groups", "names", "raw", "resources", "urls", "verbs")

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.verbs = frozenset(raw.get("verbs") or ())
        self.groups = frozenset(raw.get("apiGroups") or ())
        self.resources = frozenset(raw.get("resources") or ())
        self.names = frozenset(raw.get("resourceNames") or ())
        self.urls = frozenset(raw.get("nonResourceURLs") or ())
        self._prefixes = tuple(u[:-1] for u in self.urls if u.endswith("*"))

    def allows(self, a: Attributes) -> bool:
        verbs = self.verbs
        if a.verb not in verbs and "*" not in verbs:
            return False
        if not a.is_resource:
            return a.path in self.urls or (bool(self._prefixes) and a.path.startswith(self._prefixes))
        groups = self.groups
        if a.group not in groups and "*" not in groups:
            return False
        resources = self.resources
        if "*" not in resources:
            if a.subresource:
                if f"{a.resource}/{a.subresource}" not in resources and f"*/{a.subresource}" not in resources:
                    return False
            elif a.resource not in resources:
                return False
        return not self.names or a.name in self.names


@dataclass(slots=True)
class Resolution:
    """The rules of a user as far as they can be named; what stood in the way; whether there may be more."""

    rules: list[Rule] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    incomplete: bool = False


def covers(owned: Sequence[Rule], wanted: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of the `wanted` rules that `owned` does not cover, as simple rules; none when all is covered."""
    missing = []
    for rule in wanted:
        for part in _break_down(rule):
            if not any(_covers(o, part) for o in owned):
                missing.append(part)
    return missing


def _break_down(rule: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for group in rule.get("apiGroups") or ():
        for resource in rule.get("resources") or ():
            for verb in rule.get("verbs") or ():
                part: dict[str, Any] = {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
                names = rule.get("resourceNames") or ()
                if names:
                    for name in names:
                        yield part | {"resourceNames": [name]}
                else:
                    yield part
    for url in rule.get("nonResourceURLs") or ():
        for verb in rule.get("verbs") or ():
            yield {"nonResourceURLs": [url], "verbs": [verb]}


def _covers(owner: Rule, part: dict[str, Any]) -> bool:
    if "*" not in owner.verbs and not owner.verbs.issuperset(part["verbs"]):
        return False
    if "*" not in owner.groups and not owner.groups.issuperset(part.get("apiGroups", ())):
        return False
    for resource in part.get("resources", ()):
        if "*" in owner.resources or resource in owner.resources:
            continue
        _, slash, sub = resource.partition("/")
        if not slash or f"*/{sub}" not in owner.resources:
            return False
    for url in part.get("nonResourceURLs", ()):
        if not any(o in ("*", url) or (o.endswith("*") and url.startswith(o.rstrip("*"))) for o in owner.urls):
            return False
    names = part.get("resourceNames")
    return not owner.names if not names else not owner.names or owner.names.issuperset(names)


def compact(rules: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Simple rules for the same resource joined into one with all their verbs."""
    joined: dict[tuple[str, str, str], dict[str, Any]] = {}
    out: list[dict[str, Any]] = []
    for rule in rules:
        names = rule.get("resourceNames") or []
        if rule.get("nonResourceURLs") or len(names) > 1 or len(rule["apiGroups"]) != 1 or len(rule["resources"]) != 1:
            out.append(rule)
            continue
        key = (rule["apiGroups"][0], rule["resources"][0], names[0] if names else "")
        if key in joined:
            joined[key]["verbs"] += rule["verbs"]
        else:
            joined[key] = rule | {"verbs": list(rule["verbs"])}
    return [*out, *joined.values()]


_SHOWN = (
    ("apiGroups", "APIGroups"),
    ("resources", "Resources"),
    ("nonResourceURLs", "NonResourceURLs"),
    ("resourceNames", "ResourceNames"),
    ("verbs", "Verbs"),
)


def describe(rule: dict[str, Any]) -> str:
    """A rule in the words of an escalation error."""
    parts = [f"{shown}:{quoted_list(rule[name])}" for name, shown in _SHOWN if rule.get(name)]
    return "{" + ", ".join(parts) + "}"
