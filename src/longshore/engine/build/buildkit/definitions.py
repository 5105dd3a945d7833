"""Definitions (LLB): a client's graph of operations solved to stacks of layers.

Every operation's result is a chain of layers of the image store ("" : nothing). Results of commands and file operations
are kept by what went into them, as builds' steps are. Source: BuildKit solver/pb/ops.proto, client/llb.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build import git
from longshore.engine.build.buildkit import keys, schemas
from longshore.engine.build.buildkit.contents import ContentStore
from longshore.engine.build.buildkit.policies import Policies
from longshore.engine.build.buildkit.progress import Progress, Vertex
from longshore.engine.build.buildkit.session import UPLOAD, Session
from longshore.engine.build.buildkit.sessions import Sessions
from longshore.engine.build.step import StepRoot
from longshore.engine.errors import InvalidParameter, NotFound, SystemFailure
from longshore.engine.images import references
from longshore.engine.images.commit import copy_layer
from longshore.engine.images.layers import Layer
from longshore.engine.images.listing import platform_matches
from longshore.engine.images.model import Image
from longshore.engine.images.pack import hash_tree
from longshore.engine.images.streams import in_thread

if TYPE_CHECKING:
    from longshore.engine.build.classic import Builder
    from longshore.engine.images.leases import Lease
    from longshore.engine.images.store import ImageStore

# The source that stands for a result of ours when a client hands it back.
OURS = "longshore-layers://"
_OPERATIONS = 100_000
_KEPT = "definitions"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def definition_of(chain: str, schema: Any) -> Any:
    """A definition that means a stack of layers of ours. schema: whose Definition message is made."""
    return source_definition(OURS + chain, schema)


def source_definition(identifier: str, schema: Any) -> Any:
    """A definition of one source."""
    source = schemas.pb.Op(source=schemas.pb.SourceOp(identifier=identifier)).SerializeToString(deterministic=True)
    end = schemas.pb.Op(inputs=[schemas.pb.Input(digest=digest_of(source))]).SerializeToString(deterministic=True)
    made = schema.Definition()
    getattr(made, "def").extend([source, end])
    # A definition without metadata is taken for none by clients.
    made.metadata[digest_of(source)].description["llb.customname"] = "result of a build"
    return made


class Graph:
    """A parsed definition. Raises InvalidParameter."""

    def __init__(self, definition: Any) -> None:
        raw = [bytes(data) for data in getattr(definition, "def")]
        if len(raw) > _OPERATIONS:
            raise InvalidParameter("definition has too many operations")
        self.operations: dict[str, Any] = {}
        last: Any = None
        for data in raw:
            last = schemas.pb.Op()
            try:
                last.ParseFromString(data)
            except Exception:
                raise InvalidParameter("failed to parse llb proto op") from None
            self.operations[digest_of(data)] = last
        self.names = {key: dict(value.description) for key, value in definition.metadata.items()}
        self.anew = {key for key, value in definition.metadata.items() if value.ignore_cache}
        if last is None or not last.inputs:
            self.head: tuple[str, int] | None = None
        else:
            self.head = last.inputs[0].digest, last.inputs[0].index
        self._check()

    def _check(self) -> None:
        """Every input must be one of the operations (digests make cycles impossible)."""
        for operation in self.operations.values():
            for item in operation.inputs:
                if item.digest not in self.operations:
                    raise InvalidParameter(f"invalid missing input digest {item.digest}")


class Solver:
    """Solves definitions for one build. sessions: where sources say that files are another session's."""

    def __init__(
        self,
        builder: Builder,
        session: Session,
        progress: Progress,
        lease: Lease,
        policies: Policies | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        self.policies = policies or Policies()
        self.sessions = sessions
        self.builder, self.session, self.progress, self.lease = builder, session, progress, lease
        self.store: ImageStore = builder.store
        self._running: dict[str, asyncio.Task[list[str]]] = {}

    async def close(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def solve(self, definition: Any) -> str:
        """The chain that a definition means. Raises EngineError."""
        graph = Graph(definition)
        if graph.head is None:
            return ""
        return await self._output(graph, *graph.head)

    async def _output(self, graph: Graph, digest: str, index: int) -> str:
        task = self._running.get(digest)
        if task is None:
            task = self._running[digest] = asyncio.ensure_future(self._operation(graph, digest))
        outputs = await asyncio.shield(task)
        if not 0 <= index < len(outputs):
            raise InvalidParameter(f"invalid output index {index}")
        return outputs[index]

    async def _operation(self, graph: Graph, digest: str) -> list[str]:
        from longshore.engine.build.buildkit import operations

        operation = graph.operations[digest]
        inputs = [
            await task
            for task in [
                asyncio.ensure_future(self._output(graph, item.digest, item.index)) for item in operation.inputs
            ]
        ]
        kind = operation.WhichOneof("op")
        if kind is None:
            return inputs
        shown = graph.names.get(digest, {}).get("llb.customname") or operations.shown_name(operation)
        if kind == "source":
            return [await self._source(operation, shown)]
        with self.progress.vertex(shown) as vertex:
            bare = schemas.pb.Op()
            bare.CopyFrom(operation)
            del bare.inputs[:]
            if kind == "exec":
                # How the network is reached does not make another result.
                bare.exec.meta.ClearField("proxy_env")
            read = await keys.of_inputs(self.store, kind, operation, inputs)
            key = self.builder.cache.key("llb", bare.SerializeToString(deterministic=True).hex(), read)
            known = None if digest in graph.anew else self._known(key)
            if known is not None:
                vertex.cached = True
                return known
            made = await operations.run(self, kind, operation, inputs, vertex)
            self._keep(key, made)
            return made

    # -- kept results ----------------------------------------------------------------------------------------------

    def _known(self, key: str) -> list[str] | None:
        row = self.store.database.one("SELECT image FROM uses WHERE container=?", f"llb-{key}")
        if row is None:
            return None
        chains: list[str] = orjson.loads(row[0])
        for chain in chains:
            if chain:
                self.lease.add(chain)
                if self.store.layers.get(chain) is None:
                    return None
        return chains

    def _keep(self, key: str, chains: list[str]) -> None:
        with self.store.database.write(durable=False) as connection:
            text = orjson.dumps(chains).decode()
            rows = [(f"llb-{key}" if not n else f"llb-{key}-{n}", text, chain, _KEPT) for n, chain in enumerate(chains)]
            connection.executemany("INSERT OR REPLACE INTO uses VALUES(?,?,?,?)", rows)

    # -- sources ---------------------------------------------------------------------------------------------------

    async def _source(self, operation: Any, shown: str) -> str:
        identifier, attributes = self.policies.evaluate(operation.source.identifier, operation.source.attrs)
        scheme, colon, rest = identifier.partition("://")
        if identifier.startswith(OURS):
            chain = str(identifier).removeprefix(OURS)
            if chain:
                self.lease.add(chain)
                if self.store.layers.get(chain) is None:
                    raise NotFound(f"layer does not exist: {chain}")
            return chain
        with self.progress.vertex(shown) as vertex:
            if scheme in ("docker-image", "oci-layout"):
                image = await (self._image if scheme == "docker-image" else self._layout)(rest, attributes, operation)
                self.lease.add(image.chain)
                return str(image.chain)
            if scheme in ("git", "ssh") or (scheme in ("http", "https") and "git.fullurl" in attributes):
                return await self._git(rest, attributes)
            if scheme in ("http", "https"):
                return await self._http(identifier, attributes)
            if scheme == "local":
                return await self._local(rest, attributes, vertex)
            raise SystemFailure(
                f"failed to load source {identifier}: source scheme {scheme if colon else ''} is not known"
            )

    async def _layout(self, name: str, attributes: Mapping[str, str], operation: Any) -> Image:
        """An image of an OCI layout of the client's."""
        reference = references.parse(name)
        place = attributes.get("oci.store") or reference.familiar_name
        source = ContentStore(self.session, f"oci:{place}")
        return await source.image(self.store, references.check_digest(reference.digest), _platform(operation))

    async def _image(self, name: str, attributes: Mapping[str, str], operation: Any) -> Image:
        platform = _platform(operation)
        reference = references.parse(name).with_default_tag()
        found = self.store.find(name, platform)
        if found is None and reference.digest:
            # An image that no registry knows was resolved to its own id.
            found = self.store.get(reference.digest)
        fits = found is not None and (not platform or platform_matches(found, platform))
        if found is not None and fits and attributes.get("image.resolvemode") != "pull":
            return found
        auth = await self.session.credentials(reference.domain)
        return await self.store.pull(reference, auth=auth, platform=platform)

    async def _git(self, rest: str, attributes: Mapping[str, str]) -> str:
        remote, _, fragment = rest.partition("#")
        ref, _, folder = fragment.partition(":")
        reference = git.GitReference(
            attributes.get("git.fullurl") or f"https://{remote}",
            ref,
            folder.strip("/"),
            attributes.get("git.checksum", ""),
            attributes.get("git.keepgitdir") == "true",
            attributes.get("git.skipsubmodules") != "true",
            attributes.get("git.mtime") == "commit",
        )

        async def fill(path: Path) -> None:
            whole = path.parent / "whole"
            whole.mkdir()
            await git.checkout(reference, whole, secret=self.session.secret)
            chosen = await git.inner(whole, reference)
            path.rmdir()
            chosen.rename(path)

        return await self.made(fill)

    async def _http(self, url: str, attributes: Mapping[str, str]) -> str:
        from longshore.engine.build.downloads import fetch, verify

        async def fill(path: Path) -> None:
            given = attributes.get("http.filename") or ""
            if url.startswith(UPLOAD):
                # What the client sends as one stream (docker build -).
                name = given or "download"
                with (path / name).open("wb") as received:
                    async for data in self.session.upload(url.removeprefix(UPLOAD)):
                        await in_thread(received.write, data)
            else:
                name = await fetch(self.store, url, path, given or "download")
            if given and name != given:
                (path / name).rename(path / given)
                name = given
            if attributes.get("http.checksum"):
                await in_thread(verify, path / name, attributes["http.checksum"])
            file = path / name
            file.chmod(int((attributes.get("http.perm") or "0600").removeprefix("0o"), 8))

        return await self.made(fill)

    async def _local(self, name: str, attributes: Mapping[str, str], vertex: Vertex) -> str:
        def patterns(key: str) -> list[str]:
            try:
                return [str(word) for word in orjson.loads(attributes.get(f"local.{key}") or "[]")]
            except ValueError:
                raise InvalidParameter(f"failed to parse local.{key}") from None

        other = attributes.get("local.session", "")
        session = await self.sessions.get(other) if other and self.sessions is not None else self.session

        async def fill(path: Path) -> None:
            total = await session.sync(
                name,
                path,
                include=patterns("includepattern"),
                exclude=patterns("excludepatterns"),
                follow=patterns("followpaths"),
                progress=lambda size: vertex.status(f"transferring {name}:", size, name="transferring"),
            )
            vertex.status(f"transferring {name}:", total, name="transferring", done=True)

        return await self.made(fill)

    # -- layers ----------------------------------------------------------------------------------------------------

    async def made(self, fill: Any) -> str:
        """A chain of one layer with what `fill` (given an empty folder) puts there."""
        folder = self.store.layers.new_folder()
        try:
            await fill(folder / "diff")
            return await in_thread(self._adopt, folder)
        except BaseException:
            await asyncio.shield(in_thread(self.store.layers.discard, folder))
            raise

    def _adopt(self, folder: Path) -> str:
        from longshore.engine.images.extract import remove_path

        remove_path(folder / "whole")
        if not os.listdir(folder / "diff"):
            self.store.layers.discard(folder)
            return ""
        return self.store.layers.adopt_tree(folder, "", hash_tree(folder / "diff"), self.lease.id).chain

    def packed(self, read: Callable[[int], bytes]) -> str:
        """A chain of one layer that comes as a tar. In a thread."""
        folder = self.store.layers.new_folder()
        try:
            self.store.layers.extract(folder, read, hashed=False)
            return self._adopt(folder)
        except BaseException:
            self.store.layers.discard(folder)
            raise

    def restack(self, parent: str, layers: list[Layer]) -> str:
        """Layers (lowest first) on top of another chain. In a thread."""
        for layer in layers:
            made = copy_layer(self.store, self.store.layers.diff_path(layer), parent, self.lease.id)
            if made is not None:
                parent = made.chain
        return parent


def _platform(operation: Any) -> str:
    """An operation's platform as "os/arch[/variant]", "" for this machine's."""
    if not operation.HasField("platform") or not operation.platform.OS:
        return ""
    given = operation.platform
    return "/".join(filter(None, (given.OS, given.Architecture, given.Variant)))


class Inputs:
    """What a client gave a frontend as definitions, by name; solved when asked for."""

    def __init__(self, solver: Solver, definitions: Mapping[str, Any]) -> None:
        self._solver, self._definitions = solver, dict(definitions)
        self._roots: list[StepRoot] = []

    def __contains__(self, name: str) -> bool:
        return name in self._definitions

    async def chain(self, name: str) -> str:
        """Raises InvalidParameter where there is no such input, EngineError."""
        if name not in self._definitions:
            raise InvalidParameter(f"invalid input {name}")
        return await self._solver.solve(self._definitions[name])

    async def folder(self, name: str) -> Path:
        """The files of an input, mounted until close()."""
        root = StepRoot(self._solver.store, await self.chain(name))
        self._roots.append(root)
        return await in_thread(root.mount)

    async def close(self) -> None:
        for root in self._roots:
            await asyncio.shield(in_thread(root.discard))
