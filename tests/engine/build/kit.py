"""A client of BuildKit's services: its files, secrets and stores, and builds from one folder."""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from longshore.engine.build.buildkit import schemas
from longshore.engine.build.buildkit.control import Services
from longshore.engine.build.buildkit.schemas import bridge, content, control, filesync
from longshore.engine.build.buildkit.session import Session, stat_of
from longshore.engine.build.classic import Builder
from longshore.engine.build.runner import RuncRunner
from longshore.engine.images.store import ImageStore
from longshore.machinery.grpc import Client, RpcError, Server, Status


def _leads(wanted: str, path: str) -> bool:
    """Is a path one that a client gives for a wanted one (what lies below it, what its pattern matches, its folders)?"""
    return path.startswith(wanted) or ("*" in wanted and (fnmatch.fnmatch(path, wanted) or "/" not in path))


class ClientFiles:
    """The client's side of fsutil's protocol: folders by name, and what it was given."""

    def __init__(self, folders: dict[str, Path], out: Path) -> None:
        self.folders, self.out = folders, out
        self.asked: list[dict[str, list[str]]] = []

    async def diff_copy(self, stream: Any, metadata: Any) -> AsyncIterator[Any]:
        asked = {
            key: metadata.getall(key)
            for key in ("dir-name", "include-patterns", "exclude-patterns", "followpaths")
            if key in metadata
        }
        self.asked.append(asked)
        packet = filesync.Packet
        root = self.folders[asked["dir-name"][0]]
        paths = [
            path for path in sorted(root.rglob("*"))
            if ("include-patterns" not in asked or path.name in asked["include-patterns"])
            and ("followpaths" not in asked or any(_leads(f, str(path.relative_to(root))) for f in asked["followpaths"]))
        ]  # fmt: skip
        for path in paths:
            link = os.readlink(path) if path.is_symlink() else ""
            yield packet(type=schemas.STAT, stat=stat_of(str(path.relative_to(root)), path.lstat(), link))
        yield packet(type=schemas.STAT)
        async for message in stream:
            if message.type == schemas.FIN:
                yield packet(type=schemas.FIN)
                return
            data = paths[message.ID].read_bytes()
            if data:
                yield packet(type=schemas.DATA, ID=message.ID, data=data)
            yield packet(type=schemas.DATA, ID=message.ID)


class ClientOutput:
    def __init__(self, files: ClientFiles) -> None:
        self.files = files

    async def diff_copy(self, stream: Any) -> AsyncIterator[Any]:
        data = b"".join([message.data async for message in stream])
        self.files.out.write_bytes(data)
        if False:
            yield None


class ClientSecrets:
    async def get_secret(self, request: Any) -> Any:
        if request.ID != "known":
            raise RpcError(Status.NOT_FOUND, "secret not found")
        return schemas.secrets.GetSecretResponse(data=b"hush")


class ClientContent:
    """The client's side of a content store."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    async def info(self, request: Any) -> Any:
        if request.digest not in self.blobs:
            raise RpcError(Status.NOT_FOUND, "not found")
        return content.InfoResponse(info=content.Info(digest=request.digest, size=len(self.blobs[request.digest])))

    async def read(self, request: Any) -> AsyncIterator[Any]:
        yield content.ReadContentResponse(offset=request.offset, data=self.blobs[request.digest][request.offset :])

    async def write(self, stream: Any) -> AsyncIterator[Any]:
        data = b""
        async for message in stream:
            data += message.data
            if message.action == 2:
                digest = "sha256:" + hashlib.sha256(data).hexdigest()
                assert message.expected == digest and message.total == len(data)
                self.blobs[digest] = data
            yield content.WriteContentResponse(action=message.action, offset=len(data))


class ClientUpload:
    """What the client sends as one stream."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    async def pull(self, stream: Any, metadata: Any) -> AsyncIterator[Any]:
        yield schemas.upload.BytesMessage(data=self.data[metadata["urlpath"].rpartition("/")[2]])


