"""Names that mean one image on each of several platforms: the index behind a name, and its members that are here.

A name's row in `names` tells the image of this machine's platform (or the first); `indexes` tells the index that the name
stands for, `members` which images of an index are here. Source of the rules: moby daemon/containerd (image_push.go,
image_list.go, image_delete.go), whose store keeps several platforms under one name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.errors import NotFound
from longshore.engine.images import references
from longshore.engine.images.listing import platform_matches, shown_platform
from longshore.engine.images.manifests import IN_TOTO, Document, Entry, choose, of_image, plain_layers, platform_of
from longshore.engine.images.model import Image
from longshore.engine.images.references import Reference

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore

Descriptor = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Member:
    """One platform's image of an index. entry: the index's descriptor of its manifest."""

    entry: Descriptor
    image: Image

    @property
    def platform(self) -> str:
        return platform_text(self.entry) or shown_platform(self.image)


@dataclass(frozen=True, slots=True)
class Index:
    """An index that a name stands for. entries: all its descriptors; members: those whose images are here, in order."""

    digest: str
    media: str
    body: bytes
    entries: tuple[Descriptor, ...]
    members: tuple[Member, ...]

    @property
    def descriptor(self) -> Descriptor:
        return {"mediaType": self.media, "digest": self.digest, "size": len(self.body)}

    @property
    def whole(self) -> bool:
        """Are several images of it here, and all that it names?"""
        images = [entry for entry in self.entries if not is_attestation(entry)]
        return len(self.members) == len(images) > 0

    @property
    def annotations(self) -> dict[str, str]:
        found = orjson.loads(self.body).get("annotations")
        return found if isinstance(found, dict) else {}

    def member(self, platform: str) -> Member | None:
        """The member for "os/arch[/variant]"; "" for this machine's platform, else the first."""
        by_entry = {id(member.entry): member for member in self.members}
        chosen = choose([member.entry for member in self.members], platform)
        if chosen is None:
            return self.members[0] if self.members and not platform else None
        found = by_entry[id(chosen)]
        return found if not platform or platform_matches(found.image, platform) else None


def platform_text(entry: Descriptor) -> str:
    """A descriptor's platform as "os/arch[/variant]", "" without one."""
    of = entry.get("platform")
    if not isinstance(of, dict):
        return ""
    return "/".join(str(of[key]) for key in ("os", "architecture", "variant") if of.get(key))


def is_attestation(entry: Descriptor) -> bool:
    """Does a descriptor name what is attested about another of the same index?"""
    return (entry.get("annotations") or {}).get("vnd.docker.reference.type") == "attestation-manifest"


# -- reading ---------------------------------------------------------------------------------------------------------------


def index_of(store: ImageStore, reference: str | Reference) -> Index | None:
    """The index that a name stands for; None for a name of one image, an id, and what is no name here."""
    if isinstance(reference, str):
        try:
            parsed = references.parse_any(reference)
        except references.InvalidReference:
            return None
        if isinstance(parsed, str):
            return _by_digest(store, parsed)
    else:
        parsed = reference
    row = store.database.one("SELECT digest FROM indexes WHERE name=?", str(parsed.with_default_tag()))
    if row is None and parsed.digest:
        row = store.database.one(
            "SELECT digest FROM indexes WHERE name=?", str(Reference(parsed.domain, parsed.path, "", parsed.digest))
        )
    return _by_digest(store, row[0]) if row is not None else None


def _by_digest(store: ImageStore, digest: str) -> Index | None:
    row = store.database.one("SELECT media, body FROM manifests WHERE digest=?", digest)
    here = dict(store.database.all("SELECT manifest, image FROM members WHERE digest=?", digest))
    if row is None or not here:
        return None
    body = bytes(row[1])
    entries = tuple(entry for entry in orjson.loads(body).get("manifests") or [] if isinstance(entry, dict))
    members: list[Member] = []
    for entry in entries:
        image = store.get(here[entry["digest"]]) if entry.get("digest") in here else None
        if image is not None:
            members.append(Member(entry, image))
    return Index(digest, row[0], body, entries, tuple(members))


def select(store: ImageStore, reference: str, platform: str) -> Image | None:
    """The image of a reference for a platform, where the name has one; else whatever the reference means."""
    if platform:
        index = index_of(store, reference)
        member = index.member(platform) if index is not None else None
        if member is not None:
            return member.image
    return store.find(reference)


