"""NetworkPolicy as a part of every node's process: informers in, tables out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from longshore.client import Client, Informer, resources
from longshore.machinery import netns
from longshore.machinery.nftables import Nftables, NftablesError
from longshore.node.policy.enforcer import TABLE, Enforcer
from longshore.node.policy.model import Object, pod_of, policy_of
from longshore.node.policy.state import PolicyState

logger = logging.getLogger("longshore.policy")


def _slim(obj: Object) -> Object:
    """Of a pod only what policies look at: a node knows every pod of the cluster."""
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    containers = [{"ports": c["ports"]} for c in spec.get("containers") or () if c.get("ports")]
    return {
        "metadata": {
            k: metadata[k] for k in ("name", "namespace", "uid", "resourceVersion", "labels") if k in metadata
        },
        "spec": {
            "nodeName": spec.get("nodeName"),
            "hostNetwork": spec.get("hostNetwork"),
            "containers": containers,
        },
        "status": {"podIPs": status.get("podIPs"), "podIP": status.get("podIP"), "phase": status.get("phase")},
    }


def _key(obj: Object) -> str:
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"


async def serve(
    *,
    client: Client,
    node_name: str,
    metrics: CollectorRegistry | None = None,
    namespace: netns.Namespace | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Enforce NetworkPolicies for this node's pods until cancelled; the rules stay.

    client: may list and watch networkpolicies, pods and namespaces. Pods and namespaces are watched from the first policy
    on; a cluster without policies costs one watch. ready: called when the first rules are in force.
    Raises NftablesUnavailable, PermissionError.
    """
    state = PolicyState()
    enforcer = Enforcer(state, namespace=namespace, metrics=metrics)
    wanted = asyncio.Event()

    def policy(obj: Object) -> None:
        state.set_policy(_key(obj), policy_of(obj))
        wanted.set()
        enforcer.touch()

    def gone(obj: Object) -> None:
        state.set_policy(_key(obj), None)
        enforcer.touch()

    def pod(obj: Object) -> None:
        state.set_pod(_key(obj), pod_of(obj, node_name))
        enforcer.touch()

    def pod_gone(obj: Object) -> None:
        state.set_pod(_key(obj), None)
        enforcer.touch()

    def labels(obj: Object) -> None:
        state.set_namespace(obj["metadata"]["name"], obj["metadata"].get("labels") or {})
        enforcer.touch()

    def namespace_gone(obj: Object) -> None:
        state.set_namespace(obj["metadata"]["name"], None)
        enforcer.touch()

    policies = Informer(client, resources.NETWORK_POLICIES)
    pods = Informer(client, resources.PODS, transform=_slim)
    namespaces = Informer(client, resources.NAMESPACES)
    policies.on(policy, lambda old, new: policy(new), gone)
    pods.on(pod, lambda old, new: pod(new), pod_gone)
    namespaces.on(labels, lambda old, new: labels(new), namespace_gone)
    async with asyncio.TaskGroup() as group:
        group.create_task(policies.run(), name="network policies")
        await policies.wait_synced()
        if not policies.store.keys():
            # An earlier run may have left rules in force; nothing selects anybody now.
            await asyncio.to_thread(clean_up, namespace=namespace)
            if ready is not None:
                ready()
                ready = None
            await wanted.wait()
        tasks: list[asyncio.Task[Any]] = [
            group.create_task(namespaces.run(), name="namespaces of policies"),
            group.create_task(pods.run(), name="pods of policies"),
        ]
        await namespaces.wait_synced()
        await pods.wait_synced()
        tasks.append(group.create_task(enforcer.run(), name="policies"))
        await enforcer.synced.wait()
        logger.info("%d NetworkPolicies in force", len(state.policies))
        if ready is not None:
            ready()


def clean_up(*, namespace: netns.Namespace | None = None) -> None:
    """Remove the tables."""
    with Nftables(namespace) as nft:
        for family in ("ip", "ip6"):
            with contextlib.suppress(NftablesError):
                nft.run(f"delete table {family} {TABLE}")
