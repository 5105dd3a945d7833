"""Control: BuildKit's service as far as buildx asks it of the docker driver; and the content that builds left."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from longshore.engine.build.buildkit import attributes, caches, schemas
from longshore.engine.build.buildkit.attesting import attested
from longshore.engine.build.buildkit.bridge import Bridge
from longshore.engine.build.buildkit.definitions import Inputs, Solver, source_definition
from longshore.engine.build.buildkit.export import Exporter
from longshore.engine.build.buildkit.frontend import Frontend, OtherFrontend, Outcome, SolveError, is_dockerfile
from longshore.engine.build.buildkit.gateway import Gateway
from longshore.engine.build.buildkit.history import History, descriptor, stamp
from longshore.engine.build.buildkit.policies import Policies
from longshore.engine.build.buildkit.progress import Progress
from longshore.engine.build.buildkit.scanning import Scanner
from longshore.engine.build.buildkit.schemas import control
from longshore.engine.build.buildkit.session import Session
from longshore.engine.build.buildkit.sessions import Sessions
from longshore.engine.build.buildkit.stages import complete_config
from longshore.engine.build.buildkit.transport import StreamDuplex
from longshore.engine.build.cache import Hold
from longshore.engine.build.collection import Collector
from longshore.engine.build.settings import BuilderSettings
from longshore.engine.errors import EngineError
from longshore.engine.images.manifests import IN_TOTO, Entry
from longshore.engine.images.model import ENGINE_VERSION, Image, host_architecture
from longshore.engine.images.streams import in_thread
from longshore.machinery.grpc import RpcError, Server, Status

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.containers import Containers
    from longshore.engine.build.classic import Builder
    from longshore.engine.images.leases import Lease

T = TypeVar("T")

_SOURCE_URL = "github.com/moby/buildkit/errdefs.Source+json"
_KEPT = 64
_PIECE = 1 << 20


@dataclass
class Reference:
    """A result that a client holds: a stack of layers, and the image where there is one; or how it failed."""

    chain: str
    image: Image | None = None
    platform: str = ""
    failure: RpcError | None = None


@dataclass
class Job:
    """One build: who watches it, what went in, and what a client-side frontend gave back."""

    ref: str
    session: str = ""
    progress: Progress = field(default_factory=Progress)
    returned: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    results: dict[str, Reference] = field(default_factory=dict)
    records: dict[str, tuple[str, str]] = field(default_factory=dict)
    sources: dict[str, Image] = field(default_factory=dict)
    imports: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    entitlements: set[str] = field(default_factory=set)
    frontend: Frontend | None = None
    solver: Solver | None = None
    started: int = field(default_factory=time.time_ns)
    entries: list[Entry] = field(default_factory=list)
    asked: int = 0
    lease: Lease | None = None
    hold: Hold = field(default_factory=Hold)
    containers: Containers | None = None
    debris: list[str] = field(default_factory=list)
    policies: Policies = field(default_factory=Policies)


def rpc_error(error: EngineError) -> RpcError:
    """An engine's error as gRPC, with the place in the Dockerfile for the client to show."""
    status = {404: Status.NOT_FOUND, 400: Status.INVALID_ARGUMENT, 501: Status.UNIMPLEMENTED}.get(
        error.status, Status.UNKNOWN
    )
    details: list[tuple[str, bytes]] = []
    if isinstance(error, SolveError):
        status = Status.UNKNOWN
        if error.start:
            details.append((_SOURCE_URL, orjson.dumps(_place(error))))
    return RpcError(status, error.message, details or None)


def _place(error: SolveError) -> dict[str, Any]:
    """Where in which file: a range for each line, and the definition that loads the file."""
    load = getattr(source_definition("local://dockerfile", control), "def")
    info = {
        "filename": error.name,
        "data": base64.b64encode(error.data).decode(),
        "definition": {"def": [base64.b64encode(operation).decode() for operation in load]},
        "language": "Dockerfile",
    }
    lines = range(error.start, max(error.start, error.end) + 1)
    return {"info": info, "ranges": [{"start": {"line": line}, "end": {"line": line}} for line in lines]}


