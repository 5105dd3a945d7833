"""What goes when the disk is full: images, the containers of finished pods, and only then a pod."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longshore.node.kubelet import eviction
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.pulls.records import PullRecords
from longshore.node.kubelet.runtime import POD_UID
from longshore.node.kubelet.upkeep import Upkeep
from longshore.wire.cri import cri


class Runtime:
    def __init__(self, where: str) -> None:
        self.where, self.removed, self.emptied = where, [], []
        self.images = [cri.Image(id=n, size=100, repo_tags=[n], pinned=n == "pinned") for n in ("old", "used", "pinned", "new")]  # fmt: skip

    async def image_call(self, method: str, **fields: Any) -> Any:
        if method == "RemoveImage":
            self.removed.append(fields["image"].image)
            return None
        if method == "ListImages":
            return cri.ListImagesResponse(images=[i for i in self.images if i.id not in self.removed])
        return cri.ImageFsInfoResponse(
            image_filesystems=[cri.FilesystemUsage(fs_id=cri.FilesystemIdentifier(mountpoint=self.where))]
        )

    async def call(self, method: str, pod_sandbox_id: str = "") -> Any:
        if method == "ListPodSandbox":
            uids = ("over", "runs", "elsewhere")
            found = [cri.PodSandbox(id=f"box-{uid}", labels={POD_UID: uid}) for uid in uids if uid not in self.emptied]
            return cri.ListPodSandboxResponse(items=found)
        if method == "RemovePodSandbox":
            self.emptied.append(pod_sandbox_id.removeprefix("box-"))
        if method == "ListContainerStats":
            return cri.ListContainerStatsResponse()
        return cri.ListContainersResponse(containers=[cri.Container(id="c", image_id="used")])


async def test_unused_images_go_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, events = Runtime(str(tmp_path)), []
    recorder = SimpleNamespace(event=lambda ref, *words: events.append((ref["kind"], *words)))
    config = Config("n", ["127.0.0.1"], tmp_path, tmp_path)
    records = PullRecords(tmp_path)
    kubelet = SimpleNamespace(config=config, runtime=runtime, recorder=recorder, pull_records=records)
    upkeep = Upkeep(kubelet, lambda: None)  # type: ignore[arg-type]
    free = 20
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_blocks=1000, f_frsize=1, f_bavail=free * 10))

    async def look() -> list[str]:
        upkeep._images_at = -1e9
        await upkeep.collect_images()
        return list(runtime.removed)

    assert await look() == []  # 80 % full: below the threshold of 85 %
    free = 14
    assert await look() == []  # seen for the first time: too young
    upkeep._images_seen.update(old=time.time() - 300, used=time.time() - 400, pinned=time.time() - 400)
    assert await look() == ["old"]  # 60 octets too many: one is enough
    assert [e[3] for e in events] == [
        "Failed to garbage collect required amount of images. Attempted to free 60 bytes, but only found 0 bytes eligible to free."
    ]
    free = 0
    assert await look() == ["old"]
    assert [e[:3] for e in events] == [("Node", "Warning", "FreeDiskSpaceFailed")] * 2
    assert events[1][3].endswith("Attempted to free 200 bytes, but only found 0 bytes eligible to free.")


@pytest.mark.parametrize("enough", [True, False])
async def test_what_nobody_needs_goes_before_a_pod_does(
    enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, evicted = Runtime(str(tmp_path)), []
    pod = {"metadata": {"uid": "runs", "name": "p", "namespace": "n"}, "spec": {"containers": []}}
    worker = SimpleNamespace(uid="runs", pod=pod, ending=False, end=lambda **how: evicted.append(how["verdict"][1]))
    kubelet = SimpleNamespace(
        config=Config("n", ["127.0.0.1"], tmp_path, tmp_path, eviction_hard={"nodefs.available": "10%"}),
        runtime=runtime,
        pull_records=PullRecords(tmp_path),
        pods={"over": {}, "runs": pod},
        workers={"runs": worker},
        is_finished=lambda uid: uid != "runs",
        pod_event=lambda *_: None,
        disruptions={},
    )
    upkeep = Upkeep(kubelet, lambda: None)  # type: ignore[arg-type]
    upkeep._images_seen.update(old=time.time() - 300)

    def observe(_: Path) -> dict[str, eviction.Observation]:
        return {"nodefs.available": eviction.Observation(50 if runtime.emptied and enough else 5, 100)}

    monkeypatch.setattr(eviction, "observe", observe)
    await upkeep.pressure()
    assert runtime.emptied == ["over"] and runtime.removed == ["old"]
    assert evicted == ([] if enough else ["Evicted"])
    assert "DiskPressure" in upkeep.pressures.conditions()
