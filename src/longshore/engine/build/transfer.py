"""COPY and ADD of the classic builder. Source: moby builder/dockerfile/copy.go."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from longshore.engine.build.context import new_folder
from longshore.engine.build.copying import Copier, CopyError, Placement, Source, Tree
from longshore.engine.build.ignore import Ignore
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
    upper = instruction.command.upper()
    build, state = dispatcher.build, dispatcher.state
    heredocs = {heredoc.name: heredoc for heredoc in instruction.heredocs}
    words = [dispatcher.expand(word, instruction) if not _is_heredoc(word) else word for word in instruction.words]
    wanted, target = words[:-1], words[-1]
    checksum = dispatcher.expand(instruction.flags.get("checksum", ""), instruction)
    if checksum:
        references.check_digest(checksum)
        if len(wanted) != 1 or not _URL.match(wanted[0]):
            raise InvalidParameter("checksum can't be specified for non-HTTP(S) sources")
    with contextlib.ExitStack() as stack:
        tree = Tree(build.context.root, hidden=build.context.hidden)
        if instruction.flags.get("from"):
            tree = await _other_root(dispatcher, instruction, stack)
        picked: list[tuple[Tree, list[Source]]] = []
        kinds: list[str] = []
        with _failing(upper, build.buildkit):
            for word in wanted:
                if _is_heredoc(word):
                    folder = _scratch(dispatcher, stack)
                    name = re.sub(r"""^\d*<<-?|['"]""", "", word)
                    heredoc = heredocs[name]
                    text = heredoc.content
                    if heredoc.expand:
                        from longshore.engine.build.shell import expand

                        text = expand(text, state.variables(), raw=True)
                    (folder / name).write_text(text)
                    os.chmod(folder / name, 0o644)
                    os.utime(folder / name, (0, 0))
                    picked.append((Tree(folder), [Source(name, False)]))
                elif upper == "ADD" and _URL.match(word):
                    folder = _scratch(dispatcher, stack)
                    name = await _download(build, word, folder, target)
                    if checksum:
                        await in_thread(_verify, folder / name, checksum)
                    picked.append((Tree(folder), [Source(name, False)]))
                else:
                    sources = await in_thread(tree.find, word)
                    if sources:
                        picked.append((tree, sources))
            count = sum(len(sources) for _, sources in picked)
            if not count:
                raise CopyError("no source files were specified")
            if count > 1 and not target.endswith("/"):
                raise InvalidParameter(
                    f"When using {upper} with more than one source file, the destination must be a directory and end with a /"
                )
            digests = [await in_thread(found.digest, sources) for found, sources in picked]
        kinds = ["dir" if source.folder else "file" for _, sources in picked for source in sources]
        exclude = instruction.lists.get("exclude")
        label = f"{kinds[0]}:{digests[0]}" if len(digests) == 1 and len(kinds) == 1 else f"multi:{_join(digests)}"
        told = f"{' '.join(state.shell)} #(nop) {upper} {label} in {target} "
        owner = dispatcher.expand(instruction.flags.get("chown", ""), instruction)
        mode = _mode(dispatcher.expand(instruction.flags.get("chmod", ""), instruction))
        if build.buildkit:
            told = f"{upper} {' '.join([*_shown_flags(instruction), *words])} # buildkit"
        elif owner:
            told = f"{' '.join(state.shell)} #(nop) {upper} --chown={owner} {label} in {target} "
        key = dispatcher.key(told, owner, digests, mode, exclude)
        if dispatcher.cached(key):
            return
        into = target.endswith("/") or target in (".", "..") or target.endswith("/.")
        where = posixpath.normpath(posixpath.join("/", state.config.get("WorkingDir") or "/", target))
        where = "/" + where.lstrip("/")

        def work(root: StepRoot) -> None:
            placement = Placement(mode=mode, folder_mode=mode, parents=instruction.flags.get("parents") == "true")
            if owner:
                try:
                    user = resolve_user(root.merged, owner)
                except UnknownUser as error:
                    raise SystemFailure(f"unable to convert uid/gid chown string to host mapping: {error}") from None
                # A number without a group is both, as in BuildKit and the classic builder.
                gid = user.uid if ":" not in owner and owner.isdigit() else user.gid
                placement.uid, placement.gid = user.uid, gid
            for found, sources in picked:
                for source in sources:
                    local = upper == "ADD" and not source.folder and found.root == build.context.root
                    if local and unpack(
                        found, source, root.merged, where, (placement.uid, placement.gid) if owner else None
                    ):
                        continue
                    Copier(found, root.merged, placement, Ignore(exclude) if exclude else None).copy(
                        [source], where, into=into or count > 1
                    )

        with build.store.lease() as lease, _failing(upper, build.buildkit):
            lease.add(state.chain)
            root = StepRoot(build.store, state.chain)
            layer = await dispatcher.in_root(root, work, lease)
            dispatcher.commit(key, told, layer, root.id)


def _mode(text: str) -> int | None:
    """The bits of --chmod. Raises InvalidParameter."""
    if not text:
        return None
    if not re.fullmatch(r"[0-7]{1,4}", text):
        raise InvalidParameter(f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777")
    return int(text, 8)


def _shown_flags(instruction: Instruction) -> list[str]:
    return list(instruction.node.flags)


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


async def _download(build: Any, url: str, folder: Path, target: str) -> str:
    """Fetch a URL of ADD into a folder; the file's name."""
    from longshore.engine.images.distribution import connection_text
    from longshore.machinery.http import Client
    from longshore.machinery.http.errors import ClientError

    name = unquote(posixpath.basename(urlsplit(url).path))
    if not name or name in (".", ".."):
        if target.endswith("/"):
            raise InvalidParameter(f"cannot determine filename from url: {url}")
        name = posixpath.basename(target) or "download"
    async with Client() as client:
        try:
            response = await client.request("GET", url)
            if response.status >= 400:
                raise SystemFailure(
                    f"ADD failed: failed to GET {url} with status {response.status} {response.reason}: "
                )
            with open(folder / name, "wb") as file:
                async for data in response.chunks():
                    await in_thread(file.write, data)
        except (ClientError, TimeoutError) as error:
            raise SystemFailure("ADD failed: " + connection_text("GET", url, error)) from None
        modified = response.headers.get("Last-Modified")
    os.chmod(folder / name, 0o600)
    when = 0.0
    if modified:
        from email.utils import parsedate_to_datetime

        with contextlib.suppress(ValueError, TypeError):
            when = parsedate_to_datetime(modified).timestamp()
    os.utime(folder / name, (when, when))
    return name


def _verify(path: Path, checksum: str) -> None:
    """Raises SystemFailure where a file is not what --checksum says. In a thread."""
    import hashlib

    algorithm = checksum.partition(":")[0]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if f"{algorithm}:{found}" != checksum:
        raise SystemFailure(f"digest mismatch {algorithm}:{found}: {checksum}")


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
            extractor.extract(TarReader(whole))
    return True
