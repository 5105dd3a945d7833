"""SOURCE_DATE_EPOCH in what is exported: no time of an image, or of a file in its layers, after it.

Source: BuildKit exporter/containerimage (writer.go), util/converter/tarconverter; reproducible-builds.org.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.images.extract import remove_path
from longshore.engine.images.model import Image, encode, parse_time, time_text
from longshore.engine.images.pack import hash_tree

if TYPE_CHECKING:
    from longshore.engine.images.layers import Layer
    from longshore.engine.images.leases import Lease
    from longshore.engine.images.store import ImageStore


def clamped(
    store: ImageStore, image: Image, epoch: int, lease: Lease, *, layers: bool, bases: Iterable[Image]
) -> Image:
    """An image whose times are not after `epoch` (seconds). layers: the files' too, but of those that a base has.

    In a thread. Raises OSError.
    """
    config = dict(image.config)
    moment = epoch * 10**9
    _clamp(config, moment)
    config["history"] = [_clamp(dict(entry), moment) for entry in config.get("history") or []]
    chain = image.chain
    if layers:
        kept = max(
            (len(base.diff_ids) for base in bases if image.diff_ids[: len(base.diff_ids)] == base.diff_ids), default=0
        )
        stack = list(reversed(store.layers.stack(chain)))
        chain = stack[kept - 1].chain if kept else ""
        for layer in stack[kept:]:
            chain = _layer(store, layer, chain, moment, lease).chain
        diffs = [layer.diff for layer in reversed(store.layers.stack(chain))]
        config["rootfs"] = {"type": "layers", "diff_ids": diffs}
    if config == image.config:
        return image
    return store.add(encode(config), chain, parent=image.parent)


def _clamp(entry: dict[str, Any], moment: int) -> dict[str, Any]:
    created = entry.get("created")
    if created and parse_time(created) > moment:
        entry["created"] = time_text(moment)
    return entry


def _layer(store: ImageStore, layer: Layer, parent: str, moment: int, lease: Lease) -> Layer:
    """A copy of a layer over another chain, its files' times clamped."""
    folder = store.layers.new_folder()
    try:
        pieces = iter(store.layers.tar(layer))
        store.layers.extract(folder, lambda _: next(pieces, b""), hashed=False)
        _touch(folder / "diff", moment)
        return store.layers.adopt_tree(folder, parent, hash_tree(folder / "diff"), lease.id)
    except BaseException:
        remove_path(folder)
        raise


def _touch(root: Path, moment: int) -> None:
    for folder, folders, names in os.walk(root, topdown=False):
        for name in (*names, *folders):
            path = os.path.join(folder, name)
            if os.lstat(path).st_mtime_ns > moment:
                os.utime(path, ns=(moment, moment), follow_symlinks=False)
    if os.stat(root).st_mtime_ns > moment:
        os.utime(root, ns=(moment, moment))
