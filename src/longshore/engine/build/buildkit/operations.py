"""The operations of a definition: commands, file operations, merges and differences, each from chains to chains.

Source: BuildKit solver/llbsolver/ops, solver/llbsolver/file (what each does), docs/dev/merge-diff.md.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from longshore.engine.build.buildkit import schemas
from longshore.engine.build.buildkit.mounting import Mounting, input_of
from longshore.engine.build.copying import Copier, CopyError, Placement, Source, Tree
from longshore.engine.build.ignore import Ignore
from longshore.engine.build.modes import parse_mode
from longshore.engine.build.step import Limits, RunStep, StepRoot
from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.images.difference import Difference
from longshore.engine.images.extract import remove_tree
from longshore.engine.images.layers import Layer
from longshore.engine.images.streams import in_thread
from longshore.engine.runtime.users import UnknownUser, resolve_user
from longshore.machinery import rooted

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.definitions import Solver
    from longshore.engine.build.buildkit.progress import Vertex

_LLB_BUILDER = -1
_DEFINITION = "buildkit.llb.definition"
_DEFINITION_LIMIT = 16 << 20


def shown_name(operation: Any) -> str:
    """What an operation is called where the client gave it no name."""
    kind = operation.WhichOneof("op")
    if kind == "source":
        return str(operation.source.identifier)
    if kind == "exec":
        return " ".join(operation.exec.meta.args)
    if kind == "file":
        words = [_action_name(action) for action in operation.file.actions]
        return ", ".join(words)
    return str(kind)


def _action_name(action: Any) -> str:
    kind = action.WhichOneof("action")
    if kind == "copy":
        return f"copy {action.copy.src} {action.copy.dest}"
    if kind == "symlink":
        return f"symlink {action.symlink.oldpath} {action.symlink.newpath}"
    return f"{kind} {getattr(action, kind).path}" if kind else "?"


async def run(solver: Solver, kind: str, operation: Any, inputs: list[str], vertex: Vertex) -> list[str]:
    """Carry out an operation; the chains of its outputs. Raises EngineError."""
    if kind == "exec":
        return await _Exec(solver, operation.exec, inputs, vertex).run()
    if kind == "file":
        return await in_thread(_Files(solver, operation.file, inputs).run)
    if kind == "merge":
        chains = [input_of(inputs, item.input) for item in operation.merge.inputs]
        return [await in_thread(_merge, solver, chains)]
    if kind == "build":
        return [await _build(solver, operation.build, inputs)]
    lower = input_of(inputs, operation.diff.lower.input) if operation.diff.HasField("lower") else ""
    upper = input_of(inputs, operation.diff.upper.input) if operation.diff.HasField("upper") else ""
    return [await in_thread(_difference, solver, lower, upper)]


def _merge(solver: Solver, chains: list[str]) -> str:
    result = ""
    for chain in chains:
        if not result:
            result = chain
        elif chain:
            result = solver.restack(result, list(reversed(solver.store.layers.stack(chain))))
    return result


def _difference(solver: Solver, lower: str, upper: str) -> str:
    if not lower:
        return upper
    layers: list[Layer] = []
    for layer in solver.store.layers.stack(upper):
        if layer.chain == lower:
            return solver.restack("", layers[::-1])
        layers.append(layer)
    if upper == lower:
        return ""
    before, after = StepRoot(solver.store, lower), StepRoot(solver.store, upper)
    try:
        pieces = iter(Difference(before.mount(), after.mount()))
        return solver.packed(lambda _: next(pieces, b""))
    finally:
        after.discard()
        before.discard()


async def _build(solver: Solver, operation: Any, inputs: list[str]) -> str:
    """Solve the definition that lies in an input's file."""
    if operation.builder != _LLB_BUILDER:
        raise SystemFailure("only LLB builder is currently allowed")
    if _DEFINITION not in operation.inputs:
        raise SystemFailure(f"no llb definition input {_DEFINITION} found")
    root = StepRoot(solver.store, input_of(inputs, operation.inputs[_DEFINITION].input))
    name = operation.attrs.get("llbbuild.filename") or _DEFINITION

    def read() -> bytes:
        try:
            return rooted.read_file(root.mount(), name, _DEFINITION_LIMIT)
        except OSError as error:
            raise SystemFailure(f"open {name}: {(error.strerror or str(error)).lower()}") from None
        finally:
            root.discard()

    definition = schemas.control.Definition()
    try:
        definition.ParseFromString(await in_thread(read))
    except DecodeError:
        raise InvalidParameter("failed to parse llb proto definition") from None
    return await solver.solve(definition)


