"""A registry that does what a test tells it to: refuse, cut, lie, redirect, wait."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from longshore.machinery.http import Request, Response, Server

from .conftest import tar_of

Hook = Callable[[Request], "Response | Awaitable[Response | None] | None"]
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def answer(status: int, body: Any = b"", **headers: str) -> Response:
    """An answer; a body that is no bytes goes as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status, data, [(name.replace("_", "-"), value) for name, value in headers.items()])


class Scripted:
    """One image, `app:1`, of one layer. hook: answers first; what it gives None for is answered as by a registry.

    asked: "METHOD path" of each request with its header fields.
    """

    def __init__(self, *, files: dict[str, Any] | None = None, layer_media: str = "", config_media: str = "") -> None:
        plain = tar_of(files or {"f": b"content " * 1000})
        self.layer = gzip.compress(plain, mtime=0)
        config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest_of(plain)]}}
        self.config = json.dumps({**config, "config": {}}).encode()
        self.manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {
                "mediaType": config_media or "application/vnd.docker.container.image.v1+json",
                "size": len(self.config),
                "digest": digest_of(self.config),
            },
            "layers": [
                {
                    "mediaType": layer_media or "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    "size": len(self.layer),
                    "digest": digest_of(self.layer),
                }
            ],
        }
        self.media = DOCKER_MANIFEST
        self.hook: Hook | None = None
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.server = Server(self._handle)
        self.host = ""

    async def __aenter__(self) -> Scripted:
        self.host = f"127.0.0.1:{await self.server.listen_tcp('127.0.0.1', 0)}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()

    @property
    def layer_path(self) -> str:
        return f"/v2/app/blobs/{digest_of(self.layer)}"

    def seen(self, path: str) -> list[dict[str, str]]:
        """The header fields of the requests whose path ends so."""
        return [fields for line, fields in self.asked if line.endswith(path)]

    async def _handle(self, request: Request) -> Response | None:
        fields = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append((f"{request.method} {request.path}", fields))
        if self.hook is not None:
            found = self.hook(request)
            if isinstance(found, Awaitable):
                found = await found
            if found is not None:
                return found
        if request.path == "/v2/":
            return answer(200, {})
        if request.path.startswith("/v2/app/manifests/"):
            body = json.dumps(self.manifest).encode()
            return Response(
                200, body, [("Docker-Content-Digest", digest_of(body)), ("Content-Type", self.media)], self.media
            )
        for data in (self.layer, self.config):
            if request.path == f"/v2/app/blobs/{digest_of(data)}":
                return answer(200, data)
        return answer(404, {"errors": [{"code": "UNKNOWN"}]})
