"""Where a build's files come from: the Dockerfile, the main context, contexts with names.

Source of the forms and their order: BuildKit frontend/dockerui/context.go, namedcontext.go.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.build import git, ignore
from longshore.engine.build.buildkit.contents import ContentStore
from longshore.engine.build.buildkit.policies import Policies
from longshore.engine.build.buildkit.progress import Progress
from longshore.engine.build.buildkit.session import UPLOAD, Session
from longshore.engine.build.context import Context, from_tar, from_url, new_folder
from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.images import references
from longshore.engine.images.extract import remove_path
from longshore.engine.images.model import Image
from longshore.engine.images.streams import in_thread
from longshore.machinery import rooted

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.definitions import Inputs
    from longshore.engine.images.store import ImageStore

_LIMIT = 4 << 20
#: Kinds of contexts that are images.
IMAGES = ("docker-image", "oci-layout")


class Contexts:
    """A build's sources. inputs: what the client gave as definitions."""

    def __init__(
        self,
        store: ImageStore,
        session: Session,
        attributes: Mapping[str, str],
        inputs: Inputs,
        progress: Progress,
        policies: Policies,
    ) -> None:
        self._store, self._session, self._progress = store, session, progress
        self._attributes, self.inputs, self._policies = attributes, inputs, policies
        self._folders: list[Context] = []
        self._named: dict[str, asyncio.Task[Path]] = {}
        self._main: asyncio.Task[None] | None = None
        self._patterns: list[str] | None = None
        self._ignore_root: Path | None = None
        self.file = attributes.get("filename") or "Dockerfile"
        self.main = self._new()
        self.data = b""
        self.local = True
        self.commit = ""
        # Images of the client's layouts that were used: the context's name to the digest there.
        self.layouts: dict[str, str] = {}
        # What is used of each local context by its session's name (None: all of it).
        self.follow: dict[str, list[str] | None] = {}

    def _new(self) -> Context:
        made = Context(new_folder(self._store))
        self._folders.append(made)
        return made

    async def close(self) -> None:
        """Remove what was brought here."""
        tasks: list[asyncio.Task[Any]] = list(self._named.values())
        if self._main is not None:
            tasks.append(self._main)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for folder in self._folders:
            await asyncio.shield(folder.close())

    # -- the Dockerfile and the main context -----------------------------------------------------------------------

    async def definition(self) -> bytes:
        """The Dockerfile's bytes; a context that is not the client's folder is here afterwards. Raises EngineError."""
        remote = self._attributes.get("context", "")
        if remote and not remote.startswith(UPLOAD) and self._policies:
            remote, _ = self._policies.evaluate(remote)
        reference = git.parse(remote) if remote else None
        if reference is not None:
            self.local = False
            keep = self._attributes.get("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR", "") in ("1", "true")
            with self._progress.vertex(f"[internal] load git source {remote}"):
                root = await self._checkout(reference, keep=keep)
            self.main = Context(root)
        elif remote.startswith(UPLOAD):
            self.local = False
            with self._progress.vertex("[internal] load remote build context"):
                uploaded = self._session.upload(remote.removeprefix(UPLOAD))
                self.main = await from_tar(self._store, uploaded, None)
            self._folders.append(self.main)
        elif remote.startswith(("http://", "https://")):
            self.local = False
            with self._progress.vertex("[internal] load remote build context"):
                self.main = await from_url(self._store, remote, None)
            self._folders.append(self.main)
            if self.main.alone:
                self.file = self.main.name
        elif "context" in self.inputs:
            self.local = False
            self.main = Context(await self.inputs.folder("context"))
        inner = self._attributes.get("contextsubdir", "")
        if inner and not self.local:
            self.main = Context(await git.inner(self.main.root, git.GitReference("", folder=inner.strip("/"))))
        if "dockerfilekey" not in self._attributes:
            if not self.local:
                return self._read(self.main.root)
            if "dockerfile" in self.inputs:
                return self._read(await self.inputs.folder("dockerfile"))
        holder = self._new()
        self._ignore_root = holder.root
        name = self.file
        with self._progress.vertex(f"[internal] load build definition from {name}") as vertex:
            total = await self._session.sync(
                self._attributes.get("dockerfilekey", "dockerfile"),
                holder.root,
                follow=[
                    name,
                    f"{name}.dockerignore",
                    *([name.lower()] if name.rpartition("/")[2] == "Dockerfile" else []),
                ],
                progress=lambda size: vertex.status("transferring dockerfile:", size),
            )
            vertex.status("transferring dockerfile:", total, done=True)
        return self._read(holder.root)

    def _read(self, root: Path) -> bytes:
        names = [self.file, *([self.file[:-10] + "dockerfile"] if self.file.endswith("Dockerfile") else [])]
        for name in names:
            try:
                self.data = rooted.read_file(root, name, _LIMIT + 1)
            except OSError:
                continue
            return self.data
        raise SystemFailure(f"failed to read dockerfile: open {self.file}: no such file or directory")

    async def ignored(self) -> list[str]:
        """The patterns of the Dockerfile's own ignore file, else the local context's."""
        if self._patterns is None:
            self._patterns = await self._load_ignored() if self.local else []
        return self._patterns

    async def _load_ignored(self) -> list[str]:
        if self._ignore_root is not None:
            try:
                return ignore.parse(rooted.read_file(self._ignore_root, f"{self.file}.dockerignore", _LIMIT))
            except OSError:
                pass
        with self._progress.vertex("[internal] load .dockerignore") as vertex:
            patterns, total = await self._ignore_file(self._attributes.get("contextkey", "context"))
            vertex.status("transferring context:", total, done=True)
        return patterns

    async def _ignore_file(self, name: str) -> tuple[list[str], int]:
        folder = self._new()
        total = await self._session.sync(name, folder.root, follow=[".dockerignore"])
        try:
            return ignore.parse(rooted.read_file(folder.root, ".dockerignore", _LIMIT)), total
        except OSError:
            return [], total

    def load(self, follow: list[str]) -> None:
        """Begin to bring the client's context here (follow: only these; [] all)."""
        if self.local and self._main is None:
            self._main = asyncio.ensure_future(self._load(follow))

    async def ready(self) -> None:
        """Returns when the main context is here. Raises SystemFailure."""
        if self._main is not None:
            await asyncio.shield(self._main)

    async def _load(self, follow: list[str]) -> None:
        patterns = await self.ignored()
        with self._progress.vertex("[internal] load build context") as vertex:
            total = await self._session.sync(
                self._attributes.get("contextkey", "context"),
                self.main.root,
                follow=follow,
                exclude=patterns,
                progress=lambda size: vertex.status("transferring context:", size),
            )
            vertex.status("transferring context:", total, done=True)

    # -- contexts with names ---------------------------------------------------------------------------------------

    def named(self, name: str, platform: str) -> tuple[str, str]:
        """(kind, rest) of the context that takes a name's place, ("", "") where there is none.

        kind: "docker-image", "local", "input", "git", "http", "oci-layout". Raises InvalidParameter.
        """
        try:
            short = references.parse(name).familiar.removesuffix(":latest")
        except references.InvalidReference:
            short = name
        for key in (f"context:{short}::{platform}", f"context:{short}", f"context:{name}"):
            text = self._attributes.get(key)
            if text is not None:
                break
        else:
            return "", ""
        kind, colon, rest = text.partition(":")
        if not colon:
            raise InvalidParameter(f"invalid context specifier {text} for {name}")
        if git.parse(text) is not None:
            return "git", text
        if kind in ("http", "https"):
            return "http", text
        if kind not in (*IMAGES, "local", "input"):
            raise InvalidParameter(f"unsupported context source {kind} for {name}")
        return kind, rest.removeprefix("//")

    async def layout_image(self, name: str, rest: str, platform: str) -> Image:
        """The image of an OCI layout of the client's: "STORE[:TAG]@DIGEST". Raises EngineError."""
        place, at, digest = rest.partition("@")
        if not at:
            raise InvalidParameter(f'oci-layout reference "{rest}" has no digest')
        source = ContentStore(self._session, f"oci:{place.partition(':')[0]}")
        self.layouts[name] = digest
        with self._progress.vertex(f"[context {name}] OCI load from client"):
            return await source.image(self._store, references.check_digest(digest), platform)

    async def folder(self, name: str, kind: str, rest: str) -> Path:
        """The files of a context with a name (local, git, http, input); brought here once. Raises EngineError."""
        key = f"{kind}:{rest}"
        task = self._named.get(key)
        if task is None:
            task = self._named[key] = asyncio.ensure_future(self._folder(name, kind, rest))
        return await asyncio.shield(task)

    async def _folder(self, name: str, kind: str, rest: str) -> Path:
        if kind == "input":
            return await self.inputs.folder(rest)
        with self._progress.vertex(
            f"[context {name}] load from client" if kind == "local" else f"[context {name}] {rest}"
        ) as vertex:
            if kind in ("git", "http") and self._policies:
                rest, _ = self._policies.evaluate(rest)
            if kind == "git":
                reference = git.parse(rest)
                assert reference is not None
                return await self._checkout(reference)
            if kind == "http":
                made = await from_url(self._store, rest, None)
                self._folders.append(made)
                return made.root
            patterns, _ = await self._ignore_file(rest)
            made = self._new()
            follow = self.follow.get(rest) or []
            total = await self._session.sync(rest, made.root, exclude=patterns, follow=follow)
            vertex.status(f"transferring {rest}:", total, done=True)
            return made.root

    async def _checkout(self, reference: git.GitReference, *, keep: bool = False) -> Path:
        folder = self._new()
        sockets = Path(tempfile.mkdtemp(prefix="longshore-git-"))
        server = None
        try:
            if reference.remote.startswith("ssh://") or "://" not in reference.remote:
                server = await self._session.agent("default", sockets / "agent")
            self.commit = await git.checkout(
                reference,
                folder.root,
                keep=keep,
                secret=self._session.secret,
                agent=sockets / "agent" if server is not None else None,
            )
        finally:
            if server is not None:
                server.close()
            await in_thread(remove_path, sockets)
        return await git.inner(folder.root, reference)
