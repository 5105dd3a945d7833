"""Services on two nodes as clients see them: types that change, affinity, slices by hand, host ports, UDP, labels, names."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from support.cluster import Cluster, eventually
from support.machines import IMAGE, busybox

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

#: A page with the pod's name on 8080 and 9090; with the machine's Python, the name over UDP on 8081 as well.
SERVE = "mkdir /www; hostname > /www/name; httpd -p 8080 -h /www; httpd -f -p 9090 -h /www"
PYTHON = Path("/usr/bin/python3")
NAME_OVER_UDP = """
import socket
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.bind(("", 8081))
while True:
    door.sendto(socket.gethostname().encode(), door.recvfrom(100)[1])
"""


@pytest.fixture(scope="module")
def two():
    made = Cluster("--nodes", "2")
    try:
        made.up()
        busybox(made)
        nodes = sorted(get(made, "nodes")["items"], key=lambda n: n["metadata"]["name"])
        for name, node in (("a", nodes[0]), ("b", nodes[1])):
            apply(made, pod(name, node["metadata"]["name"], labels={"app": "web", "who": name}))
        made.kubectl("wait", "--for=condition=ready", "pod/a", "pod/b", "--timeout=60s")
        yield made
    finally:
        made.destroy()


def pod(name: str, node: str, *, labels: dict | None = None, ports: list | None = None) -> dict:
    container = {
        "name": "main", "image": IMAGE, "command": ["sh", "-c", SERVE], "ports": ports or [],
        "readinessProbe": {"httpGet": {"path": "/name", "port": 8080}, "periodSeconds": 1},
    }  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels or {}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]},
    }  # fmt: skip


def udp_pod(name: str, node: str, **rest: object) -> dict:
    """A pod that answers over UDP as well, with the machine's Python."""
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is not installed")
    made = pod(name, node, **rest)  # type: ignore[arg-type]
    made["spec"]["volumes"] = [{"name": "usr", "hostPath": {"path": "/usr"}}]
    container = made["spec"]["containers"][0]
    container["volumeMounts"] = [{"name": "usr", "mountPath": "/usr", "readOnly": True}]
    container["command"] = ["sh", "-c", f"({SERVE}) & exec python3 -c '{NAME_OVER_UDP}'"]
    return made


def service(name: str, ports: list[dict] | None = None, *, labels: dict | None = None, **spec: object) -> dict:
    made = {"ports": ports or [{"port": 80, "targetPort": 8080}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels or {}}, "spec": made}


def apply(made: Cluster, *objects: dict) -> None:
    made.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def get(made: Cluster, *what: str) -> dict:
    return json.loads(made.kubectl("get", *what, "-o", "json"))


def patch(made: Cluster, name: str, spec: dict, **metadata: object) -> None:
    body = json.dumps({"spec": spec, "metadata": metadata})
    made.kubectl("patch", "service", name, "--type=merge", "-p", body)


def addresses(made: Cluster) -> dict[str, str]:
    return {
        n["metadata"]["name"]: next(a["address"] for a in n["status"]["addresses"] if a["type"] == "InternalIP")
        for n in get(made, "nodes")["items"]
    }


def ask(made: Cluster, host: str, port: int = 80, times: int = 1) -> list[str]:
    """What a pod is told by a server, several times over; nothing where it does not answer."""
    loop = f"for i in $(seq {times}); do timeout 2 wget -qO- http://{host}:{port}/name; done 2>/dev/null"
    script = loop if times > 1 else f"timeout 2 wget -qO- http://{host}:{port}/name 2>/dev/null"
    return made.kubectl("exec", "a", "--", "sh", "-c", script + "; true").split()


def from_host(host: str, port: int) -> str:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://{host}:{port}/name", timeout=2
        ) as answer:
            return answer.read().decode().strip()
    except (OSError, urllib.error.URLError):
        return ""


def udp(host: str, port: int, source: socket.socket | None = None) -> str:
    own = source or socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    own.settimeout(1)
    try:
        own.sendto(b"who\n", (host, port))
        return own.recvfrom(100)[0].decode().strip()
    except OSError:
        return ""
    finally:
        if source is None:
            own.close()


def all_answer(made: Cluster, host: str, port: int, wanted: set[str]) -> None:
    seen: set[str] = set()

    def check() -> bool:
        seen.update(ask(made, host, port, times=6))
        return wanted <= seen

    eventually(check)


def test_a_service_changes_its_type_there_and_back(two):
    apply(two, service("turn", [], type="ExternalName", externalName="elsewhere.example.test"))
    patch(
        two,
        "turn",
        {
            "type": "NodePort",
            "externalName": None,
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080}],
        },
    )
    spec = get(two, "service", "turn")["spec"]
    all_answer(two, spec["clusterIP"], 80, {"a", "b"})
    for address in addresses(two).values():
        eventually(lambda address=address: from_host(address, spec["ports"][0]["nodePort"]) in ("a", "b"))
    eventually(lambda: ask(two, "turn.default.svc.cluster.local"))
    apply(two, service("target", selector={"app": "web"}))
    patch(
        two,
        "turn",
        {
            "type": "ExternalName",
            "externalName": "target.default.svc.cluster.local",
            "clusterIP": None,
            "clusterIPs": None,
            "selector": None,
        },
    )
    changed = get(two, "service", "turn")["spec"]
    assert "clusterIP" not in changed and "nodePort" not in changed["ports"][0]
    eventually(lambda: ask(two, "turn.default.svc.cluster.local"))
    eventually(lambda: not ask(two, spec["clusterIP"]))


