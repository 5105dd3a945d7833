"""What becomes of a build's result: an image of the store, a push, or files for the client."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from longshore.engine.build.buildkit.progress import Progress, now
from longshore.engine.build.buildkit.session import Session
from longshore.engine.build.step import StepRoot
from longshore.engine.errors import InvalidParameter
from longshore.engine.images import references
from longshore.engine.images.model import Image
from longshore.engine.images.pack import Packer
from longshore.engine.images.streams import in_thread, pieces

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore


async def export(
    store: ImageStore,
    session: Session,
    progress: Progress,
    image: Image,
    kind: str,
    attributes: dict[str, str],
    number: int = 0,
) -> dict[str, str]:
    """Carry out one exporter; its part of the response. kind: moby, image, docker, oci, tar, local, "" (none).

    Raises EngineError.
    """
    if kind in ("", "cacheonly"):
        return {}
    if kind in ("moby", "image"):
        return await _image(store, session, progress, image, attributes)
    if kind == "local":
        return await _local(store, session, progress, image, number)
    if kind == "tar":
        return await _tar(store, session, progress, image, number)
    if kind in ("docker", "oci"):
        return await _archive(store, session, progress, image, attributes, kind, number)
    raise InvalidParameter(f'exporter "{kind}" could not be found')


def _names(attributes: dict[str, str]) -> list[references.Reference]:
    names: list[references.Reference] = []
    for text in filter(None, attributes.get("name", "").split(",")):
        names.append(references.parse(text.strip()).with_default_tag())
    return names


async def _image(
    store: ImageStore, session: Session, progress: Progress, image: Image, attributes: dict[str, str]
) -> dict[str, str]:
    names = _names(attributes)
    with progress.vertex("exporting to image") as vertex:
        vertex.status("exporting layers", done=True)
        vertex.status(f"writing image {image.id}", done=True)
        for name in names:
            started = now()
            store.tag(image, name)
            shown = str(name).removesuffix(":latest")
            vertex.status(f"naming to {shown}", started=started, done=True)
    if attributes.get("push") == "true":
        for name in names:
            with progress.vertex(f"pushing {name} with docker") as vertex:
                layers: dict[str, Any] = {}

                def say(message: dict[str, Any], vertex: Any = vertex, layers: dict[str, Any] = layers) -> None:
                    layer = message.get("id")
                    detail = message.get("progressDetail") or {}
                    if layer and detail:
                        vertex.status(f"pushing layer {layer}", detail.get("current", 0), detail.get("total", 0))
                    elif layer and message.get("status") in ("Pushed", "Layer already exists"):
                        vertex.status(f"pushing layer {layer}", done=True)

                auth = await session.credentials(name.domain)
                await store.push(name, auth=auth, progress=say)
    answer = {"containerimage.config.digest": image.id, "containerimage.digest": image.id}
    if names:
        answer["image.name"] = ",".join(str(name) for name in names)
    return answer


@contextlib.asynccontextmanager
async def _mounted(store: ImageStore, image: Image) -> Any:
    with store.lease() as lease:
        lease.add(image.chain)
        root = StepRoot(store, image.chain)
        try:
            await in_thread(root.mount)
            yield root.merged
        finally:
            await in_thread(root.discard)


async def _local(store: ImageStore, session: Session, progress: Progress, image: Image, number: int) -> dict[str, str]:
    with progress.vertex("exporting to client directory") as vertex:
        async with _mounted(store, image) as root:
            total = await session.send_folder(root, number, lambda size: vertex.status("copying files", size))
            vertex.status("copying files", total, done=True)
    return {}


async def _tar(store: ImageStore, session: Session, progress: Progress, image: Image, number: int) -> dict[str, str]:
    with progress.vertex("exporting to client tarball") as vertex:
        async with _mounted(store, image) as root:
            await session.send_stream(pieces(iter(Packer(root, layer=False))), number)
            vertex.status("sending tarball", done=True)
    return {}


async def _archive(
    store: ImageStore,
    session: Session,
    progress: Progress,
    image: Image,
    attributes: dict[str, str],
    kind: str,
    number: int,
) -> dict[str, str]:
    names = _names(attributes)
    label = "docker image format" if kind == "docker" else "oci image format"
    with progress.vertex(f"exporting to {label}") as vertex:
        vertex.status("exporting layers", done=True)
        for name in names:
            store.tag(image, name)
        wanted = [name.familiar for name in names] or [image.id]
        await session.send_stream(store.save(wanted), number)
        vertex.status("sending tarball", done=True)
    return {"containerimage.config.digest": image.id, "containerimage.digest": image.id}
