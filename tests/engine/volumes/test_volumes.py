"""The local driver's options: what is refused, what is mounted, and what errors tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure
from longshore.engine.volumes import service as volumes
from longshore.engine.volumes.service import VolumeService


@pytest.fixture
def service(tmp_path: Path) -> VolumeService:
    return VolumeService(tmp_path / "volumes", lambda *_: None)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"foo": "bar"}, 'create v1: invalid option: "foo"'),
        ({"type": "tmpfs"}, 'create v1: missing required option: "device"'),
        ({"o": "size=1m"}, 'create v1: missing required option: "device"'),
        ({"size": "1m"}, "create v1: quota size requested but no quota support"),
        ({"size": "x"}, "create v1: invalid size: 'x'"),
    ],
)
def test_options_that_cannot_be(service: VolumeService, options: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        service.create("v1", options=options)
    assert caught.value.message == text
    assert not service.exists("v1")


@pytest.mark.root
def test_a_read_only_bind_is_read_only(service: VolumeService, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("here")
    service.create("v1", options={"type": "none", "device": str(source), "o": "bind,ro"})
    where = service.mount("v1", "c1")
    try:
        assert (where / "file").read_text() == "here"
        with pytest.raises(OSError, match="Read-only"):
            (where / "other").touch()
    finally:
        service.unmount("v1", "c1")
    assert not any(where.iterdir())


@pytest.mark.root
def test_what_cannot_be_mounted_is_told_without_passwords(service: VolumeService) -> None:
    service.create("v1", options={"type": "none", "device": "/nowhere", "o": "bind"})
    where = service.path("v1")
    with pytest.raises(SystemFailure) as caught:
        service.mount("v1", "c1")
    assert caught.value.message == (
        f"error while mounting volume '{where}': failed to mount local volume: mount /nowhere:{where}, flags: 0x1000: "
        "no such file or directory"
    )
    service.create("v2", options={"type": "none", "device": "/nowhere", "o": "username=u,password=secret"})
    with pytest.raises(EngineError) as refused:
        service.mount("v2", "c1")
    assert "password=********" in refused.value.message and "secret" not in refused.value.message
    assert not service.mounted("v2", "c1")


def test_names_of_servers_become_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(name: str, port: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(2, 1, 6, "", ("192.0.2.7", 0))]

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    assert volumes._addressed("nfs", ":/data", ["addr=store", "rw"]) == (":/data", ["addr=192.0.2.7", "rw"])
    assert volumes._addressed("nfs", ":/data", ["addr=192.0.2.1"]) == (":/data", ["addr=192.0.2.1"])
    assert volumes._addressed("cifs", "//store/share", ["rw"]) == ("//192.0.2.7/share", ["rw"])
    assert volumes._addressed("ext4", "//store/share", ["addr=store"]) == ("//store/share", ["addr=store"])
