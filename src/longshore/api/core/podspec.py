"""Defaults of pod specs, wherever one stands: in a Pod or in a template (upstream pkg/apis/core/v1/defaults.go)."""

from __future__ import annotations

import re
from typing import Any

Object = dict[str, Any]


def parse_image_tag(image: str) -> tuple[str, str]:
    """(tag, digest) of an image reference; the tag is "latest" where neither is given."""
    digest = ""
    if "@" in image:
        image, digest = image.split("@", 1)
    last = image.rsplit("/", 1)[-1]
    tag = last.split(":", 1)[1] if ":" in last else ""
    if not tag and not digest:
        tag = "latest"
    return tag, digest


_PATH = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_domain = re.compile(rf"(?:{_HOST}(?:\.{_HOST})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?").fullmatch
_remote = re.compile(
    rf"({_PATH}(?:/{_PATH})*)(?::\w[\w.-]{{0,127}})?(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{{32,}})?",
    re.ASCII,
).fullmatch


def is_reference(image: str) -> bool:
    """Whether text is an image's name, with or without a domain, a tag and a digest."""
    first, slash, rest = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        if not _domain(first):
            return False
    else:
        rest = image
    match = _remote(rest)
    return match is not None and len(match[1]) <= 255


def pull_policy(image: str) -> str:
    """The pull policy that an image gets by itself; what is no reference gets the one of a tagged image."""
    if not is_reference(image):
        return "IfNotPresent"
    return "Always" if parse_image_tag(image)[0] == "latest" else "IfNotPresent"


def default_probe(probe: Object) -> None:
    """Thresholds, period and timeout of a probe."""
    probe.setdefault("timeoutSeconds", 1)
    probe.setdefault("periodSeconds", 10)
    probe.setdefault("successThreshold", 1)
    probe.setdefault("failureThreshold", 3)
    default_handler(probe)
    grpc = probe.get("grpc")
    if grpc is not None and grpc.get("service") is None:
        grpc["service"] = ""


def default_handler(handler: Object) -> None:
    """Path and scheme of an HTTP action."""
    get = handler.get("httpGet")
    if get is not None:
        get.setdefault("path", "/")
        get.setdefault("scheme", "HTTP")


def default_field_ref(reference: Object | None) -> None:
    """The API version of a downward reference."""
    if reference is not None:
        reference.setdefault("apiVersion", "v1")


def default_container(container: Object) -> None:
    """One container, init container or ephemeral container."""
    if "imagePullPolicy" not in container:
        container["imagePullPolicy"] = pull_policy(container.get("image", ""))
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    for port in container.get("ports", ()):
        port.setdefault("protocol", "TCP")
    for variable in container.get("env", ()):
        source = variable.get("valueFrom")
        if source:
            default_field_ref(source.get("fieldRef"))
            key = source.get("fileKeyRef")
            if key is not None:
                key.setdefault("optional", False)
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(name)
        if probe is not None:
            default_probe(probe)
    lifecycle = container.get("lifecycle")
    if lifecycle:
        for name in ("postStart", "preStop"):
            if name in lifecycle:
                default_handler(lifecycle[name])


def default_volume(volume: Object) -> None:
    """One volume: an emptyDir where no source is given, modes and the like."""
    if (len(volume) == 1 and "name" in volume) or not volume:
        volume["emptyDir"] = {}
        return
    for kind in ("secret", "configMap", "downwardAPI", "projected"):
        source = volume.get(kind)
        if source is None:
            continue
        source.setdefault("defaultMode", 420)
        if kind == "downwardAPI":
            for item in source.get("items", ()):
                default_field_ref(item.get("fieldRef"))
        elif kind == "projected":
            if source.get("sources", 0) is None:
                source["sources"] = None
            for part in source.get("sources") or ():
                token = part.get("serviceAccountToken")
                if token is not None:
                    token.setdefault("expirationSeconds", 3600)
                for item in part.get("downwardAPI", {}).get("items", ()):
                    default_field_ref(item.get("fieldRef"))
                certificate = part.get("podCertificate")
                if certificate is not None:
                    certificate.setdefault("maxExpirationSeconds", 86400)
    ephemeral = volume.get("ephemeral")
    if ephemeral is not None and ephemeral.get("volumeClaimTemplate") is not None:
        ephemeral["volumeClaimTemplate"]["spec"].setdefault("volumeMode", "Filesystem")
    image = volume.get("image")
    if image is not None and "pullPolicy" not in image:
        image["pullPolicy"] = pull_policy(image.get("reference", ""))
    default_sources(volume)


def default_sources(volume: Object) -> None:
    """The sources that volumes and PersistentVolumes share."""
    if "hostPath" in volume:
        volume["hostPath"].setdefault("type", "")
    iscsi = volume.get("iscsi")
    if iscsi is not None:
        iscsi.setdefault("iscsiInterface", "default")
    rbd = volume.get("rbd")
    if rbd is not None:
        rbd.setdefault("pool", "rbd")
        rbd.setdefault("user", "admin")
        rbd.setdefault("keyring", "/etc/ceph/keyring")
    azure = volume.get("azureDisk")
    if azure is not None:
        azure.setdefault("cachingMode", "ReadWrite")
        azure.setdefault("kind", "Shared")
        azure.setdefault("fsType", "ext4")
        azure.setdefault("readOnly", False)
    scale = volume.get("scaleIO")
    if scale is not None:
        scale.setdefault("storageMode", "ThinProvisioned")
        scale.setdefault("fsType", "xfs")


def all_containers(spec: Object) -> list[Object]:
    """Init containers, containers and ephemeral containers, in this order."""
    return [
        *(spec.get("initContainers") or ()),
        *(spec.get("containers") or ()),
        *(spec.get("ephemeralContainers") or ()),
    ]


def default_pod_spec(spec: Object) -> None:
    """A pod spec, in place."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("schedulerName", "default-scheduler")
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for container in all_containers(spec):
        default_container(container)
    for volume in spec.get("volumes", ()):
        default_volume(volume)


def default_host_ports(spec: Object) -> None:
    """A pod in the host's network offers its container ports there."""
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        for port in container.get("ports", ()):
            if not port.get("hostPort"):
                port["hostPort"] = port["containerPort"]


def default_requests(spec: Object) -> None:
    """A limit without a request is the request as well."""
    for container in [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]:
        resources = container["resources"]
        limits = resources.get("limits")
        if limits:
            requests = resources.setdefault("requests", {})
            for name, amount in limits.items():
                requests.setdefault(name, amount)
    resources = spec.get("resources")
    if resources and resources.get("limits"):
        requests = resources.setdefault("requests", {})
        for name, amount in resources["limits"].items():
            requests.setdefault(name, amount)


def default_template(template: Object) -> None:
    """A pod template."""
    default_pod_spec(template["spec"])
