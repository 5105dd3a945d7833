"""Untag, delete, prune: dockerd's rules and texts. Source of the rules: moby daemon/images/image_delete.go, image_prune.go."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import Conflict
from longshore.engine.images import references, variants
from longshore.engine.images.leases import leased
from longshore.engine.images.leftovers import sweep_ingest
from longshore.engine.images.listing import Filters, bool_filter, check_filters, labels_match, until_filter
from longshore.engine.images.model import Image
from longshore.engine.images.names import drop, give, needed, take
from longshore.engine.images.references import Reference

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore, ImageUser
    from longshore.engine.images.variants import Index

_PRUNE_FILTERS = {"dangling", "label", "label!", "until"}


class _InUse(Conflict):
    def __init__(self, image: Image, hard: bool, used: bool, reason: str) -> None:
        force = "cannot be forced" if hard else "must be forced"
        super().__init__(f"conflict: unable to delete {image.short} ({force}) - {reason}")
        self.used = used


def _users(store: ImageStore, image_id: str) -> list[ImageUser]:
    from longshore.engine.images.store import ImageUser

    found = [user for user in (store.users() if store.users else ()) if user.image == image_id]
    found += [ImageUser(other, image_id, True) for other in store.used_by_others(image_id)]
    if store.users is None:
        rows = store.database.all("SELECT container FROM uses WHERE image=? AND owner=?", image_id, store.owner)
        found += [ImageUser(row[0], image_id, True) for row in rows]
    return found


def _is_id(image: Image, text: str) -> bool:
    return image.id.startswith(text) or image.id.partition(":")[2].startswith(text)


def _single_reference(names: list[Reference]) -> bool:
    """One tag at most, with no digests but its own repository's."""
    if len(names) <= 1:
        return len(names) == 1
    tags = [name for name in names if not name.digest]
    if len(tags) > 1:
        return False
    repositories = {name.repository for name in names if name.digest}
    single = tags[0] if tags else names[0]
    return repositories == {single.repository}


def _untag(store: ImageStore, name: Reference, image_id: str, records: list[dict[str, str]]) -> None:
    with store.database.write() as connection:
        take(connection, name)
    records.append({"Untagged": name.familiar})
    store.event("untag", image_id, image_id)


def _conflict(store: ImageStore, image: Image, *, soft: bool, references_count: bool) -> _InUse | None:
    users = _users(store, image.id)
    for user in users:
        if user.running:
            return _InUse(image, True, True, f"image is being used by running container {user.id[:12]}")
    if store.children(image.id):
        return _InUse(image, True, False, "image has dependent child images")
    if not soft:
        return None
    if references_count and (store.names(image.id) or variants.held(store, image.id)):
        return _InUse(image, False, False, "image is referenced in multiple repositories")
    for user in users:
        return _InUse(image, False, True, f"image is being used by stopped container {user.id[:12]}")
    return None


def remove(
    store: ImageStore, reference: str, *, force: bool, prune: bool, platforms: Sequence[str] = ()
) -> list[dict[str, str]]:
    """DELETE /images/NAME: what was untagged and deleted, in order. Raises NotFound, Conflict, InvalidReference.

    platforms: of a name of several platforms only these images go. What a name held of other platforms goes with it.
    """
    image = store.resolve(reference)
    index = variants.index_of(store, reference) or variants.index_of_image(store, image.id)
    records: list[dict[str, str]] = []
    for platform in platforms:
        variants.check_platform(store, store.resolve(reference, platform), reference, platform)
    chosen = [index.member(platform) for platform in platforms] if index is not None else []
    if index is not None and chosen and len({member.image.id for member in chosen if member}) < len(index.members):
        for member in chosen:
            if member is not None and store.get(member.image.id) is not None:
                _leave(store, index, member.image, force)
                _delete_lone(store, member.image, records, prune)
        return records
    others = [member.image for member in index.members if member.image.id != image.id] if index is not None else []
    if not force and _single_reference(store.names(image.id)):
        for user in (user for other in others for user in _users(store, other.id)):
            raise Conflict(
                f'conflict: unable to remove repository reference "{reference}" (must force) - '
                f"container {user.id[:12]} is using its referenced image {image.short}"
            )
    _remove(store, reference, image, records, force=force, prune=prune)
    for other in others:
        _untag_digests(store, reference, other, records)
        _delete_lone(store, other, records, prune)
    return records


def _untag_digests(store: ImageStore, reference: str, image: Image, records: list[dict[str, str]]) -> None:
    """The digests go that an image has in the repository of a name that was removed, unless it has tags there."""
    parsed = references.parse_any(reference)
    if isinstance(parsed, str):
        return
    names = [name for name in store.names(image.id) if name.repository == parsed.repository]
    if not any(name.tag for name in names):
        for name in names:
            _untag(store, name, image.id, records)


def _delete_lone(store: ImageStore, image: Image, records: list[dict[str, str]], prune: bool) -> None:
    """Delete an image that was one of an index, unless something else means it."""
    if store.get(image.id) is not None and not variants.held(store, image.id) and not store.names(image.id):
        _delete(store, image, records, force=False, prune=prune, quiet=True)