def _proxies(given: Any) -> list[str]:
    """The proxies of a command as environment, under both spellings of each name."""
    found: list[str] = []
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"):
        value = getattr(given, name)
        if value:
            found += [f"{name.upper()}={value}", f"{name}={value}"]
    return found


class _Exec:
    """A command in a root, with mounts."""

    def __init__(self, solver: Solver, operation: Any, inputs: list[str], vertex: Vertex) -> None:
        self._solver, self._operation, self._inputs, self._vertex = solver, operation, inputs, vertex

    async def run(self) -> list[str]:
        meta = self._operation.meta
        limits = Limits(
            cgroup_parent=meta.cgroupParent,
            ulimits=[{"Name": limit.Name, "Soft": limit.Soft, "Hard": limit.Hard} for limit in meta.ulimit],
        )
        if self._operation.security:
            raise SystemFailure("security.insecure is not allowed")
        self._solver.builder.runner.check(limits)
        async with contextlib.AsyncExitStack() as stack:
            env = [*meta.env, *_proxies(meta.proxy_env)]
            mounting = Mounting(self._solver, self._inputs, meta.cwd or "/", stack)
            root, held = await mounting.all(self._operation.mounts)
            for secret in self._operation.secretenv:
                value = await self._solver.session.secret(secret.ID)
                if value is None and not secret.optional:
                    raise SystemFailure(f"secret {secret.ID}: not found")
                if value is not None:
                    env.append(f"{secret.name}={value.decode('utf-8', 'replace')}")
            await in_thread(root.add_mount_points, [(mount.target, mount.folder) for mount in held])
            step = RunStep(
                root.id,
                root.merged,
                list(meta.args),
                env,
                meta.cwd or "/",
                user=meta.user,
                network={1: "host", 2: "none"}.get(self._operation.network, "default"),
                mounts=held,
                hosts=[(host.Host, host.IP) for host in meta.extraHosts],
                limits=limits,
                hostname=meta.hostname,
                overlay=root.root,
            )
            code = await self._solver.builder.runner.run(step, self._vertex.log)
            if code not in (list(meta.validExitCodes) or [0]):
                words = " ".join(meta.args)
                raise SystemFailure(f'process "{words}" did not complete successfully: exit code: {code}')
            chains: dict[int, str] = {}
            for number, output in mounting.outputs.items():
                if isinstance(output, str):
                    chains[number] = output
                    continue
                await in_thread(output.finish)
                layer = await in_thread(output.layer, self._solver.lease)
                chains[number] = layer.chain if layer is not None else output.chain
        return [chains.get(number, "") for number in range(max(chains, default=-1) + 1)]


class _Files:
    """File actions: consecutive ones on one result share a root. In a thread."""

    def __init__(self, solver: Solver, operation: Any, inputs: list[str]) -> None:
        self._solver, self._actions, self._inputs = solver, list(operation.actions), inputs
        self._made: dict[int, str] = {}

    def run(self) -> list[str]:
        count = len(self._inputs)
        position = 0
        while position < len(self._actions):
            end = position
            while (
                end + 1 < len(self._actions)
                and self._actions[end].output < 0
                and self._actions[end + 1].input == count + end
                and self._actions[end + 1].secondaryInput < count
            ):
                end += 1
            self._run(position, end)
            position = end + 1
        outputs = {action.output: self._made[n] for n, action in enumerate(self._actions) if action.output >= 0}
        return [outputs.get(number, "") for number in range(max(outputs, default=-1) + 1)]

    def _chain(self, index: int) -> str:
        if index < len(self._inputs):
            return input_of(self._inputs, index)
        found = self._made.get(index - len(self._inputs))
        if found is None:
            raise InvalidParameter(f"invalid input index {index}")
        return found

    def _run(self, first: int, last: int) -> None:
        root = StepRoot(self._solver.store, self._chain(self._actions[first].input))
        try:
            root.mount()
            for action in self._actions[first : last + 1]:
                try:
                    self._act(root, action)
                except CopyError as error:
                    raise SystemFailure(str(error)) from None
                except OSError as error:
                    shown = f"{error.filename}: " if error.filename else ""
                    raise SystemFailure(f"{shown}{(error.strerror or str(error)).lower()}") from None
            root.finish()
            layer = root.layer(self._solver.lease)
        finally:
            root.discard()
        self._made[last] = layer.chain if layer is not None else root.chain

    def _act(self, root: StepRoot, action: Any) -> None:
        kind = action.WhichOneof("action")
        if kind == "copy":
            source = StepRoot(self._solver.store, self._chain(action.secondaryInput))
            try:
                source.mount()
                _copy(source.merged, root.merged, action.copy)
            finally:
                source.discard()
        elif kind == "mkfile":
            _make_file(root.merged, action.mkfile)
        elif kind == "mkdir":
            _make_folder(root.merged, action.mkdir)
        elif kind == "rm":
            _remove(root.merged, action.rm)
        elif kind == "symlink":
            _symlink(root.merged, action.symlink)
        else:
            raise InvalidParameter("invalid file action")


