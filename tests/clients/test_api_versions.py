"""Answers as clients of older API versions know them, through docker-py's plain session."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.docker_engine import DockerEngine

docker = pytest.importorskip("docker")
pytestmark = pytest.mark.root


class Session:
    """Requests at any version of the API; each answers (status, body)."""

    def __init__(self, engine: DockerEngine) -> None:
        self._client = docker.APIClient(base_url=f"unix://{engine.socket}")

    def __call__(self, method: str, version: str, path: str, body: Any = None, **query: Any) -> tuple[int, Any]:
        url = f"http+docker://localhost/v{version}{path}"
        answer = self._client.request(method, url, json=body, params=query)
        kind = answer.headers.get("Content-Type", "")
        return answer.status_code, answer.json() if kind.startswith("application/json") else answer.text

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def ask(engine: DockerEngine, clean: None) -> Iterator[Session]:
    session = Session(engine)
    yield session
    session.close()


def test_versions_out_of_range(ask: Session) -> None:
    status, text = ask("GET", "1.23", "/info")
    assert status == 400 and text.startswith("client version 1.23 is too old. Minimum supported API version is 1.24")
    assert ask("GET", "1.52", "/info") == (
        400,
        {"message": "client version 1.52 is too new. Maximum supported API version is 1.51"},
    )


@pytest.mark.parametrize(
    ("version", "there", "away"),
    [
        ("1.24", {"BridgeNfIptables"}, {"FirewallBackend", "Containerd"}),
        ("1.46", {"BridgeNfIptables", "Containerd"}, {"FirewallBackend"}),
        ("1.49", {"BridgeNfIptables", "Containerd", "FirewallBackend"}, set()),
        ("1.51", {"Containerd", "FirewallBackend"}, {"BridgeNfIptables"}),
    ],
)
def test_info(ask: Session, version: str, there: set[str], away: set[str]) -> None:
    info = ask("GET", version, "/info")[1]
    assert there <= info.keys() and not away & info.keys()
    old = tuple(map(int, version.split(".")))
    assert ("Expected" in info["RuncCommit"]) == (old < (1, 49) and info["RuncCommit"]["ID"] != "")
    assert ("AllowNondistributableArtifactsCIDRs" in info["RegistryConfig"]) == (old < (1, 47))
    assert all("status" not in runtime for runtime in info["Runtimes"].values()) or old >= (1, 44)
    assert ("seccomp" in info["SecurityOptions"]) == (old < (1, 25))


def test_images(ask: Session) -> None:
    for version, fields in (
        ("1.43", {"VirtualSize", "ContainerConfig"}),
        ("1.44", {"ContainerConfig"}),
        ("1.45", set()),
    ):
        assert fields == ask("GET", version, "/images/busybox/json")[1].keys() & {"VirtualSize", "ContainerConfig"}
    assert "Hostname" in ask("GET", "1.49", "/images/busybox/json")[1]["Config"]
    assert "Hostname" not in ask("GET", "1.50", "/images/busybox/json")[1]["Config"]
    assert ask("GET", "1.50", "/images/json")[1][0]["Containers"] == -1
    assert ask("GET", "1.51", "/images/json")[1][0]["Containers"] == 0
    assert ask("GET", "1.41", "/images/json", **{"shared-size": "1"})[1][0]["SharedSize"] == -1


def test_containers(ask: Session) -> None:
    body = {
        "Image": "busybox",
        "Cmd": ["true"],
        "Hostname": "h",
        "HostConfig": {"NetworkMode": "versions", "Annotations": {"a": "b"}},
    }
    assert ask("POST", "1.51", "/networks/create", {"Name": "versions"})[0] == 201
    status, made = ask("POST", "1.51", "/containers/create", body)
    assert status == 201
    id = made["Id"]
    for version, aliases in (("1.44", [id[:12], "h"]), ("1.45", None)):
        networks = ask("GET", version, f"/containers/{id}/json")[1]["NetworkSettings"]["Networks"]
        assert networks["versions"]["Aliases"] == aliases
    listed = {v: ask("GET", v, "/containers/json", all="1")[1][0]["HostConfig"] for v in ("1.45", "1.46")}
    assert listed == {
        "1.45": {"NetworkMode": "versions"},
        "1.46": {"NetworkMode": "versions", "Annotations": {"a": "b"}},
    }
    assert ask("POST", "1.29", f"/containers/{id}/wait", condition="nonsense") == (200, {"StatusCode": 0})
    assert ask("POST", "1.30", f"/containers/{id}/wait", condition="nonsense")[0] == 400


def test_disk_usage(ask: Session) -> None:
    assert ask("GET", "1.41", "/system/df", type="nonsense")[1]["BuilderSize"] == 0
    assert ask("GET", "1.42", "/system/df", type="nonsense")[0] == 400
