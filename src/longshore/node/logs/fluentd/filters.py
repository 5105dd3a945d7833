"""Filters. Source: docs.fluentd.org "Filter Plugins", and the READMEs' parameters of concat and throttle."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.formatters import make_formatter, text_of
from longshore.node.logs.fluentd.parsers import make_parser
from longshore.node.logs.fluentd.plugin import Filter
from longshore.node.logs.fluentd.settings import Field, array, boolean, integer, regexp, seconds, settings, string
from longshore.wire import crilog
from longshore.wire.forward import Event

if TYPE_CHECKING:
    from longshore.node.logs.fluentd.pipeline import Context

Record = dict[Any, Any]
_PLACE = re.compile(r"\$\{([^}]*)\}")
_RECORD_KEY = re.compile(r"""record((?:\[["'][^"'\]]+["']\])+)|record\.dig\((.*)\)""")
MOST_GROUPS = 10_000


def accessor(path: str) -> Callable[[Record], Any]:
    """`key`, `$.a.b` or `$['a']['b']` of a record; None when it is not there."""
    if path.startswith("$"):
        keys = [a or b for a, b in re.findall(r"""\[["']?([^"'\]]+)["']?\]|\.([^.\[]+)""", path)]
    else:
        keys = [path]

    def get(record: Record) -> Any:
        value: Any = record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    return get


class RecordTransformer(Filter):
    """Adds, changes and removes keys; `${...}` knows record, tag, tag_parts, tag_prefix, tag_suffix, time, hostname."""

    NAME = "record_transformer"
    FIELDS = {
        "enable_ruby": Field(boolean, False),
        "auto_typecast": Field(boolean, True),
        "renew_record": Field(boolean, False),
        "renew_time_key": Field(string, ""),
        "keep_keys": Field(array, []),
        "remove_keys": Field(array, []),
    }
    SECTIONS = frozenset({"record"})

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        if self.set["enable_ruby"]:
            raise element.error("enable_ruby is not supported: there is no Ruby here", "enable_ruby")
        self._host = socket.gethostname()
        self._added: dict[str, str] = {}
        for section in element.all("record"):
            for name, value in section.parameters.items():
                for place in _PLACE.findall(value.text):
                    if not re.fullmatch(
                        r"tag|hostname|time|tag_(parts|prefix|suffix)\[-?\d+\]", place
                    ) and not _RECORD_KEY.fullmatch(place):
                        raise section.error(f"unknown placeholder `${{{place}}}` found", name)
                self._added[name] = value.text

    def filter(self, tag: str, events: Sequence[Event]) -> Sequence[Event]:
        return [self._change(tag, when, record) for when, record in events]

    def _change(self, tag: str, when: int, record: Record) -> Event:
        added: Record = {}
        for name, text in self._added.items():
            whole = _PLACE.fullmatch(text)
            if whole and self.set["auto_typecast"]:
                added[name] = self._value(whole[1], tag, when, record)
            else:
                added[name] = _PLACE.sub(lambda m: text_of(self._value(m[1], tag, when, record)), text)
        if self.set["renew_record"]:
            kept = {key: record[key] for key in self.set["keep_keys"] if key in record}
        else:
            kept = dict(record)
        kept.update(added)
        for path in self.set["remove_keys"]:
            kept.pop(path, None)
        if self.set["renew_time_key"] and isinstance(kept.get(self.set["renew_time_key"]), int | float):
            when = int(kept[self.set["renew_time_key"]] * 10**9)
        return when, kept

    def _value(self, place: str, tag: str, when: int, record: Record) -> Any:
        if place == "tag":
            return tag
        if place == "hostname":
            return self._host
        if place == "time":
            return crilog.format_time(when).decode()
        if place.startswith("tag_"):
            parts, number = tag.split("."), int(place[place.index("[") + 1 : -1])
            if number >= len(parts) or number < -len(parts):
                return ""
            if place.startswith("tag_parts"):
                return parts[number]
            return ".".join(parts[: number + 1] if place.startswith("tag_prefix") else parts[number:])
        value: Any = record
        for key in re.findall(r"""["']([^"']+)["']""", place):
            value = value.get(key) if isinstance(value, dict) else None
        return value


class Grep(Filter):
    """Keeps what matches every <regexp> and no <exclude>; <and> and <or> group them."""

    NAME = "grep"
    SECTIONS = frozenset({"regexp", "exclude", "and", "or"})
    _RULE = {"key": Field(string, None, True), "pattern": Field(regexp, None, True)}

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        self._keep = [self._rule(child) for child in element.all("regexp")]
        self._drop = [self._rule(child) for child in element.all("exclude")]
        for group in [*element.all("and"), *element.all("or")]:
            every = all if group.name == "and" else any
            for name, target in (("regexp", self._keep), ("exclude", self._drop)):
                rules = [self._rule(child) for child in group.all(name)]
                if rules:
                    target.append(lambda r, rules=rules, every=every: every(rule(r) for rule in rules))  # type: ignore[misc]

    def _rule(self, element: Element) -> Callable[[Record], bool]:
        found = settings(element, self._RULE)
        get, pattern = accessor(found["key"]), found["pattern"]
        return lambda record: pattern.search(text_of(get(record))) is not None

    def filter(self, _tag: str, events: Sequence[Event]) -> Sequence[Event]:
        keep, drop = self._keep, self._drop
        return [
            event
            for event in events
            if all(rule(event[1]) for rule in keep) and not any(rule(event[1]) for rule in drop)
        ]


class ParserFilter(Filter):
    """Parses one field of a record."""

    NAME = "parser"
    FIELDS = {
        "key_name": Field(string, None, True),
        "reserve_data": Field(boolean, False),
        "reserve_time": Field(boolean, False),
        "remove_key_name_field": Field(boolean, False),
        "inject_key_prefix": Field(string, ""),
        "hash_value_field": Field(string, ""),
        "emit_invalid_record_to_error": Field(boolean, True),
        "replace_invalid_sequence": Field(boolean, False),
    }
    SECTIONS = frozenset({"parse"})

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        section = element.one("parse")
        if section is None:
            raise element.error("<parse> section is required")
        self._parse, _ = make_parser(section)
        self._get = accessor(self.set["key_name"])

    def filter(self, tag: str, events: Sequence[Event]) -> Sequence[Event]:
        passed: list[Event] = []
        wrong: list[Event] = []
        for when, record in events:
            value = self._get(record)
            parsed = self._parse(text_of(value)) if value is not None else None
            if parsed is None:
                wrong.append((when, record))
                if self.set["reserve_data"]:
                    passed.append((when, record))
                continue
            found: Record = parsed[1]
            if self.set["inject_key_prefix"]:
                found = {f"{self.set['inject_key_prefix']}{key}": inner for key, inner in found.items()}
            if self.set["hash_value_field"]:
                found = {self.set["hash_value_field"]: found}
            if self.set["reserve_data"]:
                base = dict(record)
                if self.set["remove_key_name_field"]:
                    base.pop(self.set["key_name"], None)
                found = {**base, **found}
            passed.append((when if self.set["reserve_time"] else parsed[0], found))
        if wrong and self.set["emit_invalid_record_to_error"]:
            self.context.error(tag, wrong, "pattern not matched with data")
        return passed


class StdoutFilter(Filter):
    """Shows what passes."""

    NAME = "stdout"
    SECTIONS = frozenset({"format"})

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        self._format = make_formatter(element.one("format"), "out_file")

    def filter(self, tag: str, events: Sequence[Event]) -> Sequence[Event]:
        sys.stdout.buffer.write(b"".join(self._format(tag, when, record) for when, record in events))
        sys.stdout.buffer.flush()
        return events


class Concat(Filter):
    """Joins the lines of one event: between a first and a last line's pattern, or every n lines.

    What is held is in memory only; `flush_interval` bounds how long.
    """

    NAME = "concat"
    FIELDS = {
        "key": Field(string, None, True),
        "separator": Field(string, "\n"),
        "n_lines": Field(integer, 0),
        "multiline_start_regexp": Field(regexp, None),
        "multiline_end_regexp": Field(regexp, None),
        "continuous_line_regexp": Field(regexp, None),
        "stream_identity_key": Field(string, ""),
        "flush_interval": Field(seconds, 60.0),
        "timeout_label": Field(string, ""),
    }

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        if not (self.set["n_lines"] or self.set["multiline_start_regexp"]):
            raise element.error("Either n_lines, multiline_start_regexp or multiline_end_regexp is required")
        self._held: dict[tuple[str, str], list[Event]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def filter(self, tag: str, events: Sequence[Event]) -> Sequence[Event]:
        out: list[Event] = []
        start, end, count = self.set["multiline_start_regexp"], self.set["multiline_end_regexp"], self.set["n_lines"]
        more = self.set["continuous_line_regexp"]
        for event in events:
            record = event[1]
            if self.set["key"] not in record:
                out.append(event)
                continue
            text = text_of(record[self.set["key"]])
            name = (tag, text_of(record.get(self.set["stream_identity_key"])))
            held = self._held.get(name)
            begins = start is not None and start.search(text) is not None
            if held and (begins or (more is not None and not more.search(text))):
                out.append(self._join(self._held.pop(name)))
                held = None
            if held is None and start is not None and not begins:
                out.append(event)
                continue
            held = self._held.setdefault(name, [])
            held.append(event)
            if (count and len(held) >= count) or (end is not None and end.search(text)) or len(held) >= MOST_GROUPS:
                out.append(self._join(self._held.pop(name)))
        if self._held and self._timer is None and self.set["flush_interval"] > 0:
            self._timer = asyncio.get_running_loop().call_later(self.set["flush_interval"], self._flush)
        return out

    def _join(self, events: list[Event]) -> Event:
        key = self.set["key"]
        return events[0][0], {**events[0][1], key: self.set["separator"].join(text_of(r[key]) for _, r in events)}

    def _flush(self) -> None:
        self._timer = None
        held, self._held = self._held, {}
        for (tag, _), events in held.items():
            self.context.resume(self, tag, [self._join(events)], self.set["timeout_label"])

    async def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._flush()


class Throttle(Filter):
    """At most so many records a period and group; the rest is dropped and counted."""

    NAME = "throttle"
    FIELDS = {
        "group_key": Field(array, ["kubernetes.container_name"]),
        "group_bucket_period_s": Field(integer, 60),
        "group_bucket_limit": Field(integer, 6000),
        "group_drop_logs": Field(boolean, True),
        "group_reset_rate_s": Field(integer, -1),
        "group_warning_delay_s": Field(integer, 10),
    }

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        self._keys = [accessor("$." + key.removeprefix("$.")) for key in self.set["group_key"]]
        self._groups: dict[tuple[str, ...], list[float]] = {}
        self.dropped = 0

    def filter(self, _tag: str, events: Sequence[Event]) -> Sequence[Event]:
        now, out = time.monotonic(), []
        for event in events:
            name = tuple(text_of(get(event[1])) for get in self._keys)
            if len(self._groups) >= MOST_GROUPS:
                self._groups.clear()
            group = self._groups.setdefault(name, [now, 0])
            if now - group[0] >= self.set["group_bucket_period_s"]:
                group[:] = [now, 0]
            group[1] += 1
            if group[1] > self.set["group_bucket_limit"]:
                self.dropped += 1
                if self.set["group_drop_logs"]:
                    continue
            out.append(event)
        return out

    def figures(self) -> dict[str, Any]:
        return {"dropped_records": self.dropped}
