"""Behaviours that cri-tools' validation suite looks at and other tests here do not: images as volumes, identity of
images over all APIs, removal at once, seccomp profiles of one's own, process namespaces.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from longshore.engine.images import references
from longshore.machinery.grpc import RpcError, Status
from longshore.machinery.http import Client
from longshore.machinery.streams import Options, portforward, remotecommand
from longshore.registry.server import serve
from longshore.wire.cri import cri

from .conftest import Engine

pytestmark = pytest.mark.root


def image_volume(engine_id: str, **more: object) -> object:
    spec = cri.ImageSpec(image=engine_id, user_specified_image="busybox")
    return cri.Mount(**{"container_path": "/volume", "readonly": True, "image": spec, **more})  # type: ignore[arg-type]


async def image_id(engine: Engine, name: str = "busybox") -> str:
    return str((await engine.call("ImageStatus", image=cri.ImageSpec(image=name))).image.id)


async def test_images_as_volumes(engine: Engine) -> None:
    pod = await engine.run_pod("volumes")
    which = await image_id(engine)
    container = await engine.run(pod, "whole", ["sleep", "1000"], mounts=[image_volume(which)])
    (told,) = [m for m in (await engine.status(container)).mounts if m.container_path == "/volume"]
    assert told.image.image_ref == which
    assert await engine.sh(container, "/volume/bin/busybox echo runs; touch /volume/x 2>&1 || echo no") == (
        "runs\ntouch: /volume/x: Read-only file system\nno"
    )
    part = await engine.run(pod, "part", ["sleep", "1000"], mounts=[image_volume(which, image_sub_path="etc")])
    assert await engine.sh(part, "ls /volume") == "group\npasswd"
    for wrong, words in (({"image_sub_path": "none"}, "none"), ({"readonly": False}, "read-only")):
        with pytest.raises(RpcError, match=words):
            await engine.run(pod, f"wrong-{words}", ["true"], mounts=[image_volume(which, **wrong)])


async def test_an_image_is_called_the_same_everywhere_and_goes_at_once(engine: Engine, tmp_path: Path) -> None:
    ports: list[int] = []
    tasks = [
        asyncio.create_task(serve(data_dir=tmp_path / f"registry{n}", port=0, ready=ports.append)) for n in range(2)
    ]
    while len(ports) < 2:
        await asyncio.sleep(0.01)
    names = [f"127.0.0.1:{port}/team/box" for port in ports]
    first = await image_id(engine)
    for name in names:
        target = references.parse(f"{name}:1")
        engine.images.tag(first, target)
        await engine.images.push(target)
    await engine.call("RemoveImage", image=cri.ImageSpec(image=first))
    pulled = [str((await engine.call("PullImage", image=cri.ImageSpec(image=f"{name}:1"))).image_ref) for name in names]
    assert pulled == [first, first]
    (listed,) = (await engine.call("ListImages")).images
    assert set(listed.repo_tags) == {f"{name}:1" for name in names} and len(listed.repo_digests) == 2
    # By digest, as pods name what must not move.
    assert str((await engine.call("PullImage", image=cri.ImageSpec(image=listed.repo_digests[0]))).image_ref) == first
    pod = await engine.run_pod("identity")
    container = await engine.run(pod, "main", ["sleep", "1000"], image=first)
    (shown,) = (await engine.call("ListContainers", filter=cri.ContainerFilter(id=container))).containers
    assert {listed.id, shown.image_id, (await engine.status(container)).image_id} == {first}
    await engine.call("StopPodSandbox", pod_sandbox_id=pod[0])
    await engine.call("RemovePodSandbox", pod_sandbox_id=pod[0])

    async def remove() -> bool:
        await engine.call("RemoveImage", image=cri.ImageSpec(image=first))
        return (await engine.call("ImageStatus", image=cri.ImageSpec(image=first))).HasField("image")

    assert not any(await asyncio.gather(*(remove() for _ in range(5))))
    assert not (await engine.call("ListImages")).images
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_seccomp_profiles_of_ones_own(engine: Engine, tmp_path: Path) -> None:
    profile = tmp_path / "no-hostname.json"
    profile.write_text(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}],
            }
        )
    )
    local = cri.SecurityProfile(profile_type=cri.Localhost, localhost_ref=str(profile))
    pod = await engine.run_pod("seccomp")

    async def hostname(name: str, **context: object) -> str:
        caps = cri.Capability(add_capabilities=["SYS_ADMIN"])
        security = cri.LinuxContainerSecurityContext(capabilities=caps, **context)  # type: ignore[arg-type]
        linux = cri.LinuxContainerConfig(security_context=security)
        container = await engine.run(pod, name, ["sleep", "1000"], linux=linux)
        return await engine.sh(container, f"hostname {name} 2>/dev/null && hostname || echo refused")

    assert await hostname("blocked", seccomp=local) == "refused"
    assert await hostname("open", seccomp=cri.SecurityProfile(profile_type=cri.Unconfined)) == "open"
    assert await hostname("plain") == "plain"
    assert await hostname("mighty", seccomp=local, privileged=True) == "mighty"
    absent = cri.SecurityProfile(profile_type=cri.Localhost, localhost_ref=str(tmp_path / "absent.json"))
    with pytest.raises(RpcError):
        await hostname("absent", seccomp=absent)


async def test_process_namespaces(engine: Engine) -> None:
    def sandbox(mode: int) -> object:
        options = cri.NamespaceOption(pid=mode)
        return cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(namespace_options=options))

    def context(mode: int, **more: object) -> object:
        options = cri.NamespaceOption(pid=mode)
        security = cri.LinuxContainerSecurityContext(namespace_options=options, **more)  # type: ignore[arg-type]
        return cri.LinuxContainerConfig(security_context=security)

    own = await engine.run_pod("own", linux=sandbox(cri.CONTAINER))
    alone = await engine.run(own, "alone", ["sleep", "777"], linux=context(cri.CONTAINER))
    assert await engine.sh(alone, "cat /proc/1/cmdline | tr '\\0' ' '") == "sleep 777"
    host = await engine.run_pod("host", linux=sandbox(cri.NODE))
    seeing = await engine.run(host, "seeing", ["sleep", "888"], linux=context(cri.NODE))
    assert await engine.sh(seeing, f"test -e /proc/{os.getpid()} && echo seen") == "seen"
    masked = await engine.run(
        own, "masked", ["sleep", "1"],
        linux=context(cri.CONTAINER, masked_paths=["/etc/passwd"], readonly_paths=["/tmp"]),
    )  # fmt: skip
    assert await engine.sh(masked, "wc -c < /etc/passwd; touch /tmp/x 2>&1 || true") == (
        "0\ntouch: /tmp/x: Read-only file system"
    )


async def test_several_containers_of_a_pod(engine: Engine) -> None:
    """One network, a log each, and figures of each and of the pod."""
    pod = await engine.run_pod("several")
    serving = ["sh", "-c", "mkdir /w; echo page > /w/x; echo serving; exec httpd -f -p 8080 -h /w"]
    server = await engine.run(pod, "server", serving)
    asking = await engine.run(pod, "asking", ["sh", "-c", "echo asking; exec sleep 1000"])

    async def page() -> str:
        return await engine.sh(asking, "wget -qO- http://127.0.0.1:8080/x || true")

    async with asyncio.timeout(10):
        while await page() != "page":
            await asyncio.sleep(0.05)
    for name in ("server", "asking"):
        text = (engine.root / "logs" / "several" / f"{name}.log").read_text()
        assert text.split(" ", 3)[3].strip() == {"server": "serving", "asking": "asking"}[name]
    stats = (await engine.call("ContainerStats", container_id=server)).stats
    assert stats.attributes.id == server and stats.memory.working_set_bytes.value > 0
    (mine,) = (await engine.call("ListPodSandboxStats", filter=cri.PodSandboxStatsFilter(id=pod[0]))).stats
    assert {c.attributes.id for c in mine.linux.containers} == {server, asking}
    streamed = [c.id async for part in engine.client.stream("StreamContainers") for c in part.containers]
    assert sorted(streamed) == sorted((server, asking))


async def test_what_the_kubelet_tells_and_asks(engine: Engine) -> None:
    assert (await engine.call("RuntimeConfig")).linux.cgroup_driver == cri.CGROUPFS
    pod = await engine.run_pod("resized")
    fields = {"overhead": {"memory_limit_in_bytes": 1 << 20}, "resources": {"cpu_shares": 512}}
    await engine.call("UpdatePodSandboxResources", pod_sandbox_id=pod[0], **fields)
    with pytest.raises(RpcError):
        await engine.call("UpdatePodSandboxResources", pod_sandbox_id="none")
    container = await engine.run(pod, "main", ["sleep", "1000"])
    with pytest.raises(RpcError) as refused:
        await engine.call("CheckpointContainer", container_id=container, location="/tmp/x.tar")
    assert refused.value.status is Status.UNIMPLEMENTED


@pytest.mark.parametrize("way", ["websocket", "spdy"])
async def test_streams(engine: Engine, way: str) -> None:
    pod = await engine.run_pod("streams")
    serving = "mkdir /w; echo page > /w/x; httpd -p 8080 -h /w; while read line; do echo said $line; done; sleep 1000"
    main = await engine.run(pod, "main", ["sh", "-c", serving], stdin=True)
    connect = remotecommand.connect_websocket if way == "websocket" else remotecommand.connect
    async with Client() as client:
        asked = {"stdin": True, "stdout": True, "stderr": True, "tty": False}
        command = ["sh", "-c", "cat; echo problem >&2"]
        url = (await engine.call("Exec", container_id=main, cmd=command, **asked)).url
        session = await connect(client, url, Options(**asked))
        assert session.stdin is not None and session.stdout is not None and session.stderr is not None
        session.stdin.write(b"words")
        session.stdin.close()
        assert (await session.stdout.read_all(), await session.stderr.read_all()) == (b"words", b"problem\n")
        assert (await session.status())["status"] == "Success"
        session.close()
        url = (await engine.call("Attach", container_id=main, stdin=True, stdout=True)).url
        session = await connect(client, url, Options(True, True, False, False))
        assert session.stdin is not None and session.stdout is not None
        session.stdin.write(b"hello\n")
        async with asyncio.timeout(10):
            assert await session.stdout.read() == b"said hello\n"
        session.close()
        url = (await engine.call("PortForward", pod_sandbox_id=pod[0], port=[8080])).url
        # Port-forwarding over WebSocket is turned into SPDY by the API server.
        forwarder = await portforward.connect(client, url)
        stream, _ = await forwarder.open(8080)
        stream.write(b"GET /x HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(10):
            assert (await stream.read_all()).endswith(b"page\n")
        forwarder.close()
