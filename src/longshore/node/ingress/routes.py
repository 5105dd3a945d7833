"""Where a request goes: Ingresses, Services and slices as a table of hosts and paths. Pure.

Source: kubernetes.io "Ingress" (hosts, wildcards, path types, multiple matches, default backend, TLS).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

Object = dict[str, Any]

CONTROLLER = "longshore.io/ingress"
CLASS_NAME = "longshore"
CLASS_ANNOTATION = "kubernetes.io/ingress.class"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"


class Backend(NamedTuple):
    """A Service's port, by number or by name."""

    namespace: str
    service: str
    port: int | str


class Path(NamedTuple):
    exact: bool
    parts: tuple[str, ...]
    text: str
    backend: Backend

    def matches(self, path: str, parts: tuple[str, ...]) -> bool:
        if self.exact:
            return path == self.text
        return parts[: len(self.parts)] == self.parts


@dataclass(frozen=True, slots=True)
class Entry:
    """One Ingress as far as it is ours."""

    key: str
    rules: tuple[tuple[str, tuple[Path, ...]], ...]
    default: Backend | None
    tls: tuple[tuple[str, str], ...]
    """(host, namespace/secret); host "" for every host of the Ingress."""
    created: str


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part)


def _backend(namespace: str, backend: Object | None) -> Backend | None:
    service = (backend or {}).get("service")
    if not service or not service.get("name"):
        return None
    port = service.get("port") or {}
    return Backend(namespace, service["name"], port.get("number") or port.get("name") or 0)


def entry_of(obj: Object) -> Entry:
    """An Ingress read."""
    metadata, spec = obj["metadata"], obj.get("spec") or {}
    namespace = metadata["namespace"]
    rules: list[tuple[str, tuple[Path, ...]]] = []
    for rule in spec.get("rules") or ():
        paths: list[Path] = []
        for item in (rule.get("http") or {}).get("paths") or ():
            backend = _backend(namespace, item.get("backend"))
            if backend is not None:
                text = item.get("path") or "/"
                paths.append(Path(item.get("pathType") == "Exact", _parts(text), text, backend))
        rules.append(((rule.get("host") or "").lower(), tuple(paths)))
    tls = tuple(
        (host.lower(), f"{namespace}/{item['secretName']}")
        for item in spec.get("tls") or ()
        if item.get("secretName")
        for host in item.get("hosts") or [""]
    )
    default = _backend(namespace, spec.get("defaultBackend"))
    return Entry(f"{namespace}/{metadata['name']}", tuple(rules), default, tls, metadata.get("creationTimestamp") or "")