def _owner(root: Path, option: Any) -> tuple[int, int]:
    """Whose a file is to be."""
    parts: list[str] = []
    for field in ("user", "group"):
        value = getattr(option, field)
        which = value.WhichOneof("user") if option.HasField(field) else None
        parts.append(value.byName.name if which == "byName" else str(value.byID) if which else "0")
    try:
        found = resolve_user(root, ":".join(parts))
    except UnknownUser as error:
        raise SystemFailure(f"invalid user: {error}") from None
    return found.uid, found.gid


def _at(root: Path, path: str) -> tuple[int, str]:
    """A descriptor of a path's folder (it must be there) and its last part."""
    above, _, name = posixpath.normpath("/" + path).rpartition("/")
    return rooted.open_in(root, above or "/", os.O_PATH | os.O_DIRECTORY), name


def _stamp(parent: int, name: str, timestamp: int) -> None:
    if timestamp >= 0:
        os.utime(name, ns=(timestamp, timestamp), dir_fd=parent, follow_symlinks=False)


def _make_file(root: Path, action: Any) -> None:
    parent, name = _at(root, action.path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        with open(fd, "wb") as file:
            file.write(action.data)
            os.fchown(fd, *_owner(root, action.owner))
            os.fchmod(fd, action.mode & 0o7777)
        _stamp(parent, name, action.timestamp)
    finally:
        os.close(parent)


def _make_folder(root: Path, action: Any) -> None:
    uid, gid = _owner(root, action.owner)
    if action.makeParents:
        os.close(rooted.make_dirs(root, posixpath.normpath("/" + action.path), action.mode & 0o7777, uid, gid))
        return
    parent, name = _at(root, action.path)
    try:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            return
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        os.chmod(name, action.mode & 0o7777, dir_fd=parent)
        _stamp(parent, name, action.timestamp)
    finally:
        os.close(parent)


def _symlink(root: Path, action: Any) -> None:
    parent, name = _at(root, action.newpath)
    try:
        os.symlink(action.oldpath, name, dir_fd=parent)
        os.chown(name, *_owner(root, action.owner), dir_fd=parent, follow_symlinks=False)
        _stamp(parent, name, action.timestamp)
    finally:
        os.close(parent)


def _remove(root: Path, action: Any) -> None:
    tree = Tree(root, context=False)
    paths = [action.path]
    if action.allowWildcard:
        paths = [source.path for source in tree.find(action.path)]
    for path in paths:
        try:
            parent, name = _at(root, path)
        except FileNotFoundError:
            if action.allowNotFound:
                continue
            raise
        try:
            try:
                os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                if action.allowNotFound:
                    continue
                raise
            remove_tree(parent, name)
        finally:
            os.close(parent)


def _copy(source: Path, target: Path, action: Any) -> None:
    from longshore.engine.build.transfer import unpack

    tree = Tree(source, context=False)
    found = (
        tree.find(action.src) if action.allowWildcard else [tree.one(posixpath.normpath("/" + action.src).lstrip("/"))]
    )
    if not found:
        if action.allowEmptyWildcard:
            return
        raise CopyError(f"{action.src}: no such file or directory")
    placement = Placement(keep_owner=not action.HasField("owner"))
    if action.HasField("owner"):
        placement.uid, placement.gid = _owner(target, action.owner)
    if action.modeStr:
        placement.mode = parse_mode(action.modeStr)
    elif action.mode >= 0:
        placement.mode = parse_mode(f"{action.mode & 0o7777:o}")
    owner = (placement.uid, placement.gid) if action.HasField("owner") else None
    placement.time = action.timestamp if action.timestamp >= 0 else None
    placement.include = Ignore(list(action.include_patterns)) if action.include_patterns else None
    exclude = Ignore(list(action.exclude_patterns)) if action.exclude_patterns else None
    into = action.dest.endswith("/") or len(found) > 1
    where = posixpath.normpath("/" + action.dest)
    copier = Copier(tree, target, placement, exclude)
    for one in found:
        if action.attemptUnpackDockerCompatibility and not one.folder and unpack(tree, one, target, where, owner):
            continue
        if one.folder and not action.dirCopyContents and (into or copier.is_folder(where)) and one.path:
            copier.copy([one], posixpath.join(where, one.path.rpartition("/")[2]), into=False)
        else:
            copier.copy([Source(one.path, one.folder)], where, into=into)
