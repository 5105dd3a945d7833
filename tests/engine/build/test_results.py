"""What becomes of BuildKit's results: platforms, archives, attestations, caches elsewhere, history, requests."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from longshore.engine.build.buildkit import schemas
from longshore.engine.build.buildkit.definitions import definition_of
from longshore.engine.build.buildkit.schemas import bridge, control
from longshore.engine.images import references
from longshore.machinery.grpc import Client, RpcError, Status

from ..images.conftest import imported
from .kit import Kit

pytestmark = pytest.mark.root
Start = Callable[..., Awaitable[str]]
QUIET = {"force-network-mode": "none"}


def members(kit: Kit) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO((kit.path / "out").read_bytes())) as archive:
        return {m.name: (archive.extractfile(m) or io.BytesIO()).read() if m.isfile() else b"" for m in archive}


def blob(found: dict[str, bytes], entry: dict[str, Any]) -> Any:
    return json.loads(found[f"blobs/sha256/{entry['digest'][7:]}"])


async def test_several_platforms_in_one_layout(kit: Kit) -> None:
    text = "FROM scratch\nARG TARGETARCH\nARG TARGETVARIANT\nCOPY Dockerfile /$TARGETARCH$TARGETVARIANT\n"
    answer, _ = await kit.build(text, exporter="oci", name="a:1", platform="linux/amd64,arm64,linux/arm/v7")
    found = members(kit)
    index = blob(found, json.loads(found["index.json"])["manifests"][0])
    assert answer["containerimage.digest"] == json.loads(found["index.json"])["manifests"][0]["digest"]
    shown = [(e["platform"]["architecture"], e["platform"].get("variant", "")) for e in index["manifests"]]
    assert shown == [("amd64", ""), ("arm64", ""), ("arm", "v7")]
    configs = [blob(found, blob(found, entry)["config"]) for entry in index["manifests"]]
    assert [(c["architecture"], c.get("variant", "")) for c in configs] == shown
    assert kit.store.find("a:1") is None  # an archive is no image of the store
    assert "[linux/arm64 1/1] COPY Dockerfile /arm64" in kit.names
    await kit.build(text, exporter="tar", platform="linux/amd64,linux/arm64")
    assert {"linux_amd64/amd64", "linux_arm64/arm64"} <= set(members(kit))
    told = {"attest:provenance": "mode=max", "opt__platform__split": "false"}
    await kit.build(text, exporter="tar", platform="linux/amd64,linux/arm64", **told)
    found = members(kit)
    assert {"amd64", "arm64", "provenance.linux_amd64.json", "provenance.linux_arm64.json"} <= set(found)
    subjects = json.loads(found["provenance.linux_arm64.json"])["subject"]
    assert [subject["name"] for subject in subjects] == ["arm64"]
    await kit.build("FROM scratch\nCOPY Dockerfile /f\n", exporter="tar", opt__platform__split="true")
    assert "linux_amd64/f" in members(kit)
    with pytest.raises(RpcError, match="invalid platform specifier"):
        await kit.build(text, platform="a/b/c/d")


async def test_a_layout_as_output_and_as_context(kit: Kit) -> None:
    answer, _ = await kit.build("FROM busybox\nENV MADE=here\nCOPY Dockerfile /f\n", exporter="oci", opt__tar="false")
    digest = answer["containerimage.digest"]
    manifest = json.loads(kit.content.blobs[digest])
    assert {layer["digest"] for layer in manifest["layers"]} < set(kit.content.blobs)
    before = {image.id for image in kit.store.images()}
    context = {"context:base": f"oci-layout://abcd:tag@{digest}", **QUIET}
    text = 'FROM base AS one\nRUN test "$MADE" = here && test -f /f\nFROM busybox\nCOPY --from=base /f /g\nCOPY --from=one /f /h\n'
    await kit.build(text, name="out", **context)
    assert "[context base] OCI load from client" in kit.names
    assert before < {image.id for image in kit.store.images()}
    await kit.build("FROM busybox AS base\nRUN false\nFROM base\nRUN test -f /f\n", name="out", **context)
    told = {"attest:provenance": "mode=min"}
    await kit.build("FROM base\nCOPY Dockerfile /f\n", exporter="tar", **context, **told)
    (material,) = json.loads(members(kit)["provenance.json"])["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert material["uri"].startswith("pkg:oci/base@latest?digest=") and material["digest"]["sha256"] == digest[7:]
    for wrong in ("oci-layout://abcd:tag", f"oci-layout://abcd@sha256:{'0' * 64}"):
        with pytest.raises(RpcError, match="base: "):
            await kit.build(text, name="out", **{"context:base": wrong})


async def test_a_base_of_another_platform_comes_from_the_registry(kit: Kit, registry: Start) -> None:
    host = await registry()
    for arch in ("amd64", "arm64"):
        await imported(kit.store, f"{host}/base:1", {"arch": arch.encode()}, platform=("linux", arch, ""))
        await kit.build(
            f"FROM {host}/base:1\nLABEL a=1\n", name=f"{host}/base:{arch}", opt__push="true", platform=f"linux/{arch}"
        )
    await kit.build("FROM scratch\nCOPY Dockerfile /\n", name="mark")
    await kit.store.remove(f"{host}/base:1")
    answer, _ = await kit.build(f"FROM {host}/base:arm64\nCOPY Dockerfile /\n", name="out", platform="linux/arm64")
    image = kit.store.resolve("out")
    assert answer["containerimage.digest"] == image.id and image.config["architecture"] == "arm64"


async def test_a_pushed_image_says_how_it_was_made(kit: Kit, registry: Start) -> None:
    host = await registry()
    name = references.parse(f"{host}/app:1")
    text = "FROM busybox\nARG SECRET=none\nRUN echo x > /x\n"
    attributes = {"attest:provenance": "mode=min", "build-arg:SECRET": "hush", **QUIET}
    answer, _ = await kit.build(text, name=f"{host}/app:1", opt__push="true", **attributes)
    session = await kit.store.registries.session(host, "app", auth=None, actions="pull")
    body, media, digest = await session.manifest(name.tag)
    assert digest == answer["containerimage.digest"] and media.endswith("image.index.v1+json")
    image, attested = json.loads(body)["manifests"]
    assert attested["platform"] == {"architecture": "unknown", "os": "unknown"}
    assert attested["annotations"]["vnd.docker.reference.digest"] == image["digest"]
    manifest = json.loads((await session.manifest(attested["digest"]))[0])
    layer = manifest["layers"][0]
    assert layer["annotations"] == {"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"}
    statement = json.loads(await (await session.blob(layer["digest"])).read(1 << 20))
    assert statement["subject"][0]["digest"]["sha256"] == image["digest"][7:] and "hush" not in str(statement)
    found = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [entry["uri"] for entry in found] == ["pkg:docker/busybox@latest?platform=linux%2Famd64"]
    old = {"attest:provenance": "mode=max,version=v0.2,builder-id=me", "build-arg:SECRET": "shown", **QUIET}
    await kit.build(text, name=f"{host}/app:2", opt__push="true", **old)
    index = json.loads((await session.manifest("2"))[0])
    manifest = json.loads((await session.manifest(index["manifests"][1]["digest"]))[0])
    statement = json.loads(await (await session.blob(manifest["layers"][0]["digest"])).read(1 << 20))
    assert statement["predicateType"] == "https://slsa.dev/provenance/v0.2"
    assert statement["predicate"]["builder"] == {"id": "me"}
    assert statement["predicate"]["invocation"]["parameters"]["args"]["build-arg:SECRET"] == "shown"
    await kit.build(text, exporter="tar", **attributes)
    assert "provenance.json" in members(kit)
    with pytest.raises(RpcError, match='unknown attestation type "x"'):
        await kit.build(text, **{"attest:x": ""})


CACHED = "FROM busybox AS a\nRUN echo one > /one\nENV X=1\nFROM a\nRUN cat /one > /two\nCOPY Dockerfile /d\n"


async def forgotten(kit: Kit, *names: str) -> None:
    for name in names:
        await kit.store.remove(name, force=True)
    async for _ in kit.client.stream("Prune", all=True):
        pass


@pytest.mark.parametrize("kind", ["registry", "local", "inline"])
async def test_caches_elsewhere(kit: Kit, registry: Start, kind: str) -> None:
    host = await registry()
    place = {"registry": {"ref": f"{host}/cache:1"}, "local": {"dest": "/c", "src": "/c"}, "inline": {}}[kind]
    kit.cache_to = [control.CacheOptionsEntry(Type=kind, Attrs={**place, "mode": "max"})]
    push = {"opt__push": "true"} if kind == "inline" else {}
    answer, _ = await kit.build(CACHED, name=f"{host}/app:1", **QUIET, **push)
    first = kit.store.resolve(f"{host}/app:1")
    kit.cache_to = []
    await forgotten(kit, f"{host}/app:1")
    assert kit.store.get(first.id) is None
    if kind == "inline":
        kit.cache_from = [control.CacheOptionsEntry(Type="registry", Attrs={"ref": f"{host}/app:1"})]
    else:
        digest = json.loads(answer["cache.manifest"])["digest"]
        kit.cache_from = [control.CacheOptionsEntry(Type=kind, Attrs={**place, "digest": digest})]
    await kit.build(CACHED, name="again", **QUIET)
    assert [name for name in kit.names if "/2]" in name and not name.endswith("*")] == []
    if kind != "inline":
        assert kit.store.resolve("again").id == first.id
    # What has changed is built anew, and what lies before it is not.
    await forgotten(kit, "again")
    await kit.build(CACHED.replace("/two\n", "/three\n"), name="third", **QUIET)
    assert [name for name in kit.names if name.startswith("[") and "RUN" in name] == [
        "[a 2/2] RUN echo one > /one*",
        "[stage-1 1/2] RUN cat /one > /three",
    ]


async def test_every_platform_has_its_inline_cache(kit: Kit, registry: Start) -> None:
    host = await registry()
    text = "FROM --platform=linux/amd64 busybox\nARG TARGETARCH\nRUN echo $TARGETARCH > /arch && cat /proc/sys/kernel/random/uuid > /u\n"
    kit.cache_to = [control.CacheOptionsEntry(Type="inline")]
    both = {"platform": "linux/amd64,linux/arm64", **QUIET}
    await kit.build(text, name=f"{host}/multi:1", opt__push="true", **both)
    await forgotten(kit, f"{host}/multi:1")
    kit.cache_to, kit.cache_from = [], [control.CacheOptionsEntry(Type="registry", Attrs={"ref": f"{host}/multi:1"})]
    await kit.build(text, name="again", **both)
    assert len([name for name in kit.names if "RUN" in name and name.endswith("*")]) == 2


async def test_a_cache_that_is_not_there_is_none(kit: Kit, registry: Start) -> None:
    host = await registry()
    kit.cache_from = [control.CacheOptionsEntry(Type="registry", Attrs={"ref": f"{host}/nothing:1"})]
    await kit.build("FROM busybox\nRUN true\n", name="x", **QUIET)
    assert any(name.startswith("importing cache manifest") for name in kit.names)
    kit.cache_from = [control.CacheOptionsEntry(Type="azblob", Attrs={})]
    with pytest.raises(RpcError, match='unknown cache importer: "azblob"'):
        await kit.build("FROM busybox\n", name="x")
    kit.cache_from, kit.cache_to = [], [control.CacheOptionsEntry(Type="azblob", Attrs={})]
    with pytest.raises(RpcError, match='unknown cache exporter: "azblob"'):
        await kit.build("FROM busybox\n", name="x")


async def test_history(kit: Kit) -> None:
    await kit.build("FROM busybox\nRUN echo said\n", name="x", **{"attest:provenance": "", **QUIET})
    with pytest.raises(RpcError):
        await kit.build("FROM busybox\nRUN false\n", name="x", **QUIET)

    async def records(**fields: Any) -> list[Any]:
        return [event.record async for event in kit.client.stream("ListenBuildHistory", EarlyExit=True, **fields)]

    good, bad = await records()
    assert (good.Ref, good.HasField("error"), bad.Ref, bad.HasField("error")) == ("r1", False, "r2", True)
    assert good.numTotalSteps == good.numCompletedSteps == 6 and good.FrontendAttrs["filename"] == "Dockerfile"
    assert "exit code: 1" in bad.error.message and bad.error.details[0].type_url.endswith("errdefs.Source+json")
    assert [r.Ref for r in await records(Filter=["status==error"])] == ["r2"]
    assert [r.Ref for r in await records(Ref="r1")] == ["r1"] and [r.Ref for r in await records(Limit=1)] == ["r2"]
    # Its log and its documents can be had after the engine's memory of it is gone.
    kit.services._jobs.clear()
    said = b"".join([log.msg async for m in kit.client.stream("Status", Ref="r1") for log in m.logs])
    assert said == b"said\n"
    content = Client(schemas.content.Content, path=kit.path / "engine.sock")
    document = good.Result.Attestations[0]
    assert (await content.call("Info", digest=document.digest)).info.size == document.size
    data = b"".join([part.data async for part in content.stream("Read", digest=document.digest, offset=1, size=9)])
    assert data == b'"_type":"'
    with pytest.raises(RpcError) as caught:
        await content.call("Info", digest="sha256:00")
    assert caught.value.status is Status.NOT_FOUND
    content.close()
    await kit.client.call("UpdateBuildHistory", Ref="r1", Pinned=True)
    assert [r.pinned for r in await records(Ref="r1")] == [True]
    await kit.client.call("UpdateBuildHistory", Ref="r1", Delete=True)
    assert [r.Ref for r in await records()] == ["r2"]
    with pytest.raises(RpcError, match="record r1 not found"):
        await kit.client.call("UpdateBuildHistory", Ref="r1", Delete=True)


async def ask(kit: Kit, request: str, text: str, **attributes: str) -> dict[str, Any]:
    (kit.context / "Dockerfile").write_text(text)
    kit.services.job("r0").session = "s1"
    kit.services.job("r0").begun.set()
    answer = await kit.bridge.call(
        "Solve", Frontend="dockerfile.v0", FrontendOpt={"requestid": request, "filename": "Dockerfile", **attributes}
    )
    found = dict(answer.result.metadata)
    return {
        "json": json.loads(found["result.json"]),
        "text": found["result.txt"].decode(),
        "code": found.get("result.statuscode"),
    }


async def test_requests_about_a_file(kit: Kit) -> None:
    text = "ARG V=1\n# base is where it begins\nFROM busybox AS base\n# WHO is greeted\nARG WHO=you\nRUN --mount=type=secret,id=s,required --mount=type=ssh true\nFROM base\nCMD x\n"
    found = await ask(kit, "frontend.targets", text)
    assert [(t.get("name"), t.get("default"), t.get("description")) for t in found["json"]["targets"]] == [
        ("base", None, "is where it begins"), (None, True, None),
    ]  # fmt: skip
    assert found["text"] == "TARGET    DESCRIPTION\nbase      is where it begins\n(default) \n"
    found = await ask(kit, "frontend.outline", text, target="base")
    assert found["json"]["args"][0] | {"location": 0} == {
        "name": "WHO",
        "description": "is greeted",
        "value": "you",
        "location": 0,
    }
    assert found["json"]["secrets"][0]["required"] is True and found["json"]["ssh"][0]["name"] == "default"
    found = await ask(kit, "frontend.lint", text)
    assert [w["ruleName"] for w in found["json"]["warnings"]] == ["JSONArgsRecommended"] and found["code"] == b"1"
    assert "Dockerfile:8\n--------------------\n" in found["text"] and "   8 | >>> CMD x\n" in found["text"]
    found = await ask(kit, "frontend.lint", "FROM nowhere.invalid/x\n")
    assert "failed to resolve source metadata" in found["json"]["buildError"]["message"]
    assert len((await ask(kit, "frontend.subrequests.describe", text))["json"]) == 4
    with pytest.raises(RpcError, match=r"unsupported request frontend\.other"):
        await ask(kit, "frontend.other", text)


async def test_an_outline_tells_values(kit: Kit) -> None:
    text = (
        "ARG one=box\nARG unused=x\n# sfx is a suffix\nARG sfx=usy${one}\nARG sfx=${sfx}\nFROM b${sfx} AS first\n"
        "# BAR is a number\n# check=skip=all\nARG BAR=456\nARG BOTH=$BAR-$BAR\n"
        "RUN --mount=type=secret,id=s${BAR} true\nFROM other\n"
    )
    found = await ask(kit, "frontend.outline", text, target="first", **{"build-arg:BAR": "7"})
    shown = [(arg["name"], arg["value"], arg.get("description")) for arg in found["json"]["args"]]
    assert shown == [
        ("one", "box", None), ("sfx", "usybox", None), ("BAR", "7", "is a number"), ("BOTH", "7-7", None),
    ]  # fmt: skip
    assert [secret["name"] for secret in found["json"]["secrets"]] == ["s7"]


async def test_a_build_warns_and_can_be_made_to_fail(kit: Kit) -> None:
    text = "FROM busybox\nCMD x\n"
    await kit.build(text, name="x")
    detail = "JSON arguments recommended for CMD to prevent unintended behavior related to OS signals (line 2)"
    assert kit.warnings == [f"JSONArgsRecommended: {detail}"]
    with pytest.raises(RpcError, match="lint violation found for rules: JSONArgsRecommended"):
        await kit.build("# check=error=true\n" + text, name="x")
    await kit.build("# check=error=true\n" + text, name="x", **{"build-arg:BUILDKIT_DOCKERFILE_CHECK": "skip=all"})
    assert kit.warnings == []


async def test_contexts(kit: Kit) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in (("Dockerfile", b"FROM scratch\nCOPY in/f /g\n"), ("in/f", b"sent")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    kit.upload.data["u1"] = packed.getvalue()
    await kit.build("", exporter="tar", context="http://buildkit-session/u1")
    assert members(kit) == {"g": b"sent"}
    other = kit.path / "other"
    other.mkdir()
    (other / "f").write_text("named")
    kit.files.folders["other"] = other
    text = "FROM base AS b\nCOPY --from=files f /f\nRUN --mount=type=bind,from=files,target=/m cat /m/f\nFROM scratch\nCOPY --from=b /f /f\nCOPY --from=sub / /\n"
    contexts = {"context:base": "docker-image://busybox", "context:files": "local:other", "context:sub": "local:other"}
    await kit.build(text, exporter="tar", **contexts, **QUIET)
    assert members(kit) == {"f": b"named"} and kit.logs == b"named"
    (other / "unused").write_text("x")
    await kit.build("FROM scratch\nCOPY --from=files f /f\n", exporter="tar", **contexts, **QUIET)
    assert kit.files.asked[-1] == {"dir-name": ["other"], "followpaths": ["f"]}
    (other / "unused").unlink()
    # A stage gives way to a context of its name; a result of another build comes as a definition.
    await kit.build("FROM scratch AS one\nCOPY nothing /\nFROM one\n", exporter="tar", **{"context:one": "local:other"})
    assert members(kit) == {"f": b"named"}
    image = await imported(kit.store, "made:1", {"m": b"made"})
    kit.inputs = {"base": definition_of(image.chain, control)}
    config = json.dumps({"containerimage.config": "eyJjb25maWciOnsiRW52IjpbIkE9YiJdfX0="})
    await kit.build(
        "FROM base\nLABEL e=$A\n", name="linked", **{"context:base": "input:base", "input-metadata:base": config}
    )
    assert kit.store.resolve("linked").labels == {"e": "b"}
    kit.inputs = {}
    with pytest.raises(RpcError, match="unsupported context source ftp"):
        await kit.build("FROM base\n", name="x", **{"context:base": "ftp://x"})


def graph(*operations: Any, schema: Any = bridge) -> Any:
    """A definition from operations; each one's inputs are the operations before it that it names by number."""
    from longshore.engine.build.buildkit.definitions import digest_of

    made = schema.Definition()
    digests: list[str] = []
    for operation, inputs in (*operations, (schemas.pb.Op(), [(len(operations) - 1, 0)])):
        for number, index in inputs:
            operation.inputs.add(digest=digests[number], index=index)
        data = operation.SerializeToString(deterministic=True)
        digests.append(digest_of(data))
        getattr(made, "def").append(data)
    return made


