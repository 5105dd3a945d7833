"""Frontends in images, and containers of frontends and debuggers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.engine.images.conftest import imported

from longshore.engine.build.buildkit import schemas, transport
from longshore.engine.build.buildkit.schemas import bridge, control
from longshore.engine.build.buildkit.transport import SessionChannel
from longshore.engine.build.step import Attached, RunStep
from longshore.machinery.grpc import Client, RpcError, Status

from .kit import Kit, Socket
from .test_buildkit import place
from .test_results import graph

pytestmark = pytest.mark.root
QUIET = {"force-network-mode": "none"}
LABELS = {"moby.buildkit.frontend.network.none": "true", "moby.buildkit.frontend.caps": "moby.buildkit.frontend.inputs"}


async def frontend_image(kit: Kit, name: str, *entrypoint: str) -> None:
    run = {"Entrypoint": list(entrypoint), "Labels": LABELS, "Env": ["FROM_IMAGE=1"]}
    files = {"bin/busybox": b""}
    if entrypoint[0] == "sh":
        base = kit.store.resolve("busybox")
        from longshore.engine.images.model import encode

        image = kit.store.add(encode({**base.config, "config": {**base.run_config, **run}}), base.chain)
        kit.store.tag(image, name)
    else:
        await imported(kit.store, name, files, run_config=run)


class Programs:
    """A runner whose attached steps are functions here: the program at the other end of its stdin and stdout."""

    def __init__(self, inner: Any, program: Any) -> None:
        self.inner, self.program = inner, program
        self.steps: list[RunStep] = []

    def check(self, limits: Any) -> None:
        self.inner.check(limits)

    async def run(self, step: RunStep, output: Any, attached: Attached | None = None) -> int:
        if attached is None:
            return await self.inner.run(step, output)
        assert attached.stdin == attached.stdout
        self.steps.append(step)
        end = socket.socket(fileno=os.dup(attached.stdin))
        reader, writer = await asyncio.open_connection(sock=end)
        channel = SessionChannel(Socket(reader, writer))  # type: ignore[arg-type]
        client = Client(bridge.LLBBridge, path="unused")
        client._channel = channel
        try:
            return await self.program(client)
        finally:
            client.close()
            writer.close()

    async def join(self, step: RunStep, attached: Attached) -> int:
        return await self.inner.join(step, attached)


def file_over(chain_of: str, path: str, data: bytes, schema: Any = bridge) -> Any:
    pb = schemas.pb
    source = pb.Op(source=pb.SourceOp(identifier=f"docker-image://{chain_of}"))
    write = pb.FileAction(
        input=0, secondaryInput=-1, output=0, mkfile=pb.MkFileAction(path=path, mode=0o644, data=data)
    )
    return graph((source, []), (pb.Op(file=pb.FileOp(actions=[write])), [(0, 0)]), schema=schema)


async def test_a_frontend_in_an_image(kit: Kit) -> None:
    seen: dict[str, Any] = {}

    async def program(client: Client) -> int:
        pong = await client.call("Ping")
        seen["caps"] = {cap.ID for cap in pong.FrontendAPICaps}
        seen["inputs"] = (await client.call("Inputs")).Definitions
        config = await client.call("ResolveImageConfig", Ref="docker.io/library/busybox:latest")
        solved = await client.call("Solve", Definition=file_over("docker.io/library/busybox:latest", "/made", b"it"))
        ref = solved.result.ref.id
        seen["read"] = (await client.call("ReadFile", Ref=ref, FilePath="/made")).Data
        await client.call("Evaluate", Ref=ref)
        await client.call("Warn", digest="", level=1, short=b"careful")
        # The same file, which it has seen to name itself, as a Dockerfile.
        with pytest.raises(RpcError, match="unknown instruction: any"):
            await client.call("Solve", Frontend="dockerfile.v0", FrontendOpt={"filename": "Dockerfile", "cmdline": ""})
        made = bridge.Result(ref=bridge.Ref(id=ref), metadata={"containerimage.config": config.Config})
        await client.call("Return", result=made)
        with pytest.raises(RpcError, match="already set"):
            await client.call("Return", result=made)
        return 0

    await frontend_image(kit, "other/frontend:1", "/frontend", "-x")
    runner = Programs(kit.services.builder.runner, program)
    kit.services.builder.runner = runner  # type: ignore[assignment]
    kit.inputs = {"base": file_over("docker.io/library/busybox:latest", "/x", b"", control)}
    text = "# syntax=other/frontend:1 more words\nany language at all\n"
    answer, _ = await kit.build(text, name="x", **{"build-arg:A": "b"})
    step = runner.steps[0]
    assert step.argv == ["/frontend", "-x"] and step.network == "none" and step.cwd == "/"
    options = [entry.partition("=")[2] for entry in step.env if entry.startswith("BUILDKIT_FRONTEND_OPT_")]
    assert "build-arg:A=b" in options and "source=other/frontend:1" in options
    assert "cmdline=other/frontend:1 more words" in options and "FROM_IMAGE=1" in step.env
    assert "BUILDKIT_SESSION_ID=s1" in step.env and any(entry.startswith("BUILDKIT_WORKERS=[{") for entry in step.env)
    assert [mount.target for mount in step.mounts] == ["/run/config/buildkit/metadata"]
    assert seen["read"] == b"it" and list(seen["inputs"]) == ["base"] and "gateway.exec" in seen["caps"]
    image = kit.store.resolve("x")
    assert image.id == answer["containerimage.config.digest"] and image.run_config["Cmd"] == ["sh"]
    assert "careful" in kit.warnings


async def test_frontends_that_fail(kit: Kit) -> None:
    await frontend_image(
        kit, "other/frontend:1", "sh", "-c", "cat /run/config/buildkit/metadata/frontend.bin >&2; exit 7"
    )
    with pytest.raises(RpcError) as caught:
        await kit.build("# syntax=other/frontend:1\n")
    assert caught.value.message == "exit code: 7"
    assert (await place(kit))[2] == [1]
    with pytest.raises(RpcError, match=r"failed to resolve source metadata for 127\.0\.0\.1:1/x:latest: "):
        await kit.build("# syntax=127.0.0.1:1/x\n")
    await frontend_image(
        kit, "other/frontend:2", "sh", "-c", '[ -z "$(ls /sys/class/net | grep -v lo)" ] && exit 0; exit 9'
    )
    with pytest.raises(RpcError, match="no result for incomplete build"):
        await kit.build("FROM busybox\n", **{"build-arg:BUILDKIT_SYNTAX": "other/frontend:2"})
    with pytest.raises(RpcError, match=r"unsupported frontend capability moby\.other") as caught:
        await kit.build("# syntax=other/frontend:1\n", **{"frontend.caps": "moby.other"})
    assert caught.value.status is Status.UNIMPLEMENTED
    await frontend_image(kit, "other/frontend:3", "sh", "-c", "echo no HTTP/2; cat >/dev/null")
    building = asyncio.create_task(kit.build("# syntax=other/frontend:3\n"))
    with contextlib.suppress(RpcError):
        await asyncio.wait_for(building, 10)


class Exec:
    """An ExecProcess call: messages to and fro."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.said: dict[str, dict[int, bytes]] = {}
        self.ended: dict[str, int] = {}

    async def start(
        self, name: str, container: str, command: str, *, tty: bool = False, fds: tuple[int, ...] = (0, 1, 2)
    ) -> None:
        meta = bridge.Meta(args=["sh", "-c", command], env=["A=b"], cwd="/")
        init = bridge.InitMessage(ContainerID=container, Meta=meta, Fds=fds, Tty=tty)
        await self.stream.send_message(bridge.ExecMessage(ProcessID=name, Init=init))
        await self.until(lambda: name in self.said)

    async def send(self, name: str, **fields: Any) -> None:
        await self.stream.send_message(bridge.ExecMessage(ProcessID=name, **fields))

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(20):
            while not condition():
                message = await self.stream.recv_message()
                assert message is not None
                name, kind = message.ProcessID, message.WhichOneof("Input")
                if kind == "Started":
                    self.said[name] = {1: b"", 2: b""}
                elif kind == "File" and not message.File.EOF:
                    self.said[name][message.File.Fd] += message.File.Data
                elif kind == "Exit":
                    self.ended[name] = message.Exit.Code
                elif kind == "Done":
                    self.said[name][-1] = b"done"

    async def done(self, name: str) -> int:
        await self.until(lambda: -1 in self.said.get(name, {}))
        return self.ended[name]


