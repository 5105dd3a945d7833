"""Journeys of docker-py, and hostile images and archives, against the engine."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.docker_engine import DockerEngine

docker = pytest.importorskip("docker")
pytestmark = pytest.mark.root


@pytest.fixture
def client(engine: DockerEngine) -> Iterator[Any]:
    made = docker.DockerClient(base_url=f"unix://{engine.socket}")
    yield made
    for container in made.containers.list(all=True):
        container.remove(force=True, v=True)
    made.close()


def test_run_logs_and_errors(client: Any) -> None:
    assert client.ping() is True
    assert client.containers.run("busybox", ["echo", "hello"], remove=True) == b"hello\n"
    with pytest.raises(docker.errors.ContainerError) as failed:
        client.containers.run("busybox", ["sh", "-c", "echo no >&2; exit 3"], remove=True)
    assert failed.value.exit_status == 3 and b"no" in failed.value.stderr
    with pytest.raises(docker.errors.NotFound):
        client.containers.get("nosuch")
    container = client.containers.run(
        "busybox", ["sh", "-c", "for i in 1 2 3; do echo $i; done; sleep 1000"], detach=True
    )
    stream = container.logs(stream=True, follow=True)
    assert b"".join(next(stream) for _ in range(3)).split() == [b"1", b"2", b"3"]
    container.kill()
    assert container.wait()["StatusCode"] == 137


def test_the_log_of_a_container_that_has_just_started(client: Any) -> None:
    for _ in range(10):
        assert client.containers.run("busybox", ["ls", "/bin/busybox"], detach=True).logs() == b"/bin/busybox\n"


def test_exec_streams_apart(client: Any) -> None:
    container = client.containers.run("busybox", ["sleep", "1000"], detach=True)
    code, (out, err) = container.exec_run(["sh", "-c", "echo a; echo b >&2; exit 4"], demux=True)
    assert (code, out, err) == (4, b"a\n", b"b\n")
    socket = client.api.attach_socket(container.id, params={"stdin": 1, "stream": 1})
    socket.close()
    stats = container.stats(stream=False)
    assert stats["memory_stats"]["usage"] > 0 and stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert container.top()["Processes"][0][-1] == "sleep 1000"
    container.rename("renamed")
    container.reload()
    assert container.name == "renamed"


def test_networks_volumes_and_events(client: Any) -> None:
    network = client.networks.create("pynet", labels={"a": "b"})
    volume = client.volumes.create("pyvol")
    container = client.containers.run(
        "busybox", ["sleep", "1000"], detach=True, network="pynet", volumes={"pyvol": {"bind": "/data", "mode": "rw"}}
    )
    network.reload()
    assert [c.id for c in network.containers] == [container.id]
    with pytest.raises(docker.errors.APIError) as busy:
        volume.remove()
    assert busy.value.status_code == 409
    container.remove(force=True)
    volume.remove()
    network.remove()
    seen = list(
        client.events(since=0, until=int(time.time()) + 1, decode=True, filters={"type": ["network", "volume"]})
    )
    assert (
        {"create", "connect", "disconnect", "destroy", "mount", "unmount"}
        >= {e["Action"] for e in seen}
        >= {"create", "connect", "destroy"}
    )


def test_archive_round_trip(client: Any) -> None:
    container = client.containers.run("busybox", ["sleep", "1000"], detach=True)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("dir/file")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert container.put_archive("/tmp", out.getvalue())
    pieces, info = container.get_archive("/tmp/dir")
    names = tarfile.open(fileobj=io.BytesIO(b"".join(pieces))).getnames()  # noqa: SIM115
    assert names == ["dir", "dir/file"] and info["name"] == "dir"


def evil_tar(name: str, link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        if link:
            entry = tarfile.TarInfo("way")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
        entry = tarfile.TarInfo(name)
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "link"), [("../../evil", ""), ("/evil-abs", ""), ("way/evil", "/"), ("way/evil", "../../../../..")]
)
def test_an_archive_stays_in_the_container(client: Any, engine: DockerEngine, name: str, link: str) -> None:
    container = client.containers.run("busybox", ["sleep", "1000"], detach=True)
    try:
        container.put_archive("/tmp", evil_tar(name, link))
    except docker.errors.APIError as error:
        assert error.status_code in (400, 500)
    for place in ("/evil", "/evil-abs", str(engine.base / "evil")):
        assert not Path(place).exists()


def import_image(engine: DockerEngine, name: str, links: dict[str, str], changes: list[str] | None = None) -> None:
    """An image of busybox in which some paths are symbolic links."""
    from tests.support.docker_engine import base_image_tar

    source = tarfile.open(fileobj=io.BytesIO(base_image_tar()))  # noqa: SIM115
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in source:
            if not any(member.name == path or member.name.startswith(path + "/") for path in links):
                archive.addfile(member, source.extractfile(member) if member.isreg() else None)
        for path, target in links.items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    flags = [flag for change in ["ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin", *(changes or [])] for flag in ("-c", change)]
    engine.docker("import", *flags, "-", name, input=out.getvalue())


@pytest.mark.parametrize(
    "links",
    [
        {"proc": "/tmp"},
        {"sys": "/tmp"},
        {"dev": "/tmp"},
        {"etc": "/proc/self/cwd"},
        {"etc/hosts": "/../../../tmp/longshore-escape"},
    ],
)
def test_links_in_an_image_do_not_move_mounts_out(engine: DockerEngine, links: dict[str, str]) -> None:
    import_image(engine, "linked", links)
    done = engine.docker(
        "run", "--rm", "--network", "none", "linked", "sh", "-c", "cat /proc/1/comm; mount | wc -l", check=False
    )
    host = subprocess.run(["mount"], capture_output=True, text=True, check=True).stdout
    assert "longshore-escape" not in host and not Path("/tmp/longshore-escape").exists()
    if done.returncode == 0:
        assert done.stdout.splitlines()[0] in ("sh", "cat")
    engine.docker("rmi", "-f", "linked")


def test_a_working_directory_in_the_descriptor_folder_leads_nowhere(engine: DockerEngine) -> None:
    """CVE-2024-21626: no descriptor of the host's file system may be left for /proc/self/fd/N."""
    for number in range(3, 12):
        done = engine.docker(
            "run",
            "--rm",
            "--network",
            "none",
            "-w",
            f"/proc/self/fd/{number}",
            "busybox",
            "sh",
            "-c",
            "cd ../../../../../../ 2>/dev/null; ls -d work 2>/dev/null; pwd",
            check=False,
        )
        assert "work" not in done.stdout.split(), done.stdout


