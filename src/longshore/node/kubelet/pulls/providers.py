"""Credential providers: programs of an administrator that are asked for the logins of an image.

Source: k8s.io/kubelet/pkg/apis/credentialprovider/v1 (what goes in and out), kubernetes pkg/credentialprovider/plugin
(configuration, caches, service account tokens).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from longshore.machinery.errors import StatusError
from longshore.machinery.http import ClientError
from longshore.machinery.process import ProcessFailed, run
from longshore.node.kubelet.pulls.credentials import Login, Source, matches

log = logging.getLogger("longshore.kubelet.credentials")
Pod = dict[str, Any]
#: what goes to a program and what comes back: so many seconds, so many bytes
CALL_SECONDS, ANSWER_LIMIT = 60.0, 4 << 20
GROUP = "credentialprovider.kubelet.k8s.io"
VERSIONS = tuple(f"{GROUP}/{version}" for version in ("v1", "v1alpha1", "v1beta1"))
_CONFIGS = tuple(f"kubelet.config.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1"))
_CACHE_TYPES = ("ServiceAccount", "Token")
Entries = list[tuple[str, Login]]
#: (pod, audience) -> token
Tokens = Callable[[Pod, str], Awaitable[str]]
#: (namespace, name) -> the ServiceAccount
Accounts = Callable[[str, str], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class TokenAttributes:
    """Which service account token a program is given, and which annotations of the account."""

    audience: str
    required: bool
    cache_type: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """One program, as a CredentialProviderConfig names it. cache: seconds that an answer is kept which does not say."""

    name: str
    version: str
    images: tuple[str, ...]
    cache: float
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    token: TokenAttributes | None = None


def read(path: Path) -> list[ProviderConfig]:
    """The programs of a CredentialProviderConfig, or of all of a folder. Blocking. Raises OSError, ValueError."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".yaml", ".yml"))
        if not files:
            raise ValueError(f'no configuration files found in directory "{path}"')
    found: list[ProviderConfig] = []
    for file in files:
        try:
            found += _decode(file.read_bytes())
        except ValueError as error:
            raise ValueError(f'error decoding config "{file}": {error}') from error
    names = [provider.name for provider in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'duplicate provider name "{name}" found in configuration file(s)')
    if not found:
        raise ValueError("failed to validate credential provider config: providers: Required value: at least 1 item in plugins is required")  # fmt: skip
    return found


def _decode(data: bytes) -> list[ProviderConfig]:
    from longshore.api.decoding import parse_yaml

    config = parse_yaml(data).value
    if not isinstance(config, dict) or config.get("apiVersion") not in _CONFIGS:
        raise ValueError("not a CredentialProviderConfig of kubelet.config.k8s.io")
    if config.get("kind") != "CredentialProviderConfig":
        raise ValueError(f'failed to decode "{config.get("kind")}" (wrong Kind)')
    try:
        return [_provider(entry) for entry in config.get("providers") or ()]
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"failed to validate credential provider config: {error}") from error


def _provider(entry: Mapping[str, Any]) -> ProviderConfig:
    from longshore.api.times import parse_duration

    name, version, images = str(entry.get("name") or ""), entry.get("apiVersion") or "", entry.get("matchImages") or ()
    for wrong, text in (
        ("/" in name, f"providers.name: Invalid value: \"{name}\": provider name cannot contain '/'"),
        (" " in name, f'providers.name: Invalid value: "{name}": provider name cannot contain spaces'),
        (name in (".", ".."), f"providers.name: Invalid value: \"{name}\": provider name cannot be '{name}'"),
        (not version, "providers.apiVersion: Required value"),
        (
            version and version not in VERSIONS,
            f'providers.apiVersion: Unsupported value: "{version}": supported values: '
            + ", ".join(f'"{v}"' for v in VERSIONS),
        ),
        (not images, "providers.matchImages: Required value: at least 1 item in matchImages is required"),
        (entry.get("defaultCacheDuration") is None, "providers.defaultCacheDuration: Required value"),
    ):
        if wrong:
            raise ValueError(f"failed to validate credential provider config: {text}")
    cache = parse_duration(str(entry["defaultCacheDuration"])) / 1e9
    if cache < 0:
        raise ValueError("failed to validate credential provider config: providers.defaultCacheDuration: Invalid value: must be greater than or equal to 0")  # fmt: skip
    return ProviderConfig(
        name,
        version,
        tuple(map(str, images)),
        cache,
        tuple(map(str, entry.get("args") or ())),
        tuple((str(e["name"]), str(e["value"])) for e in entry.get("env") or ()),
        _attributes(entry["tokenAttributes"], version) if entry.get("tokenAttributes") else None,
    )


