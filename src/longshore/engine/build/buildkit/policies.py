"""Source policies: which sources a build may use, and what takes their place.

Source: BuildKit sourcepolicy (engine.go, matcher.go, mutate.go), util/wildcard.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from longshore.engine.errors import InvalidParameter, SystemFailure

_ALLOW, _DENY, _CONVERT = range(3)
_WILDCARD, _EXACT, _REGEX = range(3)
_EQUAL, _DIFFERENT, _MATCHES = range(3)
_MOST = 20


class Policies:
    """A client's policies, as its messages hold them."""

    def __init__(self, policies: Sequence[Any] = ()) -> None:
        self._policies = [policy for policy in policies if policy.rules]

    def __bool__(self) -> bool:
        return bool(self._policies)

    def evaluate(self, identifier: str, attributes: Mapping[str, str] | None = None) -> tuple[str, dict[str, str]]:
        """The source that is to be used for one ("docker-image://docker.io/library/busybox:latest"), and its attributes.

        Raises SystemFailure for one that is denied, InvalidParameter for rules that make no sense.
        """
        found, attrs = identifier, dict(attributes or {})
        for _ in range(_MOST + 1):
            changed = self._once(found, attrs)
            if changed is None:
                return found, attrs
            found, attrs = changed
        raise SystemFailure("too many mutations on a single source: too many operations")

    def _once(self, identifier: str, attributes: dict[str, str]) -> tuple[str, dict[str, str]] | None:
        for policy in self._policies:
            denied = False
            for rule in policy.rules:
                if not _matches(rule.selector, identifier, attributes):
                    continue
                if rule.action == _CONVERT:
                    made = _converted(rule, identifier), {**attributes, **dict(rule.updates.attrs)}
                    if made != (identifier, attributes):
                        return made
                else:
                    # The last rule that fits decides.
                    denied = rule.action == _DENY
            if denied:
                raise SystemFailure(f'source "{identifier}" denied by policy: source denied by policy')
        return None


def _pattern(selector: Any) -> re.Pattern[str]:
    text = selector.identifier
    if selector.match_type == _WILDCARD:
        if "**" in text:
            raise InvalidParameter(f'error matching source policy: invalid wildcard: "{text}"')
        text = "^" + re.escape(text).replace(r"\*", "(.*)") + "$"
    try:
        return re.compile(text)
    except re.error as error:
        raise InvalidParameter(f"error matching source policy: invalid regex {text}: {error}") from None


def _matches(selector: Any, identifier: str, attributes: Mapping[str, str]) -> bool:
    for constraint in selector.constraints:
        value = attributes.get(constraint.key, "")
        if constraint.condition == _MATCHES:
            try:
                fits = re.search(constraint.value, value) is not None
            except re.error as error:
                raise InvalidParameter(f'invalid regex "{constraint.value}": {error}') from None
        else:
            fits = (value == constraint.value) == (constraint.condition == _EQUAL)
        if not fits:
            return False
    if selector.identifier == identifier:
        return True
    return selector.match_type != _EXACT and _pattern(selector).search(identifier) is not None


def _converted(rule: Any, identifier: str) -> str:
    if not rule.HasField("updates"):
        raise InvalidParameter("error mutating source policy: missing destination for convert rule")
    target = str(rule.updates.identifier or rule.selector.identifier)
    if rule.selector.match_type == _EXACT:
        return target
    found = _pattern(rule.selector).search(identifier)
    if found is None:
        return target

    def group(word: re.Match[str]) -> str:
        name = word[1] or word[2]
        try:
            return found[int(name) if name.isdigit() else name] or ""
        except IndexError:
            return ""

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", group, target)