def test_masked_and_read_only_paths(engine: DockerEngine) -> None:
    script = "echo 1 > /proc/sys/kernel/pid_max; ls /sys/firmware 2>/dev/null | wc -l; head -c 1 /proc/keys 2>/dev/null | wc -c"
    done = engine.docker("run", "--rm", "--network", "none", "busybox", "sh", "-c", script, check=False)
    assert done.stdout.split() == ["0", "0"]
    assert "Read-only file system" in done.stderr
    done = engine.docker(
        "run",
        "--rm",
        "--network",
        "none",
        "--privileged",
        "busybox",
        "sh",
        "-c",
        "echo 32768 > /proc/sys/kernel/pid_max",
    )
    assert done.returncode == 0


def test_requests_that_are_no_requests(engine: DockerEngine) -> None:
    import http.client
    import socket

    for method, path, body in (
        ("POST", "/v1.51/containers/create", b'{"Image": ["a"]}'),
        ("POST", "/v1.51/containers/create", b'{"HostConfig": {"Binds": "x"}}'),
        ("POST", "/v1.51/containers/create", b'{"HostConfig": {"PortBindings": {"80/tcp": "x"}}}'),
        ("POST", "/v1.51/containers/create", b"[" * 100000),
        ("POST", "/v1.51/networks/create", b'{"Name": 5}'),
        ("POST", "/v1.51/networks/create", b'{"Name": "x1", "IPAM": {"Config": [5]}}'),
        ("POST", "/v1.51/volumes/create", b'{"Name": "x1", "DriverOpts": {"a": 1}}'),
        ("GET", "/v1.51/containers/json?filters=%00", b""),
        ("GET", "/v1.51/containers/%2e%2e%2f/json", b""),
        ("GET", "/v1.51/images/" + "a" * 5000 + "/json", b""),
    ):
        connection = http.client.HTTPConnection("x")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(engine.socket))
        connection.request(method, path, body=body or None, headers={"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        assert 300 < answer.status < 500, (method, path[:60], answer.status, text)
        if answer.status != 301:
            assert set(json.loads(text)) == {"message"}
        connection.close()
