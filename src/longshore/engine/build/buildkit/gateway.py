"""Frontends in images (gateway.v0): a program in a container that asks for everything through LLBBridge on its stdin and stdout.

Source: BuildKit frontend/gateway/gateway.go (what such a program is given), frontend/gateway/grpcclient.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build.buildkit import schemas
from longshore.engine.build.buildkit.bridge import Bridge
from longshore.engine.build.buildkit.definitions import source_definition
from longshore.engine.build.buildkit.frontend import Outcome
from longshore.engine.build.buildkit.transport import DetailsCodec, limit_messages
from longshore.engine.build.context import new_folder
from longshore.engine.build.step import Attached, Mount, RunStep, StepRoot
from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure
from longshore.engine.images import references
from longshore.engine.images.extract import remove_path
from longshore.engine.images.model import Image, host_architecture
from longshore.engine.images.streams import in_thread
from longshore.machinery.grpc import RpcError, Server, Status

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.control import Job, Services

log = logging.getLogger("longshore.engine.build")
_CAPS = "moby.buildkit.frontend.caps"
_NO_NETWORK = "moby.buildkit.frontend.network.none"
_INPUTS = "moby.buildkit.frontend.inputs"
_METADATA = "/run/config/buildkit/metadata"
_CAP_URL = "github.com/moby/buildkit/errdefs.FrontendCap+json"
_TRUE = ("1", "t", "T", "true", "True", "TRUE")
_SAID = 64 << 10


class Gateway:
    """One run of a frontend's image. attributes: what the client gave the frontend; inputs: definitions by name."""

    def __init__(self, services: Services, job: Job, attributes: Mapping[str, str], inputs: Mapping[str, Any]) -> None:
        self._services, self._job = services, job
        self._attributes, self._inputs = dict(attributes), dict(inputs)
        self._said = b""

    async def run(self) -> Outcome:
        """What the frontend returned. Raises EngineError, RpcError (the frontend's own error)."""
        source = self._attributes.get("source")
        if not source:
            raise SystemFailure("no source specified for gateway")
        image = await self._image(source)
        self._check_caps(image)
        store = self._services.builder.store
        bridge = GatewayBridge(self._services, self._job, self._inputs)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(bridge.close)
            lease = stack.enter_context(store.lease())
            lease.add(image.chain)
            root = StepRoot(store, image.chain)
            stack.push_async_callback(in_thread, root.discard)
            metadata = new_folder(store)
            stack.push_async_callback(in_thread, remove_path, metadata)
            definition = source_definition(f"docker-image://{source}", schemas.bridge)
            (metadata / "frontend.bin").write_bytes(definition.SerializeToString())
            await in_thread(root.mount)
            await in_thread(root.add_mount_points, [(_METADATA, True)])
            code = await self._serve(bridge, self._step(image, root, metadata))
        if bridge.returned.done():
            return await bridge.returned
        if self._said:
            log.info("frontend %s said: %s", source, self._said.decode("utf-8", "replace"))
        if code:
            raise SystemFailure(f"exit code: {code}")
        raise SystemFailure("no result for incomplete build")

    async def _image(self, source: str) -> Image:
        """The frontend's image for this machine: one that the client gave by that name, the store's, or a registry's."""
        given = self._attributes.get(f"context:{source}", "")
        kind, _, rest = given.partition("://")
        if kind == "docker-image":
            source = rest
        store = self._services.builder.store
        reference = references.parse(source).with_default_tag()
        platform = f"linux/{host_architecture()}"
        with self._job.progress.vertex(f"resolve image config for docker-image://{reference}"):
            image = store.find(source, platform)
            if image is not None and self._attributes.get("image-resolve-mode") != "pull":
                return image
            session = await self._services.sessions.get(self._job.session)
            auth = await session.credentials(reference.domain)
            try:
                return await store.pull(reference, auth=auth, platform=platform)
            except EngineError as error:
                raise SystemFailure(f"failed to resolve source metadata for {reference}: {error.message}") from None

    def _check_caps(self, image: Image) -> None:
        """Raises RpcError when the client needs what the frontend does not say that it can do."""
        has = set(filter(None, image.labels.get(_CAPS, "").split(",")))
        wants = set(filter(None, self._attributes.get("frontend.caps", "").split(",")))
        if self._inputs:
            wants.add(_INPUTS)
        for name in sorted(wants - has):
            detail = [(_CAP_URL, orjson.dumps({"name": name}))]
            raise RpcError(Status.UNIMPLEMENTED, f"unsupported frontend capability {name}", detail)

    def _step(self, image: Image, root: StepRoot, metadata: Path) -> RunStep:
        config = image.run_config
        worker = self._services.worker(schemas.bridge)
        platforms = [{"architecture": p.Architecture, "os": p.OS} for p in worker.platforms]
        workers = [{"ID": worker.ID, "Labels": dict(worker.Labels), "Platforms": platforms}]
        env = list(config.get("Env") or [])
        env += [f"BUILDKIT_FRONTEND_OPT_{n}={key}={value}" for n, (key, value) in enumerate(self._attributes.items())]
        env.append(f"BUILDKIT_SESSION_ID={self._job.session}")
        env.append(f"BUILDKIT_WORKERS={orjson.dumps(workers).decode()}")
        env.append("BUILDKIT_EXPORTEDPRODUCT=")
        return RunStep(
            root.id,
            root.merged,
            list(config.get("Entrypoint") or ["/run"]),
            env,
            config.get("WorkingDir") or "/",
            network="none" if image.labels.get(_NO_NETWORK) in _TRUE else "default",
            mounts=[Mount(str(metadata), _METADATA, ("bind", "ro", "nosuid", "nodev", "noexec"))],
        )

    async def _serve(self, bridge: GatewayBridge, step: RunStep) -> int:
        """Run the program, answering its calls; its exit code."""
        from longshore.engine.build.buildkit.control import rpc_error

        server = Server(
            (schemas.bridge.LLBBridge, bridge),
            translate=lambda error: rpc_error(error) if isinstance(error, EngineError) else None,
        )
        grpc = server._server
        grpc._status_details_codec = DetailsCodec()
        ours, theirs = socket.socketpair()
        transport: asyncio.BaseTransport | None = None
        try:
            loop = asyncio.get_running_loop()
            ours.setblocking(False)
            transport, protocol = await loop.connect_accepted_socket(grpc._protocol_factory, ours)
            limit_messages(protocol)
            attached = Attached(theirs.fileno(), theirs.fileno())
            return await self._services.builder.runner.run(step, self._heard, attached)
        finally:
            theirs.close()
            if transport is not None:
                transport.close()

    def _heard(self, _: int, data: bytes) -> None:
        self._said = (self._said + data)[-_SAID:]


class GatewayBridge(Bridge):
    """LLBBridge for one frontend in an image: its calls belong to one build, and what it returns is its own."""

    def __init__(self, services: Services, job: Job, inputs: Mapping[str, Any]) -> None:
        super().__init__(services)
        self._own, self._inputs = job, inputs
        self.returned: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def _job(self, metadata: Any) -> Job:
        return self._own

    def _returned(self, job: Job) -> asyncio.Future[Outcome]:
        return self.returned

    async def _begun(self, metadata: Any) -> Job:
        return self._own

    async def inputs(self, _: Any) -> Any:
        made = schemas.bridge.InputsResponse()
        for name, definition in self._inputs.items():
            made.Definitions[name].ParseFromString(definition.SerializeToString())
        return made

    async def _finish(self, request: Any, metadata: Any) -> Any:
        if self.returned.done():
            raise RpcError(Status.UNKNOWN, "gateway result is already set")
        if not request.HasField("error") and not request.HasField("result"):
            raise InvalidParameter("gateway return must be either result or err")
        return await super()._finish(request, metadata)
