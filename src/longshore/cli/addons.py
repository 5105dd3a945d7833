"""What a cluster holds from its first start: the DNS Service, the rights of our own node parts, a StorageClass.

Applied by `up` with server-side apply, so that what a person changed stays theirs.
"""

from __future__ import annotations

from typing import Any

from longshore.cli.cluster import ClusterConfig

Object = dict[str, Any]


def manifests(config: ClusterConfig) -> list[Object]:
    """The objects, in the order in which they are applied."""
    dns_labels = {
        "k8s-app": "kube-dns",
        "kubernetes.io/name": "CoreDNS",
        "kubernetes.io/cluster-service": "true",
        # Each node answers this Service itself: no kube-proxy is to touch it.
        "service.kubernetes.io/service-proxy-name": "longshore-dns",
    }
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "system:coredns"},
            "rules": [
                {
                    "apiGroups": [""],
                    "resources": ["endpoints", "services", "pods", "namespaces"],
                    "verbs": ["list", "watch"],
                },
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "system:coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}],
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": dns_labels},
            "spec": {
                "clusterIP": config.cluster_dns,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "local-path",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "longshore.dev/local-path",
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete",
        },
    ]
