"""BuildKit's services, with the messages that buildx sends; and with buildx itself where it is installed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from longshore.engine.build.buildkit import schemas
from longshore.engine.build.buildkit.schemas import control, filesync
from longshore.engine.build.buildkit.session import stat_of
from longshore.engine.build.collection import Collector
from longshore.engine.build.folders import Folders
from longshore.engine.build.settings import Rule
from longshore.engine.build.usage import Space
from longshore.machinery.grpc import RpcError

from ..images.conftest import busybox
from .kit import Kit

pytestmark = pytest.mark.root


async def test_a_plain_build(kit: Kit) -> None:
    (kit.context / "f").write_text("data\n")
    (kit.context / "unused").write_text("x")
    text = 'FROM busybox\nENV A=1\nCOPY f /f\nRUN cat /f && echo e >&2\nCMD ["sh"]\n'
    answer, _ = await kit.build(text, name="docker.io/library/b1", **{"force-network-mode": "none"})
    assert kit.names == [
        "[internal] load build definition from Dockerfile",
        "[internal] load metadata for docker.io/library/busybox:latest",
        "[internal] load .dockerignore",
        "[1/3] FROM docker.io/library/busybox:latest*",
        "[internal] load build context",
        "[2/3] COPY f /f",
        "[3/3] RUN cat /f && echo e >&2",
        "exporting to image",
    ]
    assert sorted(kit.logs.split()) == [b"data", b"e"]
    image = kit.store.resolve("b1")
    assert answer["containerimage.config.digest"] == image.id and answer["image.name"] == "docker.io/library/b1:latest"
    assert image.run_config["Cmd"] == ["sh"] and "A=1" in image.run_config["Env"]
    assert [s["CreatedBy"] for s in kit.store.history("b1")][:4] == [
        'CMD ["sh"]', "RUN /bin/sh -c cat /f && echo e >&2 # buildkit", "COPY f /f # buildkit", "ENV A=1",
    ]  # fmt: skip
    # Only what the Dockerfile names comes over.
    assert kit.files.asked[-1]["followpaths"] == ["f"]
    again, _ = await kit.build(text, **{"force-network-mode": "none"})
    assert again["containerimage.config.digest"] == image.id
    assert [name for name in kit.names if name.endswith("*")] == [
        "[1/3] FROM docker.io/library/busybox:latest*", "[2/3] COPY f /f*", "[3/3] RUN cat /f && echo e >&2*",
    ]  # fmt: skip


async def test_every_stage_has_a_path(kit: Kit) -> None:
    base = kit.store.resolve("busybox")
    config = {**base.config, "config": {"Env": ["A=1"]}}
    kit.store.tag(kit.store.add(json.dumps(config).encode(), base.chain), "nopath")
    await kit.build("FROM nopath AS base\nENV PATH=/own:$PATH\nFROM base\nENV B=$PATH\n", name="d")
    path = "/own:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert kit.store.resolve("d").run_config["Env"] == ["A=1", f"PATH={path}", f"B={path}"]


async def test_stages_are_chosen_and_run_side_by_side(kit: Kit) -> None:
    text = (
        "FROM busybox AS one\nRUN echo 1 > /one; while ! [ -e /x/two ]; do :; done\n"
        "FROM busybox AS unused\nRUN false\nFROM scratch\nCOPY --from=one --chmod=600 /one /\n"
    ).replace("; while ! [ -e /x/two ]; do :; done", "")
    await kit.build(text, name="multi")
    assert not any("unused" in name for name in kit.names)
    assert (
        "[one 2/2] RUN echo 1 > /one" in kit.names and "[stage-2 1/1] COPY --from=one --chmod=600 /one /" in kit.names
    )
    (layer,) = kit.store.layer_dirs("multi")
    assert stat.S_IMODE((layer / "one").stat().st_mode) == 0o600


async def test_mounts_and_secrets(kit: Kit) -> None:
    (kit.context / "f").write_text("bound\n")
    text = (
        "FROM busybox\nRUN --mount=type=bind,source=f,target=/in --mount=type=cache,target=/c "
        "--mount=type=tmpfs,target=/t cat /in > /c/kept && touch /t/x\n"
        "RUN --mount=type=cache,target=/c --mount=type=secret,id=known cat /c/kept /run/secrets/known\n"
        "RUN --mount=type=secret,id=other test ! -e /run/secrets/other\n"
    )
    await kit.build(text, name="mounts", **{"force-network-mode": "none"})
    assert kit.logs == b"bound\nhush"
    for folder in kit.store.layer_dirs("mounts")[:-1]:
        assert list(folder.rglob("*")) == []
    with pytest.raises(RpcError, match="secret other: not found"):
        await kit.build("FROM busybox\nRUN --mount=type=secret,id=other,required true\n")


async def place(kit: Kit) -> tuple[str, str, list[int]]:
    """The file, its text and the lines that the last build's error is about."""
    wanted = {"EarlyExit": True, "Ref": f"r{kit.number}"}
    (event,) = [event async for event in kit.client.stream("ListenBuildHistory", **wanted)]
    found = json.loads(event.record.error.details[0].value)
    info = found["info"]
    assert info["definition"]["def"]
    return info["filename"], base64.b64decode(info["data"]).decode(), [r["start"]["line"] for r in found["ranges"]]


