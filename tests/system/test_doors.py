"""Bad input at each door gets upstream's status and message, and harms nothing."""

import json
import socket
import ssl
import subprocess

import pytest

from support.cluster import Cluster

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster():
    made = Cluster()
    try:
        made.up()
        yield made
    finally:
        made.destroy()


@pytest.fixture(autouse=True)
def harms_nothing(cluster):
    before = {p["name"]: p["pid"] for p in cluster.status()["parts"]}
    yield
    status = cluster.status()
    assert status["healthy"] and {p["name"]: p["pid"] for p in status["parts"]} == before


def curl(cluster, *arguments: str, stdin: bytes | None = None) -> tuple[int, str]:
    """The status and body of one request."""
    done = subprocess.run(
        ["curl", "-sS", "-m", "20", "-w", "\n%{http_code}", *arguments], input=stdin, capture_output=True, check=False
    )
    body, _, status = done.stdout.decode(errors="replace").rpartition("\n")
    return int(status), body


def admin(cluster) -> list[str]:
    pki = cluster.data / "pki"
    return ["--cacert", str(pki / "ca.crt"), "--cert", str(pki / "admin.crt"), "--key", str(pki / "admin.key")]


API = "https://127.0.0.1:6443"


def test_an_unknown_kind(cluster):
    status, body = curl(cluster, *admin(cluster), f"{API}/apis/none.example/v1/things")
    assert (status, body) == (404, "404 page not found\n")
    words = cluster.kubectl("get", "things", check=False)
    assert 'the server doesn\'t have a resource type "things"' in words


def test_a_body_that_is_too_large(cluster):
    body = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"big"},"data":{"k":"' + b"x" * (4 << 20) + b'"}}'
    status, answer = curl(
        cluster, *admin(cluster), "-H", "Content-Type: application/json", "--data-binary", "@-",
        f"{API}/api/v1/namespaces/default/configmaps", stdin=body,
    )  # fmt: skip
    assert status == 413
    told = json.loads(answer)
    assert told["reason"] == "RequestEntityTooLarge" and "limit is 3145728" in told["message"]


def test_a_body_that_is_no_json(cluster):
    status, answer = curl(
        cluster, *admin(cluster), "-H", "Content-Type: application/json", "-d", "{not json",
        f"{API}/api/v1/namespaces/default/configmaps",
    )  # fmt: skip
    assert status == 400 and json.loads(answer)["reason"] == "BadRequest"


def test_a_certificate_of_another_ca(cluster):
    folder = cluster.folder / "other"
    folder.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/O=system:masters/CN=intruder", "-keyout", folder / "k", "-out", folder / "c"],
        check=True, capture_output=True,
    )  # fmt: skip
    done = subprocess.run(
        ["curl", "-sS", "-k", "--cert", folder / "c", "--key", folder / "k", f"{API}/api/v1/pods"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    # The handshake is refused, or the stranger is nobody: never the administrator it claims to be.
    assert done.returncode != 0 or json.loads(done.stdout)["code"] in (401, 403)


def test_half_a_request_and_rubbish(cluster):
    context = ssl.create_default_context(cafile=cluster.data / "pki" / "ca.crt")
    for data in (
        b"GET /api HTTP/1.1\r\nHost: x\r\n",
        b"\x00\x01\x02\r\n\r\n",
        b"POST /api HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf",
    ):
        with (
            socket.create_connection(("127.0.0.1", 6443), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as tls,
        ):
            tls.sendall(data)
    for door in (5000, 6443, 10250, 3100):
        with socket.create_connection(("127.0.0.1", door), timeout=5) as raw:
            raw.sendall(b"\x16\x03\x01 this is no handshake" + bytes(100))


def test_the_kubelets_own_port_asks_who_is_there(cluster):
    status, body = curl(cluster, "-k", "https://127.0.0.1:10250/pods")
    assert (status, body) == (401, "Unauthorized")
    status, body = curl(cluster, "-k", "-H", "Authorization: Bearer no", "https://127.0.0.1:10250/pods")
    assert status == 401
    pki = cluster.data / "pki"
    status, body = curl(
        cluster, "-k", "--cert", str(pki / "dns.crt"), "--key", str(pki / "dns.key"), "https://127.0.0.1:10250/pods"
    )
    assert status == 403 and body.startswith("Forbidden (user=system:coredns, verb=get, resource=nodes")


def test_the_log_query_asks_who_is_there(cluster):
    query = "https://127.0.0.1:3100/loki/api/v1/query_range?query=%7B"
    assert curl(cluster, "-k", "-H", "Authorization: Bearer no", query)[0] == 401
    status, body = curl(cluster, "-k", *admin(cluster)[2:], query)
    assert status == 400 and "parse error at line 1, col 2" in body


def test_docker_refuses_as_dockerd_does(cluster):
    folder = cluster.folder / "bad"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM busybox\nRUNN echo\n")
    assert "unknown instruction: RUNN" in cluster.docker("build", str(folder), check=False)
    (folder / "Dockerfile").write_text("")
    assert "the Dockerfile (Dockerfile) cannot be empty" in cluster.docker("build", str(folder), check=False)
    assert "No such image: nothing:1" in cluster.docker("inspect", "--type", "image", "nothing:1", check=False)
    assert "invalid reference format" in cluster.docker("run", "UPPER", check=False)
    assert "No such container: nothing" in cluster.docker("stop", "nothing", check=False)
    socket_path = str(cluster.run_dir / "docker.sock")
    status, body = curl(cluster, "--unix-socket", socket_path, "http://d/v1.47/nothing")
    assert status == 404 and json.loads(body) == {"message": "page not found"}
    status, body = curl(
        cluster,
        "--unix-socket",
        socket_path,
        "-XPOST",
        "-d",
        "{",
        "-H",
        "Content-Type: application/json",
        "http://d/v1.47/containers/create",
    )
    assert status == 400


def test_the_registry_refuses_as_the_specification_says(cluster):
    status, body = curl(cluster, "http://127.0.0.1:5000/v2/none/manifests/latest")
    assert status == 404 and json.loads(body)["errors"][0]["code"] in ("MANIFEST_UNKNOWN", "NAME_UNKNOWN")
    status, body = curl(
        cluster, "-XPUT", "-H", "Content-Type: application/vnd.oci.image.manifest.v1+json", "-d", "{}",
        "http://127.0.0.1:5000/v2/none/manifests/latest",
    )  # fmt: skip
    assert status == 400 and json.loads(body)["errors"][0]["code"] == "MANIFEST_INVALID"
    digest = "sha256:" + "0" * 64
    status, body = curl(
        cluster, "-XPOST", "-d", "content", f"http://127.0.0.1:5000/v2/none/blobs/uploads/?digest={digest}"
    )
    assert status == 400 and json.loads(body)["errors"][0]["code"] == "DIGEST_INVALID"
