"""What volumes need of the API server: claims and what they are bound to, trust bundles; and what it is told of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from longshore.client.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, Resource
from longshore.client.rest import Client, is_not_found
from longshore.machinery import selectors
from longshore.machinery.errors import StatusError
from longshore.node.kubelet.volumes.manager import VolumeError

Pod = dict[str, Any]
TRUST_BUNDLES = Resource("certificates.k8s.io", "v1beta1", "clustertrustbundles", "ClusterTrustBundle", False)


class ClusterVolumes:
    """Reads and tells in the node's name."""

    def __init__(self, client: Client, node_name: str, event: Callable[[Pod, str, str, str], None]) -> None:
        """event(pod, type, reason, message)."""
        self._client, self._node, self._event = client, node_name, event

    async def claim(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """A PersistentVolumeClaim or a PersistentVolume; None when there is none. Raises VolumeError."""
        resource = PERSISTENT_VOLUME_CLAIMS if kind == "PersistentVolumeClaim" else PERSISTENT_VOLUMES
        try:
            return await self._client.get(resource, name, namespace)
        except StatusError as error:
            if is_not_found(error):
                return None
            raise VolumeError(error.message) from error

    async def trust(self, wanted: Mapping[str, Any]) -> bytes | None:
        """The certificates that a projected clusterTrustBundle names; None when there are none. Raises OSError."""
        try:
            if wanted.get("name"):
                found = await self._client.get(TRUST_BUNDLES, wanted["name"])
                return str(found["spec"]["trustBundle"]).encode()
            if wanted.get("signerName") and wanted.get("labelSelector") is not None:
                selector = selectors.from_object(wanted["labelSelector"])
                signer = f"spec.signerName={wanted['signerName']}"
                listed = await self._client.list(TRUST_BUNDLES, field_selector=signer)
                chosen = [b for b in listed["items"] if selector.matches(b["metadata"].get("labels") or {})]
                texts = sorted({str(b["spec"]["trustBundle"]).strip() for b in chosen})
                return ("\n".join(texts) + "\n").encode() if texts else None
        except StatusError as error:
            if not is_not_found(error):
                raise OSError(error.message) from error
        return None

    async def grown(self, pod: Pod, claim: Mapping[str, Any], volume: Mapping[str, Any]) -> None:
        """Tell a claim's new size: what is on its volume is as large as that now. Raises StatusError, OSError."""
        metadata, status = claim["metadata"], claim.get("status") or {}
        done = ("FileSystemResizePending", "Resizing", "NodeResizeError")
        change = {
            "capacity": {"storage": volume["spec"]["capacity"]["storage"]},
            "conditions": [c for c in status.get("conditions") or () if c["type"] not in done],
            "allocatedResourceStatuses": None,
        }
        await self._client.patch(
            PERSISTENT_VOLUME_CLAIMS, metadata["name"], {"status": change}, metadata["namespace"], subresource="status"
        )
        name = volume["metadata"]["name"]
        text = f'MountVolume.NodeExpandVolume succeeded for volume "{name}" {self._node}'
        self._event(pod, "Normal", "FileSystemResizeSuccessful", text)
