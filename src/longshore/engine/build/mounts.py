"""RUN --mount: bind, cache, tmpfs, secret. Source: Dockerfile reference, "RUN --mount"."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import posixpath
import re
import stat
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.build.copying import Copier, CopyError, Placement, Tree
from longshore.engine.build.folders import CACHE_MOUNT, Folders
from longshore.engine.build.step import Mount, StepRoot
from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure
from longshore.engine.images.extract import remove_path
from longshore.engine.images.streams import in_thread
from longshore.machinery import rooted

if TYPE_CHECKING:
    from longshore.engine.build.dispatch import Dispatcher
    from longshore.engine.build.instructions import Instruction
    from longshore.engine.images.model import Image
    from longshore.engine.images.overlay import RootFS
    from longshore.engine.images.store import ImageStore

_KINDS = ("bind", "cache", "tmpfs", "secret", "ssh")
_KNOWN = {
    "type", "from", "source", "src", "target", "dst", "destination", "readonly", "ro", "readwrite", "rw", "id", "sharing",
    "required", "size", "mode", "uid", "gid", "env",
}  # fmt: skip
# Caches that are not shared: one build after the other.
_locks: dict[str, asyncio.Lock] = {}


@dataclass(slots=True)
class Wanted:
    """One --mount as written."""

    kind: str
    target: str
    source: str = ""
    origin: str = ""
    id: str = ""
    readonly: bool = True
    sharing: str = "shared"
    required: bool = False
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    env: str = ""
    value: bytes | None = field(default=None, repr=False)

    def key(self) -> list[Any]:
        """What of it belongs to the cache key (see content() too): a secret's content never does."""
        return [self.kind, self.target, self.source, self.origin, self.id, self.readonly]


def _flag(value: str, equals: str) -> bool:
    return not equals or value.lower() in ("true", "1")


def _number(text: str, name: str, base: int = 10) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise InvalidParameter(f"invalid value for {name}: {text}") from None


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([kmg]?)b?", text.lower())
    if not found:
        raise InvalidParameter(f"invalid value for size: {text}")
    return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[found[2]]


def parse(text: str, instruction: Instruction) -> Wanted:
    """The mount that a --mount flag means. Raises InvalidParameter with BuildKit's texts."""
    wanted = Wanted("bind", "")
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        name = name.lower()
        if name not in _KNOWN:
            raise InvalidParameter(
                f"dockerfile parse error on line {instruction.line}: unexpected key '{name}' in '{part.strip()}'"
            )
        if name == "type":
            if value not in _KINDS:
                raise InvalidParameter(
                    f'dockerfile parse error on line {instruction.line}: unsupported mount type "{value}"'
                )
            wanted.kind = value
            wanted.readonly = value == "bind"
        elif name == "from":
            wanted.origin = value
        elif name in ("source", "src"):
            wanted.source = value
        elif name in ("target", "dst", "destination"):
            wanted.target = value
        elif name in ("readonly", "ro"):
            wanted.readonly = _flag(value, equals)
        elif name in ("readwrite", "rw"):
            wanted.readonly = not _flag(value, equals)
        elif name == "required":
            wanted.required = _flag(value, equals)
        elif name == "size":
            wanted.size = _size(value)
        elif name == "mode":
            wanted.mode = _number(value, name, 8)
        elif name in ("uid", "gid"):
            setattr(wanted, name, _number(value, name))
        else:
            setattr(wanted, name, value)
    if wanted.kind == "secret":
        wanted.id = wanted.id or posixpath.basename(wanted.source or wanted.target)
        if not wanted.id:
            raise InvalidParameter("one of source, target required")
        if not wanted.target and not wanted.env:
            wanted.target = f"/run/secrets/{wanted.id}"
    elif wanted.kind == "ssh":
        wanted.target = wanted.target or f"/run/buildkit/ssh_agent.{wanted.id or 0}"
    elif not wanted.target:
        raise InvalidParameter(f"dockerfile parse error on line {instruction.line}: target is required")
    return wanted


def environment(wanted: list[Wanted]) -> list[str]:
    """Secrets that are wanted as variables."""
    return [
        f"{mount.env}={mount.value.decode('utf-8', 'replace')}"
        for mount in wanted
        if mount.env and mount.value is not None
    ]


