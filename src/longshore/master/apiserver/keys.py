"""Where objects lie in the store: the keys that upstream's API server uses, so that etcdctl shows what people know."""

from __future__ import annotations

ROOT = "/registry/"

_OWN = {
    ("", "services"): "services/specs",
    ("", "endpoints"): "services/endpoints",
    ("", "nodes"): "minions",
    ("", "replicationcontrollers"): "controllers",
    ("networking.k8s.io", "ingresses"): "ingress",
    ("events.k8s.io", "events"): "events",
    ("apiextensions.k8s.io", "customresourcedefinitions"): "apiextensions.k8s.io/customresourcedefinitions",
    ("apiregistration.k8s.io", "apiservices"): "apiregistration.k8s.io/apiservices",
}


def folder(group: str, plural: str, custom: bool = False) -> str:
    """The part of the key between /registry/ and the object's namespace or name."""
    if custom:
        return f"{group}/{plural}"
    return _OWN.get((group, plural), plural)


def path(namespace: str, name: str) -> str:
    """The part of the key that names the object within its folder."""
    return f"{namespace}/{name}" if namespace else name
