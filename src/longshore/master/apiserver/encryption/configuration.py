"""EncryptionConfiguration: which ciphers the values of a storage key have.

Source: k8s.io/apiserver/pkg/apis/apiserver/validation/validation_encryption.go, pkg/server/options/encryptionconfig.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from longshore.api import times
from longshore.api.kinds import KINDS as RESOURCES
from longshore.api.validation.errors import quote
from longshore.master.apiserver import configfile
from longshore.master.apiserver.keys import ROOT, folder

from .ciphers import KINDS, Cipher, Identity, Keyed
from .errors import EncryptionError

Object = dict[str, Any]
_VERSIONS = ("apiserver.config.k8s.io/v1",)
_PROVIDERS = ("kms", "aesgcm", "aescbc", "secretbox", "identity")
_NOT_REST = ("apiserveripinfo", "serviceipallocations", "servicenodeportallocations")
_KMS_SECONDS = 3.0


class Configuration:
    """Which ciphers the values of a storage key have. EncryptionError when the file cannot be taken.

    digest: of the file. providers: key management services; they have to be started.
    """

    def __init__(self, given: Object, digest: str = "", *, reload: bool = False) -> None:
        self.digest = digest
        self.providers: list[Any] = []
        self._by_folder: dict[bytes, list[Cipher]] = {}
        self._by_group: dict[bytes, list[Cipher]] = {}
        self._rest: list[Cipher] | None = None
        problems = _problems(given, reload)
        if problems:
            raise EncryptionError(problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]")
        seen: set[str] = set()
        for entry in given["resources"]:
            ciphers = [c for provider in entry["providers"] for c in self._ciphers(provider)]
            for name in entry["resources"]:
                plural, _, group = name.partition(".")
                for masking in (f"*.{group}", "*.*"):
                    if masking in seen:
                        raise EncryptionError(f'resource "{name}" is masked by earlier rule "{masking}"')
                self._cover(plural, group, ciphers)
            seen.update(entry["resources"])

    def _ciphers(self, provider: Object) -> list[Cipher]:
        ((kind, given),) = provider.items()
        if kind == "identity":
            return [Identity()]
        if kind != "kms":
            make, _ = KINDS[kind]
            return [Keyed(kind, key["name"], *make(base64.b64decode(key["secret"]))) for key in given["keys"]]
        if given.get("apiVersion", "v1") == "v1":
            raise EncryptionError(
                "error while building transformers: KMSv1 is deprecated and will only receive security updates going"
                " forward. Use KMSv2 instead.  Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature."
            )
        from .kms import KeyManagement

        found = KeyManagement(given["name"], _socket(given["endpoint"]), _timeout(given))
        self.providers.append(found)
        return [found]

    def _cover(self, plural: str, group: str, ciphers: list[Cipher]) -> None:
        if (plural, group) == ("*", "*"):
            self._rest = self._rest or ciphers
            return
        for g, p in RESOURCES:
            if g == group and plural in (p, "*"):
                self._by_folder.setdefault(folder(g, p).encode(), ciphers)
        if plural == "*":
            self._by_group.setdefault(group.encode(), ciphers)
        else:
            self._by_folder.setdefault(folder(group, plural, True).encode(), ciphers)

    @staticmethod
    def load(file: Path, *, reload: bool = False) -> Configuration:
        """The configuration in a YAML file. EncryptionError or OSError."""
        data = file.read_bytes()
        if not data:
            raise EncryptionError(f'encryption provider configuration file "{file}" is empty')
        try:
            value = configfile.parse(data, str(file), "EncryptionConfiguration", _VERSIONS)
        except configfile.ConfigurationError as error:
            raise EncryptionError(f"error while parsing file: {error}") from None
        return Configuration(value, f"sha256:{hashlib.sha256(data).hexdigest()}", reload=reload)

    def ciphers(self, key: bytes) -> list[Cipher] | None:
        """The ciphers for a storage key, None: nothing is enciphered."""
        if not key.startswith(ROOT.encode()):
            return None
        first, _, rest = key[len(ROOT) :].partition(b"/")
        two = first + b"/" + rest.partition(b"/")[0]
        return (
            self._by_folder.get(two) or self._by_folder.get(first) or (self._by_group.get(first) if b"." in first else None)
            or self._rest
        )  # fmt: skip


def _socket(endpoint: str) -> str:
    """unix:///run/a.sock names a path, unix:///@a an abstract socket."""
    path = urlsplit(endpoint).path
    return "\0" + path[2:] if path.startswith("/@") else path


def _timeout(given: Object) -> float:
    return times.parse_duration(given["timeout"]) / 1_000_000_000 if given.get("timeout") else _KMS_SECONDS


def _problems(given: Object, reload: bool) -> list[str]:
    """What is wrong with a configuration, in upstream's words."""
    entries = given.get("resources")
    if not entries:
        return ["resources: Required value: at least one resources is required"]
    out: list[str] = []
    names: set[str] = set()
    for i, entry in enumerate(entries):
        at = f"resources[{i}]"
        resources, providers = entry.get("resources") or [], entry.get("providers") or []
        if not resources:
            out.append(f"{at}.resources: Required value: at least one {at}.resources is required")
        out += _resource_problems(resources, f"{at}.resources")
        if not providers:
            out.append(f"{at}.providers: Required value: at least one {at}.providers is required")
        for j, provider in enumerate(providers):
            out += _provider_problems(provider, f"{at}.providers[{j}]", names, reload)
    return out