async def prepare(dispatcher: Dispatcher, wanted: Wanted, stack: contextlib.AsyncExitStack) -> Mount | None:
    """Make what a mount needs; it lasts until the stack is closed. None: nothing to mount. Raises EngineError."""
    target = posixpath.join("/", dispatcher.state.config.get("WorkingDir") or "/", wanted.target)
    if wanted.kind == "tmpfs":
        options = ("nosuid", "nodev", *((f"size={wanted.size}",) if wanted.size else ()))
        return Mount("tmpfs", target, options, "tmpfs")
    if wanted.kind == "ssh":
        return await agent(dispatcher.build.agent, wanted, stack)
    if wanted.kind == "secret":
        return await secret(dispatcher.build.secret, dispatcher.build.store, wanted, target, stack)
    if wanted.kind == "cache":
        base = None
        if wanted.origin:
            origin, root = await _origin(dispatcher, wanted, stack)
            base = Base(origin, " ".join(map(str, root.lowers)) if root is not None else wanted.origin)
        fresh = dispatcher.build.options.no_cache
        return await cache(dispatcher.build.store, wanted, target, stack, fresh=fresh, base=base)
    origin, root = await _origin(dispatcher, wanted, stack)
    try:
        inside = await in_thread(rooted.real_path, origin, wanted.source or "/")
    except OSError:
        shown = wanted.source or "/"
        raise SystemFailure(f'failed to calculate checksum of ref: "{shown}": not found') from None
    path = f"{origin}{inside}"
    folder = stat.S_ISDIR(os.lstat(path).st_mode)
    if wanted.readonly:
        return Mount(path, target, ("rbind", "ro"), folder=folder, root=root)
    # What is written goes nowhere: an overlay over the source, thrown away after the step.
    scratch = StepRoot(dispatcher.build.store, "")
    stack.push_async_callback(in_thread, scratch.discard)
    for name in ("diff", "work"):
        (scratch.root.path / name).mkdir(parents=True)
    lower = path if folder else str(Path(path).parent)
    options = (f"lowerdir={lower}", f"upperdir={scratch.root.upper}", f"workdir={scratch.root.work}")
    if folder:
        return Mount("overlay", target, options, "overlay", root=root)
    return Mount(path, target, ("rbind", "ro"), folder=False, root=root)


async def content(dispatcher: Dispatcher, wanted: Wanted) -> str:
    """What a bind gives a step, for its cache key: the files' digest, or the stack of layers where that is all; "" for others.

    Raises EngineError.
    """
    if wanted.kind != "bind":
        return ""
    whole = posixpath.normpath("/" + wanted.source) == "/"
    async with contextlib.AsyncExitStack() as stack:
        if whole and wanted.origin and await dispatcher.build.folder(wanted.origin) is None:
            return (await _image(dispatcher, wanted)).chain
        origin, _ = await _origin(dispatcher, wanted, stack)
        hidden = dispatcher.build.context.hidden if not wanted.origin else None
        tree = Tree(origin, hidden=hidden, context=False)
        try:
            inside = (await in_thread(rooted.real_path, origin, wanted.source or "/")).lstrip("/")
            found = await in_thread(tree.one, inside)
            return await in_thread(tree.digest, [found])
        except (OSError, CopyError):
            shown = wanted.source or "/"
            raise SystemFailure(f'failed to calculate checksum of ref: "{shown}": not found') from None


async def _image(dispatcher: Dispatcher, wanted: Wanted) -> Image:
    """The image that a bind comes from: a stage's, or one by its name."""
    build = dispatcher.build
    image = build.stage_image(wanted.origin)
    if image is not None:
        return image
    try:
        return await build.image(wanted.origin)
    except EngineError as error:
        raise SystemFailure(f"invalid from flag value {wanted.origin}: {error.message}") from None


async def _origin(
    dispatcher: Dispatcher, wanted: Wanted, stack: contextlib.AsyncExitStack
) -> tuple[Path, RootFS | None]:
    """The folder that a bind comes from: the context, a stage or an image; with the root that is mounted there for it."""
    build = dispatcher.build
    if not wanted.origin:
        return build.context.root, None
    folder = await build.folder(wanted.origin)
    if folder is not None:
        return folder, None
    image = await _image(dispatcher, wanted)
    lease = build.store.lease()
    lease.add(image.chain)
    stack.callback(lease.__exit__)
    root = StepRoot(build.store, image.chain)
    stack.push_async_callback(in_thread, root.discard)
    await in_thread(root.mount)
    return root.merged, root.root