class Services:
    """The state behind the services."""

    def __init__(self, builder: Builder, *, settings: BuilderSettings | None = None) -> None:
        settings = settings or BuilderSettings()
        self.builder = builder
        self.sessions = Sessions()
        self.history = History(builder.store, settings.history, settings.history_age)
        self.allowed = set(settings.entitlements)
        self.collector = Collector(builder.store, settings.policy(builder.store.root))
        self.collector.soon()
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Future[Any]] = set()

    async def close(self) -> None:
        """The engine ends: what works on the store by itself does too."""
        await self.collector.close()

    def server(self) -> Server:
        """A gRPC server for one connection."""
        return Server(
            (schemas.control.Control, Control(self)),
            (schemas.bridge.LLBBridge, Bridge(self)),
            (schemas.content.Content, Content(self)),
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

    def known(self, ref: str) -> Job | None:
        return self._jobs.get(ref)

    def worker(self, schema: Any) -> Any:
        architecture = host_architecture()
        return schema.WorkerRecord(
            ID="longshore",
            Labels={
                "org.mobyproject.buildkit.worker.moby.host-gateway-ip": "172.17.0.1",
                # By this label buildx knows an engine that keeps several platforms, attestations and caches.
                "org.mobyproject.buildkit.worker.snapshotter": "overlayfs",
                "org.mobyproject.buildkit.worker.executor": "oci",
                "org.mobyproject.buildkit.worker.network": "host",
            },
            platforms=[schema.Platform(OS="linux", Architecture=architecture)],
            GCPolicy=[
                schema.GCPolicy(
                    all=rule.everything,
                    keepDuration=rule.keep,
                    filters=rule.filters,
                    reservedSpace=rule.reserved,
                    maxUsedSpace=rule.most,
                    minFreeSpace=rule.free,
                )
                for rule in self.collector.rules
            ],
            BuildkitVersion=schema.BuildkitVersion(package="github.com/moby/buildkit", version=f"v{ENGINE_VERSION}"),
        )

    async def solver(self, job: Job) -> Solver:
        """What solves a job's definitions; its results are held until the job ends."""
        if job.solver is None:
            session = await self.sessions.get(job.session)
            job.lease = self.builder.store.lease()
            job.solver = Solver(self.builder, session, job.progress, job.lease, job.policies, self.sessions)
        return job.solver

    async def frontend(
        self, job: Job, name: str, attributes_: dict[str, str], definitions: Mapping[str, Any]
    ) -> Outcome:
        """Run a frontend. Raises EngineError."""
        source = attributes_.get("source", "")
        # Another frontend by image is taken for the Dockerfile one only where it is that one.
        plain = name == "dockerfile.v0" or (
            name == "gateway.v0" and (source == "dockerfile.v0" or is_dockerfile(source))
        )
        if name == "gateway.v0" and not plain:
            return await Gateway(self, job, attributes_, definitions).run()
        if not plain:
            raise SolveError(f"invalid frontend: {name}")
        session = await self.sessions.get(job.session)
        inputs = Inputs(await self.solver(job), definitions)
        frontend = Frontend(
            self.builder,
            session,
            attributes_,
            inputs,
            job.progress,
            entitlements=job.entitlements,
            hold=job.hold,
            policies=job.policies,
        )
        wanted = attributes.attestations_of(attributes_)
        frontend.recording = "provenance" in wanted
        if "sbom" in wanted and "requestid" not in attributes_:
            frontend.scanner = Scanner(frontend, wanted["sbom"])
        imports = attributes.cache_imports(attributes_)
        imports += [entry for entry in job.imports if entry not in imports]
        try:
            if "requestid" not in attributes_:
                frontend.caches = await caches.load(self.builder.store, session, imports, job.progress)
                job.frontend = frontend
            return await frontend.run()
        except SolveError as error:
            if error.step is not None:
                job.debris.append(error.step.after)
                (await self.solver(job)).lease.add(error.step.after)
            raise
        except OtherFrontend as other:
            job.frontend = None
            told = {**attributes_, "source": other.source, "cmdline": other.command}
            try:
                return await Gateway(self, job, told, definitions).run()
            except EngineError as error:
                raise frontend.failed(error.message, other.line, error=error) from None
        finally:
            job.records |= frontend.records
            job.sources |= frontend.sources
            for cache in frontend.caches:
                await cache.close()
            await inputs.close()

    async def end(self, job: Job) -> None:
        """Let go of what a job held."""
        if job.containers is not None:
            await job.containers.close()
        if job.solver is not None:
            await job.solver.close()
        if job.lease is not None:
            job.lease.__exit__()
        for chain in job.debris:
            # A failed step's files are nobody's now.
            await in_thread(self.builder.store.layers.remove_unused, chain)
        job.hold.release()
        job.results.clear()
        self.collector.soon()


class Control:
    """moby.buildkit.v1.Control."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list_workers(self, _: Any) -> Any:
        return control.ListWorkersResponse(record=[self._services.worker(control)])

    async def info(self, _: Any) -> Any:
        version = control.BuildkitVersion(package="github.com/moby/buildkit", version=f"v{ENGINE_VERSION}")
        return control.InfoResponse(buildkitVersion=version)

    async def disk_usage(self, request: Any) -> Any:
        from longshore.engine.build.usage import accepts, kit_filters, records

        filters = kit_filters(request.filter)
        found = [record for record in records(self._services.builder.store) if accepts(record, filters)]
        return control.DiskUsageResponse(record=[_usage(record) for record in found])

    async def prune(self, request: Any) -> AsyncIterator[Any]:
        from longshore.engine.build.usage import Space, kit_filters, prune

        filters = kit_filters(request.filter)
        space = Space(request.reservedSpace, request.maxUsedSpace, request.minFreeSpace)
        store = self._services.builder.store
        for record in await prune(
            store, everything=request.all, filters=filters, space=space, age=request.keepDuration
        ):
            yield _usage(record)

    async def solve(self, request: Any) -> Any:
        services = self._services
        job = services.job(request.Ref)
        job.session = request.Session
        job.imports = [(entry.Type, dict(entry.Attrs)) for entry in request.Cache.Imports]
        job.policies = Policies([request.SourcePolicy])
        job.begun.set()
        record = _Record(services, job, request)
        try:
            job.entitlements = self._entitlements(request)
            answer = await services.detached(self._solve(job, request))
            record.answer = answer
            return control.SolveResponse(ExporterResponse=answer)
        except EngineError as error:
            record.error = rpc_error(error)
            raise record.error from error
        except RpcError as error:
            record.error = error
            raise
        except asyncio.CancelledError:
            record.error = RpcError(Status.CANCELLED, "context canceled")
            raise
        finally:
            record.end()
            job.progress.finish()
            await asyncio.shield(services.end(job))

    def _entitlements(self, request: Any) -> set[str]:
        wanted = set(request.Entitlements)
        for name in sorted(wanted):
            if name.partition("=")[0] not in self._services.allowed:
                if name.partition("=")[0] in ("security.insecure", "network.host", "device"):
                    raise RpcError(
                        Status.UNKNOWN, f"granting entitlement {name} is not allowed by build daemon configuration"
                    )
                raise RpcError(Status.UNKNOWN, f"unknown entitlement {name}")
        return wanted

    async def _solve(self, job: Job, request: Any) -> dict[str, str]:
        services = self._services
        store = services.builder.store
        if request.Frontend:
            outcome = await services.frontend(
                job, request.Frontend, dict(request.FrontendAttrs), request.FrontendInputs
            )
        elif len(getattr(request.Definition, "def")):
            solver = await services.solver(job)
            chain = await solver.solve(request.Definition)
            outcome = Outcome([("", self._bare(chain))]) if request.Exporters else Outcome()
        else:
            # The client runs its own frontend, which asks through LLBBridge and returns a result.
            outcome = await job.returned
        session = await services.sessions.get(request.Session)
        wanted = [(entry.Type, dict(entry.Attrs)) for entry in request.Exporters]
        if not wanted and request.ExporterDeprecated:
            wanted = [(request.ExporterDeprecated, dict(request.ExporterAttrsDeprecated))]
        exports = [(entry.Type, dict(entry.Attrs)) for entry in request.Cache.Exports]
        if any(kind == "inline" for kind, _ in exports):
            outcome.images = [(platform, self._inline(image, job)) for platform, image in outcome.images]
        names = [name for _, values in wanted for name in values.get("name", "").split(",") if name]
        job.entries = attested(store, job, request.FrontendAttrs, outcome, names)
        exporter = Exporter(
            store, session, job.progress, job.entries, multiple=outcome.multiple,
            epoch=job.frontend.epoch if job.frontend is not None else None, bases=job.sources.values(),
        )  # fmt: skip
        answer: dict[str, str] = {}
        for number, (kind, values) in enumerate(wanted):
            answer |= await exporter.run(kind, values, number)
        images = [image for _, image in outcome.images]
        for kind, values in exports:
            answer |= await caches.export(store, session, job.progress, kind, values, job.records, images)
        return answer

    def _bare(self, chain: str) -> Image:
        """An image for a definition's result that has no configuration."""
        store = self._services.builder.store
        return store.add(complete_config(store, {}, chain, ""), chain)

    def _inline(self, image: Image, job: Job) -> Image:
        store = self._services.builder.store
        return store.add(caches.with_inline(store, image, job.records), image.chain, parent=image.parent)

    async def status(self, request: Any) -> AsyncIterator[Any]:
        job = self._services.known(request.Ref)
        if job is None:
            try:
                old = self._services.history.statuses(request.Ref)
            except EngineError:
                job = self._services.job(request.Ref)
            else:
                for message in old:
                    yield message
                return
        async for message in job.progress.watch():
            yield message

    async def session(self, stream: Any, metadata: Any) -> AsyncIterator[Any]:
        """A client's session inside this connection, as sessions that several builds share come."""
        name = str(metadata.get("x-docker-expose-session-uuid") or "")
        if not name or name in self._services.sessions:
            raise RpcError(Status.INVALID_ARGUMENT, f"session {name} already exists" if name else "no session id")
        duplex = StreamDuplex(stream)
        opened = Session(name, duplex, metadata.getall("x-docker-expose-session-grpc-method", []))
        ending = asyncio.ensure_future(opened.ended())
        try:
            await self._services.sessions.add(opened)
            ending.add_done_callback(lambda _: duplex.close())
            async for data in duplex.written():
                yield control.BytesMessage(data=data)
        finally:
            ending.cancel()
            self._services.sessions.remove(opened)

    async def listen_build_history(self, request: Any) -> AsyncIterator[Any]:
        async for event in self._services.history.listen(request):
            yield event

    async def update_build_history(self, request: Any) -> Any:
        self._services.history.update(
            request.Ref, pinned=request.Pinned, delete=request.Delete, finalize=request.Finalize
        )
        return control.UpdateBuildHistoryResponse()


class _Record:
    """One build's entry of the history."""

    def __init__(self, services: Services, job: Job, request: Any) -> None:
        self._services, self._job = services, job
        self.answer: dict[str, str] = {}
        self.error: RpcError | None = None
        self._record: Any = None
        if request.Internal or not request.Ref:
            return
        self._record = control.BuildHistoryRecord(
            Ref=request.Ref,
            Frontend=request.Frontend,
            FrontendAttrs=dict(request.FrontendAttrs),
            Exporters=list(request.Exporters),
            CreatedAt=stamp(job.started),
        )
        services.history.begin(self._record)

    def end(self) -> None:
        """The build has ended: fill in how, and keep it."""
        record, job = self._record, self._job
        if record is None:
            return
        if job.frontend is not None:
            record.Frontend = "dockerfile.v0"
            for key, value in job.frontend.attributes.items():
                record.FrontendAttrs[key] = value
        record.CompletedAt.CopyFrom(stamp(time.time_ns()))
        for key, value in self.answer.items():
            record.ExporterResponse[key] = value
        if self.error is not None:
            record.error.code = self.error.status.value
            record.error.message = self.error.message or ""
            for url, value in self.error.details or ():
                record.error.details.add(type_url=url, value=value)
        steps = job.progress.steps()
        record.numTotalSteps, record.numCompletedSteps, record.numCachedSteps, record.numWarnings = steps
        content: list[bytes] = []
        if self.error is None:
            for number, entry in enumerate(job.entries):
                result = control.BuildResultInfo()
                config = entry.image.raw
                result.Results[0].CopyFrom(descriptor(config, "application/vnd.oci.image.config.v1+json"))
                for kind, data in entry.statements:
                    found = descriptor(data, IN_TOTO)
                    found.annotations["in-toto.io/predicate-type"] = kind
                    result.Attestations.append(found)
                    content.append(data)
                if number == 0:
                    record.Result.CopyFrom(result)
                record.Results[entry.platform].CopyFrom(result)
        self._services.history.end(record, job.progress.messages, content)


class Content:
    """containerd.services.content.v1.Content: documents of finished builds, configs and kept manifests, read only."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def _find(self, digest: str) -> bytes:
        store = self._services.builder.store
        data = self._services.history.content(digest)
        if data is None:
            row = store.database.one("SELECT body FROM manifests WHERE digest=?", digest)
            data = bytes(row[0]) if row else None
        if data is None:
            image = store.get(digest)
            data = image.raw if image is not None else None
        if data is None:
            raise RpcError(Status.NOT_FOUND, f"content {digest}: not found")
        return data

    async def info(self, request: Any) -> Any:
        content = schemas.content
        data = self._find(request.digest)
        return content.InfoResponse(info=content.Info(digest=request.digest, size=len(data)))

    async def read(self, request: Any) -> AsyncIterator[Any]:
        data = self._find(request.digest)
        end = len(data) if request.size <= 0 else min(len(data), request.offset + request.size)
        position = max(0, request.offset)
        while position < end:
            piece = data[position : min(end, position + _PIECE)]
            yield schemas.content.ReadContentResponse(offset=position, data=piece)
            position += len(piece)


def _usage(record: dict[str, Any]) -> Any:
    return control.UsageRecord(
        ID=record["id"],
        InUse=record["in_use"],
        Size=record["size"],
        CreatedAt=stamp(record["created"]),
        LastUsedAt=stamp(record["used"]),
        UsageCount=record["uses"],
        Description=record["description"],
        RecordType=record["type"],
        Mutable=record["mutable"],
        Shared=record["shared"],
    )
