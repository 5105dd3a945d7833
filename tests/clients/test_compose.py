"""docker-compose (Debian's 1.29, through docker-py): build, networks by name, volumes, health, scale, down."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.cluster import eventually, need
from tests.support.docker_engine import DockerEngine

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

LARGE = """
version: "3.9"
x-base: &base
  image: busybox
  networks: {inside: {aliases: [shared]}}
services:
  store:
    <<: *base
    command: ["sh", "-c", "sleep 1; echo kept > /d/f; exec httpd -f -p 80 -h /d"]
    volumes: ["d:/d", {type: tmpfs, target: /scratch}]
    healthcheck: {test: ["CMD", "test", "-e", "/d/f"], interval: 500ms, retries: 20}
    networks: {inside: {aliases: [shared, data]}}
    stop_grace_period: 0s
  shop:
    <<: *base
    command: ["sh", "-c", "echo $$GREETING; ulimit -Sn; cat /run/secrets/word /settings; exec tail -f /dev/null"]
    environment: {GREETING: "good-$WHEN"}
    depends_on: {store: {condition: service_healthy}}
    secrets: [word]
    volumes: ["./settings:/settings:ro"]
    networks: {inside: {ipv4_address: 10.95.0.20}, outside: {}}
    extra_hosts: ["elsewhere:10.95.0.99"]
    ulimits: {nofile: {soft: 512, hard: 1024}}
    sysctls: {net.core.somaxconn: 99}
    init: true
    stop_grace_period: 0s
    labels: {tier: front}
  job:
    <<: *base
    profiles: [once]
    command: ["wget", "-q", "-O-", "http://data/f"]
secrets: {word: {file: ./word}}
volumes: {d: {}}
networks:
  inside: {ipam: {config: [{subnet: 10.95.0.0/24}]}}
  outside: {driver_opts: {com.docker.network.bridge.enable_icc: "false"}}
"""


Compose = Callable[..., str]


def compose_in(engine: DockerEngine, folder: Path, project: str) -> Compose:
    """Runs docker-compose on a folder's file; its output."""
    need("docker-compose")
    env = {**os.environ, "DOCKER_HOST": f"unix://{engine.socket}", "DOCKER_CONFIG": str(engine.base / "config")}
    words = ["docker-compose", "--project-directory", str(folder), "-f", f"{folder}/docker-compose.yml", "-p", project]

    def compose(*arguments: str) -> str:
        done = subprocess.run([*words, *arguments], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    return compose


def test_an_application_of_two_services(engine: DockerEngine, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "docker-compose.yml").write_text(COMPOSE)
    (tmp_path / "web" / "Dockerfile").write_text(
        'FROM busybox\nRUN mkdir /w && echo web > /w/index.html\nCMD ["httpd", "-f", "-p", "80", "-h", "/w"]\n'
    )
    compose = compose_in(engine, tmp_path, "journey")
    compose("up", "-d", "--build")
    with urllib.request.urlopen("http://127.0.0.1:18080/index.html", timeout=5) as answer:
        assert answer.read() == b"web\n"
    assert compose("exec", "-T", "web", "wget", "-q", "-O-", "http://db/f") == "data\n"
    eventually(lambda: "Up (healthy)" in compose("ps"))
    compose("up", "-d", "--scale", "db=2")
    assert engine.docker("ps", "-q", "--filter", "label=com.docker.compose.service=db").stdout.count("\n") == 2
    compose("down", "-v", "-t", "1")
    assert engine.docker("ps", "-aq").stdout == "" and "journey" not in engine.docker("volume", "ls").stdout


def test_an_application_with_profiles_secrets_and_order(engine: DockerEngine, tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text(LARGE)
    for name, text in ((".env", "WHEN=morning\n"), ("word", "hidden\n"), ("settings", "set\n")):
        (tmp_path / name).write_text(text)
    compose = compose_in(engine, tmp_path, "large")

    def running() -> set[str]:
        return set(compose("ps", "--services", "--filter", "status=running").split())

    compose("up", "-d")
    # The shop waited until the store was healthy; a service of a profile that nobody asked for is not there.
    assert running() == {"shop", "store"}
    assert engine.docker("inspect", "-f", "{{.State.Health.Status}}", "large_store_1").stdout == "healthy\n"
    assert {"good-morning", "512", "hidden", "set"} <= set(
        compose("logs", "--no-color", "--no-log-prefix", "shop").split()
    )
    assert compose("exec", "-T", "shop", "wget", "-q", "-O-", "http://data/f") == "kept\n"
    words = "cat /proc/sys/net/core/somaxconn; grep elsewhere /etc/hosts; hostname -i; touch /settings 2>&1; :"
    inside = compose("exec", "-T", "shop", "sh", "-c", words)
    for part in ("99", "10.95.0.99", "10.95.0.20", "Read-only file system"):
        assert part in inside
    assert compose("run", "--rm", "job") == "kept\n"
    compose("up", "-d", "--no-recreate", "--scale", "store=3")
    names = engine.docker(
        "ps", "--filter", "label=com.docker.compose.service=store", "--format", "{{.Names}}"
    ).stdout.split()
    assert sorted(names) == ["large_store_1", "large_store_2", "large_store_3"]
    addresses = compose("exec", "-T", "shop", "nslookup", "data")
    assert addresses.count("10.95.0.") == 3
    with ThreadPoolExecutor() as pool:
        # It ends with the container that it follows.
        followed = pool.submit(compose, "logs", "-f", "--no-color", "shop")
        compose("restart", "-t", "0", "store")
        compose("stop", "-t", "0")
        assert "good-morning" in followed.result()
    compose("start")
    eventually(lambda: running() == {"shop", "store"})
    compose("down", "-v", "-t", "0")
    assert engine.docker("ps", "-aq").stdout == ""
    assert "large" not in engine.docker("volume", "ls").stdout + engine.docker("network", "ls").stdout
