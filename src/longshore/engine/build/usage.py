"""What the build cache holds, and taking it away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshore.engine.build.cache import BuildCache
from longshore.engine.errors import EngineError
from longshore.engine.images.extract import remove_path
from longshore.engine.images.streams import in_thread

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore


def records(store: ImageStore) -> list[dict[str, Any]]:
    """Every entry whose image is there: id, description, size, created, used (ns), uses, in_use, shared.

    in_use: an image with a name builds on it; shared: more than one image does.
    """
    BuildCache(store).prune()
    parents: dict[str, list[str]] = {}
    for image, parent in store.database.all("SELECT id, parent FROM images WHERE parent<>''"):
        parents.setdefault(parent, []).append(image)
    named = {row[0] for row in store.database.all("SELECT DISTINCT image FROM names")}
    used: dict[str, bool] = {}

    def needed(image: str) -> bool:
        if image not in used:
            used[image] = image in named
            used[image] = used[image] or any(needed(child) for child in parents.get(image, ()))
        return used[image]

    rows = store.database.all(
        "SELECT key, image, description, size, created, used, uses FROM build_cache ORDER BY created"
    )
    return [
        {
            "id": key[:25],
            "image": image,
            "description": description,
            "size": size,
            "created": created,
            "used": last,
            "uses": uses,
            "in_use": needed(image),
            "shared": needed(image),
        }
        for key, image, description, size, created, last, uses in rows
    ]


async def prune(store: ImageStore, *, everything: bool = False) -> list[dict[str, Any]]:
    """Take away what no named image needs (and with `everything` the folders of cache mounts); what went."""
    gone: list[dict[str, Any]] = []
    for record in reversed(records(store)):
        if record["in_use"]:
            continue
        if store.get(record["image"]) is not None:
            try:
                await store.remove(record["image"], prune=False)
            except EngineError:
                continue
        gone.append(record)
    with store.database.write() as connection:
        connection.execute("DELETE FROM build_cache WHERE image NOT IN (SELECT id FROM images)")
        if everything:
            connection.execute("DELETE FROM build_cache")
    if everything:
        await in_thread(remove_path, store.root / "buildcache")
    return gone
