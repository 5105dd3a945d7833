"""What the engine acknowledged is there after the power was lost, as far as that can be played."""

from __future__ import annotations

import pytest
from tests.support.docker_engine import DockerEngine

pytestmark = pytest.mark.root


def test_records_whose_last_replacement_never_came_to_the_disk(engine: DockerEngine) -> None:
    engine.docker("network", "create", "--label", "a=b", "shopnet")
    engine.docker("volume", "create", "--label", "a=b", "shopdata")
    engine.docker("create", "--name", "shop", "--network", "shopnet", "-v", "shopdata:/data", "busybox", "true")
    engine.docker("rename", "shop", "store")
    engine.kill()
    for pattern in ("*/containers/*/container.json", "*/networks/*.json"):
        found = list((engine.base / "data").rglob(pattern.removeprefix("*/")))
        assert found
        for record in found:
            if record.with_name(record.name + ".kept").exists():
                # A file of its own under the old name, its data lost.
                record.unlink()
                record.touch()
    engine.start()
    shown = engine.docker(
        "inspect", "store", "-f", "{{.Name}} {{.HostConfig.NetworkMode}} {{(index .Mounts 0).Name}}"
    ).stdout
    assert shown == "/store shopnet shopdata\n"
    assert engine.docker("network", "inspect", "shopnet", "-f", "{{.Labels.a}}").stdout == "b\n"
    assert engine.docker("volume", "inspect", "shopdata", "-f", "{{.Labels.a}}").stdout == "b\n"
    engine.docker("start", "store")
    engine.docker("rm", "-f", "store")
    engine.docker("network", "rm", "shopnet")
    engine.docker("volume", "rm", "shopdata")
    engine.kill()
    engine.start()
    assert "store" not in engine.docker("ps", "-a").stdout
    assert "shopnet" not in engine.docker("network", "ls").stdout
