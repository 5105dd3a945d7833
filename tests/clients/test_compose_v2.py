"""docker compose (version 2; the environment's COMPOSE names another one than scripts/setup's)."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.cluster import eventually
from tests.support.docker_engine import DockerEngine, docker_plugin

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

COMPOSE = """
name: harbour
x-base: &base {image: busybox, stop_grace_period: 0s, networks: [inside]}
services:
  web:
    build: {context: ., dockerfile_inline: "FROM busybox\\nARG WHO\\nRUN mkdir /w && echo $$WHO > /w/index.html\\n", args: {WHO: web}}
    command: [httpd, -f, -p, "80", -h, /w]
    ports: ["18090:80", "127.0.0.1:18091-18092:81-82"]
    depends_on: {db: {condition: service_healthy, restart: true}, first: {condition: service_completed_successfully}}
    healthcheck: {test: [CMD, wget, -q, -O-, "http://127.0.0.1/"], interval: 30s, start_period: 20s, start_interval: 200ms}
    secrets: [word]
    configs: [{source: inline, target: /etc/inline}]
    environment: {GREETING: "good-${WHEN:-evening}"}
    env_file: [{path: ./none.env, required: false}]
    deploy: {resources: {limits: {cpus: "0.5", memory: 64M}}}
    develop: {watch: [{action: sync, path: ./sync, target: /sync}]}
    networks: {inside: {aliases: [shared], ipv4_address: 10.96.7.20}, outside: {}}
    stop_grace_period: 0s
    init: true
  first:
    <<: *base
    command: [echo, prepared]
  db:
    <<: *base
    command: [sh, -c, "echo data > /d/f; exec httpd -f -p 80 -h /d"]
    volumes: ["kept:/d", {type: tmpfs, target: /scratch, tmpfs: {size: 1m}}]
    healthcheck: {test: [CMD, test, -e, /d/f], interval: 500ms}
    cap_drop: [NET_RAW]
    pids_limit: 50
  once:
    <<: *base
    profiles: [tools]
    command: [wget, -q, -O-, "http://db/f"]
secrets: {word: {file: ./word}}
configs: {inline: {content: "inline ${WHEN}\\n"}}
volumes: {kept: {labels: {x: y}}}
networks:
  inside: {ipam: {config: [{subnet: 10.96.7.0/24, gateway: 10.96.7.1}]}}
  outside: {driver_opts: {com.docker.network.bridge.enable_icc: "false"}}
"""
Compose = Callable[..., str]


@pytest.fixture
def environment(engine: DockerEngine) -> dict[str, str]:
    return {**os.environ, "DOCKER_HOST": f"unix://{engine.socket}", "DOCKER_CONFIG": str(engine.base / "config")}


@pytest.fixture
def compose(environment: dict[str, str], tmp_path: Path) -> Compose:
    program = docker_plugin("compose")
    (tmp_path / "compose.yml").write_text(COMPOSE)
    (tmp_path / ".env").write_text("WHEN=morning\n")
    (tmp_path / "word").write_text("hidden\n")
    (tmp_path / "sync").mkdir()

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [program, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    return run


def states(compose: Compose, *flags: str) -> dict[str, str]:
    """Each container's state and health."""
    lines = compose("ps", *flags, "--format", "json").splitlines()
    return {c["Name"]: f"{c['State']} {c['Health']}".strip() for c in map(json.loads, lines)}


