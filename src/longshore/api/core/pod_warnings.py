"""Warnings about pods and templates (upstream pkg/api/pod/warnings.go)."""

from __future__ import annotations

from typing import Any

from longshore.api.core.templates import Known, digest
from longshore.api.validation.names import label_value
from longshore.machinery import quantity

Object = dict[str, Any]
_QUIET = Known()
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
        found.extend(_term(term, f"{base}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[{i}]"))
    for i, term in enumerate(affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
        found.extend(
            _term(
                term.get("preference") or {}, f"{base}.preferredDuringSchedulingIgnoredDuringExecution[{i}].preference"
            )
        )
    for i, constraint in enumerate(spec.get("topologySpreadConstraints") or ()):
        if constraint.get("topologyKey") in _LABELS:
            found.append(
                f"{path}.topologySpreadConstraints[{i}].topologyKey: {constraint['topologyKey']} is {_LABELS[constraint['topologyKey']]}"
            )
    found.extend(_annotations(meta, path))
    _volumes(found, spec, path)
    _duplicate_aliases(found, spec, path)
    _pull_secrets(found, spec, path)
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for i, container in enumerate(spec.get(kind) or ()):
            _container(found, container, f"{path}.{kind}[{i}]")
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


def _term(term: Object, path: str) -> list[str]:
    found = []
    for i, expression in enumerate(term.get("matchExpressions") or ()):
        here = f"{path}.matchExpressions[{i}]"
        key = expression.get("key", "")
        if key in _LABELS:
            found.append(f"{here}.key: {key} is {_LABELS[key]}")
        for at, value in enumerate(expression.get("values") or ()):
            problems = label_value(value)
            if problems:
                found.append(f'{here}.values[{at}]: "{value}" is invalid, {"; ".join(problems)}')
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
        limit = (volume.get("emptyDir") or {}).get("sizeLimit")
        if limit and quantity.parse(limit).nanos % quantity.NANO:
            found.append(
                f'{path}.volumes[{i}].emptyDir.sizeLimit: fractional byte value "{limit}" is invalid, must be an integer'
            )
        projected = volume.get("projected")
        if projected is not None:
            _projected(found, volume, projected)


def _projected(found: list[str], volume: Object, projected: Object) -> None:
    seen: dict[str, str] = {}
    sources = projected.get("sources") or []
    for source in sources:
        if not any(
            source.get(k) is not None
            for k in (
                "secret",
                "configMap",
                "downwardAPI",
                "serviceAccountToken",
                "clusterTrustBundle",
                "podCertificate",
            )
        ):
            found.append(f'volume "{volume["name"]}" (Projected) has no sources provided')
        for kind in ("configMap", "secret", "downwardAPI"):
            value = source.get(kind)
            if value is None:
                continue
            label = {"configMap": "ConfigMap", "secret": "Secret", "downwardAPI": "DownwardAPI"}[kind]
            name = f'{label} "{value["name"]}"' if kind != "downwardAPI" else "DownwardAPI"
            for item in value.get("items") or ():
                target = item.get("path", "")
                if target in seen:
                    found.append(
                        f'volume "{volume["name"]}" (Projected): conflicting duplicate paths: "{target}" in {name} and {seen[target]}'
                    )
                seen[target] = name


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
    for part in ("limits", "requests"):
        for name in ("memory", "ephemeral-storage"):
            value = (resources.get(part) or {}).get(name)
            if value and quantity.parse(value).nanos % quantity.NANO:
                found.append(
                    f'{path}.resources.{part}[{name}]: fractional byte value "{value}" is invalid, must be an integer'
                )
    names: dict[str, str] = {}
    for i, variable in enumerate(container.get("env") or ()):
        name = variable.get("name", "")
        if name in names and variable.get("value", "").find(f"$({name})") < 0:
            found.append(
                f'{path}.env[{i}]: hides previous definition of "{name}", which may be dropped when using apply'
            )
        names[name] = ""
    seen: dict[tuple[Any, ...], int] = {}
    for i, port in enumerate(container.get("ports") or ()):
        key = (port.get("containerPort"), port.get("protocol"), port.get("hostPort", 0), port.get("hostIP", ""))
        plain = (port.get("containerPort"), port.get("protocol"))
        for other, at in seen.items():
            if other == key:
                found.append(f"{path}.ports[{i}]: duplicate port definition with {path}.ports[{at}]")
                break
        else:
            if any(other[:2] == plain and not (other[2] and key[2]) for other in seen):
                at = next(at for other, at in seen.items() if other[:2] == plain)
                found.append(f"{path}.ports[{i}]: duplicate port definition with {path}.ports[{at}]")
        seen.setdefault(key, i)


def _affinity(found: list[str], part: Object, path: str) -> None:
    for i, term in enumerate(part.get("requiredDuringSchedulingIgnoredDuringExecution") or ()):
        if term.get("labelSelector") is None:
            found.append(
                f"{path}.requiredDuringSchedulingIgnoredDuringExecution[{i}]: a null labelSelector results in matching no pod"
            )
    for i, term in enumerate(part.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
        if (term.get("podAffinityTerm") or {}).get("labelSelector") is None:
            found.append(
                f"{path}.preferredDuringSchedulingIgnoredDuringExecution[{i}].podAffinityTerm: a null labelSelector results in matching no pod"
            )
