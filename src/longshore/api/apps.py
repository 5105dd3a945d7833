"""The apps group: Deployment, ReplicaSet, StatefulSet, DaemonSet, ControllerRevision."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from longshore.api import printing
from longshore.api.core import pod_validation, pod_warnings
from longshore.api.core.pod import status_counts
from longshore.api.core.podspec import default_template
from longshore.api.core.volumes import claim_spec
from longshore.api.gotypes import dump
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation import intstr, metadata
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_label, dns1123_subdomain
from longshore.api.validation.quantities import not_negative
from longshore.api.validation.selectors import is_empty, label_selector
from longshore.machinery.selectors import SelectorError, from_object

_APPS = "io.k8s.api.apps.v1."
_MISMATCH = "`selector` does not match template `labels`"


def selects(selector: Object | None, labels: dict[str, str]) -> bool | None:
    """Whether a selector picks labels; None when it is malformed."""
    try:
        return from_object(selector).matches(labels)
    except SelectorError:
        return None


def _selector(errors: Errors, spec: Object, kind: str, *, needed: bool = True) -> bool:
    """A workload's selector; whether it can select."""
    selector = spec.get("selector")
    if selector is None:
        if needed:
            errors.required("spec.selector")
        return True
    good = label_selector(errors, selector, "spec.selector")
    if is_empty(selector):
        errors.invalid("spec.selector", {}, f"empty selector is invalid for {kind}")
    return good


def _labels_match(errors: Errors, spec: Object) -> None:
    labels = spec["template"]["metadata"].get("labels") or {}
    selector = spec.get("selector")
    if (selector is None or not is_empty(selector)) and selects(selector, labels) is False:
        errors.invalid("spec.template.metadata.labels", labels or None, _MISMATCH)


def _template(errors: Errors, spec: Object, *, replicas: int = 0) -> None:
    """A workload's template: selected by its selector, good, and restarting always."""
    template = spec["template"]
    _labels_match(errors, spec)
    pod_validation.validate_template(template, errors, "spec.template")
    if replicas > 1:
        pod_validation.validate_rwo_disks(template["spec"], errors, "spec.template.spec.volumes")
    _restarting(errors, template["spec"], "ReplicaSet")


def _restarting(errors: Errors, spec: Object, kind: str) -> None:
    restart = spec.get("restartPolicy", "")
    if restart != "Always":
        errors.unsupported("spec.template.spec.restartPolicy", restart, ("Always",))
    if spec.get("activeDeadlineSeconds") is not None:
        errors.forbidden(
            "spec.template.spec.activeDeadlineSeconds", f"activeDeadlineSeconds in {kind} is not Supported"
        )


class Workload(Strategy):
    """What the kinds that keep pods running have in common."""

    generation = True
    # Whether a name that no host can have is warned about.
    names_pods: ClassVar[bool] = False

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        template = obj["spec"]["template"]
        if old is not None and old["metadata"].get("generation") == obj["metadata"].get("generation"):
            return []
        found = pod_warnings.name_warnings(obj) if old is None and self.names_pods else []
        return found + pod_warnings.pod_warnings(template["spec"], template["metadata"], "spec.template.spec")

    def _cells(self, obj: Object) -> list[Any]:
        names, images = printing.containers(obj["spec"]["template"]["spec"])
        return [names, images, printing.selector(obj["spec"].get("selector"))]


