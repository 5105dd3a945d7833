"""flowcontrol.apiserver.k8s.io: FlowSchema and PriorityLevelConfiguration."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from longshore.api.gotypes import dump
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_label, dns1123_subdomain

_FLOW = "io.k8s.api.flowcontrol.v1."
ALL = {"verbs": ["*"]}
_EVERYTHING = [
    {
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        "resourceRules": [
            {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": True, "namespaces": ["*"]}
        ],
    }
]
# The schemas that are always there, as they must be.
MANDATORY_SCHEMAS: dict[str, Object] = {
    "exempt": {
        "priorityLevelConfiguration": {"name": "exempt"},
        "matchingPrecedence": 1,
        "rules": [{"subjects": [{"kind": "Group", "group": {"name": "system:masters"}}], **_EVERYTHING[0]}],
    },
    "catch-all": {
        "priorityLevelConfiguration": {"name": "catch-all"},
        "matchingPrecedence": 10000,
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [
            {
                "subjects": [
                    {"kind": "Group", "group": {"name": "system:unauthenticated"}},
                    {"kind": "Group", "group": {"name": "system:authenticated"}},
                ],
                **_EVERYTHING[0],
            }
        ],
    },
}
MANDATORY_LEVELS: dict[str, Object] = {
    "exempt": {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}},
    "catch-all": {
        "type": "Limited",
        "limited": {"nominalConcurrencyShares": 5, "limitResponse": {"type": "Reject"}, "lendablePercent": 0},
    },
}


class FlowSchema(Strategy):
    """Which requests belong to which priority level."""

    generation = True

    def default(self, obj: Object) -> None:
        if not obj["spec"].get("matchingPrecedence"):
            obj["spec"]["matchingPrecedence"] = 1000

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec, name = obj["spec"], obj["metadata"].get("name", "")
        precedence = spec.get("matchingPrecedence", 0)
        if precedence <= 0:
            errors.invalid("spec.matchingPrecedence", precedence, "must be a positive value")
        if precedence > 10000:
            errors.invalid("spec.matchingPrecedence", precedence, "must not be greater than 10000")
        if precedence == 1 and name != "exempt":
            errors.invalid(
                "spec.matchingPrecedence", precedence, "only the schema named 'exempt' may have matchingPrecedence 1"
            )
        method = spec.get("distinguisherMethod")
        if method is not None and method.get("type") not in ("ByNamespace", "ByUser"):
            errors.unsupported(
                "spec.distinguisherMethod.type", {"Type": method.get("type", "")}, ("ByNamespace", "ByUser")
            )
        level = spec["priorityLevelConfiguration"].get("name", "")
        if not level:
            errors.required("spec.priorityLevelConfiguration.name", "must reference a priority level")
        else:
            for message in dns1123_subdomain(level):
                errors.invalid("spec.priorityLevelConfiguration.name", level, message)
        for index, rule in enumerate(spec.get("rules") or ()):
            self._rule(errors, rule, f"spec.rules[{index}]")
        fixed = MANDATORY_SCHEMAS.get(name)
        if fixed is not None and not _equal(spec, fixed):
            errors.invalid("spec", dump(_FLOW + "FlowSchemaSpec", spec), f"spec of '{name}' must equal the fixed value")

    @staticmethod
    def _rule(errors: Errors, rule: Object, path: str) -> None:
        if not rule.get("subjects"):
            errors.required(f"{path}.subjects", "subjects must contain at least one value")
        for index, subject in enumerate(rule.get("subjects") or ()):
            _subject(errors, subject, f"{path}.subjects[{index}]")
        if not rule.get("resourceRules") and not rule.get("nonResourceRules"):
            errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty")
        for index, one in enumerate(rule.get("resourceRules") or ()):
            here = f"{path}.resourceRules[{index}]"
            _verbs(errors, one, here)
            for key, text in (
                ("apiGroups", "resource rules must supply at least one api group"),
                ("resources", "resource rules must supply at least one resource"),
            ):
                values = one.get(key) or []
                if not values:
                    errors.required(f"{here}.{key}", text)
                elif "*" in values and len(values) > 1:
                    errors.invalid(
                        f"{here}.{key}",
                        values,
                        f"if '*' is present, must not specify other {'api groups' if key == 'apiGroups' else 'resources'}",
                    )
            namespaces = one.get("namespaces") or []
            if not namespaces and not one.get("clusterScope"):
                errors.required(
                    f"{here}.namespaces",
                    "resource rules that are not cluster scoped must supply at least one namespace",
                )
            elif "*" in namespaces:
                if len(namespaces) > 1:
                    errors.invalid(
                        f"{here}.namespaces", namespaces, 'if "*" is present, must not specify other namespaces'
                    )
            else:
                for at, name in enumerate(namespaces):
                    for message in dns1123_label(name):
                        errors.invalid(
                            f"{here}.namespaces[{at}]",
                            name,
                            f"each member of this list must be '*' or a DNS-1123 label; {message}",
                        )
        for index, one in enumerate(rule.get("nonResourceRules") or ()):
            here = f"{path}.nonResourceRules[{index}]"
            _verbs(errors, one, here)
            urls = one.get("nonResourceURLs") or []
            if not urls:
                errors.required(f"{here}.nonResourceURLs", "nonResourceURLs must contain at least one value")
            elif "*" in urls:
                if len(urls) > 1:
                    errors.invalid(
                        f"{here}.nonResourceURLs", urls, "if '*' is present, must not specify other non-resource URLs"
                    )
            else:
                for at, url in enumerate(urls):
                    _url(errors, url, f"{here}.nonResourceURLs[{at}]")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj["spec"]
        missing = next(
            (
                c.get("status", "?")
                for c in (obj.get("status") or {}).get("conditions") or ()
                if c.get("type") == "Dangling"
            ),
            "?",
        )
        method = spec.get("distinguisherMethod")
        return [
            obj["metadata"]["name"],
            spec["priorityLevelConfiguration"].get("name", ""),
            spec.get("matchingPrecedence", 0),
            "<none>" if method is None else method.get("type", ""),
            age_of(obj, now),
            missing,
        ]


def _url(errors: Errors, url: str, path: str) -> None:
    if url == "/":
        return
    if not url:
        errors.invalid(path, url, "must not be empty")
    elif not url.startswith("/"):
        errors.invalid(path, url, "must start with slash")
    elif " " in url:
        errors.invalid(path, url, "must not contain white-space")
    elif "//" in url:
        errors.invalid(path, url, "must not contain double slash")
    elif "*" in url.removesuffix("/*"):
        errors.invalid(path, url, "wildcard can only do suffix matching")


def _verbs(errors: Errors, rule: Object, path: str) -> None:
    known = ("create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch")
    verbs = rule.get("verbs") or []
    if not verbs:
        errors.required(f"{path}.verbs", "verbs must contain at least one value")
    elif "*" in verbs:
        if len(verbs) > 1:
            errors.invalid(f"{path}.verbs", verbs, "if '*' is present, must not specify other verbs")
    elif any(v not in known for v in verbs):
        errors.unsupported(f"{path}.verbs", verbs, known)


def _subject(errors: Errors, subject: Object, path: str) -> None:
    kind = subject.get("kind", "")
    names = {"ServiceAccount": "serviceAccount", "User": "user", "Group": "group"}
    if kind not in names:
        errors.unsupported(f"{path}.kind", kind, ("Group", "ServiceAccount", "User"))
        return
    field = names[kind]
    value = subject.get(field)
    if value is None:
        errors.required(f"{path}.{field}", f"{field} is required when subject kind is '{kind}'")
    elif kind == "ServiceAccount":
        name, namespace = value.get("name", ""), value.get("namespace", "")
        if not name:
            errors.required(f"{path}.serviceAccount.name")
        for message in dns1123_subdomain(name) if name not in ("", "*") else ():
            errors.invalid(f"{path}.serviceAccount.name", name, message)
        if not namespace:
            errors.required(f"{path}.serviceAccount.namespace", "must specify namespace for service account")
        for message in dns1123_label(namespace) if namespace else ():
            errors.invalid(f"{path}.serviceAccount.namespace", namespace, message)
    elif not value.get("name"):
        errors.required(f"{path}.{field}.name")
    for other_kind, other in names.items():
        if other != field and subject.get(other) is not None:
            errors.forbidden(f"{path}.{other}", f"{other} is forbidden when subject kind is not '{other_kind}'")


def _equal(spec: Object, fixed: Object) -> bool:
    """Equal but for empty values."""

    def trim(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: trim(v) for k, v in value.items() if v not in (None, [], {})}
        return [trim(v) for v in value] if isinstance(value, list) else value

    return bool(trim(spec) == trim(fixed))


class PriorityLevelConfiguration(Strategy):
    """How much a level of requests may have."""

    generation = True

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        exempt, limited = spec.get("exempt"), spec.get("limited")
        if spec.get("type") == "Exempt" and obj["metadata"].get("name") == "exempt" and exempt is None:
            exempt = spec["exempt"] = {}
        if exempt is not None:
            exempt.setdefault("nominalConcurrencyShares", 0)
            exempt.setdefault("lendablePercent", 0)
        if limited is not None:
            if limited.get("nominalConcurrencyShares") is None:
                limited["nominalConcurrencyShares"] = 30
            limited.setdefault("lendablePercent", 0)
            queuing = limited["limitResponse"].get("queuing")
            if queuing is not None:
                queuing["handSize"] = queuing.get("handSize") or 8
                queuing["queues"] = queuing.get("queues") or 64
                queuing["queueLengthLimit"] = queuing.get("queueLengthLimit") or 50

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec, name = obj["spec"], obj["metadata"].get("name", "")
        kind, limited, exempt = spec.get("type", ""), spec.get("limited"), spec.get("exempt")
        if (name == "exempt") != (kind == "Exempt") and kind in ("Exempt", "Limited"):
            errors.invalid("spec.type", kind, "must be 'Exempt' if and only if `name` is 'exempt'")
        if kind == "Exempt":
            if limited is not None:
                errors.forbidden("spec.limited", "must be nil if the type is not Limited")
        elif kind == "Limited":
            if exempt is not None:
                errors.forbidden("spec.exempt", "must be nil if the type is Limited")
            if limited is None:
                errors.required("spec.limited", "must not be empty when type is Limited")
            else:
                self._limited(errors, limited)
        else:
            errors.unsupported("spec.type", kind, ("Exempt", "Limited"))
        self._fixed(errors, spec, name)

    @staticmethod
    def _fixed(errors: Errors, spec: Object, name: str) -> None:
        fixed = MANDATORY_LEVELS.get(name)
        if fixed is None:
            return
        shown = dump(_FLOW + "PriorityLevelConfigurationSpec", spec)
        if name == "exempt":
            if not _equal({k: v for k, v in spec.items() if k != "exempt"}, {"type": "Exempt"}):
                errors.invalid(
                    "spec", shown, "spec of 'exempt' except the 'spec.exempt' field must equal the fixed value"
                )
        elif not _equal(spec, fixed):
            errors.invalid("spec", shown, f"spec of '{name}' must equal the fixed value")

    @staticmethod
    def _limited(errors: Errors, limited: Object) -> None:
        path = "spec.limited"
        shares, lend = limited.get("nominalConcurrencyShares"), limited.get("lendablePercent")
        if shares is not None and shares < 0:
            errors.invalid(f"{path}.nominalConcurrencyShares", shares, "must be a non-negative integer")
        response = limited["limitResponse"]
        kind, queuing = response.get("type", ""), response.get("queuing")
        here = f"{path}.limitResponse"
        if kind == "Reject":
            if queuing is not None:
                errors.forbidden(f"{here}.queuing", "must be nil if limited.limitResponse.type is not Limited")
        elif kind == "Queue":
            if queuing is None:
                errors.required(f"{here}.queuing", "must not be empty if limited.limitResponse.type is Limited")
            else:
                _queuing(errors, queuing, f"{here}.queuing")
        else:
            errors.unsupported(f"{here}.type", kind, ("Queue", "Reject"))
        if lend is not None and not 0 <= lend <= 100:
            errors.invalid(f"{path}.lendablePercent", lend, "must be between 0 and 100, inclusive")
        borrow = limited.get("borrowingLimitPercent")
        if borrow is not None and borrow < 0:
            errors.invalid(f"{path}.borrowingLimitPercent", borrow, "if specified, must be a non-negative integer")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj["spec"]
        limited = spec.get("limited")
        shares: Any = "<none>"
        queues: list[Any] = ["<none>"] * 3
        if limited is not None:
            shares = limited.get("nominalConcurrencyShares", "<none>")
            queuing = limited["limitResponse"].get("queuing")
            if queuing is not None:
                queues = [queuing.get("queues", 0), queuing.get("handSize", 0), queuing.get("queueLengthLimit", 0)]
        return [obj["metadata"]["name"], spec.get("type", ""), shares, *queues, age_of(obj, now)]


def _queuing(errors: Errors, queuing: Object, path: str) -> None:
    length, queues, hand = (queuing.get(k, 0) for k in ("queueLengthLimit", "queues", "handSize"))
    if length <= 0:
        errors.invalid(f"{path}.queueLengthLimit", length, "must be positive")
    if queues <= 0:
        errors.invalid(f"{path}.queues", queues, "must be positive")
    elif queues > 10000000:
        errors.invalid(f"{path}.queues", queues, "must not be greater than 10000000")
    if hand <= 0:
        errors.invalid(f"{path}.handSize", hand, "must be positive")
    elif hand > queues:
        errors.invalid(f"{path}.handSize", hand, f"should not be greater than queues ({queues})")
    elif queues > 1 and sum(math.log2(queues - i) for i in range(min(hand, queues))) > 60:
        errors.invalid(
            f"{path}.handSize",
            hand,
            f"required entropy bits of deckSize {queues} and handSize {hand} should not be greater than 60",
        )


STRATEGIES = {"FlowSchema": FlowSchema, "PriorityLevelConfiguration": PriorityLevelConfiguration}