async def test_definitions(kit: Kit) -> None:
    pb = schemas.pb
    resolved = kit.store.resolve("busybox").id
    base = pb.Op(source=pb.SourceOp(identifier=f"docker-image://docker.io/library/busybox:latest@{resolved}"))
    local = pb.Op(source=pb.SourceOp(identifier="local://context"))
    (kit.context / "f").write_text("from the client")
    run = pb.Op(exec=pb.ExecOp(
        meta=pb.Meta(args=["/bin/sh", "-c", "cat /in/f > /out/x; echo kept > /y; test $no_proxy$NO_PROXY = hh"], env=["PATH=/bin"], cwd="/", proxy_env=pb.ProxyEnv(no_proxy="h")),
        network=2,
        mounts=[
            pb.Mount(input=0, dest="/", output=0),
            pb.Mount(input=1, dest="/in", output=-1, readonly=True),
            pb.Mount(input=-1, dest="/out", output=1),
        ],
    ))  # fmt: skip
    files = pb.Op(file=pb.FileOp(actions=[
        pb.FileAction(input=-1, secondaryInput=0, output=-1, copy=pb.CopyAction(src="/x", dest="/z/", mode=-1, timestamp=-1, createDestPath=True)),
        pb.FileAction(input=1, secondaryInput=-1, output=-1, mkdir=pb.MkDirAction(path="/d", mode=0o750, timestamp=7 * 10**9)),
        pb.FileAction(input=2, secondaryInput=-1, output=-1, mkfile=pb.MkFileAction(path="/d/n", mode=0o600, data=b"new", timestamp=-1)),
        pb.FileAction(input=3, secondaryInput=-1, output=-1, symlink=pb.SymlinkAction(oldpath="n", newpath="/d/l", timestamp=-1)),
        pb.FileAction(input=4, secondaryInput=-1, output=0, rm=pb.RmAction(path="/nothing*", allowNotFound=True, allowWildcard=True)),
    ]))  # fmt: skip
    merge = pb.Op(merge=pb.MergeOp(inputs=[pb.MergeInput(input=0), pb.MergeInput(input=1)]))
    diff = pb.Op(diff=pb.DiffOp(lower=pb.MergeInput(input=0), upper=pb.MergeInput(input=1)))
    definition = graph(
        (base, []), (local, []), (run, [(0, 0), (1, 0)]), (files, [(2, 1)]), (diff, [(0, 0), (2, 0)]), (merge, [(4, 0), (3, 0)]),
        schema=control,
    )  # fmt: skip
    request = control.SolveRequest(
        Ref="llb", Session="s1", Definition=definition, Exporters=[control.Exporter(Type="tar")]
    )
    await kit.client.call("Solve", request)
    assert members(kit) == {"d": b"", "d/l": b"", "d/n": b"new", "y": b"kept\n", "z": b"", "z/x": b"from the client"}
    again = control.SolveRequest(
        Ref="llb2", Session="s1", Definition=definition, Exporters=[control.Exporter(Type="tar")]
    )
    await kit.client.call("Solve", again)
    steps = [r async for r in kit.client.stream("ListenBuildHistory", EarlyExit=True, Ref="llb2")]
    assert steps[0].record.numCachedSteps == 4


