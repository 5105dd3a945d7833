"""COPY and ADD of the classic builder. Source: moby builder/dockerfile/copy.go."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from longshore.engine.build import git
from longshore.engine.build.buildkit import steps
from longshore.engine.build.context import new_folder
from longshore.engine.build.copying import Copier, CopyError, Placement, Source, Tree
from longshore.engine.build.downloads import download, fetch, verify
from longshore.engine.build.ignore import Ignore
from longshore.engine.build.modes import parse_mode
from longshore.engine.build.shell import ExpansionError, expand
from longshore.engine.build.step import StepRoot
from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure
from longshore.engine.images import compression, references
from longshore.engine.images.extract import Extractor, remove_path
from longshore.engine.images.streams import in_thread
from longshore.engine.runtime.users import UnknownUser, resolve_user
from longshore.machinery import rooted
from longshore.wire.tar import TarError, TarReader

if TYPE_CHECKING:
    from longshore.engine.build.dispatch import Dispatcher
    from longshore.engine.build.instructions import Instruction
    from longshore.engine.images.model import Image

_URL = re.compile(r"https?://")
_BLOCK = 512


async def transfer(dispatcher: Dispatcher, instruction: Instruction) -> None:
    """One COPY or ADD. Raises EngineError."""
    with contextlib.ExitStack() as stack:
        await _Transfer(dispatcher, instruction, stack).run()


class _Transfer:
    """A COPY or ADD under way."""

    def __init__(self, dispatcher: Dispatcher, instruction: Instruction, stack: contextlib.ExitStack) -> None:
        self.dispatcher, self.instruction, self.stack = dispatcher, instruction, stack
        self.build, self.state = dispatcher.build, dispatcher.state
        self.upper = instruction.command.upper()
        self.words = [word if _is_heredoc(word) else self.expand(word) for word in instruction.words]
        self.target = self.words[-1]
        self.checksum = self.expand(instruction.flags.get("checksum", ""))
        self.owner = self.expand(instruction.flags.get("chown", ""))
        chmod = self.expand(instruction.flags.get("chmod", ""))
        self.chmod, self.mode = chmod, parse_mode(chmod) if chmod else None
        patterns = [self.expand(text) for text in instruction.lists.get("exclude", ())]
        self.exclude = Ignore(patterns) if patterns else None
        self.patterns = patterns
        self.parents = instruction.flags.get("parents") == "true"
        self.link = instruction.flags.get("link") == "true"
        # Where each source lies; those that are archives to unpack.
        self.picked: list[tuple[Tree, list[Source], bool]] = []

    def expand(self, text: str) -> str:
        return self.dispatcher.expand(text, self.instruction)

    async def run(self) -> None:
        state, dispatcher, build = self.state, self.dispatcher, self.build
        with _failing(self.upper, build.buildkit):
            await self._pick()
            count = sum(len(sources) for _, sources, _ in self.picked)
            if not count:
                raise CopyError("no source files were specified")
            # BuildKit counts the words, the classic builder what they mean.
            several = len(self.words) > 2 if build.buildkit else count > 1
            if several and not self.target.endswith("/"):
                raise InvalidParameter(
                    f"When using {self.upper} with more than one source file, the destination must be a directory and end with a /"
                )
            digests = [await in_thread(found.digest, sources, self.exclude) for found, sources, _ in self.picked]
        told = self._told(digests)
        names = self.words[:-1]
        flags = self.instruction.flags
        build.step(
            lambda: steps.copy(names, self.target, build.options.platform, unpack=self.upper == "ADD", mode=self.chmod),
            [name if _is_remote(name) and self.upper == "ADD" else flags.get("from", "") for name in names],
        )
        key = dispatcher.key(told, self.owner, digests, self.chmod, self.patterns)
        if await dispatcher.cached(key, told):
            return
        with build.store.lease() as lease, _failing(self.upper, build.buildkit):
            lease.add(state.chain)
            root = StepRoot(build.store, "" if self.link else state.chain)
            layer = await dispatcher.in_root(root, self._work, lease, state.chain)
            dispatcher.commit(key, told, layer, root.id)

    def _told(self, digests: list[str]) -> str:
        """The step in the history's words."""
        if self.build.buildkit:
            return f"{self.upper} {' '.join([*_shown_flags(self.instruction), *self.words])} # buildkit"
        kinds = ["dir" if source.folder else "file" for _, sources, _ in self.picked for source in sources]
        label = f"{kinds[0]}:{digests[0]}" if len(digests) == 1 and len(kinds) == 1 else f"multi:{_join(digests)}"
        chown = f"--chown={self.owner} " if self.owner else ""
        return f"{' '.join(self.state.shell)} #(nop) {self.upper} {chown}{label} in {self.target} "

    # -- sources ---------------------------------------------------------------------------------------------------

    async def _pick(self) -> None:
        build, flags = self.build, self.instruction.flags
        tree = Tree(build.context.root, hidden=build.context.hidden)
        if flags.get("from"):
            tree = await _other_root(self.dispatcher, self.instruction, self.stack)
        wanted = self.words[:-1]
        if self.checksum and len(wanted) != 1:
            raise InvalidParameter("checksum can't be specified for multiple sources")
        for word in wanted:
            if _is_heredoc(word):
                self.picked.append((self._document(word), [Source(document_file(_document_name(word)), False)], False))
                continue
            if self.upper == "ADD" and _is_remote(word):
                asked = {"http.checksum": self.checksum} if self.checksum else {}
                word, told = self.build.source(word, asked)
                self.checksum = told.get("http.checksum", self.checksum)
                # The classic builder knows no git repositories in ADD: it fetches the URL.
                repository = git.parse(word) if build.buildkit else None
                if repository is not None:
                    self.picked.append((await self._repository(repository), [Source("", True)], False))
                    continue
                if _URL.match(word):
                    self.picked.append(await self._url(word))
                    continue
            if self.checksum:
                raise InvalidParameter("checksum can't be specified for non-HTTP(S) sources")
            sources = await in_thread(lambda word=word: tree.find(word, parents=self.parents))
            unpacked = self.upper == "ADD" and flags.get("unpack", "true") == "true"
            if sources:
                self.picked.append((tree, sources, unpacked))

    def _document(self, word: str) -> Tree:
        folder = _scratch(self.dispatcher, self.stack)
        name = _document_name(word)
        heredoc = next(heredoc for heredoc in self.instruction.heredocs if heredoc.name == name)
        text = heredoc.content
        if heredoc.expand:
            try:
                text = expand(text, self.state.variables(), raw=True)
            except ExpansionError as error:
                raise InvalidParameter(f"failed to process {heredoc.name}: {error}") from None
        path = folder / document_file(name)
        path.write_text(text)
        os.chmod(path, 0o644)
        os.utime(path, (0, 0))
        return Tree(folder)

    async def _repository(self, repository: git.GitReference) -> Tree:
        folder = _scratch(self.dispatcher, self.stack)
        if self.checksum:
            if repository.checksum and repository.checksum != self.checksum:
                raise InvalidParameter(f'checksum conflicts: "{repository.checksum}" vs "{self.checksum}"')
            repository = dataclasses.replace(repository, checksum=self.checksum)
        keep = self.instruction.flags.get("keep-git-dir") == "true"
        await git.checkout(repository, folder, keep=keep, secret=self.build.secret)
        return Tree(await git.inner(folder, repository))

    async def _url(self, url: str) -> tuple[Tree, list[Source], bool]:
        if self.checksum:
            references.check_digest(self.checksum)
        folder = _scratch(self.dispatcher, self.stack)
        kit = self.build.buildkit
        unnamed = "__unnamed__" if kit else ""
        other = unnamed if self.target.endswith("/") else posixpath.basename(self.target) or "download"
        if kit:
            name = await fetch(self.build.store, url, folder, other)
        else:
            name = await download(url, folder, other)
        if self.checksum:
            await in_thread(verify, folder / name, self.checksum)
        return Tree(folder), [Source(name, False)], self.instruction.flags.get("unpack") == "true"

    # -- the step's work, in a thread ------------------------------------------------------------------------------

    def _work(self, root: StepRoot) -> None:
        target = self.target
        placement = Placement(mode=self.mode, parents=self.parents)
        if self.owner:
            placement.uid, placement.gid = self._ids(root)
        count = sum(len(sources) for _, sources, _ in self.picked)
        into = target.endswith("/") or target in (".", "..") or target.endswith("/.") or count > 1
        where = posixpath.normpath(posixpath.join("/", self.state.config.get("WorkingDir") or "/", target))
        where = "/" + where.lstrip("/")
        owner = (placement.uid, placement.gid) if self.owner else None
        for found, sources, unpacked in self.picked:
            copier = Copier(found, root.merged, placement, self.exclude)
            for source in sources:
                if unpacked and not source.folder and unpack(found, source, root.merged, where, owner):
                    continue
                copier.copy([source], where, into=into)

    def _ids(self, root: StepRoot) -> tuple[int, int]:
        """Whom --chown means; the names are those of the image below."""
        base = root
        try:
            if self.link and not re.fullmatch(r"\d+(:\d+)?", self.owner):
                base = StepRoot(self.build.store, self.state.chain)
                base.mount()
            user = resolve_user(base.merged, self.owner)
        except UnknownUser as error:
            raise SystemFailure(f"unable to convert uid/gid chown string to host mapping: {error}") from None
        finally:
            if base is not root:
                base.discard()
        # A number without a group is both, as in BuildKit and the classic builder.
        gid = user.uid if ":" not in self.owner and self.owner.isdigit() else user.gid
        return user.uid, gid