class Deployment(Workload):
    """Replica sets in succession."""

    names_pods = True

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        default_template(spec["template"])
        spec.setdefault("replicas", 1)
        strategy = spec["strategy"]
        if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            rolling.setdefault("maxUnavailable", "25%")
            rolling.setdefault("maxSurge", "25%")
        spec.setdefault("revisionHistoryLimit", 10)
        spec.setdefault("progressDeadlineSeconds", 600)

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        not_negative(errors, spec.get("replicas", 0), "spec.replicas")
        if _selector(errors, spec, "deployment"):
            _template(errors, spec, replicas=spec.get("replicas", 0))
        else:
            errors.invalid("spec.selector", spec["selector"], "invalid label selector")
        _deployment_strategy(errors, spec["strategy"], "spec.strategy")
        not_negative(errors, spec.get("minReadySeconds", 0), "spec.minReadySeconds")
        not_negative(errors, spec.get("revisionHistoryLimit"), "spec.revisionHistoryLimit")
        deadline = spec.get("progressDeadlineSeconds")
        if deadline is not None and not any(e.field == "spec.replicas" for e in errors):
            not_negative(errors, deadline, "spec.progressDeadlineSeconds")
            if deadline <= spec.get("minReadySeconds", 0):
                errors.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        if new["spec"].get("selector") != old["spec"].get("selector"):
            errors.invalid("spec.selector", new["spec"].get("selector"), metadata.IMMUTABLE)

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        status = new["status"]
        for key in (
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ):
            not_negative(errors, status.get(key), f"status.{key}")
        total = status.get("replicas", 0)
        for key in ("updatedReplicas", "readyReplicas", "availableReplicas"):
            if status.get(key, 0) > total:
                errors.invalid(f"status.{key}", status.get(key, 0), "cannot be greater than status.replicas")
        if status.get("availableReplicas", 0) > status.get("readyReplicas", 0):
            errors.invalid(
                "status.availableReplicas", status["availableReplicas"], "cannot be greater than readyReplicas"
            )
        if (
            old["status"].get("collisionCount") is not None
            and status.get("collisionCount", -1) < old["status"]["collisionCount"]
        ):
            errors.invalid("status.collisionCount", status.get("collisionCount"), "cannot be decremented")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj["spec"], obj["status"]
        ready = f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 0)}"
        return [
            obj["metadata"]["name"],
            ready,
            status.get("updatedReplicas", 0),
            status.get("availableReplicas", 0),
            age_of(obj, now),
            *self._cells(obj),
        ]


def _deployment_strategy(errors: Errors, strategy: Object, path: str) -> None:
    kind, rolling = strategy.get("type", ""), strategy.get("rollingUpdate")
    if kind == "Recreate":
        if rolling is not None:
            errors.forbidden(f"{path}.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")
    elif kind == "RollingUpdate":
        if rolling is None:
            errors.required(f"{path}.rollingUpdate", "this should be defaulted and never be nil")
            return
        here = f"{path}.rollingUpdate"
        unavailable, surge = rolling.get("maxUnavailable", 0), rolling.get("maxSurge", 0)
        intstr.positive_or_percent(errors, unavailable, f"{here}.maxUnavailable")
        intstr.positive_or_percent(errors, surge, f"{here}.maxSurge")
        if intstr.number(unavailable) == 0 and intstr.number(surge) == 0:
            errors.invalid(f"{here}.maxUnavailable", unavailable, "may not be 0 when `maxSurge` is 0")
        intstr.at_most_100_percent(errors, unavailable, f"{here}.maxUnavailable")
    else:
        errors.unsupported(path, dump(_APPS + "DeploymentStrategy", strategy), ("Recreate", "RollingUpdate"))


class ReplicaSet(Workload):
    """So many pods of one template."""

    names_pods = True

    def default(self, obj: Object) -> None:
        default_template(obj["spec"]["template"])
        obj["spec"].setdefault("replicas", 1)

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        not_negative(errors, spec.get("replicas", 0), "spec.replicas")
        not_negative(errors, spec.get("minReadySeconds", 0), "spec.minReadySeconds")
        if _selector(errors, spec, "deployment"):
            _template(errors, spec, replicas=spec.get("replicas", 0))
        else:
            errors.invalid("spec.selector", spec["selector"], "invalid label selector")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        if new["spec"].get("selector") != old["spec"].get("selector"):
            errors.invalid("spec.selector", new["spec"].get("selector"), metadata.IMMUTABLE)

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        status_counts(new["status"], errors, "status")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj["spec"], obj["status"]
        return [
            obj["metadata"]["name"],
            spec.get("replicas", 0),
            status.get("replicas", 0),
            status.get("readyReplicas", 0),
            age_of(obj, now),
            *self._cells(obj),
        ]

    def selectable(self, obj: Object) -> dict[str, str]:
        return {"status.replicas": str(obj["status"].get("replicas", 0))}


