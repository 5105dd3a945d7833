"""What the build cache holds, and taking it away."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longshore.engine.build.cache import KIT, BuildCache, held
from longshore.engine.build.folders import REGULAR, Folders
from longshore.engine.errors import EngineError, InvalidParameter
from longshore.engine.images.listing import until_filter
from longshore.engine.images.model import time_text
from longshore.engine.images.streams import in_thread

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore

# What the classic builder made are images like others; only BuildKit's entries are shown as cache.
_OURS = f"key LIKE '{KIT}%'"


def records(store: ImageStore) -> list[dict[str, Any]]:
    """Every entry that is there: id, type, description, size, created, used (ns), uses, in_use, shared, mutable.

    in_use: an image with a name, or a build under way, builds on it; shared: an image with a name does.
    """
    BuildCache(store).prune()
    parents = dict(store.database.all("SELECT id, parent FROM images WHERE parent<>''"))
    named = _line(parents, {row[0] for row in store.database.all("SELECT DISTINCT image FROM names")})
    building = _line(parents, held())
    rows = store.database.all(
        f"SELECT key, image, description, size, created, used, uses FROM build_cache WHERE {_OURS} ORDER BY created"
    )
    steps = [
        {
            "id": key.removeprefix(KIT)[:25],
            "type": REGULAR,
            "image": image,
            "description": description,
            "size": size,
            "created": created,
            "used": last,
            "uses": uses,
            "in_use": image in named or image in building,
            "shared": image in named,
            "mutable": False,
        }
        for key, image, description, size, created, last, uses in rows
    ]
    return steps + Folders(store).records()


def _line(parents: Mapping[str, str], images: Iterable[str]) -> set[str]:
    """Images, and those that they were built on."""
    found: set[str] = set()
    for image in images:
        while image and image not in found:
            found.add(image)
            image = parents.get(image, "")
    return found


def shown_records(store: ImageStore) -> list[dict[str, Any]]:
    """The entries as GET /system/df shows them."""
    return [
        {
            "ID": record["id"],
            "Type": record["type"],
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
    for name, field, wanted in (
        ("inuse", "in_use", True), ("shared", "shared", True), ("private", "shared", False),
        ("mutable", "mutable", True), ("immutable", "mutable", False),
    ):  # fmt: skip
        if filters.get(name) and record[field] is not wanted:
            return False
    kinds = filters.get("type")
    return not kinds or record["type"] in kinds


@dataclass(frozen=True, slots=True)
class Space:
    """How much of the cache may stay, in bytes (0: not said). reserved: this much in any case; most: no more than this;
    free: as much as leaves this much of the disk free.
    """

    reserved: int = 0
    most: int = 0
    free: int = 0

    def kept(self, total: int, free: int) -> int | None:
        """What may stay of a cache of `total` bytes on a disk with `free` bytes left; None: nothing need stay.

        Source: BuildKit cache/manager.go calculateKeepBytes.
        """
        if not (self.reserved or self.most or self.free):
            return None
        kept = self.most
        lacking = self.free - free
        if lacking > 0:
            kept = min(kept, total - lacking) if kept else total - lacking
        elif self.free and not kept:
            kept = total
        return max(kept, self.reserved, 0)


async def prune(
    store: ImageStore,
    *,
    everything: bool = False,
    filters: Mapping[str, Sequence[str]] | None = None,
    space: Space | None = None,
    age: int = 0,
) -> list[dict[str, Any]]:
    """Take away what no named image needs (with `everything` results of definitions too); what went.

    filters: `until` or `unused-for` (age of the last use), `id`, `description`, `type` ... space: what may stay (the oldest
    go first). age: nanoseconds since the last use that an entry must have. Raises InvalidParameter.
    """
    filters = filters or {}
    before = _moment(filters, age)
    gone: list[dict[str, Any]] = []
    every = await in_thread(records, store)
    left = sum(record["size"] for record in every if not record["shared"])
    disk = os.statvfs(store.root)
    kept = (space or Space()).kept(left, disk.f_bavail * disk.f_frsize)
    chosen = [record for record in reversed(every) if not record["in_use"] and accepts(record, filters, before)]
    if kept is not None:
        chosen.sort(key=lambda record: int(record["used"]))
    count = -1
    # A step that others build on goes after these: again, as long as something went.
    while count != len(gone):
        count = len(gone)
        for record in list(chosen):
            if kept is not None and left <= kept:
                break
            if await _remove(store, record):
                chosen.remove(record)
                left -= record["size"]
                gone.append(record)
                if kept is not None:
                    break
    BuildCache(store).prune()
    if everything and not filters and kept is None and not age:
        with store.database.write() as connection:
            connection.execute(f"DELETE FROM build_cache WHERE {_OURS}")
            connection.execute("DELETE FROM uses WHERE owner='definitions'")
        await in_thread(_unused_layers, store)
    return gone


def _moment(filters: Mapping[str, Sequence[str]], age: int) -> int | None:
    """Before which time an entry must have been used last (ns). Raises InvalidParameter."""
    until, unused = filters.get("until") or (), filters.get("unused-for") or ()
    if until and unused:
        raise InvalidParameter('conflicting filters: "until" and "unused-for"')
    if len(until) > 1 or len(unused) > 1:
        raise InvalidParameter("filters expect only one value")
    if age:
        return time.time_ns() - age
    return until_filter({"until": until or unused}, time.time_ns()) if until or unused else None


async def _remove(store: ImageStore, record: dict[str, Any]) -> bool:
    if record.get("folder"):
        return await in_thread(Folders(store).remove, record["folder"])
    if store.get(record["image"]) is not None:
        try:
            await store.remove(record["image"], prune=False)
        except EngineError:
            return False
    return True


def _unused_layers(store: ImageStore) -> None:
    """Layers that only results of definitions needed."""
    rows = store.database.all("SELECT chain FROM layers WHERE chain NOT IN (SELECT chain FROM images)")
    for (chain,) in rows:
        store.layers.remove_unused(chain)
