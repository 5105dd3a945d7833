"""A pipeline's stages as functions over one line and its labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from longshore.node.logs.logql.addresses import has_within, is_within
from longshore.node.logs.logql.ast import Comparison, LabelFilter, LineFilter, Logical, LogQuery, Matcher, Stage
from longshore.node.logs.logql.lexer import byte_size, duration
from longshore.node.logs.logql.template import Template

Labels = dict[str, str]
#: (time in ns, line, labels) -> (line, labels), or None when the line is filtered out.
Step = Callable[[int, str, Labels], tuple[str, Labels] | None]

ERROR = "__error__"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LOGFMT = re.compile(r'([^\s="]+)(?:=(?:"((?:\\.|[^"\\])*)"|(\S*)))?')
_NAME = re.compile(r"[^a-zA-Z0-9_]")


def label_matcher(matchers: Sequence[Matcher]) -> Callable[[Labels], bool]:
    """Whether labels satisfy a selector; an absent label is the empty text, regular expressions match whole."""
    checks: list[tuple[str, Callable[[str], bool]]] = []
    for matcher in matchers:
        checks.append((matcher.name, _text_test(matcher.op, matcher.value)))
    return lambda labels: all(test(labels.get(name, "")) for name, test in checks)


def _text_test(op: str, value: str) -> Callable[[str], bool]:
    if op in ("=", "=="):
        return lambda text: text == value
    if op == "!=":
        return lambda text: text != value
    pattern = re.compile(value, re.DOTALL)
    if op == "=~":
        return lambda text: pattern.fullmatch(text) is not None
    return lambda text: pattern.fullmatch(text) is None


def needles(query: LogQuery) -> list[bytes]:
    """Texts that a block must hold for any of its lines to pass: the plain `|=` filters before any line_format."""
    found: list[bytes] = []
    for stage in query.stages:
        if isinstance(stage, LineFilter):
            if stage.op == "|=" and len(stage.values) == 1 and stage.values[0] and not stage.ip:
                found.append(stage.values[0].encode())
        elif isinstance(stage, Stage) and stage.name in ("line_format", "unpack", "decolorize"):
            break
    return found


def steps(query: LogQuery) -> list[Step]:
    """The stages of a query, ready to run in order."""
    return [_step(stage) for stage in query.stages]


def run(pipeline: Sequence[Step], time: int, line: str, labels: Labels) -> tuple[str, Labels] | None:
    """Put one line through all steps."""
    for step in pipeline:
        result = step(time, line, labels)
        if result is None:
            return None
        line, labels = result
    return line, labels


def _step(stage: LineFilter | Comparison | Logical | Stage) -> Step:
    if isinstance(stage, LineFilter):
        return _line_filter(stage)
    if isinstance(stage, Comparison | Logical):
        return _filter(label_filter(stage))
    return _STAGES[stage.name](stage)


def _filter(test: Callable[[Labels], bool]) -> Step:
    """A line whose value is no number passes, marked, as in Loki."""

    def step(_time: int, line: str, labels: Labels) -> tuple[str, Labels] | None:
        try:
            return (line, labels) if test(labels) else None
        except ValueError:
            return line, {**labels, ERROR: "LabelFilterErr"}

    return step


def _line_filter(stage: LineFilter) -> Step:
    values = stage.values
    if stage.ip:
        has, sought = has_within(values[0]), stage.op == "|="
        return lambda _t, line, labels: (line, labels) if has(line) == sought else None
    if stage.op == "|=":
        return lambda _t, line, labels: (line, labels) if any(v in line for v in values) else None
    if stage.op == "!=":
        return lambda _t, line, labels: None if any(v in line for v in values) else (line, labels)
    if stage.op in ("|>", "!>"):  # `<_>` is any text, the rest stands as it is
        values = tuple("(?s)" + ".*".join(map(re.escape, value.split("<_>"))) for value in values)
    patterns = [re.compile(value) for value in values]
    wanted = stage.op in ("|~", "|>")
    return lambda _t, line, labels: (line, labels) if any(p.search(line) for p in patterns) == wanted else None


def label_filter(tree: LabelFilter) -> Callable[[Labels], bool]:
    """Whether extracted labels satisfy a filter; an absent label no numeric one. Raises ValueError: it is no number."""
    if isinstance(tree, Logical):
        left, right = label_filter(tree.left), label_filter(tree.right)
        if tree.op == "and":
            return lambda labels: left(labels) and right(labels)
        return lambda labels: left(labels) or right(labels)
    name = tree.label
    if isinstance(tree.value, str) and tree.unit == "ip":
        within, sought = is_within(tree.value), tree.op == "="
        return lambda labels: within(labels.get(name, "")) == sought
    if isinstance(tree.value, str):
        test = _text_test(tree.op, tree.value)
        return lambda labels: test(labels.get(name, ""))
    compare, wanted, unit = COMPARE[tree.op], tree.value, tree.unit

    def check(labels: Labels) -> bool:
        if name not in labels:
            return False
        # After an error only comparisons of texts filter.
        return ERROR in labels or compare(number(labels[name], unit), wanted)

    return check


COMPARE: dict[str, Callable[[float, float], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


def number(text: str, unit: str) -> float:
    """A label's value as a number. unit: "" plain, duration in seconds, bytes. Raises ValueError."""
    if unit in ("duration", "duration_seconds"):
        sign = -1 if text.startswith("-") else 1
        return sign * duration(text.lstrip("+-")) / 1e9
    if unit == "bytes":
        try:
            return float(text)
        except ValueError:
            return byte_size(text)
    return float(text)


