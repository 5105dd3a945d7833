"""Changes to an image's configuration by Dockerfile instructions (--change), and commit.

Source: Docker documentation of docker commit and docker import.
"""

from __future__ import annotations

import contextlib
import posixpath
from typing import Any

from longshore.engine.build import dockerfile, shell
from longshore.engine.build.dockerfile import DockerfileError
from longshore.engine.build.instructions import parse_instruction
from longshore.engine.containers import signals
from longshore.engine.containers.model import CONFIG_FIELDS, normalized
from longshore.engine.errors import EngineError, InvalidParameter
from longshore.engine.images import references

from .router import Call

Json = dict[str, Any]

_ALLOWED = {
    "cmd", "entrypoint", "healthcheck", "env", "expose", "label", "onbuild", "stopsignal", "user", "volume", "workdir",
}  # fmt: skip


def apply_changes(config: Json, changes: list[str]) -> Json:
    """A copy of an image's run configuration with instructions applied. Raises InvalidParameter with dockerd's text."""
    result = {k: (v.copy() if isinstance(v, dict | list) else v) for k, v in config.items()}
    text = "\n".join(changes)
    if not text.strip():
        return result
    try:
        file = dockerfile.parse(text.encode())
    except DockerfileError as error:
        raise InvalidParameter(error.message) from None
    for node in file.nodes:
        if node.command not in _ALLOWED:
            raise InvalidParameter(f"{node.name.upper()} is not a valid change command")
        try:
            instruction = parse_instruction(node)
            _apply(result, instruction)
        except DockerfileError as error:
            raise InvalidParameter(error.message) from None
    return result


def _apply(config: Json, instruction: Any) -> None:
    variables = dict(entry.split("=", 1) for entry in config.get("Env") or [] if "=" in entry)

    def expand(word: str) -> str:
        return shell.expand(word, variables)

    command = instruction.command
    if command in ("cmd", "entrypoint"):
        words = list(instruction.words)
        if instruction.shell and words:
            words = [*(config.get("Shell") or ["/bin/sh", "-c"]), *words]
        config["Cmd" if command == "cmd" else "Entrypoint"] = words or None
    elif command == "env":
        environment = list(config.get("Env") or [])
        for name, value in instruction.pairs:
            name, value = expand(name), expand(value or "")
            environment = (
                [e for e in environment if e.split("=", 1)[0] != name]
                if not any(e.split("=", 1)[0] == name for e in environment)
                else [f"{name}={value}" if e.split("=", 1)[0] == name else e for e in environment]
            )
            if f"{name}={value}" not in environment:
                environment.append(f"{name}={value}")
        config["Env"] = environment
    elif command == "label":
        labels = dict(config.get("Labels") or {})
        labels.update({expand(name): expand(value or "") for name, value in instruction.pairs})
        config["Labels"] = labels
    elif command == "expose":
        ports = dict(config.get("ExposedPorts") or {})
        for word in instruction.words:
            text = expand(word)
            number, _, protocol = text.partition("/")
            low, dash, high = number.partition("-")
            if not low.isdigit() or (dash and not high.isdigit()):
                raise InvalidParameter(f"invalid containerPort: {number}")
            for each in range(int(low), int(high or low) + 1):
                ports[f"{each}/{(protocol or 'tcp').lower()}"] = {}
        config["ExposedPorts"] = ports
    elif command == "volume":
        volumes = dict(config.get("Volumes") or {})
        volumes.update({expand(word): {} for word in instruction.words})
        config["Volumes"] = volumes
    elif command == "user":
        config["User"] = expand(instruction.words[0])
    elif command == "workdir":
        path = expand(instruction.words[0])
        config["WorkingDir"] = posixpath.normpath(posixpath.join(config.get("WorkingDir") or "/", path))
    elif command == "stopsignal":
        signals.parse(expand(instruction.words[0]))
        config["StopSignal"] = expand(instruction.words[0])
    elif command == "healthcheck":
        config["Healthcheck"] = dict(instruction.health)
    elif command == "onbuild":
        config["OnBuild"] = [*(config.get("OnBuild") or []), instruction.inner]


async def commit(call: Call, body: Json) -> str:
    """Make an image of a container; returns its id. Raises EngineError classes."""
    service = call.api.containers
    container = service.find(call.param("container"))
    repository, tag = call.param("repo"), call.param("tag")
    name = None
    if repository:
        name = references.parse(repository)
        if tag:
            name = name.with_tag(tag)
        name = name.with_default_tag()
    changes = [line for text in call.params("changes") for line in text.split("\n")]
    base = {
        k: v
        for k, v in container.config.items()
        if k not in ("Hostname", "Domainname", "MacAddress", "NetworkDisabled")
    }
    run_config = apply_changes(normalized(body, CONFIG_FIELDS) if body else base, changes)
    merged = dict(base)
    for key, value in run_config.items():
        if value in (None, "", False, [], {}):
            continue
        if key in ("Labels", "Volumes", "ExposedPorts"):
            merged[key] = {**(merged.get(key) or {}), **value}
        elif key == "Env":
            names = {entry.split("=", 1)[0] for entry in value}
            merged[key] = [*value, *(e for e in merged.get("Env") or [] if e.split("=", 1)[0] not in names)]
        else:
            merged[key] = value
    for key in ("AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce"):
        merged[key] = False
    merged["Hostname"] = merged["Domainname"] = ""
    pause = call.flag("pause", True) or call.version < (1, 13)
    paused = False
    if pause and container.state.running and not container.state.paused and not container.state.restarting:
        try:
            await service.lifecycle.pause(container)
            paused = True
        except EngineError:
            paused = False
    try:
        image = await service.images.commit(
            container.id,
            merged,
            name=name,
            author=call.param("author"),
            comment=call.param("comment"),
            created_by=" ".join([container.path, *container.args]),
            container_config=container.config,
        )
    finally:
        if paused:
            # It may have been killed meanwhile.
            with contextlib.suppress(EngineError):
                await service.lifecycle.unpause(container)
    attributes = {"comment": call.param("comment"), "imageID": image.id, "imageRef": name.familiar if name else ""}
    service.event(container, "commit", attributes)
    return str(image.id)
