"""Checks of changes to pods: what may change after creation (upstream ValidatePodUpdate and relatives)."""

from __future__ import annotations

from typing import Any

from longshore.api.core import pod_validation
from longshore.api.core.qos import qos_class
from longshore.api.core.volume_validation import pod_volumes
from longshore.api.gotypes import indented_diff
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import in_range, ip

Object = dict[str, Any]
_SPEC = "io.k8s.api.core.v1.PodSpec"
_MUTABLE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,"
    "`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
_RESIZABLE = "only cpu and memory resources are mutable"


def validate_update(new: Object, old: Object, errors: Errors) -> None:
    """An update of a pod."""
    pod_validation._annotations(new, errors)
    spec, before = new["spec"], old["spec"]
    pod_validation.validate_spec(spec, errors, "spec", update=True, pod=new["metadata"].get("name", ""))
    pod_validation._only_pods(new, errors)
    if _mirror(new) != _mirror(old):
        errors.forbidden(
            "metadata.annotations[kubernetes.io/config.mirror]", "may not remove or update mirror pod annotation"
        )
    if spec.get("schedulingGates") and spec.get("nodeName") and not before.get("nodeName"):
        errors.forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared")
    if _container_counts(spec, before, errors):
        return
    _deadline(spec, before, errors)
    _tolerations(spec.get("tolerations") or [], before.get("tolerations") or [], errors)
    _gates(spec, before, errors)
    munged = _munge(spec, before, errors)
    if munged == before:
        return
    errors.forbidden("spec", f"{_MUTABLE}\n{indented_diff(_SPEC, before, munged)}")


def _mirror(obj: Object) -> Any:
    return (obj["metadata"].get("annotations") or {}).get("kubernetes.io/config.mirror")


def _gates(spec: Object, before: Object, errors: Errors) -> None:
    known = {g.get("name") for g in before.get("schedulingGates") or ()}
    for index, gate in enumerate(spec.get("schedulingGates") or ()):
        if gate.get("name") not in known:
            errors.forbidden(
                f"spec.schedulingGates[{index}].name",
                f"only deletion is allowed, but found new scheduling gate '{gate.get('name', '')}'",
            )


def _container_counts(spec: Object, before: Object, errors: Errors) -> bool:
    for kind in ("containers", "initContainers"):
        if len(spec.get(kind) or ()) != len(before.get(kind) or ()):
            errors.forbidden(f"spec.{kind}", "pod updates may not add or remove containers")
            return True
        else:
            for index, container in enumerate(spec.get(kind) or ()):
                image = container.get("image", "")
                if not image:
                    errors.required(f"spec.{kind}[{index}].image")
                if image != image.strip() and image != before[kind][index].get("image", ""):
                    errors.invalid(f"spec.{kind}[{index}].image", image, "must not have leading or trailing whitespace")
    return False


def _deadline(spec: Object, before: Object, errors: Errors) -> None:
    new, old = spec.get("activeDeadlineSeconds"), before.get("activeDeadlineSeconds")
    if new is not None:
        if not 0 <= new <= 2147483647:
            errors.invalid("spec.activeDeadlineSeconds", new, in_range(0, 2147483647))
        elif old is not None and old < new:
            errors.invalid("spec.activeDeadlineSeconds", new, "must be less than or equal to previous value")
    elif old is not None:
        errors.invalid("spec.activeDeadlineSeconds", None, "must not update from a positive integer to nil value")


def _tolerations(new: list[Object], old: list[Object], errors: Errors) -> None:
    for toleration in old:
        rest = {k: v for k, v in toleration.items() if k != "tolerationSeconds"}
        if not any({k: v for k, v in t.items() if k != "tolerationSeconds"} == rest for t in new):
            errors.forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")
            return