def _attributes(given: Mapping[str, Any], version: str) -> TokenAttributes:
    audience, required = str(given.get("serviceAccountTokenAudience") or ""), given.get("requireServiceAccount")
    needs = tuple(given.get("requiredServiceAccountAnnotationKeys") or ())
    takes = tuple(given.get("optionalServiceAccountAnnotationKeys") or ())
    cache_type = given.get("cacheType") or ""
    field = "failed to validate credential provider config: providers.tokenAttributes"
    if not audience:
        raise ValueError(f"{field}.serviceAccountTokenAudience: Required value")
    if not isinstance(required, bool):
        raise ValueError(f"{field}.requireServiceAccount: Required value")
    if version != VERSIONS[0]:
        raise ValueError(f"{field}: Forbidden: tokenAttributes is only supported for {VERSIONS[0]} API version")
    if not required and needs:
        raise ValueError(f"{field}.requiredServiceAccountAnnotationKeys: Forbidden: requireServiceAccount cannot be false when requiredServiceAccountAnnotationKeys is set")  # fmt: skip
    if set(needs) & set(takes):
        raise ValueError(f"{field}: Invalid value: annotation keys cannot be both required and optional")
    if cache_type not in _CACHE_TYPES:
        raise ValueError(f'{field}.cacheType: Unsupported value: "{cache_type}": supported values: "ServiceAccount", "Token"')  # fmt: skip
    return TokenAttributes(audience, required, cache_type, needs, takes)


@dataclass(frozen=True, slots=True)
class _Account:
    """Whose token goes to a program. key: what answers are kept under besides the image."""

    token: str
    annotations: Mapping[str, str]
    source: Source
    key: str


