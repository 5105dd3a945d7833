"""What a registry holds: blobs as files by their digest; repositories, manifests and tags in SQLite.

A blob belongs to a repository by a link. Links carry the time when somebody last asked for the blob, so that garbage
collection may run while clients are between "do you have this?" and the manifest that needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longshore.machinery.sqlite import Database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs(digest TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS links(repository TEXT, digest TEXT, touched INTEGER NOT NULL, PRIMARY KEY(repository, digest))
    WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS links_digest ON links(digest);
CREATE TABLE IF NOT EXISTS manifests(
    repository TEXT, digest TEXT, media TEXT NOT NULL, subject TEXT NOT NULL, artifact TEXT NOT NULL,
    annotations BLOB NOT NULL, body BLOB NOT NULL, pushed INTEGER NOT NULL, PRIMARY KEY(repository, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS manifests_subject ON manifests(repository, subject);
CREATE TABLE IF NOT EXISTS needs(repository TEXT, manifest TEXT, digest TEXT, PRIMARY KEY(repository, manifest, digest))
    WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS needs_digest ON needs(repository, digest);
CREATE TABLE IF NOT EXISTS tags(repository TEXT, tag TEXT, digest TEXT NOT NULL, PRIMARY KEY(repository, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads(id TEXT PRIMARY KEY, repository TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tags_digest ON tags(repository, digest);
"""

_DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")


def is_digest(text: str) -> bool:
    """A well-formed digest of an algorithm that this registry can verify."""
    return _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Manifest:
    digest: str
    media: str
    body: bytes


