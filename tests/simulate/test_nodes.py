"""Journeys of simulated nodes on a real API server with the real controllers and scheduler, in this process."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

kubernetes = pytest.importorskip("kubernetes")


def until(question, seconds=40.0):
    """The first true answer of question."""
    end = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.05)
    return answer


def container(**more):
    return {"name": "c", "image": "i:1", "resources": {"requests": {"cpu": "1"}}, **more}


def deployment(replicas):
    labels = {"app": "web"}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [container()], "terminationGracePeriodSeconds": 1},
    }
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"metadata": {"name": "web"}, "spec": spec}


def test_a_deployment_comes_up_and_goes(longshore):
    longshore.run_controllers(
        ["deployment-controller", "replicaset-controller", "garbage-collector-controller", "node-lifecycle-controller"]
    )
    longshore.run_nodes(3, cpu="8", zones=2)
    api = longshore.client()
    core, apps = kubernetes.client.CoreV1Api(api), kubernetes.client.AppsV1Api(api)
    nodes = core.list_node().items
    assert {n.metadata.labels["topology.kubernetes.io/zone"] for n in nodes} == {"zone-1", "zone-2"}
    assert all(c.status == ("True" if c.type == "Ready" else "False") for n in nodes for c in n.status.conditions)
    apps.create_namespaced_deployment("default", deployment(20))
    until(lambda: apps.read_namespaced_deployment("web", "default").status.ready_replicas == 20)
    pods = core.list_namespaced_pod("default").items
    assert len({p.status.pod_ip for p in pods}) == 20
    assert {p.status.phase for p in pods} == {"Running"}
    assert {p.spec.node_name for p in pods} == {"simulated-0", "simulated-1", "simulated-2"}
    lease = kubernetes.client.CoordinationV1Api(api).read_namespaced_lease("simulated-0", "kube-node-lease")
    assert lease.spec.holder_identity == "simulated-0"
    apps.patch_namespaced_deployment_scale("web", "default", {"spec": {"replicas": 0}})
    until(lambda: not core.list_namespaced_pod("default").items)


def test_jobs_run_to_completion(longshore):
    longshore.run_controllers(["job-controller"])
    longshore.run_nodes(2)
    api = longshore.client()
    batch = kubernetes.client.BatchV1Api(api)
    template = {"spec": {"restartPolicy": "Never", "containers": [container()]}}
    batch.create_namespaced_job(
        "default", {"metadata": {"name": "j"}, "spec": {"completions": 6, "parallelism": 3, "template": template}}
    )
    status = until(lambda: (s := batch.read_namespaced_job("j", "default").status).succeeded == 6 and s)
    assert until(lambda: batch.read_namespaced_job("j", "default").status.completion_time)
    assert not status.failed


def bind(core, name, node="simulated-0", **spec):
    body = {"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [container()], **spec}}
    core.create_namespaced_pod("default", body)


def test_rules_for_delays_failures_and_ends(longshore):
    longshore.run_nodes(
        1,
        [
            {"match": {"node": "*-0"}, "pull": {"seconds": 0.3}, "start": {"seconds": 0.2}, "ready": {"seconds": 0.5},
             "run": {"seconds": 1.5, "failure": 1, "exitCode": 7}, "backoff": {"seconds": 0.2, "max": 0.3}},
        ],
    )  # fmt: skip
    core = kubernetes.client.CoreV1Api(longshore.client())
    bind(core, "once", restartPolicy="Never", initContainers=[{"name": "first", "image": "i:2"}])
    bind(core, "always")

    def state(name):
        return core.read_namespaced_pod(name, "default").status

    waiting = until(lambda: (s := state("once")).container_statuses and s)
    assert waiting.phase == "Pending"
    assert waiting.init_container_statuses[0].state.waiting.reason == "ContainerCreating"
    running = until(lambda: (s := state("once")).phase == "Running" and s)
    assert running.init_container_statuses[0].state.terminated.reason == "Completed"
    ended = until(lambda: (s := state("once")).phase == "Failed" and s)
    assert ended.container_statuses[0].state.terminated.exit_code == 7
    again = until(lambda: (s := state("always")).container_statuses[0].restart_count >= 2 and s)
    assert again.container_statuses[0].last_state.terminated.exit_code == 7
    assert again.phase == "Running"


def test_a_restart_goes_on_where_the_pods_are(longshore):
    longshore.run_nodes(1)
    core = kubernetes.client.CoreV1Api(longshore.client())
    bind(core, "p", terminationGracePeriodSeconds=1)
    before = until(lambda: (s := core.read_namespaced_pod("p", "default").status).phase == "Running" and s)
    serving = longshore._tasks.pop()
    longshore._thread._loop.call_soon_threadsafe(serving.cancel)
    until(serving.done)
    core.delete_namespaced_pod("p", "default")
    bind(core, "q")
    time.sleep(0.3)
    assert core.read_namespaced_pod("p", "default").status.pod_ip == before.pod_ip, "nobody is there to end it"
    longshore.run_nodes(1)
    until(lambda: [p.metadata.name for p in core.list_namespaced_pod("default").items] == ["q"])
    until(lambda: core.read_namespaced_pod("q", "default").status.phase == "Running")


def test_images_that_cannot_be_pulled_are_tried_again(longshore):
    longshore.run_nodes(1, [{"pull": {"failure": 1}, "backoff": {"seconds": 0.5}}])
    core = kubernetes.client.CoreV1Api(longshore.client())
    bind(core, "p")

    def reason():
        statuses = core.read_namespaced_pod("p", "default").status.container_statuses
        return statuses and statuses[0].state.waiting and statuses[0].state.waiting.reason

    until(lambda: reason() == "ImagePullBackOff")
    core.delete_namespaced_pod("p", "default", grace_period_seconds=0)
    until(lambda: not core.list_namespaced_pod("default").items)


def test_questions_about_a_running_cluster_write_nothing(longshore, tmp_path, capsys):
    from longshore.cli.main import main

    longshore.run_nodes(3, cpu="4", zones=0)
    core = kubernetes.client.CoreV1Api(longshore.client())
    bind(core, "p")
    until(lambda: core.read_namespaced_pod("p", "default").status.phase == "Running")
    wanted = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "w"}, "spec": {"containers": [container()]}}
    (tmp_path / "pod.json").write_text(json.dumps(wanted))
    where = ["--kubeconfig", str(longshore.kubeconfig)]
    assert main(["simulate", "fit", *where, "--pod", str(tmp_path / "pod.json")]) == 0
    said = capsys.readouterr().out
    assert "11 of pod w fit, on 3 nodes." in said and "3 Insufficient cpu" in said
    assert main(["simulate", "drain", *where, "simulated-0"]) == 0
    assert "no controller makes it anew" in capsys.readouterr().out
    assert [p.metadata.name for p in core.list_namespaced_pod("default").items] == ["p"]


def test_nodes_by_the_command(longshore, tmp_path):
    (tmp_path / "rules.yaml").write_text("rules: [{start: {seconds: 0.1}}]")
    command = [sys.executable, "-m", "longshore", "simulate", "nodes", "--kubeconfig", str(longshore.kubeconfig)]
    command += ["--count", "2", "--name", "x", "--taint", "a=b:NoSchedule", "--rules", str(tmp_path / "rules.yaml")]
    core = kubernetes.client.CoreV1Api(longshore.client())
    child = subprocess.Popen([*command, "--remove"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "2 simulated nodes are Ready\n"
        assert {n.metadata.name for n in core.list_node().items} == {"x-0", "x-1"}
        assert [(t.key, t.value, t.effect) for t in core.read_node("x-0").spec.taints] == [("a", "b", "NoSchedule")]
        bind(core, "p", "x-0")
        until(lambda: core.read_namespaced_pod("p", "default").status.phase == "Running")
    finally:
        child.terminate()
        assert child.wait(20) == 0
    assert not core.list_node().items, "--remove takes them away"


def test_a_deletion_takes_its_time_unless_it_is_hurried(longshore):
    longshore.run_nodes(1, [{"stop": {"seconds": 600}}])
    core = kubernetes.client.CoreV1Api(longshore.client())
    bind(core, "p", terminationGracePeriodSeconds=300)
    until(lambda: core.read_namespaced_pod("p", "default").status.phase == "Running")
    core.delete_namespaced_pod("p", "default")
    time.sleep(0.5)
    assert core.read_namespaced_pod("p", "default").metadata.deletion_timestamp
    core.delete_namespaced_pod("p", "default", grace_period_seconds=1)
    until(lambda: not core.list_namespaced_pod("default").items)
