"""A build's steps as operations of a definition (LLB), for provenance that tells all (mode=max).

Source: BuildKit solver/pb (names of fields), solver/llbsolver/provenance/buildconfig.go (how steps are numbered).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.images.distribution import OCI_LAYER

if TYPE_CHECKING:
    from longshore.engine.build.mounts import Wanted
    from longshore.engine.images.store import ImageStore

_KINDS = {"bind": 0, "secret": 1, "ssh": 2, "cache": 3, "tmpfs": 4}
_SHARING = {"shared": 0, "private": 1, "locked": 2}
#: The number of the input that is the step before; further inputs are counted from 1 on.
BASE = 0


@dataclass(slots=True)
class _Step:
    op: dict[str, Any]
    inputs: tuple[int, ...]
    lines: tuple[int, int] = (0, 0)
    image: str = ""
    digest: str = ""


@dataclass(slots=True)
class Steps:
    """The steps of one platform's build. secrets, agents: what its commands asked the client for (id: optional)."""

    found: list[_Step] = field(default_factory=list)
    secrets: dict[str, bool] = field(default_factory=dict)
    agents: dict[str, bool] = field(default_factory=dict)
    _known: dict[bytes, int] = field(default_factory=dict)

    def add(self, op: Mapping[str, Any], inputs: Sequence[int], lines: tuple[int, int] = (0, 0)) -> int:
        """A step's number; the same operation on the same inputs is one step."""
        digests = [self.found[number].digest for number in inputs]
        data = orjson.dumps([op, digests], option=orjson.OPT_SORT_KEYS)
        number = self._known.get(data)
        if number is None:
            number = self._known[data] = len(self.found)
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            self.found.append(_Step(dict(op), tuple(inputs), lines, digest=digest))
        return number

    def source(
        self, identifier: str, attributes: Mapping[str, str] | None = None, platform: str = "",
        lines: tuple[int, int] = (0, 0),
    ) -> int:  # fmt: skip
        source = {"identifier": identifier, **({"attrs": dict(attributes)} if attributes else {})}
        return self.add(_operation({"source": source}, platform), (), lines)

    def made(self, number: int, image: str) -> None:
        """The image that a step made, or was found as."""
        self.found[number].image = image

    def asked(self, wanted: Sequence[Wanted]) -> None:
        """What a command's mounts want of the client."""
        for mount in wanted:
            if mount.kind == "secret":
                self.secrets[mount.id] = self.secrets.get(mount.id, True) and not mount.required
            elif mount.kind == "ssh":
                name = mount.id or "default"
                self.agents[name] = self.agents.get(name, True) and not mount.required

    def described(self, store: ImageStore, last: int | None) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """(buildConfig, locations by step, layers by step's output) of what a result needs. last: the step that made it."""
        if last is None:
            return {}, {}, {}
        order: list[int] = []
        self._walk(last, order)
        names = {number: f"step{position}" for position, number in enumerate(order)}
        end = f"step{len(order)}"
        definition: list[dict[str, Any]] = []
        locations: dict[str, Any] = {}
        layers: dict[str, Any] = {}
        for number in order:
            step, name = self.found[number], names[number]
            inputs = [f"{names[other]}:0" for other in step.inputs]
            definition.append({"id": name, "op": step.op, **({"inputs": inputs} if inputs else {})})
            locations[name] = _location(*step.lines)
            stack = _layers(store, step.image)
            if stack:
                layers[f"{name}:0"] = [stack]
        definition.append({"id": end, "op": {"Op": {}}, "inputs": [f"{names[last]}:0"]})
        mapping = {self.found[number].digest: name for number, name in names.items()}
        mapping["sha256:" + hashlib.sha256(self.found[last].digest.encode()).hexdigest()] = end
        return {"llbDefinition": definition, "digestMapping": mapping}, locations, layers

    def _walk(self, last: int, order: list[int]) -> None:
        """The steps that one needs, it last, each after its inputs."""
        todo = [(last, False)]
        while todo:
            number, ready = todo.pop()
            if number in order:
                continue
            if ready:
                order.append(number)
                continue
            todo.append((number, True))
            todo += [(other, False) for other in reversed(self.found[number].inputs)]