class Storage(Database):
    """The content below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uploads = root / "uploads"
        for folder in (self.uploads, root / "blobs" / "sha256", root / "blobs" / "sha512"):
            folder.mkdir(parents=True, exist_ok=True)
        super().__init__(root / "registry.db", _SCHEMA)

    # -- blobs ---------------------------------------------------------------------------------------------------

    def blob_path(self, digest: str) -> Path:
        algorithm, _, text = digest.partition(":")
        return self.root / "blobs" / algorithm / text[:2] / text

    def blob_size(self, repository: str, digest: str, *, touch: bool = False) -> int | None:
        """The length of a blob that the repository has, None where it has not. touch: it is about to be needed."""
        row = self.one(
            "SELECT blobs.size, links.touched FROM links JOIN blobs USING(digest) WHERE repository=? AND links.digest=?",
            repository,
            digest,
        )
        if row is None:
            return None
        now = int(time.time())
        if touch and now - row[1] > 60:
            with self.write() as connection:
                connection.execute(
                    "UPDATE links SET touched=? WHERE repository=? AND digest=?", (now, repository, digest)
                )
        return int(row[0])

    def size_of(self, digest: str) -> int:
        """A blob's length whoever has it, 0 where nobody has."""
        row = self.one("SELECT size FROM blobs WHERE digest=?", digest)
        return int(row[0]) if row else 0

    def usage(self, repository: str) -> int:
        """Bytes of the blobs that a repository has (one that others have as well counts for each)."""
        row = self.one("SELECT SUM(blobs.size) FROM links JOIN blobs USING(digest) WHERE repository=?", repository)
        return int(row[0] or 0)

    def place(self, source: Path, fd: int, digest: str, repository: str, size: int) -> None:
        """Give uploaded content its good name and the repository its link: flushed first, then in one transaction.

        The file is renamed inside the transaction, so that garbage collection never meets one without its row.
        """
        os.fsync(fd)
        target = self.blob_path(digest)
        target.parent.mkdir(exist_ok=True)
        with self.write() as connection:
            os.rename(source, target)
            for folder in (target.parent, target.parent.parent):
                handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
            connection.execute("INSERT OR IGNORE INTO blobs VALUES(?,?)", (digest, size))
            connection.execute("INSERT OR REPLACE INTO links VALUES(?,?,?)", (repository, digest, int(time.time())))

    def begin_upload(self, upload_id: str, repository: str) -> None:
        with self.write() as connection:
            connection.execute("INSERT INTO uploads VALUES(?,?)", (upload_id, repository))

    def upload_repository(self, upload_id: str) -> str | None:
        row = self.one("SELECT repository FROM uploads WHERE id=?", upload_id)
        return row[0] if row else None

    def end_upload(self, upload_id: str) -> None:
        with self.write() as connection:
            connection.execute("DELETE FROM uploads WHERE id=?", (upload_id,))

    def mount(self, repository: str, source: str, digest: str) -> bool:
        """Let `repository` have a blob of `source` ("": of any); False where there is none."""
        with self.write() as connection:
            if source:
                row = connection.execute(
                    "SELECT 1 FROM links WHERE repository=? AND digest=?", (source, digest)
                ).fetchone()
            else:
                row = connection.execute("SELECT 1 FROM links WHERE digest=?", (digest,)).fetchone()
            if row is None:
                return False
            connection.execute("INSERT OR REPLACE INTO links VALUES(?,?,?)", (repository, digest, int(time.time())))
            return True

    def unlink(self, repository: str, digest: str) -> bool:
        with self.write() as connection:
            done = connection.execute(
                "DELETE FROM links WHERE repository=? AND digest=?", (repository, digest)
            ).rowcount
        return done > 0

    # -- manifests -----------------------------------------------------------------------------------------------

    def exists(self, repository: str) -> bool:
        return (
            self.one("SELECT 1 FROM manifests WHERE repository=? LIMIT 1", repository) is not None
            or self.one("SELECT 1 FROM links WHERE repository=? LIMIT 1", repository) is not None
        )

    def manifest(self, repository: str, reference: str) -> Manifest | None:
        """A manifest by tag or digest."""
        if not is_digest(reference):
            row = self.one("SELECT digest FROM tags WHERE repository=? AND tag=?", repository, reference)
            if row is None:
                return None
            reference = row[0]
        row = self.one(
            "SELECT digest, media, body FROM manifests WHERE repository=? AND digest=?", repository, reference
        )
        return Manifest(*row) if row else None

    def put_manifest(
        self,
        repository: str,
        tags: Sequence[str],
        manifest: Manifest,
        *,
        blobs: Sequence[str] = (),
        manifests: Sequence[str] = (),
        subject: str = "",
        artifact: str = "",
        annotations: bytes = b"",
        sparse: bool = False,
    ) -> str:
        """Keep a manifest under its tags, with the blobs and manifests that it needs. Nothing is kept where the repository has
        not all of them: the digest of one that is missing ("" for none). sparse: keep it all the same.
        """
        with self.write() as connection:
            # In the same transaction: garbage collection cannot take one away in between.
            gone = "" if sparse else _missing(connection, repository, blobs, manifests)
            if gone:
                return gone
            connection.execute(
                "INSERT OR REPLACE INTO manifests VALUES(?,?,?,?,?,?,?,?)",
                (
                    repository,
                    manifest.digest,
                    manifest.media,
                    subject,
                    artifact,
                    annotations,
                    manifest.body,
                    int(time.time()),
                ),
            )
            connection.execute("DELETE FROM needs WHERE repository=? AND manifest=?", (repository, manifest.digest))
            connection.executemany(
                "INSERT OR IGNORE INTO needs VALUES(?,?,?)",
                [(repository, manifest.digest, digest) for digest in (*blobs, *manifests)],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO tags VALUES(?,?,?)", [(repository, tag, manifest.digest) for tag in tags]
            )
        return ""

    def delete_manifest(self, repository: str, digest: str) -> bool:
        """Remove a manifest and the tags that mean it."""
        with self.write() as connection:
            done = connection.execute(
                "DELETE FROM manifests WHERE repository=? AND digest=?", (repository, digest)
            ).rowcount
            connection.execute("DELETE FROM needs WHERE repository=? AND manifest=?", (repository, digest))
            connection.execute("DELETE FROM tags WHERE repository=? AND digest=?", (repository, digest))
        return done > 0

    def delete_tag(self, repository: str, tag: str) -> bool:
        with self.write() as connection:
            return connection.execute("DELETE FROM tags WHERE repository=? AND tag=?", (repository, tag)).rowcount > 0

    def tags(self, repository: str, last: str, limit: int) -> list[str]:
        rows = self.all(
            "SELECT tag FROM tags WHERE repository=? AND tag>? ORDER BY tag LIMIT ?", repository, last, limit
        )
        return [row[0] for row in rows]

    def repositories(self, last: str, limit: int) -> list[str]:
        rows = self.all(
            "SELECT DISTINCT repository FROM manifests WHERE repository>? ORDER BY repository LIMIT ?", last, limit
        )
        return [row[0] for row in rows]

    def referrers(self, repository: str, digest: str) -> list[tuple[str, str, str, bytes, int]]:
        """(digest, media type, artifact type, annotations as JSON, size) of the manifests about `digest`."""
        return [
            tuple(row)
            for row in self.all(
                "SELECT digest, media, artifact, annotations, LENGTH(body) FROM manifests "
                "WHERE repository=? AND subject=? ORDER BY pushed, digest",
                repository,
                digest,
            )
        ]

    # -- garbage -------------------------------------------------------------------------------------------------

    def collect(self, *, grace: int, untagged: bool = False, upload_grace: int = 86400) -> dict[str, int]:
        """Remove what no manifest needs and nobody asked for within `grace` seconds; safe while the registry serves.

        untagged: manifests without a tag, an index over them or a subject go too. Returns counts and bytes freed.
        """
        now = int(time.time())
        manifests = links = blobs = freed = 0
        if untagged:
            with self.write() as connection:
                rows = connection.execute(
                    "SELECT repository, digest FROM manifests m WHERE pushed<? AND subject='' "
                    "AND NOT EXISTS(SELECT 1 FROM tags t WHERE t.repository=m.repository AND t.digest=m.digest) "
                    "AND NOT EXISTS(SELECT 1 FROM needs n WHERE n.repository=m.repository AND n.digest=m.digest)",
                    (now - grace,),
                ).fetchall()
                for repository, digest in rows:
                    connection.execute("DELETE FROM manifests WHERE repository=? AND digest=?", (repository, digest))
                    connection.execute("DELETE FROM needs WHERE repository=? AND manifest=?", (repository, digest))
                manifests = len(rows)
        with self.write() as connection:
            links = connection.execute(
                "DELETE FROM links WHERE touched<? AND NOT EXISTS(SELECT 1 FROM needs n "
                "WHERE n.repository=links.repository AND n.digest=links.digest)",
                (now - grace,),
            ).rowcount
        rows = self.all(
            "SELECT digest, size FROM blobs WHERE NOT EXISTS(SELECT 1 FROM links WHERE links.digest=blobs.digest)"
        )
        for digest, size in rows:
            # One short transaction a blob: uploads go on in between, and one that brings the blob back is seen.
            with self.write() as connection:
                if connection.execute("SELECT 1 FROM links WHERE digest=? LIMIT 1", (digest,)).fetchone():
                    continue
                connection.execute("DELETE FROM blobs WHERE digest=?", (digest,))
                self.blob_path(digest).unlink(missing_ok=True)
            blobs, freed = blobs + 1, freed + size
        orphans = self._orphans()
        for path in self.uploads.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - upload_grace:
                    path.unlink()
        # The file of an upload is there before its row, and goes before it: a row alone is of a registry that was killed.
        for (upload_id,) in self.all("SELECT id FROM uploads"):
            if not (self.uploads / upload_id).exists():
                self.end_upload(upload_id)
        self.shrink()
        return {"manifests": manifests, "links": links, "blobs": blobs + orphans[0], "bytes": freed + orphans[1]}

    def _orphans(self) -> tuple[int, int]:
        """Remove files that got their good name from a registry that was killed before it wrote their row; count, bytes."""
        known = {row[0] for row in self.all("SELECT digest FROM blobs")}
        count = freed = 0
        for algorithm in ("sha256", "sha512"):
            for path in (self.root / "blobs" / algorithm).glob("??/*"):
                digest = f"{algorithm}:{path.name}"
                if digest in known:
                    continue
                # Who places a blob holds the lock from the new name to the row: one without a row now is nobody's.
                with self.write() as connection:
                    if connection.execute("SELECT 1 FROM blobs WHERE digest=?", (digest,)).fetchone() is None:
                        freed += path.stat().st_size
                        path.unlink()
                        count += 1
        return count, freed


def _missing(connection: sqlite3.Connection, repository: str, blobs: Sequence[str], manifests: Sequence[str]) -> str:
    """The first of the digests that the repository has not."""
    for digest in blobs:
        if not connection.execute(
            "SELECT 1 FROM links WHERE repository=? AND digest=?", (repository, digest)
        ).fetchone():
            return digest
    for digest in manifests:
        row = connection.execute("SELECT 1 FROM manifests WHERE repository=? AND digest=?", (repository, digest))
        if not row.fetchone():
            return digest
    return ""


def digest_of(body: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:" + hashlib.new(algorithm, body).hexdigest()
