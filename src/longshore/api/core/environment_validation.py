"""Checks of where containers take values and files from: environment, references to the pod's fields, paths."""

from __future__ import annotations

import re
from typing import Any

from longshore.api.validation.errors import Errors
from longshore.api.validation.names import config_key, dns1123_subdomain, env_name, qualified_name

Object = dict[str, Any]

_ENV_FIELDS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
_VOLUME_FIELDS = ("metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid")
_KNOWN_FIELDS = frozenset((*_ENV_FIELDS, *_VOLUME_FIELDS))
_RESOURCE_FIELDS = (
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
)

_CPU_DIVISORS: tuple[str, ...] = ("1m", "1")
_BYTE_DIVISORS = ("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei")


def field_selector(errors: Errors, reference: Object, path: str, *, volume: bool) -> None:
    """A downward reference to a field of the pod."""
    field = reference.get("fieldPath", "")
    if not reference.get("apiVersion"):
        errors.required(f"{path}.apiVersion")
        return
    if not field:
        errors.required(f"{path}.fieldPath")
        return
    match = re.fullmatch(r"(.+?)\['(.*)'\]", field)
    base = match[1] if match else field
    if reference["apiVersion"] != "v1":
        errors.invalid(
            f"{path}.fieldPath",
            field,
            f"error converting fieldPath: unsupported pod version: {reference['apiVersion']}",
        )
    elif match and base in ("metadata.annotations", "metadata.labels"):
        key = match[2].lower() if base == "metadata.annotations" else match[2]
        for message in qualified_name(key):
            errors.invalid(path, match[2], message)
    elif match or (field not in _KNOWN_FIELDS and field != "spec.host"):
        errors.invalid(f"{path}.fieldPath", field, f"error converting fieldPath: field label not supported: {field}")
    elif field not in (_VOLUME_FIELDS if volume else _ENV_FIELDS):
        errors.unsupported(f"{path}.fieldPath", field, _VOLUME_FIELDS if volume else _ENV_FIELDS)


def resource_field(errors: Errors, reference: Object, path: str, *, volume: bool) -> None:
    """A downward reference to a container's resources."""
    name = reference.get("resource", "")
    if volume and not reference.get("containerName"):
        errors.required(f"{path}.containerName")
    elif not name:
        errors.required(f"{path}.resource")
    elif name not in _RESOURCE_FIELDS and not name.startswith(("requests.hugepages-", "limits.hugepages-")):
        errors.unsupported(f"{path}.resource", name, _RESOURCE_FIELDS)
    divisor = reference.get("divisor")
    if divisor and divisor != "0":
        if name in ("limits.cpu", "requests.cpu"):
            allowed, shown, what = _CPU_DIVISORS, "1m and 1", "cpu"
        elif name in _RESOURCE_FIELDS or name.startswith(("requests.hugepages-", "limits.hugepages-")):
            allowed, shown = _BYTE_DIVISORS, ", ".join(_BYTE_DIVISORS)
            kind = name.partition(".")[2]
            what = {"memory": "memory", "ephemeral-storage": "local ephemeral storage"}.get(kind, "hugepages")
        else:
            return
        if divisor not in allowed:
            errors.invalid(
                f"{path}.divisor", name, f"only divisor's values {shown} are supported with the {what} resource"
            )


def key_selector(errors: Errors, reference: Object, path: str) -> None:
    """A key of a ConfigMap or Secret."""
    for message in dns1123_subdomain(reference.get("name", "")):
        errors.invalid(f"{path}.name", reference.get("name", ""), message)
    key = reference.get("key", "")
    if not key:
        errors.required(f"{path}.key")
    else:
        for message in config_key(key):
            errors.invalid(f"{path}.key", key, message)


def environment(errors: Errors, variables: list[Object], path: str, volumes: dict[str, Object]) -> None:
    """Environment variables."""
    for index, variable in enumerate(variables):
        here = f"{path}[{index}]"
        name = variable.get("name", "")
        if not name:
            errors.required(f"{here}.name")
        else:
            for message in env_name(name):
                errors.invalid(f"{here}.name", name, message)
        source = variable.get("valueFrom")
        if source is None:
            continue
        place = f"{here}.valueFrom"
        given = [
            k
            for k in ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")
            if source.get(k) is not None
        ]
        for kind in given:
            reference = source[kind]
            if kind == "fieldRef":
                field_selector(errors, reference, f"{place}.fieldRef", volume=False)
            elif kind == "resourceFieldRef":
                resource_field(errors, reference, f"{place}.resourceFieldRef", volume=False)
            elif kind == "fileKeyRef":
                _file_key(errors, reference, f"{place}.fileKeyRef", volumes)
            else:
                key_selector(errors, reference, f"{place}.{kind}")
        if not given:
            errors.invalid(
                place,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            )
        if variable.get("value"):
            if given:
                errors.invalid(place, "", "may not be specified when `value` is not empty")
        elif len(given) > 1:
            errors.invalid(place, "", "may not have more than one field specified at a time")


def _file_key(errors: Errors, reference: Object, path: str, volumes: dict[str, Object]) -> None:
    name = reference.get("volumeName", "")
    if not name:
        errors.required(f"{path}.volumeName")
    elif name not in volumes:
        errors.not_found(f"{path}.volumeName", name)
    elif "emptyDir" not in volumes[name]:
        errors.invalid(f"{path}.volumeName", name, "referenced volume must be of type emptyDir")
    if not reference.get("path"):
        errors.required(f"{path}.path")
    else:
        local_path(errors, reference["path"], f"{path}.path")
    if not reference.get("key"):
        errors.required(f"{path}.key")


def local_path(errors: Errors, value: str, path: str) -> None:
    """A relative path that does not climb."""
    if value.startswith("/"):
        errors.invalid(path, value, "must be a relative path")
    backsteps(errors, value, path)


def backsteps(errors: Errors, value: str, path: str) -> None:
    """A path without '..'."""
    if ".." in value.split("/"):
        errors.invalid(path, value, "must not contain '..'")


def environment_from(errors: Errors, sources: list[Object], path: str) -> None:
    """ConfigMaps and Secrets taken whole as environment."""
    for index, source in enumerate(sources):
        here = f"{path}[{index}]"
        if source.get("prefix"):
            for message in env_name(source["prefix"]):
                errors.invalid(f"{here}.prefix", source["prefix"], message)
        given = 0
        for kind in ("configMapRef", "secretRef"):
            reference = source.get(kind)
            if reference is not None:
                given += 1
                name = reference.get("name", "")
                if not name:
                    errors.required(f"{here}.{kind}.name")
                for message in dns1123_subdomain(name) if name else ():
                    errors.invalid(f"{here}.{kind}.name", name, message)
        if not given:
            errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")
        elif given > 1:
            errors.invalid(path, "", "may not have more than one field specified at a time")
