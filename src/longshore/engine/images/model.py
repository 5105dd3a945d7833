"""What an image is: its configuration and how dockerd shows it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

# The engine release whose behaviour this one has; images that are made here carry it as their docker_version.
ENGINE_VERSION = "28.5.2"
ZERO_TIME = "0001-01-01T00:00:00Z"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}


@functools.cache
def host_architecture() -> str:
    """This machine's architecture in GOARCH terms."""
    import os

    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


@dataclass(frozen=True)
class Image:
    """One image. id: the digest of its config; chain: its topmost layer's chain id ("" without layers).

    size: bytes of content of all layers; created, tagged: nanoseconds since the epoch (tagged 0: never).
    """

    id: str
    parent: str
    chain: str
    raw: bytes
    size: int
    created: int
    tagged: int

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The whole config object (OCI image-spec config.md with Docker's additions)."""
        loaded: dict[str, Any] = orjson.loads(self.raw)
        return loaded

    @property
    def run_config(self) -> dict[str, Any]:
        """The `config` member: Env, Cmd, Entrypoint, User, WorkingDir, Labels, Volumes, ExposedPorts ..."""
        inner = self.config.get("config")
        return inner if isinstance(inner, dict) else {}

    @property
    def labels(self) -> dict[str, str]:
        return self.run_config.get("Labels") or {}

    @property
    def diff_ids(self) -> list[str]:
        return list((self.config.get("rootfs") or {}).get("diff_ids") or [])

    @property
    def platform(self) -> str:
        return f"{self.config.get('os') or 'linux'}/{self.config.get('architecture') or ''}"

    @property
    def short(self) -> str:
        return self.id.partition(":")[2][:12]


def now_text() -> str:
    """Now in RFC 3339 with nanoseconds, as Go writes it (no trailing zeros)."""
    import time

    return time_text(time.time_ns())


def time_text(nanoseconds: int) -> str:
    seconds, fraction = divmod(nanoseconds, 10**9)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text + (f".{fraction:09d}".rstrip("0") if fraction else "") + "Z"


def parse_time(text: str | None) -> int:
    """RFC 3339 to nanoseconds since the epoch; what is no time, or before the epoch, is 0."""
    if not text:
        return 0
    head, dot, tail = text.partition(".")
    digits = ""
    if dot:
        while tail and tail[0].isdigit():
            digits, tail = digits + tail[0], tail[1:]
        head += tail
    try:
        whole = datetime.fromisoformat(head.replace("Z", "+00:00"))
    except ValueError:
        return 0
    if whole.tzinfo is None:
        whole = whole.replace(tzinfo=UTC)
    return max(0, int(whole.timestamp()) * 10**9 + int((digits + "000000000")[:9]))


def encode(config: dict[str, Any]) -> bytes:
    """The config's bytes, whose digest is the image's id."""
    return orjson.dumps(config)


_ALWAYS = ("Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "User", "Volumes", "WorkingDir")
_WHERE_SET = ("ExposedPorts", "Healthcheck", "Shell", "StopSignal", "StopTimeout", "ArgsEscaped")


def inspect_config(run_config: dict[str, Any]) -> dict[str, Any]:
    """The Config of image inspect (API 1.50 and newer): only what an image can say."""
    shown: dict[str, Any] = {key: run_config.get(key) or None for key in _ALWAYS}
    shown["User"] = shown["User"] or ""
    shown["WorkingDir"] = shown["WorkingDir"] or ""
    for key in _WHERE_SET:
        if run_config.get(key):
            shown[key] = run_config[key]
    return shown


def legacy_config(run_config: dict[str, Any]) -> dict[str, Any]:
    """A whole container configuration, as older API versions show it."""
    shown: dict[str, Any] = {
        "Hostname": "",
        "Domainname": "",
        "User": "",
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "OpenStdin": False,
        "StdinOnce": False,
        "Env": None,
        "Cmd": None,
        "Image": "",
        "Volumes": None,
        "WorkingDir": "",
        "Entrypoint": None,
        "OnBuild": None,
        "Labels": None,
    }
    for key, value in run_config.items():
        if value or key in shown:
            shown[key] = value
    return shown
