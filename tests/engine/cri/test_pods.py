"""Sandboxes and containers through CRI, as a kubelet and critest use them."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from longshore.engine.images import references
from longshore.machinery import mounts
from longshore.machinery.grpc import Client, RpcError, Status
from longshore.wire.cri import cri

from .conftest import Engine

pytestmark = pytest.mark.root


async def test_runtime_is_ready(engine: Engine) -> None:
    version = await engine.call("Version")
    assert (version.version, version.runtime_api_version) == ("0.1.0", "v1")
    status = await engine.call("Status", verbose=True)
    assert {c.type: c.status for c in status.status.conditions} == {"RuntimeReady": True, "NetworkReady": True}
    with pytest.raises(RpcError) as caught:
        await engine.call("CheckpointContainer", container_id="x")
    assert caught.value.status is Status.UNIMPLEMENTED


async def test_life_of_a_pod(engine: Engine) -> None:
    begin = time.monotonic()
    pod = await engine.run_pod("life", hostname="somehost", annotations={"a": "b"})
    container = await engine.run(pod, "main", ["sh", "-c", "echo out; echo err >&2; hostname; sleep 1000"])
    took = time.monotonic() - begin
    status = (await engine.call("PodSandboxStatus", pod_sandbox_id=pod[0])).status
    assert status.state == cri.SANDBOX_READY and status.network.ip.startswith("10.88.0.")
    assert status.network.additional_ips[0].ip.startswith("fd00:88::")
    assert dict(status.annotations) == {"a": "b"} and status.metadata.uid == "uid-life"
    assert (await engine.status(container)).state == cri.CONTAINER_RUNNING
    for _ in range(100):
        log = (engine.root / "logs" / "life" / "main.log").read_text()
        if "somehost" in log:
            break
        await asyncio.sleep(0.02)
    lines = log.splitlines()
    said = {line.split(" ", 1)[1] for line in lines}
    assert {"stdout F out", "stdout F somehost"} <= said
    assert any(line.endswith(" stderr F err") for line in lines)
    address = await engine.sh(container, "ip -o addr show eth0; cat /etc/hosts; cat /etc/hostname")
    assert f"{status.network.ip}/32" in address and "somehost" in address
    # by a beginning of its id, and by filters
    listed = await engine.call("ListContainers", filter=cri.ContainerFilter(label_selector={"c": "main"}))
    assert [c.id for c in listed.containers] == [container]
    listed = await engine.call("ListPodSandbox", filter=cri.PodSandboxFilter(id=pod[0][:13]))
    assert [p.id for p in listed.items] == [pod[0]]
    await engine.call("StopContainer", container_id=container, timeout=1)
    ended = await engine.status(container)
    assert ended.state == cri.CONTAINER_EXITED and ended.finished_at > ended.started_at > ended.created_at
    for name in ("StopPodSandbox", "StopPodSandbox", "RemovePodSandbox", "RemovePodSandbox"):
        await engine.call(name, pod_sandbox_id=pod[0])
    assert not (await engine.call("ListPodSandbox")).items and not (await engine.call("ListContainers")).containers
    for name in ("StopContainer", "RemoveContainer"):
        await engine.call(name, container_id=container)
    for name, field in (("PodSandboxStatus", "pod_sandbox_id"), ("ContainerStatus", "container_id")):
        with pytest.raises(RpcError) as caught:
            await engine.call(name, **{field: pod[0]})
        assert caught.value.status is Status.NOT_FOUND
    assert took < 10


async def test_exit_codes_and_reasons(engine: Engine) -> None:
    pod = await engine.run_pod("exits")
    ok = await engine.run(pod, "ok", ["true"])
    bad = await engine.run(pod, "bad", ["sh", "-c", "exit 3"])
    assert ((s := await engine.ended(ok)).exit_code, s.reason) == (0, "Completed")
    assert ((s := await engine.ended(bad)).exit_code, s.reason) == (3, "Error")
    missing = await engine.create(pod, "missing", ["/no/such/program"])
    with pytest.raises(RpcError) as caught:
        await engine.call("StartContainer", container_id=missing)
    assert "no such file" in (caught.value.message or "")
    status = await engine.status(missing)
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 128, "StartError")
    eater = await engine.run(
        pod, "eater", ["sh", "-c", "x=a; while :; do x=$x$x; done"],
        linux=cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(memory_limit_in_bytes=20 * 2**20)),
    )  # fmt: skip
    assert ((s := await engine.ended(eater)).exit_code, s.reason) == (137, "OOMKilled")


async def test_exec_sync(engine: Engine) -> None:
    pod = await engine.run_pod("exec")
    container = await engine.run(pod, "main", ["sleep", "1000"])
    answer = await engine.call("ExecSync", container_id=container, cmd=["sh", "-c", "echo o; echo e >&2; exit 5"])
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"o\n", b"e\n", 5)
    with pytest.raises(RpcError) as caught:
        await engine.call("ExecSync", container_id=container, cmd=["sh", "-c", "sleep 4321; true"], timeout=1)
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    for _ in range(50):
        if "4321" not in (left := await engine.sh(container, "ps")):
            break
        await asyncio.sleep(0.05)
    assert "4321" not in left
    with pytest.raises(RpcError):
        await engine.call("ExecSync", container_id=container, cmd=["/nothing"])


async def test_security_context(engine: Engine) -> None:
    pod = await engine.run_pod("security")

    async def shown(name: str, script: str, **context: object) -> str:
        linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(**context))  # type: ignore[arg-type]
        container = await engine.run(pod, name, ["sh", "-c", script], linux=linux)
        await engine.ended(container)
        text = (engine.root / "logs" / "security" / f"{name}.log").read_text()
        return "\n".join(line.split(" ", 3)[3] for line in text.splitlines())

    assert await shown("u", "id", run_as_user=cri.Int64Value(value=1000)) == (
        "uid=1000(user) gid=1000(user) groups=1000(user),50000(extra)"
    )
    assert "groups=1000(user),1234" in await shown(
        "s", "id", run_as_username="user", supplemental_groups=[1234], supplemental_groups_policy=cri.Strict
    )
    assert "gid=7 " in await shown("g", "id", run_as_user=cri.Int64Value(value=5), run_as_group=cri.Int64Value(value=7))
    assert "Read-only" in await shown("r", "touch /x 2>&1", readonly_rootfs=True)
    assert await shown("n", "grep NoNewPrivs /proc/self/status", no_new_privs=True) == "NoNewPrivs:\t1"
    drop = await shown("d", "grep CapEff /proc/self/status", capabilities=cri.Capability(drop_capabilities=["ALL"]))
    assert drop == "CapEff:\t0000000000000000"
    profile = cri.SecurityProfile(profile_type=cri.RuntimeDefault)
    assert await shown("c", "grep Seccomp: /proc/self/status", seccomp=profile) == "Seccomp:\t2"
    assert await shown("cn", "grep Seccomp: /proc/self/status") == "Seccomp:\t0"
    assert await shown("p", "ls /dev/full /dev/null | wc -l; touch /sys/x 2>&1; echo $?", privileged=True)
    with pytest.raises(RpcError) as caught:
        await shown("bad", "id", run_as_group=cri.Int64Value(value=7))
    assert caught.value.status is Status.INVALID_ARGUMENT


async def test_namespaces(engine: Engine) -> None:
    def context(**options: int | str) -> object:
        return cri.LinuxContainerConfig(
            security_context=cri.LinuxContainerSecurityContext(namespace_options=cri.NamespaceOption(**options))
        )

    shared = cri.LinuxPodSandboxConfig(
        security_context=cri.LinuxSandboxSecurityContext(namespace_options=cri.NamespaceOption(pid=cri.POD)),
        sysctls={"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "2000 3000"},
    )
    pod = await engine.run_pod("shared", linux=shared)
    one = await engine.run(pod, "one", ["sleep", "777"], linux=context(pid=cri.POD))
    two = await engine.run(pod, "two", ["sleep", "888"], linux=context(pid=cri.POD))
    seen = await engine.sh(two, "ps")
    assert "sleep 777" in seen and "/pause" in seen
    assert await engine.sh(one, "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_local_port_range") == (
        "1\n2000\t3000"
    )
    own = await engine.run_pod("own")
    main = await engine.run(own, "main", ["sleep", "999"], linux=context(pid=cri.CONTAINER))
    debug = await engine.run(own, "debug", ["sleep", "111"], linux=context(pid=cri.TARGET, target_id=main))
    assert "sleep 999" in await engine.sh(debug, "ps")
    host = await engine.run_pod(
        "host",
        linux=cri.LinuxPodSandboxConfig(
            security_context=cri.LinuxSandboxSecurityContext(
                namespace_options=cri.NamespaceOption(network=cri.NODE, pid=cri.NODE, ipc=cri.NODE)
            )
        ),
    )
    node = await engine.run(host, "main", ["sleep", "55"], linux=context(network=cri.NODE, pid=cri.NODE, ipc=cri.NODE))
    assert (await engine.sh(node, "ls -l /proc/self/ns/net")).endswith(os.readlink("/proc/self/ns/net"))
    assert not (await engine.call("PodSandboxStatus", pod_sandbox_id=host[0])).status.network.ip
    await engine.call("StopContainer", container_id=node, timeout=0)


async def test_mounts(engine: Engine, tmp_path: Path) -> None:
    pod = await engine.run_pod("mounts")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    container = await engine.run(
        pod, "main", ["sleep", "1000"],
        mounts=[
            cri.Mount(container_path="/a", host_path=str(tmp_path / "link")),
            cri.Mount(container_path="/b", host_path=str(tmp_path / "real"), readonly=True),
            cri.Mount(container_path="/made", host_path=str(tmp_path / "made")),
            cri.Mount(container_path="/img", readonly=True, image=cri.ImageSpec(image="busybox"), image_sub_path="etc"),
        ],
    )  # fmt: skip
    assert await engine.sh(container, "cat /a/file; echo x > /a/new; cat /b/new; touch /b/y 2>&1 || true") == (
        "contentx\ntouch: /b/y: Read-only file system"
    )
    assert (tmp_path / "made").is_dir()
    assert "root:x" in await engine.sh(container, "cat /img/passwd")
    for bad in (
        cri.Mount(container_path="/r", host_path=str(tmp_path), recursive_read_only=True),
        cri.Mount(
            container_path="/r", host_path=str(tmp_path), readonly=True, recursive_read_only=True,
            propagation=cri.PROPAGATION_BIDIRECTIONAL,
        ),
    ):  # fmt: skip
        with pytest.raises(RpcError):
            await engine.create(pod, "bad", ["true"], mounts=[bad])
    assert len((await engine.call("ListContainers")).containers) == 1


async def test_kill_and_recover(engine: Engine) -> None:
    """What ran goes on, what ended meanwhile is seen, what was cut short is gone."""
    pod = await engine.run_pod("recover")
    stays = await engine.run(pod, "stays", ["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"])
    ends = await engine.run(pod, "ends", ["sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 9"])
    never = await engine.create(pod, "never", ["true"])
    await engine.crash()
    (engine.root / "roots" / ends / "merged" / "tmp" / "go").touch()
    (engine.root / "cri" / "containers" / "cut").mkdir()
    (engine.root / "run" / "cri" / "sandboxes" / "cut").mkdir()
    await asyncio.sleep(0.5)
    await engine.start()
    assert not (engine.root / "run" / "cri" / "sandboxes" / "cut").exists()
    assert (await engine.status(stays)).state == cri.CONTAINER_RUNNING
    assert (await engine.status(never)).state == cri.CONTAINER_CREATED
    ended = await engine.ended(ends)
    assert (ended.state, ended.exit_code) == (cri.CONTAINER_EXITED, 9)
    await engine.call("StartContainer", container_id=never)
    assert (await engine.ended(never)).exit_code == 0
    other = await engine.run_pod("other")
    ips = [(await engine.call("PodSandboxStatus", pod_sandbox_id=p[0])).status.network.ip for p in (pod, other)]
    assert len(set(ips)) == 2
    await engine.call("StopContainer", container_id=stays, timeout=5)
    assert (await engine.status(stays)).exit_code == 7


async def test_a_start_goes_to_its_end_without_its_caller(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubelet that is killed while it starts a container does not make the program fail."""
    pod = await engine.run_pod("orphaned")
    container = await engine.create(pod, "c", ["sh", "-c", "exit 3"])
    begun, gone, start = asyncio.Event(), asyncio.Event(), engine.runtime.start

    async def watched(id: str) -> None:
        begun.set()
        await gone.wait()
        await start(id)

    monkeypatch.setattr(engine.runtime, "start", watched)
    caller = Client(cri.RuntimeService, path=engine.socket)
    call = asyncio.create_task(caller.call("StartContainer", container_id=container, deadline=60))
    await begun.wait()
    caller.close()
    with pytest.raises((RpcError, OSError, asyncio.CancelledError)):
        await call
    await asyncio.sleep(0.1)  # the server has seen it
    gone.set()
    ended = await asyncio.wait_for(engine.ended(container), 20)
    assert (ended.state, ended.exit_code, ended.reason) == (cri.CONTAINER_EXITED, 3, "Error")


