"""What becomes of a build's result: images of the store, a push, or files for the client."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build.buildkit.attributes import host_platform
from longshore.engine.build.buildkit.contents import ContentStore
from longshore.engine.build.buildkit.progress import Progress, now
from longshore.engine.build.buildkit.session import Session
from longshore.engine.build.context import new_folder
from longshore.engine.build.step import StepRoot
from longshore.engine.errors import InvalidParameter
from longshore.engine.images import references
from longshore.engine.images.extract import remove_path
from longshore.engine.images.layout import archive, blobs, describe
from longshore.engine.images.manifests import Document, Entry
from longshore.engine.images.model import Image
from longshore.engine.images.pack import Packer
from longshore.engine.images.push import push_index
from longshore.engine.images.streams import in_thread, pieces
from longshore.machinery import mounts, rooted

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore

_TRUE = ("1", "t", "T", "true", "True", "TRUE")
_FALSE = ("0", "f", "F", "false", "False", "FALSE")


class Exporter:
    """Exports one build's result.

    entries: its images; multiple: they are an index in any case. inline: attestations go into images only.
    """

    def __init__(
        self,
        store: ImageStore,
        session: Session,
        progress: Progress,
        entries: list[Entry],
        *,
        multiple: bool = False,
        inline: bool = True,
    ) -> None:
        self._store, self._session, self._progress = store, session, progress
        self._entries, self._multiple, self._inline = entries, multiple, inline

    async def run(self, kind: str, attributes: Mapping[str, str], number: int = 0) -> dict[str, str]:
        """Carry out one exporter; its part of the response.

        kind: moby, image, docker, oci, tar, local, "" (none). number: the client's of this exporter. Raises EngineError.
        """
        if kind in ("", "cacheonly") or not self._entries:
            return {}
        if kind in ("moby", "image"):
            return await self._image(attributes)
        if kind == "local":
            return await self._local(attributes, number)
        if kind == "tar":
            return await self._tar(attributes, number)
        if kind in ("docker", "oci"):
            return await self._archive(attributes, kind, number)
        raise InvalidParameter(f'exporter "{kind}" could not be found')

    def _own(self) -> Image:
        """The image of this machine's platform, else the first."""
        return next((e.image for e in self._entries if e.platform == host_platform()), self._entries[0].image)

    # -- the store and registries ----------------------------------------------------------------------------------

    async def _image(self, attributes: Mapping[str, str]) -> dict[str, str]:
        store, image = self._store, self._own()
        names = _names(attributes)
        with self._progress.vertex("exporting to image") as vertex:
            vertex.status("exporting layers", done=True)
            for entry in self._entries:
                vertex.status(f"writing image {entry.image.id}", done=True)
            if not names:
                store.sync(image.id)
            for name in names:
                started = now()
                store.tag(image, name)
                vertex.status(f"naming to {str(name).removesuffix(':latest')}", started=started, done=True)
        answer = {"containerimage.config.digest": image.id, "containerimage.digest": image.id}
        if names:
            answer["image.name"] = ",".join(str(name) for name in names)
        if attributes.get("push") in _TRUE:
            for name in names:
                descriptor = await self._push(name, attributes)
                answer["containerimage.digest"] = str(descriptor["digest"])
                answer["containerimage.descriptor"] = base64.b64encode(orjson.dumps(descriptor)).decode()
        return answer

    async def _push(self, name: references.Reference, attributes: Mapping[str, str]) -> dict[str, Any]:
        auth = await self._session.credentials(name.domain)
        with self._progress.vertex(f"pushing {name}") as vertex:
            started = now()
            document = await push_index(
                self._store,
                name,
                self._entries,
                auth=auth,
                annotations=_annotations(attributes),
                single=not self._multiple,
            )
            vertex.status("pushing layers", started=started, done=True)
            vertex.status(f"pushing manifest for {name}@{document.digest}", done=True)
        return document.descriptor()

    # -- files -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _tree(self, attributes: Mapping[str, str]) -> AsyncIterator[Path]:
        """The root of the result: a folder for each platform, or all in one; with files of what is attested."""
        told = attributes.get("platform-split", "")
        if told not in (*_TRUE, *_FALSE, ""):
            raise InvalidParameter(f"non-bool value for platform-split: {told}")
        split = told in _TRUE if told else self._multiple
        async with contextlib.AsyncExitStack() as stack:
            roots: list[Path] = []
            for entry in self._entries:
                root = await stack.enter_async_context(self._mounted(entry.image))
                roots.append(root)
                if not self._inline:
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
                total = await told(root, number, lambda size: vertex.status("copying files", size))
                vertex.status("copying files", total, done=True)
        return {}

    async def _tar(self, attributes: Mapping[str, str], number: int) -> dict[str, str]:
        with self._progress.vertex("exporting to client tarball") as vertex:
            async with self._tree(attributes) as root:
                await self._session.send_stream(pieces(iter(Packer(root, layer=False))), number)
                vertex.status("sending tarball", done=True)
        return {}

    async def _archive(self, attributes: Mapping[str, str], kind: str, number: int) -> dict[str, str]:
        entries = self._entries
        if kind == "docker":
            if self._multiple:
                raise InvalidParameter("docker exporter does not currently support exporting manifest lists")
            entries = [Entry(entry.platform, entry.image) for entry in entries]
        with self._progress.vertex(f"exporting to {'docker' if kind == 'docker' else 'oci'} image format") as vertex:
            if attributes.get("tar", "true") in _TRUE:
                top, source = await in_thread(self._written, entries, kind, attributes)
                vertex.status("exporting layers", done=True)
                await self._session.send_stream(pieces(source), number)
                vertex.status("sending tarball", done=True)
            else:
                top = await self._stored(entries, attributes)
                vertex.status("exporting layers", done=True)
            vertex.status(f"exporting manifest {top.digest}", done=True)
        descriptor = base64.b64encode(orjson.dumps(top.descriptor())).decode()
        answer = {"containerimage.digest": top.digest, "containerimage.descriptor": descriptor}
        names = _names(attributes)
        if names:
            answer["image.name"] = ",".join(str(name) for name in names)
        if len(entries) == 1:
            answer["containerimage.config.digest"] = entries[0].image.id
        return answer

    async def _stored(self, entries: list[Entry], attributes: Mapping[str, str]) -> Document:
        """Put the blobs into the client's folder, which keeps the index of what it has itself."""
        place = ContentStore(self._session, "export")
        notes = _annotations(attributes)
        top, made = await in_thread(lambda: describe(self._store, entries, notes, single=not self._multiple))
        with self._store.lease() as lease:
            lease.add(*(entry.image.chain for entry in entries if entry.image.chain))
            for digest, _, content in blobs(self._store, top, made):
                await place.write(digest, pieces(content))
        return top

    def _written(self, entries: list[Entry], kind: str, attributes: Mapping[str, str]) -> tuple[Any, Iterator[bytes]]:
        return archive(
            self._store,
            entries,
            _names(attributes),
            docker=kind == "docker",
            single=not self._multiple,
            annotations=_annotations(attributes),
        )


