"""Results as images: in the store, pushed, or as docker's and OCI archives for the client.

Source: BuildKit exporter/containerimage, exporter/oci.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build.buildkit import epochs
from longshore.engine.build.buildkit.attributes import host_platform
from longshore.engine.build.buildkit.contents import ContentStore
from longshore.engine.build.buildkit.outputs import Output, parse
from longshore.engine.build.buildkit.progress import Progress, now
from longshore.engine.build.buildkit.session import Session
from longshore.engine.build.context import new_folder
from longshore.engine.errors import InvalidParameter
from longshore.engine.images import references
from longshore.engine.images.extract import remove_path
from longshore.engine.images.layout import archive, blobs, describe
from longshore.engine.images.manifests import Document, Entry
from longshore.engine.images.model import Image
from longshore.engine.images.packed import Blob, Packed
from longshore.engine.images.push import push_index, send_bytes
from longshore.engine.images.references import Reference
from longshore.engine.images.streams import in_thread, pieces
from longshore.engine.images.variants import keep

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore


class ImageExporter:
    """One image output of a build.

    kind: "image", "docker" or "oci"; entries: the images; multiple: they are an index in any case; epoch: the build's
    SOURCE_DATE_EPOCH; bases: the images that it began with. Raises InvalidParameter for settings that will not do.
    """

    def __init__(
        self,
        store: ImageStore,
        session: Session,
        progress: Progress,
        kind: str,
        entries: list[Entry],
        attributes: Mapping[str, str],
        *,
        multiple: bool,
        epoch: int | None,
        bases: Iterable[Image],
    ) -> None:
        self._store, self._session, self._progress, self._kind = store, session, progress, kind
        if kind == "docker":
            if multiple:
                raise InvalidParameter("docker exporter does not currently support exporting manifest lists")
            entries = [Entry(entry.platform, entry.image) for entry in entries]
        self._entries, self._multiple, self._bases = entries, multiple, list(bases)
        attested = any(entry.statements for entry in entries)
        self._output: Output = parse(attributes, kind, attested=attested, epoch=epoch)
        self._own_epoch = "source-date-epoch" in attributes

    async def run(self, number: int) -> dict[str, str]:
        """Carry it out; its part of the response. number: the client's of this exporter. Raises EngineError."""
        output = self._output
        with self._store.lease() as lease:
            if output.epoch is not None and (output.rewrite or self._own_epoch):
                epoch = output.epoch
                for position, entry in enumerate(self._entries):
                    image = await in_thread(
                        lambda entry=entry: epochs.clamped(
                            self._store, entry.image, epoch, lease, layers=output.rewrite, bases=self._bases
                        )
                    )
                    self._entries[position] = replace(entry, image=image)
            return await (self._image() if self._kind == "image" else self._archive(number))

    def _own(self) -> Image:
        """The image of this machine's platform, else the first."""
        return next((e.image for e in self._entries if e.platform == host_platform()), self._entries[0].image)

    @contextlib.asynccontextmanager
    async def _packed(self) -> AsyncIterator[Packed]:
        """The layers of all images in the wanted form, made side by side."""
        folder = new_folder(self._store)
        packed = Packed(self._store, folder, self._output.form)
        try:
            layers = {
                layer.diff: layer for entry in self._entries for layer in self._store.layers.stack(entry.image.chain)
            }
            await asyncio.gather(*(in_thread(packed.blob, layer) for layer in layers.values()))
            yield packed
        finally:
            await asyncio.shield(in_thread(remove_path, folder))

    # -- the store and registries ----------------------------------------------------------------------------------

    async def _image(self) -> dict[str, str]:
        store, image, output = self._store, self._own(), self._output
        with self._progress.vertex("exporting to image") as vertex:
            vertex.status("exporting layers", done=True)
            for entry in self._entries:
                vertex.status(f"writing image {entry.image.id}", done=True)
            index = await in_thread(self._kept) if output.names and self._multiple else ""
            if not output.names or not output.store:
                store.sync(image.id)
            store.event("create", image.id)
            for name in output.names if output.store else ():
                started = now()
                if name.tag:
                    store.tag(image, name, index=index)
                if output.canonical:
                    store.add_digest(name, index or image.id, image.id)
                vertex.status(f"naming to {str(name).removesuffix(':latest')}", started=started, done=True)
            if output.dangling:
                name = references.parse(output.dangling)
                vertex.status(f"naming to {name.familiar}@{index or image.id}", done=True)
                store.add_digest(name, index or image.id, image.id)
        answer = {"containerimage.config.digest": image.id, "containerimage.digest": image.id}
        if output.names:
            answer["image.name"] = ",".join(str(name) for name in output.names)
        for name in output.names if output.push else ():
            descriptor = await self._push(name)
            answer["containerimage.digest"] = str(descriptor["digest"])
            answer["containerimage.descriptor"] = base64.b64encode(orjson.dumps(descriptor)).decode()
        return answer

    def _kept(self) -> str:
        """Keep an index of the images that were built; its digest."""
        top, made = describe(self._store, self._entries, self._output.annotations, single=False)
        keep(self._store, top, made)
        return top.digest

    async def _push(self, name: Reference) -> dict[str, Any]:
        auth = await self._session.credentials(name.domain)
        output, single = self._output, not self._multiple
        with self._progress.vertex(f"pushing {name}") as vertex:
            started = now()
            if output.form.usual and not any("[" in place or "descriptor" in place for place in output.annotations):
                document = await push_index(
                    self._store, name, self._entries, auth=auth, annotations=output.annotations, single=single
                )
            else:
                async with self._packed() as packed:
                    document = await self._push_packed(name, packed, auth)
            vertex.status("pushing layers", started=started, done=True)
            vertex.status(f"pushing manifest for {name}@{document.digest}", done=True)
        return document.descriptor()

    async def _push_packed(self, name: Reference, packed: Packed, auth: dict[str, str] | None) -> Document:
        """Push with layers in a form that is not a push's usual one."""
        store = self._store
        registry = await store.registries.session(name.domain, name.path, auth=auth, actions="pull,push", pull=False)
        single = not self._multiple
        top, made = await in_thread(
            lambda: describe(store, self._entries, self._output.annotations, single=single, packed=packed)
        )
        for entry, document, attested in made:
            for layer in reversed(store.layers.stack(entry.image.chain)):
                await _send(registry, packed.blob(layer))
            for part in filter(None, (document, attested)):
                for digest, data in part.blobs.items():
                    await send_bytes(registry, data, digest)
                if part is not top:
                    await registry.put_manifest(part.digest, part.body, part.media)
        await registry.put_manifest(name.tag or top.digest, top.body, top.media)
        first = self._entries[0].image
        if top is made[0][1]:
            store.add_manifest(top.digest, top.media, top.body, first.id)
        else:
            keep(store, top, made)
        store.add_digest(name, top.digest, first.id)
        return top

    # -- archives --------------------------------------------------------------------------------------------------

    async def _archive(self, number: int) -> dict[str, str]:
        output = self._output
        with self._progress.vertex(f"exporting to {self._kind} image format") as vertex:
            async with self._packed() as packed:
                vertex.status("exporting layers", done=True)
                if output.tar:
                    top, source = await in_thread(
                        lambda: archive(
                            self._store, self._entries, output.names, docker=self._kind == "docker",
                            single=not self._multiple, annotations=output.annotations, packed=packed,
                        )
                    )  # fmt: skip
                    await self._session.send_stream(pieces(source), number)
                    vertex.status("sending tarball", done=True)
                else:
                    top = await self._stored(packed)
            vertex.status(f"exporting manifest {top.digest}", done=True)
        descriptor = base64.b64encode(orjson.dumps(top.descriptor())).decode()
        answer = {"containerimage.digest": top.digest, "containerimage.descriptor": descriptor}
        if output.names:
            answer["image.name"] = ",".join(str(name) for name in output.names)
        if len(self._entries) == 1:
            answer["containerimage.config.digest"] = self._entries[0].image.id
        return answer

    async def _stored(self, packed: Packed) -> Document:
        """Put the blobs into the client's folder, which keeps the index of what it has itself."""
        place = ContentStore(self._session, "export")
        notes, single = self._output.annotations, not self._multiple
        top, made = await in_thread(lambda: describe(self._store, self._entries, notes, single=single, packed=packed))
        with self._store.lease() as lease:
            lease.add(*(entry.image.chain for entry in self._entries if entry.image.chain))
            for digest, _, content in blobs(self._store, top, made, packed):
                await place.write(digest, pieces(content))
        return top


async def _send(registry: Any, blob: Blob) -> None:
    """A layer's blob to a registry, unless it is there."""
    if await registry.blob_size(blob.digest) is None:
        location = await registry.start_upload()
        location = await registry.send(location, pieces(blob.content()))
        await registry.finish_upload(location, blob.digest)
