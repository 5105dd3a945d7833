"""Control and LLBBridge: BuildKit's services as far as buildx asks them of the docker driver."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from longshore.engine.build.buildkit import schemas
from longshore.engine.build.buildkit.export import export
from longshore.engine.build.buildkit.frontend import Frontend, SolveError
from longshore.engine.build.buildkit.progress import Progress
from longshore.engine.build.buildkit.schemas import bridge, control
from longshore.engine.build.buildkit.session import Sessions
from longshore.engine.errors import EngineError
from longshore.engine.images.model import ENGINE_VERSION, Image, host_architecture
from longshore.machinery.grpc import RpcError, Server, Status

if TYPE_CHECKING:
    from longshore.engine.build.classic import Builder

T = TypeVar("T")

_SOURCE_URL = "github.com/moby/buildkit/errdefs.Source+json"
_CAPS = (
    "solve.base", "solve.inlinereturn", "resolveimage", "resolveimage.resolvemode", "return", "returnmap",
    "proto.refarray", "reference.output", "gateway.solve.metadata", "gateway.solve.evaluate", "gateway.evaluate",
    "gateway.warnings", "frontend.inputs", "importcaches",
)  # fmt: skip
_BUILD_ID = "buildkit-controlapi-buildid"
_KEPT = 64


@dataclass
class Job:
    """One build: who watches it, and what a client-side frontend gave back."""

    ref: str
    session: str = ""
    progress: Progress = field(default_factory=Progress)
    returned: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    results: dict[str, Image] = field(default_factory=dict)


def rpc_error(error: EngineError) -> RpcError:
    """An engine's error as gRPC, with the place in the Dockerfile for the client to show."""
    status = {404: Status.NOT_FOUND, 400: Status.INVALID_ARGUMENT, 501: Status.UNIMPLEMENTED}.get(
        error.status, Status.UNKNOWN
    )
    details: list[tuple[str, bytes]] = []
    if isinstance(error, SolveError):
        status = Status.UNKNOWN
        if error.start:
            lines = {"start": {"line": error.start}, "end": {"line": error.end}}
            info = {"filename": error.name, "data": base64.b64encode(error.data).decode(), "language": "Dockerfile"}
            details.append((_SOURCE_URL, orjson.dumps({"info": info, "ranges": [lines]})))
    return RpcError(status, error.message, details or None)


class Services:
    """The state behind both services."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.sessions = Sessions()
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Future[Any]] = set()

    def server(self) -> Server:
        """A gRPC server for one connection."""
        return Server(
            (schemas.control.Control, Control(self)),
            (schemas.bridge.LLBBridge, Bridge(self)),
            translate=lambda error: rpc_error(error) if isinstance(error, EngineError) else None,
        )

    async def detached(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work in a task of its own. When the call is cancelled, the work is too, but cleans up in its own time:
        a call's task may be cancelled twice (the stream's end, the connection's end)."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            raise

    def job(self, ref: str) -> Job:
        """The build of a name; made by whoever asks first (a watcher may come before the build)."""
        found = self._jobs.get(ref)
        if found is None:
            # A late watcher may still ask for one that is done; those under way always stay.
            done = [known for known, job in self._jobs.items() if job.progress.done]
            for known in done[: max(0, len(done) - _KEPT)]:
                del self._jobs[known]
            found = self._jobs[ref] = Job(ref)
        return found

    def worker(self, schema: Any) -> Any:
        architecture = host_architecture()
        return schema.WorkerRecord(
            ID="longshore",
            Labels={"org.mobyproject.buildkit.worker.moby.host-gateway-ip": "172.17.0.1"},
            platforms=[schema.Platform(OS="linux", Architecture=architecture)],
            BuildkitVersion=schema.BuildkitVersion(package="github.com/moby/buildkit", version=f"v{ENGINE_VERSION}"),
        )

    async def frontend(self, job: Job, name: str, attributes: dict[str, str]) -> Image:
        """Run a frontend; its image. Raises EngineError."""
        source = attributes.get("source", "")
        # Another frontend by image is taken for the Dockerfile one only where it is that one.
        plain = name == "dockerfile.v0" or (
            name == "gateway.v0" and source.removeprefix("docker.io/").startswith("docker/dockerfile")
        )
        if not plain:
            raise SolveError(
                f"frontend {name or 'none'} is not available; definitions (LLB) are not solved by this engine"
            )
        session = await self.sessions.get(job.session)
        state = await Frontend(self.builder, session, attributes, job.progress).run()
        assert state.image is not None
        return state.image


class Control:
    """moby.buildkit.v1.Control."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list_workers(self, _: Any) -> Any:
        return control.ListWorkersResponse(record=[self._services.worker(control)])

    async def info(self, _: Any) -> Any:
        version = control.BuildkitVersion(package="github.com/moby/buildkit", version=f"v{ENGINE_VERSION}")
        return control.InfoResponse(buildkitVersion=version)

    async def disk_usage(self, _: Any) -> Any:
        from longshore.engine.build.usage import records

        return control.DiskUsageResponse(record=[_usage(record) for record in records(self._services.builder.store)])

    async def prune(self, request: Any) -> AsyncIterator[Any]:
        from longshore.engine.build.usage import prune

        for record in await prune(self._services.builder.store, everything=request.all):
            yield _usage(record)

    async def solve(self, request: Any) -> Any:
        services = self._services
        job = services.job(request.Ref)
        job.session = request.Session
        try:
            if request.Frontend:
                image = await services.detached(services.frontend(job, request.Frontend, dict(request.FrontendAttrs)))
            elif len(request.Definition.__getattribute__("def")):
                raise SolveError("definitions (LLB) are not solved by this engine")
            else:
                # The client runs its own frontend, which asks through LLBBridge and returns a result.
                image = await job.returned
            session = await services.sessions.get(request.Session)
            wanted = [(entry.Type, dict(entry.Attrs)) for entry in request.Exporters]
            if not wanted and request.ExporterDeprecated:
                wanted = [(request.ExporterDeprecated, dict(request.ExporterAttrsDeprecated))]
            answer: dict[str, str] = {}
            for number, (kind, attributes) in enumerate(wanted):
                if image is not None:
                    answer |= await export(
                        services.builder.store, session, job.progress, image, kind, attributes, number
                    )
            return control.SolveResponse(ExporterResponse=answer)
        except EngineError as error:
            raise rpc_error(error) from error
        finally:
            job.progress.finish()

    async def status(self, request: Any) -> AsyncIterator[Any]:
        async for message in self._services.job(request.Ref).progress.watch():
            yield message

    async def listen_build_history(self, request: Any) -> AsyncIterator[Any]:
        # No history is kept; a client that only wants what there is, is done at once.
        if not request.EarlyExit:
            await asyncio.Event().wait()
        nothing: tuple[Any, ...] = ()
        for event in nothing:
            yield event

    async def update_build_history(self, request: Any) -> Any:
        raise RpcError(Status.NOT_FOUND, f"record {request.Ref} not found")