def _layers(store: ImageStore, image: str) -> list[dict[str, Any]]:
    found = store.get(image) if image else None
    if found is None:
        return []
    stack = reversed(store.layers.stack(found.chain))
    return [{"mediaType": OCI_LAYER, "digest": layer.diff, "size": layer.tar_size} for layer in stack]


def _location(first: int, last: int) -> dict[str, Any]:
    if not first:
        return {}
    ranges = [{"start": {"line": line}, "end": {"line": line}} for line in range(first, max(first, last) + 1)]
    return {"locations": [{"ranges": ranges}]}


def _operation(op: Mapping[str, Any], platform: str) -> dict[str, Any]:
    found: dict[str, Any] = {"Op": dict(op)}
    if platform:
        parts = [*platform.split("/"), ""]
        found["platform"] = {"Architecture": parts[1], "OS": parts[0], **({"Variant": parts[2]} if parts[2] else {})}
    return {**found, "constraints": {}}


def command(
    args: Sequence[str], env: Sequence[str], cwd: str, user: str, mounts: Sequence[Wanted], *, platform: str,
    network: str, insecure: bool,
) -> dict[str, Any]:  # fmt: skip
    """RUN as an operation. Inputs: the root, then the bind mounts in their order."""
    listed: list[dict[str, Any]] = [{"input": BASE, "dest": "/", "output": 0}]
    inputs = BASE
    for mount in mounts:
        kind = _KINDS[mount.kind]
        if mount.kind == "bind":
            inputs += 1
        shown: dict[str, Any] = {"input": inputs if mount.kind == "bind" else -1, "dest": mount.target, "output": -1}
        if mount.kind == "bind" and mount.source:
            shown["selector"] = mount.source
        if mount.readonly:
            shown["readonly"] = True
        if kind:
            shown["mountType"] = kind
        if mount.kind == "cache":
            shown["cacheOpt"] = {"ID": mount.id or mount.target, "sharing": _SHARING.get(mount.sharing, 0)}
        elif mount.kind in ("secret", "ssh"):
            option = {"ID": mount.id or "default", **({} if mount.required else {"optional": True})}
            shown["secretOpt" if mount.kind == "secret" else "SSHOpt"] = option
        listed.append(shown)
    meta = {"args": list(args), "env": list(env), "cwd": cwd, **({"user": user} if user else {})}
    found: dict[str, Any] = {"meta": meta, "mounts": listed}
    if network in ("host", "none"):
        found["network"] = 1 if network == "host" else 2
    if insecure:
        found["security"] = 1
    return _operation({"exec": found}, platform)


def folder(path: str, platform: str) -> dict[str, Any]:
    """WORKDIR as an operation."""
    action = {"mkdir": {"path": path, "mode": 0o755, "makeParents": True, "timestamp": -1}}
    return _operation(
        {"file": {"actions": [{"input": BASE, "secondaryInput": -1, "output": 0, "Action": action}]}}, platform
    )


def copy(sources: Sequence[str], target: str, platform: str, *, unpack: bool, mode: str) -> dict[str, Any]:
    """COPY or ADD as an operation. Inputs: the root, then where each source lies."""
    actions: list[dict[str, Any]] = []
    for number, source in enumerate(sources):
        shown: dict[str, Any] = {
            "src": source, "dest": target, "mode": -1, "followSymlink": True, "dirCopyContents": True,
            "createDestPath": True, "allowWildcard": True, "allowEmptyWildcard": True, "timestamp": -1,
        }  # fmt: skip
        if unpack:
            shown["attemptUnpackDockerCompatibility"] = True
        if mode:
            shown["modeStr"] = mode
        before = BASE if not number else len(sources) + number
        output = 0 if number == len(sources) - 1 else -1
        actions.append({"input": before, "secondaryInput": number + 1, "output": output, "Action": {"copy": shown}})
    return _operation({"file": {"actions": actions}}, platform)
