"""kubectl against a pod: exec, attach, port-forward, cp, logs, top's sources, through the API server."""

from __future__ import annotations

import asyncio
import os
import shutil

import pytest

from longshore.machinery.errors import StatusError

from .conftest import Node

pytestmark = [
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
]


class Kubectl:
    def __init__(self, node: Node) -> None:
        self.env = {**os.environ, "KUBECONFIG": str(node.layout.kubeconfig()), "HOME": str(node.root)}

    async def start(self, *argv: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            "kubectl", *argv, stdin=pipe, stdout=pipe, stderr=pipe, env=self.env
        )

    async def __call__(self, *argv: str, stdin: str = "", code: int = 0) -> str:
        process = await self.start(*argv)
        async with asyncio.timeout(40):
            out, err = await process.communicate(stdin.encode())
        assert process.returncode == code, (argv, process.returncode, out, err)
        return out.decode() + (err.decode() if code else "")


async def test_kubectl(node: Node) -> None:
    kubectl = Kubectl(node)
    await node.create(
        "tool",
        {
            "command": ["sh", "-c", "mkdir /w; echo page > /w/x; httpd -p 80 -h /w; i=0; "
                        "while :; do echo line $i; i=$((i+1)); sleep 0.2; done"],
            "ports": [{"containerPort": 80}],
        },
    )  # fmt: skip
    await node.create("echoer", {"command": ["cat"], "stdin": True, "stdinOnce": True})
    await node.ready("tool")
    await node.ready("echoer")
    assert await kubectl("exec", "tool", "--", "sh", "-c", "echo out; echo err >&2") == "out\n"
    assert await kubectl("exec", "-i", "tool", "--", "cat", stdin="through\n") == "through\n"
    assert "exit code 7" in await kubectl("exec", "tool", "--", "sh", "-c", "exit 7", code=7)
    assert "hello" in await kubectl("attach", "-i", "echoer", stdin="hello\n")
    lines = (await kubectl("logs", "tool", "--tail=2")).splitlines()
    assert len(lines) == 2 and lines[0].startswith("line ")
    stamped = await kubectl("logs", "tool", "--timestamps", "--tail=1")
    assert stamped[:2] == "20" and "Z line" in stamped
    follow = await kubectl.start("logs", "-f", "tool", "--tail=1")
    assert follow.stdout is not None
    async with asyncio.timeout(10):
        for _ in range(3):
            assert (await follow.stdout.readline()).startswith(b"line ")
    follow.kill()
    await follow.wait()
    forward = await kubectl.start("port-forward", "tool", "18080:80")
    assert forward.stdout is not None
    async with asyncio.timeout(10):
        await forward.stdout.readline()
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", 18080)
            writer.write(b"GET /x HTTP/1.0\r\n\r\n")
            assert b"page" in await reader.read()
            writer.close()
    forward.kill()
    await forward.wait()
    summary = await kubectl("get", "--raw", f"/api/v1/nodes/{node.name}/proxy/stats/summary")
    assert '"nodeName":"node-a"' in summary and '"name":"tool"' in summary
    metrics = await kubectl("get", "--raw", f"/api/v1/nodes/{node.name}/proxy/metrics/resource")
    assert 'container_cpu_usage_seconds_total{container="main"' in metrics
    await kubectl("delete", "pod", "tool", "echoer", "--wait=true")


async def test_ephemeral_container_and_followed_end(node: Node) -> None:
    kubectl = Kubectl(node)
    await node.create("target", {"command": ["sh", "-c", "sleep 2; echo bye"]}, restartPolicy="Never")
    await node.ready("target")
    follow = await kubectl.start("logs", "-f", "target")
    await kubectl(
        "debug", "target", "--image=busybox", "--image-pull-policy=IfNotPresent", "--target=main", "-c", "dbg",
        "--profile=general", "--", "sh", "-c", "ps; sleep 1000",
    )  # fmt: skip

    def running(pod: dict) -> bool:
        found = pod["status"].get("ephemeralContainerStatuses") or [{"state": {}}]
        return "running" in found[0]["state"]

    await node.wait("target", running)

    async def seen() -> bool:
        return "sleep 2" in await kubectl("logs", "target", "-c", "dbg")

    await node.until(seen)
    async with asyncio.timeout(10):
        out, _ = await follow.communicate()
    assert out == b"bye\n"
    await kubectl("delete", "pod", "target", "--wait=true")


async def test_log_options(node: Node) -> None:
    kubectl = Kubectl(node)
    await node.create("crash", {"command": ["sh", "-c", "echo one; echo two; echo err >&2; exit 1"]})
    await node.wait(
        "crash", lambda p: (p["status"].get("containerStatuses") or [{"restartCount": 0}])[0]["restartCount"]
    )
    assert sorted((await kubectl("logs", "crash", "--previous")).split()) == ["err", "one", "two"]
    assert await kubectl("logs", "crash", "--limit-bytes=2") in ("on", "er")
    assert len((await kubectl("logs", "crash", "--since=1h")).split()) == 3
    assert await kubectl("logs", "crash", "--tail=0") == ""
    await node.create("waits", {"image": "absent:1", "imagePullPolicy": "Never"})
    await node.wait("waits", lambda p: p["status"].get("containerStatuses"))
    assert "is waiting to start" in await kubectl("logs", "waits", code=1)
    metrics = await kubectl("get", "--raw", f"/api/v1/nodes/{node.name}/proxy/metrics/cadvisor")
    assert "# TYPE container_" in metrics or metrics.strip() == ""
    own = await kubectl("get", "--raw", f"/api/v1/nodes/{node.name}/proxy/metrics")
    assert "kubelet_running_pods" in own
    assert '"maxPods":110' in await kubectl("get", "--raw", f"/api/v1/nodes/{node.name}/proxy/configz")
    checkpoint = f"/api/v1/nodes/{node.name}/proxy/checkpoint/default"
    for path, words in (
        ("absent/main", "pod does not exist"),
        ("crash/other", "container other does not exist"),
        ("crash/main", "checkpointing of default/crash/main failed (rpc error: code = Unimplemented"),
    ):
        with pytest.raises(StatusError) as refused:
            await node.client.raw("POST", f"{checkpoint}/{path}")
        assert words in str(refused.value), path
    await kubectl("delete", "pod", "crash", "waits", "--wait=true")