class Bridge:
    """moby.buildkit.v1.frontend.LLBBridge, for the frontend that runs in the client."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def _job(self, metadata: Any) -> Job:
        ref = metadata.get(_BUILD_ID)
        if not ref:
            raise RpcError(Status.INVALID_ARGUMENT, "no buildid found in context")
        return self._services.job(ref)

    async def ping(self, _: Any) -> Any:
        caps = [bridge.APICap(ID=name, Enabled=True) for name in _CAPS]
        return bridge.PongResponse(FrontendAPICaps=caps, LLBCaps=[], Workers=[self._services.worker(bridge)])

    async def solve(self, request: Any, metadata: Any) -> Any:
        job = self._job(metadata)
        for _ in range(100):
            if job.session:
                break
            # The client sends Solve on both services at once.
            await asyncio.sleep(0.05)
        image = await self._services.detached(self._services.frontend(job, request.Frontend, dict(request.FrontendOpt)))
        ref = secrets.token_hex(12)
        job.results[ref] = image
        result = bridge.Result(ref=bridge.Ref(id=ref), metadata={"containerimage.config": image.raw})
        return bridge.SolveResponse(result=result)

    async def evaluate(self, request: Any, metadata: Any) -> Any:
        if request.Ref not in self._job(metadata).results:
            raise RpcError(Status.NOT_FOUND, f"no such ref: {request.Ref}")
        return bridge.EvaluateResponse()

    async def inputs(self, _: Any) -> Any:
        return bridge.InputsResponse()

    async def warn(self, _: Any) -> Any:
        return bridge.WarnResponse()

    async def return_(self, request: Any, metadata: Any) -> Any:
        return await self._finish(request, metadata)

    async def _finish(self, request: Any, metadata: Any) -> Any:
        job = self._job(metadata)
        if job.returned.done():
            return bridge.ReturnResponse()
        if request.HasField("error"):
            details = [(detail.type_url, detail.value) for detail in request.error.details]
            job.returned.set_exception(RpcError(Status(request.error.code), request.error.message, details or None))
            job.returned.exception()
            return bridge.ReturnResponse()
        ref = request.result.ref.id or request.result.refDeprecated
        if not ref and len(request.result.refs.refs) == 1:
            ref = next(iter(request.result.refs.refs.values())).id
        job.returned.set_result(job.results.get(ref))
        return bridge.ReturnResponse()


setattr(Bridge, "return", Bridge.return_)


def _usage(record: dict[str, Any]) -> Any:
    def stamp(nanoseconds: int) -> Any:
        return control.Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)

    return control.UsageRecord(
        ID=record["id"],
        InUse=record["in_use"],
        Size=record["size"],
        CreatedAt=stamp(record["created"]),
        LastUsedAt=stamp(record["used"]),
        UsageCount=record["uses"],
        Description=record["description"],
        RecordType="regular",
        Shared=record["shared"],
    )
