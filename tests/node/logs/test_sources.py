"""The parts' own logs, Events, labels of pods, who may read them, and metrics over several nodes."""

import asyncio
import errno
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import urlencode

import orjson
import pytest

from longshore.client.delegated import Identity
from longshore.machinery.http import Client, Server
from longshore.node.logs.cluster import LOGS_USER, ClusterQuerier
from longshore.node.logs.collector import Collector
from longshore.node.logs.journald import Journald, folder_of
from longshore.node.logs.loki import LokiAPI
from longshore.node.logs.objects import EventLog, PodLabels, _line, _slim
from longshore.node.logs.parts import AuditLog, PartLogs
from longshore.node.logs.query import LogQuerier
from longshore.node.logs.store.store import LogStore
from node.logs.test_inputs import entries, settle
from support.poorkernel import PoorKernel

REMOTE = "/lib/systemd/systemd-journal-remote"


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
        return Identity(request.headers.get("x-user"))

    async def allowed(self, who, *, verb, resource, subresource="", namespace="", **_more):
        if who.name == "admin":
            return True, ""
        return who.name == "shop" and resource == "pods" and namespace == "shop", ""


async def node(tmp_path, name, rules=None):
    store = LogStore(tmp_path / name)
    server = Server(LokiAPI(LogQuerier(store), rules, store, name).handle)
    return store, server, f"http://127.0.0.1:{await server.listen_tcp('127.0.0.1', 0)}"


async def test_logs_are_collected_where_the_kernel_has_no_inotify_left(tmp_path, monkeypatch):
    PoorKernel.into(monkeypatch, errno.EMFILE)
    store = LogStore(tmp_path / "store")
    collector = Collector(tmp_path / "pods", store, "n1")
    collector.start()
    log = tmp_path / "pods" / "shop_front_uid-1" / "httpd" / "0.log"
    log.parent.mkdir(parents=True)
    for number in range(1, 4):
        with log.open("ab") as file:
            file.write(b"2024-01-01T00:00:0%d.0Z stdout F line\n" % number)
        await settle(lambda number=number: len(entries(store, '{pod="front"}')) == number)
    log.rename(log.with_name("0.log.20240101-000000"))
    log.write_bytes(b"2024-01-01T00:00:09.0Z stdout F rotated\n")
    await settle(lambda: len(entries(store, '{pod="front"}')) == 4)
    collector.close()
    await store.close()


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


async def cluster(tmp_path, names, rules=None):
    """Nodes that ask one another, as log parts do that hold the same certificate."""
    stores, servers, urls = {}, {}, {}
    http = Client(headers=[("x-user", LOGS_USER)], connect_timeout=2)
    for name in names:
        store = stores[name] = LogStore(tmp_path / name)
        querier = LogQuerier(store)
        asks = ClusterQuerier(
            querier, http, lambda name=name: {other: url for other, url in urls.items() if other != name}
        )
        servers[name] = Server(LokiAPI(querier, rules, store, name, asks).handle)
        urls[name] = f"http://127.0.0.1:{await servers[name].listen_tcp('127.0.0.1', 0)}"

    async def close():
        await http.close()
        for name in names:
            await servers[name].close()
            await stores[name].close()

    return stores, urls, close


async def pushed(client, url, labels, values, user="admin"):
    body = orjson.dumps({"streams": [{"stream": labels, "values": values}]})
    headers = [("content-type", "application/json"), ("x-user", user)]
    answer = await client.request("POST", f"{url}/loki/api/v1/push", headers=headers, body=body)
    assert answer.status == 204, await answer.read()


async def get(client, url, user="admin", **parameters):
    answer = await client.request("GET", f"{url}?{urlencode(parameters)}", headers=[("x-user", user)])
    body = await answer.read()
    assert answer.status == 200, body
    return orjson.loads(body)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sum(count_over_time({app='a'}[1h]))", {(): 6}),
        ("sum by (level) (count_over_time({app='a'} | json [1h]))", {("x",): 4, ("y",): 2}),
        ("avg_over_time({app='a'} | json | unwrap n [1h]) by (app)", {("a",): 2.5}),
        ("sum(count_over_time({app='a'} | drop node [1h])) / 2", {(): 3}),
        ("topk(1, sum by (node) (count_over_time({app='a'}[1h])))", {("n2",): 4}),
        ("absent_over_time({app='a'}[1h])", {}),
        ("absent_over_time({app='b'}[1h])", {("b",): 1}),
    ],
)
async def test_metrics_over_two_nodes_are_those_of_one(tmp_path, query, expected):
    now, client = time.time_ns() - 10**9, Client()
    _, urls, close = await cluster(tmp_path, ["n1", "n2"])
    for name, numbers in (("n1", [0, 1]), ("n2", [2, 3, 4, 5])):
        values = [[str(now + n), orjson.dumps({"n": n, "level": "xxy"[n % 3]}).decode()] for n in numbers]
        await pushed(client, urls[name], {"app": "a"}, values)
    query = query.replace("'", '"')
    for url in urls.values():
        found = (await get(client, f"{url}/loki/api/v1/query", query=query))["data"]["result"]
        told = {tuple(v for k, v in s["metric"].items() if k != "stream"): float(s["value"][1]) for s in found}
        assert told == expected
        told = await get(client, f"{url}/loki/api/v1/query_range", query=query, start=now, end=now + 10**10, step="5s")
        last = {
            tuple(v for k, v in s["metric"].items() if k != "stream"): float(s["values"][-1][1])
            for s in told["data"]["result"]
            if s["values"][-1][0] * 10**9 > now
        }
        assert last == expected
    await client.close()
    await close()


