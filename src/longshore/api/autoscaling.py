"""autoscaling: HorizontalPodAutoscaler, in versions v2 (kept) and v1."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson

from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_label, dns1123_subdomain, path_segment
from longshore.api.validation.quantities import container_resource_name, not_negative
from longshore.machinery import quantity

_METRICS = "autoscaling.alpha.kubernetes.io/metrics"
_CURRENT = "autoscaling.alpha.kubernetes.io/current-metrics"
_CONDITIONS = "autoscaling.alpha.kubernetes.io/conditions"
_BEHAVIOR = "autoscaling.alpha.kubernetes.io/behavior"
_TYPES = ("ContainerResource", "External", "Object", "Pods", "Resource")
# In the order in which upstream looks for them.
_SOURCES = {
    "Object": "object",
    "External": "external",
    "Pods": "pods",
    "Resource": "resource",
    "ContainerResource": "containerResource",
}
_DEFAULT_DOWN = [{"type": "Percent", "value": 100, "periodSeconds": 15}]
_DEFAULT_UP = [
    {"type": "Pods", "value": 4, "periodSeconds": 15},
    {"type": "Percent", "value": 100, "periodSeconds": 15},
]


def _dump(value: Any) -> str:
    return orjson.dumps(value).decode()


class HorizontalPodAutoscaler(Strategy):
    """As many replicas as the load wants."""

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        spec.setdefault("minReplicas", 1)
        if not spec.get("metrics"):
            spec["metrics"] = [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
                }
            ]
        self._default_behavior(spec)

    @staticmethod
    def _default_behavior(spec: Object) -> None:
        behavior = spec.get("behavior")
        if behavior is None:
            return
        up = behavior.setdefault("scaleUp", {})
        up.setdefault("selectPolicy", "Max")
        up.setdefault("stabilizationWindowSeconds", 0)
        if up.get("policies") is None:
            up["policies"] = [dict(p) for p in _DEFAULT_UP]
        down = behavior.setdefault("scaleDown", {})
        down.setdefault("selectPolicy", "Max")
        if down.get("policies") is None:
            down["policies"] = [dict(p) for p in _DEFAULT_DOWN]

    def default_version(self, obj: Object, version: str) -> None:
        if version == "v2":
            self.default(obj)
        else:
            obj["spec"].setdefault("minReplicas", 1)
            if _METRICS not in (obj["metadata"].get("annotations") or {}):
                obj["spec"].setdefault("targetCPUUtilizationPercentage", 80)

    def convert(self, obj: Object, source: str, target: str) -> Object:
        return _to_v1(obj) if target == "autoscaling/v1" else self._to_v2(obj)

    def _to_v2(self, obj: Object) -> Object:
        spec, meta = dict(obj["spec"]), dict(obj["metadata"])
        annotations = dict(meta.get("annotations") or {})
        metrics: list[Object] = []
        cpu = spec.pop("targetCPUUtilizationPercentage", None)
        if _METRICS in annotations:
            try:
                metrics = [_metric_v2(m) for m in orjson.loads(annotations[_METRICS])]
            except (orjson.JSONDecodeError, AttributeError, TypeError):
                metrics = []
        if cpu is not None:
            metrics = [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": cpu}},
                },
                *metrics,
            ]
        if _BEHAVIOR in annotations:
            try:
                spec["behavior"] = orjson.loads(annotations[_BEHAVIOR])
            except orjson.JSONDecodeError:
                pass
        for key in (_METRICS, _CURRENT, _CONDITIONS, _BEHAVIOR):
            annotations.pop(key, None)
        if annotations:
            meta["annotations"] = annotations
        else:
            meta.pop("annotations", None)
        if metrics:
            spec["metrics"] = metrics
        status = dict(obj.get("status") or {})
        used = status.pop("currentCPUUtilizationPercentage", None)
        status.setdefault("currentMetrics", None)
        if used is not None:
            status["currentMetrics"] = [
                {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": used}}}
            ]
        if status.get("currentReplicas") == 0:
            del status["currentReplicas"]
        out = {**obj, "metadata": meta, "spec": spec, "status": status}
        self.default(out)
        return out

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        least, most = spec.get("minReplicas"), spec.get("maxReplicas", 0)
        if least is not None and least < 1:
            errors.invalid("spec.minReplicas", least, "must be greater than or equal to 1")
        if most == 0:
            errors.required("spec.maxReplicas", "must be set and greater than 0")
        elif most < 0:
            errors.invalid("spec.maxReplicas", most, "must be greater than or equal to 1")
        if least is not None and most < least:
            errors.invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`")
        self._reference(errors, spec["scaleTargetRef"], "spec.scaleTargetRef", group=True)
        self._metrics(errors, spec.get("metrics") or [], least)
        if spec.get("behavior") is not None:
            for key in ("scaleUp", "scaleDown"):
                _rules(errors, spec["behavior"].get(key), f"spec.behavior.{key}")

    @staticmethod
    def _reference(errors: Errors, reference: Object, path: str, *, group: bool = False) -> None:
        for key in ("kind", "name"):
            text = reference.get(key, "")
            if not text:
                errors.required(f"{path}.{key}")
            else:
                for message in path_segment(text):
                    errors.invalid(f"{path}.{key}", text, message)
        version = reference.get("apiVersion", "")
        if version.count("/") > 1:
            errors.invalid(f"{path}.apiVersion", version, f"unexpected GroupVersion string: {version}")
        elif group and version != "v1" and not version.rpartition("/")[0]:
            errors.invalid(f"{path}.apiVersion", version, "apiVersion must specify API group")

    def _metrics(self, errors: Errors, metrics: list[Object], least: int | None) -> None:
        scalable = False
        for index, metric in enumerate(metrics):
            path = f"spec.metrics[{index}]"
            kind = metric.get("type", "")
            if not kind:
                errors.required(f"{path}.type", "must specify a metric source type")
            if kind not in _TYPES:
                errors.unsupported(f"{path}.type", kind, _TYPES)
            scalable = scalable or kind in ("Object", "External")
            given = [(of, name) for of, name in _SOURCES.items() if metric.get(name) is not None]
            if given:
                of, name = given[0]
                self._source(errors, of, metric[name], f"{path}.{name}")
            wanted = _SOURCES.get(kind)
            if wanted is None:
                # Upstream complains twice: of the type, and of finding no source of that type.
                errors.unsupported(f"{path}.type", kind, _TYPES)
            elif metric.get(wanted) is None:
                errors.required(f"{path}.{wanted}", "must populate information for the given metric source")
            if len(given) != 1:
                for name in sorted(name for _, name in given):
                    if name != wanted:
                        errors.forbidden(f"{path}.{name}", "must populate the given metric source only")
        if least == 0 and not scalable:
            errors.forbidden(
                "spec.metrics",
                "must specify at least one Object or External metric to support scaling to zero replicas",
            )

    def _source(self, errors: Errors, kind: str, source: Object, path: str) -> None:
        target = source.get("target") or {}
        if kind in ("Resource", "ContainerResource"):
            if not source.get("name"):
                errors.required(f"{path}.name", "must specify a resource name")
            elif kind == "ContainerResource":
                container_resource_name(errors, source["name"], f"{path}.name")
            if kind == "ContainerResource":
                container = source.get("container", "")
                if not container:
                    errors.required(f"{path}.container", "must specify a container")
                for message in dns1123_label(container) if container else ():
                    errors.invalid(f"{path}.container", container, message)
            _target(errors, target, f"{path}.target")
            utilization, average = target.get("averageUtilization"), target.get("averageValue")
            if utilization is None and average is None:
                errors.required(
                    f"{path}.target.averageUtilization", "must set either a target raw value or a target utilization"
                )
            if utilization is not None and average is not None:
                errors.forbidden(
                    f"{path}.target.averageValue", "may not set both a target raw value and a target utilization"
                )
            return
        if kind == "Object":
            self._reference(errors, source.get("describedObject") or {}, f"{path}.describedObject")
        _identifier(errors, source.get("metric") or {}, f"{path}.metric")
        _target(errors, target, f"{path}.target")
        if kind == "Pods":
            if target.get("averageValue") is None:
                errors.required(f"{path}.target.averageValue", "must specify a positive target averageValue")
            return
        value, average = target.get("value"), target.get("averageValue")
        if value is None and average is None:
            errors.required(
                f"{path}.target.averageValue",
                "must set either a target value or averageValue"
                if kind == "Object"
                else "must set either a target value for metric or a per-pod target",
            )
        if kind == "External" and value is not None and average is not None:
            errors.forbidden(f"{path}.target.value", "may not set both a target value for metric and a per-pod target")

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        for key in ("currentReplicas", "desiredReplicas"):
            not_negative(errors, new["status"].get(key, 0), f"status.{key}")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj["spec"], obj.get("status") or {}
        reference = spec["scaleTargetRef"]
        least = spec.get("minReplicas")
        return [
            obj["metadata"]["name"],
            f"{reference.get('kind', '')}/{reference.get('name', '')}",
            _shown_metrics(spec.get("metrics") or [], status.get("currentMetrics") or []),
            "<unset>" if least is None else str(least),
            spec.get("maxReplicas", 0),
            status.get("currentReplicas", 0),
            age_of(obj, now),
        ]


def _identifier(errors: Errors, metric: Object, path: str) -> None:
    name = metric.get("name", "")
    if not name:
        errors.required(f"{path}.name", "must specify a metric name")
    else:
        for message in path_segment(name):
            errors.invalid(f"{path}.name", name, message)


def _target(errors: Errors, target: Object, path: str) -> None:
    kind = target.get("type", "")
    if not kind:
        errors.required(f"{path}.type", "must specify a metric target type")
    if kind not in ("Utilization", "Value", "AverageValue"):
        errors.invalid(f"{path}.type", kind, "must be either Utilization, Value, or AverageValue")
    value, average, utilization = target.get("value"), target.get("averageValue"), target.get("averageUtilization")
    if value is not None and quantity.parse(value).nanos <= 0:
        errors.invalid(f"{path}.value", value, "must be positive")
    if average is not None and quantity.parse(average).nanos <= 0:
        errors.invalid(f"{path}.averageValue", average, "must be positive")
    if utilization is not None and utilization < 1:
        errors.invalid(f"{path}.averageUtilization", utilization, "must be greater than 0")


def _rules(errors: Errors, rules: Object | None, path: str) -> None:
    if rules is None:
        return
    window, policy = rules.get("stabilizationWindowSeconds"), rules.get("selectPolicy")
    if window is not None and window < 0:
        errors.invalid(f"{path}.stabilizationWindowSeconds", window, "must be greater than or equal to zero")
    if window is not None and window > 3600:
        errors.invalid(f"{path}.stabilizationWindowSeconds", window, "must be less than or equal to 3600")
    if policy is not None and policy not in ("Disabled", "Max", "Min"):
        errors.unsupported(f"{path}.selectPolicy", policy, ("Disabled", "Max", "Min"))
    policies = rules.get("policies") or []
    if not policies:
        errors.required(f"{path}.policies", "must specify at least one Policy")
    for index, one in enumerate(policies):
        here = f"{path}.policies[{index}]"
        kind, value, period = one.get("type", ""), one.get("value", 0), one.get("periodSeconds", 0)
        if kind not in ("Percent", "Pods"):
            errors.unsupported(f"{here}.type", kind, ("Percent", "Pods"))
        if value <= 0:
            errors.invalid(f"{here}.value", value, "must be greater than zero")
        if period <= 0:
            errors.invalid(f"{here}.periodSeconds", period, "must be greater than zero")
        if period > 1800:
            errors.invalid(f"{here}.periodSeconds", period, "must be less than or equal to 1800")


def _shown_metrics(specs: list[Object], statuses: list[Object]) -> str:
    if not specs:
        return "<none>"
    shown: list[str] = []
    for index, spec in enumerate(specs):
        if len(shown) == 2:
            break
        kind = spec.get("type", "")
        name = _SOURCES.get(kind)
        if name is None:
            shown.append("<unknown type>")
            continue
        source = spec.get(name) or {}
        target = source.get("target") or {}
        current = ((statuses[index].get(name) or {}).get("current") or {}) if index < len(statuses) else {}
        prefix = ""
        if kind in ("Resource", "ContainerResource"):
            prefix = f"{source.get('name', '')}: "
        if kind in ("Resource", "ContainerResource") and target.get("averageValue") is None:
            now = f"{current['averageUtilization']}%" if current.get("averageUtilization") is not None else "<unknown>"
            goal = f"{target['averageUtilization']}%" if target.get("averageUtilization") is not None else "<auto>"
            shown.append(f"{prefix}{now}/{goal}")
        elif target.get("averageValue") is not None:
            suffix = " (avg)" if kind in ("Object", "External") else ""
            shown.append(f"{prefix}{current.get('averageValue', '<unknown>')}/{target['averageValue']}{suffix}")
        else:
            shown.append(f"{prefix}{current.get('value', '<unknown>')}/{target.get('value', '0')}")
    text = ", ".join(shown)
    return f"{text} + {len(specs) - 2} more..." if len(specs) > 2 else text


def _to_v1(obj: Object) -> Object:
    spec, meta, status = dict(obj["spec"]), dict(obj["metadata"]), dict(obj.get("status") or {})
    annotations = dict(meta.get("annotations") or {})
    other: list[Object] = []
    cpu = None
    for metric in spec.pop("metrics", None) or ():
        resource = metric.get("resource") or {}
        if (
            cpu is None
            and metric.get("type") == "Resource"
            and resource.get("name") == "cpu"
            and (resource.get("target") or {}).get("averageUtilization") is not None
        ):
            cpu = resource["target"]["averageUtilization"]
        else:
            other.append(_metric_v1(metric))
    if cpu is not None:
        spec["targetCPUUtilizationPercentage"] = cpu
    if other:
        annotations[_METRICS] = _dump(other)
    behavior = spec.pop("behavior", None)
    if behavior is not None:
        annotations[_BEHAVIOR] = _dump(_go_behavior(behavior))
    current = status.pop("currentMetrics", None) or []
    rest = []
    for metric in current:
        resource = metric.get("resource") or {}
        used = (resource.get("current") or {}).get("averageUtilization")
        if (
            metric.get("type") == "Resource"
            and resource.get("name") == "cpu"
            and used is not None
            and "currentCPUUtilizationPercentage" not in status
        ):
            status["currentCPUUtilizationPercentage"] = used
        else:
            rest.append(_metric_v1(metric, status=True))
    if rest:
        annotations[_CURRENT] = _dump(rest)
    conditions = status.pop("conditions", None)
    if conditions:
        annotations[_CONDITIONS] = _dump(conditions)
    status.setdefault("currentReplicas", 0)
    if annotations:
        meta["annotations"] = annotations
    return {**obj, "metadata": meta, "spec": spec, "status": status}


def _go_behavior(behavior: Object) -> Object:
    """A behavior as Go's internal structure prints it."""
    out: Object = {}
    for go, name in (("ScaleUp", "scaleUp"), ("ScaleDown", "scaleDown")):
        rules = behavior.get(name)
        out[go] = rules and {
            "StabilizationWindowSeconds": rules.get("stabilizationWindowSeconds"),
            "SelectPolicy": rules.get("selectPolicy"),
            "Policies": [
                {"Type": p.get("type", ""), "Value": p.get("value", 0), "PeriodSeconds": p.get("periodSeconds", 0)}
                for p in rules.get("policies") or ()
            ],
            "Tolerance": rules.get("tolerance"),
        }
    return out


