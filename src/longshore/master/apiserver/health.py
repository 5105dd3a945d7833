"""/healthz, /livez and /readyz with their checks, and /version."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from longshore.machinery.http import Request, Response

Check = Callable[[], str]
"""Gives "" when well, otherwise why not."""

VERSION: dict[str, Any] = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.1",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "go1.26",
    "compiler": "gc",
    "platform": f"linux/{ {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(platform.machine(), platform.machine()) }",
}
_HEADERS = (("Cache-Control", "no-cache, private"), ("X-Content-Type-Options", "nosniff"))
_HOOKS = (
    "start-apiserver-admission-initializer",
    "generic-apiserver-start-informers",
    "priority-and-fairness-config-consumer",
    "priority-and-fairness-filter",
    "storage-object-count-tracker-hook",
    "start-apiextensions-informers",
    "start-apiextensions-controllers",
    "crd-informer-synced",
    "start-system-namespaces-controller",
    "peer-endpoint-reconciler-controller",
    "start-cluster-authentication-info-controller",
    "start-kube-apiserver-identity-lease-controller",
    "start-kube-apiserver-identity-lease-garbage-collector",
    "storage-readiness",
    "start-legacy-token-tracking-controller",
    "start-service-ip-repair-controllers",
    "rbac/bootstrap-roles",
    "scheduling/bootstrap-system-priority-classes",
    "priority-and-fairness-config-producer",
    "bootstrap-controller",
    "start-kubernetes-service-cidr-controller",
    "aggregator-reload-proxy-client-cert",
    "start-kube-aggregator-informers",
    "apiservice-status-local-available-controller",
    "apiservice-status-remote-available-controller",
    "apiservice-registration-controller",
    "apiservice-wait-for-first-sync",
    "apiservice-discovery-controller",
    "kube-apiserver-autoregistration",
)
_LATE_HOOKS = ("apiservice-openapi-controller", "apiservice-openapiv3-controller")  # fmt: skip


class Health:
    """The checks by endpoint. `started` turns true when everything that runs once at the start has run."""

    def __init__(self, store_alive: Check) -> None:
        self.started = False
        self.stopping = False
        hooks: dict[str, Check] = {f"poststarthook/{name}": self._started for name in _HOOKS}
        common: dict[str, Check] = {"ping": _well, "log": _well, "etcd": store_alive}
        late: dict[str, Check] = {f"poststarthook/{name}": self._started for name in _LATE_HOOKS}
        last: dict[str, Check] = {**hooks, "autoregister-completion": self._started, **late}
        self.checks: dict[str, dict[str, Check]] = {
            "healthz": {**common, **last, "loopback-serving-certificate": _well},
            "livez": {**common, **last, "loopback-serving-certificate": _well},
            "readyz": {
                **common, "etcd-readiness": store_alive, "informer-sync": self._started, **last, "shutdown": self._stopping,
            },
        }  # fmt: skip

    def add(self, name: str, check: Check) -> None:
        """Another check of all three endpoints, after that of the store."""
        for endpoint, checks in self.checks.items():
            items = list(checks.items())
            at = next(i for i, (each, _) in enumerate(items) if each == "etcd") + 1
            self.checks[endpoint] = dict([*items[:at], (name, check), *items[at:]])

    def _started(self) -> str:
        return "" if self.started else "not finished"

    def _stopping(self) -> str:
        return "process is shutting down" if self.stopping else ""

    def handle(self, request: Request, parts: list[str]) -> Response | None:
        """parts: ["readyz"] or ["readyz", "etcd"] (a hook's name may have slashes)."""
        checks = self.checks[parts[0]]
        name = "/".join(parts[1:])
        if name:
            check = checks.get(name)
            if check is None:
                return None
            why = check()
            if why:
                return Response(500, f"internal server error: {why}\n".encode(), _HEADERS, "text/plain; charset=utf-8")
            return Response(200, b"ok", _HEADERS, "text/plain; charset=utf-8")
        excluded = set(request.query.get("exclude", ()))
        lines, failed = [], []
        for each, check in checks.items():
            if each in excluded:
                excluded.discard(each)
                lines.append(f"[+]{each} excluded: ok")
                continue
            why = check()
            if why:
                failed.append(each)
                lines.append(f"[-]{each} failed: reason withheld")
            else:
                lines.append(f"[+]{each} ok")
        if excluded:
            names = ", ".join(f'"{e}"' for e in sorted(excluded))
            lines.append(f"warn: some health checks cannot be excluded: no matches for {names}")
        if failed:
            lines.append(f"{parts[0]} check failed\n")
            return Response(500, "\n".join(lines).encode(), _HEADERS, "text/plain; charset=utf-8")
        if "verbose" not in request.query:
            return Response(200, b"ok", _HEADERS, "text/plain; charset=utf-8")
        lines.append(f"{parts[0]} check passed\n")
        return Response(200, "\n".join(lines).encode(), _HEADERS, "text/plain; charset=utf-8")

    def paths(self) -> list[str]:
        return [f"/{root}" for root in self.checks] + [f"/{root}/{n}" for root, cs in self.checks.items() for n in cs]


def _well() -> str:
    return ""
