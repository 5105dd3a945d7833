"""Plugins of the node: whoever puts a socket into ROOT/plugins_registry is asked what it is and handed to its manager.

Source: k8s.io/kubelet/pkg/apis/pluginregistration/v1, kubernetes pkg/kubelet/pluginmanager.
"""

from __future__ import annotations

import asyncio
import logging
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from longshore.machinery.grpc import Client, RpcError
from longshore.machinery.inotify import Inotify, Mask
from longshore.wire.protobuf import Schema

log = logging.getLogger("longshore.kubelet.plugins")
REGISTRATION = """
service Registration: GetInfo(InfoRequest)PluginInfo, NotifyRegistrationStatus(RegistrationStatus)RegistrationStatusResponse
InfoRequest:
PluginInfo: 1 type string, 2 name string, 3 endpoint string, 4 supported_versions *string
RegistrationStatus: 1 plugin_registered bool, 2 error string
RegistrationStatusResponse:
"""
CALL_SECONDS = 10.0
_RETRY_FIRST, _RETRY_LAST = 0.5, 60.0
#: deeper folders are not looked into, as upstream's depth is the registrars' own folder
_DEPTH = 2


def schema() -> Schema:
    """The registration protocol's messages."""
    return Schema("pluginregistration", REGISTRATION)


class PluginRefused(Exception):
    """A plugin cannot be used; the text goes back to it."""


class PluginHandler(Protocol):
    """The manager of one type of plugins."""

    async def register(self, name: str, endpoint: Path, versions: Sequence[str]) -> None:
        """Take a plugin on. Raises PluginRefused."""

    async def deregister(self, name: str, endpoint: Path) -> None:
        """Its registration socket has gone."""


class Plugins:
    """Follows the folder of registration sockets."""

    def __init__(self, folder: Path, handlers: Mapping[str, PluginHandler]) -> None:
        """folder: ROOT/plugins_registry. handlers: by the type that plugins tell ("CSIPlugin")."""
        self._folder, self._handlers = folder, handlers
        self._schema: Schema | None = None
        #: socket -> (its inode and birth, the task that registers it)
        self._known: dict[Path, tuple[tuple[int, int], asyncio.Task[None]]] = {}
        self._registered: dict[Path, tuple[str, str, Path]] = {}

    async def run(self) -> None:
        """Follow the folder until cancelled."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        watch = Inotify()
        wake = asyncio.Event()
        mask = Mask.CREATE | Mask.DELETE | Mask.MOVED_TO | Mask.MOVED_FROM
        watched: set[Path] = set()
        try:
            while True:
                wake.clear()
                for folder in _folders(self._folder, _DEPTH):
                    if folder not in watched:
                        try:
                            watch.watch(folder, mask, lambda *_: wake.set())
                            watched.add(folder)
                        except OSError:
                            continue
                watched = {folder for folder in watched if folder.is_dir()}
                await self._look()
                await wake.wait()
        finally:
            watch.close()
            for _, task in self._known.values():
                task.cancel()

    async def _look(self) -> None:
        found: dict[Path, tuple[int, int]] = {}
        for folder in _folders(self._folder, _DEPTH):
            for path in folder.iterdir():
                try:
                    info = path.stat()
                except OSError:
                    continue
                if stat.S_ISSOCK(info.st_mode) and not path.name.startswith("."):
                    # A number alone may be another's: one that was freed is given again.
                    found[path] = (info.st_ino, info.st_mtime_ns)
        for path, (identity, task) in list(self._known.items()):
            if found.get(path) != identity:
                # A plugin that has been started anew makes its socket anew.
                task.cancel()
                del self._known[path]
                await self._drop(path)
        for path, identity in found.items():
            if path not in self._known:
                self._known[path] = (identity, asyncio.create_task(self._register(path), name=f"plugin {path.name}"))

    async def _drop(self, path: Path) -> None:
        gone = self._registered.pop(path, None)
        if gone is not None:
            kind, name, endpoint = gone
            log.info("%s %s has gone", kind, name)
            await self._handlers[kind].deregister(name, endpoint)

    async def _register(self, path: Path) -> None:
        pause = _RETRY_FIRST
        while True:
            try:
                if await self._once(path):
                    return
            except RpcError as error:
                log.log(logging.WARNING if pause == _RETRY_FIRST else logging.DEBUG, "plugin %s: %s", path, error.message)  # fmt: skip
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RETRY_LAST)

    async def _once(self, path: Path) -> bool:
        """One try; whether the plugin is registered now."""
        if self._schema is None:
            self._schema = schema()
        client = Client(self._schema.Registration, path=path)
        try:
            info = await client.call("GetInfo", deadline=CALL_SECONDS)
            endpoint = Path(info.endpoint or path)
            try:
                handler = self._handlers.get(info.type)
                if handler is None:
                    raise PluginRefused(f"no handler registered for plugin type: {info.type} at socket {path}")
                await handler.register(info.name, endpoint, list(info.supported_versions))
            except PluginRefused as error:
                log.warning("plugin %s: %s", path, error)
                await client.call(
                    "NotifyRegistrationStatus", deadline=CALL_SECONDS, plugin_registered=False, error=str(error)
                )
                return False
            self._registered[path] = (info.type, info.name, endpoint)
            await client.call("NotifyRegistrationStatus", deadline=CALL_SECONDS, plugin_registered=True)
            log.info("%s %s is registered", info.type, info.name)
            return True
        finally:
            client.close()


def _folders(top: Path, depth: int) -> list[Path]:
    found = [top]
    if depth > 1:
        for path in top.iterdir():
            if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
                found += _folders(path, depth - 1)
    return found
