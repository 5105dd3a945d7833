"""<system> and <worker>: how many processes obey a configuration, and which directives each of them has.

Source: docs.fluentd.org "System Configuration", "Multi Process Workers". A worker learns its number from the environment
variable SERVERENGINE_WORKER_ID, as upstream's does; all workers share the ports that they listen on.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.settings import Field, boolean, choice, integer, seconds, settings, string

WORKER_ID = "SERVERENGINE_WORKER_ID"
LEVELS = ("trace", "debug", "info", "warn", "error", "fatal")
#: What a supervisor of its own, Ruby and its log would need is read and has no effect here: see docs/logs.md.
FIELDS = {
    "workers": Field(integer, 1),
    "root_dir": Field(string, ""),
    "log_level": Field(choice(*LEVELS), "info"),
    "process_name": Field(string, ""),
    "file_permission": Field(string, ""),
    "dir_permission": Field(string, ""),
    "emit_error_log_interval": Field(seconds, 0.0),
    "suppress_repeated_stacktrace": Field(boolean, True),
    "suppress_config_dump": Field(boolean, False),
    "log_event_verbose": Field(boolean, False),
    "without_source": Field(boolean, False),
    "strict_config_value": Field(boolean, False),
    "enable_input_metrics": Field(boolean, True),
    "enable_size_metrics": Field(boolean, False),
}
_LOG = {"format": Field(choice("text", "json"), "text"), "time_format": Field(string, "")}


@dataclass(frozen=True, slots=True)
class System:
    """What <system> says. root_dir: where buffers lie, None: where the command says."""

    workers: int = 1
    root_dir: Path | None = None
    log_level: str = "info"
    without_source: bool = False


def system_of(root: Element) -> System:
    """The <system> section of a configuration. Raises ConfigError."""
    element = root.one("system")
    if element is None:
        return System()
    found = settings(element, FIELDS, frozenset({"log"}))
    log = element.one("log")
    if log is not None:
        settings(log, _LOG)
    if not 1 <= found["workers"] <= 64:
        raise element.error("workers must be 1 to 64", "workers")
    folder = Path(found["root_dir"]) if found["root_dir"] else None
    return System(found["workers"], folder, found["log_level"], found["without_source"])


def own_number() -> int:
    """This process's number among the workers."""
    text = os.environ.get(WORKER_ID, "0")
    return int(text) if text.isdigit() else 0


def has(element: Element, worker: int, workers: int) -> bool:
    """Whether a <worker N> or <worker N-M> section is this worker's. Raises ConfigError."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", element.argument)
    if match is None:
        raise element.error("Missing or wrong worker id on <worker> directive")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first or last >= workers:
        raise element.error(
            f"worker id {element.argument} specified by <worker> directive is not allowed."
            f" Available worker id is between 0 and {workers - 1}"
        )
    for child in element.children:
        if child.name not in ("source", "match", "filter", "label"):
            raise child.error(f"<worker> section cannot have <{child.name}> directive")
    return first <= worker <= last
