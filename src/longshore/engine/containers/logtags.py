"""Tags of log drivers: the part of Go's text/template that `--log-opt tag=` is used with.

Fields ({{.ID}}), pipes and calls of dockerd's template functions, `index` on labels, and trimming dashes. What is beyond
that is refused with Go's words rather than sent as it stands. Source: Docker documentation, "Customize log driver output".
"""

from __future__ import annotations

import json
import re
import shlex
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Container

DEFAULT = "{{.ID}}"
_ACTION = re.compile(r"(\s*)\{\{(- )?\s*(.*?)\s*( -)?\}\}(\s*)", re.S)
_TOKEN = re.compile(r'\s*(\||[.\w]+|"(?:[^"\\]|\\.)*"|`[^`]*`|-?\d+)')


class TagError(ValueError):
    """The template cannot be used; the text is Go's."""


def values(container: Container, image_name: str = "") -> dict[str, Any]:
    """What a template can name of a container."""
    labels = container.config["Labels"] or {}
    image = container.image_id.removeprefix("sha256:")
    return {
        "ID": container.short,
        "FullID": container.id,
        "Name": container.name.lstrip("/"),
        "ContainerID": container.id,
        "ContainerName": container.name,
        "ContainerEntrypoint": container.path,
        "ContainerArgs": list(container.args),
        "ContainerImageID": container.image_id,
        "ContainerImageName": image_name or container.config["Image"],
        "ContainerCreated": container.created,
        "ContainerEnv": list(container.config["Env"] or []),
        "ContainerLabels": dict(labels),
        "ImageID": image[:12],
        "ImageFullID": container.image_id,
        "ImageName": image_name or container.config["Image"],
        "Command": " ".join([container.path, *container.args]),
        "DaemonName": "docker",
        "Hostname": socket.gethostname(),
        "LogPath": str(container.log_path),
        "Config": dict(container.host["LogConfig"]["Config"]),
    }


def _index(source: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(source, Mapping):
            source = source.get(key, "")
        elif isinstance(source, list) and isinstance(key, int) and 0 <= key < len(source):
            source = source[key]
        else:
            raise TagError(f"error calling index: index out of range: {key}")
    return source


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False),
    "lower": lambda value: value.lower(),
    "upper": lambda value: value.upper(),
    "title": lambda value: value.title(),
    "split": lambda value, separator: value.split(separator),
    "join": lambda value, separator: separator.join(value),
    "truncate": lambda value, length: value[:length],
    "pad": lambda value, before, after: " " * before + value + " " * after if value else value,
    "index": _index,
    "len": len,
    "print": lambda *parts: "".join(_text(p) for p in parts),
    "println": lambda *parts: " ".join(_text(p) for p in parts) + "\n",
}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "[" + " ".join(_text(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{k}:{_text(v)}" for k, v in sorted(value.items())) + "]"
    return str(value)


def _operand(token: str, known: Mapping[str, Any], at: int) -> Any:
    if token.startswith("."):
        name = token[1:]
        if name not in known:
            raise TagError(
                f'template: log-tag:1:{at}: executing "log-tag" at <{token}>: '
                f"can't evaluate field {name} in type *logger.Info"
            )
        return known[name]
    if token[0] == "`":
        return token[1:-1]
    if token[0] == '"':
        return shlex.split(token)[0] if len(token) > 2 else ""
    if re.fullmatch(r"-?[0-9]+", token):
        return int(token)
    raise TagError(f'template: log-tag:1: function "{token}" not defined')


def _evaluate(action: str, known: Mapping[str, Any], at: int) -> str:
    stages: list[list[str]] = [[]]
    position = 0
    while position < len(action):
        match = _TOKEN.match(action, position)
        if match is None:
            raise TagError(f"template: log-tag:1: unexpected {action[position : position + 1]!r} in command")
        if match[1] == "|":
            stages.append([])
        else:
            stages[-1].append(match[1])
        position = match.end()
    result: Any = None
    for number, stage in enumerate(stages):
        if not stage:
            raise TagError("template: log-tag:1: missing value for command")
        function = _FUNCTIONS.get(stage[0])
        arguments = [_operand(token, known, at) for token in (stage[1:] if function else stage)]
        if number:
            arguments.append(result)
        if function is None:
            if len(arguments) != 1:
                raise TagError(f"template: log-tag:1: can't give argument to non-function {stage[0]}")
            result = arguments[0]
            continue
        try:
            result = function(*arguments)
        except TagError:
            raise
        except (TypeError, AttributeError, ValueError):
            raise TagError(
                f'template: log-tag:1:{at}: executing "log-tag" at <{stage[0]}>: error calling {stage[0]}'
            ) from None
    return _text(result)


def render(template: str, known: Mapping[str, Any]) -> str:
    """The tag that a template gives. known: of `values`. Raises TagError."""
    out: list[str] = []
    position = 0
    for match in _ACTION.finditer(template):
        out.append(template[position : match.start()])
        before, trim_left, action, trim_right, after = match.groups()
        if not action:
            raise TagError("template: log-tag:1: missing value for command")
        out.append("" if trim_left else before)
        if not action.startswith("/*"):
            out.append(_evaluate(action, known, match.start() + 2))
        out.append("" if trim_right else after)
        position = match.end()
    rest = template[position:]
    if "{{" in rest:
        raise TagError("template: log-tag:1: unclosed action")
    return "".join(out) + rest
