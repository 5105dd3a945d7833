"""Every plugin there is. A user's own one is a class as these are, added to the list that it belongs to."""

from __future__ import annotations

from longshore.node.logs.fluentd import filters, outputs, sources
from longshore.node.logs.fluentd.plugin import Filter, Output, Source

SOURCES: list[type[Source]] = [
    sources.TailSource,
    sources.ForwardSource,
    sources.HTTPSource,
    sources.SyslogSource,
    sources.TCPSource,
    sources.SampleSource,
    sources.DummySource,
    sources.MonitorAgent,
]

FILTERS: list[type[Filter]] = [
    filters.RecordTransformer,
    filters.Grep,
    filters.ParserFilter,
    filters.StdoutFilter,
    filters.KubernetesMetadata,
    filters.Concat,
    filters.Throttle,
]

OUTPUTS: list[type[Output]] = [
    outputs.StoreOutput,
    outputs.ForwardOutput,
    outputs.FileOutput,
    outputs.StdoutOutput,
    outputs.HTTPOutput,
    outputs.CopyOutput,
    outputs.RelabelOutput,
    outputs.NullOutput,
]
