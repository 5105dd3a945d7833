"""Layers: each unpacked once into a folder that overlay mounts use as a lower folder.

A layer's folder has a name of its own (not its chain id), so that one that is being removed and one that is being added
again never meet. What is being unpacked lies under a name that tells its process; a start removes what no row knows.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from longshore.engine.errors import SystemFailure
from longshore.engine.images import compression
from longshore.engine.images.blobs import Blobs, DigestMismatch
from longshore.engine.images.database import Database, own_process, process_start
from longshore.engine.images.extract import Extractor, remove_path
from longshore.engine.images.flushing import Flusher
from longshore.engine.images.leases import add_lease, leased
from longshore.engine.images.pack import Packer, Tree, hash_tree
from longshore.engine.images.streams import passed
from longshore.wire.tar import TarReader

log = logging.getLogger("longshore.engine.images")
_PIECE = 1 << 18
_LINK = 12
# A file system that runs full stops everybody: unpacking ends before that.
_SPARE_SPACE = 64 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer in its place. chain: its chain id; diff: the digest of its tar; size: bytes of file content.

    blob: the digest of the content it came from ("" when it was made here), with media type and length.
    tar_size: length of its tar, uncompressed (0: not known).
    """

    chain: str
    diff: str
    parent: str
    size: int
    blob: str
    media: str
    blob_size: int
    folder: str
    tar_size: int = 0


def chain_id(parent: str, diff: str) -> str:
    """The id of a stack of layers. Source: OCI image-spec config.md, "Layer ChainID"."""
    return diff if not parent else "sha256:" + hashlib.sha256(f"{parent} {diff}".encode()).hexdigest()