def _names(attributes: Mapping[str, str]) -> list[references.Reference]:
    names: list[references.Reference] = []
    for text in filter(None, attributes.get("name", "").split(",")):
        names.append(references.parse(text.strip()).with_default_tag())
    return names


def _annotations(attributes: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """annotation.KEY, annotation-manifest.KEY, annotation-index.KEY: by what they are put on."""
    found: dict[str, dict[str, str]] = {"manifest": {}, "index": {}}
    for key, value in attributes.items():
        kind, dot, name = key.partition(".")
        base, _, _ = kind.partition("[")
        if dot and base in ("annotation", "annotation-manifest"):
            found["manifest"][name] = value
        elif dot and base == "annotation-index":
            found["index"][name] = value
    return found


def _folder_name(entry: Entry) -> str:
    return entry.platform.replace("/", "_")


def _put_statements(root: Path, entry: Entry, prefix: str, mark: str) -> None:
    """Write what is attested into the root, about the files that are there. In a thread."""
    subjects = _subjects(root) if entry.statements else []
    for count, (_, data) in enumerate(entry.statements):
        name = "provenance" if not count else f"attestation.{count}"
        statement = orjson.loads(data) | {"subject": subjects}
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with rooted.opened(root, f"{prefix}{name}{mark}.json", flags, 0o644) as fd, open(os.dup(fd), "wb") as file:
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
