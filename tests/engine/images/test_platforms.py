"""Names of several platforms: built, pushed, pulled, saved, loaded, shown and removed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from longshore.engine.errors import Conflict, NotFound
from longshore.engine.images import variants
from longshore.engine.images.layout import describe
from longshore.engine.images.manifests import Entry
from longshore.engine.images.model import Image, encode, host_architecture
from longshore.engine.images.store import ImageStore, ImageUser

from .conftest import imported, once

pytestmark = pytest.mark.root
Start = Callable[..., Awaitable[str]]
OWN = host_architecture()
OTHER = "s390x"
STATEMENT = ("https://slsa.dev/provenance/v1", b'{"subject":[{"name":"x"}],"predicate":{}}')


async def several(store: ImageStore, name: str) -> dict[str, Image]:
    """A name of two platforms, as a build leaves it. The other platform stands first."""
    base = await imported(store, "base", {"f": b"x"})
    entries = []
    for architecture in (OTHER, OWN):
        config = {**base.config, "architecture": architecture, "os": "linux", "author": "test"}
        image = store.add(encode(config), base.chain)
        entries.append(Entry(f"linux/{architecture}", image, [STATEMENT]))
    top, made = describe(store, entries, {"index": {"who": "test"}}, single=False)
    variants.keep(store, top, made)
    store.tag(entries[0].image, name, index=top.digest)
    await store.remove(base.id, force=True)
    return {entry.platform.partition("/")[2]: entry.image for entry in entries}


def shown(store: ImageStore) -> list[dict[str, Any]]:
    return store.list(manifests=True)


async def archive(store: ImageStore, name: str, platform: str = "") -> bytes:
    return b"".join(await store.save([name], platform=platform))


async def test_a_name_of_several_platforms(store: ImageStore) -> None:
    made = await several(store, "x:1")
    assert store.resolve("x:1").id == made[OWN].id
    assert store.resolve("x:1", f"linux/{OTHER}").id == made[OTHER].id
    with pytest.raises(NotFound, match=r"x:1 was found but does not provide the specified platform \(linux/arm/v6\)"):
        store.resolve("x:1", "linux/arm/v6")
    with pytest.raises(NotFound, match="does not match the specified platform"):
        store.resolve(made[OTHER].id, f"linux/{OWN}")
    (entry,) = shown(store)
    assert entry["Id"] == made[OWN].id and entry["RepoTags"] == ["x:1"]
    kinds = [(m["Kind"], m["Available"]) for m in entry["Manifests"]]
    assert kinds == [("image", True)] * 2 + [("attestation", True)] * 2
    assert entry["Manifests"][2]["AttestationData"]["For"] == entry["Manifests"][0]["ID"]
    assert entry["Manifests"][0]["ImageData"]["Platform"] == {"architecture": OTHER, "os": "linux"}
    assert entry["Size"] == made[OWN].size  # the layers are the same
    seen: dict[str, Any] = {}
    variants.inspect_entry(store, seen, made[OTHER], "x:1", f"linux/{OTHER}", False)
    assert seen["RepoTags"] == ["x:1"] and seen["Descriptor"]["digest"] == entry["Manifests"][0]["ID"]
    store.tag("x:1", "y:1")
    assert shown(store)[0]["RepoTags"] == ["x:1", "y:1"]
    assert store.resolve("y:1", f"linux/{OTHER}").id == made[OTHER].id


async def test_what_goes_with_a_name(store: ImageStore) -> None:
    made = await several(store, "x:1")
    users: list[ImageUser] = []
    store.users = lambda: users
    assert (await store.prune({}))["ImagesDeleted"] is None  # no image of a name is dangling
    with pytest.raises(Conflict, match="multiple repositories"):
        await store.remove(made[OTHER].id)
    users.append(ImageUser("c" * 64, made[OTHER].id, False))
    with pytest.raises(Conflict, match="container cccccccccccc is using"):
        await store.remove("x:1")
    with pytest.raises(Conflict, match="stopped container"):
        await store.remove("x:1", platforms=[f"linux/{OTHER}"])
    users.clear()
    await store.remove("x:1", platforms=[f"linux/{OWN}"])
    assert store.resolve("x:1").id == made[OTHER].id and store.get(made[OWN].id) is None
    assert [m["Available"] for m in shown(store)[0]["Manifests"]][:2] == [True, False]
    await store.remove("x:1")
    assert store.images() == []
    for table in ("names", "indexes", "members", "manifests", "layers"):
        assert store.database.one(f"SELECT COUNT(*) FROM {table}")[0] == 0, table
    made = await several(store, "x:1")
    assert len(await store.remove("x:1")) == 4  # the name, both images, their layer
    assert store.images() == []
    made = await several(store, "x:1")
    other = await imported(store, "other", {"g": b"y"})
    store.tag(other, "x:1")  # another image takes the name
    assert variants.index_of(store, "x:1") is None
    await store.prune({})
    assert [image.id for image in store.images()] == [other.id]


async def test_archives(store: ImageStore, make_store: Callable[..., ImageStore]) -> None:
    made = await several(store, "x:1")
    whole = await archive(store, "x:1")
    said: list[dict[str, Any]] = []
    second = make_store("two")
    await second.load(once(whole), progress=said.append)
    assert said == [{"stream": "Loaded image: x:1\n"}]
    assert shown(second)[0]["Descriptor"] == shown(store)[0]["Descriptor"]
    assert [m["Kind"] for m in shown(second)[0]["Manifests"]] == ["image", "image", "attestation", "attestation"]
    assert second.resolve("x:1", f"linux/{OTHER}").id == made[OTHER].id
    third = make_store("three")
    await third.load(once(whole), platform=f"linux/{OTHER}")
    assert [image.id for image in third.images()] == [made[OTHER].id] and third.find("x:1") is not None
    with pytest.raises(NotFound, match=r"requested platform\(s\) \(\[linux/arm\]\) not found"):
        await third.load(once(whole), platform="linux/arm")
    # Of one platform it is an ordinary archive.
    fourth = make_store("four")
    await fourth.load(once(await archive(store, "x:1", f"linux/{OTHER}")))
    assert [image.id for image in fourth.images()] == [made[OTHER].id]
    assert variants.index_of(fourth, "x:1") is None


async def test_push_and_pull(store: ImageStore, make_store: Callable[..., ImageStore], registry: Start) -> None:
    place = await registry()
    name = f"{place}/x:1"
    made = await several(store, name)
    said: list[dict[str, Any]] = []
    await store.push(name, progress=said.append)
    digest = said[-1]["aux"]["Digest"]
    assert store.repo_digests(made[OWN].id) == [f"{place}/x@{digest}"]
    second = make_store("two")
    await second.pull(name)
    (entry,) = shown(second)
    assert entry["Descriptor"]["digest"] == digest
    assert [m["Available"] for m in entry["Manifests"] if m["Kind"] == "image"] == [False, True]
    index = variants.index_of(second, name)
    assert index is not None and index.annotations == {"who": "test"}
    # With one of its platforms here only that one can be sent on, and the client is told.
    second.tag(name, f"{place}/y:1")
    said.clear()
    await second.push(f"{place}/y:1", progress=said.append)
    assert said[-1]["aux"]["manifestPushedInsteadOfIndex"] and said[-1]["aux"]["originalIndex"]["digest"] == digest
    # Pulled, a further platform joins; the name goes on meaning this machine's.
    await second.pull(name, platform=f"linux/{OTHER}")
    assert second.resolve(name).id == made[OWN].id and second.resolve(name, f"linux/{OTHER}").id == made[OTHER].id
    assert len(shown(second)) == 1
    second.tag(name, f"{place}/z:1")
    await second.push(f"{place}/z:1")
    third = make_store("three")
    await third.pull(f"{place}/z:1", platform=f"linux/{OTHER}")
    assert third.resolve(f"{place}/z:1").id == made[OTHER].id
    sent = variants.index_of(third, f"{place}/z:1")
    assert sent is not None and sent.annotations == {"who": "test"}
    # Manifests that came whole are sent as they came.
    assert [e["digest"] for e in sent.entries] == [e["digest"] for e in index.entries[:2]]
    with pytest.raises(NotFound, match="does not provide the specified platform"):
        await store.push(name, platform="linux/arm")
    await store.push(name, platform=f"linux/{OTHER}")
    session = await second.registries.session(place, "x", auth=None, actions="pull", pull=False)
    body, _, _ = await session.manifest("1")
    assert json.loads(body)["config"]["digest"] == made[OTHER].id
