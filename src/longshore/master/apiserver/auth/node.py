"""The node authorizer: a kubelet may touch what the pods of its node need.

Source: k8s.io/kubernetes/plugin/pkg/auth/authorizer/node (node_authorizer.go, graph.go).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from longshore.master.apiserver.context import NO_OPINION, Attributes, Decision, ObjectReader, UserInfo

from .rules import Resolution, Rule
from .users import node_identity, quoted

ALLOW = Decision("allow")
MIRROR = "kubernetes.io/config.mirror"
LEASES = "kube-node-lease"
MAX_DIRTY = 1024
Thing = tuple[str, str, str]  # resource, namespace, name


def _no(reason: str) -> Decision:
    return Decision("no opinion", reason)


class Graph:
    """What each node is related to: node <- pod <- secret, configmap, claim <- volume <- secret, and so on.

    Changes are only noted; the next question takes them in.
    """

    def __init__(self, api: ObjectReader) -> None:
        self._api = api
        self._dirty: set[Thing] = set()
        self._edges: dict[Thing, frozenset[tuple[Thing, str]]] = {}  # of an object: (what it opens, to which node)
        self._nodes: dict[Thing, dict[str, int]] = {}  # thing: node to number of pods through which it is related
        self._claims: dict[Thing, set[Thing]] = {}  # volume: its claim
        self._secrets: dict[Thing, set[Thing]] = {}  # secret: volumes that name it
        self._volumes: dict[Thing, tuple[Thing | None, tuple[Thing, ...]]] = {}
        for group, resource in (
            ("", "pods"),
            ("", "persistentvolumes"),
            ("storage.k8s.io", "volumeattachments"),
            ("resource.k8s.io", "resourceslices"),
            ("certificates.k8s.io", "podcertificaterequests"),
        ):
            api.on_change(group, resource, partial(self._note, group, resource))

    def _note(self, group: str, resource: str, namespace: str, name: str) -> None:
        self._dirty.add((f"{group}/{resource}", namespace, name))
        if len(self._dirty) > MAX_DIRTY:  # nobody asks: it must not grow with all that ever lived
            self._refresh()

    def related(self, node: str, thing: Thing) -> bool:
        """Whether there is a way from a thing to a node."""
        if self._dirty:
            self._refresh()
        if node in self._nodes.get(thing, ()):
            return True
        kind = thing[0]
        if kind == "persistentvolumes":
            return any(node in self._nodes.get(claim, ()) for claim in self._claims.get(thing, ()))
        if kind == "secrets":
            return any(self.related(node, volume) for volume in self._secrets.get(thing, ()))
        return False

    def _refresh(self) -> None:
        dirty, self._dirty = self._dirty, set()
        for key in dirty:
            kind, namespace, name = key
            group, _, resource = kind.partition("/")
            obj = self._api.get(group, resource, namespace, name)
            if resource == "persistentvolumes":
                self._volume(name, obj)
                continue
            edges = frozenset(_edges(resource, obj)) if obj is not None else frozenset()
            old = self._edges.pop(key, frozenset())
            if edges:
                self._edges[key] = edges
            for thing, node in old - edges:
                counts = self._nodes[thing]
                counts[node] -= 1
                if not counts[node]:
                    del counts[node]
                    if not counts:
                        del self._nodes[thing]
            for thing, node in edges - old:
                counts = self._nodes.setdefault(thing, {})
                counts[node] = counts.get(node, 0) + 1

    def _volume(self, name: str, obj: dict[str, Any] | None) -> None:
        me: Thing = ("persistentvolumes", "", name)
        _, secrets = self._volumes.pop(me, (None, ()))
        self._claims.pop(me, None)
        for secret in secrets:
            self._secrets[secret].discard(me)
            if not self._secrets[secret]:
                del self._secrets[secret]
        claim = (obj or {}).get("spec", {}).get("claimRef")
        if not obj or not claim:
            return
        target: Thing = ("persistentvolumeclaims", claim.get("namespace", ""), claim.get("name", ""))
        named = tuple(("secrets", ns, n) for ns, n in _volume_secrets(obj["spec"], target[1]))
        self._volumes[me] = (target, named)
        self._claims[me] = {target}
        for secret in named:
            self._secrets.setdefault(secret, set()).add(me)


def _volume_secrets(spec: dict[str, Any], claim_namespace: str) -> Iterator[tuple[str, str]]:
    """Secrets that a kubelet needs for a persistent volume (pkg/api/v1/persistentvolume VisitPVSecretNames)."""
    csi = spec.get("csi") or {}
    for reference in (csi.get("nodePublishSecretRef"), csi.get("nodeStageSecretRef"), csi.get("nodeExpandSecretRef")):
        if reference:
            yield reference.get("namespace") or claim_namespace, reference.get("name", "")
    azure = spec.get("azureFile")
    if azure and azure.get("secretName"):
        yield azure.get("secretNamespace") or claim_namespace, azure["secretName"]
    for kind in ("cephfs", "rbd", "scaleIO", "iscsi", "storageos", "flexVolume", "cinder"):
        source = spec.get(kind) or {}
        reference = source.get("secretRef")
        if reference and reference.get("name"):
            yield reference.get("namespace") or claim_namespace, reference["name"]


def _edges(resource: str, obj: dict[str, Any]) -> Iterator[tuple[Thing, str]]:
    spec = obj.get("spec") or {}
    meta = obj["metadata"]
    namespace, name = meta.get("namespace", ""), meta["name"]
    node = spec.get("nodeName") or ""
    if not node:
        return
    yield (resource, namespace, name), node
    if resource != "pods" or MIRROR in (meta.get("annotations") or ()):
        return  # a node must not be able to make a pod that opens other objects to it
    for kind, what in pod_references(spec, name):
        yield (kind, namespace, what), node
    status = obj.get("status") or {}
    claims = {c["name"]: c.get("resourceClaimName") for c in status.get("resourceClaimStatuses") or ()}
    for claim in spec.get("resourceClaims") or ():
        made = claim.get("resourceClaimName") or claims.get(claim.get("name"))
        if made:
            yield ("resourceclaims", namespace, made), node
    extended = (status.get("extendedResourceClaimStatus") or {}).get("resourceClaimName")
    if extended:
        yield ("resourceclaims", namespace, extended), node


def pod_references(spec: dict[str, Any], pod: str) -> Iterator[tuple[str, str]]:
    """(resource, name) of the secrets, configmaps, claims and the account that a pod names (podutil's visitors)."""
    if spec.get("serviceAccountName"):
        yield "serviceaccounts", spec["serviceAccountName"]
    for reference in spec.get("imagePullSecrets") or ():
        if reference.get("name"):
            yield "secrets", reference["name"]
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(field) or ():
            yield from _container_references(container)
    for volume in spec.get("volumes") or ():
        yield from _volume_references(volume, pod)


def _container_references(container: dict[str, Any]) -> Iterator[tuple[str, str]]:
    sources: Iterable[dict[str, Any]] = [
        *(container.get("envFrom") or ()),
        *(e.get("valueFrom") or {} for e in container.get("env") or ()),
    ]
    for source in sources:
        for field, resource in (
            ("secretRef", "secrets"),
            ("secretKeyRef", "secrets"),
            ("configMapRef", "configmaps"),
            ("configMapKeyRef", "configmaps"),
        ):
            reference = source.get(field)
            if reference and reference.get("name"):
                yield resource, reference["name"]


def _volume_references(volume: dict[str, Any], pod: str) -> Iterator[tuple[str, str]]:
    if secret := (volume.get("secret") or {}).get("secretName"):
        yield "secrets", secret
    if config := (volume.get("configMap") or {}).get("name"):
        yield "configmaps", config
    if claim := (volume.get("persistentVolumeClaim") or {}).get("claimName"):
        yield "persistentvolumeclaims", claim
    elif volume.get("ephemeral") is not None:
        yield "persistentvolumeclaims", f"{pod}-{volume.get('name', '')}"
    for source in (volume.get("projected") or {}).get("sources") or ():
        if name := (source.get("secret") or {}).get("name"):
            yield "secrets", name
        if name := (source.get("configMap") or {}).get("name"):
            yield "configmaps", name
    if azure := (volume.get("azureFile") or {}).get("secretName"):
        yield "secrets", azure
    for kind in ("cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"):
        if name := ((volume.get(kind) or {}).get("secretRef") or {}).get("name"):
            yield "secrets", name
    if name := ((volume.get("csi") or {}).get("nodePublishSecretRef") or {}).get("name"):
        yield "secrets", name


def selects(field_selector: str, field: str, value: str) -> bool:
    """Whether a field selector demands `field` to equal `value`."""
    return any(
        p in (f"{field}={value}", f"{field}=={value}") for p in (part.strip() for part in field_selector.split(","))
    )


class NodeAuthorizer:
    """rules: what every node may do besides (the rules of the role system:node)."""

    def __init__(self, api: ObjectReader, rules: Iterable[Rule]) -> None:
        self.graph = Graph(api)
        self._rules = list(rules)

    def authorize(self, a: Attributes) -> Decision:
        node = node_identity(a.user)
        if node is None:
            return NO_OPINION
        if not node:
            return _no(f"unknown node for user {quoted(a.user.name)}")
        if a.is_resource:
            decision = self._subdivided(node, a)
            if decision is not None:
                return decision
        return ALLOW if any(rule.allows(a) for rule in self._rules) else NO_OPINION

    def resolve(self, user: UserInfo, namespace: str) -> Resolution:
        if node_identity(user) is None:
            return Resolution()
        return Resolution(problems=["node authorizer does not support user rule resolution"], incomplete=True)

    def _subdivided(self, node: str, a: Attributes) -> Decision | None:
        if not a.group:
            if a.resource in ("secrets", "configmaps"):
                return self._read(node, a)
            if a.resource == "persistentvolumeclaims" and a.subresource == "status":
                if a.verb not in ("update", "patch"):
                    return _no("can only get/update/patch this type")
                return self._related(node, a)
            if a.resource in ("persistentvolumeclaims", "persistentvolumes"):
                return self._get(node, a)
            if a.resource == "serviceaccounts":
                return self._account(node, a)
            if a.resource == "nodes":
                return _node(node, a)
            if a.resource == "pods":
                return self._pod(node, a)
        elif a.group == "resource.k8s.io":
            if a.resource == "resourceclaims":
                return self._get(node, a)
            if a.resource == "resourceslices":
                return self._slice(node, a)
        elif a.group == "storage.k8s.io":
            if a.resource == "volumeattachments":
                return self._get(node, a)
            if a.resource == "csinodes":
                return _csi_node(node, a)
        elif a.group == "coordination.k8s.io" and a.resource == "leases":
            return _lease(node, a)
        elif a.group == "certificates.k8s.io" and a.resource == "podcertificaterequests":
            return self._certificate_request(node, a)
        return None

    def _related(self, node: str, a: Attributes) -> Decision:
        if not a.name:
            return _no("No Object name found")
        if self.graph.related(node, (a.resource, a.namespace, a.name)):
            return ALLOW
        return _no(f"no relationship found between node '{node}' and this object")

    def _read(self, node: str, a: Attributes) -> Decision:
        if a.verb not in ("get", "list", "watch"):
            return _no("can only read resources of this type")
        if a.subresource:
            return _no("cannot read subresource")
        if not a.namespace:
            return _no("can only read namespaced object of this type")
        return self._related(node, a)

    def _get(self, node: str, a: Attributes) -> Decision:
        if a.verb != "get":
            return _no("can only get individual resources of this type")
        if a.subresource:
            return _no("cannot get subresource")
        return self._related(node, a)

    def _account(self, node: str, a: Attributes) -> Decision:
        if a.verb == "get" and not a.subresource:
            return self._related(node, a)
        if a.verb != "create" or not a.name:
            return _no("can only create tokens for individual service accounts")
        if a.subresource != "token":
            return _no("can only create token subresource of serviceaccount")
        return self._related(node, a)

    def _pod(self, node: str, a: Attributes) -> Decision:
        if not a.subresource:
            if a.verb == "get":
                return self._get(node, a)
            if a.verb in ("list", "watch"):
                if selects(a.field_selector, "spec.nodeName", node):
                    return ALLOW
                if a.name:
                    return self._related(node, a)
                return _no("can only list/watch pods with spec.nodeName field selector")
            if a.verb in ("create", "delete"):
                return ALLOW  # mirror pods; NodeRestriction sees to it
        elif (a.subresource == "status" and a.verb in ("update", "patch")) or (
            a.subresource == "eviction" and a.verb == "create"
        ):
            return ALLOW
        return NO_OPINION

    def _slice(self, node: str, a: Attributes) -> Decision:
        if a.subresource:
            return _no("cannot authorize ResourceSlice subresources")
        if a.verb == "create":
            return ALLOW
        if a.verb in ("get", "update", "patch", "delete"):
            return self._related(node, a)
        if a.verb in ("watch", "list", "deletecollection"):
            if selects(a.field_selector, "spec.nodeName", node) or selects(a.field_selector, "nodeName", node):
                return ALLOW
            return _no("can only list/watch/deletecollection resourceslices with nodeName field selector")
        return _no(
            "only the following verbs are allowed for a ResourceSlice: "
            "get, watch, list, create, update, patch, delete, deletecollection"
        )

    def _certificate_request(self, node: str, a: Attributes) -> Decision:
        if a.subresource:
            return _no("nodes may not access the subresources of PodCertificateRequests")
        if a.verb == "create":
            return ALLOW
        if a.verb in ("list", "watch"):
            if selects(a.field_selector, "spec.nodeName", node):
                return ALLOW
            return _no("can only list/watch podcertificaterequests with spec.nodeName field selector")
        return self._get(node, a)


def _node(node: str, a: Attributes) -> Decision:
    if not a.subresource:
        if a.verb in ("create", "update", "patch"):
            return ALLOW
        if a.verb in ("get", "list", "watch"):
            if a.name == node or (not a.name and selects(a.field_selector, "metadata.name", node)):
                return ALLOW
            if not a.name:
                return _no(f"node '{node}' cannot read all nodes, only its own Node object")
            return _no(f"node '{node}' cannot read '{a.name}', only its own Node object")
    elif a.subresource == "status" and a.verb in ("update", "patch"):
        return ALLOW
    return NO_OPINION


def _lease(node: str, a: Attributes) -> Decision:
    if a.verb not in ("get", "create", "update", "patch", "delete"):
        return _no("can only get, create, update, patch, or delete a node lease")
    if a.namespace != LEASES:
        return _no(f'can only access leases in the "{LEASES}" system namespace')
    if a.verb != "create" and a.name != node:
        return _no("can only access node lease with the same name as the requesting node")
    return ALLOW


def _csi_node(node: str, a: Attributes) -> Decision:
    if a.verb not in ("get", "create", "update", "patch", "delete"):
        return _no("can only get, create, update, patch, or delete a CSINode")
    if a.subresource:
        return _no("cannot authorize CSINode subresources")
    if a.verb != "create" and a.name != node:
        return _no("can only access CSINode with the same name as the requesting node")
    return ALLOW