def _metric_v1(metric: Object, *, status: bool = False) -> Object:
    """A metric of v2 in the form that v1 keeps in an annotation."""
    kind = metric.get("type", "")
    name = _SOURCES.get(kind, "")
    source = metric.get(name) or {}
    values = source.get("current" if status else "target") or {}
    out: Object = {"type": kind}
    if kind in ("Resource", "ContainerResource"):
        body: Object = {"name": source.get("name", "")}
        if values.get("averageUtilization") is not None:
            body["currentAverageUtilization" if status else "targetAverageUtilization"] = values["averageUtilization"]
        if values.get("averageValue") is not None:
            body["currentAverageValue" if status else "targetAverageValue"] = values["averageValue"]
        if kind == "ContainerResource":
            body["container"] = source.get("container", "")
    else:
        metric_name = (source.get("metric") or {}).get("name", "")
        body = {"metricName": metric_name}
        selector = (source.get("metric") or {}).get("selector")
        if kind == "Object":
            body = {
                "target": source.get("describedObject") or {},
                "metricName": metric_name,
                "currentValue" if status else "targetValue": values.get("value", "0"),
            }
            if values.get("averageValue") is not None:
                body["averageValue"] = values["averageValue"]
        elif kind == "Pods":
            body["currentAverageValue" if status else "targetAverageValue"] = values.get("averageValue", "0")
        else:
            if selector is not None:
                body["metricSelector"] = selector
            if values.get("value") is not None:
                body["currentValue" if status else "targetValue"] = values["value"]
            if values.get("averageValue") is not None:
                body["currentAverageValue" if status else "targetAverageValue"] = values["averageValue"]
        if selector is not None and kind != "External":
            body["selector"] = selector
    out[name] = body
    return out