def _resource_problems(resources: list[str], at: str) -> list[str]:
    out: list[str] = []
    shown = f"{at}: Invalid value: [{','.join(quote(r) for r in resources)}]: "
    if len(set(resources)) < len(resources):
        out.append(shown + "the same resource cannot be specified multiple times")
    pairs = [(r.partition(".")[0], r.partition(".")[2]) for r in dict.fromkeys(resources)]
    if len(pairs) > 1 and any(
        one == ("*", "*") or (one != two and one[1] == two[1] and "*" in (one[0], two[0]))
        for one in pairs
        for two in pairs
    ):
        out.append(
            shown + "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as"
            " they will be masked"
        )
    for j, name in enumerate(resources):
        if problem := _name_problem(name):
            out.append(f"{at}[{j}]: Invalid value: {quote(name)}: {problem}")
    return out


def _name_problem(name: str) -> str:
    plural, _, group = name.partition(".")
    if name.lower() != name:
        return "resource name should not contain capital letters"
    if name == "*":
        return "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
    if name in _NOT_REST:
        return "resources which do not have REST API/s cannot be encrypted"
    if group == "events.k8s.io":
        return (
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config"
            " file"
        )
    if group == "extensions":
        return "'extensions' group has been removed and cannot be used for encryption"
    return "encrypting the same resource across groups is not supported" if group == "*" and plural != "*" else ""


def _provider_problems(provider: Object, at: str, names: set[str], reload: bool) -> list[str]:
    given = [k for k in _PROVIDERS if provider.get(k) is not None]
    if not given or len(given) < len(provider):
        return [
            f"{at}: Invalid value: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox,"
            " Identity"
        ]
    if len(given) > 1:
        return [
            f"{at}: Invalid value: more than one provider specified in a single element, should split into different list elements"
        ]
    kind = given[0]
    if kind == "identity":
        return []
    if kind == "kms":
        return _kms_problems(provider["kms"], f"{at}.kms", names, reload)
    keys = provider[kind].get("keys") or []
    if not keys:
        return [f"{at}.{kind}.keys: Required value: at least one keys is required"]
    return [p for i, key in enumerate(keys) for p in _key_problems(key, f"{at}.{kind}.keys[{i}]", KINDS[kind][1])]


def _key_problems(key: Object, at: str, sizes: tuple[int, ...]) -> list[str]:
    out = []
    if not key.get("name"):
        out.append(f"{at}.name: Required value: name is a mandatory field for a key")
    if not key.get("secret"):
        return [*out, f"{at}.secret: Required value: secret is a mandatory field for a key"]
    try:
        size = len(base64.b64decode(key["secret"], validate=True))
    except (binascii.Error, ValueError, TypeError):
        return [*out, f'{at}.secret: Invalid value: "REDACTED": secrets must be base64 encoded']
    if size not in sizes:
        wanted = " ".join(map(str, sizes))
        out.append(
            f'{at}.secret: Invalid value: "REDACTED": secret is not of the expected length, got {size}, expected one of'
            f" [{wanted}]"
        )
    return out


def _kms_problems(given: Object, at: str, names: set[str], reload: bool) -> list[str]:
    out = []
    name, version = given.get("name") or "", given.get("apiVersion") or "v1"
    if not name:
        out.append(f"{at}.name: Required value: name is a mandatory field for a provider")
    if version != "v1" and ":" in name:
        out.append(f"{at}.name: Invalid value: {quote(name)}: invalid KMS provider name {name}, must not contain ':'")
    if (reload or version != "v1") and name in names:
        out.append(f"{at}.name: Invalid value: {quote(name)}: duplicate KMS provider name {name}, names must be unique")
    names.add(name)
    try:
        if _timeout(given) <= 0:
            raise ValueError
    except (ValueError, TypeError):
        out.append(f"{at}.timeout: Invalid value: {quote(str(given['timeout']))}: timeout should be a positive value")
    endpoint = given.get("endpoint") or ""
    if not endpoint:
        out.append(f'{at}.endpoint: Invalid value: "": endpoint is a mandatory field for a kms')
    elif (scheme := urlsplit(endpoint).scheme) != "unix":
        out.append(
            f"{at}.endpoint: Invalid value: {quote(endpoint)}: unsupported scheme {quote(scheme)} for KMS provider, only"
            " unix is supported"
        )
    if version != "v1" and given.get("cachesize") is not None:
        out.append(f"{at}.cachesize: Invalid value: {given['cachesize']}: cachesize is not supported in v2")
    if version not in ("v1", "v2"):
        out.append(
            f"{at}.apiVersion: Invalid value: {quote(version)}: unsupported apiVersion apiVersion for KMS provider, only v1"
            " and v2 are supported"
        )
    return out