async def secret(
    ask: Callable[[str], Awaitable[bytes | None]],
    store: ImageStore,
    wanted: Wanted,
    target: str,
    stack: contextlib.AsyncExitStack,
) -> Mount | None:
    """A secret as a file of the step; None where the client does not give it, or gives it as a variable only."""
    value = await ask(wanted.id)
    if value is None:
        if wanted.required:
            raise SystemFailure(f"secret {wanted.id}: not found")
        return None
    if wanted.env:
        wanted.value = value
        if not wanted.target:
            return None
    folder = store.root / "builds"
    # In memory where the machine has the usual place for it, so that a secret is never on a disk.
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() else folder
    path = base / f".longshore-secret-{os.getpid()}-{os.urandom(8).hex()}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, value)
        os.fchown(fd, wanted.uid, wanted.gid)
        os.fchmod(fd, wanted.mode or 0o400)
    finally:
        os.close(fd)
    stack.callback(path.unlink, missing_ok=True)
    return Mount(str(path), target, ("rbind", "ro", "nosuid", "nodev", "noexec"), folder=False)


async def agent(
    ask: Callable[[str, Path], Awaitable[asyncio.Server | None]], wanted: Wanted, stack: contextlib.AsyncExitStack
) -> Mount | None:
    """The client's ssh agent as a socket in the step."""
    # A socket's path may have 108 octets: it is made where paths are short, in a folder that only we can enter.
    folder = Path(tempfile.mkdtemp(prefix="longshore-ssh-"))
    stack.push_async_callback(in_thread, remove_path, folder)
    server = await ask(wanted.id or "default", folder / "agent")
    if server is None:
        if wanted.required:
            raise SystemFailure(f"unset ssh forward key {wanted.id or 'default'}")
        return None
    stack.callback(server.close)
    os.chown(folder / "agent", wanted.uid, wanted.gid)
    os.chmod(folder / "agent", wanted.mode or 0o600)
    wanted.env = "SSH_AUTH_SOCK"
    wanted.value = wanted.target.encode()
    return Mount(str(folder / "agent"), wanted.target, ("rbind", "ro"), folder=False)


@dataclass(frozen=True, slots=True)
class Base:
    """What a cache begins with: a root, and what tells it from others."""

    root: Path
    key: str


async def cache(
    store: ImageStore,
    wanted: Wanted,
    target: str,
    stack: contextlib.AsyncExitStack,
    *,
    fresh: bool = False,
    base: Base | None = None,
) -> Mount:
    """A folder that lasts from build to build. fresh: nothing is to be taken from the cache: a folder with an owner or a mode
    of its own begins empty (BuildKit makes it by a step, which is done again; without these there is no such step).
    base: what it begins with (from=), of which `wanted.source` is mounted; each base has a cache of its own.
    """
    key = wanted.id or posixpath.normpath(target)
    if base is not None:
        key += f":{hashlib.sha256(base.key.encode()).hexdigest()[:24]}"
    if wanted.sharing == "private":
        key = f"{key}-{os.urandom(6).hex()}"
    elif wanted.sharing == "locked":
        await stack.enter_async_context(_locks.setdefault(key, asyncio.Lock()))
    path = stack.enter_context(Folders(store).using(key, CACHE_MOUNT, f"cached mount {target}"))
    if wanted.sharing == "private":
        stack.push_async_callback(in_thread, remove_path, path)
    if fresh and (wanted.mode or wanted.uid or wanted.gid):
        await in_thread(remove_path, path)
    if not path.exists():
        path.mkdir(parents=True)
        if base is not None:
            await in_thread(_fill, path, base.root)
        else:
            os.chown(path, wanted.uid, wanted.gid)
            os.chmod(path, wanted.mode or 0o755)
    inside = "/"
    if base is not None and wanted.source:
        try:
            inside = await in_thread(rooted.real_path, path, wanted.source)
        except OSError:
            raise SystemFailure(f"{wanted.source}: not found in the base of the cache mount {target}") from None
    return Mount(f"{path}{inside}".rstrip("/"), target, ("rbind", "ro" if wanted.readonly else "rw"))


def _fill(path: Path, base: Path) -> None:
    """Copy a base's files into a new cache; half a copy is none."""
    tree = Tree(base, context=False)
    try:
        Copier(tree, path, Placement(keep_owner=True)).copy([tree.one("")], "/", into=True)
    except BaseException:
        remove_path(path)
        raise
