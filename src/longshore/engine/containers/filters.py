"""The `filters` parameter of the API and the container list's filters.

Source: Docker Engine API; the texts of errors are dockerd's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import orjson

from longshore.engine.errors import InvalidParameter, SystemFailure

from .model import Container

if TYPE_CHECKING:
    from .service import ContainerService

Filters = dict[str, list[str]]


def parse(text: str) -> Filters:
    """{"name": ["value"]}, or the older {"name": {"value": true}}. Raises InvalidParameter."""
    if not text:
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise InvalidParameter("invalid filter") from None
    if not isinstance(value, dict):
        raise InvalidParameter("invalid filter")
    result: Filters = {}
    for name, entries in value.items():
        if isinstance(entries, dict):
            result[name] = [key for key, on in entries.items() if on]
        elif isinstance(entries, list) and all(isinstance(e, str) for e in entries):
            result[name] = list(dict.fromkeys(entries))
        else:
            raise InvalidParameter("invalid filter")
    return result


def check(filters: Filters, accepted: Iterable[str]) -> None:
    """Raises InvalidParameter for a filter that is not accepted."""
    allowed = set(accepted)
    for name in filters:
        if name not in allowed:
            raise InvalidParameter(f"invalid filter '{name}'")


def boolean(filters: Filters, name: str, default: bool) -> bool:
    """A filter that is true or false. Raises InvalidParameter."""
    values = filters.get(name)
    if not values:
        return default
    yes, no = "1" in values or "true" in values, "0" in values or "false" in values
    if yes == no:
        raise InvalidParameter(
            f"invalid filter '{name}={values}'" if len(values) != 1 else f"invalid filter '{name}=[{values[0]}]'"
        )
    return yes


def labels_match(wanted: Iterable[str], labels: Mapping[str, str] | None) -> bool:
    """Whether every "key" or "key=value" is among the labels."""
    have = labels or {}
    for entry in wanted:
        name, equals, value = entry.partition("=")
        if name not in have or (equals and have[name] != value):
            return False
    return True


def text_match(wanted: Iterable[str], text: str) -> bool:
    """Whether one of the patterns is found in the text (as regular expression or plainly)."""
    for pattern in wanted:
        if pattern == text or pattern in text:
            return True
        try:
            if re.search(pattern, text):
                return True
        except re.error:
            continue
    return False


_ACCEPTED = (
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name", "network", "publish",
    "since", "status", "volume",
)  # fmt: skip
_STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
_HEALTH = ("none", "starting", "healthy", "unhealthy")


def _ports(kind: str, values: list[str]) -> set[str]:
    wanted: set[str] = set()
    for text in values:
        number, _, protocol = text.partition("/")
        low, dash, high = number.partition("-")
        for part in (low, high) if dash else (low,):
            if not part.isdigit():
                raise SystemFailure(
                    f'error while looking up for {kind} {text}: strconv.ParseUint: parsing "{part}": invalid syntax'
                )
        for each in range(int(low), int(high or low) + 1):
            wanted.add(f"{each}/{(protocol or 'tcp').lower()}")
    return wanted


def select(service: ContainerService, filters: Filters, *, all: bool, limit: int) -> list[Container]:
    """The containers that a list request asks for, the newest first. Raises EngineError classes."""
    check(filters, _ACCEPTED)
    for word in filters.get("status", []):
        if word not in _STATES:
            raise InvalidParameter(
                f"invalid filter 'status={word}': invalid value for state ({word}): must be one of "
                "created, running, paused, restarting, removing, exited, dead"
            )
    for word in filters.get("health", []):
        if word not in _HEALTH:
            raise InvalidParameter(
                f"invalid filter 'health={word}': invalid value for health ({word}): must be one of none, starting, healthy, unhealthy"
            )
    codes: set[int] = set()
    for text in filters.get("exited", []):
        if not re.fullmatch(r"[+-]?\d+", text):
            raise InvalidParameter(f"invalid filter 'exited={text}': strconv.Atoi: parsing \"{text}\": invalid syntax")
        codes.add(int(text))
    if boolean(filters, "is-task", False):
        return []
    publish = _ports("publish", filters.get("publish", []))
    expose = _ports("expose", filters.get("expose", []))
    before = [service.store.find(term) for term in filters.get("before", [])]
    since = [service.store.find(term) for term in filters.get("since", [])]
    ancestors: set[str] | None = None
    if filters.get("ancestor"):
        ancestors = set()
        for term in filters["ancestor"]:
            ancestors |= service.image_family(term)
    networks: set[str] | None = None
    if filters.get("network"):
        networks = set()
        for term in filters["network"]:
            network = service.networks.find(term)
            networks |= {network.id, network.name} if network is not None else {term}
    chosen = []
    for container in service.store.all():
        state = container.state
        if not all and not state.running and limit <= 0 and not filters.get("status"):
            continue
        if before and container.number >= min(c.number for c in before):
            continue
        if since and container.number <= max(c.number for c in since):
            continue
        if filters.get("status") and state.status not in filters["status"]:
            continue
        if filters.get("id") and not any(
            container.id.startswith(i) or text_match([i], container.id) for i in filters["id"]
        ):
            continue
        if filters.get("name") and not any(
            text_match(filters["name"], n) for n in (container.name, container.name[1:])
        ):
            continue
        if filters.get("label") and not labels_match(filters["label"], container.config["Labels"]):
            continue
        if codes and (state.running or state.exit_code not in codes or state.started_at.startswith("0001")):
            continue
        if filters.get("health"):
            health = state.health["Status"] if state.health and state.running else "none"
            if health not in filters["health"]:
                continue
        if filters.get("isolation") and "default" not in filters["isolation"]:
            continue
        if ancestors is not None and container.image_id not in ancestors:
            continue
        if networks is not None and not any(
            name in networks or (s["NetworkID"] and s["NetworkID"] in networks)
            for name, s in container.networks.items()
        ):
            continue
        if filters.get("volume") and not any(
            v in (m.get("Name"), m["Destination"], m["Source"]) for v in filters["volume"] for m in container.mounts
        ):
            continue
        if publish and not any(
            f"{b['HostPort']}/{port.partition('/')[2]}" in publish
            for port, bindings in container.ports.items()
            for b in bindings or []
        ):
            continue
        if expose and not any(
            (p if "/" in p else p + "/tcp") in expose for p in container.config.get("ExposedPorts") or {}
        ):
            continue
        chosen.append(container)
        if limit > 0 and len(chosen) == limit:
            break
    return chosen