class Provider:
    """One program and its answers."""

    def __init__(self, config: ProviderConfig, program: Path, tokens: Tokens, accounts: Accounts) -> None:
        self.config, self._program = config, program
        self._tokens, self._accounts = tokens, accounts
        #: (image, registry or "", account) -> (until when, entries)
        self._kept: dict[tuple[str, str], tuple[float, Entries]] = {}
        self._asked: dict[tuple[str, str], asyncio.Task[Entries]] = {}
        self.failures = 0

    async def entries(self, image: str, pod: Pod) -> Entries:
        """The logins that the program has for an image (a repository's whole name); none where it fails, which is logged."""
        if not any(matches(pattern, image) for pattern in self.config.images):
            return []
        try:
            account = await self._account(pod)
            if account is False:
                return []
            return await self._entries(image, None if account is True else account)
        except (StatusError, ClientError, OSError, ProcessFailed, ValueError) as error:
            self.failures += 1
            log.warning("credential provider %s for %s: %s", self.config.name, image, error)
            return []

    async def _account(self, pod: Pod) -> _Account | bool:
        """The pod's account; True: none is needed; False: the program is not for this pod."""
        wanted = self.config.token
        if wanted is None:
            return True
        namespace, name = pod["metadata"]["namespace"], pod["spec"].get("serviceAccountName") or ""
        if not name:
            return not wanted.required
        metadata = (await self._accounts(namespace, name))["metadata"]
        have = metadata.get("annotations") or {}
        if any(key not in have for key in wanted.needs):
            return False
        annotations = {key: have[key] for key in (*wanted.needs, *wanted.takes) if key in have}
        token = await self._tokens(pod, wanted.audience)
        parts = [namespace, name, metadata["uid"], annotations]
        if wanted.cache_type == "Token":
            parts.append(hashlib.sha256(token.encode()).hexdigest())
        key = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS).decode()
        return _Account(token, annotations, Source("account", metadata["uid"], namespace, name), key)

    async def _entries(self, image: str, account: _Account | None) -> Entries:
        who = account.key if account else ""
        now = time.monotonic()
        self._kept = {key: kept for key, kept in self._kept.items() if kept[0] > now}
        for where in (image, image.partition("/")[0], ""):
            if (where, who) in self._kept:
                return self._kept[where, who][1]
        # One question at a time about an image: who asks meanwhile is given the same answer.
        question = image, who + (account.token if account else "")
        task = self._asked.get(question)
        if task is None:
            task = self._asked[question] = asyncio.create_task(self._ask(image, account))
            task.add_done_callback(lambda _: self._asked.pop(question, None))
        return await asyncio.shield(task)

    async def _ask(self, image: str, account: _Account | None) -> Entries:
        request: dict[str, Any] = {"apiVersion": self.config.version, "kind": "CredentialProviderRequest", "image": image}  # fmt: skip
        if account is not None:
            request["serviceAccountToken"] = account.token
            request["serviceAccountAnnotations"] = dict(account.annotations)
        done = await run(
            [str(self._program), *self.config.arguments],
            stdin=orjson.dumps(request),
            env={**os.environ, **dict(self.config.environment)},
            timeout=CALL_SECONDS,
            output_limit=ANSWER_LIMIT,
        )
        return self._taken(image, account, done.stdout)

    def _taken(self, image: str, account: _Account | None, data: bytes) -> Entries:
        try:
            answer = orjson.loads(data)
            version, auth = answer.get("apiVersion"), answer.get("auth") or {}
            kind, seconds = answer.get("cacheKeyType"), _seconds(answer.get("cacheDuration"), self.config.cache)
            source = account.source if account else None
            entries = [(k, Login(str(a.get("username") or ""), str(a.get("password") or ""), "", source)) for k, a in auth.items()]  # fmt: skip
        except (ValueError, AttributeError, TypeError):
            # What it says may hold passwords: none of it is told.
            raise ValueError("error decoding credential provider plugin response from stdout") from None
        if version != self.config.version:
            raise ValueError(f"apiVersion from credential plugin response did not match expected apiVersion:{self.config.version}, actual apiVersion:{version}")  # fmt: skip
        wanted = self.config.token
        if account and wanted and wanted.cache_type != "Token" and any(e.password == account.token for _, e in entries):
            raise ValueError("credential provider plugin returned the service account token as the password which is not allowed when service account cache type is not set to 'Token'")  # fmt: skip
        where = {"Image": image, "Registry": image.partition("/")[0], "Global": ""}.get(str(kind))
        if where is None:
            raise ValueError(f"credential provider plugin did not return a valid cacheKeyType: {kind}")
        if seconds > 0:
            self._kept[where, account.key if account else ""] = (time.monotonic() + seconds, entries)
        return entries


def _seconds(text: Any, default: float) -> float:
    from longshore.api.times import parse_duration

    return default if text is None else parse_duration(str(text)) / 1e9


def providers(config: Path, folder: Path, tokens: Tokens, accounts: Accounts) -> list[Provider]:
    """The programs of a configuration, found in a folder. Blocking. Raises ValueError, OSError."""
    if not folder.is_dir():
        raise ValueError(f"plugin binary directory {folder} did not exist")
    found = []
    for one in read(config):
        program = shutil.which(folder / one.name)
        if program is None:
            raise ValueError(f"plugin binary executable {folder / one.name} did not exist")
        found.append(Provider(one, Path(program), tokens, accounts))
    return found
