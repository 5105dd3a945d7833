"""What a cluster holds from its first start: the DNS Service, the usage API, a storage class, the rights of our own parts.

Applied by `up` with server-side apply, so that what a person changed stays theirs.
"""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

import orjson

from longshore.cli.cluster import ClusterConfig

Object = dict[str, Any]
RBAC = "rbac.authorization.k8s.io"


def manifests(config: ClusterConfig, ca: bytes) -> list[Object]:
    """The objects, in the order in which they are applied. ca: the cluster's CA certificate, PEM."""
    from longshore.master.controllers.localpath import STORAGE_CLASS

    return [
        *_dns(config),
        *_joining(config, ca),
        *_policies(),
        *_ingress(),
        *_logs(),
        *_metrics(config, ca),
        STORAGE_CLASS,
    ]


def rights(config: ClusterConfig) -> list[Object]:
    """Roles and bindings alone: what the API server makes before it answers anybody."""
    return [obj for obj in manifests(config, b"") if obj["apiVersion"].startswith(RBAC)]


def _cluster_role(name: str, rules: list[Object], user: str = "", labels: dict[str, str] | None = None) -> list[Object]:
    """A ClusterRole, and its binding to a user where one is named."""
    metadata: Object = {"name": name, **({"labels": labels} if labels else {})}
    found: list[Object] = [
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules},
    ]
    if user:
        found.append(
            {
                "apiVersion": f"{RBAC}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": name},
                "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
                "subjects": [{"apiGroup": RBAC, "kind": "User", "name": user}],
            }
        )
    return found


def _dns(config: ClusterConfig) -> list[Object]:
    dns_labels = {
        "k8s-app": "kube-dns",
        "kubernetes.io/name": "CoreDNS",
        "kubernetes.io/cluster-service": "true",
        # Each node answers this Service itself: no kube-proxy is to touch it.
        "service.kubernetes.io/service-proxy-name": "longshore-dns",
    }
    return [
        *_cluster_role(
            "system:coredns",
            [
                {
                    "apiGroups": [""],
                    "resources": ["endpoints", "services", "pods", "namespaces"],
                    "verbs": ["list", "watch"],
                },
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
            user="system:coredns",
        ),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": dns_labels},
            "spec": {
                "clusterIP": config.cluster_dns,
                "clusterIPs": config.dns_addresses,
                "ipFamilies": [f"IPv{family}" for family in config.families],
                "ipFamilyPolicy": "RequireDualStack" if len(config.families) > 1 else "SingleStack",
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        },
    ]


def _joining(config: ClusterConfig, ca: bytes) -> list[Object]:
    """What machines that join may see and have: the public cluster-info, the cluster's facts, certificates of a node."""
    from longshore.cli.joining import FACTS, GROUP, INFO, INFO_NAMESPACE

    signing = "system:certificates.k8s.io:certificatesigningrequests"
    asked = "certificatesigningrequests"
    facts = asdict(config)
    told = {name: facts[name] for name in (*SHARED_FACTS, "host_ip", "host_also", "bridge")}
    told["pool"] = config.load_balancer_pool
    return [
        *_bound("longshore:kubelet-bootstrap", "system:node-bootstrapper", [GROUP]),
        *_bound("longshore:node-autoapprove-bootstrap", f"{signing}:nodeclient", [GROUP]),
        *_bound("longshore:node-autoapprove-certificate-rotation", f"{signing}:selfnodeclient", ["system:nodes"]),
        *_cluster_role(
            "longshore:node-certificates",
            [
                {
                    "apiGroups": ["certificates.k8s.io"],
                    "resources": [f"{asked}/nodeserving", f"{asked}/nodeparts"],
                    "verbs": ["create"],
                }
            ],
        ),
        *_bound("longshore:node-certificates", "longshore:node-certificates", ["system:nodes"]),
        *_cluster_role(
            "longshore:node-ingress",
            [{"apiGroups": ["certificates.k8s.io"], "resources": [f"{asked}/nodeingress"], "verbs": ["create"]}],
        ),
        *_bound("longshore:node-ingress", "longshore:node-ingress", ["system:nodes"]),
        *_cluster_role("longshore:get-nodes", [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]),
        *_bound("longshore:get-nodes", "longshore:get-nodes", [GROUP]),
        *_cluster_role("longshore:leave", [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["delete"]}]),
        *_bound("longshore:leave", "longshore:leave", ["system:nodes"]),
        *_cluster_role(
            "longshore:node-certificate-approver",
            [
                {
                    "apiGroups": ["certificates.k8s.io"],
                    "resources": ["signers"],
                    "resourceNames": ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client"],
                    "verbs": ["approve"],
                },
                {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]},
            ],
        ),
        _binding(
            "longshore:node-certificate-approver",
            "longshore:node-certificate-approver",
            [{"kind": "ServiceAccount", "name": "certificate-controller", "namespace": "kube-system"}],
        ),
        *_readable(
            "kube-system", FACTS, [{"apiGroup": RBAC, "kind": "Group", "name": g} for g in (GROUP, "system:nodes")]
        ),
        *_readable(INFO_NAMESPACE, INFO, [{"apiGroup": RBAC, "kind": "User", "name": "system:anonymous"}]),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": FACTS, "namespace": "kube-system"},
            "data": {"cluster": orjson.dumps(told, option=orjson.OPT_SORT_KEYS).decode()},
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": INFO, "namespace": INFO_NAMESPACE},
            "data": {"kubeconfig": _cluster_info(config, ca)},
        },
    ]