def check_platform(store: ImageStore, image: Image, reference: str, platform: str) -> None:
    """Raises NotFound when the image that was found for a reference is of another platform."""
    if platform_matches(image, platform):
        return
    words = f"image with reference {reference or image.id} was found but "
    if reference and index_of(store, reference) is not None:
        raise NotFound(f"{words}does not provide the specified platform ({platform})")
    have = shown_platform(image)
    raise NotFound(f"{words}its platform ({have}) does not match the specified platform ({platform})")


def preferred(store: ImageStore, image_id: str, index: str) -> tuple[str, str]:
    """What a name means that is given the index behind another name or a digest: (the id of this machine's image, the index's
    digest); the image itself where there is no such index.
    """
    found = index_of(store, index)
    own = found.member("") if found is not None else None
    return (own.image.id, found.digest) if found is not None and own is not None else (image_id, "")


def index_of_image(store: ImageStore, image_id: str) -> Index | None:
    """The index behind the names of an image, when all of them stand for the same one."""
    rows = store.database.all(
        "SELECT DISTINCT COALESCE(i.digest, '') FROM names n LEFT JOIN indexes i ON i.name=n.name WHERE n.image=?",
        image_id,
    )
    return _by_digest(store, rows[0][0]) if len(rows) == 1 and rows[0][0] else None


def names_of(store: ImageStore, index: Index) -> list[Reference]:
    """The names that stand for an index, sorted."""
    rows = store.database.all("SELECT name FROM indexes WHERE digest=? ORDER BY name", index.digest)
    return [references.parse_stored(row[0]) for row in rows]


def held(store: ImageStore, image_id: str) -> bool:
    """Is an image a member of an index that has a name?"""
    query = "SELECT 1 FROM members m JOIN indexes i ON i.digest=m.digest WHERE m.image=? LIMIT 1"
    return store.database.one(query, image_id) is not None


def held_images(store: ImageStore) -> set[str]:
    """The images that are members of indexes with names."""
    return {
        row[0]
        for row in store.database.all("SELECT DISTINCT m.image FROM members m JOIN indexes i ON i.digest=m.digest")
    }


def manifest_of(store: ImageStore, image: Image) -> tuple[Descriptor, bytes]:
    """The descriptor and the body of an image's own manifest: one that is kept, else the one that `docker save` writes."""
    for digest, media, body in store.manifests(image.id):
        loaded = orjson.loads(body)
        config = loaded.get("config")
        if "layers" in loaded and isinstance(config, dict) and config.get("digest") == image.id:
            return {"mediaType": media, "digest": digest, "size": len(body)}, body
    document = of_image(image, plain_layers(store, image))
    return document.descriptor(), document.body


def entries_of(store: ImageStore, index: Index) -> list[Entry]:
    """The images of an index that are here, each with what is attested about it."""
    found: list[Entry] = []
    for member in index.members:
        statements: list[tuple[str, bytes]] = []
        for entry in filter(is_attestation, index.entries):
            if entry["annotations"].get("vnd.docker.reference.digest") == member.entry["digest"]:
                statements += _statements(store, entry)
        found.append(Entry(member.platform, member.image, statements))
    return found


def _statements(store: ImageStore, entry: Descriptor) -> list[tuple[str, bytes]]:
    row = store.database.one("SELECT body FROM manifests WHERE digest=?", entry["digest"])
    found: list[tuple[str, bytes]] = []
    for layer in orjson.loads(row[0]).get("layers") or [] if row is not None else []:
        kept = store.database.one("SELECT body FROM manifests WHERE digest=?", layer.get("digest"))
        kind = (layer.get("annotations") or {}).get("in-toto.io/predicate-type")
        if kept is not None and kind:
            found.append((str(kind), bytes(kept[0])))
    return found


def manifest_annotations(store: ImageStore, index: Index) -> dict[str, str]:
    """The annotations of the images' manifests (builds give all of an index the same)."""
    for member in index.members:
        row = store.database.one("SELECT body FROM manifests WHERE digest=?", member.entry["digest"])
        if row is not None:
            return orjson.loads(row[0]).get("annotations") or {}
    return {}


