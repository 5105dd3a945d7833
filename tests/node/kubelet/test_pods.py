"""Pods from the API server to containers and back, on the real API server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from longshore.client.resources import CONFIG_MAPS, EVENTS, PODS, SECRETS

from .conftest import Node, condition

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def test_a_pod_runs_and_goes(node: Node) -> None:
    await node.create("plain", {"command": ["sh", "-c", "echo hello; sleep 1000"]})
    pod = await node.ready("plain")
    status = pod["status"]
    assert status["phase"] == "Running" and status["podIP"].startswith("10.244.")
    assert status["hostIP"] == "10.99.0.1" and status["qosClass"] == "BestEffort"
    for kind in ("PodReadyToStartContainers", "Initialized", "ContainersReady", "PodScheduled"):
        assert condition(pod, kind) == "True"
    one = status["containerStatuses"][0]
    assert one["ready"] and one["started"] and one["restartCount"] == 0 and "running" in one["state"]

    async def said() -> bool:
        return await node.logs("plain") == "hello\n"

    await node.until(said)
    await node.delete("plain")
    assert not (await node.client.list(PODS, "default"))["items"]
    assert not list((node.root / "k" / "pods").iterdir())


async def finished(node: Node, name: str, phase: str = "Succeeded") -> str:
    await node.phase(name, phase)
    return await node.logs(name)


async def test_environment_and_volumes(node: Node) -> None:
    """ConfigMaps, Secrets, the downward API, tokens: as variables and as files; changes arrive in the files."""
    client = node.client
    await client.create(CONFIG_MAPS, {"metadata": {"name": "conf"}, "data": {"k": "v1", "other-key": "x"}}, "default")
    await client.create(SECRETS, {"metadata": {"name": "sec"}, "data": {"p": "c2VjcmV0"}}, "default")
    await node.create(
        "env",
        {
            "command": ["env"],
            "env": [
                {"name": "A", "value": "one"},
                {"name": "COMBINED", "value": "$(A)-$(NOPE)"},
                {"name": "FROM_CONF", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "k"}}},
                {"name": "FROM_SEC", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "p"}}},
                {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "none", "key": "p", "optional": True}}},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['l']"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
            ],
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "conf"}}],
            "resources": {"limits": {"cpu": "250m"}},
        },
        metadata={"labels": {"l": "lab"}},
        restartPolicy="Never",
    )
    await node.create(
        "vol",
        {
            "command": ["sh", "-c", "id; ls -l /c/..data/; cat /c/sub/k /s/p /d/labels; echo; cat /t/namespace; wc -c /t/token; "
                        "stat -L -c %a /s/p /mem; echo x > /sp/f; echo y > /e/z; cat /one; while :; do cat /c/sub/k; echo; sleep 0.1; done"],
            "volumeMounts": [
                {"name": "c", "mountPath": "/c"}, {"name": "s", "mountPath": "/s"}, {"name": "d", "mountPath": "/d"},
                {"name": "e", "mountPath": "/e"}, {"name": "mem", "mountPath": "/mem"},
                {"name": "e", "mountPath": "/sp", "subPath": "in/side"}, {"name": "c", "mountPath": "/one", "subPath": "sub/k"},
                {"name": "t", "mountPath": "/t"},
            ],
        },
        metadata={"labels": {"l": "lab"}},
        securityContext={"runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 3000},
        serviceAccountName="default",
        volumes=[
            {"name": "c", "configMap": {"name": "conf", "items": [{"key": "k", "path": "sub/k"}]}},
            {"name": "s", "secret": {"secretName": "sec", "defaultMode": 0o400}},
            {"name": "d", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"name": "e", "emptyDir": {}}, {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "t", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "audience": "me", "expirationSeconds": 700}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            ]}},
        ],
    )  # fmt: skip
    lines = (await finished(node, "env")).splitlines()
    for line in ("A=one", "COMBINED=one-$(NOPE)", "FROM_CONF=v1", "FROM_SEC=secret", "LABEL=lab", "CPU=250", "P_k=v1",
                 "P_other-key=x", "KUBERNETES_SERVICE_HOST=10.96.0.1"):  # fmt: skip
        assert line in lines, (line, lines)
    assert not any(line.startswith("MAYBE") for line in lines)
    pod = await node.ready("vol")
    out = ""

    async def told() -> bool:
        nonlocal out
        out = await node.logs("vol")
        return "v1\nv1" in out

    await node.until(told)
    assert "uid=1000(user) gid=2000 groups=2000,3000,50000(extra)" in out and 'v1secretl="lab"' in out
    assert "\n440\n2777\n" in out
    await client.patch(CONFIG_MAPS, "conf", {"data": {"k": "v2"}}, "default")

    async def changed() -> bool:
        return "v2" in await node.logs("vol")

    await node.until(changed)
    folder = node.root / "k" / "pods" / pod["metadata"]["uid"] / "volumes"
    assert (folder / "kubernetes.io~empty-dir" / "e" / "in" / "side" / "f").read_text() == "x\n"
    await asyncio.gather(node.delete("env"), node.delete("vol"))
    assert not list((node.root / "k" / "pods").iterdir())


async def test_init_containers_and_restarts(node: Node) -> None:
    image = {"image": "busybox", "imagePullPolicy": "IfNotPresent"}
    await node.create(
        "inits", {"command": ["sh", "-c", "cat /w/order; exit 0"], "volumeMounts": [{"name": "w", "mountPath": "/w"}]},
        restartPolicy="Never", volumes=[{"name": "w", "emptyDir": {}}],
        initContainers=[
            {"name": n, **image, "command": ["sh", "-c", f"echo {n} >> /w/order"], "volumeMounts": [{"name": "w", "mountPath": "/w"}]}
            for n in ("i1", "i2")
        ],
    )  # fmt: skip
    await node.create(
        "badinit", {"command": ["true"]}, restartPolicy="Never",
        initContainers=[{"name": "i", **image, "command": ["sh", "-c", "exit 4"]}],
    )  # fmt: skip
    await node.create("onfail", {"command": ["sh", "-c", "exit 1"]}, restartPolicy="OnFailure")
    await node.create("once", {"command": ["sh", "-c", "exit 7"]}, restartPolicy="Never")
    await node.create(
        "side", {"command": ["sh", "-c", "sleep 0.3"]}, restartPolicy="Never",
        initContainers=[{"name": "s", **image, "restartPolicy": "Always", "command": ["sleep", "1000"]}],
    )  # fmt: skip
    assert await finished(node, "inits") == "i1\ni2\n"
    pod = await node.pod("inits")
    assert condition(pod, "Initialized") == "True" and condition(pod, "Ready") == "False"
    assert [s["state"]["terminated"]["reason"] for s in pod["status"]["initContainerStatuses"]] == ["Completed"] * 2
    failed = await node.phase("badinit", "Failed")
    assert failed["status"]["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}
    again = await node.wait("onfail", lambda p: p["status"]["containerStatuses"][0]["restartCount"] >= 1)
    assert again["status"]["phase"] == "Running"
    waiting = await node.wait("onfail", lambda p: "waiting" in p["status"]["containerStatuses"][0]["state"])
    assert waiting["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert waiting["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 1
    once = await node.phase("once", "Failed")
    state = once["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (state["exitCode"], state["reason"]) == (7, "Error")
    side = await node.phase("side", "Succeeded")
    assert "terminated" in side["status"]["initContainerStatuses"][0]["state"]
    await asyncio.gather(*(node.delete(n) for n in ("inits", "badinit", "onfail", "once", "side")))


async def test_probes_and_hooks(node: Node) -> None:
    fast = {"periodSeconds": 1, "failureThreshold": 1}
    await node.create(
        "probed",
        {
            "command": ["sh", "-c", "mkdir /w; echo ok > /w/ready; httpd -p 8080 -h /w; touch /alive; sleep 1000"],
            "ports": [{"containerPort": 8080, "name": "web"}],
            "startupProbe": {"exec": {"command": ["cat", "/alive"]}, **fast, "failureThreshold": 10},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "web"}, **fast},
            "livenessProbe": {"tcpSocket": {"port": 8080}, **fast},
            "lifecycle": {"postStart": {"exec": {"command": ["touch", "/started"]}}},
        },
    )
    await node.create(
        "dying",
        {"command": ["sleep", "1000"], "livenessProbe": {"exec": {"command": ["false"]}, **fast}},
    )
    await node.create("late", {"command": ["sleep", "1000"], "readinessProbe": {"tcpSocket": {"port": 9}, **fast}})
    await node.create(
        "stopped",
        {
            "command": ["sh", "-c", "trap 'echo term >> /h/out; exit 0' TERM; touch /h/up; while :; do sleep 0.1; done"],
            "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "echo hook >> /h/out"]}}},
            "volumeMounts": [{"name": "h", "mountPath": "/h"}],
        },
        volumes=[{"name": "h", "hostPath": {"path": str(node.root / "hooked"), "type": "DirectoryOrCreate"}}],
        terminationGracePeriodSeconds=20,
    )  # fmt: skip
    pod = await node.ready("probed")
    assert pod["status"]["containerStatuses"][0]["started"]
    restarted = await node.wait("dying", lambda p: p["status"]["containerStatuses"][0]["restartCount"] >= 1)
    assert restarted["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137
    late = await node.wait("late", lambda p: p["status"].get("phase") == "Running")
    assert condition(late, "Ready") == "False"
    await node.ready("stopped")

    async def up() -> bool:
        return (node.root / "hooked" / "up").exists()

    await node.until(up)
    await node.delete("stopped")
    assert (node.root / "hooked" / "out").read_text() == "hook\nterm\n"
    events = (await node.client.list(EVENTS, "default"))["items"]
    told = {(e["involvedObject"]["name"], e["reason"], e["message"]) for e in events}
    assert ("dying", "Killing", "Container main failed liveness probe, will be restarted") in told
    assert ("dying", "Unhealthy", "Liveness probe failed: ") in told
    assert ("probed", "Created", "Container created") in told and ("probed", "Started", "Container started") in told
    assert any(n == "probed" and r == "Pulled" for n, r, _ in told)
    await asyncio.gather(*(node.delete(n) for n in ("probed", "dying", "late")))


async def test_what_cannot_start(node: Node) -> None:
    """Each usual reason, in the container's waiting state."""
    await node.create("noimage", {"image": "127.0.0.1:9/none:1"})
    await node.create("never", {"image": "absent:1", "imagePullPolicy": "Never"})
    await node.create("noconfig", {"envFrom": [{"configMapRef": {"name": "none"}}]})
    await node.create("nocommand", {"command": ["/no/such"]})
    await node.create("root", {"command": ["true"], "securityContext": {"runAsNonRoot": True}})
    await node.create(
        "novolume", {"volumeMounts": [{"name": "c", "mountPath": "/c"}]},
        volumes=[{"name": "c", "configMap": {"name": "none"}}],
    )  # fmt: skip
    await node.create("sysctl", {}, securityContext={"sysctls": [{"name": "kernel.msgmax", "value": "1"}]})

    def reason(pod: dict[str, Any]) -> str:
        states = pod["status"].get("containerStatuses") or [{"state": {}}]
        return str((states[0]["state"].get("waiting") or {}).get("reason"))

    await node.wait("noimage", lambda p: reason(p) == "ErrImagePull")
    await node.wait("noimage", lambda p: reason(p) == "ImagePullBackOff")
    await node.wait("never", lambda p: reason(p) == "ErrImageNeverPull")
    found = await node.wait("noconfig", lambda p: reason(p) == "CreateContainerConfigError")
    assert found["status"]["containerStatuses"][0]["state"]["waiting"]["message"] == 'configmap "none" not found'
    await node.wait("nocommand", lambda p: reason(p) in ("RunContainerError", "CrashLoopBackOff"))
    await node.wait("root", lambda p: reason(p) == "CreateContainerConfigError")
    await node.wait("novolume", lambda p: reason(p) == "ContainerCreating")
    refused = await node.phase("sysctl", "Failed")
    assert refused["status"]["reason"] == "SysctlForbidden"
    names = ("noimage", "never", "noconfig", "nocommand", "root", "novolume", "sysctl")
    await asyncio.gather(*(node.delete(n) for n in names))


