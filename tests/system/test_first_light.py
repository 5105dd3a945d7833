"""First light: one application travels through every part, with the clients that people have."""

import json
import subprocess
import urllib.request

import pytest

from support.cluster import ROOT, Cluster, eventually, need

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster():
    made = Cluster()
    try:
        made.up()
        yield made
    finally:
        made.destroy()


@pytest.fixture(scope="module")
def shop(cluster):
    """The sample application, taken the whole way by `longshore demo`."""
    cluster.words_of_demo = cluster.longshore("demo", timeout=200)
    return cluster


def front(shop) -> str:
    ip = shop.kubectl("get", "svc", "front", "-n", "shop", "-o", "jsonpath={.spec.clusterIP}")
    with urllib.request.urlopen(f"http://{ip}/cgi-bin/tier", timeout=5) as answer:
        return answer.read().decode()


def test_the_demo_shows_every_step(shop):
    words = shop.words_of_demo
    for step in ("==> base", "==> build", "==> ship", "==> run", "==> ask", "==> logs"):
        assert step in words
    assert words.count("token accepted") == 3, "ClusterIP, node port and DNS name each reach the back tier"
    assert "front-" in words.split("==> logs")[1]


def test_status_tells_every_part(shop):
    status = shop.status()
    assert status["healthy"]
    assert {"supervisor", "apiserver", "engine", "manager", "node"} <= {p["name"] for p in status["parts"]}
    assert all(p["pid"] and p["memoryBytes"] > 0 for p in status["parts"])


def test_up_again_changes_nothing(shop):
    before = {p["name"]: p["pid"] for p in shop.status()["parts"]}
    shop.up()
    assert {p["name"]: p["pid"] for p in shop.status()["parts"]} == before


def test_log_query_by_name_and_by_logql(shop):
    plain = shop.longshore("logs", "deployment/front", "-n", "shop")
    assert "answers" in plain
    counted = shop.longshore("logs", 'sum(count_over_time({namespace="shop"} |= "answers" [5m]))')
    assert float(json.loads(counted.splitlines()[0])["value"][1]) >= 3


def test_kubectl_reads(shop):
    assert "Server Version: v1.36" in shop.kubectl("version")
    assert "deployments" in shop.kubectl("api-resources")
    assert shop.kubectl("get", "pods", "-n", "shop", "-l", "app=front", "-o", "name").count("pod/front-") == 2
    assert "READY" in shop.kubectl("get", "deploy", "-n", "shop", "-o", "wide")
    assert json.loads(shop.kubectl("get", "cm", "shop", "-n", "shop", "-o", "json"))["data"]["greeting"] == "hello"
    assert "kind: Service" in shop.kubectl("get", "svc", "front", "-n", "shop", "-o", "yaml")
    described = shop.kubectl("describe", "pod", "-n", "shop", "-l", "app=front")
    assert "Started" in described and "Scheduled" in described
    assert "KIND:       Deployment" in shop.kubectl("explain", "deployment.spec.strategy")


def test_kubectl_logs_exec_and_port_forward(shop):
    pod = shop.kubectl("get", "pods", "-n", "shop", "-l", "app=front", "-o", "jsonpath={.items[0].metadata.name}")
    shop.kubectl("exec", "-n", "shop", pod, "--", "wget", "-q", "-O-", "http://127.0.0.1:8080/cgi-bin/tier")
    assert "answers" in eventually(lambda: shop.kubectl("logs", "-n", "shop", pod))
    assert shop.kubectl("exec", "-n", "shop", pod, "--", "hostname").strip() == pod
    assert shop.kubectl("exec", "-i", "-n", "shop", pod, "--", "cat", stdin="through\n") == "through\n"
    assert "exit code 3" in shop.kubectl("exec", "-n", "shop", pod, "--", "sh", "-c", "exit 3", check=False)
    forward = subprocess.Popen(
        ["kubectl", "port-forward", "-n", "shop", f"pod/{pod}", ":8080"],
        env=shop.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = forward.stdout.readline().split(":")[1].split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            assert answer.read() == b"ok\n"
    finally:
        forward.kill()
        forward.wait()


def test_kubectl_writes(shop):
    shop.kubectl("create", "ns", "work")
    shop.kubectl("create", "configmap", "c", "-n", "work", "--from-literal=a=1")
    manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: work}\ndata: {b: '2'}\n"
    shop.kubectl("apply", "-f", "-", stdin=manifest)
    conflict = shop.kubectl(
        "apply", "--server-side", "--field-manager=other", "-f", "-", stdin=manifest.replace("'2'", "'3'"), check=False
    )
    assert "conflict" in conflict
    shop.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifest.replace("'2'", "'3'"))
    data = json.loads(shop.kubectl("get", "cm", "c", "-n", "work", "-o", "json"))["data"]
    assert data == {"a": "1", "b": "3"}
    shop.env["KUBE_EDITOR"] = "sed -i s/'\"3\"'/'\"4\"'/"
    shop.kubectl("edit", "cm", "c", "-n", "work")
    assert shop.kubectl("get", "cm", "c", "-n", "work", "-o", "jsonpath={.data.b}") == "4"
    shop.kubectl("delete", "ns", "work", timeout=60)
    assert "NotFound" in shop.kubectl("get", "ns", "work", check=False)