def _munge(spec: Object, before: Object, errors: Errors) -> Object:
    """The new spec with what may change put back, so that what remains different is forbidden."""
    munged = {**spec}
    for kind in ("containers", "initContainers"):
        if spec.get(kind):
            munged[kind] = [{**c, "image": before[kind][i].get("image", "")} for i, c in enumerate(spec[kind])]
            for container, was in zip(munged[kind], before[kind], strict=True):
                if not was.get("image"):
                    container.pop("image", None)
    _restore(munged, before, "activeDeadlineSeconds")
    _restore(munged, before, "schedulingGates")
    _restore(munged, before, "tolerations")
    if before.get("terminationGracePeriodSeconds", 0) < 0 and spec.get("terminationGracePeriodSeconds") == 1:
        _restore(munged, before, "terminationGracePeriodSeconds")
    if before.get("schedulingGates"):
        selector, old = spec.get("nodeSelector") or {}, before.get("nodeSelector") or {}
        if selector != old:
            if any(selector.get(k) != v for k, v in old.items()):
                errors.invalid(
                    "spec.nodeSelector",
                    selector or None,
                    "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
                )
            _restore(munged, before, "nodeSelector")
        _gated_affinity(spec, before, munged, errors)
    # Accepted without being part of the comparison: upstream copies the ones that its own subresources change.
    _restore(munged, before, "ephemeralContainers")
    return munged


def _gated_affinity(spec: Object, before: Object, munged: Object, errors: Errors) -> None:
    old: Any = (before.get("affinity") or {}).get("nodeAffinity")
    new: Any = (spec.get("affinity") or {}).get("nodeAffinity")
    if old == new:
        return
    path = "spec.affinity.nodeAffinity"
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    if (old or {}).get(required):
        terms_old = old[required].get("nodeSelectorTerms") or []
        terms_new = ((new or {}).get(required) or {}).get("nodeSelectorTerms") or []
        if len(terms_old) != len(terms_new):
            errors.invalid(
                f"{path}.{required}.nodeSelectorTerms",
                terms_new or None,
                "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
            )
        for index, (term, was) in enumerate(zip(terms_new, terms_old, strict=False)):
            for field in ("matchExpressions", "matchFields"):
                listed, had = term.get(field) or [], was.get(field) or []
                if listed[: len(had)] != had:
                    errors.invalid(
                        f"{path}.{required}.nodeSelectorTerms[{index}]",
                        term,
                        "only additions are allowed (no mutations or deletions)",
                    )
                    break
    affinity = {**(munged.get("affinity") or {})}
    if old is None:
        affinity.pop("nodeAffinity", None)
    else:
        affinity["nodeAffinity"] = old
    if affinity or before.get("affinity") is not None:
        munged["affinity"] = affinity
    else:
        munged.pop("affinity", None)


def _restore(target: Object, source: Object, key: str) -> None:
    if key in source:
        target[key] = source[key]
    else:
        target.pop(key, None)


def validate_status(new: Object, old: Object, errors: Errors) -> None:
    """An update of a pod's status."""
    status, before = new["status"], old.get("status") or {}
    spec = new["spec"]
    node = status.get("nominatedNodeName", "")
    if node != before.get("nominatedNodeName", "") and node:
        from longshore.api.validation.names import dns1123_subdomain

        for message in dns1123_subdomain(node):
            errors.invalid("status.nominatedNodeName", node, message)
    if spec.get("nodeName", "") != old["spec"].get("nodeName", ""):
        errors.forbidden("status.nodeName", "may not be changed directly")
    for index, address in enumerate(status.get("podIPs") or ()):
        for message in ip(address.get("ip", "")):
            errors.invalid(f"status.podIPs[{index}]", address.get("ip", ""), message)
    for kind, listed in (("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")):
        if spec.get("restartPolicy") in (None, "Always") and kind == "containerStatuses":
            continue
        old_states = {s.get("name"): s for s in before.get(kind) or ()}
        policy = {c.get("name"): c.get("restartPolicy") for c in spec.get(listed) or ()}
        for index, state in enumerate(status.get(kind) or ()):
            was = (old_states.get(state.get("name")) or {}).get("state") or {}
            ended = was.get("terminated")
            if ended is None or policy.get(state.get("name")) == "Always":
                continue
            if ended.get("exitCode", 0) != 0 and spec.get("restartPolicy") == "OnFailure":
                continue
            if spec.get("restartPolicy") == "Always":
                continue
            if (state.get("state") or {}).get("terminated") is None:
                errors.forbidden(
                    f"status.{kind}[{index}].state",
                    "may not be transitioned to non-terminated state",
                )
    qos = status.get("qosClass")
    if before.get("qosClass") and qos != before["qosClass"]:
        errors.invalid("status.qosClass", qos, "field is immutable")


