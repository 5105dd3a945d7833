"""A certificate that the cluster signs: a request is made, and its approval waited for.

Source: kubernetes.io "Certificates and Certificate Signing Requests"; client-go util/certificate/csr.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence

from longshore.client.resources import CERTIFICATE_SIGNING_REQUESTS
from longshore.client.rest import Client
from longshore.client.store import Object
from longshore.machinery import pki
from longshore.machinery.http import ClientError

CLIENT = "kubernetes.io/kube-apiserver-client"
KUBELET_CLIENT = "kubernetes.io/kube-apiserver-client-kubelet"
KUBELET_SERVING = "kubernetes.io/kubelet-serving"
PATIENCE = 60.0
_PAUSE = 0.5


class Refused(Exception):
    """The request was denied, or could not be signed; the text says why."""


async def certificate(
    client: Client,
    common_name: str,
    *,
    signer: str,
    organizations: Sequence[str] = (),
    names: Sequence[str] = (),
    patience: float = PATIENCE,
) -> pki.KeyPair:
    """A certificate for a new key of ours.

    names: DNS names and addresses of a server. patience: seconds to wait for an approval. Raises Refused, StatusError,
    OSError, TimeoutError when nobody has approved it in time.
    """
    key, request = pki.signing_request(common_name, organizations=organizations, names=names)
    usages = ["digital signature", "server auth" if signer == KUBELET_SERVING else "client auth"]
    spec = {"signerName": signer, "request": base64.b64encode(request).decode(), "usages": usages}
    prefix = "csr-" if client.config.certificate else "node-csr-"
    made = await client.create(CERTIFICATE_SIGNING_REQUESTS, {"metadata": {"generateName": prefix}, "spec": spec})
    async with asyncio.timeout(patience):
        return pki.KeyPair(await _issued(client, made), key)


async def _issued(client: Client, csr: Object) -> bytes:
    name, version = csr["metadata"]["name"], csr["metadata"]["resourceVersion"]
    while True:
        try:
            async for batch in client.watch(
                CERTIFICATE_SIGNING_REQUESTS, field_selector=f"metadata.name={name}", resource_version=version
            ):
                for _, obj in batch:
                    status = obj.get("status") or {}
                    if status.get("certificate"):
                        return base64.b64decode(status["certificate"])
                    for entry in status.get("conditions") or ():
                        if entry["type"] in ("Denied", "Failed"):
                            raise Refused(f"the request {name} is {entry['type'].lower()}: {entry.get('message', '')}")
        except (ClientError, OSError):
            # Broken off (also by the renewal of the certificate that it is asked under): from the present state on.
            version = ""
            await asyncio.sleep(_PAUSE)
