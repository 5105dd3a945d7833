"""A key management plugin (KMS v2) that keeps its keys in memory, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from longshore.machinery.grpc import RpcError, Server, Status
from longshore.master.apiserver.encryption.kms import service


class Plugin:
    """key: the name of the key that it writes with; healthz: what it says of itself."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.key, self.healthz = "one", "ok"
        self.opened = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    async def status(self, request: Any) -> Any:
        return service().StatusResponse(version="v2", healthz=self.healthz, key_id=self.key)

    async def encrypt(self, request: Any) -> Any:
        hidden = bytes(b ^ 0x55 for b in request.plaintext)
        notes = {"plugin.example.com": self.key.encode()}
        return service().EncryptResponse(ciphertext=hidden, key_id=self.key, annotations=notes)

    async def decrypt(self, request: Any) -> Any:
        if request.annotations.get("plugin.example.com") != request.key_id.encode():
            raise RpcError(Status.INVALID_ARGUMENT, "not of this key")
        self.opened += 1
        return service().DecryptResponse(plaintext=bytes(b ^ 0x55 for b in request.ciphertext))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = Server((service().KeyManagementService, self))
        await server.listen_unix(self.socket)
        self._stop = asyncio.Event()
        self._ready.set()
        await self._stop.wait()
        await server.close()

    def __enter__(self) -> Plugin:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
