"""An extender over HTTP: it refuses, prefers, binds; and when it is away."""

from __future__ import annotations

from typing import Any

import orjson
from scheduler_bench import node, pod

from fake_api import eventually
from longshore.client.resources import PODS
from longshore.machinery.http import Request, Response, Server
from longshore.master.scheduler.configuration import Configuration
from longshore.master.scheduler.extender import seconds


async def serve(bench: Any, asked: list[str]) -> tuple[Server, int]:
    async def handler(request: Request) -> Response:
        body = orjson.loads(await request.read(1 << 20))
        verb = request.path.rpartition("/")[2]
        asked.append(verb)
        if verb == "filter":
            names = [n["metadata"]["name"] for n in body["Nodes"]["items"]]
            kept = [n for n in body["Nodes"]["items"] if n["metadata"]["name"] != "n0"]
            if body["Pod"]["metadata"]["name"] == "nowhere":
                kept = []
            failed = {n: "the extender says no" for n in names if n not in {k["metadata"]["name"] for k in kept}}
            return answer({"Nodes": {"items": kept}, "FailedNodes": failed})
        if verb == "prioritize":
            return answer([{"Host": "n2", "Score": 10}])
        await bench.api.create(
            PODS, {"target": {"name": body["Node"]}}, "default", name=body["PodName"], subresource="binding"
        )
        return answer({})

    server = Server(handler)
    return server, await server.listen_tcp("127.0.0.1", 0)


def answer(body: Any) -> Response:
    return Response(200, orjson.dumps(body), content_type="application/json")


async def test_an_extender_has_its_say(bench: Any) -> None:
    asked: list[str] = []
    server, port = await serve(bench, asked)
    verbs = {"filterVerb": "filter", "prioritizeVerb": "prioritize", "bindVerb": "bind", "weight": 5}
    bench.nodes(*(node(f"n{i}") for i in range(4)))
    await bench.start(Configuration(extenders=[{"urlPrefix": f"http://127.0.0.1:{port}/scheduler", **verbs}]))
    bench.pods(pod("p"))
    await eventually(lambda: bench.where("p") == "n2")
    assert asked == ["filter", "prioritize", "bind"]
    bench.pods(pod("nowhere"))
    assert "4 the extender says no" in await eventually(lambda: bench.why("nowhere"))
    await server.close()


async def test_an_extender_that_is_away(bench: Any) -> None:
    away = {"urlPrefix": "http://127.0.0.1:1", "filterVerb": "filter"}
    managed = [{"name": "example.com/gpu"}]
    bench.nodes(node("n0", more={"example.com/gpu": "4"}), node("n1"))
    configuration = Configuration(extenders=[{**away, "managedResources": managed}, {**away, "ignorable": True}])
    await bench.start(configuration)
    bench.pods(pod("plain"))
    await eventually(lambda: bench.where("plain"))
    wants = {"container": {"resources": {"requests": {"example.com/gpu": "1"}}}}
    bench.pods(pod("gpu", **wants))
    assert await eventually(lambda: bench.why("gpu"))
    assert not bench.where("gpu")
    assert (seconds("1m30s", 1), seconds("200ms", 1), seconds(None, 30)) == (90, 0.2, 30)


async def test_an_extender_chooses_among_the_nodes_to_preempt_on(bench: Any) -> None:
    asked: list[Any] = []

    async def handler(request: Request) -> Response:
        body = orjson.loads(await request.read(1 << 20))
        asked.append({n: len(v["Pods"]) for n, v in body["NodeNameToMetaVictims"].items()})
        return answer({"NodeNameToMetaVictims": {"n1": body["NodeNameToMetaVictims"]["n1"]}})

    server = Server(handler)
    port = await server.listen_tcp("127.0.0.1", 0)
    bench.nodes(*(node(f"n{i}") for i in range(3)))
    bench.pods(*(pod(f"low{i}", cpu="3", nodeName=f"n{i}") for i in range(3)))
    document = {"urlPrefix": f"http://127.0.0.1:{port}", "preemptVerb": "preempt", "nodeCacheCapable": True}
    await bench.start(Configuration(extenders=[document]))
    bench.pods(pod("high", cpu="3", priority=10))
    await eventually(lambda: bench.where("high") == "n1")
    assert asked[0] == {"n0": 1, "n1": 1, "n2": 1}
    assert sorted(p["metadata"]["name"] for p in bench.api.all(PODS)) == ["high", "low0", "low2"]
    await server.close()
