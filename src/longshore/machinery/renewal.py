"""What was read from files is read again when they are replaced: certificates, keys, kubeconfigs, configuration.

The folder of each file is watched (inotify), so that a file that is written in place, one that is renamed over it and a
symbolic link that is swapped (a mounted Secret's ..data) are all seen. Nothing is polled.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from longshore.machinery.inotify import Inotify, Mask

log = logging.getLogger("longshore.renewal")
T = TypeVar("T")
_MASK = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.CREATE
_SETTLE_SECONDS = 0.1
State = tuple[tuple[int, int] | None, ...]


@dataclass(slots=True)
class _Held:
    files: tuple[Path, ...]
    reload: Callable[[Any], Awaitable[None] | None]
    seen: State
    loop: asyncio.AbstractEventLoop | None


_held: WeakKeyDictionary[Any, list[_Held]] = WeakKeyDictionary()
_followers: set[Callable[[], None]] = set()


def hold(
    owner: T,
    files: Sequence[Path],
    reload: Callable[[T], Awaitable[None] | None],
    *,
    loop: asyncio.AbstractEventLoop | None = None,
) -> None:
    """Have `reload(owner)` called when one of the files is replaced, for as long as the owner lives or until `release`.

    Call it before the first reading. A reload that raises (OSError, ValueError: a pair of which one half is new) is
    called again at the next change. loop: the only one in which it may be called; None: in that of whoever follows.
    """
    _held.setdefault(owner, []).append(_Held(tuple(files), reload, _state(files), loop))
    for wake in tuple(_followers):
        wake()


def release(owner: object) -> None:
    """Hold nothing for this owner any more."""
    _held.pop(owner, None)


def files_of(owner: object) -> tuple[Path, ...]:
    """The files that an owner is made of."""
    return tuple(file for held in _held.get(owner, ()) for file in held.files)


async def follow() -> None:
    """Keep everything that is held as its files are, until cancelled."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    watch = Inotify()
    watched: set[Path] = set()

    def wake() -> None:
        loop.call_soon_threadsafe(changed.set)

    _followers.add(wake)
    try:
        while True:
            for folder in {file.parent for _, held in _mine(loop) for file in held.files} - watched:
                try:
                    watch.watch(folder, _MASK, lambda *_: changed.set())
                    watched.add(folder)
                except OSError as error:
                    log.debug("%s", error)
            for owner, held in _mine(loop):
                await _reload_changed(owner, held)
            await changed.wait()
            await asyncio.sleep(_SETTLE_SECONDS)  # writers touch several files one after the other
            changed.clear()
    finally:
        _followers.discard(wake)
        watch.close()


def _mine(loop: asyncio.AbstractEventLoop) -> list[tuple[Any, _Held]]:
    # In the order in which they were held: a context before the connections that were made with it.
    return [(owner, one) for owner, held in list(_held.items()) for one in held if one.loop in (None, loop)]


async def _reload_changed(owner: Any, held: _Held) -> None:
    now = _state(held.files)
    if now == held.seen or None in now:  # a file that is gone for a moment is on its way back
        return
    try:
        pending = held.reload(owner)
        if inspect.isawaitable(pending):
            await pending
    except (OSError, ValueError) as error:
        log.debug("%s: %s", held.files[0], error)
        return
    except Exception:
        log.exception("%s", held.files[0])
    held.seen = now
    log.info("read anew: %s", held.files[0])


def _state(files: Sequence[Path]) -> State:
    return tuple(map(_stamp, files))


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def load_files(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Give a context a certificate and its key from files, now and whenever they are replaced."""

    def load(context: ssl.SSLContext) -> None:
        context.load_cert_chain(str(certificate), None if key is None else str(key))

    hold(context, [certificate, *([key] if key else [])], load)
    load(context)
