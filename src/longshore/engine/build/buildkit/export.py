"""What becomes of a build's result: images of the store, a push, or files for the client."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build.buildkit.imageexport import ImageExporter
from longshore.engine.build.buildkit.outputs import FALSE, TRUE, epoch_of
from longshore.engine.build.buildkit.progress import Progress
from longshore.engine.build.buildkit.session import Session
from longshore.engine.build.context import new_folder
from longshore.engine.build.step import StepRoot
from longshore.engine.errors import InvalidParameter
from longshore.engine.images.extract import remove_path
from longshore.engine.images.manifests import Entry
from longshore.engine.images.model import Image
from longshore.engine.images.pack import Packer
from longshore.engine.images.streams import in_thread, pieces
from longshore.machinery import mounts, rooted
from longshore.wire import tar

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore


class Exporter:
    """Exports one build's result.

    entries: its images; multiple: they are an index in any case. epoch: the build's SOURCE_DATE_EPOCH; bases: the images that it began with.
    """

    def __init__(
        self,
        store: ImageStore,
        session: Session,
        progress: Progress,
        entries: list[Entry],
        *,
        multiple: bool = False,
        epoch: int | None = None,
        bases: Iterable[Image] = (),
    ) -> None:
        self._store, self._session, self._progress = store, session, progress
        self._entries, self._multiple = entries, multiple
        self._epoch, self._bases = epoch, list(bases)

    async def run(self, kind: str, attributes: Mapping[str, str], number: int = 0) -> dict[str, str]:
        """Carry out one exporter; its part of the response.

        kind: moby, image, docker, oci, tar, local, "" (none). number: the client's of this exporter. Raises EngineError.
        """
        if kind in ("", "cacheonly") or not self._entries:
            return {}
        if kind == "local":
            return await self._local(attributes, number)
        if kind == "tar":
            return await self._tar(attributes, number)
        if kind in ("moby", "image", "docker", "oci"):
            exporter = ImageExporter(
                self._store, self._session, self._progress, "image" if kind == "moby" else kind, list(self._entries),
                attributes, multiple=self._multiple, epoch=self._epoch, bases=self._bases,
            )  # fmt: skip
            return await exporter.run(number)
        raise InvalidParameter(f'exporter "{kind}" could not be found')

    # -- files -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _tree(self, attributes: Mapping[str, str]) -> AsyncIterator[Path]:
        """The root of the result: a folder for each platform, or all in one; with files of what is attested."""
        told = attributes.get("platform-split", "")
        if told not in (*TRUE, *FALSE, ""):
            raise InvalidParameter(f"non-bool value for platform-split: {told}")
        split = told in TRUE if told else self._multiple
        async with contextlib.AsyncExitStack() as stack:
            roots: list[Path] = []
            for entry in self._entries:
                root = await stack.enter_async_context(self._mounted(entry.image))
                roots.append(root)
                if any(entry.files):
                    mark = f".{_folder_name(entry)}" if self._multiple and not split else ""
                    await in_thread(_put_statements, root, entry, attributes.get("attestation-prefix", ""), mark)
            if not split and len(roots) == 1:
                yield roots[0]
                return
            whole = new_folder(self._store)
            stack.push_async_callback(in_thread, remove_path, whole)
            if not split:
                mounts.mount("overlay", whole, "overlay", [f"lowerdir={':'.join(map(str, roots[::-1]))}"])
                stack.callback(mounts.unmount, whole)
                yield whole
                return
            for entry, root in zip(self._entries, roots, strict=True):
                place = whole / _folder_name(entry)
                place.mkdir()
                mounts.bind(root, place)
                stack.callback(mounts.unmount, place)
            yield whole

    @contextlib.asynccontextmanager
    async def _mounted(self, image: Image) -> AsyncIterator[Path]:
        with self._store.lease() as lease:
            lease.add(image.chain)
            root = StepRoot(self._store, image.chain)
            try:
                await in_thread(root.mount)
                yield root.merged
            finally:
                await in_thread(root.discard)

    async def _local(self, attributes: Mapping[str, str], number: int) -> dict[str, str]:
        with self._progress.vertex("exporting to client directory") as vertex:
            async with self._tree(attributes) as root:
                told = self._session.send_folder
                moment = self._moment(attributes)
                total = await told(root, number, lambda size: vertex.status("copying files", size), mtime=moment)
                vertex.status("copying files", total, done=True)
        return {}

    def _moment(self, attributes: Mapping[str, str]) -> int | None:
        """The time of all files of an output in nanoseconds, None: each its own. Raises InvalidParameter."""
        seconds = epoch_of(attributes, self._epoch)
        return None if seconds is None else seconds * 10**9

    async def _tar(self, attributes: Mapping[str, str], number: int) -> dict[str, str]:
        with self._progress.vertex("exporting to client tarball") as vertex:
            async with self._tree(attributes) as root:
                await self._session.send_stream(pieces(iter(_Dated(root, self._moment(attributes)))), number)
                vertex.status("sending tarball", done=True)
        return {}


class _Dated(Packer):
    """An archive of a root whose members are all of one time (None: each of its own)."""

    def __init__(self, root: Path, moment: int | None) -> None:
        super().__init__(root, layer=False)
        self._moment = moment

    def entry(self, fd: int, name: str, path: str, info: os.stat_result) -> tar.Entry | None:
        made = super().entry(fd, name, path, info)
        if made is not None and self._moment is not None:
            made.mtime = self._moment
        return made


def _folder_name(entry: Entry) -> str:
    return entry.platform.replace("/", "_")


def _put_statements(root: Path, entry: Entry, prefix: str, mark: str) -> None:
    """Write what is attested into the root, about the files that are there. In a thread."""
    subjects = _subjects(root)
    for (_, data), name in zip(entry.statements, entry.files, strict=True):
        if not name:
            continue
        statement = orjson.loads(data) | {"subject": subjects}
        base, dot, kind = name.rpartition(".")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        path = f"{prefix}{base}{mark}{dot}{kind}"
        with rooted.opened(root, path, flags, 0o644) as fd, open(os.dup(fd), "wb") as file:
            file.write(orjson.dumps(statement, option=orjson.OPT_INDENT_2))


def _subjects(root: Path) -> list[dict[str, Any]]:
    """The regular files of a root with their digests, as in-toto's subjects."""
    found: list[dict[str, Any]] = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.append({"name": str(path.relative_to(root)), "digest": {"sha256": digest}})
    return found
