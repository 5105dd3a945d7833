"""What-if questions on states in memory and from files, answered by the real scheduler's code."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from longshore.client.resources import NODES, PERSISTENT_VOLUME_CLAIMS, POD_DISRUPTION_BUDGETS, PODS
from longshore.machinery.errors import StatusError
from longshore.simulate import picture, report, snapshot
from longshore.simulate.cell import Cell
from longshore.simulate.nodes import node_object
from longshore.simulate.questions import compact, drain, fit

SET = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": True}


def pod(name, cpu="1", node="", owner="ReplicaSet", **spec):
    body = {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}], **spec}
    meta = {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}}
    if owner:
        meta["ownerReferences"] = [{**SET, "kind": owner}]
    if node:
        body["nodeName"] = node
    return {"metadata": meta, "spec": body, "status": {"phase": "Running" if node else "Pending"}}


def state(nodes=4, pods=()):
    machines = [node_object(i, name="n", cpu="4", memory="16Gi") for i in range(nodes)]
    return snapshot.Snapshot({NODES: machines, PODS: list(pods)})


def anti_affinity():
    term = {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


async def test_fit_counts_what_fits_and_says_why_no_more():
    async with Cell(state(3, [pod("a", "3", "n-0")])) as cell:
        answer = await fit(cell, pod("b", "1"))
    assert answer.placed == {"n-0": 1, "n-1": 4, "n-2": 4}
    assert answer.why == "0/3 nodes are available: 3 Insufficient cpu."
    assert answer.reasons == {"Insufficient cpu": 3}
    assert report.of_fit(answer).startswith("9 of pod b fit, on 3 nodes.")


async def test_fit_obeys_affinity_taints_and_the_count():
    tainted = state(4)
    tainted.of(NODES)[3]["spec"] = {"taints": [{"key": "k", "effect": "NoSchedule"}]}
    async with Cell(tainted) as cell:
        answer = await fit(cell, pod("b", "1", affinity=anti_affinity()))
    assert sorted(answer.placed) == ["n-0", "n-1", "n-2"] and answer.total == 3
    assert "1 node(s) had untolerated taint" in answer.why
    async with Cell(state(4)) as cell:
        answer = await fit(cell, pod("b", "1"), 5)
    assert answer.total == 5 and answer.why == ""


async def test_drain_moves_ends_and_gets_stuck():
    pods = [
        pod("small", "1", "n-0"),
        pod("wide", "3500m", "n-0"),
        pod("agent", "100m", "n-0", owner="DaemonSet"),
        pod("bare", "100m", "n-0", owner=""),
        pod("there", "3", "n-1"),
        pod("pending", "1"),
    ]
    budget = {
        "metadata": {"name": "b", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}},
        "status": {"disruptionsAllowed": 1},
    }
    async with Cell(state(2, pods)) as cell:
        cell.snapshot.objects[POD_DISRUPTION_BUDGETS] = [budget]
        answer = await drain(cell, ["n-0"])
        drawn = picture.of_nodes(cell, "t & t", {"n-1": 1}, answer.nodes)
    assert answer.moved == [("default/small", "n-0", "n-1")]
    assert [(p, why) for p, _, why in answer.stuck] == [
        ("default/wide", "0/1 nodes are available: 1 Insufficient cpu.")
    ]
    assert {p for p, _, _ in answer.ended} == {"default/agent", "default/bare"}
    assert answer.budgets == ["default/b allows 1 of these 2 pods to go at once"]
    assert "1 pods move, 1 fit nowhere, 2 end" in report.of_drain(answer)
    assert "n-0: gone" in drawn
    ET.fromstring(drawn)
    async with Cell(state(2)) as cell:
        with pytest.raises(KeyError):
            await drain(cell, ["none"])


async def test_a_pod_waits_for_the_one_it_must_be_near():
    near = {"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": "kubernetes.io/hostname"}
    first = pod("a", "1", "n-0", affinity={"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [near]}})
    second = pod("b", "1", "n-0")
    second["metadata"]["labels"] = {"app": "db"}
    async with Cell(state(3, [first, second])) as cell:
        answer = await drain(cell, ["n-0"])
    targets = {p: to for p, _, to in answer.moved}
    assert targets["default/a"] == targets["default/b"] and not answer.stuck


async def test_claims_bind_a_pod_to_what_its_volume_reaches():
    claim = {
        "metadata": {"name": "c", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    }
    with_claim = pod("p", "1", volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}])
    held = state(2)
    held.objects[PERSISTENT_VOLUME_CLAIMS] = [claim]
    async with Cell(held) as cell:
        answer = await fit(cell, with_claim)
    assert answer.total == 0 and "unbound immediate PersistentVolumeClaims" in answer.why


async def test_compaction_finds_the_fewest_machines():
    pods = [pod(f"p{i}", "1", f"n-{i}") for i in range(10)]
    pods += [pod(f"d{i}", "500m", f"n-{i}", owner="DaemonSet") for i in range(10)]
    pods += [pod("never", "64")]
    async with Cell(state(10, pods)) as cell:
        answer = await compact(cell, seed=1)
    # Each machine has room for three: four cores but for the half that its agent takes.
    assert answer.needed == [4] * 11 and answer.bound <= 4
    assert [key for key, _ in answer.left_out] == ["default/never"]
    assert answer.pods == 10 and len(answer.kept) == 4
    text = report.of_compaction(answer)
    assert "4 of 10 nodes hold the 10 pods: 60 % could go" in text and "64" not in text
    ET.fromstring(picture.of_compaction(answer))


async def test_compaction_places_the_widest_pods_first():
    # Small pods that are spread first would leave no machine with room for a wide one.
    pods = [pod(f"a{i:02}", "1") for i in range(12)] + [pod(f"b{i}", "4") for i in range(3)]
    async with Cell(state(10, pods)) as cell:
        answer = await compact(cell, seed=1, trials=3)
    async with Cell(state(10, pods)) as cell:
        as_queued = await compact(cell, seed=1, trials=3, by_size=False)
    assert answer.needed == [6] * 3 == [answer.bound] * 3 and not answer.left_out
    assert len(as_queued.left_out) == 3


async def test_compaction_of_a_part_of_the_cell():
    pods = [pod(f"p{i}", "1", f"n-{i % 6}") for i in range(12)]
    async with Cell(state(6, pods)) as cell:
        zone = "topology.kubernetes.io/zone"
        answer = await compact(cell, nodes=lambda n: n["metadata"]["labels"][zone] == "zone-1", trials=2)
    assert answer.nodes == 2 and answer.pods == 4 and answer.best == 1
    async with Cell(state(2)) as cell:
        with pytest.raises(ValueError):
            await compact(cell, nodes=lambda n: False)


async def test_nothing_can_be_written():
    with pytest.raises(StatusError) as refused:
        await state().create(PODS, pod("x"))
    assert refused.value.code == 405


def test_files_are_checked(tmp_path):
    path = tmp_path / "state.yaml"

    def wrong(text):
        path.write_text(text)
        with pytest.raises(snapshot.SnapshotError) as refused:
            snapshot.load([path])
        return str(refused.value)

    assert "neither JSON nor YAML" in wrong("a: [")
    assert "not an object" in wrong("- 1")
    assert "without a name" in wrong("{apiVersion: v1, kind: Pod, metadata: {}}")
    assert "Pod x" in wrong("{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: 3}")
    with pytest.raises(snapshot.SnapshotError):
        snapshot.load([tmp_path / "none"])


def test_pods_from_templates(tmp_path):
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {"template": template}}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    made = snapshot.pod_of(tmp_path / "job.yaml")
    assert made["metadata"]["name"] == "j" and made["metadata"]["labels"] == {"a": "b"}
    job["spec"]["template"]["spec"]["containers"][0]["name"] = "Bad_"
    (tmp_path / "bad.yaml").write_text(json.dumps(job))
    with pytest.raises(snapshot.SnapshotError, match="name"):
        snapshot.pod_of(tmp_path / "bad.yaml")


def test_the_command(tmp_path, capsys):
    from longshore.cli.main import main

    items = [{"apiVersion": "v1", "kind": "Node", **node_object(i, name="n", cpu="4")} for i in range(3)]
    items.append({"apiVersion": "v1", "kind": "Pod", **pod("a", "3", "n-0")})
    where = tmp_path / "state.json"
    where.write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": items}))
    (tmp_path / "pod.json").write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", **pod("b", "2")}))
    drawn = tmp_path / "fit.svg"
    asked = ["simulate", "fit", "--from", str(where), "--pod", str(tmp_path / "pod.json"), "--picture", str(drawn)]
    assert main(asked) == 0
    assert capsys.readouterr().out.startswith("4 of pod b fit, on 2 nodes.")
    ET.fromstring(drawn.read_text())
    assert main(["simulate", "drain", "--from", str(where), "n-0"]) == 0
    assert "1 pods move" in capsys.readouterr().out
    assert main(["simulate", "compact", "--from", str(where), "--trials", "2"]) == 0
    assert "1 of 3 nodes hold the 1 pods" in capsys.readouterr().out
    assert main(["simulate", "drain", "--from", str(where), "x"]) == 1
    assert capsys.readouterr().err == 'longshore: nodes "x" not found\n'
    assert main(["simulate", "compact", "--from", str(where), "-l", "a in ("]) == 1
    assert main(["simulate", "fit", "--from", str(tmp_path / "none"), "--pod", "x"]) == 1
