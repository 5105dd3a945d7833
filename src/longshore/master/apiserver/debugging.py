"""Paths for the people who run the server: /metrics, /debug, /flagz and /statusz."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

import orjson

from longshore.machinery.errors import not_acceptable
from longshore.machinery.http import Request, Response
from longshore.master.apiserver import rendering
from longshore.master.apiserver.health import VERSION
from longshore.master.apiserver.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from longshore.master.apiserver.server import APIServer

_SNIFF = ("X-Content-Type-Options", "nosniff")
_TEXT = "text/plain; charset=utf-8"
_Z_MEDIA = ("application/json", "application/yaml", "text/plain")


class Debugging:
    """Handlers by the first part of the path."""

    def __init__(self, server: APIServer) -> None:
        self.server = server
        server.path_handlers |= {
            "metrics": self.metrics, "debug": self.debug, "flagz": self.flagz, "statusz": self.statusz,
        }  # fmt: skip

    def metrics(self, request: Request, parts: list[str]) -> Response | None:
        metrics = self.server.metrics
        if parts == ["metrics"]:
            return Response(200, metrics.text().encode(), (rendering.NO_STORE,), CONTENT_TYPE)
        if parts == ["metrics", "slis"]:
            text = metrics.slis(self.server.health.checks)
            return Response(200, text.encode(), (rendering.NO_STORE,), CONTENT_TYPE)
        return None

    def debug(self, request: Request, parts: list[str]) -> Response | None:
        name = "/".join(parts[1:])
        if name == "pprof":
            links = "".join(f'<li><a href="{n}">{n}</a></li>' for n in ("goroutine", "cmdline"))
            page = f"<html><head><title>/debug/pprof/</title></head><body><ul>{links}</ul></body></html>"
            return Response(200, page.encode(), (rendering.NO_STORE, _SNIFF), "text/html; charset=utf-8")
        if name == "pprof/cmdline":
            return Response(200, "\0".join(sys.argv).encode(), (rendering.NO_STORE, _SNIFF), _TEXT)
        if name == "pprof/goroutine":
            return Response(200, _stacks().encode(), (rendering.NO_STORE, _SNIFF), _TEXT)
        if name.startswith("api_priority_and_fairness/"):
            text = self.server.fairness.dump(parts[2]) if len(parts) == 3 else None
            return None if text is None else Response(200, text.encode(), (rendering.NO_STORE,), _TEXT)
        return None

    def flagz(self, request: Request, parts: list[str]) -> Response | None:
        config = self.server.config
        values = {name: str(getattr(config, name)) for name in config.__slots__ if name != "extra"}
        return self._page(request, parts, "Flagz", {name.replace("_", "-"): value for name, value in values.items()})

    def statusz(self, request: Request, parts: list[str]) -> Response | None:
        up = int(time.time() - self.server.metrics.started)
        values = {
            "startTime": str(int(self.server.metrics.started)),
            "uptimeSeconds": str(up),
            "binaryVersion": VERSION["gitVersion"],
        }
        return self._page(request, parts, "Statusz", values)

    def _page(self, request: Request, parts: list[str], kind: str, values: dict[str, str]) -> Response | None:
        if len(parts) != 1:
            return None
        accept = request.headers.get("accept") or "*/*"
        if "text/plain" in accept or "*/*" in accept:
            lines = "".join(f"{k}={v}\n" for k, v in values.items())
            return Response(200, f"kube-apiserver {kind.lower()}\n\n{lines}".encode(), (rendering.NO_STORE,), _TEXT)
        if "g=config.k8s.io" in accept:
            document = {
                "kind": kind,
                "apiVersion": "config.k8s.io/v1alpha1",
                "metadata": {"name": "kube-apiserver"},
                **values,
            }
            return Response(200, orjson.dumps(document), (rendering.NO_STORE,), "application/json")
        raise not_acceptable(_Z_MEDIA)


def _stacks() -> str:
    names = {t.ident: t.name for t in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {names.get(ident, ident)}\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)