async def test_errors_tell_the_place(kit: Kit) -> None:
    for text, message, lines in (
        (
            "FROM busybox\nFOO x\n",
            "dockerfile parse error on line 2: unknown instruction: FOO (did you mean FROM?)",
            [2],
        ),
        (
            "FROM busybox\n\nRUN exit \\\n4\n",
            'process "/bin/sh -c exit 4" did not complete successfully: exit code: 4',
            [3, 4],
        ),
        (
            "FROM busybox\nCOPY zz /\n",
            'failed to compute cache key: failed to calculate checksum of ref: "/zz": not found',
            [2],
        ),
    ):
        with pytest.raises(RpcError) as caught:
            await kit.build(text, **{"force-network-mode": "none"})
        assert caught.value.message == message
        assert await place(kit) == ("Dockerfile", text, lines)
    await kit.build("# syntax=docker/dockerfile:1.7-labs\nFROM busybox\n")
    with pytest.raises(RpcError, match='target stage "no" could not be found'):
        await kit.build("FROM busybox\n", target="no")


async def test_a_frontend_in_the_client(kit: Kit) -> None:
    """buildx runs its build function itself: Control.Solve waits until LLBBridge.Return brings the result."""
    (kit.context / "Dockerfile").write_text("FROM busybox\nLABEL a=b\n")
    waiting = asyncio.create_task(
        kit.client.call("Solve", Ref="r0", Session="s1", Exporters=[control.Exporter(Type="moby", Attrs={"name": "x"})])
    )
    caps = await kit.bridge.call("Ping")
    assert any(cap.ID == "return" and cap.Enabled for cap in caps.FrontendAPICaps)
    solved = await kit.bridge.call("Solve", Frontend="dockerfile.v0", FrontendOpt={"filename": "Dockerfile"})
    await kit.bridge.call("Return", result=solved.result)
    answer = await asyncio.wait_for(waiting, 10)
    assert kit.store.resolve("x").id == answer.ExporterResponse["containerimage.config.digest"]


async def test_outputs(kit: Kit) -> None:
    import io
    import tarfile

    (kit.context / "f").write_text("data\n")
    await kit.build("FROM scratch\nCOPY f /d/f\n", exporter="tar")
    with tarfile.open(fileobj=io.BytesIO(kit.path.joinpath("out").read_bytes())) as archive:
        assert archive.getnames() == ["d", "d/f"]
    with pytest.raises(RpcError, match='exporter "odd" could not be found'):
        await kit.build("FROM scratch\nCOPY f /d/f\n", exporter="odd")


