"""Attachments of CSI volumes, claims that grow, and old token Secrets."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from longshore.client.objects import attachment_name
from longshore.client.resources import (
    CONFIG_MAPS,
    CSI_DRIVERS,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    VOLUME_ATTACHMENTS,
    VOLUME_ATTRIBUTES_CLASSES,
)

Object = dict[str, Any]


def volume(name: str = "pv", *modes: str, driver: str = "d.example.com") -> Object:
    csi = {"driver": driver, "volumeHandle": f"handle-{name}"}
    return {"metadata": {"name": name}, "spec": {"csi": csi, "accessModes": list(modes or ("ReadWriteOnce",))}}


def claim(name: str = "c", volume: str = "pv", **fields: Any) -> Object:
    return {"metadata": {"name": name, "namespace": "default"}, "spec": {"volumeName": volume}, **fields}


def pod(name: str, node: str, claim: str = "c", phase: str = "Pending") -> Object:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]
    spec = {"nodeName": node, "containers": [], "volumes": volumes}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": spec, "status": {"phase": phase}}


async def cluster(manager: Any, *modes: str, required: bool = True) -> None:
    for name in ("n1", "n2"):
        manager.api.put(NODES, {"metadata": {"name": name}, "spec": {}, "status": {}})
    manager.api.put(CSI_DRIVERS, {"metadata": {"name": "d.example.com"}, "spec": {"attachRequired": required}})
    manager.api.put(PERSISTENT_VOLUMES, volume("pv", *modes))
    manager.api.put(PERSISTENT_VOLUME_CLAIMS, claim())
    await manager.start("persistentvolume-attach-detach-controller")


def attachments(manager: Any) -> list[Object]:
    return manager.api.all(VOLUME_ATTACHMENTS)  # type: ignore[no-any-return]


def on_node(manager: Any, name: str) -> list[str]:
    found = next(n for n in manager.api.all(NODES) if n["metadata"]["name"] == name)
    return [v["name"] for v in found["status"].get("volumesAttached") or ()]


def attacher(manager: Any, **status: Any) -> None:
    """What the driver's sidecar does."""
    for each in attachments(manager):
        manager.api.put(VOLUME_ATTACHMENTS, {**each, "status": {"attached": True, **status}})


async def test_a_volume_is_attached_for_a_pod_and_detached_after_it(manager: Any) -> None:
    await cluster(manager)
    manager.api.put(PODS, pod("p", "n1"))
    (made,) = await manager.settle(lambda: attachments(manager), pods=False)
    assert made["metadata"]["name"] == attachment_name(
        volume()["spec"]["csi"]["driver"], volume()["spec"]["csi"]["volumeHandle"], "n1"
    )
    assert made["spec"] == {"attacher": "d.example.com", "nodeName": "n1", "source": {"persistentVolumeName": "pv"}}
    attacher(manager)
    unique = "kubernetes.io/csi/d.example.com^handle-pv"
    await manager.settle(lambda: on_node(manager, "n1") == [unique], pods=False)
    told = 'SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume "pv" '
    await manager.settle(lambda: told in manager.events(), pods=False)
    # While the node says that it has the volume mounted, it stays.
    node = manager.api.all(NODES)[0]
    manager.api.put(NODES, {**node, "status": {**node["status"], "volumesInUse": [unique]}})
    manager.api.put(PODS, pod("p", "n1", phase="Succeeded"))
    await asyncio.sleep(0.05)
    assert attachments(manager)
    node = manager.api.all(NODES)[0]
    manager.api.put(NODES, {**node, "status": {**node["status"], "volumesInUse": []}})
    await manager.settle(lambda: not attachments(manager) and not on_node(manager, "n1"), pods=False)


async def test_a_volume_for_one_node_waits_until_the_other_lets_go(manager: Any) -> None:
    await cluster(manager)
    manager.api.put(PODS, pod("p", "n1"))
    await manager.settle(lambda: len(attachments(manager)) == 1, pods=False)
    manager.api.put(PODS, pod("q", "n2"))
    await manager.settle(lambda: any(e.startswith("FailedAttachVolume: Multi-Attach") for e in manager.events()))
    assert len(attachments(manager)) == 1


async def test_a_volume_for_many_is_attached_to_each_node(manager: Any) -> None:
    await cluster(manager, "ReadWriteMany")
    manager.api.put(PODS, pod("p", "n1"))
    manager.api.put(PODS, pod("q", "n2"))
    await manager.settle(lambda: len(attachments(manager)) == 2, pods=False)


