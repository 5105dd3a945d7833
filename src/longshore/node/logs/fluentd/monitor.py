"""What a pipeline tells of itself: in_monitor_agent's JSON, and Prometheus figures under fluent-plugin-prometheus' names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from longshore.client.metrics import Collector, Sample
from longshore.machinery.http import Request, Response, Server
from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.plugin import Filter, Output, Source
from longshore.node.logs.fluentd.settings import Field, integer, string

if TYPE_CHECKING:
    from longshore.node.logs.fluentd.pipeline import Context

_PLAIN = "text/plain; charset=utf-8"
#: A plugin's figure -> kind, name and help of the sample.
_FIGURES = {
    "buffer_queue_length": ("gauge", "fluentd_output_status_buffer_queue_length", "Chunks that wait to be written"),
    "buffer_stage_length": ("gauge", "fluentd_output_status_buffer_stage_length", "Chunks that still grow"),
    "buffer_total_queued_size": ("gauge", "fluentd_output_status_buffer_total_bytes", "Octets in the buffer"),
    "buffer_available_buffer_space_ratios": (
        "gauge", "fluentd_output_status_buffer_available_space_ratio", "Free part of the buffer, percent",
    ),
    "retry_count": ("gauge", "fluentd_output_status_retry_count", "Tries of the chunk that fails now"),
    "num_errors": ("counter", "fluentd_output_status_num_errors", "Writes that failed, and refusals to take more"),
    "rollback_count": ("counter", "fluentd_output_status_rollback_count", "Chunks put back after a failed write"),
    "write_count": ("counter", "fluentd_output_status_write_count", "Chunks written"),
    "overflow_count": ("counter", "fluentd_output_status_overflow_count", "How often the buffer was full"),
    "dropped_records": ("counter", "fluentd_status_dropped_records", "Records dropped by rule"),
    "resent_records": (
        "counter", "fluentd_output_status_resent_records", "Records that the other side may have twice",
    ),
}  # fmt: skip


def samples(context: Context) -> Iterator[Sample]:
    """Every figure of a pipeline's plugins."""
    for _what, plugin in context.plugins:
        labels = {"plugin_id": plugin.id, "type": plugin.NAME, "worker_id": str(context.worker)}
        if isinstance(plugin, Source):
            yield Sample("fluentd_input_status_num_records", "counter", "Records taken in", labels, plugin.records)
        elif isinstance(plugin, Filter):
            yield Sample("fluentd_filter_status_records_in", "counter", "Records before", labels, plugin.records_in)
            yield Sample("fluentd_filter_status_records_out", "counter", "Records behind", labels, plugin.records)
        elif isinstance(plugin, Output):
            yield Sample("fluentd_output_status_emit_records", "counter", "Records taken", labels, plugin.records)
        for name, value in plugin.figures().items():
            if name in _FIGURES:
                kind, shown, words = _FIGURES[name]
                yield Sample(shown, kind, words, labels, float(value))


class _Page(Source):
    """A page over HTTP; a worker's port is the configured one and its number, as upstream has it."""

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        self._server = Server(self._answer)
        self.port: int = self.set["port"]

    def _answer(self, request: Request) -> Response:
        raise NotImplementedError

    async def start(self) -> None:
        port = self.port + self.context.worker if self.port else 0
        self.port = await self._server.listen_tcp(self.set["bind"], port)

    async def close(self) -> None:
        await self._server.close()


class MonitorAgent(_Page):
    """What every plugin has done, as JSON at /api/plugins.json."""

    NAME = "monitor_agent"
    FIELDS = {"port": Field(integer, 24220), "bind": Field(string, "0.0.0.0"), "tag": Field(string, "")}

    def _answer(self, request: Request) -> Response:
        if request.path != "/api/plugins.json":
            return Response(404, b"Not Found\n", content_type=_PLAIN)
        return Response.json({"plugins": self.context.figures()})


class PrometheusSource(_Page):
    """The same as Prometheus text at `metrics_path`."""

    NAME = "prometheus"
    FIELDS = {
        "port": Field(integer, 24231),
        "bind": Field(string, "0.0.0.0"),
        "metrics_path": Field(string, "/metrics"),
    }

    def _answer(self, request: Request) -> Response:
        if request.path != self.set["metrics_path"]:
            return Response(404, b"Not Found\n", content_type=_PLAIN)
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collector(lambda: samples(self.context)))
        return Response(200, generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