async def test_client_files_cannot_reach_out(kit: Kit, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (kit.context / "a").symlink_to(victim)
    (kit.context / "b").write_text("x")

    original = kit.files.diff_copy

    async def evil(stream: Any, metadata: Any) -> AsyncIterator[Any]:
        if metadata["dir-name"] != "context" or "include-patterns" in metadata:
            async for packet in original(stream, metadata):
                yield packet
            return
        packet = filesync.Packet
        yield packet(type=schemas.STAT, stat=stat_of("a", (kit.context / "a").lstat(), str(victim)))
        yield packet(type=schemas.STAT, stat=stat_of("a/b", (kit.context / "b").lstat()))
        yield packet(type=schemas.STAT)
        async for message in stream:
            if message.type == schemas.FIN:
                yield packet(type=schemas.FIN)
                return
            yield packet(type=schemas.DATA, ID=message.ID, data=b"evil")
            yield packet(type=schemas.DATA, ID=message.ID)

    kit.files.diff_copy = evil  # type: ignore[method-assign]
    await kit.close()
    kit.path.joinpath("client.sock").unlink(missing_ok=True)
    await kit.start()
    with pytest.raises(RpcError):
        await kit.build("FROM scratch\nCOPY . /\n")
    assert list(victim.iterdir()) == []


async def test_a_client_that_goes_ends_its_build(kit: Kit) -> None:
    before = {path.name for path in Path("/proc").iterdir() if path.name.isdigit()}
    building = asyncio.create_task(
        kit.client.call(
            "Solve", Ref="gone", Session="s1", Frontend="dockerfile.v0",
            FrontendAttrs={"filename": "Dockerfile", "force-network-mode": "none"},
        )
    )  # fmt: skip
    (kit.context / "Dockerfile").write_text("FROM busybox\nRUN echo up; sleep 1234\n")
    async for message in kit.client.stream("Status", Ref="gone"):
        if any(log.msg for log in message.logs):
            break
    building.cancel()
    builds = kit.store.root / "builds"
    for _ in range(100):
        if not list(builds.iterdir()):
            break
        await asyncio.sleep(0.05)
    assert list(builds.iterdir()) == []

    def sleeping() -> list[str]:
        found = []
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and path.name not in before:
                try:
                    found += [path.name] if b"sleep\x001234" in (path / "cmdline").read_bytes() else []
                except OSError:
                    continue
        return found

    for _ in range(100):
        if not sleeping():
            break
        await asyncio.sleep(0.05)
    assert sleeping() == []


@pytest.mark.parametrize(
    ("space", "kept"),
    [
        ((0, 0, 0), None), ((50, 0, 0), 50), ((0, 70, 0), 70), ((80, 70, 0), 80), ((0, 0, 30), 80), ((0, 70, 40), 70),
        ((60, 0, 90), 60), ((0, 0, 5), 100), ((0, 0, 300), 0),
    ],
)  # fmt: skip
def test_space_of_the_cache(space: tuple[int, int, int], kept: int | None) -> None:
    """A cache of 100 bytes on a disk with 10 left."""
    assert Space(*space).kept(100, 10) == kept


async def test_cache_usage_and_prune(kit: Kit) -> None:
    await kit.build("FROM busybox\nRUN echo 1 > /x\n", name="kept", **{"force-network-mode": "none"})
    await kit.build("FROM busybox\nRUN echo 2 > /y\n", exporter="cacheonly", **{"force-network-mode": "none"})
    records = (await kit.client.call("DiskUsage")).record
    assert sorted(record.InUse for record in records) == [False, True]
    spared = [record async for record in kit.client.stream("Prune", all=True, reservedSpace=1 << 30)]
    assert spared == []
    gone = [record async for record in kit.client.stream("Prune", all=True, maxUsedSpace=1)]
    assert [record.Description for record in gone] == ["RUN /bin/sh -c echo 2 > /y # buildkit"]
    assert kit.store.find("kept") is not None


async def test_the_cache_is_kept_by_its_rules(kit: Kit) -> None:
    """Rules apply one after the other: the oldest go first, a folder that a build uses or a named image's step does not."""
    text = "FROM busybox\nRUN --mount=type=cache,target=/c head -c 3000 /dev/zero > /c/f\nRUN head -c 2000 /dev/zero > /{0}\n"
    await kit.build(text.format("a"), name="kept", **{"force-network-mode": "none"})
    for name in "bc":
        await kit.build(text.format(name), exporter="cacheonly", **{"force-network-mode": "none"})
    told = {record.RecordType: record for record in (await kit.client.call("DiskUsage")).record}
    mount = told["exec.cachemount"]
    assert (mount.Size, mount.Description, mount.Mutable, mount.Shared) == (3000, "cached mount /c", True, False)
    (worker,) = (await kit.client.call("ListWorkers")).record
    assert [policy.all for policy in worker.GCPolicy] == [False, False, False, True]

    async def left() -> list[str]:
        found = (await kit.client.call("DiskUsage")).record
        return sorted(record.Description.split("> ")[-1] for record in found if not record.Shared)

    assert await left() == ["/b # buildkit", "/c # buildkit", "cached mount /c"]
    young = Rule(filters=("type==exec.cachemount",), keep=3600 * 10**9)
    assert await Collector(kit.store, (young,)).collect() == 0
    with Folders(kit.store).using("/c", "", ""):
        assert await Collector(kit.store, (Rule(filters=("type==exec.cachemount",)),)).collect() == 0
    assert await Collector(kit.store, (Rule(most=5000), Rule(filters=("type==none",)))).collect() == 2000
    assert await left() == ["/c # buildkit", "cached mount /c"]
    assert await Collector(kit.store, (Rule(filters=("type==exec.cachemount",)), Rule(reserved=2000))).collect() == 3000
    assert await left() == ["/c # buildkit"]
    assert await Collector(kit.store, (Rule(most=1),)).collect() == 2000 and await left() == []
    assert kit.store.find("kept") is not None


def _plugin() -> str | None:
    places = [
        Path.home() / ".docker/cli-plugins",
        Path("/usr/libexec/docker/cli-plugins"),
        Path("/usr/lib/docker/cli-plugins"),
    ]
    return next((str(place) for place in places if (place / "docker-buildx").exists()), None)


@pytest.mark.skipif(not (_plugin() and shutil.which("docker")), reason="docker buildx is not installed")
async def test_buildx_itself(tmp_path: Path) -> None:
    from longshore.engine.server import serve
    from longshore.machinery.paths import Layout

    layout = Layout(tmp_path / "data", tmp_path / "run")
    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    engine = asyncio.create_task(
        serve(layout=layout, node_layout=layout.node("n"), docker_socket=layout.docker_socket, ready=ready.set_result)
    )
    try:
        await busybox((await ready).images)
        (tmp_path / "Dockerfile").write_text("FROM busybox AS a\nRUN echo hi > /x\nFROM scratch\nCOPY --from=a /x /x\n")
        process = await asyncio.create_subprocess_exec(
            "docker", "build", "--progress=plain", "--network=none", "-o", str(tmp_path / "out"), str(tmp_path),
            env={**os.environ, "DOCKER_HOST": f"unix://{layout.docker_socket}", "DOCKER_BUILDKIT": "1"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        text, _ = await process.communicate()
        assert process.returncode == 0, text.decode()
        assert (tmp_path / "out" / "x").read_text() == "hi\n" and b"[a 2/2] RUN echo hi > /x" in text
    finally:
        engine.cancel()
        await asyncio.gather(engine, return_exceptions=True)


async def test_triggers_use_stages(kit: Kit) -> None:
    """What ONBUILD leaves to others may come from stages that nothing else needs, and runs for stages as for images."""
    await kit.build("FROM busybox\nONBUILD COPY --from=source /s /t\n", name="trigger")
    text = "FROM busybox AS source\nRUN echo 12 > /s\nFROM trigger AS mid\nRUN cp /t /u\nONBUILD RUN cat /u > /v\nFROM mid\nRUN cp /v /w\n"
    await kit.build(text, name="out", **{"force-network-mode": "none"})
    assert (kit.store.layer_dirs(kit.store.resolve("out"))[0] / "w").read_text() == "12\n"
    assert not kit.store.resolve("out").run_config.get("OnBuild")
