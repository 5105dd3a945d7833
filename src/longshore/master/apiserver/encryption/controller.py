"""The encryption of one server: its store, its key management services, and its file, read again when it changes.

Source: k8s.io/apiserver/pkg/server/options/encryptionconfig/controller.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from .configuration import Configuration
from .store import EncryptedStore

log = logging.getLogger("longshore.apiserver.encryption")


class Encryption:
    """store: what the server works on. automatic: whether the file is read again."""

    def __init__(self, store: Any, file: Path, *, automatic: bool) -> None:
        self._file, self.automatic = file, automatic
        self.store = EncryptedStore(store, Configuration.load(file, reload=automatic))
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def digest(self) -> str:
        """Of the file that is in force."""
        return self.store.configuration.digest

    @property
    def checked(self) -> bool:
        """Whether there is a health check."""
        return self.automatic or bool(self.store.configuration.providers)

    def check(self) -> str:
        """What is wrong with the key management services."""
        found = enumerate(self.store.configuration.providers)
        return ", ".join(f"kms-provider-{i}: {p.problem}" for i, p in found if p.problem)

    async def start(self) -> None:
        for provider in self.store.configuration.providers:
            await provider.start()

    async def reload(self) -> None:
        """Takes the file as it is now. ValueError or OSError, and all stays as it was, when that cannot be."""
        made = Configuration.load(self._file, reload=True)
        if made.digest == self.digest:
            return
        for provider in made.providers:
            await provider.start()
        problems = [p.problem for p in made.providers if p.problem]
        if problems:
            for provider in made.providers:
                await provider.close()
            raise ValueError(problems[0])
        before, self.store.configuration = self.store.configuration, made
        task = asyncio.create_task(_close_later(before))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        log.info("Loaded new kms encryption config content: %s", made.digest)

    async def close(self) -> None:
        for task in self._closing:
            task.cancel()
        for provider in self.store.configuration.providers:
            await provider.close()


async def _close_later(configuration: Configuration) -> None:
    """Calls under way end first: twice the time that they may take."""
    await asyncio.sleep(sum(2 * p.timeout for p in configuration.providers))
    for provider in configuration.providers:
        await provider.close()
