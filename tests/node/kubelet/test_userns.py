"""Which ids a pod with hostUsers false gets, and that it keeps them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from longshore.node.kubelet.config import Config
from longshore.node.kubelet.userns import LENGTH, UserNamespaceError, UserNamespaces
from longshore.wire.cri import cri


def pod(uid: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"uid": uid}, "spec": spec}


def test_blocks_are_a_pods_own_and_are_kept(tmp_path: Path) -> None:
    config = Config("n", ["127.0.0.1"], tmp_path, tmp_path)
    known = UserNamespaces(config)
    assert known.options(pod("a"), "", False) is None
    assert known.options(pod("a", hostUsers=True), "", False).mode == cri.NODE
    seen = {}
    for uid in "abc":
        options = known.options(pod(uid, hostUsers=False), "", True)
        assert options.mode == cri.POD and options.uids[0] == options.gids[0]
        assert (options.uids[0].container_id, options.uids[0].length) == (0, 65536)
        seen[uid] = options.uids[0].host_id
        assert seen[uid] >= LENGTH and seen[uid] % LENGTH == 0
    assert len(set(seen.values())) == 3
    # after a restart each has what it had, and what is free again is given to another
    again = UserNamespaces(config)
    assert again.options(pod("b", hostUsers=False), "", True).uids[0].host_id == seen["b"]
    shutil.rmtree(config.pod_folder("b"))
    again.forget("b")
    assert again.options(pod("d", hostUsers=False), "", True).uids[0].host_id == seen["b"]
    # a file of somebody's who writes nonsense is not a block
    (config.pod_folder("d") / "userns").write_text("[]")
    assert UserNamespaces(config).options(pod("e", hostUsers=False), "", True).uids[0].host_id == seen["b"]


def test_a_runtime_that_cannot(tmp_path: Path) -> None:
    known = UserNamespaces(Config("n", ["127.0.0.1"], tmp_path, tmp_path))
    with pytest.raises(UserNamespaceError, match=r"^can't set `spec.hostUsers: false`, runtime does not support user namespaces$"):  # fmt: skip
        known.options(pod("a", hostUsers=False), "", False)
    with pytest.raises(UserNamespaceError, match='RuntimeClass handler "kata" does not support user namespaces'):
        known.options(pod("a", hostUsers=False), "kata", False)
