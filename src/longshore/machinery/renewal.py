"""Certificates in files and who holds them: what was read from a file is read again when the file is replaced.

API server, manager and node follow their files, so that a certificate is renewed by writing a new one.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from longshore.machinery.inotify import Inotify, Mask

log = logging.getLogger("longshore.renewal")
T = TypeVar("T")
_MASK = Mask.MOVED_TO | Mask.CLOSE_WRITE


@dataclass(slots=True)
class _Held:
    files: tuple[Path, ...]
    reload: Callable[[Any], None]
    seen: tuple[tuple[int, int] | None, ...]


_held: WeakKeyDictionary[Any, _Held] = WeakKeyDictionary()
_followers: set[Callable[[], None]] = set()


def hold(owner: T, files: Sequence[Path], reload: Callable[[T], None]) -> None:
    """Have `reload(owner)` called when one of the files is replaced, for as long as the owner lives.

    Call it before the first reading. A reload that raises (OSError, ValueError: a pair of which one half is new) is
    called again at the next change.
    """
    _held[owner] = _Held(tuple(files), reload, _state(files))
    for wake in tuple(_followers):
        wake()


def files_of(owner: object) -> tuple[Path, ...]:
    """The files that an owner is made of."""
    found = _held.get(owner)
    return found.files if found else ()


async def follow() -> None:
    """Keep everything that is held as its files are, until cancelled."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    try:
        watch = Inotify()
    except OSError as error:  # there are only so many of them on a machine (fs.inotify.max_user_instances)
        log.warning("certificates are not followed: %s", error)
        return
    watched: set[Path] = set()

    def wake() -> None:
        loop.call_soon_threadsafe(changed.set)

    _followers.add(wake)
    try:
        while True:
            for folder in {file.parent for held in list(_held.values()) for file in held.files} - watched:
                try:
                    watch.watch(folder, _MASK, lambda *_: changed.set())
                    watched.add(folder)
                except OSError as error:
                    log.debug("%s", error)
            _reload_changed()
            await changed.wait()
            changed.clear()
    finally:
        _followers.discard(wake)
        watch.close()


def _reload_changed() -> None:
    # In the order in which they were held: a context before the connections that were made with it.
    for owner, held in list(_held.items()):
        now = _state(held.files)
        if now == held.seen:
            continue
        try:
            held.reload(owner)
        except (OSError, ValueError) as error:
            log.debug("%s: %s", held.files[0], error)
            continue
        held.seen = now
        log.info("read anew: %s", held.files[0])


def _state(files: Sequence[Path]) -> tuple[tuple[int, int] | None, ...]:
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
