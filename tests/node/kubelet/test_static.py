"""Static pods and their mirrors."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from longshore.client.resources import PODS

from .conftest import Node

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


def manifest(seconds: int) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"s": str(seconds)}},
            "spec": {
                "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False,
                "containers": [{"name": "c", "image": "busybox", "imagePullPolicy": "Never", "command": ["sleep", str(seconds)]}],
            },
        }
    )  # fmt: skip


async def test_static_pod(node: Node) -> None:
    folder = node.root / "manifests"
    folder.mkdir()
    await node.stop_kubelet()
    node.start_kubelet(settings={"staticPodPath": str(folder)})
    (folder / "bad.yaml").write_text("no: pod")
    (folder / "web.yaml").write_text(manifest(1000))
    name = f"web-{node.name}"

    async def mirror() -> dict[str, Any] | None:
        """The mirror pod, None while there is none: it is replaced, so asking twice could meet two answers."""
        return next(
            (p for p in (await node.client.list(PODS, "default"))["items"] if p["metadata"]["name"] == name), None
        )

    async def mirrored() -> bool:
        pod = await mirror()
        return pod is not None and pod["status"].get("phase") == "Running"

    await node.until(mirrored)
    first = await node.pod(name)
    assert first["metadata"]["annotations"]["kubernetes.io/config.source"] == "file"
    assert "kubernetes.io/config.mirror" in first["metadata"]["annotations"]
    # a mirror that is deleted comes back, and the pod does not notice
    await node.client.delete(PODS, name, "default")

    async def again() -> bool:
        pod = await mirror()
        return (
            pod is not None
            and pod["metadata"]["uid"] != first["metadata"]["uid"]
            and pod["status"].get("phase") == "Running"
        )

    await node.until(again)
    assert (await node.pod(name))["status"]["containerStatuses"][0]["containerID"] == (
        first["status"]["containerStatuses"][0]["containerID"]
    )
    (folder / "web.yaml").write_text(manifest(2000))

    async def changed() -> bool:
        pod = await mirror()
        return pod is not None and pod["metadata"]["labels"]["s"] == "2000" and pod["status"].get("phase") == "Running"

    await node.until(changed)
    (folder / "web.yaml").unlink()
    await node.until(lambda: node.gone(name))

    async def empty() -> bool:
        return not list(node.cri.containers.records)

    await node.until(empty)
