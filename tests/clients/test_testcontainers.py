"""testcontainers-python drives the engine: networks with names, published ports, each way of waiting, exec, volumes."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from tests.support.docker_engine import DockerEngine

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def surroundings(engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """testcontainers pointed at the engine, without its reaper (an image that is not here)."""
    pytest.importorskip("testcontainers", reason="testcontainers is absent")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{engine.socket}")
    monkeypatch.setenv("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
    monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.core.config import testcontainers_config

    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)


def test_two_containers_of_one_test(engine: DockerEngine) -> None:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.network import Network
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    with Network() as network:
        web = DockerContainer("busybox:latest").with_command("sh -c 'echo ready; httpd -f -h /etc -p 80'")
        web = web.with_exposed_ports(80).with_network(network).with_network_aliases("web").with_env("A", "b")
        with web.waiting_for(LogMessageWaitStrategy("ready")):
            url = f"http://127.0.0.1:{web.get_exposed_port(80)}/passwd"
            assert urllib.request.urlopen(url, timeout=20).read().startswith(b"root:")
            assert web.exec(["sh", "-c", "echo $A"]).output == b"b\n"
            asks = DockerContainer("busybox:latest").with_command("nslookup web").with_network(network)
            with asks.waiting_for(LogMessageWaitStrategy("Address")):
                assert b"web" in asks.get_logs()[0]
    assert engine.docker("ps", "-aq").stdout == ""


def test_ways_to_wait(engine: DockerEngine, tmp_path: Path) -> None:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import (
        CompositeWaitStrategy,
        ExecWaitStrategy,
        HealthcheckWaitStrategy,
        HttpWaitStrategy,
        PortWaitStrategy,
    )

    (tmp_path / "page").write_text("from the host\n")
    health = {"test": ["CMD", "test", "-e", "/srv/page"], "interval": 200_000_000}
    waits = [
        PortWaitStrategy(80),
        HttpWaitStrategy(80, "/page").for_status_code(200),
        ExecWaitStrategy(["wget", "-q", "-O-", "http://127.0.0.1/page"]),
        HealthcheckWaitStrategy(),
    ]
    web = DockerContainer("busybox:latest").with_command("sh -c 'sleep 0.5; httpd -f -h /srv -p 80'")
    web = web.with_exposed_ports(80).with_volume_mapping(str(tmp_path), "/srv", "ro").with_name("waited")
    web = web.with_kwargs(healthcheck=health, mem_limit="32m")
    with web.waiting_for(CompositeWaitStrategy(*waits)):
        assert web.exec("cat /srv/page").output == b"from the host\n"
        assert engine.docker("inspect", "-f", "{{.HostConfig.Memory}}", "waited").stdout == "33554432\n"
    assert engine.docker("ps", "-aq").stdout == ""
