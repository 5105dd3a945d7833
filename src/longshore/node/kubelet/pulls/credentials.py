"""Logins for images: of pull secrets, of the node's own docker configuration; how they match. Pure.

Source: kubernetes pkg/credentialprovider/keyring.go (matching and order), pkg/credentialprovider/secrets.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

DOCKER_HUB, HUB_ALIASES = "index.docker.io", ("docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Source:
    """Whose a login is. kind: "secret" or "account" (of services)."""

    kind: str
    uid: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Login:
    """source: None for one that every pod of the node may use."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    source: Source | None = None

    @property
    def hash(self) -> str:
        """What records keep of it: SHA-256 of upstream's JSON of it, hexadecimal."""
        fields = {"username": self.username, "password": self.password, "identitytoken": self.identity_token}
        return hashlib.sha256(orjson.dumps({k: v for k, v in fields.items() if v})).hexdigest()

    def fields(self) -> dict[str, str]:
        """As CRI's AuthConfig has it."""
        found = {"username": self.username, "password": self.password}
        return found | ({"identity_token": self.identity_token} if self.identity_token else {})


def default_tag(image: str) -> str:
    """The name with :latest when it has neither tag nor digest, otherwise as it is."""
    if "@" in image:
        return image
    return image if ":" in image.rpartition("/")[2] else f"{image}:latest"


def without_tag(image: str) -> str:
    """An image's name as it was written, without tag and digest."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def repository(image: str) -> str:
    """The whole name of an image's repository ("docker.io/library/busybox")."""
    name = without_tag(image)
    head, slash, rest = name.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        return f"docker.io/{rest}" if head == DOCKER_HUB else name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern (HOST with * within its parts, :PORT, /PATH as a beginning) fits a name. Source: URLsMatchStr."""
    (pattern_host, _, pattern_path), (host, _, path) = pattern.partition("/"), name.partition("/")
    (pattern_host, _, pattern_port), (host, _, port) = pattern_host.partition(":"), host.partition(":")
    wanted, parts = pattern_host.split("."), host.split(".")
    return (
        pattern_port == port
        and len(wanted) == len(parts)
        and path.startswith(pattern_path)
        and all(fnmatch.fnmatchcase(part, glob) for part, glob in zip(parts, wanted, strict=True))
    )


def lookup(name: str, entries: Iterable[tuple[str, Login]]) -> list[Login]:
    """The logins that fit a repository's whole name, the most specific pattern first."""
    known = sorted(((_pattern(key), login) for key, login in entries), key=lambda pair: pair[0], reverse=True)
    found = [login for pattern, login in known if matches(pattern, name)]
    if not found and name.startswith("docker.io/"):
        found = [login for pattern, login in known if pattern in (DOCKER_HUB, *HUB_ALIASES)]
    return found


def _pattern(key: str) -> str:
    """An entry's key without scheme and the API's version."""
    host, slash, path = key.removeprefix("https://").removeprefix("http://").partition("/")
    for version in ("v1/", "v2/"):
        path = path.removeprefix(version)
    return host + (slash + path if path.rstrip("/") not in ("", "v1", "v2") else "")


def of_config(config: Any, source: Source | None = None) -> Iterator[tuple[str, Login]]:
    """The entries of a docker configuration (config.json), or of the older form without "auths"."""
    entries = config.get("auths", config) if isinstance(config, dict) else {}
    for key, entry in (entries or {}).items():
        if isinstance(entry, dict) and (login := _login(entry, source)) is not None:
            yield key, login


def of_secret(secret: Mapping[str, Any]) -> Iterator[tuple[str, Login]]:
    """The entries of a pull secret; none of one that is of another type or broken."""
    data, metadata = secret.get("data") or {}, secret.get("metadata") or {}
    text = data.get(".dockerconfigjson") or data.get(".dockercfg")
    if not text:
        return
    try:
        config = orjson.loads(base64.b64decode(text))
    except ValueError:
        return
    who = Source("secret", metadata.get("uid", ""), metadata.get("namespace", ""), metadata.get("name", ""))
    yield from of_config(config, who)


def _login(entry: Mapping[str, Any], source: Source | None) -> Login | None:
    user, password = entry.get("username") or "", entry.get("password") or ""
    if not user and entry.get("auth"):
        try:
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        except ValueError:
            return None
    return Login(user, password, entry.get("identitytoken") or "", source)