async def test_events_and_stats(engine: Engine) -> None:
    seen: list[tuple[str, int]] = []
    ready = asyncio.Event()

    async def listen() -> None:
        async for event in engine.client.stream("GetContainerEvents"):
            seen.append((event.container_id, event.container_event_type))
            assert event.pod_sandbox_status.metadata.name == "events"
            if event.container_event_type == cri.CONTAINER_STOPPED_EVENT:
                ready.set()

    task = asyncio.create_task(listen())
    while not engine.server.events.wanted:
        await asyncio.sleep(0.01)
    pod = await engine.run_pod("events")
    long = await engine.run(pod, "long", ["sleep", "1000"])
    short = await engine.run(pod, "short", ["true"])
    async with asyncio.timeout(10):
        await ready.wait()
    task.cancel()
    kinds = [kind for container, kind in seen if container == short]
    assert kinds == [cri.CONTAINER_CREATED_EVENT, cri.CONTAINER_STARTED_EVENT, cri.CONTAINER_STOPPED_EVENT]
    assert (pod[0], cri.CONTAINER_STARTED_EVENT) in seen
    stats = (await engine.call("ListContainerStats")).stats
    assert [s.attributes.id for s in stats] == [long]
    assert stats[0].cpu.usage_core_nano_seconds.value > 0 and stats[0].memory.timestamp
    figures = (await engine.call("PodSandboxStats", pod_sandbox_id=pod[0])).stats
    assert figures.linux.network.default_interface.name == "eth0"
    assert (await engine.call("ImageFsInfo")).image_filesystems[0].used_bytes.value > 0


