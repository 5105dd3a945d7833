"""docker-compose (Debian's 1.29, through docker-py): build, networks by name, volumes, health, scale, down."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cluster import Cluster, eventually, need

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

COMPOSE = """
version: "3.7"
services:
  web:
    build: ./web
    ports: ["18080:80"]
    depends_on: [db]
    healthcheck: {test: ["CMD", "wget", "-q", "-O-", "http://127.0.0.1/"], interval: 1s}
  db:
    image: busybox
    command: ["sh", "-c", "echo data > /d/f; httpd -f -p 80 -h /d"]
    volumes: ["d:/d"]
volumes: {d: {}}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    from longshore.cli.demo import busybox_root

    need("docker-compose")
    made = Cluster()
    try:
        made.up()
        subprocess.run(["docker", "import", "-", "busybox"], input=busybox_root(), env=made.env, check=True)
        yield made
    finally:
        made.destroy()


def test_an_application_of_two_services(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "docker-compose.yml").write_text(COMPOSE)
    (tmp_path / "web" / "Dockerfile").write_text(
        'FROM busybox\nRUN mkdir /w && echo web > /w/index.html\nCMD ["httpd", "-f", "-p", "80", "-h", "/w"]\n'
    )

    def compose(*arguments: str) -> str:
        folder = ["--project-directory", str(tmp_path), "-f", str(tmp_path / "docker-compose.yml"), "-p", "journey"]
        return cluster.run("docker-compose", *folder, *arguments, timeout=120)

    compose("up", "-d", "--build")
    with urllib.request.urlopen("http://127.0.0.1:18080/index.html", timeout=5) as answer:
        assert answer.read() == b"web\n"
    assert compose("exec", "-T", "web", "wget", "-q", "-O-", "http://db/f") == "data\n"
    eventually(lambda: "Up (healthy)" in compose("ps"))
    compose("up", "-d", "--scale", "db=2")
    assert cluster.docker("ps", "-q", "--filter", "label=com.docker.compose.service=db").count("\n") == 2
    compose("down", "-v", "-t", "1")
    assert cluster.docker("ps", "-aq") == "" and "journey" not in cluster.docker("volume", "ls")
