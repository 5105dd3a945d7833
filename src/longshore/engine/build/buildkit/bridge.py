"""LLBBridge: what a frontend that runs in the client (buildx itself) asks of the engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build.buildkit.contents import ContentStore
from longshore.engine.build.buildkit.definitions import definition_of
from longshore.engine.build.buildkit.frontend import Outcome, SolveError
from longshore.engine.build.buildkit.schemas import bridge
from longshore.engine.build.buildkit.stages import complete_config
from longshore.engine.build.step import StepRoot
from longshore.engine.errors import EngineError, InvalidParameter
from longshore.engine.images import references
from longshore.engine.images.listing import platform_matches
from longshore.engine.images.model import Image
from longshore.engine.images.streams import in_thread
from longshore.machinery import rooted
from longshore.machinery.grpc import RpcError, Status

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.containers import Containers
    from longshore.engine.build.buildkit.control import Job, Reference, Services

_BUILD_ID = "buildkit-controlapi-buildid"
_CONFIG = "containerimage.config"
_READ_LIMIT = 16 << 20
_WAIT = 5.0
_HOST = 1
_LAYOUT = 1
_FRONTEND_CAPS = (
    "solve.base", "solve.inlinereturn", "resolveimage", "resolveimage.resolvemode", "readfile", "readdir", "statfile",
    "return", "returnmap", "proto.refarray", "reference.output", "gateway.solve.metadata", "gateway.solve.evaluate",
    "gateway.evaluate", "gateway.warnings", "gateway.exec", "gateway.exec.extrahosts", "gateway.exec.secretenv",
    "gateway.exec.signals", "gateway.exec.filesystem", "frontend.inputs", "frontend.caps", "importcaches",
)  # fmt: skip
_LLB_CAPS = (
    "source.image", "source.image.resolvemode", "source.local", "source.local.unique", "source.local.sessionid",
    "source.local.includepatterns", "source.local.followpaths", "source.local.excludepatterns",
    "source.local.sharedkeyhint", "source.local.differ", "source.git", "source.git.keepgitdir", "source.git.fullurl",
    "source.git.httpauth", "source.git.subdir", "source.git.checksum", "source.git.skipsubmodules", "source.git.mtime",
    "source.http", "source.http.checksum", "source.http.perm", "source.ocilayout", "source.buildop.llbfilename", "exec.meta.base", "exec.meta.cgroup.parent",
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

    async def close(self) -> None:
        """Let go of what the frontend had under way."""

    def _returned(self, job: Job) -> asyncio.Future[Outcome]:
        """Where what the frontend returns goes."""
        return job.returned

    async def ping(self, _: Any, metadata: Any) -> Any:
        await self._begun(metadata)
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
            return bridge.SolveResponse(result=bridge.Result())
        try:
            outcome = await services.detached(
                services.frontend(job, request.Frontend, dict(request.FrontendOpt), request.FrontendInputs)
            )
        except SolveError as error:
            failure = self._failure(job, error)
            if error.step is None or request.Evaluate:
                raise failure from None
            # A client that may want to enter the step asks what became of the result.
            return bridge.SolveResponse(result=bridge.Result(ref=self._hold(job, "", failure=failure)))
        return bridge.SolveResponse(result=self._result(job, outcome))

    def _failure(self, job: Job, error: SolveError) -> RpcError:
        """An error that tells what a client may enter of the step that failed."""
        from longshore.engine.build.buildkit.control import rpc_error

        told = rpc_error(error)
        if error.step is None:
            return told
        detail = error.step.detail(lambda chain: str(self._hold(job, chain).id))
        return RpcError(told.status, told.message, [*(told.details or ()), detail])

    def _hold(
        self, job: Job, chain: str, image: Image | None = None, platform: str = "", failure: RpcError | None = None
    ) -> Any:
        from longshore.engine.build.buildkit.control import Reference

        name = secrets.token_hex(12)
        job.results[name] = Reference(chain, image, platform, failure)
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
        if found.failure is not None:
            raise found.failure
        return found

    async def inputs(self, _: Any) -> Any:
        return bridge.InputsResponse()

    async def warn(self, request: Any, metadata: Any) -> Any:
        self._job(metadata).progress.plain_warning(request)
        return bridge.WarnResponse()

    async def resolve_image_config(self, request: Any, metadata: Any) -> Any:
        job = await self._begun(metadata)
        wanted = request.Platform
        platform = "/".join(filter(None, (wanted.OS, wanted.Architecture, wanted.Variant))) if wanted.OS else ""
        layout = (
            request.StoreID or references.parse(request.Ref).familiar_name if request.ResolverType == _LAYOUT else ""
        )
        with contextlib.ExitStack() as stack:
            if request.LogName:
                stack.enter_context(job.progress.vertex(request.LogName))
            image = await self._image(job, request.Ref, platform, request.ResolveMode == "pull", layout)
        found = [name.digest for name in self._services.builder.store.names(image.id) if name.digest]
        given = references.parse(request.Ref).digest
        digest = given or (found[0] if found else image.id)
        return bridge.ResolveImageConfigResponse(Digest=digest, Config=image.raw, Ref=request.Ref)

    async def _image(self, job: Job, name: str, platform: str, pull: bool, layout: str) -> Image:
        """An image of the store's, a registry's or, with the name of a store of the client's, of a layout there."""
        store = self._services.builder.store
        session = await self._services.sessions.get(job.session)
        reference = references.parse(name).with_default_tag()
        if layout:
            source = ContentStore(session, f"oci:{layout}")
            return await source.image(store, references.check_digest(reference.digest), platform)
        image = store.find(name, platform)
        fits = image is not None and (not platform or platform_matches(image, platform))
        if image is not None and fits and not pull:
            return image
        auth = await session.credentials(reference.domain)
        return await store.pull(reference, auth=auth, platform=platform, named=fits or image is None)

    async def resolve_source_meta(self, request: Any, metadata: Any) -> Any:
        scheme, _, name = request.Source.identifier.partition("://")
        if scheme not in ("docker-image", "oci-layout"):
            raise RpcError(Status.UNIMPLEMENTED, f"metadata of {scheme} sources can not be resolved")
        asked = bridge.ResolveImageConfigRequest(
            Ref=name, Platform=request.Platform, ResolveMode=request.ResolveMode, LogName=request.LogName
        )
        if scheme == "oci-layout":
            asked.ResolverType = _LAYOUT
            asked.StoreID = request.Source.attrs.get("oci.store", "")
        found = await self.resolve_image_config(asked, metadata)
        config = b"" if request.Image.NoConfig else found.Config
        image = bridge.ResolveSourceImageResponse(Digest=found.Digest, Config=config)
        return bridge.ResolveSourceMetaResponse(Source=request.Source, Image=image)

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

        return await _in_files(whole)

    async def _in_container(self, request: Any, metadata: Any, work: Any) -> Any:
        """Do some work on the files of a container's mount in a thread."""
        root = self._containers(self._job(metadata)).get(request.Ref).files(request.MountIndex)
        return await _in_files(lambda: work(root))

    async def read_file(self, request: Any, metadata: Any) -> Any:
        return bridge.ReadFileResponse(Data=await self._in(request, metadata, _file_reader(request)))

    async def read_dir(self, request: Any, metadata: Any) -> Any:
        return bridge.ReadDirResponse(entries=await self._in(request, metadata, _folder_reader(request)))

    async def stat_file(self, request: Any, metadata: Any) -> Any:
        return bridge.StatFileResponse(stat=await self._in(request, metadata, _stat_reader(request)))

    async def read_file_container(self, request: Any, metadata: Any) -> Any:
        return bridge.ReadFileResponse(Data=await self._in_container(request, metadata, _file_reader(request)))

    async def read_dir_container(self, request: Any, metadata: Any) -> Any:
        return bridge.ReadDirResponse(entries=await self._in_container(request, metadata, _folder_reader(request)))

    async def stat_file_container(self, request: Any, metadata: Any) -> Any:
        return bridge.StatFileResponse(stat=await self._in_container(request, metadata, _stat_reader(request)))

    # -- containers --------------------------------------------------------------------------------------------------

    def _containers(self, job: Job) -> Containers:
        if job.containers is None:
            from longshore.engine.build.buildkit.containers import Containers

            job.containers = Containers(self._services.builder.runner)
        return job.containers

    async def new_container(self, request: Any, metadata: Any) -> Any:
        job = await self._begun(metadata)
        if request.Network == _HOST and "network.host" not in job.entitlements:
            raise RpcError(Status.UNKNOWN, "network.host is not allowed")
        chains = [self._reference(job, mount.resultID).chain if mount.resultID else "" for mount in request.Mounts]
        insecure = "security.insecure" in job.entitlements
        await self._containers(job).new(await self._services.solver(job), request, chains, insecure=insecure)
        return bridge.NewContainerResponse()

    async def release_container(self, request: Any, metadata: Any) -> Any:
        await self._containers(self._job(metadata)).release(request.ContainerID)
        return bridge.ReleaseContainerResponse()

    async def exec_process(self, stream: Any, metadata: Any) -> AsyncIterator[Any]:
        from longshore.engine.build.buildkit.containers import Exchange

        exchange = Exchange(self._containers(self._job(metadata)))
        async with contextlib.aclosing(exchange.messages(stream)) as messages:
            async for message in messages:
                yield message

    # -- the end ---------------------------------------------------------------------------------------------------

    async def return_(self, request: Any, metadata: Any) -> Any:
        return await self._finish(request, metadata)

    async def _finish(self, request: Any, metadata: Any) -> Any:
        job = self._job(metadata)
        returned = self._returned(job)
        if returned.done():
            return bridge.ReturnResponse()
        if request.HasField("error"):
            details = [(detail.type_url, detail.value) for detail in request.error.details]
            returned.set_exception(RpcError(Status(request.error.code), request.error.message, details or None))
            returned.exception()
            return bridge.ReturnResponse()
        try:
            returned.set_result(self._outcome(job, request.result))
        except (EngineError, RpcError) as error:
            returned.set_exception(error)
            returned.exception()
        return bridge.ReturnResponse()

    def _outcome(self, job: Job, result: Any) -> Outcome:
        """What a client's frontend made of its results: images with the configurations that it gave."""
        metadata = dict(result.metadata)
        kind = result.WhichOneof("result")
        multiple = kind in ("refs", "refsDeprecated")
        named = {"": result.ref.id or result.refDeprecated}
        if kind == "refs":
            named = {platform: ref.id for platform, ref in result.refs.refs.items()}
        elif multiple:
            named = dict(result.refsDeprecated.refs)
        outcome = Outcome(multiple=multiple and _CONFIG not in metadata)
        for platform, name in sorted(named.items(), key=_order(metadata)):
            # An answer to a question is no image; nothing at all is one without files.
            if not name and metadata and _CONFIG not in metadata:
                continue
            reference = self._reference(job, name) if name in job.results else None
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