def _is_remote(word: str) -> bool:
    return _URL.match(word) is not None or git.parse(word) is not None


def _shown_flags(instruction: Instruction) -> list[str]:
    return list(instruction.node.flags)


def _document_name(word: str) -> str:
    return re.sub(r"""^\d*<<-?|['"]""", "", word)


def document_file(name: str) -> str:
    """The file of a here-document in a folder of its own. Its name is the Dockerfile's: it must not lead out of there.

    Raises SystemFailure for a name below a folder.
    """
    clean = posixpath.normpath("/" + name).lstrip("/")
    if not clean or "/" in clean or "\0" in clean:
        raise SystemFailure(f"failed to create file /{clean}: open /{clean}: no such file or directory")
    return clean


def _is_heredoc(word: str) -> bool:
    return re.fullmatch(r"""\d*<<-?['"]?[^<\s]+['"]?""", word) is not None


def _join(digests: list[str]) -> str:
    import hashlib

    return hashlib.sha256(",".join(digests).encode()).hexdigest()


@contextlib.contextmanager
def _failing(upper: str, buildkit: bool) -> Iterator[None]:
    """Errors of the block in dockerd's words."""
    try:
        yield
    except CopyError as error:
        found = re.search(r"stat (.*): file does not exist$", str(error))
        if buildkit and found:
            raise SystemFailure(
                f'failed to compute cache key: failed to calculate checksum of ref: "/{found[1]}": not found'
            ) from None
        raise SystemFailure(f"{upper} failed: {error}") from None
    except OSError as error:
        shown = f"{error.filename}: " if error.filename else ""
        raise SystemFailure(f"{upper} failed: {shown}{(error.strerror or str(error)).lower()}") from None


