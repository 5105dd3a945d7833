"""From a StatefulSet's claim template to a bound local volume, through the real API server, binder and scheduler."""

from __future__ import annotations

import base64
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from test_golden_controllers import LABELS, Cluster, cluster, template  # noqa: F401

from longshore.client.resources import (
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    STATEFUL_SETS,
    STORAGE_CLASSES,
)
from longshore.client.rest import Client
from longshore.master.controllers.localpath import STORAGE_CLASS


async def test_claims_are_provisioned_where_their_pods_run(cluster: Cluster) -> None:  # noqa: F811
    namespace = "default"
    await cluster.client.create(STORAGE_CLASSES, STORAGE_CLASS)
    claim = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    body = template()
    body["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    spec = {
        "replicas": 2,
        "serviceName": "s",
        "selector": {"matchLabels": LABELS},
        "template": body,
        "volumeClaimTemplates": [claim],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"},
    }
    await cluster.client.create(STATEFUL_SETS, {"metadata": {"name": "sts"}, "spec": spec}, namespace)

    async def ready() -> bool:
        s = await cluster.client.get(STATEFUL_SETS, "sts", namespace)
        return bool((s.get("status") or {}).get("availableReplicas") == 2)

    await cluster.until(namespace, ready)
    nodes = {
        p["metadata"]["name"]: p["spec"]["nodeName"] for p in (await cluster.client.list(PODS, namespace))["items"]
    }
    volumes = {v["metadata"]["name"]: v for v in (await cluster.client.list(PERSISTENT_VOLUMES))["items"]}
    for number in range(2):
        found = await cluster.client.get(PERSISTENT_VOLUME_CLAIMS, f"data-sts-{number}", namespace)
        assert found["status"]["phase"] == "Bound" and found["spec"]["storageClassName"] == "local-path"
        volume = volumes[found["spec"]["volumeName"]]
        (term,) = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
        assert term["matchExpressions"][0]["values"] == [nodes[f"sts-{number}"]]
    await cluster.client.delete(STATEFUL_SETS, "sts", namespace)

    async def empty() -> bool:
        claims = (await cluster.client.list(PERSISTENT_VOLUME_CLAIMS, namespace))["items"]
        return not claims and not (await cluster.client.list(PERSISTENT_VOLUMES))["items"]

    await cluster.until(namespace, empty)


async def test_a_token_secret_is_filled_and_opens_the_door(cluster: Cluster) -> None:  # noqa: F811
    async def account() -> bool:
        return bool((await cluster.client.list(SERVICE_ACCOUNTS, "default"))["items"])

    await cluster.until("default", account)
    meta = {"name": "tok", "annotations": {"kubernetes.io/service-account.name": "default"}}
    await cluster.client.create(SECRETS, {"metadata": meta, "type": "kubernetes.io/service-account-token"}, "default")

    async def filled() -> bool:
        return bool((await cluster.client.get(SECRETS, "tok", "default")).get("data", {}).get("token"))

    await cluster.until("default", filled)
    data = (await cluster.client.get(SECRETS, "tok", "default"))["data"]
    assert b"BEGIN CERTIFICATE" in base64.b64decode(data["ca.crt"])
    own = replace(cluster.client.config, certificate=None, key=None, token=base64.b64decode(data["token"]).decode())
    client = Client(own)
    try:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = await client.call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", None, review)
        assert answer["status"]["userInfo"]["username"] == "system:serviceaccount:default:default"
    finally:
        await client.close()
