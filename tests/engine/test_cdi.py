"""CDI devices as edits of a container's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from longshore.engine import cdi


def spec() -> dict[str, Any]:
    return {
        "process": {"env": ["PATH=/bin", "A=old"], "user": {"uid": 7, "gid": 8}},
        "mounts": [{"destination": "/m", "source": "/x", "type": "bind", "options": []}],
        "linux": {"devices": [], "resources": {"devices": []}},
    }


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    early, late = tmp_path / "etc", tmp_path / "run"
    early.mkdir()
    late.mkdir()
    (early / "a.yaml").write_text(
        """
cdiVersion: 0.6.0
kind: vendor.com/gpu
containerEdits:
  env: [ALL=1]
  hooks: [{hookName: createContainer, path: /bin/hook, args: [hook, x]}]
devices:
- name: zero
  containerEdits: {env: [A=new], deviceNodes: [{path: /dev/gpu0, hostPath: /dev/null, permissions: rw}]}
- name: one
  containerEdits:
    deviceNodes: [{path: /dev/gpu1, type: c, major: 9, minor: 1, uid: 0, gid: 0, fileMode: 432}]
    mounts: [{hostPath: /lib/gpu, containerPath: /m, options: [ro, bind]}]
    additionalGids: [44, 0]
"""
    )
    (early / "broken.json").write_text("{")
    (early / "ignored.txt").write_text("{")
    return [early, late]


def test_devices_are_put_in(folders: list[Path]) -> None:
    made = spec()
    cdi.inject(made, ["vendor.com/gpu=zero", "vendor.com/gpu=one", "vendor.com/gpu=zero"], folders)
    assert made["process"]["env"] == ["PATH=/bin", "ALL=1", "A=new"]
    assert made["process"]["user"]["additionalGids"] == [44]
    assert made["linux"]["devices"] == [
        {"path": "/dev/gpu0", "type": "c", "major": 1, "minor": 3, "uid": 7, "gid": 8},
        {"path": "/dev/gpu1", "type": "c", "major": 9, "minor": 1, "fileMode": 432, "uid": 0, "gid": 0},
    ]
    assert made["linux"]["resources"]["devices"] == [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        {"allow": True, "type": "c", "major": 9, "minor": 1, "access": "rwm"},
    ]
    assert made["mounts"] == [{"destination": "/m", "source": "/lib/gpu", "type": "bind", "options": ["ro", "bind"]}]
    assert made["hooks"] == {"createContainer": [{"path": "/bin/hook", "args": ["hook", "x"]}]}


def test_a_later_folder_goes_before(folders: list[Path]) -> None:
    own = {"kind": "vendor.com/gpu", "devices": [{"name": "zero", "containerEdits": {"env": ["A=run"]}}]}
    (folders[1] / "a.json").write_bytes(orjson.dumps(own))
    made = spec()
    cdi.inject(made, ["vendor.com/gpu=zero"], folders)
    assert made["process"]["env"] == ["PATH=/bin", "A=run"]


def test_what_is_not_there(folders: list[Path]) -> None:
    with pytest.raises(cdi.CdiError, match=r"unresolvable CDI devices vendor.com/gpu=two, nonsense, other.org/x=zero$"):
        cdi.inject(spec(), ["vendor.com/gpu=zero", "vendor.com/gpu=two", "nonsense", "other.org/x=zero"], folders)
    broken = {"kind": "a/b", "devices": [{"name": "c", "containerEdits": {"deviceNodes": [{"path": "/etc/passwd"}]}}]}
    (folders[1] / "b.json").write_bytes(orjson.dumps(broken))
    with pytest.raises(cdi.CdiError, match="/etc/passwd is no device"):
        cdi.inject(spec(), ["a/b=c"], folders)
