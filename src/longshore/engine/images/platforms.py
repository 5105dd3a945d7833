"""Platforms as people write them: "linux/arm64/v8", "amd64", "linux". Source: containerd/platforms platforms.go, database.go."""

from __future__ import annotations

import re

from longshore.engine.errors import InvalidParameter
from longshore.engine.images.model import host_architecture

_SYSTEM_FORM = r"^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.-]*)\))?$"
_PART_FORM = r"^[A-Za-z0-9_.-]+$"
_SYSTEMS = re.compile(
    "aix|android|darwin|dragonfly|freebsd|hurd|illumos|ios|js|linux|nacl|netbsd|openbsd|plan9|solaris|windows|zos"
)
_ARCHITECTURES = re.compile(
    "386|amd64|amd64p32|arm|armbe|arm64|arm64be|ppc64|ppc64le|loong64|mips|mipsle|mips64|mips64le|mips64p32|mips64p32le|ppc|"
    "riscv|riscv64|s390|s390x|sparc|sparc64|wasm"
)
_ALIASES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "armhf": "arm/v7",
    "armel": "arm/v6",
}


def parse(text: str) -> str:
    """A platform in its normal form, with this machine's architecture or linux where one of them is left out.

    Raises InvalidParameter.
    """
    for place, part in enumerate(text.split("/")):
        form = _PART_FORM if place else _SYSTEM_FORM
        if not re.fullmatch(form, part):
            what, rule = ("", "platform") if place else ("OS ", "OSAndVersion")
            shown = form.replace("\\", "\\\\")
            raise InvalidParameter(
                f'"{part}" is an invalid {what}component of "{text}": {rule} specifier component must match "{shown}": '
                "invalid argument"
            )
    parts = text.lower().split("/")
    if len(parts) > 3:
        raise InvalidParameter(f'"{text}": cannot parse platform specifier: invalid argument')
    parts[0] = "darwin" if parts[0] == "macos" else parts[0]
    if len(parts) > 1:
        return "/".join([parts[0], _ALIASES.get(parts[1], parts[1]), *parts[2:]])
    if _SYSTEMS.fullmatch(parts[0]):
        return f"{parts[0]}/{host_architecture()}"
    architecture = _ALIASES.get(parts[0], parts[0])
    if not _ARCHITECTURES.fullmatch(architecture.partition("/")[0]):
        raise InvalidParameter(f'"{text}": unknown operating system or architecture: invalid argument')
    return f"linux/{architecture}"
