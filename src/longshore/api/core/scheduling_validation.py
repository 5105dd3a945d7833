"""Checks of where a pod may go: affinity, tolerations, spread, gates, node selectors."""

from __future__ import annotations

import re
from typing import Any

from longshore.api.core.node import taint_effect
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_label, dns1123_subdomain, label_value, qualified_name
from longshore.api.validation.selectors import label_selector

Object = dict[str, Any]


def node_requirement(errors: Errors, value: Object, path: str, *, strict_values: bool = True) -> None:
    """One expression over a node's labels."""
    operator, values = value.get("operator", ""), value.get("values") or []
    if operator in ("In", "NotIn"):
        if not values:
            errors.required(f"{path}.values", "must be specified when `operator` is 'In' or 'NotIn'")
    elif operator in ("Exists", "DoesNotExist"):
        if values:
            errors.forbidden(f"{path}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
    elif operator in ("Gt", "Lt"):
        if len(values) != 1:
            errors.required(f"{path}.values", "must be specified single value when `operator` is 'Lt' or 'Gt'")
    else:
        errors.invalid(f"{path}.operator", operator, "not a valid selector operator")
    key = value.get("key", "")
    for message in qualified_name(key):
        errors.invalid(f"{path}.key", key, message)
    if strict_values:
        for index, text in enumerate(values):
            for message in label_value(text):
                errors.invalid(f"{path}.values[{index}]", text, message)


def node_field_requirement(errors: Errors, value: Object, path: str) -> None:
    """One expression over a node's fields: only metadata.name."""
    operator, values, key = value.get("operator", ""), value.get("values") or [], value.get("key", "")
    if operator in ("In", "NotIn"):
        if len(values) != 1:
            errors.required(
                f"{path}.values", "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"
            )
    else:
        errors.invalid(f"{path}.operator", operator, "not a valid selector operator")
    if key == "metadata.name":
        for index, text in enumerate(values):
            for message in dns1123_subdomain(text):
                errors.invalid(f"{path}.values[{index}]", text, message)
    else:
        errors.invalid(f"{path}.key", key, "not a valid field selector key")


def node_term(errors: Errors, value: Object, path: str, *, strict_values: bool = False) -> None:
    """One term of a node selector."""
    for index, expression in enumerate(value.get("matchExpressions") or ()):
        node_requirement(errors, expression, f"{path}.matchExpressions[{index}]", strict_values=strict_values)
    for index, expression in enumerate(value.get("matchFields") or ()):
        node_field_requirement(errors, expression, f"{path}.matchFields[{index}]")


def node_selector(errors: Errors, value: Object, path: str, *, strict_values: bool = False) -> None:
    """A node selector; strict_values: the values must be such as labels may have."""
    terms = value.get("nodeSelectorTerms") or []
    if not terms:
        errors.required(f"{path}.nodeSelectorTerms", "must have at least one node selector term")
    for index, term in enumerate(terms):
        node_term(errors, term, f"{path}.nodeSelectorTerms[{index}]", strict_values=strict_values)


def affinity(errors: Errors, value: Object | None, path: str, *, strict_values: bool = False) -> None:
    """Affinity and anti-affinity; strict_values: of what a node must have."""
    if value is None:
        return
    node = value.get("nodeAffinity")
    if node is not None:
        here = f"{path}.nodeAffinity"
        if node.get("requiredDuringSchedulingIgnoredDuringExecution") is not None:
            node_selector(
                errors,
                node["requiredDuringSchedulingIgnoredDuringExecution"],
                f"{here}.requiredDuringSchedulingIgnoredDuringExecution",
                strict_values=strict_values,
            )
        for index, term in enumerate(node.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
            place = f"{here}.preferredDuringSchedulingIgnoredDuringExecution[{index}]"
            _weight(errors, term, place)
            node_term(errors, term.get("preference") or {}, f"{place}.preference")
    for kind in ("podAffinity", "podAntiAffinity"):
        part = value.get(kind)
        if part is None:
            continue
        here = f"{path}.{kind}"
        for index, term in enumerate(part.get("requiredDuringSchedulingIgnoredDuringExecution") or ()):
            pod_term(errors, term, f"{here}.requiredDuringSchedulingIgnoredDuringExecution[{index}]")
        for index, term in enumerate(part.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
            place = f"{here}.preferredDuringSchedulingIgnoredDuringExecution[{index}]"
            _weight(errors, term, place)
            pod_term(errors, term.get("podAffinityTerm") or {}, f"{place}.podAffinityTerm")


def _weight(errors: Errors, term: Object, path: str) -> None:
    weight = term.get("weight", 0)
    if not 1 <= weight <= 100:
        errors.invalid(f"{path}.weight", weight, "must be in the range 1-100")


def pod_term(errors: Errors, term: Object, path: str) -> None:
    """One term of pod affinity."""
    if term.get("labelSelector") is not None:
        label_selector(errors, term["labelSelector"], f"{path}.labelSelector")
    if term.get("namespaceSelector") is not None:
        label_selector(errors, term["namespaceSelector"], f"{path}.namespaceSelector")
    for name in term.get("namespaces") or ():
        for message in dns1123_label(name):
            errors.invalid(f"{path}.namespace", name, message)
    _match_keys(errors, term, path)
    key = term.get("topologyKey", "")
    if not key:
        errors.required(f"{path}.topologyKey", "can not be empty")
    for message in qualified_name(key):
        errors.invalid(f"{path}.topologyKey", key, message)


def _match_keys(errors: Errors, term: Object, path: str) -> None:
    mine, other = term.get("matchLabelKeys") or [], term.get("mismatchLabelKeys") or []
    if (mine or other) and term.get("labelSelector") is None:
        for name, keys in (("matchLabelKeys", mine), ("mismatchLabelKeys", other)):
            if keys:
                errors.forbidden(f"{path}.{name}", "must not be specified when labelSelector is not set")
        return
    for name, keys in (("matchLabelKeys", mine), ("mismatchLabelKeys", other)):
        for index, key in enumerate(keys):
            for message in qualified_name(key):
                errors.invalid(f"{path}.{name}[{index}]", key, message)
    for index, key in enumerate(mine):
        if key in other:
            errors.invalid(
                f"{path}.matchLabelKeys[{index}]", key, "exists in both matchLabelKeys and mismatchLabelKeys"
            )


def tolerations(errors: Errors, listed: list[Object], path: str) -> None:
    """Tolerations."""
    for index, value in enumerate(listed):
        here = f"{path}[{index}]"
        key, operator, effect, text = (value.get(k, "") for k in ("key", "operator", "effect", "value"))
        if key:
            for message in qualified_name(key):
                errors.invalid(f"{here}.key", key, message)
        if not key and operator != "Exists":
            errors.invalid(
                f"{here}.operator",
                operator,
                'operator must be Exists when `key` is empty, which means "match all values and all keys"',
            )
        if value.get("tolerationSeconds") is not None and effect != "NoExecute":
            errors.invalid(f"{here}.effect", effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
        if operator in ("Equal", ""):
            for message in label_value(text):
                errors.invalid(f"{here}.operator", text, message)
        elif operator == "Exists":
            if text:
                errors.invalid(f"{here}.operator", text, "value must be empty when `operator` is 'Exists'")
        else:
            errors.unsupported(f"{here}.operator", operator, ("Equal", "Exists"))
        if effect:
            taint_effect(errors, effect, f"{here}.effect", allow_empty=True)


def topology_spread(errors: Errors, listed: list[Object], path: str) -> None:
    """Topology spread constraints."""
    seen: set[tuple[str, str]] = set()
    for index, value in enumerate(listed):
        here = f"{path}[{index}]"
        skew, key, when = value.get("maxSkew", 0), value.get("topologyKey", ""), value.get("whenUnsatisfiable", "")
        if skew <= 0:
            errors.invalid(f"{here}.maxSkew", skew, "must be greater than zero")
        if not key:
            errors.required(f"{here}.topologyKey", "can not be empty")
        if when not in ("DoNotSchedule", "ScheduleAnyway"):
            errors.unsupported(f"{here}.whenUnsatisfiable", when, ("DoNotSchedule", "ScheduleAnyway"))
        for later in listed[index + 1 :]:
            if (later.get("topologyKey", ""), later.get("whenUnsatisfiable", "")) == (key, when):
                errors.duplicate(f"{here}.{{topologyKey, whenUnsatisfiable}}", f"{{{key}, {when}}}")
                break
        domains = value.get("minDomains")
        if domains is not None:
            if domains <= 0:
                errors.invalid(f"{here}.minDomains", domains, "must be greater than zero")
            elif when != "DoNotSchedule":
                errors.invalid(
                    f"{here}.minDomains",
                    domains,
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not " + when,
                )
        for name in ("nodeAffinityPolicy", "nodeTaintsPolicy"):
            policy = value.get(name)
            if policy is not None and policy not in ("Ignore", "Honor"):
                errors.unsupported(f"{here}.{name}", policy, ("Honor", "Ignore"))
        keys = value.get("matchLabelKeys") or []
        selector: Any = value.get("labelSelector")
        if keys and selector is None:
            errors.forbidden(f"{here}.matchLabelKeys", "must not be specified when labelSelector is not set")
        elif keys:
            used = {e.get("key") for e in selector.get("matchExpressions") or ()} | set(
                selector.get("matchLabels") or ()
            )
            for at, name in enumerate(keys):
                for message in qualified_name(name):
                    errors.invalid(f"{here}.matchLabelKeys[{at}]", name, message)
                if name in used:
                    errors.invalid(
                        f"{here}.matchLabelKeys[{at}]", name, "exists in both matchLabelKeys and labelSelector"
                    )
        if selector is not None:
            label_selector(errors, selector, f"{here}.labelSelector")
        seen.add((key, when))


def scheduling_gates(errors: Errors, gates: list[Object], path: str) -> None:
    """Scheduling gates."""
    seen: set[str] = set()
    for index, gate in enumerate(gates):
        name = gate.get("name", "")
        for message in qualified_name(name):
            errors.invalid(f"{path}[{index}]", name, message)
        if name in seen:
            errors.duplicate(f"{path}[{index}]", name)
        seen.add(name)


def resource_claims(errors: Errors, claims: list[Object], path: str) -> list[str]:
    """A pod's resource claims; the answer is their names."""
    names: list[str] = []
    for index, claim in enumerate(claims):
        here = f"{path}[{index}]"
        name = claim.get("name", "")
        if not name:
            errors.required(f"{here}.name")
        elif name in names:
            errors.duplicate(f"{here}.name", name)
        else:
            for message in dns1123_label(name):
                errors.invalid(f"{here}.name", name, message)
            names.append(name)
        one, template = claim.get("resourceClaimName"), claim.get("resourceClaimTemplateName")
        shown = {"Name": name, "ResourceClaimName": one, "ResourceClaimTemplateName": template}
        if one is not None and template is not None:
            errors.invalid(
                here, shown, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
            )
        if one is None and template is None:
            errors.invalid(here, shown, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`")
        for field, text in (("resourceClaimName", one), ("resourceClaimTemplateName", template)):
            if text is not None:
                for message in dns1123_subdomain(text):
                    errors.invalid(f"{here}.{field}", text, message)
    return names


_SEARCH = r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*"
_search = re.compile(_SEARCH).fullmatch


def search_domain(value: str) -> list[str]:
    """Complaints about a DNS search domain."""
    found = [] if len(value) <= 253 else ["must be no more than 253 characters"]
    if not _search(value):
        found.append(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character "
            f"(e.g. 'example.com', regex used for validation is '{_SEARCH}')"
        )
    return found