async def tree(kit: Kit, definition: Any) -> dict[str, bytes]:
    """What a definition's result holds."""
    kit.number += 1
    request = control.SolveRequest(
        Ref=f"tree{kit.number}", Session="s1", Definition=definition, Exporters=[control.Exporter(Type="tar")]
    )
    await kit.client.call("Solve", request)
    return members(kit)


async def test_differences_and_definitions_in_files(kit: Kit) -> None:
    pb = schemas.pb
    old = "mkdir -p /d/e /gone && echo 1 > /d/same && echo 1 > /d/e/was && echo 1 > /turned && touch -d @7 /d/same"
    new = "mkdir -p /d/e /turned && echo 1 > /d/same && echo 2 > /d/e/is && touch -d @7 /d/same && ln -s is /d/e/l"
    for name, command in (("old", old), ("new", new)):
        await kit.build(f"FROM busybox\nRUN {command}\n", name=name, **QUIET)
    chains = [kit.store.resolve(name).chain for name in ("old", "new")]
    ours = [pb.Op(source=pb.SourceOp(identifier=f"longshore-layers://{chain}")) for chain in chains]
    diff = pb.Op(diff=pb.DiffOp(lower=pb.MergeInput(input=0), upper=pb.MergeInput(input=1)))
    inner = graph((ours[0], []), (ours[1], []), (diff, [(0, 0), (1, 0)]), schema=control)
    made = await tree(kit, inner)
    assert made == {
        "d": b"", "d/e": b"", "d/e/is": b"2\n", "d/e/l": b"", "turned": b"",
    }  # fmt: skip
    merge = pb.Op(merge=pb.MergeOp(inputs=[pb.MergeInput(input=0), pb.MergeInput(input=1)]))
    whole = graph((ours[0], []), (ours[1], []), (diff, [(0, 0), (1, 0)]), (merge, [(0, 0), (2, 0)]), schema=control)
    found = await tree(kit, whole)
    assert found["d/same"] == b"1\n" and found["turned"] == b""
    assert not {"gone", "d/e/was"} & set(found)
    # The same definition from a file of another one's.
    write = pb.FileAction(
        input=-1,
        secondaryInput=-1,
        output=0,
        mkfile=pb.MkFileAction(path="/x", mode=0o600, data=inner.SerializeToString()),
    )
    build = pb.Op(
        build=pb.BuildOp(
            builder=-1, inputs={"buildkit.llb.definition": pb.BuildInput(input=0)}, attrs={"llbbuild.filename": "x"}
        )
    )
    outer = graph((pb.Op(file=pb.FileOp(actions=[write])), []), (build, [(0, 0)]), schema=control)
    assert await tree(kit, outer) == made


