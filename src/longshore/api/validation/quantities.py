"""Resource names and amounts (upstream pkg/apis/core/validation and pkg/apis/core/helper)."""

from __future__ import annotations

from typing import Any

from longshore.api.validation.errors import Errors
from longshore.api.validation.names import qualified_name
from longshore.machinery import quantity

STANDARD_FINALIZERS = frozenset(("kubernetes", "orphan", "foregroundDeletion"))
STANDARD_CONTAINER = frozenset(("cpu", "memory", "ephemeral-storage"))
STANDARD = frozenset((
    "cpu", "memory", "ephemeral-storage", "requests.cpu", "requests.memory", "requests.ephemeral-storage", "limits.cpu", "limits.memory",
    "limits.ephemeral-storage", "pods", "resourcequotas", "services", "replicationcontrollers", "secrets", "persistentvolumeclaims",
    "configmaps", "services.nodeports", "services.loadbalancers", "requests.storage", "storage",
))  # fmt: skip
STANDARD_QUOTA = frozenset((
    "cpu", "memory", "ephemeral-storage", "requests.cpu", "requests.memory", "requests.storage", "requests.ephemeral-storage", "limits.cpu",
    "limits.memory", "limits.ephemeral-storage", "pods", "resourcequotas", "services", "replicationcontrollers", "secrets",
    "persistentvolumeclaims", "configmaps", "services.nodeports", "services.loadbalancers",
))  # fmt: skip
_INTEGERS = frozenset((
    "pods", "resourcequotas", "services", "replicationcontrollers", "secrets", "configmaps", "persistentvolumeclaims", "services.nodeports",
    "services.loadbalancers",
))  # fmt: skip
NOT_NEGATIVE = "must be greater than or equal to 0"


def is_native(name: str) -> bool:
    """A resource of Kubernetes' own: no domain, or one of kubernetes.io."""
    return "/" not in name or "kubernetes.io/" in name


def is_huge_page(name: str) -> bool:
    """hugepages-2Mi and the like."""
    return name.startswith("hugepages-")


def is_extended(name: str) -> bool:
    """A resource of somebody else's that nodes announce."""
    return not (is_native(name) or name.startswith("requests.")) and not qualified_name("requests." + name)


def is_integer_resource(name: str) -> bool:
    """Only whole amounts of it make sense."""
    return name in _INTEGERS or is_extended(name)


def is_overcommit_allowed(name: str) -> bool:
    """A limit may exceed the request."""
    return is_native(name) and not is_huge_page(name)


def resource_name(errors: Errors, name: str, path: str) -> None:
    """A resource's name."""
    problems = qualified_name(name)
    for message in problems:
        errors.invalid(path, name, message)
    if not problems and "/" not in name and name not in STANDARD and not is_huge_page(name):
        errors.invalid(path, name, "must be a standard resource type or fully qualified")


def container_resource_name(errors: Errors, name: str, path: str) -> None:
    """A resource's name in a container."""
    resource_name(errors, name, path)
    if "/" not in name:
        if name not in STANDARD_CONTAINER and not is_huge_page(name):
            errors.invalid(path, name, "must be a standard resource for containers")
    elif not is_native(name) and not is_extended(name):
        errors.invalid(path, name, "doesn't follow extended resource name standard")


def quota_resource_name(errors: Errors, name: str, path: str) -> None:
    """A resource's name in a quota."""
    before = len(errors)
    resource_name(errors, name, path) if not _is_quota_prefixed(name) else _qualified(errors, name, path)
    if "/" not in name and name not in STANDARD_QUOTA and not name.startswith("requests.hugepages-"):
        if len(errors) == before or name not in STANDARD_QUOTA:
            errors.invalid(path, name, "must be a standard resource for quota")


def _is_quota_prefixed(name: str) -> bool:
    return name.startswith("requests.hugepages-")


def _qualified(errors: Errors, name: str, path: str) -> None:
    for message in qualified_name(name):
        errors.invalid(path, name, message)


def amount(errors: Errors, name: str, value: str, path: str) -> None:
    """An amount of a resource: not negative, whole where the resource is counted."""
    parsed = quantity.parse(value)
    if parsed.nanos < 0:
        errors.invalid(path, value, NOT_NEGATIVE)
    if is_integer_resource(name) and parsed.nanos % quantity.NANO:
        errors.invalid(path, value, "must be an integer")


def not_negative(errors: Errors, value: Any, path: str) -> None:
    """A number that is absent or at least zero."""
    if value is not None and value < 0:
        errors.invalid(path, value, NOT_NEGATIVE)