def _order(metadata: dict[str, bytes]) -> Callable[[tuple[str, str]], int]:
    """Results of several platforms stand in the order that the frontend told (protobuf's maps have none)."""
    try:
        told = [
            str(entry["ID"]) for entry in orjson.loads(metadata.get("refs.platforms", b"{}")).get("Platforms") or []
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidParameter("failed to parse platforms passed to provenance processor") from None
    return lambda item: told.index(item[0]) if item[0] in told else len(told)


async def _in_files(work: Callable[[], Any]) -> Any:
    """Work on files in a thread; what is not there is told as such."""
    try:
        return await in_thread(work)
    except OSError as error:
        missing = error.errno in (2, 20)
        text = f"open {error.filename or ''}: {(error.strerror or '').lower()}"
        raise RpcError(Status.NOT_FOUND if missing else Status.UNKNOWN, text) from None


def _file_reader(request: Any) -> Callable[[Path], bytes]:
    def read(root: Path) -> bytes:
        data = rooted.read_file(root, request.FilePath, _READ_LIMIT)
        if request.HasField("Range"):
            return data[request.Range.Offset :][: request.Range.Length or None]
        return data

    return read


def _folder_reader(request: Any) -> Callable[[Path], list[Any]]:
    def read(root: Path) -> list[Any]:
        import fnmatch

        with rooted.opened(root, request.DirPath, os.O_RDONLY | os.O_DIRECTORY) as fd:
            names = sorted(os.listdir(fd))
            if request.IncludePattern:
                names = [name for name in names if fnmatch.fnmatchcase(name, request.IncludePattern)]
            return [_stat(fd, name) for name in names]

    return read


def _stat_reader(request: Any) -> Callable[[Path], Any]:
    def read(root: Path) -> Any:
        above, _, name = request.Path.rstrip("/").rpartition("/")
        with rooted.opened(root, above or "/", os.O_RDONLY | os.O_DIRECTORY) as fd:
            return _stat(fd, name or ".")

    return read


def _stat(fd: int, name: str) -> Any:
    from longshore.engine.build.buildkit.session import stat_of

    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
    link = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(info.st_mode) else ""
    made = bridge.Stat()
    made.ParseFromString(stat_of(name, info, link).SerializeToString())
    return made
