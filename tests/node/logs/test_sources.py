"""The parts' own logs, Events, labels of pods, who may read them, and metrics over several nodes."""

import asyncio
import time
from types import SimpleNamespace

import orjson
import pytest

from longshore.cli.logs import metric_now
from longshore.machinery.http import Client, Server
from longshore.node.logs.collector import Collector
from longshore.node.logs.loki import LokiAPI
from longshore.node.logs.objects import EventLog, PodLabels, _line, _slim
from longshore.node.logs.parts import PartLogs
from longshore.node.logs.query import LogQuerier
from longshore.node.logs.store.store import LogStore
from node.logs.test_inputs import entries, settle


async def test_the_parts_logs_are_streams_and_go_on_after_a_restart(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    file = folder / "apiserver.log"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    for turn in range(3):
        store = LogStore(tmp_path / "store")
        parts = PartLogs(folder, store, "n1")
        with file.open("a") as out:
            out.write(f"{stamp}.{turn}23Z I apiserver: turn {turn}\nTraceback {turn}\nhalf")
        parts.start()
        await settle(lambda store=store, turn=turn: len(entries(store, '{part="apiserver"}')) == 2 * turn + 2)
        with file.open("r+") as out:
            out.truncate(file.stat().st_size - 4)
        parts.close()
        await store.close()
    store = LogStore(tmp_path / "store")
    found = entries(store, '{job="longshore", part="apiserver"}')
    assert [e.line.split()[-1] for e in found] == ["0", "0", "1", "1", "2", "2"]
    assert found[0].time == found[1].time < found[2].time
    await store.close()


def event(version, name="e", **more):
    meta = {"name": name, "namespace": "shop", "uid": name, "resourceVersion": str(version)}
    about = {"kind": "Pod", "namespace": "shop", "name": "front-1"}
    return _line({"metadata": meta, "involvedObject": about, "reason": "Started", "message": "hello", **more})


async def test_events_are_kept_once(tmp_path):
    for turn in range(2):
        store = LogStore(tmp_path / "store")
        log = EventLog(None, store, "n1")
        for version in (3, 1, 2):
            log._take(event(version, count=version))
        if turn:
            log._take(event(4, count=4))
        await asyncio.sleep(0.01)
        found = [orjson.loads(e.line) for e in entries(store, '{job="events"}')]
        assert [e["count"] for e in found] == ([1, 2, 3, 4] if turn else [1, 2, 3])
        assert found[0]["name"] == "front-1" and found[0]["message"] == "hello"
        await store.close()


async def test_labels_come_from_the_pod_even_when_it_is_told_late(tmp_path):
    labels = PodLabels(None, "n1")
    store = LogStore(tmp_path / "store")
    collector = Collector(tmp_path / "pods", store, "n1", labels.describe)
    collector.start()
    log = tmp_path / "pods" / "shop_front-7d-x_uid-1" / "httpd" / "0.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"2024-01-01T00:00:00.0Z stdout F hello\n")
    await settle(lambda: entries(store, '{pod="front-7d-x"}'))
    pod = {
        "metadata": {
            "name": "front-7d-x", "namespace": "shop", "uid": "uid-1",
            "labels": {"app": "front", "pod-template-hash": "7d"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "front-7d", "controller": True}],
        },
        "spec": {"containers": [{"name": "httpd", "image": "busybox"}]},
    }  # fmt: skip
    run = asyncio.ensure_future(labels.run(collector.renew))
    await asyncio.sleep(0)
    for handler in labels._informer._handlers:
        handler.on_add(_slim(pod))
    run.cancel()
    (found,) = entries(store, '{app="front", owner="deployment/front"}')
    assert found.labels["image"] == "busybox"
    collector.close()
    await store.close()


class Rules:
    """Delegated, as far as LokiAPI uses it, with the answers of an API server that knows two people."""

    async def identify(self, request):
        return SimpleNamespace(name=request.headers.get("x-user"))

    async def allowed(self, who, *, verb, resource, subresource="", namespace="", **_more):
        if who.name == "admin":
            return True, ""
        return who.name == "shop" and resource == "pods" and namespace == "shop", ""


async def node(tmp_path, name, rules=None):
    store = LogStore(tmp_path / name)
    server = Server(LokiAPI(LogQuerier(store), rules, store, name).handle)
    return store, server, f"http://127.0.0.1:{await server.listen_tcp('127.0.0.1', 0)}"


async def test_streams_of_the_house_are_for_cluster_admins(tmp_path):
    store, server, url = await node(tmp_path, "n1", Rules())
    client, now = Client(), time.time_ns()
    body = orjson.dumps(
        {
            "streams": [
                {"stream": labels, "values": [[str(now), "x"]]}
                for labels in ({"job": "events"}, {"job": "c", "namespace": "shop"}, {"job": "c", "namespace": "bank"})
            ]
        }
    )
    seen = {}
    for user in ("nobody", "shop", "admin"):
        headers = [("x-user", user), ("content-type", "application/json")]
        pushed = await client.request("POST", f"{url}/loki/api/v1/push", headers=headers, body=body)
        assert pushed.status == (204 if user == "admin" else 403)
    for user in ("nobody", "shop", "admin"):
        answer = await client.request(
            "GET", f"{url}/loki/api/v1/query_range?query=%7Bjob%3D~%22.%2B%22%7D", headers=[("x-user", user)]
        )
        result = orjson.loads(await answer.read())["data"]["result"]
        seen[user] = sorted(s["stream"].get("namespace", "") for s in result)
    assert seen == {"nobody": [], "shop": ["shop"], "admin": ["", "bank", "shop"]}
    await client.close()
    await server.close()
    await store.close()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sum(count_over_time({app='a'}[1h]))", {(): 6}),
        ("sum by (level) (count_over_time({app='a'} | json [1h]))", {("x",): 4, ("y",): 2}),
        ("avg_over_time({app='a'} | json | unwrap n [1h]) by (app)", {("a",): 2.5}),
        ("sum(count_over_time({app='a'} | drop node [1h])) / 2", {(): 3}),
        ("topk(1, sum by (node) (count_over_time({app='a'}[1h])))", {("n2",): 4}),
        ("absent_over_time({app='a'}[1h])", {}),
    ],
)
async def test_metrics_over_two_nodes_are_those_of_one(tmp_path, capsys, query, expected):
    now, client, places = time.time_ns() - 10**9, Client(), []
    for name, numbers in (("n1", [0, 1]), ("n2", [2, 3, 4, 5])):
        store, server, url = await node(tmp_path, name)
        values = [[str(now + n), orjson.dumps({"n": n, "level": "xxy"[n % 3]}).decode()] for n in numbers]
        body = orjson.dumps({"streams": [{"stream": {"app": "a"}, "values": values}]})
        answer = await client.request(
            "POST", f"{url}/loki/api/v1/push", headers=[("content-type", "application/json")], body=body
        )
        assert answer.status == 204
        places.append((store, server, url))
    await metric_now(client, [url for _, _, url in places], query.replace("'", '"'))
    found = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {tuple(v for k, v in s["metric"].items() if k != "stream"): float(s["value"][1]) for s in found} == expected
    await client.close()
    for store, server, _ in places:
        await server.close()
        await store.close()
