"""Warnings about pods and templates (upstream pkg/api/pod/warnings.go)."""

from __future__ import annotations

from typing import Any

from longshore.api.core.templates import Known, digest
from longshore.api.validation.errors import quote
from longshore.api.validation.names import dns1123_label, label_value
from longshore.machinery import quantity

Object = dict[str, Any]
_QUIET = Known()
_NO_SELECTOR = "a null labelSelector results in matching no pod"
_LABELS = {
    "beta.kubernetes.io/arch": 'deprecated since v1.14; use "kubernetes.io/arch" instead',
    "beta.kubernetes.io/os": 'deprecated since v1.14; use "kubernetes.io/os" instead',
    "failure-domain.beta.kubernetes.io/region": 'deprecated since v1.17; use "topology.kubernetes.io/region" instead',
    "failure-domain.beta.kubernetes.io/zone": 'deprecated since v1.17; use "topology.kubernetes.io/zone" instead',
    "beta.kubernetes.io/instance-type": 'deprecated since v1.17; use "node.kubernetes.io/instance-type" instead',
}
_ANNOTATIONS = {
    "scheduler.alpha.kubernetes.io/critical-pod": 'non-functional in v1.16+; use the "priorityClassName" field instead',
    "security.alpha.kubernetes.io/sysctls": 'non-functional in v1.11+; use the "sysctls" field instead',
    "security.alpha.kubernetes.io/unsafe-sysctls": 'non-functional in v1.11+; use the "sysctls" field instead',
}