def keep(store: ImageStore, top: Document, made: Sequence[tuple[Entry, Document, Document | None]]) -> None:
    """Keep an index that was made here, with the manifests of its images and of what is attested about them."""
    for entry, document, attested in made:
        store.add_manifest(document.digest, document.media, document.body, entry.image.id)
        if attested is None:
            continue
        store.add_manifest(attested.digest, attested.media, attested.body, entry.image.id)
        for digest, data in attested.blobs.items():
            store.add_manifest(digest, IN_TOTO, data, entry.image.id)
    store.add_index(top.digest, top.media, top.body, {document.digest: entry.image.id for entry, document, _ in made})


# -- as the API shows it -----------------------------------------------------------------------------------------------------


def list_entry(
    store: ImageStore, shown: dict[str, Any], image: Image, digest: str, users: Mapping[str, int], manifests: bool
) -> None:
    """Complete an image's entry of the list. digest: of its names' index or ""; manifests: with what there is of each platform."""
    index = index_of(store, digest) if digest else None
    if index is not None:
        layers = {layer.chain: layer.size for one in index.members for layer in store.layers.stack(one.image.chain)}
        shown["Containers"] = sum(users.get(one.image.id, 0) for one in index.members)
        shown["Size"] = sum(layers.values())
        shown["Descriptor"] = index.descriptor
    if manifests:
        shown.setdefault("Descriptor", manifest_of(store, image)[0])
        shown["Manifests"] = summaries(store, image, index)


def inspect_entry(
    store: ImageStore, shown: dict[str, Any], image: Image, reference: str, platform: str, manifests: bool
) -> None:
    """Complete an image's inspection. reference: the name by which it was found; platform: the one that was asked for or ""."""
    index = index_of(store, reference)
    if index is not None:
        names = names_of(store, index)
        shown["RepoTags"] = [name.familiar for name in names if name.tag]
        shown["RepoDigests"] = [name.familiar for name in names if name.digest]
        member = index.member(platform) if platform else None
        shown["Descriptor"] = member.entry if member is not None else index.descriptor
    if manifests:
        shown.setdefault("Descriptor", manifest_of(store, image)[0])
        shown["Manifests"] = summaries(store, image, index)


def summaries(store: ImageStore, image: Image, index: Index | None) -> list[dict[str, Any]]:
    """Manifests of an image as API 1.48's ManifestSummary: those of its index, or its only one."""
    if index is None:
        descriptor, _ = manifest_of(store, image)
        return [_image_summary(store, descriptor, image, shown_platform(image))]
    members = {member.entry["digest"]: member for member in index.members}
    shown: list[dict[str, Any]] = []
    for entry in index.entries:
        member = members.get(entry.get("digest"))
        if member is not None:
            shown.append(_image_summary(store, entry, member.image, member.platform))
        elif is_attestation(entry):
            shown.append(_attestation_summary(store, entry))
        else:
            of = entry.get("platform") or {}
            data: dict[str, Any] = {"Platform": of, "Size": {"Unpacked": 0}, "Containers": []}
            shown.append(_summary(entry, available=False, kind="image", content=0, total=0) | {"ImageData": data})
    return shown


def _summary(entry: Descriptor, *, available: bool, kind: str, content: int, total: int) -> dict[str, Any]:
    return {
        "ID": entry["digest"],
        "Descriptor": entry,
        "Available": available,
        "Size": {"Content": content, "Total": total},
        "Kind": kind,
    }


def _image_summary(store: ImageStore, entry: Descriptor, image: Image, platform: str) -> dict[str, Any]:
    content = int(entry.get("size") or 0) + len(image.raw)
    content += sum(layer.blob_size for layer in store.layers.stack(image.chain) if layer.blob)
    users = [user.id for user in (store.users() if store.users else ()) if user.image == image.id]
    data = {
        "Platform": entry.get("platform") or platform_of(platform),
        "Size": {"Unpacked": image.size},
        "Containers": users,
    }
    made = _summary(entry, available=True, kind="image", content=content, total=content + image.size)
    return made | {"ImageData": data}


def _attestation_summary(store: ImageStore, entry: Descriptor) -> dict[str, Any]:
    row = store.database.one("SELECT body FROM manifests WHERE digest=?", entry["digest"])
    size = 0
    if row is not None:
        manifest = orjson.loads(row[0])
        parts = [manifest.get("config") or {}, *(manifest.get("layers") or [])]
        size = len(row[0]) + sum(int(part.get("size") or 0) for part in parts)
    about = (entry.get("annotations") or {}).get("vnd.docker.reference.digest", "")
    shown = _summary(entry, available=row is not None, kind="attestation", content=size, total=size)
    return shown | {"AttestationData": {"For": about}}
