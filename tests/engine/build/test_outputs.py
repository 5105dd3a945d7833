"""Settings of image outputs: how layers are compressed, media types, times, names, annotations."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import zstandard

from longshore.engine.build.buildkit.outputs import parse
from longshore.engine.errors import InvalidParameter
from longshore.engine.images import references
from longshore.engine.images.packed import Form, compressor
from longshore.machinery.grpc import RpcError

from ..images.conftest import once
from .kit import Kit

Start = Callable[..., Awaitable[str]]
QUIET = {"force-network-mode": "none"}
TEXT = "FROM scratch\nCOPY Dockerfile /f\n"
OPEN: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    "uncompressed": lambda data: data,
}


def members(kit: Kit) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO((kit.path / "out").read_bytes())) as archive:
        return {m.name: (archive.extractfile(m) or io.BytesIO()).read() if m.isfile() else b"" for m in archive}


def content(found: dict[str, bytes], entry: dict[str, Any]) -> bytes:
    assert len(found[f"blobs/sha256/{entry['digest'][7:]}"]) == entry["size"]
    return found[f"blobs/sha256/{entry['digest'][7:]}"]


def manifest(found: dict[str, bytes]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(content(found, json.loads(found["index.json"])["manifests"][0]))
    return made


@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "options", "form", "media"),
    [
        ("oci", {}, "gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("docker", {}, "gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        ("docker", {"oci__mediatypes": "true"}, "gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("oci", {"compression": "zstd", "compression__level": "19"}, "zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("docker", {"compression": "zstd"}, "zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("oci", {"compression": "gzip", "compression__level": "9"}, "gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("oci", {"compression": "uncompressed"}, "uncompressed", "application/vnd.oci.image.layer.v1.tar"),
        ("docker", {"compression": "uncompressed"}, "uncompressed", "application/vnd.docker.image.rootfs.diff.tar"),
    ],
)  # fmt: skip
async def test_forms_of_layers(kit: Kit, kind: str, options: dict[str, str], form: str, media: str) -> None:
    given = {f"opt__{key}": value for key, value in options.items()}
    await kit.build(TEXT, exporter=kind, name="formed:1", **given)
    found = members(kit)
    top = manifest(found)
    (layer,) = top["layers"]
    assert layer["mediaType"] == media
    with tarfile.open(fileobj=io.BytesIO(OPEN[form](content(found, layer)))) as archive:
        assert archive.getnames() == ["f"]
    if kind == "docker":
        (listed,) = json.loads(found["manifest.json"])
        assert listed["Layers"] == [f"blobs/sha256/{layer['digest'][7:]}"]
        assert top["mediaType"].startswith("application/vnd." + ("oci" if "oci" in media else "docker"))
    await kit.store.load(once((kit.path / "out").read_bytes()))
    assert (kit.store.layer_dirs("formed:1")[0] / "f").read_text() == TEXT


@pytest.mark.root
async def test_layers_that_came_in_another_form(kit: Kit, registry: Start) -> None:
    host = await registry()
    await kit.build(TEXT, name=f"{host}/base:1", opt__push="true", opt__compression="zstd")
    session = await kit.store.registries.session(host, "base", auth=None, actions="pull")
    (pushed,) = json.loads((await session.manifest("1"))[0])["layers"]
    assert pushed["mediaType"].endswith("+zstd")
    image = await kit.store.pull(f"{host}/base:1", auth=None)
    again = f"FROM {host}/base:1\nCOPY Dockerfile /g\n"
    await kit.build(again, exporter="oci")
    kept, made = manifest(members(kit))["layers"]
    # The step may have found its layer made here or the one that came: the latter goes as it came.
    if kit.store.layers.stack(image.chain)[0].blob:
        assert kept == pushed
    assert made["mediaType"].endswith("+gzip")
    await kit.build(again, exporter="oci", opt__force__compression="true")
    assert {layer["mediaType"].rpartition("+")[2] for layer in manifest(members(kit))["layers"]} == {"gzip"}


@pytest.mark.root
async def test_times_are_those_of_the_source(kit: Kit) -> None:
    text = "FROM busybox\nRUN echo 1 > /one && touch -d @86400 /old && mkdir /d\n"
    epoch = {"build-arg:SOURCE_DATE_EPOCH": "1000000000", **QUIET}
    await kit.build(text, exporter="oci", opt__rewrite__timestamp="true", **epoch)
    found = members(kit)
    first = manifest(found)
    config = json.loads(content(found, first["config"]))
    assert config["created"] == config["history"][-1]["created"] == "2001-09-09T01:46:40Z"
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content(found, first["layers"][-1])))) as archive:
        assert {m.name: m.mtime for m in archive} == {"one": 10**9, "old": 86400, "d": 10**9}
    await kit.build(text, exporter="oci", opt__rewrite__timestamp="true", **epoch, **{"no-cache": ""})
    assert manifest(members(kit)) == first
    await kit.build(text, exporter="tar", **epoch)
    with tarfile.open(fileobj=io.BytesIO((kit.path / "out").read_bytes())) as archive:
        assert {m.mtime for m in archive} == {10**9}
    # The exporter's own setting, without one of the build: the configuration's times are not after it either.
    await kit.build(text, exporter="oci", opt__source__date__epoch="1", **QUIET, **{"no-cache": ""})
    found = members(kit)
    assert json.loads(content(found, manifest(found)["config"]))["created"] == "1970-01-01T00:00:01Z"


@pytest.mark.root
async def test_names_and_annotations(kit: Kit, registry: Start) -> None:
    host = await registry()
    await kit.build(TEXT, name="canon:1", opt__name__canonical="true")
    image = kit.store.resolve("canon:1")
    assert [name.familiar for name in kit.store.names(image.id)] == ["canon:1", f"canon@{image.id}"]
    await kit.build(TEXT + "LABEL a=b\n", opt__dangling__name__prefix="loose")
    assert kit.store.find(f"loose@{kit.store.resolve('loose@' + _digest(kit)).id}") is not None
    await kit.build(TEXT, name="unstored", opt__store="false")
    assert kit.store.find("unstored") is None
    answer, _ = await kit.build(TEXT, name=f"{host}/by", opt__push="true", **{"opt__push__by__digest": "true"})
    session = await kit.store.registries.session(host, "by", auth=None, actions="pull")
    assert (await session.manifest(answer["containerimage.digest"]))[2] == answer["containerimage.digest"]
    with pytest.raises(RpcError, match="can't push tagged ref by:1 by digest"):
        await kit.build(TEXT, name="by:1", opt__push="true", **{"opt__push__by__digest": "true"})
    notes = {
        "opt__annotation.all": "1", "opt__annotation__manifest[linux/arm64].arm": "2", "opt__annotation__index.top": "3",
        "opt__annotation__manifest__descriptor.own": "4", "opt__annotation__index__descriptor.over": "5",
    }  # fmt: skip
    answer, _ = await kit.build(TEXT, exporter="oci", platform="linux/amd64,linux/arm64", **notes)
    found = members(kit)
    (top,) = json.loads(found["index.json"])["manifests"]
    assert top["annotations"]["over"] == "5" and "org.opencontainers.image.created" in top["annotations"]
    index = json.loads(content(found, top))
    assert index["annotations"] == {"top": "3"} and [e["annotations"] for e in index["manifests"]] == [{"own": "4"}] * 2
    assert [json.loads(content(found, entry))["annotations"] for entry in index["manifests"]] == [
        {"all": "1"}, {"all": "1", "arm": "2"},
    ]  # fmt: skip
    assert json.loads(base64.b64decode(answer["containerimage.descriptor"]))["digest"] == top["digest"]


def _digest(kit: Kit) -> str:
    """The digest of the image that has a name in the repository `loose`."""
    rows = kit.store.database.all("SELECT name FROM names WHERE name LIKE '%loose@%'")
    return references.parse_stored(rows[0][0]).digest


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("oci", {"compression": "estargz"}, "unsupported compression type estargz"),
        ("oci", {"compression": "xz"}, "unsupported compression type xz"),
        ("oci", {"force-compression": "maybe"}, "non-bool value maybe specified for force-compression"),
        ("oci", {"compression-level": "high"}, "non-integer value high specified for compression-level"),
        ("docker", {"compression": "zstd", "oci-mediatypes": "false"}, 'conflicts with "oci-mediatypes=false"'),
        ("image", {"store": "x"}, "non-bool value specified for store"),
        ("image", {"unpack": "x"}, "non-bool value specified for unpack"),
        ("oci", {"rewrite-timestamp": ""}, "non-bool value specified for rewrite-timestamp"),
        ("oci", {"source-date-epoch": "now"}, "invalid SOURCE_DATE_EPOCH: now"),
        ("oci", {"annotation-index[linux/arm64].a": "1"}, "can't set platform for index annotation"),
        ("oci", {"annotation-other.a": "1"}, "invalid annotation annotation-other.a"),
        ("oci", {"name": "UPPER"}, "failed to parse UPPER"),
    ],
)
def test_wrong_settings(kind: str, attributes: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse(attributes, kind)
    assert message in caught.value.message


def test_settings() -> None:
    assert parse({}, "docker").form == Form(oci=False) and parse({}, "docker", attested=True).form.usual
    assert parse({"store": "", "push": "", "force-compression": ""}, "image").form.force
    assert parse({"name": "a,b:2"}, "image").names[1].tag == "2"
    assert parse({"dangling-name-prefix": "x", "danging-name-empty-only": "true", "name": "a"}, "image").dangling == ""
    with pytest.raises(InvalidParameter, match="invalid compression level: 10"):
        compressor("gzip", 10)
