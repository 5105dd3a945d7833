"""Plugins that run programs (exec), and route, which gives an event to several places under other tags."""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longshore.machinery import process
from longshore.node.logs.fluentd import tags
from longshore.node.logs.fluentd.buffer import Chunk
from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.formatters import make_formatter
from longshore.node.logs.fluentd.outputs import Buffered, place
from longshore.node.logs.fluentd.parsers import make_parser
from longshore.node.logs.fluentd.plugin import Output, Source
from longshore.node.logs.fluentd.settings import Field, boolean, seconds, settings, string
from longshore.wire.forward import Event

if TYPE_CHECKING:
    from longshore.node.logs.fluentd.pipeline import Context

log = logging.getLogger("longshore.fluentd.programs")


class ExecSource(Source):
    """The lines that a command writes, run once or again and again."""

    NAME = "exec"
    SEVERAL = False
    FIELDS = {
        "command": Field(string, None, True),
        "tag": Field(string, None, True),
        "run_interval": Field(seconds, 0.0),
    }
    SECTIONS = frozenset({"parse"})

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        section = element.one("parse")
        if section is None:
            raise element.error("<parse> section is required")
        self._parse, _ = make_parser(section)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            try:
                done = await process.run(["/bin/sh", "-c", self.set["command"]])
                lines = done.stdout.decode("utf-8", "replace").splitlines()
                events = [event for line in lines if (event := self._parse(line)) is not None]
                if events:
                    await self.emit(self.set["tag"], events)
            except (OSError, process.ProcessFailed) as error:
                log.warning("%s: %s", self.id, error)
            if not self.set["run_interval"]:
                return
            await asyncio.sleep(self.set["run_interval"])

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class ExecOutput(Buffered):
    """Runs a command for each chunk, the name of a file with its events as the last argument."""

    NAME = "exec"
    FIELDS = {"command": Field(string, None, True), "command_timeout": Field(seconds, 270.0)}

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        self._format = make_formatter(element.one("format"), "json")

    async def write(self, chunk: Chunk) -> None:
        path = chunk.path.with_suffix(".exec")
        path.write_bytes(b"".join(self._format(chunk.tag, when, record) for when, record in chunk.events()))
        try:
            command = f"{place(self.set['command'], chunk, self.buffer.zone)} {shlex.quote(str(path))}"
            async with asyncio.timeout(self.set["command_timeout"]):
                await process.run(["/bin/sh", "-c", command])
        except process.ProcessFailed as error:
            raise OSError(str(error)) from error
        finally:
            path.unlink(missing_ok=True)


class RouteOutput(Output):
    """<route PATTERN> sections in turn: a matching event goes on under another tag or label, and on to the next with `copy`."""

    NAME = "route"
    FIELDS = {"remove_tag_prefix": Field(string, ""), "add_tag_prefix": Field(string, "")}
    SECTIONS = frozenset({"route"})
    _ROUTE = {**FIELDS, "copy": Field(boolean, False)}

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        self._routes = [
            (tags.matcher(child.argument), settings(child, self._ROUTE), child.text("@label"))
            for child in element.all("route")
        ]
        if not self._routes:
            raise element.error("at least one <route> is required")

    async def take(self, tag: str, events: Sequence[Event], *, durable: bool) -> None:
        for matches, found, label in self._routes:
            if not matches(tag):
                continue
            changed = tag
            for rule in (self.set, found):
                if rule["remove_tag_prefix"]:
                    changed = changed.removeprefix(rule["remove_tag_prefix"] + ".")
                if rule["add_tag_prefix"]:
                    changed = f"{rule['add_tag_prefix']}.{changed}"
            await self.context.emit(label, changed, events, durable=durable)
            self.records += len(events)
            if not found["copy"]:
                return
