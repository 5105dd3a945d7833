"""detect_exceptions: the lines of a stack trace become one event. Source: the README of fluent-plugin-detect-exceptions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.filters import accessor
from longshore.node.logs.fluentd.formatters import text_of
from longshore.node.logs.fluentd.plugin import Filter
from longshore.node.logs.fluentd.settings import Field, array, integer, seconds, string
from longshore.wire.forward import Event

if TYPE_CHECKING:
    from longshore.node.logs.fluentd.pipeline import Context

#: language -> (how a trace begins, how it goes on, the line that ends it and belongs to it).
TRACES: dict[str, tuple[str, str, str]] = {
    "java": (
        r"(?:Exception|Error|Throwable|V8 errors stack trace)[:\r\n]|(?:Exception|Error|Throwable)$",
        r"^[\t ]+(?:eval )?at |^[\t ]*(?:Caused by|Suppressed):|^[\t ]*\.\.\. \d+ (?:more|common frames omitted)",
        r"(?!)",
    ),
    "python": (r"^Traceback \(most recent call last\):$", r"^[\t ]+", r"^\S"),
    "go": (r"\bpanic: |^fatal error: ", r"^$|^\[signal |^goroutine \d+ |^created by |^[\t ]+|^\S+\(.*\)$", r"(?!)"),
    "ruby": (r"Error \(.*\):$", r"^$|^[\t ]+.*?\.rb:\d+:in `", r"(?!)"),
    "php": (r"(?:PHP )?(?:Notice|Parse error|Fatal error|Warning): ", r"^Stack trace:|^#\d|^  thrown in ", r"(?!)"),
}
ALIASES = {"js": "java", "javascript": "java", "csharp": "java", "py": "python", "golang": "go", "rb": "ruby"}


class DetectExceptions(Filter):
    """Joins the traces of the languages asked for; what is held is in memory for at most the flush interval."""

    NAME = "detect_exceptions"
    FIELDS = {
        "message": Field(string, ""),
        "languages": Field(array, ["all"]),
        "multiline_flush_interval": Field(seconds, 1.0),
        "max_lines": Field(integer, 1000),
        "stream": Field(string, ""),
    }

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        names = [ALIASES.get(name, name) for name in self.set["languages"]]
        if "all" in names:
            names = list(TRACES)
        for name in names:
            if name not in TRACES:
                raise element.error(f"unknown language {name!r}", "languages")
        self._rules = [tuple(re.compile(text) for text in TRACES[name]) for name in dict.fromkeys(names)]
        self._stream = accessor(self.set["stream"]) if self.set["stream"] else None
        self._held: dict[tuple[str, str], tuple[int, list[Event]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def filter(self, tag: str, events: Sequence[Event]) -> Sequence[Event]:
        out: list[Event] = []
        for event in events:
            key = self.set["message"] or ("message" if "message" in event[1] else "log")
            text = text_of(event[1].get(key)).rstrip("\n")
            name = (tag, text_of(self._stream(event[1])) if self._stream else "")
            held = self._held.get(name)
            if held is not None:
                _, more, last = self._rules[held[0]]
                if len(held[1]) < self.set["max_lines"] and more.search(text):
                    held[1].append(event)
                    continue
                del self._held[name]
                if last.search(text) and len(held[1]) > 1:
                    out.append(self._join([*held[1], event], key))
                    continue
                out.append(self._join(held[1], key))
            for number, (first, _, _) in enumerate(self._rules):
                if first.search(text) and len(self._held) < 10_000:
                    self._held[name] = (number, [event])
                    break
            else:
                out.append(event)
        if self._held and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.set["multiline_flush_interval"], self._flush)
        return out

    @staticmethod
    def _join(events: list[Event], key: str) -> Event:
        if len(events) == 1:
            return events[0]
        return events[0][0], {
            **events[0][1],
            key: "\n".join(text_of(record.get(key)).rstrip("\n") for _, record in events),
        }

    def _flush(self) -> None:
        self._timer = None
        held, self._held = self._held, {}
        for (tag, _), (_, events) in held.items():
            key = self.set["message"] or ("message" if "message" in events[0][1] else "log")
            self.context.resume(self, tag, [self._join(events, key)])

    async def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._flush()