class Socket:
    """A Duplex over a stream pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self, n: int = 65536) -> bytes:
        return await self.reader.read(n)

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def drain(self) -> None:
        await self.writer.drain()


class Kit:
    """An engine's services, a client with files, and a build from one to the other."""

    def __init__(self, store: ImageStore, path: Path) -> None:
        self.store, self.path = store, path
        self.context = path / "context"
        self.context.mkdir()
        self.services = Services(Builder(store, RuncRunner(path / "run")))
        self.files = ClientFiles({"context": self.context, "dockerfile": self.context}, path / "out")
        self.content, self.upload = ClientContent(), ClientUpload()
        self.number = 0
        self.cache_to: list[Any] = []
        self.cache_from: list[Any] = []
        self.entitlements: list[str] = []
        self.inputs: dict[str, Any] = {}
        self.policy: Any = None

    async def start(self) -> None:
        client = Server(
            (filesync.FileSync, self.files),
            (filesync.FileSend, ClientOutput(self.files)),
            (schemas.secrets.Secrets, ClientSecrets()),
            (content.Content, self.content),
            (schemas.upload.Upload, self.upload),
        )
        await client.listen_unix(self.path / "client.sock")
        reader, writer = await asyncio.open_unix_connection(str(self.path / "client.sock"))
        self.session = Session("s1", Socket(reader, writer), [])  # type: ignore[arg-type]
        await self.services.sessions.add(self.session)
        self.server = self.services.server()
        await self.server.listen_unix(self.path / "engine.sock")
        self.client = Client(control.Control, path=self.path / "engine.sock")
        self.bridge = Client(
            bridge.LLBBridge, path=self.path / "engine.sock", metadata=[("buildkit-controlapi-buildid", "r0")]
        )
        self.closing = (client, self.server)

    async def close(self) -> None:
        self.client.close()
        self.bridge.close()
        self.session.close()
        for server in self.closing:
            await server.close(0.1)
        await self.services.close()

    async def build(self, text: str, *, exporter: str = "moby", **attributes: str) -> tuple[dict[str, str], list[Any]]:
        """The exporter's answer and the vertices in the order of their first message."""
        (self.context / "Dockerfile").write_text(text)
        self.number += 1
        ref = f"r{self.number}"
        said: list[Any] = []

        async def watch() -> None:
            async for message in self.client.stream("Status", Ref=ref):
                said.append(message)

        watching = asyncio.create_task(watch())
        names = attributes.pop("name", "")
        options = {
            key[5:].replace("__", "-"): attributes.pop(key) for key in list(attributes) if key.startswith("opt__")
        }
        request = control.SolveRequest(
            Ref=ref, Session="s1", Frontend="dockerfile.v0",
            FrontendAttrs={"filename": "Dockerfile", **{k.replace("__", ":"): v for k, v in attributes.items()}},
            Exporters=[control.Exporter(Type=exporter, Attrs={"name": names, **options})],
            Cache=control.CacheOptions(Exports=self.cache_to, Imports=self.cache_from),
            FrontendInputs=self.inputs, Entitlements=self.entitlements, SourcePolicy=self.policy,
        )  # fmt: skip
        try:
            answer = await self.client.call("Solve", request)
        finally:
            await asyncio.wait_for(watching, 10)
            self.said = said
        return dict(answer.ExporterResponse), said

    @property
    def names(self) -> list[str]:
        """The vertices' names in order, "*" behind those from the cache."""
        found: dict[str, Any] = {}
        for message in self.said:
            for vertex in message.vertexes:
                found[vertex.digest] = vertex
        return [vertex.name + ("*" if vertex.cached else "") for vertex in found.values()]

    @property
    def warnings(self) -> list[str]:
        return [warning.short.decode() for message in self.said for warning in message.warnings]

    @property
    def logs(self) -> bytes:
        return b"".join(log.msg for message in self.said for log in message.logs)