def test_kubectl_get_watch(shop):
    watch = subprocess.Popen(
        ["kubectl", "get", "cm", "-n", "default", "-w", "-o", "name"], env=shop.env, stdout=subprocess.PIPE, text=True
    )
    try:
        watch.stdout.readline()  # kube-root-ca.crt is there
        shop.kubectl("create", "cm", "seen", "-n", "default")
        assert watch.stdout.readline() == "configmap/seen\n"
    finally:
        watch.kill()
        watch.wait()
        shop.kubectl("delete", "cm", "seen", "-n", "default")


def test_scale_rollout_and_undo(shop):
    shop.kubectl("scale", "deploy/back", "-n", "shop", "--replicas=4")
    shop.kubectl("rollout", "status", "deploy/back", "-n", "shop", "--timeout=60s", timeout=70)
    shop.kubectl("set", "env", "deploy/back", "-n", "shop", "GREETING-")
    shop.kubectl("set", "env", "deploy/back", "-n", "shop", "GREETING=servus")
    shop.kubectl("rollout", "status", "deploy/back", "-n", "shop", "--timeout=90s", timeout=100)
    eventually(lambda: "servus from back" in front(shop))
    shop.kubectl("rollout", "undo", "deploy/back", "-n", "shop")
    shop.kubectl("rollout", "status", "deploy/back", "-n", "shop", "--timeout=90s", timeout=100)
    eventually(lambda: "servus" not in front(shop))
    shop.kubectl("scale", "deploy/back", "-n", "shop", "--replicas=3")


def test_kubernetes_python_client(shop):
    kubernetes = pytest.importorskip("kubernetes")
    api = kubernetes.config.new_client_from_config(shop.env["KUBECONFIG"])
    core, apps = kubernetes.client.CoreV1Api(api), kubernetes.client.AppsV1Api(api)
    assert {d.metadata.name for d in apps.list_namespaced_deployment("shop").items} == {"front", "back"}
    core.create_namespaced_config_map("default", {"metadata": {"name": "py"}, "data": {"k": "v"}})
    events = kubernetes.watch.Watch().stream(core.list_namespaced_config_map, "default", timeout_seconds=5)
    assert any(e["object"].metadata.name == "py" for e in events)
    core.delete_namespaced_config_map("py", "default")
    pod = core.list_namespaced_pod("shop", label_selector="app=front").items[0].metadata.name
    out = kubernetes.stream.stream(
        core.connect_get_namespaced_pod_exec, pod, "shop", command=["hostname"], stdout=True, stderr=True
    )
    assert out.strip() == pod
    with pytest.raises(kubernetes.client.ApiException) as refused:
        core.read_namespaced_pod("nothing", "shop")
    assert refused.value.status == 404 and json.loads(refused.value.body)["reason"] == "NotFound"


def test_an_image_just_built_runs_in_a_pod_at_once(shop):
    folder = shop.folder / "ctx"
    folder.mkdir()
    (folder / "Dockerfile").write_text('FROM busybox\nRUN echo built > /word\nCMD ["cat", "/word"]\n')
    shop.docker("build", "-t", "fresh:1", str(folder))
    shop.kubectl("run", "fresh", "--image=fresh:1", "--restart=Never", "--image-pull-policy=Never")
    shop.kubectl("wait", "pod/fresh", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=30s")
    assert shop.kubectl("logs", "fresh") == "built\n"
    shop.kubectl("delete", "pod", "fresh")


def test_a_docker_container_tells_the_log_query_through_the_forward_protocol(shop):
    shop.docker(
        "run", "--rm", "--log-driver", "fluentd", "--log-opt", "fluentd-address=127.0.0.1:24224",
        "--log-opt", "tag=side.{{.Name}}", "--name", "teller", "busybox", "sh", "-c", "echo one; echo two >&2",
    )  # fmt: skip
    found = eventually(lambda: shop.longshore("logs", '{tag="side.teller"}'))
    assert '"log":"one"' in found and '"source":"stderr"' in found


def test_bad_input_at_the_api_server(shop):
    assert "Unauthorized" in shop.run(
        *("curl", "-sk", "-H", "Authorization: Bearer nonsense", f"{server(shop)}/api/v1/pods"), check=False
    )
    assert '"reason":"Forbidden"' in shop.run("curl", "-sk", f"{server(shop)}/api/v1/pods", check=False).replace(
        ": ", ":"
    )
    assert 'no matches for kind "Nothing"' in shop.kubectl(
        "apply", "-f", "-", stdin="apiVersion: v1\nkind: Nothing\nmetadata: {name: x}\n", check=False
    )
    refused = shop.kubectl(
        "apply", "--validate=false", "-f", "-", check=False,
        stdin="apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: X_}]}\n",
    )  # fmt: skip
    assert "spec.containers[0].name: Invalid value" in refused
    assert shop.status()["healthy"]


def server(shop) -> str:
    return shop.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")


def test_skopeo_pushes_and_pulls(shop):
    need("skopeo")
    registry = "docker://127.0.0.1:5000"
    shop.run(
        "skopeo",
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        f"{registry}/shop:1",
        f"{registry}/copy:2",
    )
    told = json.loads(shop.run("skopeo", "inspect", "--tls-verify=false", f"{registry}/copy:2"))
    assert told["Labels"]["org.opencontainers.image.title"] == "shop"
    layout = shop.folder / "layout"
    shop.run("skopeo", "copy", "--src-tls-verify=false", f"{registry}/copy:2", f"oci:{layout}:2")
    assert (layout / "index.json").exists()


def test_the_sample_lies_beside_the_tests():
    assert (ROOT / "examples" / "shop" / "shop.yaml").exists()
