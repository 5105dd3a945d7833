"""New images from what is at hand: a container's changes, an imported tar, a build's step."""

from __future__ import annotations

import copy
import os
from collections.abc import AsyncIterable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import SystemFailure
from longshore.engine.images.compression import BrokenStream
from longshore.engine.images.extract import ExtractError
from longshore.engine.images.layers import Layer
from longshore.engine.images.model import ENGINE_VERSION, Image, encode, host_architecture, now_text
from longshore.engine.images.pack import Packer, hash_tree
from longshore.engine.images.references import Reference
from longshore.engine.images.streams import consume, in_thread
from longshore.wire.tar import TarError

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore

EMPTY_LAYER = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"


def disk_failure(error: OSError) -> SystemFailure:
    """A file system's error in Go's words: "write etc/passwd: no space left on device"."""
    name = error.filename if isinstance(error.filename, str) else ""
    return SystemFailure(f"write {name}: {(error.strerror or str(error)).lower()}")


def make_config(
    base: dict[str, Any] | None,
    run_config: dict[str, Any],
    *,
    diff: str = "",
    created: str = "",
    created_by: str = "",
    comment: str = "",
    author: str = "",
    container: str = "",
    container_config: dict[str, Any] | None = None,
    architecture: str = "",
    variant: str = "",
    system: str = "linux",
) -> dict[str, Any]:
    """An image's config over that of its base: history and layers continued, one step more.

    diff: the new layer's diff id, "" for a step without a layer. Source: moby image.NewChildImage.
    """
    base = base or {}
    created = created or now_text()
    entry: dict[str, Any] = {"created": created}
    if author:
        entry["author"] = author
    if created_by:
        entry["created_by"] = created_by
    if comment:
        entry["comment"] = comment
    diff_ids = list((base.get("rootfs") or {}).get("diff_ids") or [])
    if diff:
        diff_ids.append(diff)
    else:
        entry["empty_layer"] = True
    config: dict[str, Any] = {
        "architecture": architecture or base.get("architecture") or host_architecture(),
        "config": copy.deepcopy(run_config),
        "created": created,
        "docker_version": ENGINE_VERSION,
        "history": [*(base.get("history") or []), entry],
        "os": base.get("os") or system,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    if variant or base.get("variant"):
        config["variant"] = variant or base["variant"]
    if author:
        config["author"] = author
    if comment:
        config["comment"] = comment
    if container:
        config["container"] = container
    if container_config is not None:
        config["container_config"] = container_config
    return config


def copy_layer(store: ImageStore, upper: Path, parent: str, lease: str) -> Layer | None:
    """A copy of a container's upper folder as a layer over the chain `parent`; None where it is empty. In a thread."""
    if not os.listdir(upper):
        return None
    folder = store.layers.new_folder()
    try:
        source: Iterator[bytes] = iter(Packer(upper))
        diff, size, length = store.layers.extract(folder, lambda _: next(source, b""))
        return store.layers.adopt(folder, parent, diff, size, tar_size=length, lease=lease)
    except BaseException:
        store.layers.discard(folder)
        raise


async def commit(
    store: ImageStore,
    container_id: str,
    run_config: dict[str, Any],
    *,
    name: Reference | None = None,
    author: str = "",
    comment: str = "",
    created_by: str = "",
    container_config: dict[str, Any] | None = None,
) -> Image:
    """A container's changes as a new image over the image that it runs.

    run_config: the new image's configuration (the caller merges the container's own with --change). created_by: the
    container's command for the history. The container should be paused meanwhile. Raises NotFound, SystemFailure.
    """
    root = store.rootfs(container_id)
    row = store.database.one("SELECT image, chain FROM uses WHERE container=?", container_id)
    base = store.get(row[0])
    async with store.undertaking() as lease:
        try:
            layer = await in_thread(copy_layer, store, root.upper, row[1], lease.id)
        except OSError as error:
            raise disk_failure(error) from None
        config = make_config(
            base.config if base else None,
            run_config,
            diff=layer.diff if layer else "",
            created_by=created_by,
            comment=comment,
            author=author,
            container=container_id,
            container_config=container_config,
        )
        chain, parent = layer.chain if layer else row[1], base.id if base else ""
        image = store.add(encode(config), chain, parent=parent, tag=name, announce=True)
    return image


async def unpack(store: ImageStore, source: AsyncIterable[bytes], parent: str, lease: str) -> Layer:
    """A tar stream (compressed or not) as a layer over the chain `parent`.

    The layer's digest is that of the tar which we write for its content: nobody knows another yet, and so the tar
    itself need not be kept. Raises SystemFailure with the archive's error.
    """

    def work(read: Callable[[int], bytes]) -> Layer:
        folder = store.layers.new_folder()
        try:
            store.layers.extract(folder, read, hashed=False)
            return store.layers.adopt_tree(folder, parent, hash_tree(folder / "diff"), lease)
        except BaseException:
            store.layers.discard(folder)
            raise

    try:
        return await consume(source, work)
    except (TarError, BrokenStream, ExtractError) as error:
        raise SystemFailure(str(error)) from None
    except OSError as error:
        raise disk_failure(error) from None


async def import_(
    store: ImageStore,
    source: AsyncIterable[bytes],
    *,
    name: Reference | None = None,
    message: str = "",
    run_config: dict[str, Any] | None = None,
    platform: tuple[str, str, str] = ("linux", "", ""),
) -> Image:
    """A root file system's tar as an image of one layer (docker import).

    run_config: what --change made. platform: (os, architecture, variant), "" for this machine's.
    Raises SystemFailure.
    """
    async with store.undertaking() as lease:
        layer = await unpack(store, source, "", lease.id)
        config = make_config(
            None,
            run_config or {},
            diff=layer.diff,
            comment=message,
            architecture=platform[1],
            variant=platform[2],
            system=platform[0] or "linux",
            container_config={},
        )
        image = store.add(encode(config), layer.chain, tag=name)
    store.event("import", image.id)
    return image