def _merged(labels: Labels, found: Iterator[tuple[str, str]]) -> Labels:
    """Extracted labels beside the stream's own; a name that the stream has already gets the suffix `_extracted`."""
    merged = dict(labels)
    for name, value in found:
        merged[f"{name}_extracted" if name in labels else name] = value
    return merged


def _flat(value: object, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            name = _NAME.sub("_", str(key))
            yield from _flat(inner, f"{prefix}_{name}" if prefix else name)
    elif prefix and not isinstance(value, list):
        yield prefix, _text(value)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(value).decode()


def _path(value: object, expression: str) -> object:
    """`a.b[0]["c"]` in a JSON value."""
    for key, index, quoted in re.findall(r'([A-Za-z_][\w-]*)|\[(\d+)\]|\["([^"]*)"\]', expression):
        if index:
            value = value[int(index)] if isinstance(value, list) and int(index) < len(value) else None
        else:
            value = value.get(key or quoted) if isinstance(value, dict) else None
    return value


def _json_object(line: str) -> dict[str, Any] | None:
    """The object that a line is in JSON; None when it is none."""
    try:
        tree = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return tree if isinstance(tree, dict) else None


def _json(stage: Stage) -> Step:
    def step(_time: int, line: str, labels: Labels) -> tuple[str, Labels]:
        tree = _json_object(line)
        if tree is None:
            return line, {**labels, ERROR: "JSONParserErr"}
        if stage.pairs:
            return line, _merged(labels, ((name, _text(_path(tree, text))) for name, text, _ in stage.pairs))
        return line, _merged(labels, _flat(tree, ""))

    return step


def _logfmt(stage: Stage) -> Step:
    wanted = {text: name for name, text, _ in stage.pairs}

    def step(_time: int, line: str, labels: Labels) -> tuple[str, Labels]:
        found = (
            (m[1], re.sub(r"\\(.)", r"\1", m[2]) if m[2] is not None else (m[3] or "")) for m in _LOGFMT.finditer(line)
        )
        if wanted:
            return line, _merged(labels, ((wanted[key], value) for key, value in found if key in wanted))
        return line, _merged(labels, ((_NAME.sub("_", key), value) for key, value in found))

    return step


def _regexp(stage: Stage) -> Step:
    pattern = re.compile(stage.arguments[0])

    def step(_time: int, line: str, labels: Labels) -> tuple[str, Labels]:
        match = pattern.search(line)
        if match is None:
            return line, labels
        return line, _merged(labels, ((k, v) for k, v in match.groupdict().items() if v is not None))

    return step


def _pattern(stage: Stage) -> Step:
    """`<ip> - - <_> "<method> <path>"`: captures up to the literal that follows."""
    parts = re.split(r"(<[A-Za-z_]\w*>)", stage.arguments[0])
    expression = "".join(
        (".*?" if part == "<_>" else f"(?P<{part[1:-1]}>.*?)")
        if part.startswith("<") and part.endswith(">")
        else re.escape(part)
        for part in parts
        if part
    )
    pattern = re.compile(expression + "$" if parts[-1] == "" else expression, re.DOTALL)

    def step(_time: int, line: str, labels: Labels) -> tuple[str, Labels]:
        match = pattern.match(line)
        return line, labels if match is None else _merged(labels, iter(match.groupdict().items()))

    return step


def _unpack(_stage: Stage) -> Step:
    def step(_time: int, line: str, labels: Labels) -> tuple[str, Labels]:
        tree = _json_object(line)
        if tree is None:
            return line, {**labels, ERROR: "JSONParserErr"}
        entry = tree.pop("_entry", line)
        return str(entry), _merged(labels, ((k, v) for k, v in tree.items() if isinstance(v, str)))

    return step


def _line_format(stage: Stage) -> Step:
    template = Template(stage.arguments[0])
    return lambda time, line, labels: (template.render(line, labels, time), labels)


def _label_format(stage: Stage) -> Step:
    made = [(name, Template(text) if is_text else text) for name, text, is_text in stage.pairs]

    def step(time: int, line: str, labels: Labels) -> tuple[str, Labels]:
        changed = dict(labels)
        for name, how in made:
            if isinstance(how, Template):
                changed[name] = how.render(line, labels, time)
            elif how in labels:
                changed[name] = changed.pop(how)
        return line, changed

    return step


def _drop(stage: Stage) -> Step:
    names = frozenset(stage.arguments)
    return lambda _t, line, labels: (line, {k: v for k, v in labels.items() if k not in names})


def _keep(stage: Stage) -> Step:
    names = frozenset(stage.arguments)
    return lambda _t, line, labels: (line, {k: v for k, v in labels.items() if k in names})


def _decolorize(_stage: Stage) -> Step:
    return lambda _t, line, labels: (_ANSI.sub("", line), labels)


def _unwrap(stage: Stage) -> Step:
    """Lines without the label have no sample; what is no number is an error that a filter behind may take out."""
    name, conversion = stage.arguments

    def step(_time: int, line: str, labels: Labels) -> tuple[str, Labels] | None:
        if name not in labels:
            return None
        try:
            number(labels[name], conversion)
        except ValueError:
            return line, {**labels, ERROR: "SampleExtractionErr"}
        return line, labels

    return step


_STAGES: dict[str, Callable[[Stage], Step]] = {
    "json": _json,
    "logfmt": _logfmt,
    "regexp": _regexp,
    "pattern": _pattern,
    "unpack": _unpack,
    "line_format": _line_format,
    "label_format": _label_format,
    "drop": _drop,
    "keep": _keep,
    "decolorize": _decolorize,
    "unwrap": _unwrap,
}
