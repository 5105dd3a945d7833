"""Encryption at rest: a store whose values of chosen resources are enciphered, as EncryptionConfiguration says.

What is written has upstream's form (`k8s:enc:aesgcm:v1:<key name>:` and so on), so either server reads the other's store.
Source: k8s.io/apiserver/pkg/server/options/encryptionconfig and storage/value/encrypt/{aes,identity}.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from longshore.api import decoding
from longshore.api.kinds import KINDS
from longshore.master.apiserver.keys import ROOT, folder

Object = dict[str, Any]
_PREFIX = b"k8s:enc:"


class EncryptionError(ValueError):
    """The configuration is not one, or a value cannot be read with it."""


class Cipher:
    """One provider's key: `seal` and `open` take the storage key that the value belongs to."""

    def __init__(
        self, prefix: bytes, seal: Callable[[bytes, bytes], bytes], open: Callable[[bytes, bytes], bytes]
    ) -> None:
        self.prefix = prefix
        self.seal = seal
        self.open = open


def _gcm(secret: bytes) -> tuple[Callable[[bytes, bytes], bytes], Callable[[bytes, bytes], bytes]]:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher = AESGCM(secret)

    def seal(value: bytes, key: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + cipher.encrypt(nonce, value, key)

    return seal, lambda value, key: cipher.decrypt(value[:12], value[12:], key)


def _cbc(secret: bytes) -> tuple[Callable[[bytes, bytes], bytes], Callable[[bytes, bytes], bytes]]:
    from cryptography.hazmat.primitives.ciphers import Cipher as Block
    from cryptography.hazmat.primitives.ciphers import algorithms, modes
    from cryptography.hazmat.primitives.padding import PKCS7

    def seal(value: bytes, key: bytes) -> bytes:
        start = os.urandom(16)
        padder, encryptor = PKCS7(128).padder(), Block(algorithms.AES(secret), modes.CBC(start)).encryptor()
        return start + encryptor.update(padder.update(value) + padder.finalize()) + encryptor.finalize()

    def open(value: bytes, key: bytes) -> bytes:
        decryptor = Block(algorithms.AES(secret), modes.CBC(value[:16])).decryptor()
        unpadder = PKCS7(128).unpadder()
        return unpadder.update(decryptor.update(value[16:]) + decryptor.finalize()) + unpadder.finalize()

    return seal, open


_IDENTITY = Cipher(b"", lambda value, key: value, lambda value, key: value)
_KINDS = {"aesgcm": _gcm, "aescbc": _cbc}


def _ciphers(providers: list[Object]) -> list[Cipher]:
    """The ciphers of a list of providers; the first one writes."""
    out: list[Cipher] = []
    for provider in providers:
        (name, given), *more = provider.items() or [("", None)]
        if more:
            raise EncryptionError("a provider has one kind")
        if name == "identity":
            out.append(_IDENTITY)
            continue
        make = _KINDS.get(name)
        if make is None:
            raise EncryptionError(f"provider {name!r} is not supported: {', '.join([*_KINDS, 'identity'])}")
        for key in (given or {}).get("keys") or ():
            try:
                secret = base64.b64decode(key["secret"], validate=True)
            except (KeyError, ValueError):
                raise EncryptionError(f"{name}: the secret of key {key.get('name')!r} is not base64") from None
            if len(secret) not in (16, 24, 32):
                raise EncryptionError(
                    f"{name}: the secret of key {key['name']!r} has {len(secret)} octets, not 16, 24 or 32"
                )
            out.append(Cipher(b"%b%b:v1:%b:" % (_PREFIX, name.encode(), key["name"].encode()), *make(secret)))
    if not out:
        raise EncryptionError("no providers")
    return out


class Configuration:
    """Which ciphers the values of a storage key have."""

    def __init__(self, given: Object) -> None:
        if given.get("kind") != "EncryptionConfiguration":
            raise EncryptionError("not an EncryptionConfiguration")
        self._by_folder: dict[bytes, list[Cipher]] = {}
        self._by_group: dict[bytes, list[Cipher]] = {}
        self._rest: list[Cipher] | None = None
        for entry in given.get("resources") or ():
            ciphers = _ciphers(list(entry.get("providers") or ()))
            for name in entry.get("resources") or ():
                self._cover(name, ciphers)

    def _cover(self, name: str, ciphers: list[Cipher]) -> None:
        plural, _, group = name.partition(".")
        if name == "*.*":
            self._rest = self._rest or ciphers
            return
        for g, p in KINDS:
            if g == group and plural in (p, "*"):
                self._by_folder.setdefault(folder(g, p).encode(), ciphers)
        if plural == "*":
            self._by_group.setdefault(group.encode(), ciphers)
        else:
            self._by_folder.setdefault(folder(group, plural, True).encode(), ciphers)

    @staticmethod
    def load(file: Path) -> Configuration:
        """The configuration in a YAML file. EncryptionError or OSError."""
        try:
            value = decoding.parse_yaml(file.read_bytes()).value
        except ValueError as error:
            raise EncryptionError(f"{file}: {error}") from None
        if not isinstance(value, dict):
            raise EncryptionError(f"{file}: not an EncryptionConfiguration")
        return Configuration(value)

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


class EncryptedStore:
    """A store like the one inside, with values enciphered on their way in and deciphered on their way out."""

    def __init__(self, store: Any, configuration: Configuration) -> None:
        self._store = store
        self._configuration = configuration
        # Keys whose values were not written with the first cipher: the next update writes them, changed or not.
        self.stale: set[bytes] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)  # revision, leases, compaction, deletion

    def _seal(self, key: bytes, value: bytes) -> bytes:
        self.stale.discard(key)
        ciphers = self._configuration.ciphers(key)
        if ciphers is None:
            return value
        return ciphers[0].prefix + ciphers[0].seal(value, key)

    def _open(self, kv: Any) -> Any:
        ciphers = self._configuration.ciphers(kv.key)
        if ciphers is None or not kv.value:
            return kv
        sealed = kv.value.startswith(_PREFIX)
        for cipher in ciphers:
            if (kv.value.startswith(cipher.prefix) and cipher.prefix) or (not cipher.prefix and not sealed):
                try:
                    value = cipher.open(kv.value[len(cipher.prefix) :], kv.key)
                except Exception as error:
                    raise EncryptionError(f"unable to transform key {kv.key.decode()!r}: {error!r}") from None
                if cipher is not ciphers[0]:
                    self.stale.add(kv.key)
                return type(kv)(kv.key, value, kv.create_revision, kv.mod_revision, kv.version, kv.lease, kv.row)
        raise EncryptionError(f"unable to transform key {kv.key.decode()!r}: no matching prefix found")

    async def range(self, key: bytes, end: bytes = b"", **given: Any) -> Any:
        result = await self._store.range(key, end, **given)
        if given.get("keys_only") or given.get("count_only"):
            return result
        return replace(result, kvs=[self._open(kv) for kv in result.kvs])

    async def create(self, key: bytes, value: bytes, **given: Any) -> Any:
        return self._result(await self._store.create(key, self._seal(key, value), **given))

    async def update(self, key: bytes, value: bytes, mod_revision: int, **given: Any) -> Any:
        return self._result(await self._store.update(key, self._seal(key, value), mod_revision, **given))

    def _result(self, result: Any) -> Any:
        return result._replace(kv=self._open(result.kv)) if result.kv is not None else result

    def watch(self, key: bytes, end: bytes = b"", **given: Any) -> _Watch:
        return _Watch(self._store.watch(key, end, **given), self._open)


class _Watch:
    def __init__(self, watch: Any, open: Callable[[Any], Any]) -> None:
        self._watch, self._open = watch, open

    def __aiter__(self) -> _Watch:
        return self

    async def __anext__(self) -> Any:
        batch = await self._watch.__anext__()
        # Events may be shared with other watches of the store: they are replaced, not changed.
        return batch._replace(events=[self._event(e) for e in batch.events])

    def _event(self, event: Any) -> Any:
        before = self._open(event.prev_kv) if event.prev_kv is not None else None
        return type(event)(event.type, self._open(event.kv), before)

    def request_progress(self) -> None:
        self._watch.request_progress()

    def close(self) -> None:
        self._watch.close()
