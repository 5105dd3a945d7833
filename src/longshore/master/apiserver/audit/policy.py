"""The audit policy: which requests are written down, and how much of them.

Source: k8s.io/apiserver/pkg/audit/policy, pkg/apis/audit/validation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from longshore.api.validation.errors import quote
from longshore.api.validation.names import dns1123_subdomain
from longshore.master.apiserver import configfile
from longshore.master.apiserver.context import Attributes

Object = dict[str, Any]
LEVELS = ("None", "Metadata", "Request", "RequestResponse")
RECEIVED, STARTED, COMPLETE, PANIC = STAGES = ("RequestReceived", "ResponseStarted", "ResponseComplete", "Panic")


class PolicyError(configfile.ConfigurationError):
    """The policy file is not one."""


class Verdict(NamedTuple):
    """What the policy wants of one request. omitted: stages that are not written."""

    level: str
    omitted: frozenset[str]
    without_fields: bool


class Rule:
    """One rule of a policy; what it does not name is not looked at."""

    def __init__(self, given: Object) -> None:
        self.level: str = given.get("level", "")
        self.users = frozenset(given.get("users") or ())
        self.groups = frozenset(given.get("userGroups") or ())
        self.verbs = frozenset(given.get("verbs") or ())
        self.namespaces = frozenset(given.get("namespaces") or ())
        self.resources: list[Object] = list(given.get("resources") or ())
        self.paths: list[str] = list(given.get("nonResourceURLs") or ())
        self.omitted = frozenset(given.get("omitStages") or ())
        self.without_fields: bool | None = given.get("omitManagedFields")

    def matches(self, a: Attributes) -> bool:
        if self.users and a.user.name not in self.users:
            return False
        if self.groups and self.groups.isdisjoint(a.user.groups):
            return False
        if self.verbs and a.verb not in self.verbs:
            return False
        if self.namespaces or self.resources:
            return a.is_resource and self._covers(a)
        if self.paths:
            return not a.is_resource and any(
                p in (a.path, "*") or (p.endswith("*") and a.path.startswith(p[:-1])) for p in self.paths
            )
        return True

    def _covers(self, a: Attributes) -> bool:
        if self.namespaces and a.namespace not in self.namespaces:
            return False
        return not self.resources or any(_covers(r, a) for r in self.resources)


def _covers(given: Object, a: Attributes) -> bool:
    if given.get("group", "") not in (a.group, "*"):
        return False
    names = given.get("resources") or ()
    if not names:
        return True
    whole = f"{a.resource}/{a.subresource}" if a.subresource else a.resource
    wanted = given.get("resourceNames") or ()
    if wanted and a.name not in wanted:
        return False
    for name in names:
        if name in ("*", whole) or (a.subresource and name == f"*/{a.subresource}") or name == f"{a.resource}/*":
            return True
    return False


class Policy:
    """Which requests are written down, and how much of them."""

    def __init__(self, given: Object) -> None:
        problems = _problems(given)
        if problems:
            raise PolicyError(problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]")
        self.rules = [Rule(r) for r in given.get("rules") or ()]
        if not self.rules:
            raise PolicyError("loaded illegal policy with 0 rules")
        self.omitted = frozenset(given.get("omitStages") or ())
        self.without_fields = bool(given.get("omitManagedFields"))

    @staticmethod
    def load(file: Path) -> Policy:
        """The policy in a YAML file. PolicyError or OSError."""
        try:
            return Policy(configfile.read(file, "Policy", ("audit.k8s.io/v1",)))
        except ValueError as error:
            raise PolicyError(f"loading audit policy file: {error}: from file {file}") from None

    def evaluate(self, a: Attributes) -> Verdict:
        """What is wanted of a request."""
        for rule in self.rules:
            if rule.matches(a):
                without = self.without_fields if rule.without_fields is None else rule.without_fields
                return Verdict(rule.level, self.omitted | rule.omitted, without)
        return Verdict("None", self.omitted, self.without_fields)


def _problems(given: Object) -> list[str]:
    """What is wrong with a policy, in upstream's words."""
    out = _stage_problems(given, "omitStages")
    for i, rule in enumerate(given.get("rules") or ()):
        out += _rule_problems(rule if isinstance(rule, dict) else {}, f"rules[{i}]")
    return out


def _rule_problems(rule: Object, at: str) -> list[str]:
    out = []
    level = rule.get("level") or ""
    if not level:
        out.append(f"{at}.level: Required value")
    elif level not in LEVELS:
        shown = ", ".join(quote(v) for v in sorted(LEVELS))
        out.append(f"{at}.level: Unsupported value: {quote(str(level))}: supported values: {shown}")
    paths = rule.get("nonResourceURLs") or ()
    for i, path in enumerate(paths):
        if path != "*" and not path.startswith("/"):
            out.append(
                f"{at}.nonResourceURLs[{i}]: Invalid value: {quote(path)}: non-resource URL rules must begin with a '/'"
                " character"
            )
        if path != "*" and "*" in path[:-1]:
            out.append(
                f"{at}.nonResourceURLs[{i}]: Invalid value: {quote(path)}: non-resource URL wildcards '*' must be the"
                " final character of the rule"
            )
    for resource in rule.get("resources") or ():
        group, names = resource.get("group") or "", resource.get("resourceNames") or ()
        if group not in ("", "*") and (messages := dns1123_subdomain(group)):
            out.append(f"{at}.resources.group: Invalid value: {quote(group)}: {','.join(messages)}")
        if names and not resource.get("resources"):
            out.append(
                f"{at}.resources.resourceNames: Invalid value: {_strings(names)}: using resourceNames requires at least"
                " one resource"
            )
    out += _stage_problems(rule, f"{at}.omitStages")
    if paths and (rule.get("resources") or rule.get("namespaces")):
        out.append(
            f"{at}.nonResourceURLs: Invalid value: {_strings(paths)}: rules cannot apply to both regular resources and"
            " non-resource URLs"
        )
    return out


def _stage_problems(given: Object, at: str) -> list[str]:
    return [
        f"{at}[{i}]: Invalid value: {quote(str(stage))}: allowed stages are {','.join(STAGES)}"
        for i, stage in enumerate(given.get("omitStages") or ())
        if stage not in STAGES
    ]


def _strings(values: Any) -> str:
    return "[" + ",".join(quote(str(v)) for v in values) + "]"