def _leave(store: ImageStore, index: Index, image: Image, force: bool) -> None:
    """An image is one of an index no more; what names the index means another of its images. Raises Conflict."""
    for user in _users(store, image.id):
        if user.running or not force:
            raise Conflict(
                f"conflict: unable to delete {image.short} ({'cannot' if user.running else 'must'} be forced) - image is "
                f"being used by {'running' if user.running else 'stopped'} container {user.id[:12]}"
            )
    named = variants.names_of(store, index)
    with store.database.write() as connection:
        connection.execute("DELETE FROM members WHERE digest=? AND image=?", (index.digest, image.id))
        connection.execute("UPDATE manifests SET image='' WHERE digest=?", (index.digest,))
    own, digest = variants.preferred(store, "", index.digest)
    with store.database.write() as connection:
        connection.execute("UPDATE manifests SET image=? WHERE digest=?", (own, index.digest))
        for name in named:
            give(connection, name, own, index=digest)


def _remove(
    store: ImageStore, reference: str, image: Image, records: list[dict[str, str]], *, force: bool, prune: bool
) -> None:
    """Untag what a reference means, and delete the image when that was its last name. Raises Conflict."""
    names = store.names(image.id)
    removed_name = False
    if not _is_id(image, reference):
        parsed = references.parse(reference)
        if not force and _single_reference(names):
            for user in _users(store, image.id):
                raise Conflict(
                    f'conflict: unable to remove repository reference "{reference}" (must force) - '
                    f"container {user.id[:12]} is using its referenced image {image.short}"
                )
        name = (
            parsed.with_default_tag() if not parsed.digest else Reference(parsed.domain, parsed.path, "", parsed.digest)
        )
        if parsed.tag and parsed.digest:
            name = parsed.with_tag(parsed.tag)
        _untag(store, name, image.id, records)
        names = store.names(image.id)
        if not name.digest and not any(not other.digest and other.repository == name.repository for other in names):
            # The last tag of a repository takes the repository's digests with it.
            for other in [other for other in names if other.repository == name.repository]:
                _untag(store, other, image.id, records)
            names = store.names(image.id)
        if names:
            return
        removed_name = True
    elif _single_reference(names):
        conflict = _conflict(store, image, soft=not force, references_count=False)
        if conflict:
            raise conflict
        for name in names:
            _untag(store, name, image.id, records)
    _delete(store, image, records, force=force, prune=prune, quiet=removed_name)


def _delete(
    store: ImageStore, image: Image, records: list[dict[str, str]], *, force: bool, prune: bool, quiet: bool
) -> int:
    """Delete an image and, with prune, the parents that nothing else needs; bytes of layers freed.

    One that somebody is about to give a name, or has given one or made a container of just now, stays, unless it is forced.
    """
    conflict = _conflict(store, image, soft=not force, references_count=True)
    if conflict:
        if quiet and (store.names(image.id) or store.children(image.id) or conflict.used):
            return 0
        raise conflict
    for name in store.names(image.id):
        _untag(store, name, image.id, records)
    with store.database.write() as connection:
        if not force and (leased(connection, image.id) or needed(connection, image.id)):
            return 0
        connection.execute("DELETE FROM images WHERE id=?", (image.id,))
        drop(connection, image.id)
        gone = store.layers.forget_unused(connection, image.chain)
    records.append({"Deleted": image.id})
    store.event("delete", image.id, image.id)
    store.layers.take_away(gone)
    records.extend({"Deleted": layer.chain} for layer in gone)
    freed = sum(layer.size for layer in gone)
    parent = store.get(image.parent) if prune and image.parent else None
    if parent is not None:
        freed += _delete(store, parent, records, force=False, prune=True, quiet=True)
    return freed


def prune(store: ImageStore, filters: Filters) -> dict[str, Any]:
    """POST /images/prune: by default dangling images only; dangling=false: all that no container uses."""
    check_filters(filters, _PRUNE_FILTERS)
    dangling_only = bool_filter(filters, "dangling", True)
    until = until_filter(filters, time.time_ns())
    held = variants.held_images(store)
    records: list[dict[str, str]] = []
    freed = 0
    for image in store.images():
        if until is not None and image.created > until:
            continue
        if not labels_match(filters, image.labels):
            continue
        if store.get(image.id) is None:
            continue  # went as another's parent
        names = store.names(image.id)
        if store.children(image.id) and (dangling_only or not names):
            continue
        if any(name.tag for name in names) and dangling_only:
            continue
        if not names and image.id in held:
            continue  # goes with the name that holds it
        before = store.layers_size()
        # What a container uses keeps its last name: that one is refused, those before it go.
        for text in [str(name) for name in names] or [image.id]:
            with contextlib.suppress(Conflict):
                if store.find(text) is not None:
                    records += remove(store, text, force=False, prune=True)
        freed += max(0, before - store.layers_size())
    # Downloads that were given up.
    freed += sweep_ingest(store.blobs.ingest, 0)
    store.database.shrink()
    return {"ImagesDeleted": records or None, "SpaceReclaimed": freed}
