"""Names, filters, what prune leaves, what an archive tells of names: dockerd's rules."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest

from longshore.engine.errors import InvalidParameter
from longshore.engine.images import platforms
from longshore.engine.images.model import ZERO_TIME
from longshore.engine.images.store import ImageStore, ImageUser

from .conftest import imported, once

pytestmark = pytest.mark.root


def tags(store: ImageStore, **filters: list[str]) -> list[str]:
    return sorted(tag for entry in store.list(filters=filters) for tag in entry["RepoTags"])


async def test_references_match_in_both_forms(store: ImageStore) -> None:
    image = await imported(store, "tool:1", {"f": b"1"})
    store.tag(image, "team/tool:2")
    for pattern, found in {
        "tool": ["tool:1"],
        "docker.io/library/tool": ["tool:1"],
        "docker.io/library/tool:*": ["tool:1"],
        "docker.io/team/tool": ["team/tool:2"],
        "*/tool": ["team/tool:2"],
        "other": [],
    }.items():
        assert tags(store, reference=[pattern]) == found, pattern


async def test_moments(store: ImageStore) -> None:
    images = [await imported(store, f"t:{number}", {"f": bytes([number])}) for number in range(4)]
    created = [str(store.inspect(image)["Created"]) for image in images]
    assert tags(store, until=[created[2], created[3]]) == ["t:0", "t:1"]
    assert tags(store, until=[created[3]], since=["t:0"]) == ["t:1", "t:2"]


async def test_an_image_with_a_digest_alone_is_dangling(store: ImageStore) -> None:
    image = await imported(store, "a:1", {"f": b"1"})
    store.add_digest(store.names(image.id)[0], "sha256:" + "1" * 64, image.id)
    assert store.list(filters={"dangling": ["true"]}) == []
    await store.remove("a:1", force=True)
    other = await imported(store, "b:1", {"f": b"2"})
    store.add_digest(store.names(other.id)[0], "sha256:" + "2" * 64, other.id)
    with store.database.write() as connection:
        connection.execute("DELETE FROM names WHERE tag<>''")
    (shown,) = store.list(filters={"dangling": ["true"]})
    assert shown["Id"] == other.id and shown["RepoDigests"] == ["b@sha256:" + "2" * 64]


async def test_no_tag_of_a_repository_called_as_a_digest(store: ImageStore) -> None:
    image = await imported(store, "a:1", {"f": b"1"})
    with pytest.raises(InvalidParameter, match="refusing to create an ambiguous tag using digest algorithm as name"):
        store.tag(image, "sha256:x")


async def test_prune_leaves_what_is_in_use_its_last_name(store: ImageStore) -> None:
    used = await imported(store, "used:a", {"f": b"1"})
    for tag in "cbz":
        store.tag(used, f"used:{tag}")
    await imported(store, "free:1", {"f": b"2"})
    store.users = lambda: [ImageUser("c" * 64, used.id, False)]
    gone = (await store.prune({"dangling": ["false"]}))["ImagesDeleted"]
    assert [entry["Untagged"] for entry in gone if "Untagged" in entry] == ["free:1", "used:a", "used:b", "used:c"]
    assert store.repo_tags(used.id) == ["used:z"] and store.find("free:1") is None


async def test_prune_gives_the_database_its_disk_back(store: ImageStore) -> None:
    with store.database.write() as connection:
        connection.executemany(
            "INSERT INTO images VALUES(?,'','',?,0,0,0)", [(f"sha256:{n:064x}", bytes(100_000)) for n in range(100)]
        )
    path = store.root / "images.db"
    store.database.shrink()
    assert path.stat().st_size > 10_000_000
    with store.database.write() as connection:
        connection.execute("DELETE FROM images")
    await store.prune()
    assert path.stat().st_size < 500_000 and path.with_name("images.db-wal").stat().st_size == 0


async def test_an_archive_brings_names_and_parents(make_store: Any) -> None:
    one, two = make_store("one"), make_store("two")
    base = await imported(one, "base:1", {"f": b"1"})
    one.prepare("d" * 64, base)
    (one.rootfs("d" * 64).upper / "g").write_text("2")
    child = await one.commit("d" * 64, {})
    one.tag(child, "child:1")
    data = b"".join(await one.save(["base:1", "child:1"]))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        newest = max(base.created, child.created) // 10**9
        assert all(entry.mtime <= newest for entry in archive)
        member = archive.extractfile("manifest.json")
        assert member is not None
        assert [entry.get("Parent") for entry in json.load(member)] == [None, base.id]
    said: list[tuple[str, str]] = []
    two.on_event = lambda action, image, name, *rest: said.append((action, image))
    await two.load(once(data))
    assert two.resolve("child:1").parent == base.id
    # Nobody tagged them here: the images came with their names.
    assert said == [("load", base.id), ("load", child.id)]
    assert two.inspect("child:1")["Metadata"]["LastTagTime"] == ZERO_TIME


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("amd64", "linux/amd64"),
        ("linux/aarch64", "linux/arm64"),
        ("armhf", "linux/arm/v7"),
        ("macos/arm64", "darwin/arm64"),
        ("Linux/ARM64/v8", "linux/arm64/v8"),
        ("nintendo64", '"nintendo64": unknown operating system or architecture: invalid argument'),
        (" ", '" " is an invalid OS component of " ": OSAndVersion specifier component must match '),
        ("linux/a b", '"a b" is an invalid component of "linux/a b": platform specifier component must match '),
        ("a/b/c/d", '"a/b/c/d": cannot parse platform specifier: invalid argument'),
    ],
)
def test_platforms(text: str, found: str) -> None:
    if '"' in found:
        with pytest.raises(InvalidParameter) as caught:
            platforms.parse(text)
        assert caught.value.message.startswith(found)
    else:
        assert platforms.parse(text) == found