class StatefulSet(Workload):
    """Pods with names and storage of their own."""

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        default_template(spec["template"])
        spec.setdefault("podManagementPolicy", "OrderedReady")
        strategy = spec["updateStrategy"]
        if not strategy.get("type"):
            strategy["type"] = "RollingUpdate"
            strategy.setdefault("rollingUpdate", {}).setdefault("partition", 0)
        if strategy["type"] == "RollingUpdate" and strategy.get("rollingUpdate") is not None:
            strategy["rollingUpdate"].setdefault("partition", 0)
        policy = spec.setdefault("persistentVolumeClaimRetentionPolicy", {})
        policy.setdefault("whenDeleted", "Retain")
        policy.setdefault("whenScaled", "Retain")
        spec.setdefault("replicas", 1)
        spec.setdefault("revisionHistoryLimit", 10)
        for claim in spec.get("volumeClaimTemplates") or ():
            claim.setdefault("apiVersion", "v1")
            claim.setdefault("kind", "PersistentVolumeClaim")
            claim["status"].setdefault("phase", "Pending")
            claim["spec"].setdefault("volumeMode", "Filesystem")

    def name_check(self, name: str) -> list[str]:
        return dns1123_label(name)

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        # A template that was bad already is not held against an update.
        self._spec(obj["spec"], errors, new=old is None, template=old is None or self._was_good(old))

    def _was_good(self, old: Object) -> bool:
        found = Errors()
        self._spec(old["spec"], found, new=False, template=True)
        return not found

    def _spec(self, spec: Object, errors: Errors, *, new: bool, template: bool) -> None:
        self._policies(errors, spec)
        if new:
            for index, claim in enumerate(spec.get("volumeClaimTemplates") or ()):
                found = Errors()
                claim_spec(found, claim["spec"], f"spec.volumeClaimTemplates[{index}].spec")
                for error in found:
                    if error.field.endswith(".accessModes") and error.type == "Required":
                        error.detail = "at least 1 access mode is required"
                errors.extend(found)
        not_negative(errors, spec.get("replicas", 0), "spec.replicas")
        not_negative(errors, spec.get("minReadySeconds", 0), "spec.minReadySeconds")
        start = (spec.get("ordinals") or {}).get("start", 0)
        not_negative(errors, start, "spec.ordinals.start")
        name = spec.get("serviceName")
        if name and new:
            for message in dns1123_label(name):
                errors.invalid("spec.serviceName", name, message)
        if _selector(errors, spec, "statefulset"):
            self._template(errors, spec, good=not template)
        else:
            errors.invalid("spec.selector", spec["selector"])
        _restarting(errors, spec["template"]["spec"], "StatefulSet")

    @staticmethod
    def _template(errors: Errors, spec: Object, *, good: bool) -> None:
        _labels_match(errors, spec)
        template = spec["template"]
        if not good:
            # What the controller puts into each pod: the claims' volumes; and what it replaces.
            claims = [claim["metadata"].get("name", "") for claim in spec.get("volumeClaimTemplates") or ()]
            pod = {k: v for k, v in template["spec"].items() if k not in ("hostname", "subdomain")}
            if claims:
                pod["volumes"] = [
                    *(
                        {"name": claim, "persistentVolumeClaim": {"claimName": claim}}
                        for claim in dict.fromkeys(claims)
                    ),
                    *(v for v in pod.get("volumes") or () if v.get("name", "") not in claims),
                ]
            pod_validation.validate_template({**template, "spec": pod}, errors, "spec.template")
        meta = template.get("metadata") or {}
        metadata.labels(errors, meta.get("labels") or {}, "spec.template.labels")
        metadata.annotation_map(errors, meta.get("annotations") or {}, "spec.template.annotations")

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        found = super().warnings(obj, old)
        for index, claim in enumerate(obj["spec"].get("volumeClaimTemplates") or ()):
            where = f"spec.volumeClaimTemplates[{index}]" + (".Spec" if old is not None else "")
            found += pod_warnings.claim_warnings(claim["spec"], where)
        if obj["spec"].get("revisionHistoryLimit", 0) < 0:
            found.append(
                "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"
            )
        return found

    @staticmethod
    def _policies(errors: Errors, spec: Object) -> None:
        policy = spec.get("podManagementPolicy", "")
        if not policy:
            errors.required("spec.podManagementPolicy")
        elif policy not in ("OrderedReady", "Parallel"):
            errors.invalid("spec.podManagementPolicy", policy, "must be 'OrderedReady' or 'Parallel'")
        strategy = spec["updateStrategy"]
        kind, rolling = strategy.get("type", ""), strategy.get("rollingUpdate")
        if not kind:
            errors.required("spec.updateStrategy")
        elif kind == "OnDelete":
            if rolling is not None:
                errors.invalid(
                    "spec.updateStrategy.rollingUpdate",
                    dump(_APPS + "RollingUpdateStatefulSetStrategy", rolling),
                    "only allowed for updateStrategy 'RollingUpdate'",
                )
        elif kind == "RollingUpdate":
            if rolling is not None:
                not_negative(errors, rolling.get("partition", 0), "spec.updateStrategy.rollingUpdate.partition")
                unavailable = rolling.get("maxUnavailable")
                if unavailable is not None:
                    here = "spec.updateStrategy.rollingUpdate.maxUnavailable"
                    intstr.positive_or_percent(errors, unavailable, here)
                    if intstr.number(unavailable) == 0:
                        errors.invalid(here, unavailable, "cannot be 0")
                    intstr.at_most_100_percent(errors, unavailable, here)
        else:
            errors.invalid(
                "spec.updateStrategy",
                dump(_APPS + "StatefulSetUpdateStrategy", strategy),
                "must be 'RollingUpdate' or 'OnDelete'",
            )
        retention = spec.get("persistentVolumeClaimRetentionPolicy")
        if retention is not None:
            for key in ("whenDeleted", "whenScaled"):
                if retention.get(key) not in ("Retain", "Delete"):
                    errors.unsupported(
                        f"spec.persistentVolumeClaimRetentionPolicy.{key}", retention.get(key, ""), ("Retain", "Delete")
                    )

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        changeable = (
            "replicas",
            "template",
            "updateStrategy",
            "minReadySeconds",
            "ordinals",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
        )
        one, other = ({k: v for k, v in s["spec"].items() if k not in changeable} for s in (new, old))
        if one != other:
            errors.forbidden(
                "spec",
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            )

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        status = new["status"]
        for key in (
            "replicas",
            "readyReplicas",
            "currentReplicas",
            "updatedReplicas",
            "availableReplicas",
            "observedGeneration",
            "collisionCount",
        ):
            not_negative(errors, status.get(key), f"status.{key}")
        for key in ("readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"):
            if status.get(key, 0) > status.get("replicas", 0):
                errors.invalid(f"status.{key}", status[key], "cannot be greater than status.replicas")
        if status.get("availableReplicas", 0) > status.get("readyReplicas", 0):
            errors.invalid(
                "status.availableReplicas", status["availableReplicas"], "cannot be greater than status.readyReplicas"
            )

    def row(self, obj: Object, now: datetime) -> list[Any]:
        names, images = printing.containers(obj["spec"]["template"]["spec"])
        ready = f"{obj['status'].get('readyReplicas', 0)}/{obj['spec'].get('replicas', 0)}"
        return [obj["metadata"]["name"], ready, age_of(obj, now), names, images]


