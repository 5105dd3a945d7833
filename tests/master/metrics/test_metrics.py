"""metrics.k8s.io: figures from two readings of a kubelet's counters, served to the front proxy only."""

import asyncio
import json

import pytest

from longshore.machinery import pki
from longshore.machinery.errors import StatusError
from longshore.machinery.http import Client, Response, Server, client_context, server_context
from longshore.master.metrics import server as metrics
from longshore.master.metrics.samples import NODE, cpu_quantity, memory_quantity, read, usage

PAGE = """# HELP container_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the container in core-seconds
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{{container="httpd",namespace="shop",pod="front-1"}} {cpu} {at}
container_memory_working_set_bytes{{container="httpd",namespace="shop",pod="front-1"}} 2.097152e+06 {at}
node_cpu_usage_seconds_total {node} {at}
node_memory_working_set_bytes 1.048576e+08 {at}
nonsense that is no line {{
"""


def test_usage_is_the_growth_between_two_readings():
    before = read(PAGE.format(cpu=1.5, node=10, at=1_000_000), 0)
    after = read(PAGE.format(cpu=2.0, node=14, at=1_010_000), 0)
    used = usage(before, after, ("shop", "front-1", "httpd"))
    assert (cpu_quantity(used.cpu), memory_quantity(used.memory), used.window) == ("50000000n", "2048Ki", 10)
    assert usage(before, after, NODE).cpu == pytest.approx(0.4)
    assert usage(after, before, NODE) is None, "a counter that went back has begun again"
    assert usage(before, after, ("shop", "front-2", "httpd")) is None


class FakeAPI:
    """The two lists that the metrics server asks the API server for."""

    def __init__(self, port: int) -> None:
        endpoint = {"kubeletEndpoint": {"Port": port}}
        self.nodes = [
            {
                "metadata": {"name": "n1"},
                "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": endpoint},
            }
        ]
        meta = {"name": "front-1", "namespace": "shop", "labels": {"app": "front"}}
        self.pods = [{"metadata": meta, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}]

    async def list(self, resource, namespace="", **_selectors):
        return {"items": self.nodes if resource.plural == "nodes" else self.pods}

    async def get(self, resource, name, namespace=""):
        for obj in (await self.list(resource))["items"]:
            if obj["metadata"]["name"] == name:
                return obj
        raise StatusError(404, "NotFound", f'{resource.plural} "{name}" not found')


async def test_the_api_as_the_front_proxy_sees_it(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "SHORTEST_WINDOW", 0.01)
    ca = pki.ensure_ca(tmp_path)
    for name, names in (("server", ["127.0.0.1"]), ("front-proxy-client", []), ("other", [])):
        pki.ensure_issued(tmp_path, name, ca, name, names=names, server=bool(names), client=True)
    seconds = 0

    def kubelet(request):
        nonlocal seconds
        seconds += 1
        assert request.path == "/metrics/resource"
        return Response(200, PAGE.format(cpu=seconds / 4, node=seconds, at=seconds * 1000).encode())

    tls = server_context(tmp_path / "server.crt", tmp_path / "server.key", client_ca=tmp_path / "ca.crt")
    node = Server(kubelet)
    port = await node.listen_tcp("127.0.0.1", 0, ssl=tls)

    def client(who: str) -> Client:
        context = client_context(
            ca=tmp_path / "ca.crt", certificate=tmp_path / f"{who}.crt", key=tmp_path / f"{who}.key"
        )
        return Client(ssl=context)

    kubelets = client("front-proxy-client")
    api = metrics.MetricsAPI(FakeAPI(port), metrics.Usages(FakeAPI(port), kubelets))
    server = Server(api.handle)
    own = await server.listen_tcp("127.0.0.1", 0, ssl=tls)

    async def ask(path: str, who: str = "front-proxy-client"):
        asking = client(who)
        answer = await asking.request("GET", f"https://127.0.0.1:{own}/apis/metrics.k8s.io{path}")
        body = json.loads(await answer.read())
        await asking.close()
        return answer.status, body

    try:
        status, nodes = await ask("/v1beta1/nodes")
        assert status == 200 and nodes["items"][0]["usage"] == {"cpu": "1000000000n", "memory": "102400Ki"}
        status, pods = await ask("/v1beta1/namespaces/shop/pods")
        assert pods["items"][0]["containers"] == [{"name": "httpd", "usage": {"cpu": "250000000n", "memory": "2048Ki"}}]
        assert (await ask("/v1beta1/namespaces/shop/pods/front-1"))[1]["window"] == "1s"
        assert (await ask("/v1beta1/namespaces/shop/pods/none"))[0] == 404
        assert (await ask("/v1beta1"))[1]["resources"][0]["kind"] == "NodeMetrics"
        assert (await ask("/v1beta1/other"))[0] == 404
        assert (await ask("/v1beta1/nodes", who="other"))[0] == 401
    finally:
        for task in asyncio.all_tasks():
            if task.get_name() == "metrics readings":
                task.cancel()
        await server.close()
        await node.close()
        await kubelets.close()
