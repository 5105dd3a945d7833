"""ResourceClaims of pods: made from templates, told in the pod's status, released when the pod has ended.

Source: kubernetes pkg/controller/resourceclaim, described behaviour.
"""

from __future__ import annotations

from longshore.client.objects import is_deleting, is_terminal, owner_reference
from longshore.client.resources import PODS, RESOURCE_CLAIM_TEMPLATES, RESOURCE_CLAIMS
from longshore.client.rest import is_namespace_terminating, is_not_found
from longshore.client.store import Object, key_of, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller

POD_CLAIM = "resource.kubernetes.io/pod-claim-name"
FINALIZER = "resource.kubernetes.io/delete-protection"
MOST_USERS = 256  # entries of status.reservedFor


class ResourceClaimController(Controller):
    """Keys are `pod:NAMESPACE/NAME` and `claim:NAMESPACE/NAME`."""

    name = "resourceclaim-controller"
    account = "resource-claim-controller"
    component = "resource_claim"

    def setup(self) -> None:
        self.pods = self.watch(PODS, add=self._pod, update=lambda old, new: self._pod(new), delete=self._pod)
        self.claims = self.watch(RESOURCE_CLAIMS, add=self._claim, update=lambda old, new: self._claim(new))
        self.templates = self.watch(RESOURCE_CLAIM_TEMPLATES, add=self._template)

    def _pod(self, pod: Object) -> None:
        if not pod["spec"].get("resourceClaims") and not (pod.get("status") or {}).get("extendedResourceClaimStatus"):
            return
        self.queue.add("pod:" + key_of(pod))
        for name in self._names(pod).values():
            self.queue.add(f"claim:{pod['metadata']['namespace']}/{name}")

    def _claim(self, claim: Object) -> None:
        self.queue.add("claim:" + key_of(claim))

    def _template(self, template: Object) -> None:
        for pod in self.pods.store.list(template["metadata"]["namespace"]):
            self._pod(pod)

    @staticmethod
    def _names(pod: Object) -> dict[str, str]:
        """The pod's claims by their names in the pod; the one for its extended resources by ""."""
        made = {
            s["name"]: s["resourceClaimName"]
            for s in (pod.get("status") or {}).get("resourceClaimStatuses") or ()
            if s.get("resourceClaimName")
        }
        for entry in pod["spec"].get("resourceClaims") or ():
            if entry.get("resourceClaimName"):
                made[entry["name"]] = entry["resourceClaimName"]
        extended = (pod.get("status") or {}).get("extendedResourceClaimStatus")
        if extended:
            made[""] = extended["resourceClaimName"]
        return made

    async def reconcile(self, key: str) -> float | None:
        kind, _, rest = key.partition(":")
        if kind == "pod":
            pod = self.pods.store.named(*split_key(rest))
            if pod is not None and not is_deleting(pod) and not is_terminal(pod):
                await self._make(pod)
                if pod["spec"].get("nodeName"):
                    await self._reserve(pod)
            return None
        claim = self.claims.store.named(*split_key(rest))
        if claim is not None:
            await self._release(claim)
        return None

    async def _make(self, pod: Object) -> None:
        meta = pod["metadata"]
        known = self._names(pod)
        statuses = list((pod.get("status") or {}).get("resourceClaimStatuses") or ())
        for entry in pod["spec"].get("resourceClaims") or ():
            template_name = entry.get("resourceClaimTemplateName")
            if not template_name or entry["name"] in known:
                continue
            mine = next(
                (
                    c
                    for c in self.claims.store.list(meta["namespace"])
                    if (c["metadata"].get("annotations") or {}).get(POD_CLAIM) == entry["name"]
                    and any(o["uid"] == meta["uid"] for o in c["metadata"].get("ownerReferences") or ())
                ),
                None,
            )
            if mine is None:
                template = self.templates.store.named(meta["namespace"], template_name)
                if template is None:
                    message = f'PodResourceClaim {entry["name"]}: resource claim template "{template_name}": not found'
                    self.event(pod, "Warning", "FailedResourceClaimCreation", message)
                    continue
                source = template["spec"].get("metadata") or {}
                metadata: Object = {
                    "generateName": f"{meta['name']}-{entry['name']}-",
                    "namespace": meta["namespace"],
                    "labels": source.get("labels") or {},
                    "annotations": {**(source.get("annotations") or {}), POD_CLAIM: entry["name"]},
                    "ownerReferences": [owner_reference(pod)],
                }
                body = {"metadata": metadata, "spec": template["spec"]["spec"]}
                try:
                    mine = await self.client.create(RESOURCE_CLAIMS, body)
                except StatusError as error:
                    if is_namespace_terminating(error):
                        return
                    message = f"PodResourceClaim {entry['name']}: {error.message}"
                    self.event(pod, "Warning", "FailedResourceClaimCreation", message)
                    raise
            statuses.append({"name": entry["name"], "resourceClaimName": mine["metadata"]["name"]})
        if statuses != list((pod.get("status") or {}).get("resourceClaimStatuses") or ()):
            patch = {"metadata": {"uid": meta["uid"]}, "status": {"resourceClaimStatuses": statuses}}
            await self.client.patch(
                PODS, meta["name"], patch, meta["namespace"], kind="strategic", subresource="status"
            )

    async def _reserve(self, pod: Object) -> None:
        """A pod that came to its node past the scheduler: enter it as a user of its claims that have devices."""
        namespace, uid = pod["metadata"]["namespace"], pod["metadata"]["uid"]
        for name in self._names(pod).values():
            claim = self.claims.store.named(namespace, name)
            status = (claim or {}).get("status") or {}
            reserved = status.get("reservedFor") or []
            if claim is None or not status.get("allocation") or any(r["uid"] == uid for r in reserved):
                continue
            if len(reserved) < MOST_USERS:
                user = {"resource": "pods", "name": pod["metadata"]["name"], "uid": uid}
                status = {**status, "reservedFor": [*reserved, user]}
                await self.client.update(RESOURCE_CLAIMS, {**claim, "status": status}, subresource="status")

    def _in_use(self, namespace: str, ref: Object) -> bool:
        """Whether an entry of reservedFor still stands for somebody."""
        if ref.get("apiGroup") or ref.get("resource") != "pods":
            return True
        pod = self.pods.store.named(namespace, ref["name"])
        if pod is None or pod["metadata"]["uid"] != ref["uid"] or is_terminal(pod):
            return False
        # A pod that is going and never had a node will not use the claim any more.
        return not (is_deleting(pod) and not pod["spec"].get("nodeName"))

    async def _release(self, claim: Object) -> None:
        """Pods that have ended reserve nothing; a claim that nobody reserves is deallocated, a pod's own one deleted."""
        meta = claim["metadata"]
        status = dict(claim.get("status") or {})
        reserved = status.get("reservedFor") or []
        kept = [ref for ref in reserved if self._in_use(meta["namespace"], ref)]
        if kept != reserved or (is_deleting(claim) and not kept and status.get("allocation")):
            status.pop("reservedFor", None)
            if kept:
                status["reservedFor"] = kept
            elif FINALIZER in (meta.get("finalizers") or ()):
                status.pop("allocation", None)
            claim = await self.client.update(RESOURCE_CLAIMS, {**claim, "status": status}, subresource="status")
        finalizers = claim["metadata"].get("finalizers") or []
        if is_deleting(claim):
            if FINALIZER in finalizers and not (claim.get("status") or {}).get("allocation"):
                metadata = {**claim["metadata"], "finalizers": [f for f in finalizers if f != FINALIZER]}
                await self.client.update(RESOURCE_CLAIMS, {**claim, "metadata": metadata})
            return
        owner = next((o for o in meta.get("ownerReferences") or () if o["kind"] == "Pod" and o.get("controller")), None)
        if owner is None or kept:
            return
        pod = self.pods.store.named(meta["namespace"], owner["name"])
        if pod is not None and pod["metadata"]["uid"] == owner["uid"] and is_terminal(pod):
            try:
                await self.client.delete(RESOURCE_CLAIMS, meta["name"], meta["namespace"], uid=meta["uid"])
            except StatusError as error:
                if not is_not_found(error):
                    raise