def test_an_application_lives(
    compose: Compose, environment: dict[str, str], tmp_path: Path, engine: DockerEngine
) -> None:
    compose("up", "-d", "--build", "--wait", "--wait-timeout", "60")
    assert states(compose, "-a") == {
        "harbour-web-1": "running healthy", "harbour-db-1": "running healthy", "harbour-first-1": "exited",
    }  # fmt: skip
    with urllib.request.urlopen("http://127.0.0.1:18090/", timeout=5) as answer:
        assert answer.read() == b"web\n"
    words = "cat /run/secrets/word /etc/inline; echo $GREETING; hostname -i; wget -q -O- http://db/f"
    inside = compose("exec", "-T", "web", "sh", "-c", words)
    assert inside.split() == ["hidden", "inline", "morning", "good-morning", "10.96.7.20", "data"]
    assert "first-1  | prepared" in compose("logs", "--no-color", "first")
    assert compose("run", "--rm", "once") == "data\n"
    assert compose("port", "web", "80") == "0.0.0.0:18090\n"
    compose("cp", "web:/w/index.html", str(tmp_path / "page"))
    assert (tmp_path / "page").read_text() == "web\n"

    compose("up", "-d", "--no-recreate", "--scale", "db=3")
    assert len([name for name in states(compose) if "-db-" in name]) == 3
    compose("pause", "db")
    assert states(compose)["harbour-db-2"].startswith("paused")
    compose("unpause", "db")

    # what has changed is made anew, the rest stays
    before = compose("ps", "-q", "db")
    (tmp_path / ".env").write_text("WHEN=night\n")
    compose("up", "-d", "--wait", "--scale", "db=3")
    assert (
        compose("exec", "-T", "web", "cat", "/etc/inline") == "inline night\n" and compose("ps", "-q", "db") == before
    )

    watch = subprocess.Popen(
        [docker_plugin("compose"), "watch", "--no-up"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    try:

        def synced() -> bool:
            (tmp_path / "sync" / "f").write_text("fresh\n")
            return "fresh" in compose("exec", "-T", "web", "sh", "-c", "cat /sync/f; :")

        eventually(synced, pause=0.5)
    finally:
        watch.terminate()
        watch.wait(20)
    compose("--profile", "tools", "down", "-v", "--rmi", "local", "--remove-orphans")
    for what in (("ps", "-aq"), ("volume", "ls", "-q"), ("images", "-q", "harbour-web")):
        assert engine.docker(*what).stdout == ""
    assert "harbour" not in engine.docker("network", "ls").stdout


MANY = {
    "compose.yml": """
name: fleet
include: [sub/included.yml]
services:
  prepare: {image: busybox, command: mkdir -p /data/inner, volumes: ["data:/data"], network_mode: none}
  web:
    image: busybox
    extends: {file: sub/base.yml, service: base}
    command: [sleep, "1000"]
    init: true
    stop_grace_period: 0s
    volumes:
      - {type: volume, source: data, target: /inner, volume: {subpath: inner}}
      - {type: bind, source: ./sub, target: /sub, read_only: true}
    networks: {back: {ipv6_address: "fd77:7::10"}}
    ulimits: {nofile: {soft: 1000, hard: 2000}}
    sysctls: {net.core.somaxconn: 512}
    depends_on: {prepare: {condition: service_completed_successfully}}
  gpu: {image: busybox, profiles: [gpu], deploy: {resources: {reservations: {devices: [{capabilities: [gpu]}]}}}}
networks: {back: {internal: true, enable_ipv6: true, ipam: {config: [{subnet: "fd77:7::/64"}]}}}
volumes: {data: {}}
""",
    "sub/included.yml": "services: {beside: {image: busybox, command: sleep 1000, init: true, stop_grace_period: 0s}}",
    "sub/base.yml": "services: {base: {environment: {FROM: base}}}",
}


def test_an_application_of_many_files(compose: Compose, tmp_path: Path) -> None:
    for name, text in MANY.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    try:
        compose("up", "-d", "--wait")
        assert states(compose) == {"fleet-web-1": "running", "fleet-beside-1": "running"}
        words = (
            "ulimit -n; cat /proc/sys/net/core/somaxconn; echo $FROM; touch /inner/f && echo written; touch /sub/f || :"
        )
        assert compose("exec", "-T", "web", "sh", "-c", words).split() == ["1000", "512", "base", "written"]
        assert "fd77:7::10/64" in compose("exec", "-T", "web", "ip", "-6", "address")
        with pytest.raises(AssertionError, match='could not select device driver "" with capabilities'):
            compose("up", "gpu")
        assert len(compose("ps", "-q", "beside").split()) == 1
    finally:
        compose("--profile", "gpu", "down", "-v")