class HashingReader:
    """A read callable that hashes what passes."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._hash = hashlib.sha256()
        self.size = 0

    def __call__(self, limit: int) -> bytes:
        data = self._read(limit)
        self.size += len(data)
        self._hash.update(data)
        passed(len(data))
        return data

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


class Layers:
    """The layers below `root`."""

    def __init__(self, root: Path, database: Database, blobs: Blobs) -> None:
        self._database, self._blobs = database, blobs
        self.folder = root / "overlay2"
        self.flusher = Flusher(database, self.folder)
        self._links = root / "l"
        self.folder.mkdir(mode=0o710, parents=True, exist_ok=True)
        self._links.mkdir(mode=0o710, exist_ok=True)

    # -- reading -------------------------------------------------------------------------------------------------

    def get(self, chain: str) -> Layer | None:
        row = self._database.one("SELECT * FROM layers WHERE chain=?", chain)
        return Layer(*row) if row else None

    def stack(self, chain: str) -> list[Layer]:
        """The layer and all below it, top first. Raises SystemFailure where one is missing."""
        found: list[Layer] = []
        while chain:
            layer = self.get(chain)
            if layer is None:
                raise SystemFailure(f"layer does not exist: {chain}")
            found.append(layer)
            chain = layer.parent
        return found

    def diff_path(self, layer: Layer) -> Path:
        return self.folder / layer.folder / "diff"

    def link_path(self, layer: Layer) -> str:
        """A short name for the same folder: mount options are limited to a page."""
        return str(self._links / layer.folder[:_LINK])

    def total_size(self, chain: str) -> int:
        return sum(layer.size for layer in self.stack(chain))

    def tar(self, layer: Layer) -> Iterator[bytes]:
        """The layer's tar, uncompressed, with the bytes that its digest names. Raises DigestMismatch at the end."""
        if not (layer.blob and self._blobs.has(layer.blob)):
            yield from self._packed(layer)
            return
        digest = hashlib.sha256()
        with open(self._blobs.path(layer.blob), "rb") as file:
            read = compression.reader(file.read)
            while data := read(_PIECE):
                digest.update(data)
                yield data
        if "sha256:" + digest.hexdigest() != layer.diff:
            raise _changed(layer)

    def _packed(self, layer: Layer) -> Iterator[bytes]:
        """The tar of a layer's files. Where their seal is still that of the last time, the digest is not made once more: it
        costs as much as all the rest."""
        sealed = self._database.one("SELECT seal FROM seals WHERE chain=?", layer.chain)
        packer = Packer(self.diff_path(layer))
        digest = hashlib.sha256()
        for data in packer:
            if sealed is None:
                digest.update(data)
            yield data
        if sealed is not None and sealed[0] == packer.seal:
            return
        found = "sha256:" + digest.hexdigest() if sealed is None else hash_tree(self.diff_path(layer)).diff
        if found != layer.diff:
            raise _changed(layer)
        with self._database.write(durable=False) as connection:
            _seal(connection, layer.chain, packer.seal)

    # -- adding --------------------------------------------------------------------------------------------------

    def new_folder(self) -> Path:
        """A folder to unpack into (its `diff`); adopt() or discard() ends it."""
        pid, start = own_process()
        folder = self.folder / f"tmp-{pid}-{start}-{secrets.token_hex(8)}"
        (folder / "diff").mkdir(mode=0o755, parents=True)
        os.chmod(folder / "diff", 0o755)
        return folder

    def discard(self, folder: Path) -> None:
        remove_path(folder)

    def extract(self, folder: Path, read: Callable[[int], bytes], *, hashed: bool = True) -> tuple[str, int, int]:
        """Unpack a tar stream (compressed or plain) into folder/diff; (diff id, bytes of content, length of the tar). In a
        thread.

        hashed: False leaves the diff id out ("").
        Raises tar.TarError, compression.BrokenStream, extract.ExtractError, OSError.
        """
        unpacked = compression.reader(read)
        plain = HashingReader(unpacked)
        space = os.statvfs(folder)
        reader = TarReader(plain if hashed else unpacked)
        with Extractor(folder / "diff", limit=max(0, space.f_bavail * space.f_frsize - _SPARE_SPACE)) as extractor:
            extractor.extract(reader)
            reader.drain()
            return plain.digest if hashed else "", extractor.size, plain.size

    def adopt(
        self,
        folder: Path,
        parent: str,
        diff: str,
        size: int,
        *,
        tar_size: int = 0,
        blob: str = "",
        media: str = "",
        blob_size: int = 0,
        lease: str = "",
        seal: int = 0,
    ) -> Layer:
        """Make an unpacked folder a layer over `parent`; one that is there already wins, and the folder goes.

        lease: holds the new layer until the lease ends. seal: that of the files, when they were packed to get the digest.
        """
        chain = chain_id(parent, diff)
        name = secrets.token_hex(32)
        # On the disk with the next durable write: that of the name by which somebody learns of it.
        with self._database.write(durable=False) as connection:
            if lease:
                add_lease(connection, lease, chain)
            row = connection.execute("SELECT * FROM layers WHERE chain=?", (chain,)).fetchone()
            if row is None:
                os.rename(folder, self.folder / name)
                os.symlink(f"../overlay2/{name}/diff", self._links / name[:_LINK])
                layer = Layer(chain, diff, parent, size, blob, media, blob_size, name, tar_size)
                connection.execute(
                    "INSERT INTO layers VALUES(?,?,?,?,?,?,?,?,?)",
                    (chain, diff, parent, size, blob, media, blob_size, name, tar_size),
                )
                self.flusher.mark(connection, chain)
                if seal:
                    _seal(connection, chain, seal)
        if row is None:
            self.flusher.schedule()
            return layer
        self.discard(folder)
        return Layer(*row)

    def adopt_tree(self, folder: Path, parent: str, tree: Tree, lease: str = "") -> Layer:
        """adopt() of a folder whose digest is that of the tar which we write for it."""
        return self.adopt(folder, parent, tree.diff, tree.size, tar_size=tree.length, lease=lease, seal=tree.seal)

    # -- removing ------------------------------------------------------------------------------------------------

    def remove_unused(self, chain: str) -> list[Layer]:
        """Remove a layer and those below it that nothing needs any more; the removed, top first."""
        with self._database.write() as connection:
            gone = self.forget_unused(connection, chain)
        self.take_away(gone)
        return gone

    def forget_unused(self, connection: sqlite3.Connection, chain: str) -> list[Layer]:
        """remove_unused(), as part of the transaction that ends a need of the layer; take_away() follows it."""
        gone: list[Layer] = []
        while chain and not _in_use(connection, chain):
            row = connection.execute("SELECT * FROM layers WHERE chain=?", (chain,)).fetchone()
            if row is None:
                break
            layer = Layer(*row)
            _delete(connection, chain)
            gone.append(layer)
            chain = layer.parent
        return gone

    def take_away(self, gone: list[Layer]) -> None:
        """Remove the files of layers that were forgotten. Killed before, the next start does it (sweep)."""
        for layer in gone:
            self._take_away(layer)

    def give_back(self, keys: Iterable[str]) -> None:
        """Remove what work that came to nothing had held: those of the layers and blobs that nothing else needs. Blocking."""
        for key in keys:
            self.remove_unused(key)
            self.remove_blob_unused(key)

    def _take_away(self, layer: Layer) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._links / layer.folder[:_LINK])
        remove_path(self.folder / layer.folder)
        if layer.blob:
            self.remove_blob_unused(layer.blob)

    def remove_blob_unused(self, digest: str) -> int:
        """Remove a blob unless a layer or a living lease needs it; bytes freed."""
        with self._database.write() as connection:
            if connection.execute("SELECT 1 FROM layers WHERE blob=? LIMIT 1", (digest,)).fetchone():
                return 0
            if leased(connection, digest):
                return 0
            return self._blobs.remove(digest)

    def repair(self) -> list[str]:
        """After a lost power supply: the layers that may not be whole are unpacked again, or checked; those that are broken
        go, with all above them and their images. Returns the chain ids of what went.
        """
        if not self.flusher.doubtful():
            return []
        # Engines of several nodes may start at once: one of them repairs, the others wait for it.
        lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self._repair()
        finally:
            os.close(lock)

    def _repair(self) -> list[str]:
        doubtful = self.flusher.doubtful()
        broken: list[str] = []
        for chain in doubtful:
            layer = self.get(chain)
            if layer is None:
                continue
            try:
                whole = self._again(layer) if self._blobs.has(layer.blob) else self._is_whole(layer)
            except (OSError, ValueError) as error:
                log.warning("layer %s: %s", layer.diff, error)
                whole = False
            if whole:
                with contextlib.suppress(FileExistsError):
                    os.symlink(f"../overlay2/{layer.folder}/diff", self._links / layer.folder[:_LINK])
            else:
                broken.append(chain)
        gone = self._forget(broken)
        for chain in gone:
            log.warning("layer %s was not on the disk when the machine stopped: it and its images are removed", chain)
        self.flusher.settle(doubtful)
        return gone

    def _is_whole(self, layer: Layer) -> bool:
        """Do a layer's files still make its digest?"""
        return hash_tree(self.diff_path(layer)).diff == layer.diff

    def _again(self, layer: Layer) -> bool:
        """Unpack a layer from its blob once more, into a new folder in the place of the old one."""
        folder = self.new_folder()
        try:
            with open(self._blobs.path(layer.blob), "rb", buffering=0) as file:
                diff, _, _ = self.extract(folder, file.read)
            if diff != layer.diff:
                return False
            old = self.folder / f"{layer.folder}.old"
            remove_path(old)
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.folder / layer.folder, old)
            os.rename(folder, self.folder / layer.folder)
            remove_path(old)
        finally:
            self.discard(folder)
        return True

    def _forget(self, broken: list[str]) -> list[str]:
        """Remove layers, those above them, and the images that have them."""
        gone: list[Layer] = []
        todo = list(broken)
        with self._database.write() as connection:
            while todo:
                chain = todo.pop()
                row = connection.execute("SELECT * FROM layers WHERE chain=?", (chain,)).fetchone()
                if row is None:
                    continue
                gone.append(Layer(*row))
                _delete(connection, chain)
                todo += [found[0] for found in connection.execute("SELECT chain FROM layers WHERE parent=?", (chain,))]
                for (image,) in connection.execute("SELECT id FROM images WHERE chain=?", (chain,)).fetchall():
                    connection.execute("DELETE FROM images WHERE id=?", (image,))
                    connection.execute("DELETE FROM names WHERE image=?", (image,))
                    connection.execute("DELETE FROM manifests WHERE image=?", (image,))
        for layer in gone:
            self._take_away(layer)
        return [layer.chain for layer in gone]

    def sweep(self) -> None:
        """After a crash: remove folders and blobs that no row knows, rows whose folder is gone, leases of the dead."""
        trash: list[Path] = []
        held: list[str] = []
        with self._database.write() as connection:
            for lease, key, pid, start in connection.execute("SELECT lease, key, pid, started FROM leases").fetchall():
                if process_start(pid) != start:
                    connection.execute("DELETE FROM leases WHERE lease=? AND key=?", (lease, key))
                    held.append(key)
            rows = dict(connection.execute("SELECT folder, chain FROM layers").fetchall())
            for path in self.folder.iterdir():
                if path.name.startswith("tmp-"):
                    _, pid, start, _ = path.name.split("-", 3)
                    if process_start(int(pid)) == int(start):
                        continue
                elif path.name in rows:
                    continue
                trash.append(path)
            known = {folder[:_LINK] for folder in rows}
            for link in os.listdir(self._links):
                if link not in known:
                    os.unlink(self._links / link)
            blobs = {row[0] for row in connection.execute("SELECT blob FROM layers")}
            blobs |= {row[0] for row in connection.execute("SELECT key FROM leases")}
            for blob in self._blobs.folder.iterdir():
                if f"sha256:{blob.name}" not in blobs:
                    blob.unlink()
        for path in trash:
            remove_path(path)
        self.give_back(held)


def _changed(layer: Layer) -> DigestMismatch:
    return DigestMismatch(f"layer {layer.diff} has changed on disk")


def _seal(connection: sqlite3.Connection, chain: str, seal: int) -> None:
    connection.execute("INSERT OR REPLACE INTO seals VALUES(?,?)", (chain, seal))


def _delete(connection: sqlite3.Connection, chain: str) -> None:
    connection.execute("DELETE FROM layers WHERE chain=?", (chain,))
    connection.execute("DELETE FROM seals WHERE chain=?", (chain,))


def _in_use(connection: sqlite3.Connection, chain: str) -> bool:
    for table, column in (("images", "chain"), ("layers", "parent"), ("uses", "chain")):
        if connection.execute(f"SELECT 1 FROM {table} WHERE {column}=? LIMIT 1", (chain,)).fetchone():
            return True
    return leased(connection, chain)
