"""Two API servers beside each other on an etcd of three members: what one has written the other knows at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.master.apiserver.conftest import Running
from tests.support.etcd import Three, three_members

MAPS = "/api/v1/namespaces/default/configmaps"
SERVICES = "/api/v1/namespaces/default/services"
pytestmark = pytest.mark.skipif(not shutil.which("etcd"), reason="etcd-server is not installed")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    with three_members(tmp_path_factory.mktemp("etcd"), 25000) as cluster:
        yield cluster


def spread(urls: list[str], first: int) -> str:
    """The members, each server asking another one first."""
    return ",".join(urls[first:] + urls[:first])


@pytest.fixture(scope="module")
def pair(members: Three, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Running]]:
    urls, _ = members
    a = Running(tmp_path_factory.mktemp("a"), "--etcd-servers", spread(urls, 0), "--advertise-address", "192.0.2.1")
    b = Running(
        tmp_path_factory.mktemp("b"), "--etcd-servers", spread(urls, 1), "--advertise-address", "192.0.2.2", data=a.data
    )
    yield a, b
    a.stop()
    b.stop()


def make(server: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.send("POST", path, body)
    assert answer.status == 201, answer.raw
    made: dict[str, Any] = answer.json
    return made


def test_a_write_at_one_is_read_at_the_other_and_watched_from_there_on(pair: tuple[Running, Running]) -> None:
    a, b = pair
    version = a.send("GET", MAPS).json["metadata"]["resourceVersion"]
    for number in range(20):
        one, other = (a, b) if number % 2 else (b, a)
        name = f"seen-{number}"
        made = make(one, MAPS, {"metadata": {"name": name}, "data": {"n": "0"}})
        assert other.send("GET", f"{MAPS}/{name}").json == made
        # An update at the other starts from what this one wrote.
        made["data"]["n"] = "1"
        changed = other.send("PUT", f"{MAPS}/{name}", made)
        assert changed.status == 200, changed.raw
        listed = one.send("GET", f"{MAPS}?labelSelector=!none").json["items"]
        assert next(i for i in listed if i["metadata"]["name"] == name)["data"] == {"n": "1"}
        assert one.send("DELETE", f"{MAPS}/{name}").status == 200
        assert other.send("GET", f"{MAPS}/{name}").status == 404
    # Versions mean the same at both: a watch goes on at the other where one ended.
    connection = b.connect()
    connection.request("GET", f"{MAPS}?watch=1&timeoutSeconds=2&resourceVersion={version}")
    events = [json.loads(line) for line in connection.getresponse().read().splitlines()]
    connection.close()
    told = [(e["type"], e["object"]["metadata"]["name"]) for e in events]
    assert told == [(kind, f"seen-{n}") for n in range(20) for kind in ("ADDED", "MODIFIED", "DELETED")]


def test_nothing_is_allocated_twice(pair: tuple[Running, Running]) -> None:
    def create(number: int) -> dict[str, Any]:
        spec = {"type": "NodePort", "ports": [{"port": 80}], "selector": {"a": "b"}}
        return make(pair[number % 2], SERVICES, {"metadata": {"name": f"s-{number}"}, "spec": spec})

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create, range(50)))
    addresses = [s["spec"]["clusterIP"] for s in made]
    ports = [s["spec"]["ports"][0]["nodePort"] for s in made]
    assert len(set(addresses)) == len(set(ports)) == 50
    # Nor what is asked for by name, by both at once.
    with ThreadPoolExecutor(2) as pool:
        spec = {"type": "NodePort", "clusterIP": "10.96.0.77", "ports": [{"port": 80, "nodePort": 32000}]}
        asked = [
            pool.submit(server.send, "POST", SERVICES, {"metadata": {"name": f"same-{n}"}, "spec": spec})
            for n, server in enumerate(pair)
        ]
        assert sorted(one.result().status for one in asked) == [201, 422]
    for service in made:
        assert pair[0].send("DELETE", f"{SERVICES}/{service['metadata']['name']}").status == 200
    held = {i["metadata"]["name"] for i in pair[1].send("GET", "/apis/networking.k8s.io/v1/ipaddresses").json["items"]}
    assert not held & set(addresses)


def behind(server: Running) -> list[str]:
    """The addresses of the servers that Pods are sent to."""
    slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    found = server.send("GET", f"{slices}/kubernetes").json["endpoints"]
    subsets = server.send("GET", "/api/v1/namespaces/default/endpoints/kubernetes").json["subsets"]
    addresses = [address for endpoint in found for address in endpoint["addresses"]]
    return addresses if [a["ip"] for a in subsets[0]["addresses"]] == addresses else []


def eventually(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.fixture
def start_manager() -> Iterator[Callable[[Any, str], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(server: Any, identity: str) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("beside_manager.py")
        started.append(subprocess.Popen([sys.executable, str(script), str(server.kubeconfig), identity]))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()


def test_a_server_and_the_leading_manager_are_killed_and_the_others_carry_on(
    pair: tuple[Running, Running], members: Three, start_manager: Any
) -> None:
    a, b = pair
    deployments, lease = "/apis/apps/v1/namespaces/default/deployments", "kube-controller-manager"

    def holder() -> str:
        answer = b.send("GET", f"/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{lease}")
        return str(answer.json.get("spec", {}).get("holderIdentity", ""))

    def images() -> list[str]:
        pods = b.send("GET", "/api/v1/namespaces/default/pods?labelSelector=app=web").json["items"]
        return [p["spec"]["containers"][0]["image"] for p in pods if not p["metadata"].get("deletionTimestamp")]

    first = start_manager(a, "one")
    eventually(lambda: holder() == "one")
    start_manager(b, "two")
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "web:1"}]}}
    spec = {"replicas": 3, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": {"app": "web"}}}
    make(a, deployments, {"metadata": {"name": "web"}, "spec": {**spec, "template": template}})
    eventually(lambda: images() == ["web:1"] * 3)

    acknowledged: list[str] = []

    def write() -> None:
        try:
            while True:
                name = f"kept-{len(acknowledged)}"
                make(a, MAPS, {"metadata": {"name": name}})
                acknowledged.append(name)
        except OSError:
            return  # it has been killed

    writer = threading.Thread(target=write)
    writer.start()
    eventually(lambda: len(acknowledged) > 20)
    eventually(lambda: behind(b) == ["192.0.2.1", "192.0.2.2"])
    a.process.kill()
    first.kill()
    writer.join()
    kept = {i["metadata"]["name"] for i in b.send("GET", MAPS).json["items"]}
    assert kept >= set(acknowledged)

    change = {"spec": {"replicas": 4, "template": {"spec": {"containers": [{"name": "c", "image": "web:2"}]}}}}
    answer = b.send("PATCH", f"{deployments}/web", change, Content_Type="application/strategic-merge-patch+json")
    assert answer.status == 200, answer.raw
    eventually(lambda: images() == ["web:2"] * 4)
    assert holder() == "two"

    members[1][1].kill()  # the member that this server asks first
    eventually(lambda: b.send("POST", MAPS, {"metadata": {"name": "after"}}).status in (201, 409))
    assert eventually(lambda: b.send("GET", f"{MAPS}/after").json["metadata"])["name"] == "after"
