"""The kubelet's rules that need no node: expansion, downward API, resources, actions, files, credentials, eviction."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.node.kubelet import (
    actions,
    admission,
    downward,
    eviction,
    nodestatus,
    podspec,
    resources,
    status,
)
from longshore.node.kubelet.backoff import BackOff
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.env import ConfigError, parse_env_file, service_variables
from longshore.node.kubelet.expansion import expand, missing
from longshore.node.kubelet.runtime import EXITED, RUNNING, Container, PodState, Sandbox, container_hash
from longshore.node.kubelet.statuses import difference
from longshore.node.kubelet.volumes import atomic

Pod = dict[str, Any]


def pod(*containers: dict[str, Any], inits: tuple[dict[str, Any], ...] = (), **spec: Any) -> Pod:
    named = [{"name": f"c{i}", "image": "i", **c} for i, c in enumerate(containers)]
    first = [{"name": f"i{i}", "image": "i", **c} for i, c in enumerate(inits)]
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"containers": named, "initContainers": first, "restartPolicy": "Always", **spec},
    }


def ran(name: str, state: str = RUNNING, code: int = 0, created: int = 1) -> Container:
    return Container(
        id=f"{name}-{created}", name=name, state=state, attempt=0, created_at=created, started_at=created,
        finished_at=created + 1 if state == EXITED else 0, exit_code=code, reason="", message="", image="i", image_ref="r",
        image_id="r", hash=container_hash({"name": name, "image": "i"}), restart_count=0, annotations={}, log_path="", mounts=[],
    )  # fmt: skip


def state(*containers: Container, ready: bool = True) -> PodState:
    return PodState("u", "p", "n", [Sandbox("s", 0, ready, 1, ["10.0.0.1"], False, {})], list(containers))


def unknown(_kind: str, _container: str) -> bool | None:
    return None


def names(found: list[dict[str, Any]]) -> list[str]:
    return [c["name"] for c in found]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(B)", "$(B)"),
        ("a$b", "a$b"),
        ("$(A", "$(A"),
        ("$(A)$(A)", "11"),
    ],
)
def test_expansion(text: str, want: str) -> None:
    assert expand(text, {"A": "1"}) == want


@given(st.text())
def test_expansion_of_plain_text(text: str) -> None:
    assert expand(text.replace("$", ""), {"A": "x"}) == text.replace("$", "")
    assert missing(text.replace("$", "$$"), {}) == []


def test_downward() -> None:
    one = pod({"resources": {"limits": {"cpu": "1500m", "memory": "100Mi"}}})
    one["metadata"]["labels"] = {"b": "x\n", "a": 'q"'}
    assert downward.format_map(one["metadata"]["labels"]) == 'a="q\\""\nb="x\\n"'
    field = lambda path: downward.field(one, path, {"podIPs": [{"ip": "1"}, {"ip": "2"}]})  # noqa: E731
    assert (field("metadata.name"), field("metadata.labels['b']"), field("status.podIPs")) == ("p", "x\n", "1,2")
    with pytest.raises(ValueError, match="unsupported fieldPath"):
        field("spec.containers")
    value = lambda r, d="0": downward.resource(one, {"resource": r, "divisor": d}, "c0", {"cpu": "4", "memory": "8Gi"})  # noqa: E731
    assert (value("limits.cpu"), value("limits.cpu", "1m"), value("limits.memory", "1Mi")) == ("2", "1500", "100")
    assert (value("requests.cpu"), value("limits.ephemeral-storage")) == ("0", "0")


def test_qos_and_figures() -> None:
    full = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    assert resources.compute_qos(pod({"resources": full})) == "Guaranteed"
    assert resources.compute_qos(pod({"resources": full}, {})) == "Burstable"
    assert resources.compute_qos(pod({})) == "BestEffort"
    assert resources.compute_qos(pod({}, resources=full)) == "Guaranteed"
    assert (resources.shares(0), resources.shares(1000), resources.quota(5), resources.quota(250)) == (
        2,
        1024,
        1000,
        25000,
    )
    assert resources.weight(1024) == 39 and resources.weight(2) == 1 and resources.weight(262144) == 10000
    asks = lambda cpu: {"resources": {"requests": {"cpu": cpu}}}  # noqa: E731
    both = pod(asks("1"), inits=(asks("3"), {**asks("1"), "restartPolicy": "Always"}, asks("2500m")))
    assert resources.pod_total(both, "cpu") == 3500
    assert resources.pod_total({**both, "spec": {**both["spec"], "overhead": {"cpu": "1"}}}, "cpu") == 4500
    memory = pod({"resources": {"requests": {"memory": "1Gi"}}})
    assert resources.oom_score_adj(memory, memory["spec"]["containers"][0], 4 * 2**30) == 750
    assert resources.oom_score_adj(pod({"resources": full}), {}, 1) == -997


def test_actions_of_a_new_pod() -> None:
    todo = actions.compute(pod({}, {}), PodState("u"), unknown)
    assert todo.create_sandbox and todo.kill_pod and names(todo.start) == ["c0", "c1"]
    todo = actions.compute(pod({}, inits=({}, {})), PodState("u"), unknown)
    assert names(todo.start_init) == ["i0"] and not todo.start


def test_actions_of_init_containers() -> None:
    two = pod({}, inits=({}, {}))
    assert names(actions.compute(two, state(ran("i0")), unknown).start_init) == []
    assert names(actions.compute(two, state(ran("i0", EXITED)), unknown).start_init) == ["i1"]
    assert names(actions.compute(two, state(ran("i0", EXITED, 1)), unknown).start_init) == ["i0"]
    todo = actions.compute(two, state(ran("i0", EXITED), ran("i1", EXITED)), unknown)
    assert names(todo.start) == ["c0"] and not todo.start_init
    never = {**two, "spec": {**two["spec"], "restartPolicy": "Never"}}
    assert actions.compute(never, state(ran("i0", EXITED, 1)), unknown).kill_pod


def test_actions_of_sidecars() -> None:
    side = {"restartPolicy": "Always", "startupProbe": {"exec": {}}}
    one = pod({}, inits=(side, {}))
    assert actions.compute(one, state(ran("i0")), unknown).nothing
    passed = lambda kind, _: kind == "startup" or None  # noqa: E731
    assert names(actions.compute(one, state(ran("i0")), passed).start_init) == ["i1"]
    todo = actions.compute(one, state(ran("i0"), ran("i1", EXITED)), passed)
    assert names(todo.start) == ["c0"]
    todo = actions.compute(one, state(ran("i0", EXITED, 1), ran("i1", EXITED), ran("c0")), unknown)
    assert names(todo.start_init) == ["i0"] and not todo.kill
    finished = {**one, "spec": {**one["spec"], "restartPolicy": "Never"}}
    assert actions.compute(finished, state(ran("i0"), ran("i1", EXITED), ran("c0", EXITED)), unknown).kill_pod


def test_actions_of_running_pods() -> None:
    one = pod({}, {})
    assert actions.compute(one, state(ran("c0"), ran("c1")), unknown).nothing
    dead = lambda kind, found: False if (kind, found) == ("liveness", "c0-1") else None  # noqa: E731
    todo = actions.compute(one, state(ran("c0"), ran("c1")), dead)
    assert names(todo.start) == ["c0"] and "liveness" in todo.kill[0].message
    changed = pod({"image": "other"}, {})
    assert "definition changed" in actions.compute(changed, state(ran("c0"), ran("c1")), unknown).kill[0].message
    todo = actions.compute(one, state(ran("c0"), ran("c1"), ready=False), unknown)
    assert todo.kill_pod and todo.create_sandbox and todo.attempt == 1
    rule = {
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}],
        "restartPolicy": "Never",
    }
    ruled = pod(rule, restartPolicy="Never")
    assert names(actions.compute(ruled, state(ran("c0", EXITED, 42)), unknown).start) == ["c0"]
    assert actions.compute(ruled, state(ran("c0", EXITED, 1)), unknown).kill_pod


def test_phases() -> None:
    def entry(name: str, **state_: Any) -> dict[str, Any]:
        return {"name": name, "state": state_, "lastState": {}, "ready": False}

    run, ok, bad = {"running": {}}, {"terminated": {"exitCode": 0}}, {"terminated": {"exitCode": 1}}
    never, always = pod({}, {}, restartPolicy="Never"), pod({}, {})
    for which, one, two, want in (
        (always, run, run, "Running"), (always, ok, ok, "Running"), (never, ok, ok, "Succeeded"), (never, ok, bad, "Failed"),
        (never, run, bad, "Running"), (always, run, {"waiting": {}}, "Pending"),
    ):  # fmt: skip
        assert status.phase(which, [entry("c0", **one), entry("c1", **two)], False) == want
    assert status.phase(always, [entry("c0", **ok), entry("c1", **bad)], True) == "Failed"


def test_status_patch() -> None:
    base = {"phase": "Pending", "podIPs": [{"ip": "1"}], "conditions": [
        {"type": "Ready", "status": "False", "reason": "x"}, {"type": "Mine", "status": "True"}, {"type": "PodResizePending", "status": "True"}]}  # fmt: skip
    new = {"phase": "Pending", "podIPs": [{"ip": "2"}], "conditions": [{"type": "Ready", "status": "True"}]}
    patch = difference(base, new)
    assert "phase" not in patch and patch["podIPs"] == [{"ip": "2"}, {"$patch": "replace"}]
    assert patch["conditions"] == [
        {"$patch": "delete", "type": "PodResizePending"}, {"type": "Ready", "status": "True", "reason": None}
    ]  # fmt: skip
    assert difference(new, new) == {}


def test_backoff() -> None:
    now = [1000.0]
    backoff = BackOff(clock=lambda: now[0])
    assert [backoff.step("k") for _ in range(7)] == [10, 20, 40, 80, 160, 300, 300]
    assert backoff.remaining("k", now[0]) == 300
    now[0] += 601
    assert backoff.step("k", now[0]) == 10


def test_service_variables() -> None:
    service = {
        "metadata": {"name": "my-db"},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "sql", "port": 5, "protocol": "TCP"}]},
    }
    found = service_variables(
        [service, {"metadata": {"name": "no"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}]
    )
    assert found["MY_DB_SERVICE_HOST"] == "10.0.0.1" and found["MY_DB_SERVICE_PORT_SQL"] == "5"
    assert found["MY_DB_PORT_5_TCP"] == found["MY_DB_PORT"] == "tcp://10.0.0.1:5" and not any(
        k.startswith("NO") for k in found
    )


def test_atomic_files(tmp_path: Path) -> None:
    files = {"a": atomic.File(b"1"), "d/b": atomic.File(b"2", 0o400)}
    assert atomic.write(tmp_path, files) and not atomic.write(tmp_path, files)
    assert (tmp_path / "d" / "b").read_bytes() == b"2" and os.stat(tmp_path / "d" / "b").st_mode & 0o777 == 0o400
    inode = os.stat(tmp_path / "a").st_ino
    assert atomic.write(tmp_path, {"a": atomic.File(b"3")}) and (tmp_path / "a").read_bytes() == b"3"
    assert not (tmp_path / "d").exists() and os.stat(tmp_path / "a").st_ino != inode
    assert sorted(n for n in os.listdir(tmp_path) if not n.startswith("..2")) == ["..data", "a"]
    for bad in ("/x", "../x", "a/../b", "..x", ""):
        with pytest.raises(atomic.BadPath):
            atomic.write(tmp_path, {bad: atomic.File(b"")})


def test_sandbox_configuration(tmp_path: Path) -> None:
    config = Config("node", ["10.0.0.1"], tmp_path, tmp_path, cluster_dns=["10.96.0.10"], resolv_conf="")
    one = pod({"ports": [{"containerPort": 80, "hostPort": 8080}]}, hostname="h", subdomain="s",
              dnsConfig={"options": [{"name": "ndots", "value": "2"}]})  # fmt: skip
    made = podspec.sandbox_config(one, 0, config, "/pods")
    assert list(made.dns_config.servers) == ["10.96.0.10"] and list(made.dns_config.options) == ["ndots:2"]
    assert list(made.dns_config.searches) == ["n.svc.cluster.local", "svc.cluster.local", "cluster.local"]
    assert made.port_mappings[0].host_port == 8080
    hosts = podspec.hosts_file(
        {**one, "spec": {**one["spec"], "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x", "y"]}]}},
        ["10.1.1.1"],
        config,
    )
    assert "10.1.1.1\th.s.n.svc.cluster.local\th\n" in hosts and "1.2.3.4\tx\ty\n" in hosts


def test_admission() -> None:
    config = Config("node", ["1"], Path("/x"), Path("/x"))
    node = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}},
    }
    asks = lambda cpu: pod({"resources": {"requests": {"cpu": cpu}}})  # noqa: E731
    assert admission.refusal(asks("1"), [], node, config) is None
    assert admission.refusal(asks("1500m"), [asks("1")], node, config) == (
        "OutOfcpu", "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000"
    )  # fmt: skip
    assert (admission.refusal(pod({}), [pod({}), pod({})], node, config) or [""])[0] == "OutOfpods"
    assert (admission.refusal(pod({}, nodeSelector={"a": "c"}), [], node, config) or [""])[0] == "NodeAffinity"


def test_eviction() -> None:
    now = [0.0]
    threshold = eviction.Threshold("memory.available", "100Mi")
    pressures = eviction.Pressures([threshold], clock=lambda: now[0])
    low = eviction.Observation(50 * 2**20, 2**30)
    assert pressures.update({"memory.available": eviction.Observation(2**29, 2**30)}) == []
    assert pressures.update({"memory.available": low}) == [(threshold, low)]
    assert pressures.conditions()["MemoryPressure"][1] == "KubeletHasInsufficientMemory"
    now[0] = 301
    assert pressures.conditions() == {}
    asking = pod({"resources": {"requests": {"memory": "1Gi"}}})
    greedy, modest = pod({}), asking
    usage = lambda p: 2**20 if p is greedy else 2**29  # noqa: E731
    assert eviction.rank([modest, greedy], usage, "memory") == [greedy, modest]
    text = eviction.message(threshold, low, [("c", 2**29, 0)])
    assert text == (
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. "
        "Container c was using 512Mi, request is 0, has larger consumption of memory. "
    )
    over = pod({}, volumes=[{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}])
    assert (
        eviction.storage_excess(over, lambda _: 2**21, {}) == 'Usage of EmptyDir volume "v" exceeds the limit "1Mi". '
    )
    assert eviction.storage_excess(over, lambda _: 0, {}) is None


def test_environment_files() -> None:
    assert parse_env_file("# c\nA=1\n\nB='x y'\nC=a=b\n") == {"A": "1", "B": "x y", "C": "a=b"}
    with pytest.raises(ConfigError):
        parse_env_file("nothing")


def test_two_pods_do_not_share_a_port_of_the_node() -> None:
    node = {"metadata": {"name": "a"}, "spec": {}, "status": {"allocatable": {"pods": "10"}}}

    def listens(protocol="TCP", address=None):
        port = {"hostPort": 80, "containerPort": 80, "protocol": protocol}
        return pod({"ports": [port if address is None else {**port, "hostIP": address}]})

    def refused(mine, theirs):
        return admission.refusal(mine, [theirs], node, Config("a", ["1"], Path("/x"), Path("/x")))

    assert refused(listens(), listens()) == (
        "NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
    )  # fmt: skip
    assert refused(listens(address="10.0.0.1"), listens(address="0.0.0.0")) is not None
    assert refused(listens(), listens("UDP")) is None
    assert refused(listens(address="10.0.0.1"), listens(address="10.0.0.2")) is None


def test_one_containers_end_starts_all_anew() -> None:
    rule = {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [7]}}
    made = pod({"restartPolicy": "Never", "restartPolicyRules": [rule]}, {}, inits=({},), restartPolicy="Never")
    assert actions.restarts_after(made, made["spec"]["containers"][0], 7)
    ended, other = ran("c0", EXITED, 7), ran("c1")
    todo = actions.compute(made, state(ended, other, ran("i0", EXITED)), unknown)
    assert todo.reset is ended and [k.container for k in todo.kill] == [other]
    assert not (todo.start or todo.start_init or todo.kill_pod or todo.nothing)
    # what is left of it is a pod at its beginning
    assert names(actions.compute(made, state(), unknown).start_init) == ["i0"]
    assert actions.compute(made, state(ran("c0", EXITED, 1), other, ran("i0", EXITED)), unknown).reset is None
    made["metadata"]["deletionTimestamp"] = "2026-11-22T00:00:00Z"
    assert actions.compute(made, state(ended, other, ran("i0", EXITED)), unknown).reset is None


async def test_resources_that_others_wrote_into_the_node(tmp_path: Path) -> None:
    config = Config("a", ["1"], tmp_path, tmp_path)
    nothing: Any = SimpleNamespace(event=lambda *_: None, name="r", version="1")
    kept = nodestatus.NodeStatus(
        config, nothing, nothing, nothing, healthy=lambda: "", pressures=dict, devices=lambda: ({"dev.io/x": "1"},) * 2
    )
    own = kept.capacity

    def seen(capacity: dict[str, str], allocatable: dict[str, str]) -> dict[str, Any]:
        kept.seen({"status": {"capacity": {**own, **capacity}, "allocatable": allocatable}})
        told: dict[str, Any] = kept.status()["allocatable"]
        return {k: v for k, v in told.items() if k not in own}

    assert seen({"example.com/foo": "5", "dev.io/x": "9"}, {}) == {"dev.io/x": "1", "example.com/foo": "5"}
    assert seen({"example.com/foo": "2"}, {"example.com/foo": "5"})["example.com/foo"] == "2"
    assert seen({}, {"example.com/foo": "2"})["example.com/foo"] is None  # taken out again
    assert "example.com/foo" not in seen({}, {})