def test_affinity_is_switched_on_and_off(two):
    apply(two, service("sticky", selector={"app": "web"}, type="NodePort"))
    spec = get(two, "service", "sticky")["spec"]
    doors = [(spec["clusterIP"], 80), (list(addresses(two).values())[1], spec["ports"][0]["nodePort"])]
    for host, port in doors:
        all_answer(two, host, port, {"a", "b"})
    patch(two, "sticky", {"sessionAffinity": "ClientIP"})
    for host, port in doors:
        eventually(lambda host=host, port=port: len(set(ask(two, host, port, times=12))) == 1)
    patch(two, "sticky", {"sessionAffinity": "None"})
    for host, port in doors:
        all_answer(two, host, port, {"a", "b"})


def test_slices_by_hand_spread_over_addresses_and_ports(two):
    ips = {name: get(two, "pod", name)["status"]["podIP"] for name in ("a", "b")}

    def piece(name: str, ip: str, port: str, number: int) -> dict:
        return {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "manual"}},
            "endpoints": [{"addresses": [ip]}], "ports": [{"name": port, "port": number, "protocol": "TCP"}],
        }  # fmt: skip

    ports = [{"name": "one", "port": 80}, {"name": "two", "port": 81}]
    apply(
        two,
        service("manual", ports),
        piece("manual-a", ips["a"], "one", 8080),
        piece("manual-b", ips["b"], "one", 8080),
        piece("manual-c", ips["b"], "two", 9090),
    )
    address = get(two, "service", "manual")["spec"]["clusterIP"]
    all_answer(two, address, 80, {"a", "b"})
    assert set(ask(two, address, 81, times=6)) == {"b"}
    two.kubectl("delete", "endpointslice", "manual-c")
    eventually(lambda: not ask(two, address, 81))


def test_one_host_port_for_three_pods_of_other_addresses_and_protocols(two):
    node, address = sorted(addresses(two).items())[1]
    for name, ip, protocol, inner in (
        ("h1", "127.0.0.1", "TCP", 8080),
        ("h2", address, "TCP", 8080),
        ("h3", address, "UDP", 8081),
    ):
        ports = [{"hostPort": 54321, "containerPort": inner, "hostIP": ip, "protocol": protocol}]
        apply(two, (udp_pod if protocol == "UDP" else pod)(name, node, ports=ports))
    two.kubectl("wait", "--for=condition=ready", "pod/h1", "pod/h2", "pod/h3", "--timeout=60s")
    assert from_host(address, 54321) == "h2"
    assert udp(address, 54321) == "h3"
    host = {**pod("host", node), "metadata": {"name": "host"}}
    host["spec"] = {**host["spec"], "hostNetwork": True}
    host["spec"]["containers"][0].update(command=["sleep", "1000"], readinessProbe=None)
    apply(two, host)
    two.kubectl("wait", "--for=condition=ready", "pod/host", "--timeout=60s")
    for name, target in (("h1", "127.0.0.1"), ("h2", address)):
        assert two.kubectl("exec", "host", "--", "wget", "-qO-", f"http://{target}:54321/name").strip() == name
    two.kubectl("delete", "pod", "h1", "h2", "h3", "host")


def test_udp_clients_follow_the_pods(two):
    ports = [{"name": "u", "port": 80, "protocol": "UDP", "targetPort": 8081}]
    apply(two, service("names", ports, selector={"udp": "yes"}, type="NodePort"))
    spec = get(two, "service", "names")["spec"]
    node, address = sorted(addresses(two).items())[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        # One flow throughout: only its entry in the connection tracker can keep it from the next pod.
        client.bind(("", 0))
        assert udp(address, spec["ports"][0]["nodePort"], client) == ""
        for name in ("u1", "u2"):
            apply(two, udp_pod(name, node, labels={"udp": "yes"}))
            two.kubectl("wait", "--for=condition=ready", f"pod/{name}", "--timeout=60s")
            if name == "u2":
                two.kubectl("delete", "pod", "u1")
            eventually(lambda name=name: udp(address, spec["ports"][0]["nodePort"], client) == name)
    two.kubectl("delete", "pod", "u2")


@pytest.mark.parametrize("label", ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"])
def test_services_of_another_proxy_are_left_alone(two, label):
    name = label.rpartition("/")[2]
    apply(two, service(name, selector={"app": "web"}, labels={label: "other"}))
    address = get(two, "service", name)["spec"]["clusterIP"]
    assert not ask(two, address)
    patch(two, name, {}, labels={label: None})
    eventually(lambda: ask(two, address))
    patch(two, name, {}, labels={label: "other"})
    eventually(lambda: not ask(two, address))


def test_the_api_servers_proxies_reach_pods_of_both_nodes(two):
    apply(two, service("web", selector={"app": "web"}))
    for name in ("a", "b"):
        assert two.kubectl("get", "--raw", f"/api/v1/namespaces/default/pods/{name}:8080/proxy/name").strip() == name
    path = "/api/v1/namespaces/default/services/http:web:80/proxy/name"
    eventually(lambda: two.kubectl("get", "--raw", path).strip() in ("a", "b"))


def test_rules_come_back_when_somebody_flushes_them(two):
    spec = get(two, "service", "web")["spec"]
    two.run("nft", "flush", "ruleset")
    eventually(lambda: "longshore-host" in two.run("nft", "list", "tables"))
    for number in (1, 2):
        two.run("nsenter", f"--net={two.run_dir}/netns/node-{number}", "--", "nft", "flush", "ruleset")
    all_answer(two, spec["clusterIP"], 80, {"a", "b"})
