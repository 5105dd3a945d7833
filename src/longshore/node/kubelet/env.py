"""A container's environment: envFrom, env from every source, and the variables of Services.

Sources: kubernetes pkg/kubelet/kubelet_pods.go makeEnvironmentVariables, pkg/kubelet/envvars.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from longshore.node.kubelet import downward
from longshore.node.kubelet.expansion import expand

Pod = dict[str, Any]
#: (kind "ConfigMap" or "Secret", namespace, name) -> the object, or None when there is none
Lookup = Callable[[str, str, str], Awaitable[dict[str, Any] | None]]

#: (volume, path) -> the file's bytes, None when it is not there
ReadFile = Callable[[str, str], bytes | None]

# What core validation calls a relaxed environment variable name: printable ASCII but "=".
_NAME = re.compile(r"[ -<>-~]+$")


class ConfigError(Exception):
    """A container cannot be configured (reason CreateContainerConfigError); the text is upstream's."""


def service_variables(services: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The SERVICE_HOST, SERVICE_PORT and Docker-links variables of Services, oldest first."""
    found: dict[str, str] = {}
    for service in services:
        spec = service["spec"]
        ip = spec.get("clusterIP")
        if not ip or ip == "None" or not spec.get("ports"):
            continue
        name = service["metadata"]["name"].upper().replace("-", "_")
        found[f"{name}_SERVICE_HOST"] = ip
        found[f"{name}_SERVICE_PORT"] = str(spec["ports"][0]["port"])
        for port in spec["ports"]:
            if port.get("name"):
                found[f"{name}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
        host = f"[{ip}]" if ":" in ip else ip
        for index, port in enumerate(spec["ports"]):
            protocol = port.get("protocol") or "TCP"
            url = f"{protocol.lower()}://{host}:{port['port']}"
            prefix = f"{name}_PORT_{port['port']}_{protocol.upper()}"
            if index == 0:
                found[f"{name}_PORT"] = url
            found[prefix] = url
            found[f"{prefix}_PROTO"] = protocol.lower()
            found[f"{prefix}_PORT"] = str(port["port"])
            found[f"{prefix}_ADDR"] = ip
    return found


def visible_services(services: Iterable[dict[str, Any]], namespace: str, links: bool) -> list[dict[str, Any]]:
    """The Services whose variables a pod of `namespace` sees: always kubernetes, its own namespace's with links."""
    chosen: dict[str, dict[str, Any]] = {}
    for service in sorted(services, key=lambda s: str(s["metadata"].get("creationTimestamp") or "")):
        metadata = service["metadata"]
        if metadata["namespace"] == namespace and links:
            chosen[metadata["name"]] = service
        elif metadata["namespace"] == "default" and metadata["name"] == "kubernetes":
            chosen.setdefault("kubernetes", service)
    return list(chosen.values())


def secret_bytes(secret: Mapping[str, Any], key: str) -> bytes | None:
    """One decoded value of a Secret; None when the key is absent."""
    text = (secret.get("data") or {}).get(key)
    return None if text is None else base64.b64decode(text)


async def environment(
    pod: Pod,
    container: Mapping[str, Any],
    *,
    status: Mapping[str, Any],
    services: Iterable[dict[str, Any]],
    allocatable: Mapping[str, str],
    lookup: Lookup,
    warn: Callable[[str, str], None],
    read_file: ReadFile | None = None,
) -> dict[str, str]:
    """The container's variables in order.

    status: addresses for the downward API. services: all Services known. warn(reason, message): tell an event.
    read_file: reads a file of one of the pod's emptyDir volumes, for fileKeyRef.
    Raises ConfigError when something required is missing.
    """
    namespace = pod["metadata"]["namespace"]
    result: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        result.update(await _whole(source, namespace, lookup, warn))
    links = pod["spec"].get("enableServiceLinks")
    service_env = service_variables(visible_services(services, namespace, links is not False))
    for entry in container.get("env") or ():
        name = entry["name"]
        if entry.get("value"):
            value: str | None = expand(entry["value"], result, service_env)
        elif entry.get("valueFrom"):
            if "fileKeyRef" in entry["valueFrom"]:
                value = _from_file(entry["valueFrom"]["fileKeyRef"], read_file)
            else:
                value = await _one(pod, container, entry["valueFrom"], status, allocatable, lookup)
        else:
            value = ""
        if value is not None:
            # A name that is set again moves to where it is set last.
            result.pop(name, None)
            result[name] = value
    for name, value in service_env.items():
        result.setdefault(name, value)
    return result


def parse_env_file(text: str) -> dict[str, str]:
    """NAME=VALUE lines, single quotes around a value taken off; # begins a comment line. Raises ConfigError."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not _NAME.match(name):
            raise ConfigError(f"invalid environment variable file: line {number}")
        if len(value) > 1 and value[0] == value[-1] == "'":
            value = value[1:-1]
        found[name] = value
    return found


def _from_file(ref: Mapping[str, Any], read_file: ReadFile | None) -> str | None:
    """KEP-3721: a variable from a file that an init container wrote."""
    data = read_file(ref["volumeName"], ref["path"]) if read_file is not None else None
    value = None if data is None else parse_env_file(data.decode("utf-8", "replace")).get(ref["key"])
    if value is None and not ref.get("optional"):
        if data is None:
            raise ConfigError(f"environment variable file {ref['path']!r} not found in volume {ref['volumeName']!r}")
        raise ConfigError(f"environment variable key {ref['key']!r} not found in file {ref['path']!r}")
    return value


async def _whole(
    source: Mapping[str, Any], namespace: str, lookup: Lookup, warn: Callable[[str, str], None]
) -> dict[str, str]:
    kind, ref = (
        ("ConfigMap", source["configMapRef"]) if "configMapRef" in source else ("Secret", source.get("secretRef"))
    )
    if ref is None:
        return {}
    found = await lookup(kind, namespace, ref["name"])
    if found is None:
        if ref.get("optional"):
            return {}
        raise ConfigError(_absent(kind, ref["name"]))
    prefix = source.get("prefix") or ""
    values: dict[str, str] = {}
    bad: list[str] = []
    data = found.get("data") or {}
    for key in sorted(data):
        name = prefix + key
        if not _NAME.match(name):
            bad.append(name)
            continue
        values[name] = data[key] if kind == "ConfigMap" else _text(secret_bytes(found, key) or b"")
    if bad:
        warn(
            "InvalidEnvironmentVariableNames",
            f"Keys [{', '.join(sorted(bad))}] from the EnvFrom {'configMap' if kind == 'ConfigMap' else 'secret'} "
            f"{namespace}/{ref['name']} were skipped since they are considered invalid environment variable names.",
        )
    return values


def _absent(kind: str, name: str) -> str:
    return f'{"configmap" if kind == "ConfigMap" else "secret"} "{name}" not found'


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


async def _one(
    pod: Pod,
    container: Mapping[str, Any],
    source: Mapping[str, Any],
    status: Mapping[str, Any],
    allocatable: Mapping[str, str],
    lookup: Lookup,
) -> str | None:
    namespace = pod["metadata"]["namespace"]
    if "fieldRef" in source:
        try:
            return downward.field(pod, source["fieldRef"]["fieldPath"], status)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if "resourceFieldRef" in source:
        try:
            return downward.resource(pod, source["resourceFieldRef"], container["name"], allocatable)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        if key not in source:
            continue
        ref = source[key]
        found = await lookup(kind, namespace, ref["name"])
        if found is None:
            if ref.get("optional"):
                return None
            raise ConfigError(_absent(kind, ref["name"]))
        if kind == "ConfigMap":
            value = (found.get("data") or {}).get(ref["key"])
        else:
            raw = secret_bytes(found, ref["key"])
            value = None if raw is None else _text(raw)
        if value is None and not ref.get("optional"):
            raise ConfigError(f"couldn't find key {ref['key']} in {kind} {namespace}/{ref['name']}")
        return value
    return ""
