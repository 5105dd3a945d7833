"""What a client asks of a build: the query of POST /build, checked. Source: Docker Engine API, ImageBuild."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from longshore.engine.build.step import Limits
from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.images import references
from longshore.engine.images.references import InvalidReference, Reference

_FALSE = {"", "0", "no", "false", "none"}


@dataclass(slots=True)
class BuildOptions:
    """The settings of one build. arguments: build args (None: declared without a value)."""

    dockerfile: str = ""
    tags: list[Reference] = field(default_factory=list)
    remote: str = ""
    quiet: bool = False
    no_cache: bool = False
    pull: bool = False
    remove: bool = True
    force_remove: bool = False
    arguments: dict[str, str | None] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    cache_from: list[str] = field(default_factory=list)
    network: str = "default"
    platform: str = ""
    target: str = ""
    hosts: list[tuple[str, str]] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    version: str = "1"
    session: str = ""
    build_id: str = ""
    auths: dict[str, dict[str, str]] = field(default_factory=dict)
    outputs: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    # BuildKit's: stages to build anew, the steps' host name, the time that images are made at, what was allowed.
    no_cache_stages: Sequence[str] = ()
    hostname: str = ""
    created: str = ""
    entitlements: set[str] = field(default_factory=set)


def _flag(query: Mapping[str, Sequence[str]], name: str, default: bool = False) -> bool:
    values = query.get(name)
    return default if not values else values[0].strip().lower() not in _FALSE


def _number(query: Mapping[str, Sequence[str]], name: str) -> int:
    text = _text(query, name)
    try:
        return int(text or 0)
    except ValueError:
        return 0


def _text(query: Mapping[str, Sequence[str]], name: str) -> str:
    values = query.get(name)
    return values[0] if values else ""


def _json(query: Mapping[str, Sequence[str]], name: str, kind: type) -> Any:
    text = _text(query, name)
    if not text:
        return kind()
    try:
        loaded = orjson.loads(text)
    except ValueError:
        raise InvalidParameter(f"error reading {name}: invalid JSON") from None
    if loaded is None:
        return kind()
    if not isinstance(loaded, kind):
        raise InvalidParameter(f"error reading {name}: unexpected JSON type")
    return loaded


def _output(entry: Any) -> tuple[str, dict[str, str]]:
    """One output of BuildKit's: its type and its settings. Raises InvalidParameter."""
    values = entry.get("Attrs") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(values or {}, dict):
        raise InvalidParameter("invalid outputs specified: unexpected JSON type")
    return str(entry.get("Type") or ""), {str(key): str(value) for key, value in (values or {}).items()}


def parse_options(
    query: Mapping[str, Sequence[str]], auths: Mapping[str, dict[str, str]] | None = None
) -> BuildOptions:
    """The options in a query (name to values). auths: what X-Registry-Config holds, by registry host.

    Raises InvalidParameter; SystemFailure for a bad tag (dockerd's status is 500).
    """
    version = _text(query, "version") or "1"
    if version not in ("1", "2"):
        raise InvalidParameter(f'invalid version "{version}"')
    if _flag(query, "squash"):
        raise InvalidParameter("squash is only supported with experimental mode")
    options = BuildOptions(
        dockerfile=_text(query, "dockerfile"),
        remote=_text(query, "remote"),
        quiet=_flag(query, "q"),
        no_cache=_flag(query, "nocache"),
        pull=_flag(query, "pull"),
        remove=_flag(query, "rm", True),
        force_remove=_flag(query, "forcerm"),
        network=_text(query, "networkmode") or "default",
        platform=_text(query, "platform"),
        target=_text(query, "target"),
        version=version,
        session=_text(query, "session"),
        build_id=_text(query, "buildid"),
        auths=dict(auths or {}),
    )
    options.arguments = {
        str(key): None if value is None else str(value) for key, value in _json(query, "buildargs", dict).items()
    }
    options.labels = {str(key): str(value) for key, value in _json(query, "labels", dict).items()}
    options.outputs = [_output(entry) for entry in _json(query, "outputs", list)]
    options.cache_from = [str(name) for name in _json(query, "cachefrom", list)]
    for entry in query.get("extrahosts") or ():
        for word in entry.split(","):
            name, _, address = word.partition("=") if "=" in word else word.partition(":")
            if not name or not address:
                raise InvalidParameter(f'bad format for add-host: "{word}"')
            options.hosts.append((name, address.strip("[]")))
    options.limits = Limits(
        memory=_number(query, "memory"),
        memory_swap=_number(query, "memswap"),
        cpu_shares=_number(query, "cpushares"),
        cpu_period=_number(query, "cpuperiod"),
        cpu_quota=_number(query, "cpuquota"),
        cpuset_cpus=_text(query, "cpusetcpus"),
        cpuset_mems=_text(query, "cpusetmems"),
        shm_size=_number(query, "shmsize"),
        cgroup_parent=_text(query, "cgroupparent"),
        ulimits=_json(query, "ulimits", list),
    )
    seen: set[str] = set()
    for text in query.get("t") or ():
        if not text:
            continue
        try:
            tag = references.parse(text)
        except InvalidReference as error:
            raise SystemFailure(error.message) from None
        if tag.digest:
            raise SystemFailure("build tag cannot contain a digest")
        tag = tag.with_default_tag()
        if str(tag) not in seen:
            seen.add(str(tag))
            options.tags.append(tag)
    return options
