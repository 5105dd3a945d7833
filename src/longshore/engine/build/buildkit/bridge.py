"""LLBBridge: what a frontend that runs in the client (buildx itself) asks of the engine."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build.buildkit.definitions import definition_of
from longshore.engine.build.buildkit.frontend import Outcome
from longshore.engine.build.buildkit.schemas import bridge
from longshore.engine.build.buildkit.stages import complete_config
from longshore.engine.build.step import StepRoot
from longshore.engine.errors import EngineError
from longshore.engine.images import references
from longshore.engine.images.listing import platform_matches
from longshore.engine.images.model import Image
from longshore.engine.images.streams import in_thread
from longshore.machinery import rooted
from longshore.machinery.grpc import RpcError, Status

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.control import Job, Reference, Services

_BUILD_ID = "buildkit-controlapi-buildid"
_CONFIG = "containerimage.config"
_READ_LIMIT = 16 << 20
_WAIT = 5.0
_FRONTEND_CAPS = (
    "solve.base", "solve.inlinereturn", "resolveimage", "resolveimage.resolvemode", "readfile", "readdir", "statfile",
    "return", "returnmap", "proto.refarray", "reference.output", "gateway.solve.metadata", "gateway.solve.evaluate",
    "gateway.evaluate", "gateway.warnings", "frontend.inputs", "frontend.caps", "importcaches",
)  # fmt: skip
_LLB_CAPS = (
    "source.image", "source.image.resolvemode", "source.local", "source.local.unique", "source.local.sessionid",
    "source.local.includepatterns", "source.local.followpaths", "source.local.excludepatterns",
    "source.local.sharedkeyhint", "source.local.differ", "source.git", "source.git.keepgitdir", "source.git.fullurl",
    "source.git.httpauth", "source.git.subdir", "source.git.checksum", "source.git.skipsubmodules", "source.git.mtime",
    "source.http", "source.http.checksum", "source.http.perm", "exec.meta.base", "exec.meta.cgroup.parent",
    "exec.meta.network", "exec.meta.proxyenv", "exec.meta.security", "exec.meta.setsdefaultpath", "exec.meta.ulimit", "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput", "exec.mount.cache", "exec.mount.cache.sharing", "exec.mount.selector",
    "exec.mount.tmpfs", "exec.mount.tmpfs.size", "exec.mount.secret", "exec.mount.ssh", "exec.cgroup", "exec.secretenv",
    "exec.validexitcode", "file.base", "file.rm.wildcard", "file.rm.nofollowsymlink",
    "file.copy.includeexcludepatterns", "file.copy.alwaysreplaceexistingdestpaths", "file.copy.modestring",
    "file.symlink.create", "constraints", "platform", "meta.ignorecache", "meta.description", "meta.exportcache",
    "mergeop", "diffop", "exporter.image.annotations", "exporter.image.attestations", "exporter.sourcedateepoch",
    "exporter.multiple",
)  # fmt: skip


class Bridge:
    """moby.buildkit.v1.frontend.LLBBridge."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def _job(self, metadata: Any) -> Job:
        ref = metadata.get(_BUILD_ID)
        if not ref:
            raise RpcError(Status.INVALID_ARGUMENT, "no buildid found in context")
        return self._services.job(ref)

    async def _begun(self, metadata: Any) -> Job:
        """The job, when its Solve has come: the client sends calls on both services at once."""
        job = self._job(metadata)
        try:
            async with asyncio.timeout(_WAIT):
                await job.begun.wait()
        except TimeoutError:
            raise RpcError(Status.NOT_FOUND, f"no such job {job.ref}") from None
        return job

    async def ping(self, _: Any) -> Any:
        frontend = [bridge.APICap(ID=name, Enabled=True) for name in _FRONTEND_CAPS]
        llb = [bridge.APICap(ID=name, Enabled=True) for name in _LLB_CAPS]
        return bridge.PongResponse(FrontendAPICaps=frontend, LLBCaps=llb, Workers=[self._services.worker(bridge)])

    # -- solving ---------------------------------------------------------------------------------------------------

    async def solve(self, request: Any, metadata: Any) -> Any:
        job = await self._begun(metadata)
        services = self._services
        if len(getattr(request.Definition, "def")):
            solver = await services.solver(job)
            chain = await services.detached(solver.solve(request.Definition))
            return bridge.SolveResponse(result=bridge.Result(ref=self._hold(job, chain)))
        for entry in request.CacheImports:
            found = (entry.Type, dict(entry.Attrs))
            if found not in job.imports:
                job.imports.append(found)
        if not request.Frontend:
            return bridge.SolveResponse(result=bridge.Result(ref=self._hold(job, "")))
        outcome = await services.detached(
            services.frontend(job, request.Frontend, dict(request.FrontendOpt), request.FrontendInputs)
        )
        return bridge.SolveResponse(result=self._result(job, outcome))

    def _hold(self, job: Job, chain: str, image: Image | None = None, platform: str = "") -> Any:
        from longshore.engine.build.buildkit.control import Reference

        name = secrets.token_hex(12)
        job.results[name] = Reference(chain, image, platform)
        if job.lease is not None and chain:
            job.lease.add(chain)
        return bridge.Ref(id=name, **{"def": definition_of(chain, bridge)})

    def _result(self, job: Job, outcome: Outcome) -> Any:
        metadata = dict(outcome.metadata)
        if not outcome.images:
            return bridge.Result(metadata=metadata)
        if not outcome.multiple:
            platform, image = outcome.images[0]
            metadata[_CONFIG] = image.raw
            return bridge.Result(ref=self._hold(job, image.chain, image, platform), metadata=metadata)
        refs = bridge.RefMap()
        platforms: list[dict[str, Any]] = []
        for platform, image in outcome.images:
            refs.refs[platform].CopyFrom(self._hold(job, image.chain, image, platform))
            metadata[f"{_CONFIG}/{platform}"] = image.raw
            parts = [*platform.split("/"), ""]
            shown = {"os": parts[0], "architecture": parts[1], **({"variant": parts[2]} if parts[2] else {})}
            platforms.append({"ID": platform, "Platform": shown})
        metadata["refs.platforms"] = orjson.dumps({"Platforms": platforms})
        return bridge.Result(refs=refs, metadata=metadata)

    async def evaluate(self, request: Any, metadata: Any) -> Any:
        self._reference(self._job(metadata), request.Ref)
        return bridge.EvaluateResponse()

    def _reference(self, job: Job, name: str) -> Reference:
        found = job.results.get(name)
        if found is None:
            raise RpcError(Status.NOT_FOUND, f"no such ref: {name}")
        return found

    async def inputs(self, _: Any) -> Any:
        return bridge.InputsResponse()

    async def warn(self, request: Any, metadata: Any) -> Any:
        self._job(metadata).progress.plain_warning(request)
        return bridge.WarnResponse()

    async def resolve_image_config(self, request: Any, metadata: Any) -> Any:
        job = await self._begun(metadata)
        store = self._services.builder.store
        wanted = request.Platform
        platform = "/".join(filter(None, (wanted.OS, wanted.Architecture, wanted.Variant))) if wanted.OS else ""
        image = store.find(request.Ref, platform)
        fits = image is not None and (not platform or platform_matches(image, platform))
        if image is None or not fits or request.ResolveMode == "pull":
            session = await self._services.sessions.get(job.session)
            reference = references.parse(request.Ref).with_default_tag()
            auth = await session.credentials(reference.domain)
            image = await store.pull(reference, auth=auth, platform=platform, named=fits or image is None)
        found = [name.digest for name in store.names(image.id) if name.digest]
        return bridge.ResolveImageConfigResponse(
            Digest=found[0] if found else image.id, Config=image.raw, Ref=request.Ref
        )

    # -- files of results ------------------------------------------------------------------------------------------

    async def _in(self, request: Any, metadata: Any, work: Any) -> Any:
        """Do some work on a result's mounted root in a thread."""
        reference = self._reference(self._job(metadata), request.Ref)
        root = StepRoot(self._services.builder.store, reference.chain)

        def whole() -> Any:
            try:
                root.mount()
                return work(root.merged)
            finally:
                root.discard()

        try:
            return await in_thread(whole)
        except OSError as error:
            missing = error.errno in (2, 20)
            text = f"open {error.filename or ''}: {(error.strerror or '').lower()}"
            raise RpcError(Status.NOT_FOUND if missing else Status.UNKNOWN, text) from None

    async def read_file(self, request: Any, metadata: Any) -> Any:
        def read(root: Any) -> bytes:
            data = rooted.read_file(root, request.FilePath, _READ_LIMIT)
            if request.HasField("Range"):
                return data[request.Range.Offset :][: request.Range.Length or None]
            return data

        return bridge.ReadFileResponse(Data=await self._in(request, metadata, read))

    async def read_dir(self, request: Any, metadata: Any) -> Any:
        def read(root: Any) -> list[Any]:
            import fnmatch

            with rooted.opened(root, request.DirPath, os.O_RDONLY | os.O_DIRECTORY) as fd:
                names = sorted(os.listdir(fd))
                if request.IncludePattern:
                    names = [name for name in names if fnmatch.fnmatchcase(name, request.IncludePattern)]
                return [_stat(fd, name) for name in names]

        return bridge.ReadDirResponse(entries=await self._in(request, metadata, read))

    async def stat_file(self, request: Any, metadata: Any) -> Any:
        def read(root: Any) -> Any:
            above, _, name = request.Path.rstrip("/").rpartition("/")
            with rooted.opened(root, above or "/", os.O_RDONLY | os.O_DIRECTORY) as fd:
                return _stat(fd, name or ".")

        return bridge.StatFileResponse(stat=await self._in(request, metadata, read))

    # -- the end ---------------------------------------------------------------------------------------------------

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
        try:
            job.returned.set_result(self._outcome(job, request.result))
        except EngineError as error:
            job.returned.set_exception(error)
            job.returned.exception()
        return bridge.ReturnResponse()

    def _outcome(self, job: Job, result: Any) -> Outcome:
        """What a client's frontend made of its results: images with the configurations that it gave."""
        metadata = dict(result.metadata)
        multiple = result.WhichOneof("result") == "refs"
        named = {"": result.ref.id or result.refDeprecated}
        if multiple:
            named = {platform: ref.id for platform, ref in result.refs.refs.items()}
        outcome = Outcome(multiple=multiple and _CONFIG not in metadata)
        for platform, name in named.items():
            if not name and _CONFIG not in metadata:
                continue
            reference = job.results.get(name)
            raw = metadata.get(f"{_CONFIG}/{platform}") or metadata.get(_CONFIG) or b""
            image = reference.image if reference is not None else None
            if image is None or (raw and raw != image.raw):
                store = self._services.builder.store
                chain = reference.chain if reference is not None else ""
                try:
                    config = orjson.loads(raw) if raw else {}
                except ValueError:
                    raise RpcError(Status.INVALID_ARGUMENT, "invalid image config for export") from None
                image = store.add(complete_config(store, config, chain, platform), chain)
            outcome.images.append((platform or (reference.platform if reference is not None else ""), image))
        return outcome


setattr(Bridge, "return", Bridge.return_)


def _stat(fd: int, name: str) -> Any:
    from longshore.engine.build.buildkit.session import stat_of

    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
    link = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(info.st_mode) else ""
    made = bridge.Stat()
    made.ParseFromString(stat_of(name, info, link).SerializeToString())
    return made
