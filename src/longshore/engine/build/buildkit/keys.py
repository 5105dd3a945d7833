"""What an operation of a definition depends on: of inputs that it only reads some files of, those files.

So `COPY package.json .` is done already however the rest of the context has changed. Source: BuildKit solver/llbsolver/ops
(file.go and exec.go: content based cache keys).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.build.buildkit.mounting import BIND
from longshore.engine.build.copying import CopyError, Source, Tree
from longshore.engine.build.ignore import Ignore
from longshore.engine.build.step import StepRoot
from longshore.engine.images.streams import in_thread

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore


async def of_inputs(store: ImageStore, kind: str, operation: Any, inputs: list[str]) -> list[str]:
    """For each input what it means for the operation's result: its chain, or the digest of what is read of it."""
    if kind not in ("file", "exec"):
        return inputs
    wanted = dict(_read_only(kind, operation, len(inputs)))
    if not any(inputs[number] for number in wanted):
        return inputs
    return await in_thread(_digests, store, inputs, wanted)


def _read_only(kind: str, operation: Any, count: int) -> Iterator[tuple[int, list[Any]]]:
    """Inputs that an operation only reads from, with what reads them: copies or mounts."""
    readers: dict[int, list[Any]] = {}
    whole: set[int] = set()
    if kind == "file":
        for action in operation.file.actions:
            whole.add(action.input)
            which = action.WhichOneof("action")
            if which == "copy":
                readers.setdefault(action.secondaryInput, []).append(action.copy)
            if which in ("copy", "mkfile", "mkdir", "symlink"):
                # Names of an owner are looked up in another input's files.
                owner = getattr(action, which).owner
                whole |= {one.byName.input for one in (owner.user, owner.group) if one.WhichOneof("user") == "byName"}
    else:
        for mount in operation.exec.mounts:
            if mount.mountType == BIND and mount.readonly and mount.dest != "/" and mount.output < 0:
                readers.setdefault(mount.input, []).append(mount)
            else:
                whole.add(mount.input)
    for number, found in readers.items():
        if 0 <= number < count and number not in whole:
            yield number, found


def _digests(store: ImageStore, inputs: list[str], wanted: dict[int, list[Any]]) -> list[str]:
    made = list(inputs)
    for number, readers in wanted.items():
        if not inputs[number]:
            continue
        root = StepRoot(store, inputs[number])
        try:
            merged = root.mount()
            made[number] = " ".join(_digest(merged, reader) for reader in readers)
        except (CopyError, OSError):
            # What cannot be read is told when the operation is carried out.
            made[number] = inputs[number]
        finally:
            root.discard()
    return made


def _digest(root: Path, reader: Any) -> str:
    tree = Tree(root, context=False, owned=True)
    if not hasattr(reader, "src"):
        return tree.digest([_one(tree, reader.selector)])
    sources = tree.find(reader.src) if reader.allowWildcard else [_one(tree, reader.src)]
    exclude = Ignore(list(reader.exclude_patterns)) if reader.exclude_patterns else None
    return tree.digest(sources, exclude)


def _one(tree: Tree, path: str) -> Source:
    return tree.one(posixpath.normpath("/" + path).lstrip("/"))