async def test_a_driver_that_needs_no_attachment_and_attachments_of_others(manager: Any) -> None:
    await cluster(manager, required=False)
    foreign = {"attacher": "x", "nodeName": "n1", "source": {"persistentVolumeName": "pv"}}
    manager.api.put(VOLUME_ATTACHMENTS, {"metadata": {"name": "mine"}, "spec": foreign})
    manager.api.put(PODS, pod("p", "n1"))
    await asyncio.sleep(0.05)
    assert [a["metadata"]["name"] for a in attachments(manager)] == ["mine"]


async def test_a_claim_that_grows_is_left_to_the_drivers_resizer(manager: Any) -> None:
    bound = claim(status={"phase": "Bound", "capacity": {"storage": "1Gi"}})
    bound["spec"]["resources"] = {"requests": {"storage": "1Gi"}}
    made = manager.api.put(PERSISTENT_VOLUME_CLAIMS, bound)
    held = volume()
    held["spec"]["claimRef"] = {"uid": made["metadata"]["uid"]}
    manager.api.put(PERSISTENT_VOLUMES, held)
    await manager.start("persistentvolume-expander-controller")
    bound["spec"]["resources"]["requests"]["storage"] = "2Gi"
    manager.api.put(PERSISTENT_VOLUME_CLAIMS, {**made, "spec": bound["spec"]})
    await manager.settle(lambda: any(e.startswith("ExternalExpanding: Ignoring") for e in manager.events()), pods=False)


async def test_tokens_that_nobody_used_for_a_year_are_marked_then_deleted(manager: Any) -> None:
    ago = lambda days: (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%d")  # noqa: E731
    tracking = {"name": "kube-apiserver-legacy-service-account-token-tracking", "namespace": "kube-system"}
    manager.api.put(CONFIG_MAPS, {"metadata": tracking, "data": {"since": ago(800)}})

    def secret(name: str, **labels: str) -> None:
        annotations = {"kubernetes.io/service-account.name": "a"}
        marks = {f"kubernetes.io/legacy-token-{k.replace('_', '-')}": v for k, v in labels.items()}
        meta = {"name": name, "namespace": "default", "annotations": annotations, "labels": marks}
        meta["creationTimestamp"] = ago(900) + "T00:00:00Z"
        manager.api.put(SECRETS, {"metadata": meta, "type": "kubernetes.io/service-account-token"})

    secret("old")
    secret("used", last_used=ago(100))
    secret("marked", invalid_since=ago(10))
    secret("finished", invalid_since=ago(400))
    secret("mounted")
    secret("by-hand")
    listed = [{"name": n} for n in ("old", "used", "marked", "finished", "mounted")]
    manager.api.put(SERVICE_ACCOUNTS, {"metadata": {"name": "a", "namespace": "default"}, "secrets": listed})
    mounting = pod("p", "n1")
    mounting["spec"]["volumes"] = [{"name": "t", "secret": {"secretName": "mounted"}}]
    manager.api.put(PODS, mounting)
    await manager.start("legacy-serviceaccount-token-cleaner-controller")
    kept = ["old", "used", "marked", "mounted", "by-hand"]
    await manager.settle(lambda: [s["metadata"]["name"] for s in manager.api.all(SECRETS)] == kept, pods=False)
    marks = {
        s["metadata"]["name"]: s["metadata"]["labels"].get("kubernetes.io/legacy-token-invalid-since")
        for s in manager.api.all(SECRETS)
    }
    assert marks == {"old": ago(0), "used": None, "marked": ago(10), "mounted": None, "by-hand": None}


async def test_an_attributes_class_stays_while_it_is_used(manager: Any) -> None:
    manager.api.put(VOLUME_ATTRIBUTES_CLASSES, {"metadata": {"name": "gold"}, "driverName": "d"})
    user = manager.api.put(
        PERSISTENT_VOLUME_CLAIMS, {"metadata": {"name": "c"}, "spec": {"volumeAttributesClassName": "gold"}}
    )
    await manager.start("volumeattributesclass-protection-controller")
    classes = lambda: manager.api.all(VOLUME_ATTRIBUTES_CLASSES)  # noqa: E731
    await manager.settle(lambda: classes()[0]["metadata"]["finalizers"] == ["kubernetes.io/vac-protection"], pods=False)
    await manager.api.delete(VOLUME_ATTRIBUTES_CLASSES, "gold")
    await asyncio.sleep(0.05)
    assert classes()
    manager.api.put(PERSISTENT_VOLUME_CLAIMS, {**user, "spec": {}})
    await manager.settle(lambda: not classes(), pods=False)