def pod_warnings(spec: Object, meta: Object, path: str, old: Object | None = None) -> list[str]:
    """Warnings about a pod's spec at path with the metadata of the pod or template."""
    known = digest(spec)
    if known in _QUIET:
        return _annotations(meta, path) if meta.get("annotations") else []
    found: list[str] = []
    for key in spec.get("nodeSelector") or ():
        if key in _LABELS:
            found.append(f"{path}.nodeSelector[{key}]: {_LABELS[key]}")
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or []
    base = f"{path}.affinity.nodeAffinity"
    for i, term in enumerate(terms):
        where = f"{base}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[{i}]"
        found.extend(_term(term, where, values=False))
    for i, term in enumerate(affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
        found.extend(
            _term(
                term.get("preference") or {},
                f"{base}.preferredDuringSchedulingIgnoredDuringExecution[{i}].preference",
                values=True,
            )
        )
    for i, constraint in enumerate(spec.get("topologySpreadConstraints") or ()):
        if constraint.get("topologyKey") in _LABELS:
            found.append(
                f"{path}.topologySpreadConstraints[{i}].topologyKey: {constraint['topologyKey']} is {_LABELS[constraint['topologyKey']]}"
            )
        if constraint.get("labelSelector") is None:
            found.append(f"{path}.topologySpreadConstraints[{i}].labelSelector: {_NO_SELECTOR}")
    found.extend(_annotations(meta, path))
    _volumes(found, spec, path)
    for volume in spec.get("volumes") or ():
        _overlaps(found, volume)
    _duplicate_aliases(found, spec, path)
    _pull_secrets(found, spec, path)
    _fractions(found, spec.get("overhead") or {}, f"{path}.overhead")
    containers = [
        (container, f"{path}.{kind}[{i}]")
        for kind in ("initContainers", "containers", "ephemeralContainers")
        for i, container in enumerate(spec.get(kind) or ())
    ]
    for container, here in containers:
        _container(found, container, here)
    _ports(found, containers)
    if (spec.get("terminationGracePeriodSeconds") or 0) < 0:
        found.append(
            f"{path}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        )
    for kind in ("podAffinity", "podAntiAffinity"):
        _affinity(found, (spec.get("affinity") or {}).get(kind) or {}, f"{path}.affinity.{kind}")
    if not found:
        _QUIET.add(known)
    return found


def _annotations(meta: Object, path: str) -> list[str]:
    found: list[str] = []
    annotations = meta.get("annotations") or {}
    meta_path = path.removesuffix("spec") + "metadata"
    for key, text in _ANNOTATIONS.items():
        if key in annotations:
            found.append(f"{meta_path}.annotations[{key}]: {text}")
    for key in sorted(annotations):
        if key == "seccomp.security.alpha.kubernetes.io/pod" or key.startswith(
            "container.seccomp.security.alpha.kubernetes.io/"
        ):
            found.append(
                f'{meta_path}.annotations[{key}]: non-functional in v1.27+; use the "seccompProfile" field instead'
            )
        elif key.startswith("container.apparmor.security.beta.kubernetes.io/"):
            found.append(
                f'{meta_path}.annotations[{key}]: deprecated since v1.30; use the "appArmorProfile" field instead'
            )
    return found


def _term(term: Object, path: str, *, values: bool) -> list[str]:
    found = []
    for i, expression in enumerate(term.get("matchExpressions") or ()):
        here = f"{path}.matchExpressions[{i}]"
        key = expression.get("key", "")
        if key in _LABELS:
            found.append(f"{here}.key: {key} is {_LABELS[key]}")
        for at, value in enumerate(expression.get("values") or ()) if values else ():
            for problem in label_value(value):
                found.append(f"{here}.values[{at}]: {value} is invalid, {problem}")
    return found


def _volumes(found: list[str], spec: Object, path: str) -> None:
    gone = {
        "photonPersistentDisk": "deprecated in v1.11, non-functional in v1.16+",
        "gitRepo": "deprecated in v1.11, and disabled by default in v1.33+",
        "scaleIO": "deprecated in v1.16, non-functional in v1.22+",
        "flocker": "deprecated in v1.22, non-functional in v1.25+",
        "storageos": "deprecated in v1.22, non-functional in v1.25+",
        "quobyte": "deprecated in v1.22, non-functional in v1.25+",
        "glusterfs": "deprecated in v1.25, non-functional in v1.26+",
        "cephfs": "deprecated in v1.28, non-functional in v1.31+",
        "rbd": "deprecated in v1.28, non-functional in v1.31+",
    }
    for i, volume in enumerate(spec.get("volumes") or ()):
        for kind, text in gone.items():
            if volume.get(kind) is not None:
                found.append(f"{path}.volumes[{i}].{'storageOS' if kind == 'storageos' else kind}: {text}")
        template = (volume.get("ephemeral") or {}).get("volumeClaimTemplate")
        if template is not None:
            where = f"{path}.volumes[{i}].ephemeral.volumeClaimTemplate.spec"
            found.extend(claim_warnings(template.get("spec") or {}, where))


def name_warnings(obj: Object, use: str = "Pod names and hostnames") -> list[str]:
    """The warning about a name that hosts get, or a part of their names, though no host may have it."""
    problems = dns1123_label(obj["metadata"].get("name", ""))
    if not problems:
        return []
    return [
        f"metadata.name: this is used in {use}, which can result in surprising behavior;"
        f" a DNS label is recommended: [{' '.join(problems)}]"
    ]


def claim_warnings(spec: Object, path: str) -> list[str]:
    """Warnings about the spec of a claim, or of a template of claims."""
    found: list[str] = []
    for part in ("requests", "limits"):
        _fractions(found, (spec.get("resources") or {}).get(part) or {}, f"{path}.resources.{part}", ("storage",))
    return found


def _fractions(
    found: list[str], amounts: Object, path: str, names: tuple[str, ...] = ("memory", "ephemeral-storage")
) -> None:
    for name in names:
        value = amounts.get(name)
        if value and quantity.parse(value).nanos % quantity.NANO:
            found.append(f'{path}[{name}]: fractional byte value "{value}" is invalid, must be an integer')


def _overlaps(found: list[str], volume: Object) -> None:
    """Files of one volume that would stand at the same place, or one within the other."""
    name = volume.get("name", "")
    for kind, label, key in (
        ("configMap", "ConfigMap", "name"),
        ("secret", "Secret", "secretName"),
        ("downwardAPI", "", ""),
    ):
        source = volume.get(kind)
        if source is not None and source.get("items"):
            what = f"{label} {quote(source.get(key, ''))}" if label else "DownwardAPI"
            _collisions(found, name, what, [(item.get("path", ""), "") for item in source["items"]])
    if volume.get("projected") is None:
        return
    files: list[tuple[str, str]] = []
    for source in volume["projected"].get("sources") or ():
        if not source:
            found.append(f"volume {quote(name)} (Projected) has no sources provided")
        elif (source.get("configMap") or {}).get("items"):
            what = f"ConfigMap {quote(source['configMap'].get('name', ''))}"
            files.extend((item.get("path", ""), what) for item in source["configMap"]["items"])
        elif (source.get("secret") or {}).get("items"):
            what = f"Secret {quote(source['secret'].get('name', ''))}"
            files.extend((item.get("path", ""), what) for item in source["secret"]["items"])
        elif (source.get("downwardAPI") or {}).get("items"):
            files.extend((item.get("path", ""), "DownwardAPI") for item in source["downwardAPI"]["items"])
        elif source.get("serviceAccountToken") is not None:
            files.append((source["serviceAccountToken"].get("path", ""), "ServiceAccountToken"))
        elif source.get("clusterTrustBundle") is not None:
            bundle = source["clusterTrustBundle"]
            label = bundle["name"] if bundle.get("name") is not None else bundle.get("signerName", "")
            files.append((bundle.get("path", ""), f"ClusterTrustBundle {quote(label)}"))
        elif source.get("podCertificate") is not None:
            for field, what in (
                ("certificateChainPath", "chain"),
                ("keyPath", "key"),
                ("credentialBundlePath", "credential bundle"),
            ):
                if source["podCertificate"].get(field):
                    files.append((source["podCertificate"][field], f"PodCertificate {what}"))
    _collisions(found, name, "Projected", files)


def _collisions(found: list[str], volume: str, what: str, files: list[tuple[str, str]]) -> None:
    def shown(file: tuple[str, str]) -> str:
        return quote(file[0]) + (f" ({file[1]})" if file[1] else "")

    seen: list[tuple[str, str]] = []
    for path, source in files:
        file = (path.rstrip("/"), source)
        for other in seen:
            if (
                file[0]
                and other[0]
                and ((other[0] + "/").startswith(file[0] + "/") or (file[0] + "/").startswith(other[0] + "/"))
            ):
                found.append(f"volume {quote(volume)} ({what}): overlapping paths: {shown(file)} with {shown(other)}")
        seen.append(file)


def _duplicate_aliases(found: list[str], spec: Object, path: str) -> None:
    seen: dict[str, int] = {}
    for i, alias in enumerate(spec.get("hostAliases") or ()):
        address = alias.get("ip", "")
        if address in seen:
            found.append(f'{path}.hostAliases[{i}].ip: duplicate ip "{address}"')
        seen[address] = i


def _pull_secrets(found: list[str], spec: Object, path: str) -> None:
    names: list[str] = [s.get("name", "") for s in spec.get("imagePullSecrets") or ()]
    for i, name in enumerate(names):
        if name in names[:i]:
            found.append(f'{path}.imagePullSecrets[{i}].name: duplicate name "{name}"')
    for i, name in enumerate(names):
        if not name:
            found.append(f'{path}.imagePullSecrets[{i}].name: invalid empty name ""')


def _container(found: list[str], container: Object, path: str) -> None:
    resources = container.get("resources") or {}
    for name in ("memory", "ephemeral-storage"):
        for part in ("limits", "requests"):
            _fractions(found, resources.get(part) or {}, f"{path}.resources.{part}", (name,))
    names: dict[str, str] = {}
    for i, variable in enumerate(container.get("env") or ()):
        name = variable.get("name", "")
        value, reference = variable.get("value", ""), f"$({name})"
        if name in names and (variable.get("valueFrom") is not None or value == reference or reference not in value):
            found.append(
                f'{path}.env[{i}]: hides previous definition of "{name}", which may be dropped when using apply'
            )
        names[name] = ""


def _ports(found: list[str], containers: list[tuple[Object, str]]) -> None:
    """Ports that several definitions, also of different containers, claim, and names that several have."""
    known: dict[tuple[int, str], list[tuple[Object, str]]] = {}
    names: dict[str, str] = {}
    listed = [
        (port, f"{here}.ports[{i}]")
        for container, here in containers
        for i, port in enumerate(container.get("ports") or ())
    ]
    for port, here in listed:
        address, number = port.get("hostIP", ""), port.get("hostPort", 0)
        if address and not number:
            shown = (
                f"{{Name:{port.get('name', '')} HostPort:0 ContainerPort:{port.get('containerPort', 0)}"
                f" Protocol:{port.get('protocol', '')} HostIP:{address}}}"
            )
            found.append(f"{here}: hostIP set without hostPort: {shown}")
        others = known.setdefault((port.get("containerPort", 0), port.get("protocol", "")), [])
        for other, there in others:
            other_address, other_number = other.get("hostIP", ""), other.get("hostPort", 0)
            if (address, number) == (other_address, other_number):
                found.append(f"{here}: duplicate port definition with {there}")
            elif not number or not other_number:
                found.append(f"{here}: overlapping port definition with {there}")
            elif number == other_number and bool(address) != bool(other_address):
                found.append(f"{here}: dangerously ambiguous port definition with {there}")
        others.append((port, here))
    for port, here in listed:
        name = port.get("name", "")
        if name and name in names:
            there = names[name]
            found.append(
                f"{here}: duplicate port name {quote(name)} with {there}, services and probes that select ports by name will use {there}"
            )
        elif name:
            names[name] = here


def _affinity(found: list[str], part: Object, path: str) -> None:
    for i, term in enumerate(part.get("requiredDuringSchedulingIgnoredDuringExecution") or ()):
        if term.get("labelSelector") is None:
            found.append(f"{path}.requiredDuringSchedulingIgnoredDuringExecution[{i}].labelSelector: {_NO_SELECTOR}")
    for i, term in enumerate(part.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
        if (term.get("podAffinityTerm") or {}).get("labelSelector") is None:
            found.append(
                f"{path}.preferredDuringSchedulingIgnoredDuringExecution[{i}].podAffinityTerm.labelSelector: {_NO_SELECTOR}"
            )
