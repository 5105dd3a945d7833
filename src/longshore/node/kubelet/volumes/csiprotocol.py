"""CSI's Node service as messages, and what of a pod and a volume goes into them.

Source: CSI specification 1.11, kubernetes pkg/volume/csi/csi_client.go.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import orjson

from longshore.machinery.grpc import RpcError
from longshore.wire.protobuf import Schema

Pod = dict[str, Any]
#: NodeServiceCapability.RPC.Type
STAGE_UNSTAGE, STATS, EXPAND, SINGLE_NODE_MULTI_WRITER, MOUNT_GROUP = 1, 2, 3, 5, 6
CSI = """
service Node: NodeStageVolume, NodeUnstageVolume, NodePublishVolume, NodeUnpublishVolume, NodeGetCapabilities, NodeGetInfo,
 NodeExpandVolume, NodeGetVolumeStats
VolumeCapability: 1 block BlockVolume @access_type, 2 mount MountVolume @access_type, 3 access_mode AccessMode
BlockVolume:
MountVolume: 1 fs_type string, 2 mount_flags *string, 3 volume_mount_group string
AccessMode: 1 mode int32
NodeStageVolumeRequest: 1 volume_id string, 2 publish_context {string:string}, 3 staging_target_path string,
 4 volume_capability VolumeCapability, 5 secrets {string:string}, 6 volume_context {string:string}
NodeStageVolumeResponse:
NodeUnstageVolumeRequest: 1 volume_id string, 2 staging_target_path string
NodeUnstageVolumeResponse:
NodePublishVolumeRequest: 1 volume_id string, 2 publish_context {string:string}, 3 staging_target_path string,
 4 target_path string, 5 volume_capability VolumeCapability, 6 readonly bool, 7 secrets {string:string},
 8 volume_context {string:string}
NodePublishVolumeResponse:
NodeUnpublishVolumeRequest: 1 volume_id string, 2 target_path string
NodeUnpublishVolumeResponse:
NodeGetCapabilitiesRequest:
NodeGetCapabilitiesResponse: 1 capabilities *NodeServiceCapability
NodeServiceCapability: 1 rpc NodeServiceRPC
NodeServiceRPC: 1 type int32
NodeGetInfoRequest:
NodeGetInfoResponse: 1 node_id string, 2 max_volumes_per_node int64, 3 accessible_topology Topology
Topology: 1 segments {string:string}
NodeExpandVolumeRequest: 1 volume_id string, 2 volume_path string, 3 capacity_range CapacityRange,
 4 staging_target_path string, 5 volume_capability VolumeCapability, 6 secrets {string:string}
NodeExpandVolumeResponse: 1 capacity_bytes int64
CapacityRange: 1 required_bytes int64, 2 limit_bytes int64
NodeGetVolumeStatsRequest: 1 volume_id string, 2 volume_path string, 3 staging_target_path string
NodeGetVolumeStatsResponse: 1 usage *VolumeUsage, 2 volume_condition VolumeCondition
VolumeUsage: 1 available int64, 2 total int64, 3 used int64, 4 unit int32
VolumeCondition: 1 abnormal bool, 2 message string
"""


@cache
def schema() -> Schema:
    """The Node service's messages, made at first use."""
    return Schema("csi.v1", CSI)


def capability(
    spec: Mapping[str, Any], modes: Sequence[str], flags: Sequence[str], can: set[int], group: int | None, block: bool
) -> dict[str, Any]:
    """The VolumeCapability that a volume is asked for with. group: the pod's fsGroup."""
    access = {"mode": access_mode(modes, can)}
    if block:
        return {"block": {}, "access_mode": access}
    mount = {"fs_type": spec.get("fsType") or "", "mount_flags": list(flags)}
    if group is not None and MOUNT_GROUP in can:
        mount["volume_mount_group"] = str(group)
    return {"mount": mount, "access_mode": access}


def expiry(token: str) -> str:
    """When a token ends, as its own text says."""
    part = token.split(".")[1] if token.count(".") == 2 else ""
    try:
        seconds = int(orjson.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["exp"])
    except (ValueError, KeyError, TypeError):
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def access_mode(modes: Sequence[str], can: set[int]) -> int:
    """CSI's number for a volume's access modes. Source: kubernetes pkg/volume/csi/csi_client.go."""
    several = SINGLE_NODE_MULTI_WRITER in can
    if "ReadWriteMany" in modes:
        return 5
    if "ReadOnlyMany" in modes:
        return 3
    if "ReadWriteOncePod" in modes:
        return 6 if several else 1
    return 7 if several else 1


def pod_info(pod: Pod, ephemeral: bool) -> dict[str, str]:
    """The context of a driver that asks for it with podInfoOnMount."""
    metadata = pod["metadata"]
    return {
        "csi.storage.k8s.io/pod.name": metadata["name"],
        "csi.storage.k8s.io/pod.namespace": metadata["namespace"],
        "csi.storage.k8s.io/pod.uid": metadata["uid"],
        "csi.storage.k8s.io/serviceAccount.name": pod["spec"].get("serviceAccountName") or "",
        "csi.storage.k8s.io/ephemeral": "true" if ephemeral else "false",
    }


def owned_by_group(driver: Mapping[str, Any], spec: Mapping[str, Any], modes: Sequence[str], readonly: bool) -> bool:
    """Whether the pod's fsGroup is given the volume's files. Source: CSIDriver.spec.fsGroupPolicy."""
    if readonly:
        return False
    policy = driver.get("fsGroupPolicy") or "ReadWriteOnceWithFSType"
    if policy == "File":
        return True
    return policy == "ReadWriteOnceWithFSType" and bool(spec.get("fsType")) and "ReadWriteOnce" in modes


def go_code(error: RpcError) -> str:
    """A gRPC code in Go's words."""
    return "".join(word.capitalize() for word in error.status.name.split("_"))
