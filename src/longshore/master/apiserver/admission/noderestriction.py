"""NodeRestriction: a kubelet writes its own node, its own pods and its own lease, and nothing else.

Source: plugin/pkg/admission/noderestriction.
"""

from __future__ import annotations

from longshore.master.apiserver.admission.base import Object, Plugin, refuse
from longshore.master.apiserver.context import AdmissionRequest

MIRROR = "kubernetes.io/config.mirror"
_KUBELET_LABELS = frozenset((
    "kubernetes.io/hostname", "topology.kubernetes.io/zone", "topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region", "beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type", "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch", "kubernetes.io/os", "kubernetes.io/arch",
))  # fmt: skip
_KUBELET_PREFIXES = ("kubelet.kubernetes.io/", "node.kubernetes.io/")


class NodeRestriction(Plugin):
    """Looks only at users that are nodes."""

    name = "NodeRestriction"
    operations = frozenset(("CREATE", "UPDATE", "DELETE"))
    subresources = None
    resources = frozenset((
        ("", "pods"), ("", "nodes"), ("", "persistentvolumeclaims"), ("", "serviceaccounts"), ("coordination.k8s.io", "leases"),
        ("storage.k8s.io", "csinodes"), ("resource.k8s.io", "resourceslices"), ("certificates.k8s.io", "certificatesigningrequests"),
    ))  # fmt: skip

    async def validate(self, a: AdmissionRequest) -> None:
        user = a.user
        if "system:nodes" not in user.groups or not user.name.startswith("system:node:"):
            return
        node = user.name.removeprefix("system:node:")
        resource, subresource = a.attributes.resource, a.attributes.subresource
        if not node:
            raise refuse(a, f'could not determine node from user "{user.name}"')
        if resource == "pods":
            self._pod(a, node, subresource)
        elif resource == "nodes":
            self._node(a, node)
        elif resource == "persistentvolumeclaims":
            self._claim(a, subresource)
        elif resource == "serviceaccounts" and subresource == "token":
            self._token(a, node)
        elif resource == "leases":
            name = a.attributes.name or ((a.object or {}).get("metadata") or {}).get("name", "")
            if a.attributes.namespace != "kube-node-lease":
                raise refuse(a, 'can only access leases in the "kube-node-lease" system namespace')
            if name != node:
                raise refuse(a, "can only access node lease with the same name as the requesting node")
        elif resource == "csinodes":
            name = a.attributes.name or ((a.object or {}).get("metadata") or {}).get("name", "")
            if name != node:
                raise refuse(a, "can only access CSINode with the same name as the requesting node")
        elif resource == "resourceslices":
            owner = ((a.object or a.old or {}).get("spec") or {}).get("nodeName", "")
            if owner != node:
                raise refuse(
                    a,
                    "can only create ResourceSlice with the same NodeName as the requesting node"
                    if a.operation == "CREATE"
                    else "can only delete ResourceSlice with the same NodeName as the requesting node",
                )

    def _pod(self, a: AdmissionRequest, node: str, subresource: str) -> None:
        if not subresource:
            if a.operation == "CREATE":
                self._create_pod(a, node)
            elif a.operation == "DELETE":
                if ((a.old or {}).get("spec") or {}).get("nodeName", "") != node:
                    raise refuse(a, f'node "{node}" can only delete pods with spec.nodeName set to itself')
            else:
                raise refuse(
                    a, f'unexpected operation "{a.operation}", node "{node}" can only create and delete mirror pods'
                )
        elif subresource == "status":
            if a.operation != "UPDATE":
                raise refuse(a, f'unexpected operation "{a.operation}"')
            old, new = a.old or {}, a.object or {}
            if (old.get("spec") or {}).get("nodeName", "") != node:
                raise refuse(a, f'node "{node}" can only update pod status for pods with spec.nodeName set to itself')
            if ((old.get("metadata") or {}).get("labels") or {}) != ((new.get("metadata") or {}).get("labels") or {}):
                raise refuse(a, f'node "{node}" cannot update labels through pod status')
        elif subresource == "eviction":
            name = ((a.object or {}).get("metadata") or {}).get("name") or a.attributes.name
            pod = a.api.get("", "pods", a.attributes.namespace, name)
            if pod is not None and (pod.get("spec") or {}).get("nodeName", "") != node:
                raise refuse(a, f"node {node} can only evict pods with spec.nodeName set to itself")
        else:
            raise refuse(a, f"unexpected pod subresource \"{subresource}\", only 'status' and 'eviction' are allowed")

    @staticmethod
    def _create_pod(a: AdmissionRequest, node: str) -> None:
        pod = a.object or {}
        spec, meta = pod.get("spec") or {}, pod.get("metadata") or {}
        if MIRROR not in (meta.get("annotations") or {}):
            raise refuse(a, f'pod does not have "{MIRROR}" annotation, node "{node}" can only create mirror pods')
        if spec.get("nodeName", "") != node:
            raise refuse(a, f'node "{node}" can only create pods with spec.nodeName set to itself')
        owners = meta.get("ownerReferences") or []
        if len(owners) > 1:
            raise refuse(a, f'node "{node}" can only create pods with a single owner reference set to itself')
        if not owners:
            raise refuse(a, f'node "{node}" can only create pods with an owner reference set to itself')
        owner = owners[0]
        if (owner.get("apiVersion"), owner.get("kind"), owner.get("name")) != ("v1", "Node", node):
            raise refuse(a, f'node "{node}" can only create pods with an owner reference set to itself')
        if not owner.get("controller"):
            raise refuse(a, f'node "{node}" can only create pods with a controller owner reference set to itself')
        if owner.get("blockOwnerDeletion"):
            raise refuse(a, f'node "{node}" must not set blockOwnerDeletion on an owner reference')
        found = a.api.get("", "nodes", "", node)
        if found is not None and found["metadata"].get("uid") != owner.get("uid"):
            raise refuse(
                a, f"node {node} UID mismatch: expected {owner.get('uid', '')} got {found['metadata'].get('uid', '')}"
            )
        if spec.get("serviceAccountName"):
            raise refuse(a, f'node "{node}" can not create pods that reference a service account')
        for volume in spec.get("volumes") or ():
            for key, what in (
                ("secret", "secrets"),
                ("configMap", "configmaps"),
                ("persistentVolumeClaim", "persistentvolumeclaims"),
            ):
                if volume.get(key) is not None:
                    raise refuse(a, f'node "{node}" can not create pods that reference {what}')
        if spec.get("resourceClaims"):
            raise refuse(
                a, f'node "{node}" can not create pods that reference resourceclaims or resourceclaim templates'
            )

    def _node(self, a: AdmissionRequest, node: str) -> None:
        name = a.attributes.name or ((a.object or {}).get("metadata") or {}).get("name", "")
        if name != node:
            raise refuse(a, f'node "{node}" is not allowed to modify node "{name}"')
        new, old = a.object or {}, a.old or {}
        labels = ((new.get("metadata") or {}).get("labels")) or {}
        if a.operation == "CREATE":
            if (new.get("spec") or {}).get("configSource") is not None:
                raise refuse(a, f'node "{node}" is not allowed to create pods with a non-nil configSource')
            bad = sorted(k for k in labels if not _may_label(k))
            if bad:
                raise refuse(a, f'node "{node}" is not allowed to set the following labels: {", ".join(bad)}')
            if (new.get("metadata") or {}).get("ownerReferences"):
                raise refuse(a, f'node "{node}" is not allowed to set ownerReferences')
        elif a.operation == "UPDATE":
            before = ((old.get("metadata") or {}).get("labels")) or {}
            if (new.get("spec") or {}).get("taints") != (old.get("spec") or {}).get("taints"):
                raise refuse(a, f'node "{node}" is not allowed to modify taints')
            changed = {k for k in {*labels, *before} if labels.get(k) != before.get(k)}
            bad = sorted(k for k in changed if not _may_label(k))
            if bad:
                raise refuse(a, f'node "{node}" is not allowed to modify labels: {", ".join(bad)}')
            if ((new.get("metadata") or {}).get("ownerReferences") or []) != (
                (old.get("metadata") or {}).get("ownerReferences") or []
            ):
                raise refuse(a, f'node "{node}" is not allowed to modify ownerReferences')

    @staticmethod
    def _claim(a: AdmissionRequest, subresource: str) -> None:
        if subresource != "status" or a.operation != "UPDATE":
            raise refuse(
                a, f'unexpected operation "{a.operation}"' if subresource == "status" else "may only update PVC status"
            )

        def rest(claim: Object) -> Object:
            meta = {
                k: v for k, v in (claim.get("metadata") or {}).items() if k not in ("resourceVersion", "managedFields")
            }
            status = {
                k: v
                for k, v in (claim.get("status") or {}).items()
                if k
                not in ("capacity", "conditions", "allocatedResources", "allocatedResourceStatuses", "resizeStatus")
            }
            return {"metadata": meta, "spec": claim.get("spec"), "status": status}

        if rest(a.object or {}) != rest(a.old or {}):
            raise refuse(a, "may only update status.capacity, status.conditions and resize status of claims")

    @staticmethod
    def _token(a: AdmissionRequest, node: str) -> None:
        reference = ((a.object or {}).get("spec") or {}).get("boundObjectRef")
        if (
            reference is None
            or reference.get("apiVersion") != "v1"
            or reference.get("kind") != "Pod"
            or not reference.get("name")
        ):
            raise refuse(a, "node requested token not bound to a pod")
        if not reference.get("uid"):
            raise refuse(a, "node requested token with a pod binding without a uid")
        pod = a.api.get("", "pods", a.attributes.namespace, reference["name"])
        if pod is None:
            raise refuse(a, f'pod "{reference["name"]}" not found')
        if reference["uid"] != pod["metadata"].get("uid"):
            raise refuse(
                a,
                f"the UID in the bound object reference ({reference['uid']}) does not match the UID in record. The object might have been deleted and then recreated",
            )
        if (pod.get("spec") or {}).get("nodeName", "") != node:
            raise refuse(a, "node requested token bound to a pod scheduled on a different node")


def _may_label(key: str) -> bool:
    """Whether a kubelet may set a label on its node."""
    if "/" not in key:
        return True
    domain = key.partition("/")[0]
    if domain == "node-restriction.kubernetes.io" or domain.endswith(".node-restriction.kubernetes.io"):
        return False
    if key in _KUBELET_LABELS or any(domain == p[:-1] or domain.endswith("." + p[:-1]) for p in _KUBELET_PREFIXES):
        return True
    return not (domain in ("kubernetes.io", "k8s.io") or domain.endswith((".kubernetes.io", ".k8s.io")))
