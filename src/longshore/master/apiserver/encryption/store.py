"""A store like the one inside, with values enciphered on their way in and deciphered on their way out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from longshore.machinery.errors import StatusError

from .ciphers import PREFIX
from .configuration import Configuration
from .errors import KeyUnavailable, NeedsKey, TransformError

log = logging.getLogger("longshore.apiserver.encryption")
_RETRY_SECONDS = 1.0


class Stale:
    """The keys whose values were not written with what writes now: their next update writes them, changed or not."""

    def __init__(self, configuration: Callable[[], Configuration]) -> None:
        self._configuration = configuration
        self._marks: dict[bytes, bytes] = {}

    def note(self, key: bytes, mark: bytes) -> None:
        self._marks[key] = mark

    def __contains__(self, key: bytes) -> bool:
        ciphers = self._configuration().ciphers(key)
        return ciphers is not None and self._marks.get(key, b"") != ciphers[0].mark()


class EncryptedStore:
    """configuration: may be replaced while the store is used, by one that can read what was written."""

    def __init__(self, store: Any, configuration: Configuration) -> None:
        self._store = store
        self.configuration = configuration
        self.stale = Stale(lambda: self.configuration)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)  # revision, leases, compaction, deletion

    def _seal(self, key: bytes, value: bytes) -> bytes:
        ciphers = self.configuration.ciphers(key)
        if ciphers is None:
            return value
        sealed = ciphers[0].prefix + ciphers[0].seal(value, key)
        self.stale.note(key, ciphers[0].mark())
        return sealed

    def _open(self, kv: Any, *, newest: bool = True) -> Any:
        """newest: not an earlier value of the key. NeedsKey when a service has to be asked first. TransformError."""
        ciphers = self.configuration.ciphers(kv.key)
        if ciphers is None or not kv.value:
            return kv
        sealed = kv.value.startswith(PREFIX)
        for cipher in ciphers:
            if (kv.value.startswith(cipher.prefix) and cipher.prefix) or (not cipher.prefix and not sealed):
                inside = kv.value[len(cipher.prefix) :]
                try:
                    value = cipher.open(inside, kv.key)
                    if newest:
                        self.stale.note(kv.key, cipher.mark_of(inside))
                except (NeedsKey, StatusError):
                    raise
                except Exception as error:
                    raise TransformError(f"unable to transform key {kv.key.decode()!r}: {error!r}") from None
                return type(kv)(kv.key, value, kv.create_revision, kv.mod_revision, kv.version, kv.lease, kv.row)
        raise TransformError(f"unable to transform key {kv.key.decode()!r}: no matching prefix found")

    async def opened(self, kv: Any, *, newest: bool = True) -> Any:
        """A key with its value deciphered. Waits for a key management service that is not there."""
        while True:
            try:
                return self._open(kv, newest=newest)
            except NeedsKey as needed:
                try:
                    await needed.fetch()
                except KeyUnavailable as error:
                    log.error("unable to transform key %r: %s", kv.key.decode(), error)
                    await asyncio.sleep(_RETRY_SECONDS)

    async def _all(self, kvs: Sequence[Any]) -> list[Any]:
        out = []
        for kv in kvs:
            try:
                out.append(self._open(kv))
            except NeedsKey:
                out.append(await self.opened(kv))
        return out

    async def range(self, key: bytes, end: bytes = b"", **given: Any) -> Any:
        result = await self._store.range(key, end, **given)
        if given.get("keys_only") or given.get("count_only"):
            return result
        return replace(result, kvs=await self._all(result.kvs))

    async def create(self, key: bytes, value: bytes, **given: Any) -> Any:
        return await self._result(await self._store.create(key, self._seal(key, value), **given))

    async def update(self, key: bytes, value: bytes, mod_revision: int, **given: Any) -> Any:
        return await self._result(await self._store.update(key, self._seal(key, value), mod_revision, **given))

    async def _result(self, result: Any) -> Any:
        return result._replace(kv=await self.opened(result.kv, newest=False)) if result.kv is not None else result

    def watch(self, key: bytes, end: bytes = b"", **given: Any) -> _Watch:
        return _Watch(self._store.watch(key, end, **given), self.opened)


class _Watch:
    def __init__(self, watch: Any, opened: Callable[..., Any]) -> None:
        self._watch, self._opened = watch, opened

    def __aiter__(self) -> _Watch:
        return self

    async def __anext__(self) -> Any:
        batch = await self._watch.__anext__()
        # Events may be shared with other watches of the store: they are replaced, not changed.
        return batch._replace(events=[await self._event(e) for e in batch.events])

    async def _event(self, event: Any) -> Any:
        before = await self._opened(event.prev_kv, newest=False) if event.prev_kv is not None else None
        return type(event)(event.type, await self._opened(event.kv), before)

    def request_progress(self) -> None:
        self._watch.request_progress()

    def close(self) -> None:
        self._watch.close()