def _metric_v2(metric: Object) -> Object:
    kind = metric.get("type", "")
    name = _SOURCES.get(kind, "")
    source = metric.get(name) or {}
    out: Object = {"type": kind}
    target: Object = {}
    if kind in ("Resource", "ContainerResource"):
        if source.get("targetAverageUtilization") is not None:
            target = {"type": "Utilization", "averageUtilization": source["targetAverageUtilization"]}
        if source.get("targetAverageValue") is not None:
            target = {**target, "type": "AverageValue", "averageValue": source["targetAverageValue"]}
        body: Object = {"name": source.get("name", ""), "target": target}
        if kind == "ContainerResource":
            body["container"] = source.get("container", "")
    else:
        identifier: Object = {"name": source.get("metricName", "")}
        selector = source.get("metricSelector") if kind == "External" else source.get("selector")
        if selector is not None:
            identifier["selector"] = selector
        average = source.get("averageValue") if kind == "Object" else source.get("targetAverageValue")
        value = source.get("targetValue")
        if average is not None:
            target = {"type": "AverageValue", "averageValue": average}
        elif value is not None:
            target = {"type": "Value", "value": value}
        body = {"metric": identifier, "target": target}
        if kind == "Object":
            body["describedObject"] = source.get("target") or {}
    out[name] = body
    return out


STRATEGIES = {"HorizontalPodAutoscaler": HorizontalPodAutoscaler}
__all__ = ["STRATEGIES", "dns1123_subdomain"]