@contextlib.asynccontextmanager
async def calling(kit: Kit) -> AsyncIterator[Exec]:
    from grpclib.const import Cardinality

    method = kit.bridge._methods["ExecProcess"]
    stream = kit.bridge._channel.request(
        method.path, Cardinality.STREAM_STREAM, method.request, method.reply,
        metadata=[("buildkit-controlapi-buildid", "r0")],
    )  # fmt: skip
    async with stream:
        await stream.send_request()
        yield Exec(stream)
        await stream.cancel()


async def test_containers_of_a_debugger(kit: Kit) -> None:
    (kit.context / "Dockerfile").write_text("FROM busybox\nRUN echo made > /f\n")
    solving = asyncio.create_task(kit.client.call("Solve", control.SolveRequest(Ref="r0", Session="s1")))
    answer = await kit.bridge.call("Solve", Frontend="dockerfile.v0", FrontendOpt={"filename": "Dockerfile", **QUIET})
    mounts = [bridge.Mount(dest="/", resultID=answer.result.ref.id), bridge.Mount(dest="/t", mountType=4)]
    asked = {"ContainerID": "c1", "Mounts": mounts, "Network": 2}
    await kit.bridge.call("NewContainer", **asked)
    with pytest.raises(RpcError, match="already exists"):
        await kit.bridge.call("NewContainer", **asked)
    with pytest.raises(RpcError, match=r"network\.host is not allowed"):
        await kit.bridge.call("NewContainer", ContainerID="c2", Mounts=mounts, Network=1)
    async with calling(kit) as call:
        # What it is given, what it says on each stream, how it ends.
        await call.start("p1", "c1", "cat /f; echo $A >&2; read x; echo got $x; touch /new; sleep 60")
        await call.send("p1", File=bridge.FdMessage(Fd=0, Data=b"line\n"))
        await call.until(lambda: b"got line\n" in call.said["p1"][1] and call.said["p1"][2])
        assert call.said["p1"] == {1: b"made\ngot line\n", 2: b"b\n"}
        await call.start("p2", "c1", "ls /new; cat; exit 3")
        await call.send("p2", File=bridge.FdMessage(Fd=0, Data=b"in", EOF=True))
        assert await call.done("p2") == 3 and call.said["p2"][1] == b"/new\nin"
        await call.start("p3", "c1", "read x; until stty size 2>&1 | grep 33; do sleep 0.05; done", tty=True)
        await call.send("p3", Resize=bridge.ResizeMessage(Rows=33, Cols=77))
        await call.send("p3", File=bridge.FdMessage(Fd=0, Data=b"\n"))
        assert await call.done("p3") == 0 and b"33 77" in call.said["p3"][1]
        found = await kit.bridge.call("ReadFileContainer", Ref="c1", FilePath="/f", MountIndex=0)
        assert found.Data == b"made\n"
        names = await kit.bridge.call("ReadDirContainer", Ref="c1", DirPath="/", IncludePattern="n*")
        assert [entry.path for entry in names.entries] == ["new"]
        with pytest.raises(RpcError, match="has no files"):
            await kit.bridge.call("StatFileContainer", Ref="c1", Path="/f", MountIndex=1)
        await call.send("p1", Signal=bridge.SignalMessage(Name="KILL"))
        assert await call.done("p1") == 137
    with pytest.raises(RpcError, match='IO for process "p9" not found'):
        async with calling(kit) as call:
            await call.send("p9", Signal=bridge.SignalMessage(Name="INT"))
            await call.until(lambda: False)
    await kit.bridge.call("ReleaseContainer", ContainerID="c1")
    with pytest.raises(RpcError, match="previously released or not created"):
        await kit.bridge.call("ReleaseContainer", ContainerID="c1")
    # What is under way ends with the build.
    await kit.bridge.call("NewContainer", **asked)
    async with calling(kit) as call:
        await call.start("p1", "c1", "sleep 1000")
        await kit.bridge.call("Return", result=answer.result)
        await asyncio.wait_for(solving, 20)
    assert not list((kit.path / "run").glob("*/config.json"))
    assert not list((kit.store.root / "builds").glob("step-*"))


