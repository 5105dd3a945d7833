"""/metrics under upstream's names. Kept as plain numbers: counting a request costs a dictionary access, not a library call."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any

from longshore.machinery.http import Request, Response
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.health import VERSION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
_SECONDS = (0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60)
_SIZES = tuple(1000.0 * 10**i for i in range(7))
_VERBS = {"get": "GET", "list": "LIST", "watch": "WATCH", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE", "deletecollection": "DELETECOLLECTION"}  # fmt: skip
_CONNECT = frozenset(("exec", "attach", "portforward", "proxy"))
Labels = tuple[str, ...]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _line(name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
    shown = ",".join(f'{k}="{_escape(v)}"' for k, v in labels)
    number = str(int(value)) if float(value).is_integer() else repr(float(value))
    return f"{name}{{{shown}}} {number}" if shown else f"{name} {number}"


class Histogram:
    """Counts by bucket for one set of labels."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: list[tuple[str, str]]) -> list[str]:
        out, total = [], 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            total += count
            shown = str(int(bound)) if float(bound).is_integer() else repr(bound)
            out.append(_line(name + "_bucket", [*labels, ("le", shown)], total))
        total += self.counts[-1]
        out.append(_line(name + "_bucket", [*labels, ("le", "+Inf")], total))
        return [*out, _line(name + "_sum", labels, self.sum), _line(name + "_count", labels, total)]


class Metrics:
    """What the server counts. `gauges`: name -> (help, function that gives (labels, value) pairs)."""

    def __init__(self) -> None:
        self.requests: dict[Labels, int] = {}
        self.durations: dict[Labels, Histogram] = {}
        self.sizes: dict[Labels, Histogram] = {}
        self.long_running: dict[Labels, int] = {}
        self.counters: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        self.gauges: dict[str, tuple[str, Callable[[], Iterable[tuple[list[tuple[str, str]], float]]]]] = {}
        self.started = time.time()
        self._labels: dict[tuple[Any, str, str, bool], Labels] = {}

    def count(self, name: str, labels: tuple[tuple[str, str], ...] = (), amount: float = 1) -> None:
        """Add to a counter (its name as upstream's)."""
        held = self.counters.setdefault(name, {})
        held[labels] = held.get(labels, 0) + amount

    def labels_of(self, call: Call) -> Labels:
        """verb, group, version, resource, subresource, scope."""
        info = call.info
        key = (call.endpoint, call.verb, info.subresource, bool(info.name))
        found = self._labels.get(key)
        if found is None:
            endpoint = call.endpoint
            verb = "CONNECT" if info.subresource in _CONNECT else _VERBS.get(call.verb, call.verb.upper())
            scope = "resource" if info.name or call.verb == "create" else "namespace" if info.namespace else "cluster"
            found = (verb, endpoint.group, endpoint.version, endpoint.plural, info.subresource, scope)
            if len(self._labels) < 10000:
                self._labels[key] = found
        return found

    def record(self, request: Request, response: Response | None, began: float, status: int = 0) -> None:
        """A request has been answered."""
        call = request.context
        labels = self.labels_of(call) if isinstance(call, Call) else (request.method, "", "", "", "", "")
        code = str(response.status if response is not None else status or 200)
        key = (*labels, code)
        requests = self.requests
        requests[key] = requests.get(key, 0) + 1
        durations = self.durations.get(labels)
        if durations is None:
            durations = self.durations[labels] = Histogram(_SECONDS)
        durations.observe(time.perf_counter() - began)
        if response is not None:
            body = response.body
            size = len(body) if isinstance(body, bytes) else sum(map(len, body))
            sizes = self.sizes.get(labels)
            if sizes is None:
                sizes = self.sizes[labels] = Histogram(_SIZES)
            sizes.observe(size)

    def text(self) -> str:
        """Everything in Prometheus' text format."""
        out: list[str] = []

        def head(name: str, kind: str, text: str) -> None:
            out.append(f"# HELP {name} {text}")
            out.append(f"# TYPE {name} {kind}")

        names = ("verb", "group", "version", "resource", "subresource", "scope")
        head("apiserver_request_total", "counter", "[STABLE] Requests by verb, resource, scope and answer.")
        for key, value in self.requests.items():
            labels = [("code", key[6]), ("component", "apiserver"), ("dry_run", "")]
            out.append(_line("apiserver_request_total", sorted([*labels, *zip(names, key, strict=False)]), value))
        for name, held, text in (
            ("apiserver_request_duration_seconds", self.durations, "[STABLE] Time until the answer, in seconds."),
            ("apiserver_response_sizes", self.sizes, "[STABLE] Size of the answers, in bytes."),
        ):
            head(name, "histogram", text)
            for group, histogram in held.items():
                out += histogram.lines(name, sorted([("component", "apiserver"), *zip(names, group, strict=True)]))
        for name, values in sorted(self.counters.items()):
            head(name, "counter", "[ALPHA] See the Kubernetes metrics reference.")
            out += [_line(name, labels, value) for labels, value in values.items()]
        for name, (text, give) in sorted(self.gauges.items()):
            head(name, "gauge", text)
            out += [_line(name, labels, value) for labels, value in give()]
        out += self._process()
        return "\n".join(out) + "\n"

    def _process(self) -> list[str]:
        build = [(k, str(VERSION[f])) for k, f in (
            ("build_date", "buildDate"), ("compiler", "compiler"), ("git_commit", "gitCommit"), ("git_tree_state", "gitTreeState"),
            ("git_version", "gitVersion"), ("go_version", "goVersion"), ("major", "major"), ("minor", "minor"), ("platform", "platform"),
        )]  # fmt: skip
        out = ["# HELP kubernetes_build_info [ALPHA] What this server is.", "# TYPE kubernetes_build_info gauge"]
        out.append(_line("kubernetes_build_info", build, 1))
        times = os.times()
        with open("/proc/self/statm") as file:
            pages = file.read().split()
        size = os.sysconf("SC_PAGE_SIZE")
        values = {
            "process_cpu_seconds_total": times.user + times.system,
            "process_resident_memory_bytes": int(pages[1]) * size,
            "process_virtual_memory_bytes": int(pages[0]) * size,
            "process_open_fds": len(os.listdir("/proc/self/fd")),
            "process_start_time_seconds": self.started,
        }
        for name, value in values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            out += [f"# HELP {name} Of this process.", f"# TYPE {name} {kind}", _line(name, (), value)]
        return out

    def slis(self, checks: dict[str, dict[str, Callable[[], str]]]) -> str:
        """/metrics/slis: each health check as a gauge."""
        out = [
            "# HELP kubernetes_healthcheck [STABLE] The state of a health check.",
            "# TYPE kubernetes_healthcheck gauge",
        ]
        for kind, named in checks.items():
            for name, check in named.items():
                out.append(_line("kubernetes_healthcheck", [("name", name), ("type", kind)], 0 if check() else 1))
        return "\n".join(out) + "\n"