async def test_log_reopen(engine: Engine) -> None:
    pod = await engine.run_pod("logs")
    container = await engine.run(pod, "main", ["sh", "-c", "while :; do echo hi; sleep 0.05; done"])
    path = engine.root / "logs" / "logs" / "main.log"
    while not path.exists() or not path.stat().st_size:
        await asyncio.sleep(0.02)
    path.rename(path.with_suffix(".old"))
    await engine.call("ReopenContainerLog", container_id=container)
    assert path.exists()
    while not path.stat().st_size:
        await asyncio.sleep(0.02)


async def test_update_limits(engine: Engine) -> None:
    pod = await engine.run_pod("limits")
    container = await engine.run(pod, "main", ["sleep", "1000"])
    await engine.call(
        "UpdateContainerResources", container_id=container,
        linux=cri.LinuxContainerResources(memory_limit_in_bytes=64 * 2**20, cpu_shares=512, cpu_quota=50000, cpu_period=100000),
    )  # fmt: skip
    assert engine.runtime.stats(container).memory_limit == 64 * 2**20
    assert (await engine.status(container)).resources.linux.cpu_shares == 512


async def test_images(engine: Engine) -> None:
    images = (await engine.call("ListImages")).images
    assert [list(i.repo_tags) for i in images] == [["docker.io/library/busybox:latest"]]
    # It has come from no registry: a kubelet that wants space must not take it.
    assert images[0].pinned
    engine.images.add_digest(references.parse("busybox"), "sha256:" + "1" * 64, images[0].id)
    assert not (await engine.call("ListImages")).images[0].pinned
    for name in ("busybox", "docker.io/library/busybox:latest", images[0].id):
        assert (await engine.call("ImageStatus", image=cri.ImageSpec(image=name))).image.id == images[0].id
    assert not (await engine.call("ImageStatus", image=cri.ImageSpec(image="none"))).HasField("image")
    await engine.call("RemoveImage", image=cri.ImageSpec(image="none"))
    await engine.add_image("other:1", {"User": "user", "Cmd": ["x"]})
    found = (await engine.call("ImageStatus", image=cri.ImageSpec(image="other:1"))).image
    assert found.username == "user"
    await engine.call("RemoveImage", image=cri.ImageSpec(image="other:1"))
    await engine.call("RemoveImage", image=cri.ImageSpec(image="other:1"))
    assert len((await engine.call("ListImages")).images) == 1
    with pytest.raises(RpcError):
        await engine.call("PullImage", image=cri.ImageSpec(image="127.0.0.1:9/none"))
    # Its registry is away: the local one serves, but not who has yet to show that it may have the image.
    engine.images.tag(images[0].id, "127.0.0.1:9/here:1")
    here = cri.ImageSpec(image="127.0.0.1:9/here:1")
    assert (await engine.call("PullImage", image=here)).image_ref == images[0].id
    here.annotations["longshore.io/verify-pull"] = "true"
    with pytest.raises(RpcError):
        await engine.call("PullImage", image=here)