def _scratch(dispatcher: Dispatcher, stack: contextlib.ExitStack) -> Path:
    folder = new_folder(dispatcher.build.store)
    stack.callback(remove_path, folder)
    return folder


async def _other_root(dispatcher: Dispatcher, instruction: Instruction, stack: contextlib.ExitStack) -> Tree:
    """The root of --from: an earlier stage's or an image's, mounted while the instruction lasts."""
    build = dispatcher.build
    name = dispatcher.expand(instruction.flags["from"], instruction)
    folder = await build.folder(name)
    if folder is not None:
        return Tree(folder, context=False)
    image: Image | None = build.stage_image(name)
    if image is None:
        try:
            image = await build.image(name)
        except EngineError as error:
            raise SystemFailure(f"invalid from flag value {name}: {error.message}") from None
    root = StepRoot(build.store, image.chain)
    lease = stack.enter_context(build.store.lease())
    lease.add(image.chain)
    stack.callback(root.discard)
    await in_thread(root.mount)
    return Tree(root.merged, context=False)


def unpack(tree: Tree, source: Source, root: Path, target: str, owner: tuple[int, int] | None) -> bool:
    """Unpack a local archive of ADD into `target`; False where the file is no archive. In a thread."""
    with rooted.opened(tree.root, source.path, os.O_RDONLY | os.O_NONBLOCK) as fd, open(os.dup(fd), "rb") as file:
        read = compression.reader(file.read)
        try:
            head = b""
            while len(head) < _BLOCK and (data := read(1 << 18)):
                head += data
            if len(head) < _BLOCK or head[257:262] != b"ustar":
                return False
            TarReader.check(head[:_BLOCK])
        except (TarError, compression.BrokenStream):
            return False
        first = [head]

        def whole(limit: int) -> bytes:
            return first.pop() if first else read(limit)

        folder = rooted.make_dirs(root, target, 0o755, *(owner or (0, 0)))
        try:
            path = os.readlink(f"/proc/self/fd/{folder}")
        finally:
            os.close(folder)
        with Extractor(path, whiteouts="keep", keep_dirs=False, owner=owner) as extractor:
            try:
                extractor.extract(TarReader(whole))
            except (TarError, compression.BrokenStream) as error:
                raise SystemFailure(f"Error processing tar file: {error}") from None
    return True