class Routes:
    """The table of all Ingresses of our class, and the endpoints behind their Services."""

    def __init__(self) -> None:
        self._objects: dict[str, Object] = {}
        self._classes: dict[str, bool] = {}
        self._entries: dict[str, Entry] = {}
        self._hosts: dict[str, list[Path]] = {}
        self._defaults: list[Backend] = []
        self._host_defaults: dict[str, Backend] = {}
        self._services: dict[str, Object] = {}
        self._slices: dict[str, dict[str, Object]] = {}
        self._turn = itertools.count()
        self.changed: Callable[[], None] = lambda: None

    # What the API server says.

    def ingress(self, obj: Object) -> None:
        self._objects[_key(obj)] = obj
        self._build()

    def ingress_gone(self, obj: Object) -> None:
        self._objects.pop(_key(obj), None)
        self._build()

    def ingress_class(self, obj: Object) -> None:
        self._classes[obj["metadata"]["name"]] = (obj.get("spec") or {}).get("controller") == CONTROLLER
        self._build()

    def ingress_class_gone(self, obj: Object) -> None:
        self._classes.pop(obj["metadata"]["name"], None)
        self._build()

    def service(self, obj: Object) -> None:
        self._services[_key(obj)] = obj

    def service_gone(self, obj: Object) -> None:
        self._services.pop(_key(obj), None)

    def slice(self, obj: Object) -> None:
        owner = (obj["metadata"].get("labels") or {}).get(SERVICE_NAME_LABEL)
        if owner:
            key = f"{obj['metadata']['namespace']}/{owner}"
            self._slices.setdefault(key, {})[obj["metadata"]["name"]] = obj

    def slice_gone(self, obj: Object) -> None:
        owner = (obj["metadata"].get("labels") or {}).get(SERVICE_NAME_LABEL)
        key = f"{obj['metadata']['namespace']}/{owner}"
        slices = self._slices.get(key)
        if slices is not None:
            slices.pop(obj["metadata"]["name"], None)
            if not slices:
                del self._slices[key]

    def is_ours(self, obj: Object) -> bool:
        """Whether an Ingress names our class (by its controller, or by the old annotation)."""
        name = (obj.get("spec") or {}).get("ingressClassName")
        if name:
            return self._classes.get(name, False)
        annotations = obj["metadata"].get("annotations") or {}
        return bool(annotations.get(CLASS_ANNOTATION) == CLASS_NAME)

    def _build(self) -> None:
        self._entries = {key: entry_of(obj) for key, obj in self._objects.items() if self.is_ours(obj)}
        hosts: dict[str, list[Path]] = {}
        self._defaults, self._host_defaults = [], {}
        # The oldest Ingress wins where two say the same.
        for entry in sorted(self._entries.values(), key=lambda e: (e.created, e.key)):
            for host, paths in entry.rules:
                hosts.setdefault(host, []).extend(paths)
                if entry.default is not None:
                    self._host_defaults.setdefault(host, entry.default)
                if not paths and entry.default is not None:
                    hosts[host].append(Path(False, (), "/", entry.default))
            if entry.default is not None and not entry.rules:
                self._defaults.append(entry.default)
        for candidates in hosts.values():
            # The longest path wins, an exact one before a prefix of the same length; the sort keeps the order of age.
            candidates.sort(key=lambda p: (-len(p.parts), not p.exact))
        self._hosts = hosts
        self.changed()

    # What requests ask.

    @property
    def entries(self) -> list[tuple[Entry, Object]]:
        return [(entry, self._objects[key]) for key, entry in self._entries.items()]

    def find(self, host: str, path: str) -> Backend | None:
        """The backend of a request; None when no Ingress wants it. host: lower case, without a port."""
        parts = _parts(path)
        wild = "*." + host.partition(".")[2]
        for name in (host, wild, ""):
            for candidate in self._hosts.get(name, ()):
                if candidate.matches(path, parts):
                    return candidate.backend
            if name in self._hosts and name in self._host_defaults:
                return self._host_defaults[name]
        return self._defaults[0] if self._defaults else None

    def targets(self, backend: Backend) -> list[str]:
        """ "address:port" of every usable endpoint, beginning with another one each time."""
        service = self._services.get(f"{backend.namespace}/{backend.service}")
        if service is None:
            return []
        spec = service.get("spec") or {}
        ports = spec.get("ports") or ()
        port = next((p for p in ports if backend.port in (p.get("port"), p.get("name"))), None)
        if spec.get("type") == "ExternalName":
            number = port["port"] if port else backend.port
            return [f"{spec['externalName']}:{number}"] if spec.get("externalName") and isinstance(number, int) else []
        if port is None:
            return []
        name = port.get("name") or ""
        found: list[str] = []
        for slice_ in self._slices.get(f"{backend.namespace}/{backend.service}", {}).values():
            number = next((p.get("port") for p in slice_.get("ports") or () if (p.get("name") or "") == name), None)
            if number is None or slice_.get("addressType") == "FQDN":
                continue
            for endpoint in slice_.get("endpoints") or ():
                if (endpoint.get("conditions") or {}).get("ready") is not False:
                    address = endpoint["addresses"][0]
                    found.append(f"[{address}]:{number}" if ":" in address else f"{address}:{number}")
        if len(found) > 1:
            turn = next(self._turn) % len(found)
            found = found[turn:] + found[:turn]
        return found

    def secret_for(self, host: str) -> str:
        """namespace/name of the Secret with a host's certificate; "" when none is named."""
        wild = "*." + host.partition(".")[2]
        for name in (host, wild):
            for entry in self._entries.values():
                for tls_host, secret in entry.tls:
                    if tls_host == name or (tls_host == "" and any(h == name for h, _ in entry.rules)):
                        return secret
        return ""

    @property
    def wants_secrets(self) -> bool:
        return any(entry.tls for entry in self._entries.values())


def _key(obj: Object) -> str:
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