async def test_termination_messages(node: Node) -> None:
    never = {"restartPolicy": "Never"}
    await node.create("tfile", {"command": ["sh", "-c", "echo -n DONE > /dev/termination-log"]}, **never)
    await node.create(
        "tlog", {"command": ["sh", "-c", "echo last words; exit 1"], "terminationMessagePolicy": "FallbackToLogsOnError"},
        **never,
    )  # fmt: skip
    for name, phase, text in (("tfile", "Succeeded", "DONE"), ("tlog", "Failed", "last words\n")):
        pod = await node.phase(name, phase)
        assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == text
    await asyncio.gather(node.delete("tfile"), node.delete("tlog"))


async def test_restart_of_everything(node: Node) -> None:
    """Kubelet and engine go and come back: what runs is not touched, what was deleted meanwhile is ended."""
    await node.create("stays", {"command": ["sleep", "1000"]})
    await node.create("deleted", {"command": ["sleep", "1000"]}, terminationGracePeriodSeconds=30)
    before = await node.ready("stays")
    await node.ready("deleted")
    await node.stop_kubelet()
    await node.stop_engine()
    await node.client.delete(PODS, "deleted", "default", grace_seconds=0)
    await node.start_engine()
    node.start_kubelet()

    async def ended() -> bool:
        return len(list(node.cri.sandboxes.records)) == 1

    await node.until(ended)
    await node.create("new", {"command": ["sleep", "1000"]})
    await node.ready("new")
    after = await node.ready("stays")
    one, two = (p["status"]["containerStatuses"][0] for p in (before, after))
    assert one["containerID"] == two["containerID"] and two["restartCount"] == 0
    assert sum(c.config.metadata.name == "main" for c in node.cri.containers.records) == 2
    await asyncio.gather(node.delete("stays"), node.delete("new"))
    assert not list((node.root / "k" / "pods").iterdir())
    assert not list(node.cri.sandboxes.records) and not list(node.cri.containers.records)