async def test_metrics(engine: Engine) -> None:
    pod = await engine.run_pod("metrics")
    container = await engine.run(pod, "main", ["sleep", "1000"])
    keys = {d.name: list(d.label_keys) for d in (await engine.call("ListMetricDescriptors")).descriptors}
    found = (await engine.call("ListPodSandboxMetrics")).pod_metrics
    assert [m.pod_sandbox_id for m in found] == [pod[0]]
    assert [m.container_id for m in found[0].container_metrics] == [container]
    seen = set()
    for metric in (*found[0].metrics, *found[0].container_metrics[0].metrics):
        assert len(metric.label_values) == len(keys[metric.name]), metric.name
        seen.add(metric.name)
    assert set(keys) - seen <= {"container_blkio_device_usage_total"}
    assert {"container_threads", "container_network_receive_bytes_total", "container_memory_working_set_bytes"} <= seen


async def test_a_full_disk_keeps_no_pod_from_ending(engine: Engine) -> None:
    """What has ended is told and can be removed; a restart finds the same without having it written."""
    await engine.crash()
    mounts.mount("tmpfs", engine.root / "cri" / "containers", "tmpfs", ["size=256k"])
    await engine.start()
    pod = await engine.run_pod("full")
    runs = await engine.run(pod, "runs", ["sh", "-c", "trap 'exit 7' TERM; touch /up; while :; do sleep 0.1; done"])
    await engine.sh(runs, "until test -e /up; do sleep 0.01; done")
    filler = engine.root / "cri" / "containers" / "filler"
    with pytest.raises(OSError):
        filler.write_bytes(bytes(1 << 20))
    await engine.call("StopContainer", container_id=runs, timeout=5)
    await engine.call("StopPodSandbox", pod_sandbox_id=pod[0])
    for _ in range(2):
        found = await engine.status(runs)
        assert (found.state, found.exit_code) == (cri.CONTAINER_EXITED, 7)
        await engine.crash()
        await engine.start()
    await engine.call("RemovePodSandbox", pod_sandbox_id=pod[0])
    filler.unlink()
    assert not list((engine.root / "cri" / "containers").iterdir())


async def test_a_short_lifes_events_come_in_order(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its start is told before its end, though the end came before the call to start it returned."""
    seen: list[int] = []
    start = engine.runtime.start

    async def late(id: str) -> None:
        await start(id)
        await engine.runtime.wait(id)
        await asyncio.sleep(0.1)

    monkeypatch.setattr(engine.runtime, "start", late)
    pod = await engine.run_pod("short")
    container = await engine.create(pod, "c", ["true"])

    async def listen() -> None:
        async for event in engine.client.stream("GetContainerEvents"):
            if event.container_id == container:
                seen.append(event.container_event_type)

    task = asyncio.create_task(listen())
    while not engine.server.events.wanted:
        await asyncio.sleep(0.01)
    await engine.call("StartContainer", container_id=container)
    await engine.call("RemoveContainer", container_id=container)
    async with asyncio.timeout(20):
        while len(seen) < 3:
            await asyncio.sleep(0.01)
    task.cancel()
    assert seen == [cri.CONTAINER_STARTED_EVENT, cri.CONTAINER_STOPPED_EVENT, cri.CONTAINER_DELETED_EVENT]