class DaemonSet(Workload):
    """A pod a node."""

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        default_template(spec["template"])
        strategy = spec["updateStrategy"]
        if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            rolling.setdefault("maxUnavailable", 1)
            rolling.setdefault("maxSurge", 0)
        spec.setdefault("revisionHistoryLimit", 10)

    def prepare_create(self, obj: Object) -> None:
        obj["metadata"].setdefault("annotations", {}).setdefault("deprecated.daemonset.template.generation", "1")

    def prepare_update(self, new: Object, old: Object) -> None:
        key = "deprecated.daemonset.template.generation"
        was = int((old["metadata"].get("annotations") or {}).get(key, "1") or 1)
        changed = new["spec"]["template"] != old["spec"]["template"]
        new["metadata"].setdefault("annotations", {})[key] = str(was + changed)

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        selector = spec.get("selector")
        labels = spec["template"]["metadata"].get("labels") or {}
        if label_selector(errors, selector, "spec.selector") and selects(selector, labels) is False:
            errors.invalid("spec.template.metadata.labels", labels or None, _MISMATCH)
        if selector is not None and is_empty(selector):
            errors.invalid("spec.selector", {}, "empty selector is invalid for daemonset")
        pod_validation.validate_template(spec["template"], errors, "spec.template")
        _restarting(errors, spec["template"]["spec"], "DaemonSet")
        not_negative(errors, spec.get("minReadySeconds", 0), "spec.minReadySeconds")
        _daemon_strategy(errors, spec["updateStrategy"], "spec.updateStrategy")
        not_negative(errors, spec.get("revisionHistoryLimit"), "spec.revisionHistoryLimit")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        if new["spec"].get("selector") != old["spec"].get("selector"):
            errors.invalid("spec.selector", new["spec"].get("selector"), metadata.IMMUTABLE)
        self.validate(new, errors, old)

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        for key in (
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ):
            not_negative(errors, new["status"].get(key), f"status.{key}")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj["spec"], obj["status"]
        counts = [
            status.get(k, 0)
            for k in (
                "desiredNumberScheduled",
                "currentNumberScheduled",
                "numberReady",
                "updatedNumberScheduled",
                "numberAvailable",
            )
        ]
        return [
            obj["metadata"]["name"],
            *counts,
            printing.labels(spec["template"]["spec"].get("nodeSelector")),
            age_of(obj, now),
            *self._cells(obj),
        ]


