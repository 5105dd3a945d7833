"""Options of log drivers, and rotation of the log file that they all share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from longshore.engine.networks.model import TRUE
from longshore.engine.runtime import logs
from longshore.machinery.inotify import Inotify, Mask

log = logging.getLogger("longshore.engine.containers")

_REST = 0.2

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgtpKMGTP]?)(?:i?[bB])?$")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def parse_size(text: str) -> int:
    """ "10m" in bytes. Raises ValueError with dockerd's text."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"invalid size: '{text}'")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def check_file(driver: str, options: Mapping[str, str]) -> None:
    """Raises ValueError, in dockerd's words, for a rotation that json-file or local cannot do."""
    size, count = options.get("max-size"), options.get("max-file")
    compress = options.get("compress", "false" if driver == "json-file" else "true") in TRUE
    if driver == "json-file":
        if size is not None and parse_size(size) <= 0:
            raise ValueError("max-size must be a positive number")
        files = 1 if count is None else _integer(count)
        if files < 1:
            raise ValueError("max-file cannot be less than 1")
        if compress and (files == 1 or size is None):
            raise ValueError("compress cannot be true when max-file is less than 2 or max-size is not set")
    elif driver == "local":
        for name, text, read in (("max-size", size, parse_size), ("max-file", count, _integer)):
            try:
                read(text or "0")
            except ValueError as error:
                raise ValueError(f"invalid value for {name}: {text}: {error}") from None
        if compress and count is not None and _integer(count) <= 1:
            raise ValueError("compression cannot be enabled when max file count is 1")


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError(f'strconv.Atoi: parsing "{text}": invalid syntax')
    return int(text)


def rotation(driver: str, options: Mapping[str, str]) -> tuple[int, int]:
    """(bytes, files) at which a log is rotated and how many files stay; (0, 1): never."""
    defaults = ("", "1") if driver == "json-file" else ("20m", "5")
    prefix = "" if driver in ("json-file", "local") else "cache-"
    try:
        size = parse_size(options.get(f"{prefix}max-size") or defaults[0] or "0")
        count = int(options.get(f"{prefix}max-file") or defaults[1])
    except ValueError:
        return 0, 1
    return size, max(count, 1)


def details(driver_options: Mapping[str, str], labels: Mapping[str, str], environment: list[str]) -> dict[str, str]:
    """The extra attributes that a log driver was told to keep (options labels, labels-regex, env, env-regex)."""
    found: dict[str, str] = {}
    variables = dict(entry.split("=", 1) for entry in environment if "=" in entry)
    for option, source in (("labels", labels), ("env", variables)):
        for name in (driver_options.get(option) or "").split(","):
            if name and name in source:
                found[name] = source[name]
        pattern = driver_options.get(f"{option}-regex")
        if pattern:
            try:
                expression = re.compile(pattern)
            except re.error:
                continue
            found.update({name: value for name, value in source.items() if expression.search(name)})
    return dict(sorted(found.items()))


class Rotation:
    """Rotates one container's log as it grows. It is woken by the file's change, then rests, so that a chatty container
    costs five looks a second at most. reopen: tells the monitor to begin a new file. needed: files that must stay anyway."""

    def __init__(
        self,
        path: Path,
        size: int,
        count: int,
        reopen: Callable[[], None],
        needed: Callable[[], int] = lambda: 0,
    ) -> None:
        self._path, self._size, self._count, self._reopen, self._needed = path, size, count, reopen, needed
        self._inotify = Inotify()
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def _look(self) -> None:
        self._timer = None
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size >= self._size:
                try:
                    logs.rotate(self._path, max(self._count, self._needed()))
                    self._reopen()
                except Exception as error:
                    log.warning("log %s could not be rotated: %s", self._path, error)
        # The new file is made by the monitor, so the folder is watched.
        with contextlib.suppress(FileNotFoundError):
            self._inotify.watch(self._path.parent, Mask.MODIFY | Mask.MOVED_TO, self._changed)

    def _changed(self, _path: Path, _mask: Mask, name: str) -> None:
        if name == self._path.name and self._timer is None:
            self._inotify.forget(self._path.parent)
            self._timer = asyncio.get_running_loop().call_later(_REST, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._inotify.close()


def start_rotation(
    driver: str,
    options: Mapping[str, str],
    path: Path,
    reopen: Callable[[], None],
    needed: Callable[[], int] = lambda: 0,
) -> Rotation | None:
    """The rotation that a container's log settings ask for; None: none. needed: of a forwarder."""
    size, count = rotation(driver, options)
    return Rotation(path, size, count, reopen, needed) if size > 0 and driver != "none" else None
