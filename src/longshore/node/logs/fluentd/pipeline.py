"""A configuration as a running pipeline: sources, then at each label the filters and the first output that match."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from longshore.client.rest import Client
from longshore.node.logs.fluentd import plugins, tags
from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.plugin import Filter, Output, Plugin, Source
from longshore.node.logs.fluentd.system import has, own_number, system_of
from longshore.node.logs.store.store import LogStore
from longshore.wire.forward import Event

log = logging.getLogger("longshore.fluentd")
_P = TypeVar("_P", bound=Plugin)
ERROR_LABEL = "@ERROR"


@dataclass(slots=True)
class _Label:
    """The filters and outputs of a label in their order, and which of them each tag meets."""

    steps: list[tuple[Callable[[str], bool], Filter | Output]] = field(default_factory=list)
    routes: dict[str, tuple[list[Filter], Output | None]] = field(default_factory=dict)

    def route(self, tag: str) -> tuple[list[Filter], Output | None]:
        found = self.routes.get(tag)
        if found is None:
            filters: list[Filter] = []
            output: Output | None = None
            for matches, plugin in self.steps:
                if not matches(tag):
                    continue
                if isinstance(plugin, Output):
                    output = plugin
                    break
                if isinstance(plugin, Filter):
                    filters.append(plugin)
            if len(self.routes) >= 10_000:
                self.routes.clear()
            found = self.routes[tag] = (filters, output)
        return found


class Context:
    """What plugins have in common: where events go on, where buffers lie, the node's store where there is one."""

    def __init__(
        self, folder: Path, store: LogStore | None, node: str, *, worker: int = 0, api: Client | None = None
    ) -> None:
        """folder: of buffers; store: of the node, if there is one; worker: this process's number; api: the cluster's API server."""
        self.folder = folder
        self.store = store
        self.node = node
        self.worker = worker
        self.workers = 1
        self.api = api
        self._labels: dict[str, _Label] = {"": _Label()}
        self.plugins: list[tuple[str, Plugin]] = []
        self._warned: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.sources: list[Source] = []
        self.outputs: list[Output] = []
        self._in_worker = False

    async def emit(self, label: str, tag: str, events: Sequence[Event], *, durable: bool) -> None:
        """Put events through a label. Raises OSError when their output cannot keep them."""
        there = self._labels[label]
        filters, output = there.route(tag)
        try:
            await self._through(filters, output, tag, events, durable)
        except RecursionError:
            raise OSError(f"labels lead in a circle for tag {tag!r}") from None

    async def _through(
        self, filters: Sequence[Filter], output: Output | None, tag: str, events: Sequence[Event], durable: bool
    ) -> None:
        for plugin in filters:
            plugin.records_in += len(events)
            if plugin.PREPARES:
                await plugin.prepare(tag, events)
            events = plugin.filter(tag, events)
            plugin.records += len(events)
            if not events:
                return
        if output is None:
            if tag not in self._warned and len(self._warned) < 1000:
                self._warned.add(tag)
                log.warning("no patterns matched tag=%r", tag)
            return
        await output.take(tag, events, durable=durable)

    def resume(self, plugin: Filter, tag: str, events: Sequence[Event], label: str = "") -> None:
        """Let events that a filter held go on behind it, or at another label."""
        if label:
            self._soon(self.emit(label, tag, events, durable=True))
            return
        for there in self._labels.values():
            filters, output = there.route(tag)
            if plugin in filters:
                self._soon(self._through(filters[filters.index(plugin) + 1 :], output, tag, events, True))
                return

    def error(self, tag: str, events: Sequence[Event], why: str) -> None:
        """Events that a plugin could make nothing of: to @ERROR when there is such a label, else to the log."""
        if ERROR_LABEL in self._labels:
            self._soon(self.emit(ERROR_LABEL, tag, events, durable=True))
        else:
            log.warning("dump an error event: %s tag=%r record=%.200r", why, tag, events[0][1])

    def _soon(self, coroutine: Any) -> None:
        async def run() -> None:
            try:
                await coroutine
            except OSError as error:
                log.error("events are lost: %s", error)

        task = asyncio.ensure_future(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def output(self, element: Element, default: str = "") -> Output:
        """An output from a <match>, <store> or <secondary>. Raises ConfigError."""
        return self._make("output", plugins.OUTPUTS, element, default)

    def _make(self, what: str, kinds: Sequence[type[_P]], element: Element, default: str = "") -> _P:
        name = element.text("@type", default)
        if not name:
            raise element.error(f"Missing '@type' parameter on <{element.name}> directive")
        for kind in kinds:
            if name == kind.NAME:
                if self.workers > 1 and not kind.SEVERAL and not self._in_worker:
                    raise element.error(f"Plugin '{name}' does not support multi workers configuration", "@type")
                made = kind(element, self)
                self.plugins.append((what, made))
                return made
        raise element.error(f"Unknown {what} plugin '{name}'", "@type")

    def figures(self) -> list[dict[str, Any]]:
        """What in_monitor_agent tells."""
        return [
            {
                "plugin_id": plugin.id,
                "plugin_category": what,
                "type": plugin.NAME,
                "output_plugin": what == "output",
                "emit_records": plugin.records,
                **({"input_records": plugin.records_in} if isinstance(plugin, Filter) else {}),
                **plugin.figures(),
            }
            for what, plugin in self.plugins
        ]

    def build(self, root: Element) -> None:
        """Make every plugin of a configuration that this worker has. Raises ConfigError."""
        system = system_of(root)
        self.workers = system.workers
        if system.root_dir:
            self.folder = system.root_dir
        if self.workers > 1 or system.root_dir:
            self.folder /= f"worker{self.worker}"
        self._build(root)
        if system.without_source:
            self.sources.clear()
        for _, plugin in self.plugins:
            label_name = plugin.element.text("@label")
            if label_name and label_name not in self._labels:
                raise plugin.element.error(f"{label_name} label not found", "@label")

    def _build(self, root: Element) -> None:
        for name, value in root.parameters.items():
            del value
            raise root.error(f"unknown parameter '{name}' outside of a directive", name)
        for label in root.all("label"):
            if not label.argument.startswith("@") or label.argument in self._labels:
                raise label.error(f"bad or repeated label {label.argument!r}")
            self._labels[label.argument] = _Label()
        for element in root.children:
            if element.name == "source":
                self.sources.append(self._make("input", plugins.SOURCES, element))
            elif element.name in ("filter", "match"):
                self._step("", element)
            elif element.name == "label":
                for child in element.children:
                    if child.name not in ("filter", "match"):
                        raise child.error(f"unknown directive '<{child.name}>' in <label>")
                    self._step(element.argument, child)
            elif element.name == "worker":
                if has(element, self.worker, self.workers):
                    self._in_worker = True
                    self._build(Element("ROOT", "", element.file, element.line, {}, element.children))
                    self._in_worker = False
            elif element.name != "system":
                raise element.error(f"unknown directive '<{element.name}>'")

    def _step(self, label: str, element: Element) -> None:
        try:
            matches = tags.matcher(element.argument)
        except ValueError as error:
            raise element.error(str(error)) from None
        made: Filter | Output
        if element.name == "filter":
            made = self._make("filter", plugins.FILTERS, element)
        else:
            made = self.output(element)
            self.outputs.append(made)
        self._labels[label].steps.append((matches, made))

    async def start(self) -> None:
        """Outputs first, sources last. Raises OSError."""
        for output in self.outputs:
            await output.start()
        for source in self.sources:
            await source.start()

    async def close(self) -> None:
        """Sources first; what is buffered stays on disk."""
        for source in self.sources:
            await source.close()
        for what, plugin in self.plugins:
            if what == "filter":
                await plugin.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for output in self.outputs:
            await output.close()


async def run(
    root: Element, folder: Path, store: LogStore | None = None, node: str = "", api: Client | None = None
) -> None:
    """Build a configuration's pipeline and run it until cancelled. Raises ConfigError, OSError."""
    context = Context(folder, store, node, worker=own_number(), api=api)
    context.build(root)
    try:
        await context.start()
        log.info(
            "fluentd configuration %s: %d sources, %d outputs", root.file, len(context.sources), len(context.outputs)
        )
        await asyncio.get_running_loop().create_future()
    finally:
        await context.close()
