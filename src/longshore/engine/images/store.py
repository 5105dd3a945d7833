"""ImageStore: the door of this room. One a process; all engines of a machine share what lies below its root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.errors import InvalidParameter, NotFound
from longshore.engine.images import leftovers, names, references
from longshore.engine.images.blobs import Blobs, digest_of
from longshore.engine.images.database import Database
from longshore.engine.images.extract import remove_path
from longshore.engine.images.layers import Layers
from longshore.engine.images.leases import Lease
from longshore.engine.images.model import Image, parse_time
from longshore.engine.images.overlay import RootFS
from longshore.engine.images.references import Reference
from longshore.engine.images.streams import in_thread, pieces

if TYPE_CHECKING:
    from longshore.engine.images.pack import Change
    from longshore.engine.images.registries import Registries

Progress = Callable[[dict[str, Any]], None]
Rows = list[dict[str, Any]]
Records = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class ImageUser:
    """A container that uses an image."""

    id: str
    image: str
    running: bool


def _nothing(_: dict[str, Any]) -> None:
    return


class ImageStore:
    """Images, their names and layers, and the root file systems made from them.

    root: the machine's store (Layout.images). state: where this engine keeps its containers' root folders.
    owner: this engine's name (the node), for uses. users: this engine's containers, asked for conflicts; what other
    engines use is in the store. registries: makes the settings of registries when they are first needed.
    on_event: told (action, image id, name) of tag, untag, delete, pull, push, import, load, save.
    Errors are engine.errors classes with dockerd's texts.
    """

    def __init__(
        self,
        root: Path,
        *,
        state: Path,
        owner: str = "",
        users: Callable[[], Iterable[ImageUser]] | None = None,
        registries: Callable[[], Registries] | None = None,
        on_event: Callable[[str, str, str], None] | None = None,
    ) -> None:
        self.root, self.state, self.owner = root, state, owner
        self.users = users
        self.on_event = on_event
        self._make_registries = registries
        self._registries: Registries | None = None
        root.mkdir(mode=0o710, parents=True, exist_ok=True)
        state.mkdir(mode=0o710, parents=True, exist_ok=True)
        self.database = Database(root / "images.db")
        self.blobs = Blobs(root)
        self.layers = Layers(root, self.database, self.blobs)
        self.layers.sweep()
        self.layers.repair()
        leftovers.sweep(root)

    def close(self) -> None:
        self.layers.flusher.close()
        self.database.close()

    @property
    def registries(self) -> Registries:
        """How registries are reached (made at first use: it loads the HTTP client)."""
        if self._registries is None:
            from longshore.engine.images.registries import Registries

            self._registries = self._make_registries() if self._make_registries is not None else Registries()
        return self._registries

    def forget_registries(self) -> None:
        """Have the settings of registries asked for again; transfers under way go on with theirs."""
        self._registries = None

    def event(self, action: str, image: str, name: str = "") -> None:
        if self.on_event is not None:
            self.on_event(action, image, name or image)

    def lease(self) -> Lease:
        return Lease(self.database, self.layers)

    @contextlib.asynccontextmanager
    async def undertaking(self) -> AsyncIterator[Lease]:
        """A lease for work that shall end in an image; when it comes to nothing, the layers and blobs that only it held go."""
        with self.lease() as lease:
            try:
                yield lease
            except BaseException:
                await asyncio.shield(in_thread(lease.abandon))
                raise

    # -- finding -------------------------------------------------------------------------------------------------

    def get(self, image_id: str) -> Image | None:
        """An image by its full id."""
        row = self.database.one(
            "SELECT id, parent, chain, config, size, created, tagged FROM images WHERE id=?", image_id
        )
        return Image(*row) if row else None

    def images(self) -> list[Image]:
        """Every image, the newest first."""
        rows = self.database.all(
            "SELECT id, parent, chain, config, size, created, tagged FROM images ORDER BY created DESC, id"
        )
        return [Image(*row) for row in rows]

    def find(self, reference: str, platform: str = "") -> Image | None:
        """As resolve(), None where there is no such image. Raises InvalidReference.

        platform: "os/arch[/variant]" to look for among the images of a name that has several; an image of another platform is
        given where there is no better one.
        """
        if platform:
            from longshore.engine.images.variants import select

            return select(self, reference, platform)
        parsed = references.parse_any(reference)
        if isinstance(parsed, str):
            row = self.database.one("SELECT image FROM names WHERE digest=? LIMIT 1", parsed)
            return self.get(parsed) or (self.get(row[0]) if row else None)
        named = self.database.one("SELECT image FROM names WHERE name=?", str(parsed.with_default_tag()))
        if named is None and parsed.tag and parsed.digest:
            named = self.database.one("SELECT image FROM names WHERE name=?", f"{parsed.repository}@{parsed.digest}")
        if named is None and parsed.digest:
            # A manifest we hold is the same image under any repository's name (dockerd finds it by digest).
            named = self.database.one(
                "SELECT image FROM names WHERE digest=? AND repository=?", parsed.digest, parsed.repository
            )
        if named is not None:
            return self.get(named[0])
        return self._by_prefix(reference)

    def _by_prefix(self, text: str) -> Image | None:
        prefix = text.removeprefix("sha256:")
        if not prefix or len(prefix) > 64 or any(c not in "0123456789abcdef" for c in prefix):
            return None
        rows = self.database.all(
            "SELECT id FROM images WHERE id >= ? AND id < ? LIMIT 2", f"sha256:{prefix}", f"sha256:{prefix}g"
        )
        return self.get(rows[0][0]) if len(rows) == 1 else None

    def resolve(self, reference: str, platform: str = "") -> Image:
        """The image that a name, a digest, an id or an id's beginning means, of a platform where one is given.

        Raises InvalidReference (400) or NotFound("No such image: ..."), also for want of the platform.
        """
        image = self.find(reference, platform)
        if image is None:
            parsed = references.parse_any(reference)
            shown = parsed if isinstance(parsed, str) else parsed.with_default_tag().familiar
            raise NotFound(f"No such image: {shown}")
        if platform:
            from longshore.engine.images.variants import check_platform

            check_platform(self, image, reference, platform)
        return image

    def _image(self, image: Image | str) -> Image:
        return image if isinstance(image, Image) else self.resolve(image)

    def config(self, image: Image | str) -> dict[str, Any]:
        """The image's whole configuration object."""
        return self._image(image).config

    def names(self, image_id: str) -> list[Reference]:
        """The names of an image, tags and digests, sorted."""
        rows = self.database.all("SELECT name FROM names WHERE image=? ORDER BY name", image_id)
        return [references.parse_stored(row[0]) for row in rows]

    def repo_tags(self, image_id: str) -> list[str]:
        return [name.familiar for name in self.names(image_id) if name.tag]

    def repo_digests(self, image_id: str) -> list[str]:
        return [name.familiar for name in self.names(image_id) if name.digest]

    def children(self, image_id: str) -> list[str]:
        return [row[0] for row in self.database.all("SELECT id FROM images WHERE parent=?", image_id)]

    def layer_dirs(self, image: Image | str) -> list[Path]:
        """The image's layers as lower folders of an overlay mount, top first."""
        return [self.layers.diff_path(layer) for layer in self.layers.stack(self._image(image).chain)]

    # -- adding --------------------------------------------------------------------------------------------------

    def add(
        self,
        raw: bytes,
        chain: str,
        *,
        parent: str = "",
        tag: Reference | None = None,
        durable: bool = True,
        announce: bool = False,
    ) -> Image:
        """Register an image by its config's bytes; its layers must be there. One that is there already is kept.

        tag: a name to give it in the same transaction. durable: on the disk before anybody learns of it (without, it is so
        with the next durable write). announce: tell of its creation, before that of its name.
        """
        image_id = digest_of(raw)
        config = orjson.loads(raw)
        size = self.layers.total_size(chain)
        now = time.time_ns()
        with self.database.write(durable=durable) as connection:
            connection.execute(
                "INSERT OR IGNORE INTO images VALUES(?,?,?,?,?,?,?)",
                (image_id, parent, chain, raw, size, parse_time(config.get("created")), 0),
            )
            if parent:
                connection.execute("UPDATE images SET parent=? WHERE id=? AND parent=''", (parent, image_id))
            if tag is not None:
                names.give(connection, tag, image_id, now)
        image = self.get(image_id)
        assert image is not None
        if announce:
            self.event("create", image_id)
        if tag is not None:
            self.event("tag", image_id, tag.familiar)
        return image

    def tag(self, image: Image | str, name: Reference | str, *, index: str = "", brought: bool = False) -> None:
        """Give an image a further name; another image loses it. Raises NotFound, InvalidReference.

        index: the digest of the index that the name stands for (add_index). A name that is given another's image (a str)
        stands for that one's index. brought: the name came with the image (a pull, a load): nobody tagged it.
        """
        found = self._image(image)
        reference = references.parse(name) if isinstance(name, str) else name
        if reference.digest:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        if reference.familiar_name == "sha256":
            raise InvalidParameter("refusing to create an ambiguous tag using digest algorithm as name")
        reference = reference.with_default_tag()
        if index or isinstance(image, str):
            from longshore.engine.images import variants

            own, index = variants.preferred(self, found.id, index or str(image))
        else:
            own = found.id
        with self.database.write() as connection:
            names.give(connection, reference, own, 0 if brought else time.time_ns(), index)
        if not brought:
            self.event("tag", own, reference.familiar)

    def set_parent(self, image_id: str, parent: str) -> None:
        """An image was built on another one, as an archive of both tells."""
        with self.database.write() as connection:
            connection.execute("UPDATE images SET parent=? WHERE id=?", (parent, image_id))

    def sync(self, image_id: str) -> None:
        """An image that was added without being durable is so now, with all that was written before."""
        with self.database.write() as connection:
            connection.execute("UPDATE images SET tagged=tagged WHERE id=?", (image_id,))

    def add_digest(self, reference: Reference, digest: str, image_id: str, *, durable: bool = True) -> None:
        """Remember that a registry knows the image under this digest of a manifest, or of an index that it is a member of."""
        from longshore.engine.images import variants

        own, _ = variants.preferred(self, image_id, digest)
        with self.database.write(durable=durable) as connection:
            names.give(connection, reference.with_digest(digest), own, index=digest)

    def add_manifest(self, digest: str, media: str, body: bytes, image_id: str) -> None:
        """Keep a manifest (or index) as it was, byte for byte, with the image that it means here. Durable with the name."""
        with self.database.write(durable=False) as connection:
            connection.execute("INSERT OR REPLACE INTO manifests VALUES(?,?,?,?)", (digest, media, image_id, body))

    def add_index(self, digest: str, media: str, body: bytes, members: dict[str, str]) -> None:
        """Keep an index as it was, and which images are here of its manifests (digest to image id). Durable with the name."""
        self.add_manifest(digest, media, body, next(iter(members.values())))
        with self.database.write(durable=False) as connection:
            names.remember(connection, digest, members)

    def manifests(self, image_id: str) -> list[tuple[str, str, bytes]]:
        """(digest, media type, body) of the manifests kept for an image."""
        return [
            tuple(row) for row in self.database.all("SELECT digest, media, body FROM manifests WHERE image=?", image_id)
        ]

    # -- root file systems ---------------------------------------------------------------------------------------

    def prepare(self, container_id: str, image: Image | str | None) -> RootFS:
        """The root of a new container over an image (None: empty). Its folders are made; mount() is the caller's.

        From here on garbage collection leaves the image's layers alone, until release(). Raises NotFound.
        """
        found = None if image is None else self._image(image)
        chain = found.chain if found else ""
        with self.database.write(durable=False) as connection:
            if chain and not connection.execute("SELECT 1 FROM layers WHERE chain=?", (chain,)).fetchone():
                raise NotFound(f"No such image: {found.id if found else ''}")
            connection.execute(
                "INSERT OR REPLACE INTO uses VALUES(?,?,?,?)",
                (container_id, found.id if found else "", chain, self.owner),
            )
        root = self._rootfs(container_id, chain)
        root.make()
        return root

    def _rootfs(self, container_id: str, chain: str) -> RootFS:
        stack = self.layers.stack(chain)
        return RootFS(
            container_id,
            self.state / container_id,
            tuple(self.layers.diff_path(layer) for layer in stack),
            tuple(self.layers.link_path(layer) for layer in stack),
        )

    def rootfs(self, container_id: str) -> RootFS:
        """The root of a container that was prepared before (also by an earlier process). Raises NotFound."""
        row = self.database.one("SELECT chain FROM uses WHERE container=?", container_id)
        if row is None:
            raise NotFound(f"No such container: {container_id}")
        return self._rootfs(container_id, row[0])

    def release(self, container_id: str) -> None:
        """Unmount and remove a container's root; its image may be removed from now on. Nothing there: nothing to do."""
        path = self.state / container_id
        RootFS(container_id, path, ()).unmount()
        remove_path(path)
        row = self.database.one("SELECT image, chain FROM uses WHERE container=?", container_id)
        if row is None:
            return
        # Where the image was removed by force meanwhile, its layers were kept for this container only.
        with self.database.write(durable=self.get(row[0]) is None) as connection:
            connection.execute("DELETE FROM uses WHERE container=?", (container_id,))
            gone = self.layers.forget_unused(connection, row[1])
        self.layers.take_away(gone)

    def used_by_others(self, image_id: str) -> list[str]:
        """Containers of other engines on this machine that use the image."""
        rows = self.database.all("SELECT container FROM uses WHERE image=? AND owner<>?", image_id, self.owner)
        return [row[0] for row in rows]

    def changes(self, container_id: str) -> list[Change]:
        """What a container changed in its root, as `docker diff` shows it. Blocking: run it in a thread."""
        from longshore.engine.images.pack import changes

        root = self.rootfs(container_id)
        return changes(root.upper, [str(lower) for lower in root.lowers])

    def usage(self, container_id: str) -> int:
        """Bytes that a container wrote into its root (SizeRw). Blocking."""
        return _tree_size(self.state / container_id / "diff")

    async def export(self, container_id: str) -> AsyncIterator[bytes]:
        """A container's whole root as a tar (docker export)."""
        from longshore.engine.images.pack import Packer

        root = self.rootfs(container_id)
        mounted = root.mounted()
        if not mounted:
            root.mount()
        try:
            async for data in pieces(iter(Packer(root.merged, layer=False))):
                yield data
        finally:
            if not mounted:
                root.unmount()

    # -- the long ways: each in a module of its own --------------------------------------------------------------

    async def commit(self, container_id: str, run_config: dict[str, Any], **options: Any) -> Image:
        """A container's changes as a new image: see commit.commit."""
        from longshore.engine.images.commit import commit

        return await commit(self, container_id, run_config, **options)

    async def import_(self, source: AsyncIterable[bytes], **options: Any) -> Image:
        """A root file system's tar as an image of one layer: see commit.import_."""
        from longshore.engine.images.commit import import_

        return await import_(self, source, **options)

    def list(self, **options: Any) -> Rows:
        """dockerd's image list: see listing.list_images."""
        from longshore.engine.images.listing import list_images

        return list_images(self, **options)

    def inspect(self, image: Image | str, **options: Any) -> dict[str, Any]:
        """dockerd's image inspect: see listing.inspect."""
        from longshore.engine.images.listing import inspect

        return inspect(self, self._image(image), **options)

    def history(self, image: Image | str) -> Rows:
        """dockerd's image history: see listing.history."""
        from longshore.engine.images.listing import history

        return history(self, self._image(image))

    async def remove(
        self, reference: str, *, force: bool = False, prune: bool = True, platforms: Sequence[str] = ()
    ) -> Records:
        """Untag or delete by dockerd's rules: see removal.remove."""
        from longshore.engine.images.removal import remove

        return await in_thread(lambda: remove(self, reference, force=force, prune=prune, platforms=platforms))

    async def prune(self, filters: dict[str, Sequence[str]] | None = None) -> dict[str, Any]:
        """Delete what nothing uses: see removal.prune."""
        from longshore.engine.images.removal import prune

        return await in_thread(lambda: prune(self, filters or {}))

    async def save(self, names: Sequence[str], *, platform: str = "") -> Generator[bytes]:
        """Images as a tar, OCI layout and docker-archive in one: see archive.save. What it gives is iterated in a thread."""
        from longshore.engine.images.archive import save

        return await in_thread(save, self, list(names), platform)

    async def load(
        self, source: AsyncIterable[bytes], *, progress: Progress = _nothing, quiet: bool = True, platform: str = ""
    ) -> None:
        """Images from a tar of either form: see loading.load."""
        from longshore.engine.images.loading import load

        await load(self, source, progress=progress, quiet=quiet, platform=platform)

    async def pull(
        self,
        reference: str | Reference,
        *,
        auth: dict[str, str] | None = None,
        platform: str = "",
        progress: Progress = _nothing,
        all_tags: bool = False,
        named: bool = True,
    ) -> Image:
        """Bring an image from its registry: see pull.pull."""
        from longshore.engine.images.pull import pull

        return await pull(
            self, reference, auth=auth, platform=platform, progress=progress, all_tags=all_tags, named=named
        )

    async def push(
        self,
        reference: str | Reference,
        *,
        auth: dict[str, str] | None = None,
        progress: Progress = _nothing,
        platform: str = "",
    ) -> None:
        """Send an image (or all tags of a repository) to its registry: see push.push."""
        from longshore.engine.images.push import push

        await push(self, reference, auth=auth, progress=progress, platform=platform)

    def layers_size(self) -> int:
        """Bytes of content of all layers."""
        return int(self.database.one("SELECT COALESCE(SUM(size),0) FROM layers")[0])

    def disk_usage(self) -> dict[str, int]:
        """Bytes: `layers` content of all layers, `blobs` content kept as pulled."""
        layers = self.database.one("SELECT COALESCE(SUM(size),0), COUNT(*) FROM layers")
        blobs = sum(entry.stat().st_size for entry in os.scandir(self.blobs.folder))
        return {"layers": int(layers[0]), "count": int(layers[1]), "blobs": blobs}


def _tree_size(path: Path) -> int:
    total = 0
    stack: list[str] = [str(path)]
    seen: set[int] = set()
    while stack:
        with contextlib.suppress(FileNotFoundError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif info.st_nlink == 1 or info.st_ino not in seen:
                    seen.add(info.st_ino)
                    total += info.st_size
    return total
