"""KubeSchedulerConfiguration v1: profiles, their plugins and arguments.

Source: kubernetes.io "kube-scheduler Configuration (v1)". Plugins of a user's own are named by their file:
`pluginFiles: [/etc/longshore/even.py]` (an addition of ours); every Plugin subclass in it can be enabled by its name.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from longshore.master.scheduler.framework import Handle, Plugin
from longshore.master.scheduler.plugins.registry import DEFAULT, PLUGINS
from longshore.master.scheduler.profile import Profile

Object = dict[str, Any]

API_VERSION = "kubescheduler.config.k8s.io/v1"
POINTS = (
    "preEnqueue",
    "queueSort",
    "preFilter",
    "filter",
    "postFilter",
    "preScore",
    "score",
    "reserve",
    "permit",
    "preBind",
    "bind",
    "postBind",
)


class ConfigurationError(Exception):
    """The configuration is no KubeSchedulerConfiguration v1, or names a plugin that does not exist."""


@dataclass(slots=True)
class Configuration:
    """What the file says. documents: its profiles as they stand there."""

    documents: list[Object] = field(default_factory=lambda: [{"schedulerName": "default-scheduler"}])
    initial_backoff: float = 1.0
    max_backoff: float = 10.0
    extenders: list[Object] = field(default_factory=list)
    own: dict[str, type[Plugin]] = field(default_factory=dict)

    def profiles(self, handle: Handle) -> dict[str, Profile]:
        """The profiles by scheduler name, with fresh plugins."""
        return {
            document.get("schedulerName") or "default-scheduler": self._profile(document, handle)
            for document in self.documents
        }

    def _profile(self, document: Object, handle: Handle) -> Profile:
        classes = {**PLUGINS, **self.own}
        arguments = {entry["name"]: entry.get("args") or {} for entry in document.get("pluginConfig") or ()}
        asked = document.get("plugins") or {}
        everywhere = _merged([(cls.name, weight) for cls, weight in DEFAULT], asked.get("multiPoint") or {})
        weights = dict(everywhere)
        points: dict[str, list[str]] = {}
        for point in POINTS:
            if point in asked:
                default = [(name, weight) for name, weight in everywhere if _takes_part(classes.get(name), point)]
                chosen = _merged(default, asked[point])
                points[point] = [name for name, _ in chosen]
                weights.update({name: weight for name, weight in chosen if weight})
        names = list(dict.fromkeys([*(name for name, _ in everywhere), *(n for ns in points.values() for n in ns)]))
        plugins = []
        for name in names:
            cls = classes.get(name)
            if cls is None:
                raise ConfigurationError(f'plugin "{name}" does not exist')
            plugins.append((cls(handle, arguments.get(name, {})), weights.get(name, 0)))
        name = document.get("schedulerName") or "default-scheduler"
        return Profile(name, handle, plugins, points)


def _takes_part(cls: type[Plugin] | None, point: str) -> bool:
    method = "".join("_" + c.lower() if c.isupper() else c for c in point)
    methods = {
        "filter": ("filter", "filter_rows"),
        "score": ("score", "score_rows"),
        "reserve": ("reserve", "unreserve"),
    }
    return cls is not None and any(
        getattr(cls, m, None) is not getattr(Plugin, m, None) for m in methods.get(point, (method,))
    )


def _merged(default: list[tuple[str, int]], custom: Object) -> list[tuple[str, int]]:
    """A set of plugins after enabling and disabling: a default one that is enabled again keeps its place."""
    off = {entry["name"] for entry in custom.get("disabled") or ()}
    on = {entry["name"]: int(entry.get("weight") or 0) for entry in custom.get("enabled") or ()}
    result: list[tuple[str, int]] = []
    if "*" not in off:
        for name, weight in default:
            if name in off:
                continue
            result.append((name, on.pop(name) or weight) if name in on else (name, weight))
    known = dict(default)
    result.extend((name, weight or known.get(name, 1)) for name, weight in on.items())
    return result


def read(path: Path) -> Configuration:
    """Read a configuration file. Raises ConfigurationError."""
    try:
        document = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    if not isinstance(document, dict) or document.get("kind") != "KubeSchedulerConfiguration":
        raise ConfigurationError(f"{path}: not a KubeSchedulerConfiguration")
    if document.get("apiVersion") != API_VERSION:
        raise ConfigurationError(f"{path}: apiVersion must be {API_VERSION}")
    result = Configuration(
        initial_backoff=float(document.get("podInitialBackoffSeconds") or 1),
        max_backoff=float(document.get("podMaxBackoffSeconds") or 10),
        extenders=document.get("extenders") or [],
    )
    if document.get("profiles"):
        result.documents = document["profiles"]
    for name in document.get("pluginFiles") or ():
        result.own.update(_own_plugins(path.parent / name))
    return result


def _own_plugins(path: Path) -> dict[str, type[Plugin]]:
    """The Plugin subclasses of a user's file."""
    spec = importlib.util.spec_from_file_location("longshore_user_plugin_" + path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return {
        value.name: value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Plugin) and hasattr(value, "name")
    }