def validate_ephemeral(new: Object, old: Object, errors: Errors) -> None:
    """An update of the ephemeralcontainers subresource: containers may only be added."""
    spec, before = new["spec"], old["spec"]
    volumes = pod_volumes(Errors(), spec.get("volumes") or [], "spec.volumes")
    if spec.get("ephemeralContainers"):
        pod_validation.ephemeral_containers(errors, spec, volumes, [], "spec")
    if (old["metadata"].get("annotations") or {}).get("kubernetes.io/config.mirror"):
        errors.forbidden("", "static pods do not support ephemeral containers")
    listed = {c.get("name"): c for c in spec.get("ephemeralContainers") or ()}
    for index, container in enumerate(before.get("ephemeralContainers") or ()):
        name = container.get("name")
        if name not in listed:
            errors.forbidden(
                f"spec.ephemeralContainers[{index}]", f'existing ephemeral containers "{name}" may not be removed\n'
            )
        elif listed[name] != container:
            at = list(listed).index(name)
            difference = indented_diff("io.k8s.api.core.v1.EphemeralContainer", container, listed[name])
            errors.forbidden(
                f"spec.ephemeralContainers[{at}]",
                f'existing ephemeral containers "{name}" may not be changed\n{difference}',
            )


def validate_resize(new: Object, old: Object, errors: Errors) -> None:
    """An update of the resize subresource: only cpu and memory of containers may change."""
    spec, before = new["spec"], old["spec"]
    pod_validation.validate_spec(spec, errors, "spec", update=True, pod=new["metadata"].get("name", ""))
    if qos_class(spec) != qos_class(before):
        shown = (old.get("status") or {}).get("qosClass") or qos_class(before)
        errors.invalid("spec", shown, "Pod QOS Class may not change as a result of resizing")
    if ((spec.get("os") or {}).get("name")) == "windows":
        errors.forbidden("spec", "windows pods cannot be resized")
    munged = {**spec}
    for kind in ("containers", "initContainers"):
        if len(spec.get(kind) or ()) != len(before.get(kind) or ()):
            errors.forbidden(f"spec.{kind}", "containers may not be added or removed on resize")
            return
        if spec.get(kind):
            munged[kind] = [_without_cpu_memory(c, was) for c, was in zip(spec[kind], before[kind], strict=True)]
            for index, (container, was) in enumerate(zip(spec[kind], before[kind], strict=True)):
                for part in ("limits", "requests"):
                    had, has = (c["resources"].get(part) or {} for c in (was, container))
                    if any(name in had and name not in has for name in ("cpu", "memory")):
                        errors.forbidden(f"spec.{kind}[{index}].resources.{part}", f"resource {part} cannot be removed")
    if munged != before:
        errors.forbidden("spec", _RESIZABLE)


def _without_cpu_memory(container: Object, was: Object) -> Object:
    out = {**container, "resources": {**container["resources"]}}
    for part in ("limits", "requests"):
        amounts, old = dict(container["resources"].get(part) or {}), was["resources"].get(part) or {}
        for name in ("cpu", "memory"):
            if name in old:
                amounts[name] = old[name]
            else:
                amounts.pop(name, None)
        if amounts or part in was["resources"]:
            out["resources"][part] = amounts
        else:
            out["resources"].pop(part, None)
    if "resizePolicy" in was:
        out["resizePolicy"] = was["resizePolicy"]
    else:
        out.pop("resizePolicy", None)
    return out