async def test_wrong_definitions(kit: Kit) -> None:
    pb = schemas.pb
    broken = control.Definition()
    getattr(broken, "def").append(b"\xff\xff")
    missing = graph((pb.Op(source=pb.SourceOp(identifier="ftp://x")), []), schema=control)
    dangling = control.Definition()
    end = pb.Op(inputs=[pb.Input(digest="sha256:" + "0" * 64)])
    getattr(dangling, "def").append(end.SerializeToString())
    for number, (definition, text) in enumerate(
        [
            (broken, "failed to parse llb proto op"),
            (missing, "source scheme ftp is not known"),
            (dangling, "invalid missing input"),
        ]
    ):
        request = control.SolveRequest(Ref=f"w{number}", Session="s1", Definition=definition)
        with pytest.raises(RpcError, match=text):
            await kit.client.call("Solve", request)


async def test_files_of_a_result(kit: Kit) -> None:
    (kit.context / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /d/f\n")
    (kit.context / "g").write_text("")
    solving = asyncio.create_task(kit.client.call("Solve", Ref="r0", Session="s1"))
    answer = await kit.bridge.call("Solve", Frontend="dockerfile.v0", FrontendOpt={"filename": "Dockerfile"})
    ref = answer.result.ref.id
    assert (await kit.bridge.call("ReadFile", Ref=ref, FilePath="/d/f")).Data.startswith(b"FROM scratch")
    entries = (await kit.bridge.call("ReadDir", Ref=ref, DirPath="/d")).entries
    assert [entry.path for entry in entries] == ["f"]
    assert (await kit.bridge.call("StatFile", Ref=ref, Path="/d/f")).stat.size > 20
    with pytest.raises(RpcError) as caught:
        await kit.bridge.call("ReadFile", Ref=ref, FilePath="/../../etc/passwd")
    assert caught.value.status is Status.NOT_FOUND
    await kit.bridge.call("Return", result=answer.result)
    await solving


async def test_entitlements(kit: Kit) -> None:
    text = "FROM busybox\nRUN --security=insecure true\n"
    with pytest.raises(RpcError, match=r"security\.insecure is not allowed"):
        await kit.build(text, name="x", **QUIET)
    kit.entitlements = ["security.insecure"]
    with pytest.raises(
        RpcError, match=r"granting entitlement security\.insecure is not allowed by build daemon configuration"
    ):
        await kit.build(text, name="x", **QUIET)
    kit.services.allowed.add("security.insecure")
    await kit.build("FROM busybox\nRUN --security=insecure grep CapEff /proc/self/status\n", name="x", **QUIET)
    assert int(kit.logs.split()[1], 16) > 0xA80425FB
    kit.entitlements = []
    with pytest.raises(RpcError, match=r"network\.host is not allowed"):
        await kit.build("FROM busybox\nRUN --network=host true\n", name="x")
    kit.entitlements = ["network.host"]
    await kit.build("FROM busybox\nRUN --network=host true\n", name="x")


async def test_several_platforms_in_the_engine(kit: Kit) -> None:
    text = "FROM scratch\nARG TARGETARCH\nCOPY Dockerfile /$TARGETARCH\n"
    await kit.build(text, name="x:1,y:2", platform="linux/amd64,linux/s390x", **{"attest:provenance": "mode=min"})
    for name in ("x:1", "y:2"):
        images = {arch: kit.store.resolve(name, f"linux/{arch}") for arch in ("amd64", "s390x")}
        assert {arch: image.config["architecture"] for arch, image in images.items()} == {a: a for a in images}
    (entry,) = [found for found in kit.store.list(manifests=True) if "x:1" in found["RepoTags"]]
    assert [found["Kind"] for found in entry["Manifests"]] == ["image"] * 2 + ["attestation"] * 2
    await kit.build("FROM --platform=linux/s390x x:1\nCOPY Dockerfile /b\n", name="z", platform="linux/s390x")
    assert kit.store.resolve("z").diff_ids[0] == images["s390x"].diff_ids[0]


async def test_copies_depend_on_what_they_read(kit: Kit) -> None:
    """A definition's copy is done already when other files of its source have changed."""
    pb = schemas.pb
    local = pb.Op(source=pb.SourceOp(identifier="local://context"))
    copy = pb.CopyAction(src="/a", dest="/a", mode=-1, timestamp=-1)
    step = pb.Op(file=pb.FileOp(actions=[pb.FileAction(input=-1, secondaryInput=0, output=0, copy=copy)]))
    definition = graph((local, []), (step, [(0, 0)]), schema=control)
    cached: list[bool] = []
    for files in ({"a": "1", "b": "1"}, {"a": "1", "b": "2"}, {"a": "2", "b": "2"}):
        for name, text in files.items():
            (kit.context / name).write_text(text)
        kit.number += 1
        await kit.client.call("Solve", Ref=f"k{kit.number}", Session="s1", Definition=definition)
        said = [message async for message in kit.client.stream("Status", Ref=f"k{kit.number}")]
        vertices = {vertex.digest: vertex for message in said for vertex in message.vertexes}
        cached += [vertex.cached for vertex in vertices.values() if vertex.name.startswith("copy")]
    assert cached == [False, True, False]
    from longshore.engine.build.buildkit.definitions import digest_of

    definition.metadata[digest_of(getattr(definition, "def")[1])].ignore_cache = True
    await kit.client.call("Solve", Ref="k9", Session="s1", Definition=definition)
    said = [message async for message in kit.client.stream("Status", Ref="k9")]
    assert not any(vertex.cached for message in said for vertex in message.vertexes)


async def test_caches_that_begin_with_something(kit: Kit) -> None:
    text = (
        "FROM busybox AS base\nRUN mkdir -p /d/e && echo one > /d/f && chown 5:5 /d/f\n"
        "FROM busybox\nRUN --mount=type=cache,id=c,target=/c,from=base,source=/d cat /c/f; stat -c %u /c/f; echo more >> /c/f\n"
        "RUN --mount=type=cache,id=c,target=/c,from=base,source=/d cat /c/f && echo next\n"
        "RUN --mount=type=cache,id=c,target=/c ls -A /c && echo apart\n"
    )
    await kit.build(text, **QUIET)
    assert b"one\n5\n" in kit.logs and b"one\nmore\nnext\n" in kit.logs and b"next\napart\n" in kit.logs
