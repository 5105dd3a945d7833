"""The server's configuration files: YAML or JSON, one object with kind and apiVersion."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from longshore.api import decoding

Object = dict[str, Any]


class ConfigurationError(ValueError):
    """A file that cannot be taken; the text names the field."""


def read(file: Path, kind: str, versions: Container[str]) -> Object:
    """The object in a file, which has to be of a kind and of one of the API versions. ConfigurationError or OSError."""
    return parse(file.read_bytes(), str(file), kind, versions)


def parse(data: bytes, name: str, kind: str, versions: Container[str]) -> Object:
    """As `read`, of octets that came from `name`."""
    try:
        found = decoding.parse_yaml(data).value
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}") from None
    if not isinstance(found, dict) or found.get("kind") != kind:
        raise ConfigurationError(f"{name}: expected {kind}")
    if found.get("apiVersion") not in versions:
        raise ConfigurationError(f"{name}: unknown apiVersion {found.get('apiVersion')!r}")
    return found
