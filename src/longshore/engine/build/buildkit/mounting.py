"""What a command of a definition, or a frontend's container, sees as its files: a root and mounts.

Source: BuildKit solver/llbsolver/mounts, frontend/gateway/container (PrepareMounts).
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.build import mounts
from longshore.engine.build.step import Mount, StepRoot
from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.images.streams import in_thread
from longshore.machinery import rooted

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.definitions import Solver

BIND, _SECRET, _SSH, _CACHE, _TMPFS = range(5)


def input_of(inputs: list[str], index: int) -> str:
    if index == -1:
        return ""
    if not 0 <= index < len(inputs):
        raise InvalidParameter(f"invalid input index {index}")
    return inputs[index]


class Mounting:
    """Makes mounts of inputs (chains of layers); what it makes is held by the stack.

    outputs: by number what a mount leaves as a result, a root that was written to or the chain as it was. roots: of each mount
    in their order the folder that shows its files, None for those that are no result's.
    """

    def __init__(self, solver: Solver, inputs: list[str], cwd: str, stack: contextlib.AsyncExitStack) -> None:
        self._solver, self._inputs, self._cwd, self._stack = solver, inputs, cwd, stack
        self.outputs: dict[int, StepRoot | str] = {}
        self.roots: list[Path | None] = []

    async def all(self, wanted: Iterable[Any]) -> tuple[StepRoot, list[Mount]]:
        """The root and the other mounts. Raises InvalidParameter without a root, EngineError."""
        root: StepRoot | None = None
        held: list[Mount] = []
        for mount in wanted:
            self.roots.append(None)
            if mount.dest == "/":
                root = await self._root(mount)
                if mount.output >= 0:
                    self.outputs[mount.output] = root
                self.roots[-1] = root.merged
                continue
            made = await self._mount(mount)
            if made is not None:
                held.append(made)
                if made.kind == "bind" and made.folder:
                    self.roots[-1] = Path(made.source)
        if root is None:
            raise InvalidParameter("no root mount in exec operation")
        return root, held

    async def _root(self, mount: Any) -> StepRoot:
        root = StepRoot(self._solver.store, input_of(self._inputs, mount.input))
        self._stack.push_async_callback(in_thread, root.discard)
        await in_thread(root.mount)
        return root

    async def _mount(self, mount: Any) -> Mount | None:
        target = posixpath.normpath(posixpath.join(self._cwd, mount.dest))
        if mount.mountType == _TMPFS:
            size = mount.TmpfsOpt.size
            return Mount("tmpfs", target, ("nosuid", "nodev", *((f"size={size}",) if size else ())), "tmpfs")
        if mount.mountType in (_SECRET, _SSH):
            option = mount.secretOpt if mount.mountType == _SECRET else mount.SSHOpt
            wanted = mounts.Wanted(
                "secret" if mount.mountType == _SECRET else "ssh",
                target,
                id=option.ID,
                required=not option.optional,
                uid=option.uid,
                gid=option.gid,
                mode=option.mode,
            )
            if mount.mountType == _SECRET:
                return await mounts.secret(self._solver.session.secret, self._solver.store, wanted, target, self._stack)
            return await mounts.agent(self._solver.session.agent, wanted, self._stack)
        if mount.mountType == _CACHE:
            sharing = {1: "private", 2: "locked"}.get(mount.cacheOpt.sharing, "shared")
            wanted = mounts.Wanted("cache", target, id=mount.cacheOpt.ID, sharing=sharing, readonly=mount.readonly)
            chain = input_of(self._inputs, mount.input)
            base = None
            if chain:
                wanted.source = mount.selector
                base = mounts.Base((await self._root(mount)).merged, chain)
            return await mounts.cache(self._solver.store, wanted, target, self._stack, base=base)
        if mount.mountType != BIND:
            raise InvalidParameter(f"mount type {mount.mountType} not implemented")
        root = await self._root(mount)
        if mount.output >= 0 and not mount.readonly:
            self.outputs[mount.output] = root
        elif mount.output >= 0:
            self.outputs[mount.output] = root.chain
        inside = mount.selector or "/"
        if mount.output >= 0 and not mount.readonly:
            os.close(await in_thread(rooted.make_dirs, root.merged, inside))
        try:
            path = f"{root.merged}{await in_thread(rooted.real_path, root.merged, inside)}"
        except OSError:
            raise SystemFailure(f'failed to calculate checksum of ref: "{inside}": not found') from None
        options = ("rbind", "ro") if mount.readonly else ("rbind", "rw")
        return Mount(path, target, options, folder=stat.S_ISDIR(os.lstat(path).st_mode), root=root.root)
