"""The build cache: what a step made, by what went into it.

A key covers the image below and everything that the step depends on; a found image that is no longer there is no hit.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.images.model import Image

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore

# Begins the keys of BuildKit's steps.
KIT = "kit-"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS build_cache(
    key TEXT PRIMARY KEY, image TEXT NOT NULL, description TEXT NOT NULL, size INTEGER NOT NULL, created INTEGER NOT NULL,
    used INTEGER NOT NULL, uses INTEGER NOT NULL) WITHOUT ROWID
"""


# Images that builds of this process use at the moment.
_held: Counter[str] = Counter()


class Hold:
    """The steps of a build under way: no prune takes them before release()."""

    def __init__(self) -> None:
        self._images: list[str] = []

    def add(self, image: str) -> None:
        self._images.append(image)
        _held[image] += 1

    def release(self) -> None:
        for image in self._images:
            _held[image] -= 1
            if not _held[image]:
                del _held[image]
        self._images.clear()


def held() -> set[str]:
    """The ids of images that builds use at the moment."""
    return set(_held)


class BuildCache:
    """The cache of one image store (shared by all engines of the machine, as the images are)."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        if store.database.one("SELECT 1 FROM sqlite_master WHERE name='build_cache'") is None:
            with store.database.write() as connection:
                connection.execute(_SCHEMA)

    @staticmethod
    def key(*parts: Any) -> str:
        """A key of JSON values."""
        return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def get(self, key: str) -> Image | None:
        """The image that a step with this key made."""
        row = self._store.database.one("SELECT image FROM build_cache WHERE key=?", key)
        image = self._store.get(row[0]) if row else None
        if image is not None:
            with self._store.database.write(durable=False) as connection:
                connection.execute("UPDATE build_cache SET used=?, uses=uses+1 WHERE key=?", (time.time_ns(), key))
        return image

    def put(self, key: str, image: str, description: str, size: int) -> None:
        now = time.time_ns()
        with self._store.database.write(durable=False) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO build_cache VALUES(?,?,?,?,?,?,0)", (key, image, description, size, now, now)
            )

    def prune(self) -> None:
        """Forget entries whose image is gone."""
        with self._store.database.write(durable=False) as connection:
            connection.execute("DELETE FROM build_cache WHERE image NOT IN (SELECT id FROM images)")
