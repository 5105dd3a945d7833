"""Names in the store's tables: which image a name means, and which index it stands for. Each call is part of a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from longshore.engine.errors import NotFound
from longshore.engine.images.references import Reference


def give(connection: sqlite3.Connection, name: Reference, image_id: str, tagged: int = 0, index: str = "") -> None:
    """A name means an image from now on. tagged: nanoseconds (0: not a tag of a user's). index: the digest of the index that
    the name stands for, where members of it are here. Raises NotFound for an image that was pruned meanwhile.
    """
    if connection.execute("SELECT 1 FROM images WHERE id=?", (image_id,)).fetchone() is None:
        raise NotFound(f"No such image: {image_id}")
    connection.execute(
        "INSERT OR REPLACE INTO names VALUES(?,?,?,?,?)", (str(name), name.repository, name.tag, name.digest, image_id)
    )
    connection.execute("DELETE FROM indexes WHERE name=?", (str(name),))
    if index:
        connection.execute(
            "INSERT INTO indexes SELECT ?, digest FROM members WHERE digest=? LIMIT 1", (str(name), index)
        )
    if tagged:
        connection.execute("UPDATE images SET tagged=? WHERE id=?", (tagged, image_id))


def take(connection: sqlite3.Connection, name: Reference) -> None:
    """A name is gone."""
    connection.execute("DELETE FROM names WHERE name=?", (str(name),))
    connection.execute("DELETE FROM indexes WHERE name=?", (str(name),))


def needed(connection: sqlite3.Connection, image_id: str) -> bool:
    """Whether an image has a name or a container."""
    found = "SELECT 1 FROM names WHERE image=?1 UNION ALL SELECT 1 FROM uses WHERE image=?1 LIMIT 1"
    return connection.execute(found, (image_id,)).fetchone() is not None


def remember(connection: sqlite3.Connection, index: str, members: Mapping[str, str]) -> None:
    """Images of an index are here: the digest of each one's manifest to its id."""
    connection.executemany(
        "INSERT OR REPLACE INTO members VALUES(?,?,?)",
        [(index, manifest, image) for manifest, image in members.items()],
    )


def drop(connection: sqlite3.Connection, image_id: str) -> None:
    """An image goes: it has no names and manifests and is a member of nothing; an index without members is forgotten."""
    connection.execute("DELETE FROM indexes WHERE name IN (SELECT name FROM names WHERE image=?)", (image_id,))
    connection.execute("DELETE FROM names WHERE image=?", (image_id,))
    indexes = connection.execute("SELECT digest FROM members WHERE image=?", (image_id,)).fetchall()
    connection.execute("DELETE FROM members WHERE image=?", (image_id,))
    for index in indexes:
        left = connection.execute("SELECT image FROM members WHERE digest=? LIMIT 1", index).fetchone()
        if left is None:
            connection.execute("DELETE FROM indexes WHERE digest=?", index)
        else:
            # The index's document was kept with this image; it goes with another's from now on.
            connection.execute("UPDATE manifests SET image=? WHERE digest=?", (left[0], index[0]))
    connection.execute("DELETE FROM manifests WHERE image=?", (image_id,))