async def test_resize_in_place(node: Node) -> None:
    """New cpu and memory without a restart, or with one where the container's policy wants it."""
    resources = {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}}
    await node.create(
        "resized",
        {
            "command": ["sleep", "1000"], "resources": resources,
            "resizePolicy": [
                {"resourceName": "cpu", "restartPolicy": "NotRequired"},
                {"resourceName": "memory", "restartPolicy": "RestartContainer"},
            ],
        },
    )  # fmt: skip
    before = await node.ready("resized")
    first = before["status"]["containerStatuses"][0]
    assert first["resources"] == resources and first["allocatedResources"] == resources["requests"]

    async def resize(cpu: str, memory: str) -> dict[str, Any]:
        limits = {"cpu": cpu, "memory": memory}
        patch = {"spec": {"containers": [{"name": "main", "resources": {"limits": limits}}]}}
        return await node.client.patch(PODS, "resized", patch, "default", kind="strategic", subresource="resize")

    asked = await resize("300m", "64Mi")
    generation = asked["metadata"]["generation"]

    def done(pod: dict[str, Any]) -> bool:
        status = pod["status"]
        return bool(
            status.get("observedGeneration", 0) >= generation
            and status["containerStatuses"][0].get("resources", {}).get("limits", {}).get("cpu") == "300m"
            and not [c for c in status["conditions"] if c["type"].startswith("PodResize")]
        )

    after = (await node.wait("resized", done))["status"]["containerStatuses"][0]
    assert after["containerID"] == first["containerID"] and after["restartCount"] == 0
    known = next(c for c in node.cri.containers.records if c.id == after["containerID"].rpartition("/")[2])
    assert known.config.linux.resources.cpu_quota == 30000
    generation = (await resize("300m", "96Mi"))["metadata"]["generation"]
    again = await node.wait(
        "resized",
        lambda p: p["status"]["containerStatuses"][0]["restartCount"] == 1 and condition(p, "Ready") == "True",
    )
    assert again["status"]["containerStatuses"][0]["resources"]["limits"]["memory"] == "96Mi"
    patch = {
        "spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": "500"}, "limits": {"cpu": "500"}}}]}
    }
    await node.client.patch(PODS, "resized", patch, "default", kind="strategic", subresource="resize")
    refused = await node.wait("resized", lambda p: condition(p, "PodResizePending") == "True")
    reason = next(c["reason"] for c in refused["status"]["conditions"] if c["type"] == "PodResizePending")
    assert reason == "Infeasible"
    await node.delete("resized")


async def test_image_volume_and_shared_processes(node: Node) -> None:
    await node.create(
        "imagevol",
        {"command": ["sh", "-c", "cat /img/passwd; touch /img/x 2>&1; ps"], "volumeMounts": [{"name": "v", "mountPath": "/img", "subPath": "etc"}]},
        volumes=[{"name": "v", "image": {"reference": "registry.test/tools:1", "pullPolicy": "IfNotPresent"}}],
        restartPolicy="Never", shareProcessNamespace=True,
    )  # fmt: skip
    await node.create(
        "noimagevol", {"volumeMounts": [{"name": "v", "mountPath": "/img"}]},
        volumes=[{"name": "v", "image": {"reference": "127.0.0.1:9/none:1"}}],
    )  # fmt: skip
    out = await finished(node, "imagevol", "Succeeded")
    assert "root:x:0:0" in out and "Read-only" in out and "/pause" in out
    await node.wait(
        "noimagevol",
        lambda p: (
            (p["status"].get("containerStatuses") or [{"state": {}}])[0]["state"].get("waiting", {}).get("reason")
            in ("ErrImagePull", "ImagePullBackOff")
        ),
    )
    await asyncio.gather(node.delete("imagevol"), node.delete("noimagevol"))
