"""hosts.toml: which hosts are asked for a registry's images, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshore.engine.images import hosts
from longshore.engine.images.registries import Registries


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "hosts.toml").write_text(text)


def test_mirrors_come_first_and_the_registry_last(tmp_path: Path) -> None:
    write(
        tmp_path,
        "registry.k8s.io",
        """
        server = "https://registry.k8s.io"
        [host."http://127.0.0.1:5000"]
        capabilities = ["pull", "resolve"]
        [host."https://mirror.example/v2"]
        skip_verify = true
        ca = "own.crt"
        client = [["a.crt", "a.key"]]
        [host."https://push.example"]
        capabilities = ["push"]
        """,
    )
    registries = Registries(hosts_folders=[tmp_path])
    found = registries.endpoints("registry.k8s.io", pull=True)
    assert [(e.url, e.verify, e.mirror) for e in found] == [
        ("http://127.0.0.1:5000", True, True),
        ("https://mirror.example", False, True),
        ("https://registry.k8s.io", True, False),
    ]
    own = tmp_path / "registry.k8s.io"
    assert found[1].ca == (str(own / "own.crt"),)
    assert found[1].clients == ((str(own / "a.crt"), str(own / "a.key")),)
    pushed = [e.url for e in registries.endpoints("registry.k8s.io", pull=False)]
    assert pushed == ["https://mirror.example", "https://push.example", "https://registry.k8s.io"]


def test_a_default_serves_every_registry_without_a_file(tmp_path: Path) -> None:
    write(tmp_path, "_default", '[host."http://127.0.0.1:5000"]\n')
    write(tmp_path, "box_5001", '[host."http://127.0.0.1:5001"]\n')
    registries = Registries(hosts_folders=[tmp_path])
    assert [e.url for e in registries.endpoints("quay.io", pull=True)] == ["http://127.0.0.1:5000", "https://quay.io"]
    assert registries.endpoints("box:5001", pull=True)[0].url == "http://127.0.0.1:5001"
    assert registries.endpoints("docker.io", pull=True)[-1].url == "https://registry-1.docker.io"


@pytest.mark.parametrize(
    "text",
    [
        "host = 3",
        "server = [",
        '[host."ftp://x"]',
        '[host."x"]\ncapabilities = ["steal"]',
        '[host."x"]\nclient = [[1]]',
    ],
)
def test_a_file_that_cannot_be_read_changes_nothing(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "quay.io", text)
    assert hosts.find("quay.io", [tmp_path]) is None
    assert "hosts.toml" in caplog.text
    assert [e.url for e in Registries(hosts_folders=[tmp_path]).endpoints("quay.io", pull=True)] == ["https://quay.io"]