async def test_a_failed_step_can_be_entered(kit: Kit) -> None:
    (kit.context / "Dockerfile").write_text("FROM busybox\nENV A=b\nRUN echo half > /f; exit 4\n")
    solving = asyncio.create_task(kit.client.call("Solve", control.SolveRequest(Ref="r0", Session="s1")))
    layers = kit.store.layers_size()
    kit.server._server._status_details_codec = kit.bridge._channel._status_details_codec = transport.DetailsCodec()
    asked = {"Frontend": "dockerfile.v0", "FrontendOpt": {"filename": "Dockerfile", **QUIET}}
    with pytest.raises(RpcError, match="exit code: 4"):
        await kit.bridge.call("Solve", Evaluate=True, **asked)
    lazy = await kit.bridge.call("Solve", **asked)
    with pytest.raises(RpcError, match="exit code: 4") as caught:
        await kit.bridge.call("Evaluate", Ref=lazy.result.ref.id)
    found = json.loads(dict(caught.value.details)["github.com/moby/buildkit/errdefs.Solve+json"])
    command = found["op"]["exec"]
    assert command["meta"]["args"] == ["/bin/sh", "-c", "echo half > /f; exit 4"] and "A=b" in command["meta"]["env"]
    assert [mount["dest"] for mount in command["mounts"]] == ["/"]
    mounts = [bridge.Mount(dest="/", resultID=found["mountIDs"][0])]
    await kit.bridge.call("NewContainer", ContainerID="c1", Mounts=mounts, Network=2)
    assert (await kit.bridge.call("ReadFileContainer", Ref="c1", FilePath="/f", MountIndex=0)).Data == b"half\n"
    with pytest.raises(RpcError):
        await kit.bridge.call("ReadFile", Ref=found["inputIDs"][0], FilePath="/f")
    await kit.bridge.call("Return", result=lazy.result)
    with pytest.raises(RpcError, match="exit code: 4"):
        await asyncio.wait_for(solving, 20)
    assert kit.store.layers_size() == layers  # nothing of it stays
