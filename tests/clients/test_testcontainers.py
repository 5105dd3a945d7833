"""testcontainers-python drives the engine: networks with names, published ports, logs waited for, exec."""

from __future__ import annotations

import urllib.request

import pytest
from tests.support.docker_engine import DockerEngine

pytestmark = pytest.mark.root


def test_two_containers_of_one_test(engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("testcontainers", reason="testcontainers is absent")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{engine.socket}")
    monkeypatch.setenv("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
    monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.network import Network
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
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
