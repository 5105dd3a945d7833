"""Every plugin there is. A user's own one is a class as these are, added to the list that it belongs to."""

from __future__ import annotations

from longshore.node.logs.fluentd import exceptions, filters, kubernetes, monitor, outputs, programs, sources, tail
from longshore.node.logs.fluentd.plugin import Filter, Output, Source

SOURCES: list[type[Source]] = [
    tail.TailSource,
    sources.ForwardSource,
    sources.HTTPSource,
    sources.SyslogSource,
    sources.TCPSource,
    sources.UDPSource,
    programs.ExecSource,
    sources.SampleSource,
    sources.DummySource,
    monitor.MonitorAgent,
    monitor.PrometheusSource,
]

FILTERS: list[type[Filter]] = [
    filters.RecordTransformer,
    filters.Grep,
    filters.ParserFilter,
    filters.StdoutFilter,
    kubernetes.KubernetesMetadata,
    filters.Concat,
    filters.Throttle,
    exceptions.DetectExceptions,
]

OUTPUTS: list[type[Output]] = [
    outputs.StoreOutput,
    outputs.ForwardOutput,
    outputs.FileOutput,
    outputs.StdoutOutput,
    outputs.HTTPOutput,
    programs.ExecOutput,
    outputs.CopyOutput,
    programs.RouteOutput,
    outputs.RelabelOutput,
    outputs.NullOutput,
]