def _daemon_strategy(errors: Errors, strategy: Object, path: str) -> None:
    kind, rolling = strategy.get("type", ""), strategy.get("rollingUpdate")
    if kind == "OnDelete":
        return
    if kind != "RollingUpdate":
        errors.unsupported(path, dump(_APPS + "DaemonSetUpdateStrategy", strategy), ("RollingUpdate", "OnDelete"))
        return
    here = f"{path}.rollingUpdate"
    if rolling is None:
        errors.required(here)
        return
    unavailable, surge = rolling.get("maxUnavailable", 0), rolling.get("maxSurge", 0)
    intstr.positive_or_percent(errors, unavailable, f"{here}.maxUnavailable")
    intstr.positive_or_percent(errors, surge, f"{here}.maxSurge")
    intstr.at_most_100_percent(errors, unavailable, f"{here}.maxUnavailable")
    intstr.at_most_100_percent(errors, surge, f"{here}.maxSurge")
    if intstr.number(unavailable) != 0 and intstr.number(surge) != 0:
        errors.invalid(f"{here}.maxSurge", surge, "may not be set when maxUnavailable is non-zero")
    if intstr.number(unavailable) == 0 and intstr.number(surge) == 0:
        errors.required(f"{here}.maxUnavailable", "cannot be 0 when maxSurge is 0")


class ControllerRevision(Strategy):
    """A frozen state of a template."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        data = obj.get("data")
        not_negative(errors, obj.get("revision", 0), "revision")
        if old is None and not isinstance(data, dict):
            errors.required("data", "data is mandatory" if data is None else "data must be a valid JSON object")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        if new.get("data") != old.get("data"):
            errors.invalid("data", new.get("data"), metadata.IMMUTABLE)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        owner = next((o for o in obj["metadata"].get("ownerReferences") or () if o.get("controller")), None)
        shown = "<none>"
        if owner is not None:
            group = owner.get("apiVersion", "").rpartition("/")[0]
            shown = f"{owner['kind'].lower()}{'.' + group if group else ''}/{owner['name']}"
        return [obj["metadata"]["name"], shown, obj.get("revision", 0), age_of(obj, now)]


STRATEGIES = {
    "ControllerRevision": ControllerRevision,
    "DaemonSet": DaemonSet,
    "Deployment": Deployment,
    "ReplicaSet": ReplicaSet,
    "StatefulSet": StatefulSet,
}
__all__ = ["STRATEGIES", "dns1123_subdomain", "selects"]