SHARED_FACTS = (
    *("pod_cidr", "service_cidr", "node_cidr", "cluster_domain"),
    *("ingress_http_port", "ingress_https_port"),
)


def _cluster_info(config: ClusterConfig, ca: bytes) -> str:
    """A kubeconfig without a user: where the API server is and what CA it has."""
    data = base64.b64encode(ca).decode()
    return (
        "apiVersion: v1\nclusters:\n- cluster:\n"
        f"    certificate-authority-data: {data}\n    server: {config.server}\n"
        '  name: ""\ncontexts: null\ncurrent-context: ""\nkind: Config\npreferences: {}\nusers: null\n'
    )


def _binding(name: str, role: str, subjects: list[Object], namespace: str = "") -> Object:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
        "roleRef": {"apiGroup": RBAC, "kind": "Role" if namespace else "ClusterRole", "name": role},
        "subjects": subjects,
    }


def _bound(name: str, role: str, groups: list[str]) -> list[Object]:
    """A ClusterRole for groups."""
    return [_binding(name, role, [{"apiGroup": RBAC, "kind": "Group", "name": group} for group in groups])]


def _readable(namespace: str, config_map: str, subjects: list[Object]) -> list[Object]:
    """One ConfigMap that these may read."""
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [config_map], "verbs": ["get"]}
    name = f"longshore:{config_map}"
    role = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "Role",
        "metadata": {"name": name, "namespace": namespace},
        "rules": [rule],
    }
    return [role, _binding(name, name, subjects, namespace)]


def _policies() -> list[Object]:
    """What a node must see to enforce NetworkPolicies (its proxy's identity does both)."""
    return _cluster_role(
        "longshore:network-policies",
        [
            {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list", "watch"]},
            {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["list", "watch"]},
        ],
        user="system:kube-proxy",
    )


def _ingress() -> list[Object]:
    """The class of our own Ingresses, the default one, and what the nodes that serve it may see."""
    network = "networking.k8s.io"
    read = ["list", "watch"]
    return [
        *_cluster_role(
            "longshore:ingress",
            [
                {"apiGroups": [network], "resources": ["ingresses", "ingressclasses"], "verbs": read},
                {"apiGroups": [network], "resources": ["ingresses/status"], "verbs": ["patch"]},
                {"apiGroups": [""], "resources": ["secrets"], "verbs": read},
            ],
            user="longshore:ingress",
        ),
        {
            "apiVersion": f"{network}/v1",
            "kind": "IngressClass",
            "metadata": {
                "name": "longshore",
                "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"},
            },
            "spec": {"controller": "longshore.io/ingress"},
        },
    ]


def _logs() -> list[Object]:
    """What the nodes' log parts may see: pods and namespaces for their labels, Events for a stream, and who may read what."""
    read = ["get", "list", "watch"]
    return _cluster_role(
        "longshore:logs",
        [
            {"apiGroups": [""], "resources": ["pods", "namespaces", "events"], "verbs": read},
            {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
            {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
        ],
        user="longshore:logs",
    )


def _metrics(config: ClusterConfig, ca: bytes) -> list[Object]:
    """The usage API: its rights, and where the API server finds it (the manager serves it at the host's address)."""
    from longshore.master.metrics.server import DEFAULT_PORT

    name, namespace = "metrics-server", "kube-system"
    service = {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "longshore"}
    figures = {"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}
    aggregated = {f"{RBAC}/aggregate-to-{role}": "true" for role in ("view", "edit", "admin")}
    return [
        *_cluster_role(
            "system:metrics-server",
            [
                {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]},
            ],
            user="system:metrics-server",
        ),
        *_cluster_role("system:aggregated-metrics-reader", [figures], labels=aggregated),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "labels": {"k8s-app": name}},
            "spec": {"ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": DEFAULT_PORT}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{name}-manager", "namespace": namespace, "labels": service},
            "addressType": f"IPv{config.families[0]}",
            "endpoints": [{"addresses": [config.host_ip], "conditions": {"ready": True}}],
            "ports": [{"name": "https", "port": DEFAULT_PORT, "protocol": "TCP"}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.metrics.k8s.io", "labels": {"k8s-app": name}},
            "spec": {
                "group": "metrics.k8s.io",
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "caBundle": base64.b64encode(ca).decode(),
                "service": {"name": name, "namespace": namespace, "port": 443},
            },
        },
    ]