async def test_one_query_asks_all_nodes_for_the_one_who_asks(tmp_path):
    now, client = time.time_ns(), Client()
    _stores, urls, close = await cluster(tmp_path, ["n1", "n2"], Rules())
    for number, name in enumerate(urls):
        await pushed(client, urls[name], {"namespace": "shop"}, [[str(now + number), f"shop {name}"]])
        await pushed(client, urls[name], {"namespace": "bank"}, [[str(now + number), f"bank {name}"]])
    for url in urls.values():
        for user, words in (
            ("shop", ["shop n1", "shop n2"]),
            ("nobody", []),
            ("admin", ["bank n1", "shop n1", "bank n2", "shop n2"]),
        ):
            found = (await get(client, f"{url}/loki/api/v1/query_range", user, query='{namespace=~".+"}'))["data"][
                "result"
            ]
            lines = sorted((int(when), line) for stream in found for when, line in stream["values"])
            assert [line for _, line in lines] == words
            named = await get(client, f"{url}/loki/api/v1/label/namespace/values", user)
            assert named["data"] == sorted({word.split()[0] for word in words})
    newest = await get(client, f"{urls['n1']}/loki/api/v1/query_range", query='{namespace="shop"}', limit=1)
    assert [v[1] for s in newest["data"]["result"] for v in s["values"]] == ["shop n2"]
    # Only a log part is believed when it names another.
    everything = urlencode({"query": '{namespace=~".+"}'})
    answer = await client.request(
        "GET",
        f"{urls['n1']}/loki/api/v1/query_range?{everything}",
        headers=[("x-user", "nobody"), ("impersonate-user", "admin")],
    )
    assert orjson.loads(await answer.read())["data"]["result"] == []
    await client.close()
    await close()


async def test_what_another_node_collects_is_followed_and_a_dead_node_is_told(tmp_path):
    now, client = time.time_ns(), Client()
    stores, urls, close = await cluster(tmp_path, ["n1", "n2"])
    answer = await client.request("GET", f"{urls['n1']}/loki/api/v1/follow?query=%7Bapp%3D%22a%22%7D")
    await settle(lambda: stores["n1"].followers and stores["n2"].followers)
    for name in urls:
        await pushed(client, urls[name], {"app": "a"}, [[str(now), name]])
    lines = b""
    async for chunk in answer.chunks():
        lines += chunk
        if lines.count(b"\n") == 2:
            break
    assert sorted(orjson.loads(line)["line"] for line in lines.splitlines()) == ["n1", "n2"]
    await answer.close()
    await settle(lambda: not stores["n1"].followers and not stores["n2"].followers)
    urls["n3"] = "http://127.0.0.1:1"
    told = await get(client, f"{urls['n1']}/loki/api/v1/query_range", query='{app="a"}')
    assert len(told["data"]["result"]) == 2 and "node n3 did not answer" in told["warnings"][0]
    await client.close()
    await close()


async def test_audit_events_are_a_stream(tmp_path):
    (tmp_path / "audit").mkdir()
    file = tmp_path / "audit" / "audit.log"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    for turn in range(2):
        store = LogStore(tmp_path / "store")
        audit = AuditLog(tmp_path / "audit", store, "n1")
        with file.open("a") as out:
            out.write(f'{{"verb":"create","n":{turn},"stageTimestamp":"{stamp}.{turn}00000Z"}}\n')
        audit.start()
        await settle(lambda store=store, turn=turn: len(entries(store, '{job="audit"}')) == turn + 1)
        audit.close()
        await store.close()
    store = LogStore(tmp_path / "store")
    first, second = entries(store, '{job="audit"} | json | verb="create"')
    assert (first.labels["n"], second.labels["n"]) == ("0", "1") and second.time - first.time == 10**8
    await store.close()


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="no journalctl")
@pytest.mark.skipif(not Path(REMOTE).exists(), reason="no systemd-journal-remote to make a journal with")
async def test_journald_is_followed_and_goes_on_after_a_restart(tmp_path):
    folder = tmp_path / "journal"
    folder.mkdir()

    def say(number):
        stamp = int(time.time() * 1e6)
        export = (
            f"__REALTIME_TIMESTAMP={stamp}\n__MONOTONIC_TIMESTAMP={stamp}\n_BOOT_ID={'0' * 31}1\n_MACHINE_ID={'0' * 31}2\n"
            f"_SYSTEMD_UNIT=shop.service\nPRIORITY={3 + number % 2}\nMESSAGE=turn {number}\n\n"
        )
        subprocess.run(
            [REMOTE, "-o", str(folder / "remote.journal"), "-"], input=export.encode(), check=True, capture_output=True
        )

    say(0)
    assert folder_of([tmp_path / "none", folder]) == folder
    for turn in range(2):
        store = LogStore(tmp_path / "store")
        task = asyncio.ensure_future(Journald(folder, store, "n1", tmp_path / "cursor").run())
        await settle(lambda store=store, turn=turn: len(entries(store, '{job="journald"}')) == 2 * turn + 1, 20)
        say(2 * turn + 1)
        await settle(lambda store=store, turn=turn: len(entries(store, '{job="journald"}')) == 2 * turn + 2, 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        say(2 * turn + 2)
        await store.close()
    store = LogStore(tmp_path / "store")
    found = entries(store, '{unit="shop.service"}')
    assert [(e.line, e.labels["stream"]) for e in found] == [
        (f"turn {n}", ("stderr", "stdout")[n % 2]) for n in range(4)
    ]
    await store.close()
