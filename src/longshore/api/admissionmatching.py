"""What webhooks and admission policies share: what they match, their expressions, where a webhook is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from longshore.api import cel
from longshore.api.strategy import Object
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_subdomain, qualified_name
from longshore.api.validation.selectors import label_selector

_OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")
# What expressions of policies and match conditions may name.
VARIABLES: dict[str, Any] = {
    "object": "dyn",
    "oldObject": "dyn",
    "request": "dyn",
    "authorizer": "dyn",
    "authorizer.requestResource": "dyn",
    "namespaceObject": "dyn",
    "params": "dyn",
    "variables": "dyn",
}
MATCH_VARIABLES = {
    k: VARIABLES[k] for k in ("object", "oldObject", "request", "authorizer", "authorizer.requestResource")
}


def authorizer_methods() -> dict[str, Any]:
    """The names of the authorizer library's methods, for compiling."""

    def unbound(*_: Any) -> Any:
        raise cel.EvalError("no such overload")

    names = (
        "path",
        "check",
        "group",
        "resource",
        "subresource",
        "namespace",
        "name",
        "serviceAccount",
        "fieldSelector",
        "labelSelector",
        "allowed",
        "reason",
        "errored",
        "error",
    )
    return dict.fromkeys(names, unbound)


def expression(
    errors: Errors, text: str, path: str, variables: Mapping[str, Any], results: tuple[str, ...]
) -> cel.Program | None:
    """Compile an expression and complain of it; the program when it is good."""
    try:
        return cel.compile(text, variables, results, authorizer_methods())
    except cel.CompileError as error:
        errors.invalid(path, text, str(error))
        return None


def default_matching(value: Object) -> None:
    """Selectors and the match policy of a webhook or of match constraints."""
    value.setdefault("matchPolicy", "Equivalent")
    value.setdefault("namespaceSelector", {})
    value.setdefault("objectSelector", {})
    for key in ("rules", "resourceRules", "excludeResourceRules"):
        for rule in value.get(key) or ():
            rule.setdefault("scope", "*")


def client_config(errors: Errors, client: Object, path: str) -> None:
    """Where a webhook is: a URL or a service."""
    url, service = client.get("url"), client.get("service")
    if (url is None) == (service is None):
        errors.required(path, "exactly one of url or service is required")
    elif url is not None:
        _url(errors, url, f"{path}.url")
    else:
        assert service is not None
        for key in ("name", "namespace"):
            if not service.get(key):
                errors.required(f"{path}.service.{key}")
        where = service.get("path")
        if where is not None:
            _path(errors, where, f"{path}.service.path")
        if service.get("port") is not None and not 1 <= service["port"] <= 65535:
            errors.invalid(
                f"{path}.service.port", service["port"], "port is not valid: must be between 1 and 65535, inclusive"
            )


def _url(errors: Errors, url: str, path: str) -> None:
    form = "desired format: https://host[/path]"
    try:
        parts = urlsplit(url)
    except ValueError as error:
        errors.required(path, f"url must be a valid URL: {error}; {form}")
        return
    if parts.scheme != "https":
        errors.invalid(path, parts.scheme, f"'https' is the only allowed URL scheme; {form}")
    if not parts.netloc.rpartition("@")[2]:
        errors.invalid(path, "", f"host must be specified; {form}")
    if "@" in parts.netloc:
        errors.invalid(path, parts.netloc.rpartition("@")[0], "user information is not permitted in the URL")
    if parts.fragment:
        errors.invalid(path, parts.fragment, "fragments are not permitted in the URL")
    if parts.query:
        errors.invalid(path, parts.query, "query parameters are not permitted in the URL")


def _path(errors: Errors, text: str, path: str) -> None:
    if text == "/" or not text:
        return
    if text == "//":
        errors.invalid(path, text, "segment[0] may not be empty")
    if not text.startswith("/"):
        errors.invalid(path, text, "must start with a '/'")
    steps = text[1:].rstrip("/").split("/")
    for index, step in enumerate(steps):
        if not step:
            errors.invalid(path, text, f"segment[{index}] may not be empty")
            continue
        for message in dns1123_subdomain(step):
            errors.invalid(path, text, f"segment[{index}]: {message}")


def rules(errors: Errors, rule: Object, path: str, *, policy: bool = False) -> None:
    """Operations, groups, versions, resources and scope."""
    operations = rule.get("operations") or []
    if not operations:
        errors.required(f"{path}.operations")
    elif "*" in operations and len(operations) > 1:
        errors.invalid(f"{path}.operations", operations, "if '*' is present, must not specify other operations")
    for index, one in enumerate(operations):
        if one not in _OPERATIONS:
            errors.unsupported(f"{path}.operations[{index}]", one, _OPERATIONS)
    for key, what in (("apiGroups", "API groups"), ("apiVersions", "API versions")):
        values = rule.get(key) or []
        if not values:
            errors.required(f"{path}.{key}")
        elif "*" in values and len(values) > 1:
            errors.invalid(f"{path}.{key}", values, f"if '*' is present, must not specify other {what}")
        if key == "apiVersions":
            for index, value in enumerate(values):
                if not value:
                    errors.required(f"{path}.{key}[{index}]")
    _resources(errors, rule.get("resources") or [], f"{path}.resources")
    scope = rule.get("scope")
    if scope is not None and scope not in ("*", "Cluster", "Namespaced"):
        errors.unsupported(f"{path}.scope", scope, ("*", "Cluster", "Namespaced"))


def _resources(errors: Errors, values: list[str], path: str) -> None:
    if not values:
        errors.required(path)
        return
    wildcard = {v.partition("/")[2] for v in values if v.startswith("*/")}
    whole = {v.partition("/")[0] for v in values if v.endswith("/*")}
    for index, value in enumerate(values):
        here = f"{path}[{index}]"
        if not value:
            errors.required(here)
        elif value == "*/*" and len(values) > 1:
            errors.invalid(path, values, "if '*/*' is present, must not specify other resources")
        elif value == "*" and any("/" not in v for v in values if v != "*"):
            errors.invalid(path, values, "if '*' is present, must not specify other resources without subresources")
        elif "/" in value:
            left, _, right = value.partition("/")
            if left != "*" and right in wildcard:
                errors.invalid(here, value, f"if '*/{right}' is present, must not specify {value}")
            if right != "*" and left in whole:
                errors.invalid(here, value, f"if '{left}/*' is present, must not specify {value}")


def match_conditions(errors: Errors, conditions: list[Object], path: str, variables: Mapping[str, Any]) -> None:
    """CEL conditions under which a webhook or policy is asked at all."""
    if len(conditions) > 64:
        errors.too_many(path, len(conditions), 64)
    names: set[str] = set()
    for index, condition in enumerate(conditions):
        here = f"{path}[{index}]"
        text = condition.get("expression", "")
        if not text.strip():
            errors.required(f"{here}.expression")
        else:
            expression(errors, text, f"{here}.expression", variables, ("bool",))
        name = condition.get("name", "")
        if not name:
            errors.required(f"{here}.name")
        elif name in names:
            errors.duplicate(f"{here}.name", name)
        else:
            for message in qualified_name(name):
                errors.invalid(f"{here}.name", name, message)
        names.add(name)


def selectors(errors: Errors, value: Object, path: str) -> None:
    for key in ("namespaceSelector", "objectSelector"):
        if value.get(key) is not None:
            label_selector(errors, value[key], f"{path}.{key}")
