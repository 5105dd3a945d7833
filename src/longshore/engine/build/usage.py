"""What the build cache holds, and taking it away."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longshore.engine.build.cache import KIT, BuildCache
from longshore.engine.errors import EngineError
from longshore.engine.images.extract import remove_path
from longshore.engine.images.listing import until_filter
from longshore.engine.images.model import time_text
from longshore.engine.images.streams import in_thread

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore

# What the classic builder made are images like others; only BuildKit's entries are shown as cache.
_OURS = f"key LIKE '{KIT}%'"


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
        f"SELECT key, image, description, size, created, used, uses FROM build_cache WHERE {_OURS} ORDER BY created"
    )
    return [
        {
            "id": key.removeprefix(KIT)[:25],
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


def shown_records(store: ImageStore) -> list[dict[str, Any]]:
    """The entries as GET /system/df shows them."""
    return [
        {
            "ID": record["id"],
            "Type": "regular",
            "Description": record["description"],
            "InUse": record["in_use"],
            "Shared": record["shared"],
            "Size": record["size"],
            "CreatedAt": time_text(record["created"]),
            "LastUsedAt": time_text(record["used"]),
            "UsageCount": record["uses"],
        }
        for record in records(store)
    ]


def kit_filters(texts: Sequence[str]) -> dict[str, list[str]]:
    """BuildKit's filters ("type==regular", "id~=abc") by name. Raises InvalidParameter."""
    found: dict[str, list[str]] = {}
    for text in texts:
        for term in text.split(","):
            name, operator, value = re.split(r"(==|~=|!=|$)", term, maxsplit=1)[:3] if term else ("", "", "")
            if not name:
                continue
            if operator == "" and name in ("inuse", "mutable", "immutable", "shared", "private"):
                value = "true"
            found.setdefault(name.strip().lower(), []).append(value.strip().strip('"'))
    return found


def accepts(record: dict[str, Any], filters: Mapping[str, Sequence[str]], before: int | None = None) -> bool:
    """Does a record fit the filters (and was last used before a moment)?"""
    if before is not None and record["used"] > before:
        return False
    for name, field in (("id", "id"), ("description", "description")):
        values = filters.get(name)
        if values and not any(value in record[field] for value in values):
            return False
    for name, field, wanted in (("inuse", "in_use", True), ("shared", "shared", True), ("private", "shared", False)):
        if filters.get(name) and record[field] is not wanted:
            return False
    kinds = filters.get("type")
    return not kinds or "regular" in kinds


@dataclass(frozen=True, slots=True)
class Space:
    """How much of the cache may stay, in bytes (0: not said). reserved: this much in any case; most: no more than this;
    free: as much as leaves this much of the disk free.
    """

    reserved: int = 0
    most: int = 0
    free: int = 0

    def kept(self, total: int, free: int) -> int:
        """What may stay of a cache of `total` bytes on a disk with `free` bytes left; 0: nothing need stay.

        Source: BuildKit cache/manager.go calculateKeepBytes.
        """
        kept = self.most
        lacking = self.free - free
        if lacking > 0:
            kept = min(kept, total - lacking) if kept else total - lacking
        return max(kept, self.reserved, 0)


async def prune(
    store: ImageStore,
    *,
    everything: bool = False,
    filters: Mapping[str, Sequence[str]] | None = None,
    space: Space | None = None,
) -> list[dict[str, Any]]:
    """Take away what no named image needs (and with `everything` the folders of cache mounts); what went.

    filters: `until` or `unused-for` (age of the last use), `id`, `description`, `type`. space: what may stay (the oldest go
    first). Raises InvalidParameter.
    """
    filters = filters or {}
    age = filters.get("until") or filters.get("unused-for")
    before = until_filter({"until": age}, time.time_ns()) if age else None
    gone: list[dict[str, Any]] = []
    every = records(store)
    left = sum(record["size"] for record in every)
    disk = os.statvfs(store.root)
    kept = (space or Space()).kept(left, disk.f_bavail * disk.f_frsize)
    for record in reversed(every):
        if record["in_use"] or not accepts(record, filters, before):
            continue
        if kept and left <= kept:
            break
        left -= record["size"]
        if store.get(record["image"]) is not None:
            try:
                await store.remove(record["image"], prune=False)
            except EngineError:
                continue
        gone.append(record)
    BuildCache(store).prune()
    if everything and not filters and not kept:
        with store.database.write() as connection:
            connection.execute(f"DELETE FROM build_cache WHERE {_OURS}")
            connection.execute("DELETE FROM uses WHERE owner='definitions'")
        await in_thread(remove_path, store.root / "buildcache")
        await in_thread(_unused_layers, store)
    return gone


def _unused_layers(store: ImageStore) -> None:
    """Layers that only results of definitions needed."""
    rows = store.database.all("SELECT chain FROM layers WHERE chain NOT IN (SELECT chain FROM images)")
    for (chain,) in rows:
        store.layers.remove_unused(chain)
