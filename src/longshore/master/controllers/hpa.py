"""HorizontalPodAutoscalers: as many replicas as the figures ask for, within bounds and without haste.

Figures come only when asked for, so each autoscaler is looked at every sync period, as upstream's.
Source: kubernetes pkg/controller/podautoscaler/horizontal.go, described behaviour.
"""

from __future__ import annotations

import math
import time

from longshore.client.discovery import discover
from longshore.client.objects import condition, now, phase
from longshore.client.resources import BY_KIND, HORIZONTAL_POD_AUTOSCALERS, PODS, Resource
from longshore.client.rest import is_conflict
from longshore.client.store import Object, split_key
from longshore.machinery.errors import StatusError
from longshore.machinery.quantity import parse
from longshore.machinery.selectors import LabelSelector, SelectorError, parse_labels
from longshore.master.controllers import hparules as rules
from longshore.master.controllers.base import Controller
from longshore.master.controllers.hpametrics import Metrics, MetricsError, request_of, selector_words, shown

REASONS = {
    "Resource": "FailedGetResourceMetric",
    "ContainerResource": "FailedGetContainerResourceMetric",
    "Pods": "FailedGetPodsMetric",
    "Object": "FailedGetObjectMetric",
    "External": "FailedGetExternalMetric",
}


CONFLICTS = 5  # as often an update of the target's size is tried against the latest
MISSING_SELECTOR = "selector is required"


NO_PODS = "no pods returned by selector while calculating replica count"


class HorizontalPodAutoscalerController(Controller):
    """Scales targets by metrics."""

    name = "horizontal-pod-autoscaler-controller"
    account = "horizontal-pod-autoscaler"
    component = "horizontal-pod-autoscaler"

    def setup(self) -> None:
        self.scalers = self.watch(HORIZONTAL_POD_AUTOSCALERS, add=self.enqueue, update=self._changed, delete=self._gone)
        self.pods = self.watch(PODS)
        self.metrics = Metrics(self.client)
        self.selectors: dict[str, LabelSelector | None] = {}  # of the autoscalers' targets, as last seen
        self.recommendations: dict[str, list[tuple[int, float]]] = {}
        self.ups: dict[str, list[rules.Change]] = {}
        self.downs: dict[str, list[rules.Change]] = {}
        self._kinds: dict[tuple[str, str], Resource] = {}

    def _changed(self, old: Object, new: Object) -> None:
        if old["spec"] != new["spec"]:
            self.enqueue(new)

    def _gone(self, scaler: Object) -> None:
        key = f"{scaler['metadata']['namespace']}/{scaler['metadata']['name']}"
        for table in (self.recommendations, self.ups, self.downs, self.selectors):
            table.pop(key, None)

    async def reconcile(self, key: str) -> float | None:
        scaler = self.scalers.store.named(*split_key(key))
        if scaler is None:
            return None
        run = Run(self, key, scaler)
        try:
            await run.go()
        finally:
            await run.write()
        return self.options.horizontal_pod_autoscaler_sync_period

    def selecting(self, namespace: str, pods: list[Object]) -> list[str]:
        """Names of the autoscalers whose targets select any of some pods."""
        labels = [pod["metadata"].get("labels") or {} for pod in pods]
        return [
            name
            for (where, name), selector in ((split_key(key), found) for key, found in self.selectors.items())
            if where == namespace and any(selector is None or selector.matches(each) for each in labels)
        ]

    async def resource_of(self, ref: Object) -> Resource | None:
        """The resource of a scale target."""
        group, slash, _ = str(ref.get("apiVersion") or "").partition("/")
        key = (group if slash else "", ref["kind"])
        if key not in BY_KIND and key not in self._kinds:
            found = (await discover(self.client)).served
            self._kinds = {(s.resource.group, s.resource.kind): s.resource for s in found}
        return BY_KIND.get(key) or self._kinds.get(key)


class Run:
    """One look at one autoscaler."""

    def __init__(self, controller: HorizontalPodAutoscalerController, key: str, scaler: Object) -> None:
        self.c, self.key, self.scaler = controller, key, scaler
        self.spec = scaler["spec"]
        self.namespace = scaler["metadata"]["namespace"]
        self.old: Object = scaler.get("status") or {}
        self.conditions: list[Object] = list(self.old.get("conditions") or [])
        self.status: Object = {
            "currentMetrics": self.old.get("currentMetrics"),
            "desiredReplicas": int(self.old.get("desiredReplicas") or 0),
        }
        for field in ("currentReplicas", "lastScaleTime"):
            if self.old.get(field):
                self.status[field] = self.old[field]
        self.now = time.time()
        self.min = int(self.spec["minReplicas"]) if self.spec.get("minReplicas") is not None else 1
        self.max = int(self.spec["maxReplicas"])
        behavior = self.spec.get("behavior") or {}
        self.up_rules = {**rules.DEFAULT_UP, **(behavior.get("scaleUp") or {})}
        self.down_rules = {**rules.DEFAULT_DOWN, **(behavior.get("scaleDown") or {})}
        default = controller.options.horizontal_pod_autoscaler_tolerance

        def tolerance(entry: Object) -> float:
            return parse(str(entry["tolerance"])).milli_value / 1000 if entry.get("tolerance") is not None else default

        self.tolerance = rules.Tolerance(tolerance(self.up_rules), tolerance(self.down_rules))

    def _put(self, type: str, ok: bool, reason: str, message: str) -> None:
        known = next((c for c in self.conditions if c["type"] == type), None)
        status = "True" if ok else "False"
        entry = {"type": type, "status": status, "reason": reason, "message": message}
        same = known is not None and known["status"] == status
        entry["lastTransitionTime"] = known["lastTransitionTime"] if known is not None and same else now()
        if known is None:
            self.conditions.append(entry)
        else:
            self.conditions = [entry if c["type"] == type else c for c in self.conditions]

    async def write(self) -> None:
        if self.conditions:
            self.status["conditions"] = self.conditions
        if self.status != self.old:
            body = {**self.scaler, "status": self.status}
            await self.c.client.update(HORIZONTAL_POD_AUTOSCALERS, body, subresource="status")

    def _warn(self, reason: str, message: str) -> None:
        self.c.event(self.scaler, "Warning", reason, message)

    # -- the walk ----------------------------------------------------------------------------------------------------------

    async def go(self) -> None:
        ref = self.spec["scaleTargetRef"]
        resource = await self.c.resource_of(ref)
        try:
            if resource is None:
                raise StatusError(
                    404, "NotFound", f'no matches for kind "{ref["kind"]}" in version "{ref.get("apiVersion", "")}"'
                )
            scale = await self.c.client.get(resource, ref["name"], self.namespace, subresource="scale")
        except StatusError as error:
            self._warn("FailedGetScale", error.message)
            message = f"the HPA controller was unable to get the target's current scale: {error.message}"
            self._put("AbleToScale", False, "FailedGetScale", message)
            return
        message = "the HPA controller was able to get the target's current scale"
        self._put("AbleToScale", True, "SucceededGetScale", message)
        current = int((scale.get("spec") or {}).get("replicas") or 0)
        self.status.pop("currentReplicas", None)
        self.status["currentMetrics"] = None
        if current:
            self.status["currentReplicas"] = current
        self.c.recommendations.setdefault(self.key, [(current, self.now)])
        if current == 0 and self.min != 0:
            message = "scaling is disabled since the replica count of the target is zero"
            self._put("ScalingActive", False, "ScalingDisabled", message)
            self.status["desiredReplicas"] = 0
            return
        if current > self.max:
            desired, why = self.max, "Current number of replicas above Spec.MaxReplicas"
        elif current < self.min:
            desired, why = self.min, "Current number of replicas below Spec.MinReplicas"
        else:
            found = await self._from_metrics(scale, current)
            if found is None:
                return
            proposed, metric = found
            why = (
                f"{metric} above target"
                if proposed > current
                else "All metrics below target"
                if proposed < current
                else ""
            )
            desired = self._within(current, proposed)
        if desired != current:
            assert resource is not None
            await self._rescale(resource, scale, current, desired, why)
        else:
            self.status["desiredReplicas"] = desired

    async def _rescale(self, resource: Resource, scale: Object, current: int, desired: int, why: str) -> None:
        try:
            await self._resize(resource, scale, desired)
        except StatusError as error:
            self._warn("FailedRescale", f"New size: {desired}; reason: {why}; error: {error.message}")
            message = f"the HPA controller was unable to update the target scale: {error.message}"
            self._put("AbleToScale", False, "FailedUpdateScale", message)
            return
        message = f"the HPA controller was able to update the target scale to {desired}"
        self._put("AbleToScale", True, "SucceededRescale", message)
        self.c.event(self.scaler, "Normal", "SuccessfulRescale", f"New size: {desired}; reason: {why}")
        if self.spec.get("behavior") is not None:
            changes = self.c.ups if desired > current else self.c.downs
            kept = [c for c in changes.get(self.key, []) if self.now - c.at < 1800]
            changes[self.key] = [*kept, rules.Change(abs(desired - current), self.now)]
        self.status["desiredReplicas"] = desired
        self.status["lastScaleTime"] = now()

    async def _resize(self, resource: Resource, scale: Object, desired: int) -> None:
        name = self.spec["scaleTargetRef"]["name"]
        for left in reversed(range(CONFLICTS)):
            body = {**scale, "spec": {**(scale.get("spec") or {}), "replicas": desired}}
            body["metadata"] = {**scale["metadata"], "namespace": self.namespace}
            try:
                await self.c.client.update(resource, body, subresource="scale")
                return
            except StatusError as error:
                if not is_conflict(error) or not left:
                    raise
            scale = await self.c.client.get(resource, name, self.namespace, subresource="scale")

    # -- metrics -----------------------------------------------------------------------------------------------------------

    async def _from_metrics(self, scale: Object, current: int) -> tuple[int, str] | None:
        """(replicas, which metric asked for them), or None when nothing can be said."""
        selector = (scale.get("status") or {}).get("selector") or ""
        metrics = self.spec.get("metrics") or []
        pods = self._selected(selector)
        if pods is None:
            return None
        sizes = current, int((scale.get("status") or {}).get("replicas") or 0)
        best: tuple[int, str] | None = None
        statuses: list[Object] = []
        failures: list[tuple[str, str, str]] = []
        for spec in metrics:
            try:
                count, name, status = await self._one(spec, selector, pods, *sizes)
            except MetricsError as error:
                reason = REASONS.get(spec.get("type", ""), "InvalidMetricSourceType")
                failures.append((reason, str(error), self._metric_words(spec)))
                self._warn(reason, str(error))
                statuses.append({"type": ""})
                continue
            statuses.append(status)
            if best is None or best[0] == 0 or count > best[0]:
                best = (count, name)
        self.status["currentMetrics"] = statuses
        if failures and (best is None or best[0] < current):
            reason, message, what = failures[0]
            text = f"the HPA was unable to compute the replica count: {message}"
            self._put("ScalingActive", False, reason, text)
            summary = f"invalid metrics ({len(failures)} invalid out of {len(metrics)}), first error is: "
            self._warn("FailedComputeMetricsReplicas", f"{summary}failed to get {what} metric value: {message}")
            return None
        if best is None:
            return None
        message = f"the HPA was able to successfully calculate a replica count from {best[1]}"
        self._put("ScalingActive", True, "ValidMetricFound", message)
        return best

    def _selected(self, text: str) -> list[Object] | None:
        """The target's pods, or None (and a condition) when the selector is none, or others' targets have them too."""
        if not text:
            self._warn("SelectorRequired", MISSING_SELECTOR)
            self._put("ScalingActive", False, "InvalidSelector", "the HPA target's scale is missing a selector")
            self._warn("FailedComputeMetricsReplicas", MISSING_SELECTOR)
            return None
        try:
            selector = parse_labels(text)
        except SelectorError as error:
            words = f"couldn't convert selector into a corresponding internal selector object: {error}"
            self._warn("InvalidSelector", words)
            self._put("ScalingActive", False, "InvalidSelector", words)
            self._warn("FailedComputeMetricsReplicas", words)
            return None
        self.c.selectors[self.key] = selector
        pods = [
            pod
            for pod in self.c.pods.store.list(self.namespace)
            if selector is None or selector.matches(pod["metadata"].get("labels") or {})
        ]
        others = self.c.selecting(self.namespace, pods)
        if len(others) > 1:
            names = " ".join(f"{{{name} {self.namespace}}}" for name in others)
            words = f"pods by selector {text} are controlled by multiple HPAs: [{names}]"
            self._warn("AmbiguousSelector", words)
            self._put("ScalingActive", False, "AmbiguousSelector", words)
            self._warn("FailedComputeMetricsReplicas", words)
            return None
        return pods

    @staticmethod
    def _metric_words(spec: Object) -> str:
        """What upstream calls a metric that gave no figure."""
        kind = spec.get("type", "")
        if kind == "Resource":
            return f"{spec['resource']['name']} resource"
        if kind == "ContainerResource":
            return f"{spec['containerResource']['container']} container"
        if kind == "External":
            return f"{spec['external']['metric']['name']} external"
        return str(kind).lower()

    async def _one(
        self, spec: Object, selector: str, pods: list[Object], current: int, running: int
    ) -> tuple[int, str, Object]:
        """(replicas, name, status) of one metric. current, running: replicas of the target's spec and status. Raises
        MetricsError."""
        kind = spec["type"]
        if kind in ("Resource", "ContainerResource"):
            return await self._resource(spec, selector, pods, current)
        source = spec[kind[0].lower() + kind[1:]]
        metric, target = source["metric"], source["target"]
        if kind == "Pods":
            figures = await self.c.metrics.pods(metric, self.namespace, selector)
            goal = parse(str(target["averageValue"])).milli_value
            count, _, used = self._per_pod(current, pods, figures, "", None, goal)
            body = {"metric": metric, "current": {"averageValue": shown(used)}}
            return count, f"pods metric {metric['name']}", {"type": kind, "pods": body}
        if kind == "Object":
            described = source["describedObject"]
            resource = await self.c.resource_of(described)
            plural = resource.plural if resource is not None else described["kind"].lower() + "s"
            used = await self.c.metrics.object(metric, self.namespace, plural, described)
            name = f"{described['kind']} metric {metric['name']}"
            extra = {"describedObject": described}
        elif kind == "External":
            used = await self.c.metrics.external(metric, self.namespace)
            name, extra = f"external metric {metric['name']}({selector_words(metric.get('selector'))})", {}
        else:
            raise MetricsError(f'unknown metric source type "{kind}"')
        if target.get("averageValue") is not None:
            goal = parse(str(target["averageValue"])).milli_value
            count = rules.from_average(running, used, goal, self.tolerance)
            figure = {"averageValue": shown(math.ceil(used / max(1, running)))}
            name = f"external metric {metric['name']}({selector_words(metric.get('selector'))})"  # upstream's for both
        else:
            goal = parse(str(target["value"])).milli_value
            if current and not self.tolerance.holds(used / goal) and not pods:
                raise MetricsError(f"unable to calculate ready pods: {NO_PODS}")
            ready = sum(
                1 for p in pods if phase(p) == "Running" and (condition(p, "Ready") or {}).get("status") == "True"
            )
            count = rules.from_total(current, ready, used, goal, self.tolerance)
            figure = {"value": shown(used)}
        field = kind[0].lower() + kind[1:]
        return count, name, {"type": kind, field: {"metric": metric, "current": figure, **extra}}

    def _per_pod(
        self, current: int, pods: list[Object], figures: dict[str, rules.Figure], resource: str,
        requests: dict[str, int] | None, goal: int,
    ) -> tuple[int, int, int]:  # fmt: skip
        """rules.from_ratio for the target's pods. Raises MetricsError."""
        options = self.c.options
        groups = rules.group(
            pods,
            figures,
            resource,
            self.now,
            options.horizontal_pod_autoscaler_cpu_initialization_period,
            options.horizontal_pod_autoscaler_initial_readiness_delay,
        )
        if not pods:
            raise MetricsError(NO_PODS)
        try:
            return rules.from_ratio(current, groups, figures, requests, goal, self.tolerance)
        except rules.NoFiguresError as error:
            raise MetricsError(str(error)) from error

    async def _resource(self, spec: Object, selector: str, pods: list[Object], current: int) -> tuple[int, str, Object]:
        kind = spec["type"]
        source = spec["resource" if kind == "Resource" else "containerResource"]
        name, target, container = source["name"], source["target"], source.get("container", "")
        percent = target.get("averageUtilization") is not None
        try:
            figures = await self.c.metrics.resource(name, self.namespace, selector, container)
            goal = int(target["averageUtilization"]) if percent else parse(str(target["averageValue"])).milli_value
            requests = {p["metadata"]["name"]: request_of(p, name, container) for p in pods} if percent else None
            count, present, used = self._per_pod(current, pods, figures, name, requests, goal)
        except MetricsError as error:
            raise MetricsError(f"failed to get {name} {'utilization' if percent else 'usage'}: {error}") from error
        figure: Object = {"averageValue": shown(used, name)}
        label = f"{name} resource"
        if percent:
            figure["averageUtilization"] = present
            label = f"{name} {'container ' if container else ''}resource utilization (percentage of request)"
        body: Object = {"name": name, "current": figure}
        if container:
            body["container"] = container
        return count, label, {"type": kind, kind[0].lower() + kind[1:]: body}

    # -- bounds and behaviour ----------------------------------------------------------------------------------------------

    def _within(self, current: int, proposed: int) -> int:
        """What may be done of what the metrics propose."""
        if self.spec.get("behavior") is None:
            stable = self._steady(proposed)
            desired, reason, message = rules.plain_limits(current, self.min, self.max, stable)
            self._put("ScalingLimited", desired != stable, reason, message)
            return desired
        stable = self._stabilized(current, proposed)
        ups, downs = self.c.ups.get(self.key, []), self.c.downs.get(self.key, [])
        if stable > current:
            limit = max(current, rules.up_limit(self.up_rules, current, ups, downs, self.now))
            top = min(self.max, limit)
            if stable > top:
                many = "the desired replica count is more than the maximum replica count"
                rate = "the desired replica count is increasing faster than the maximum scale rate"
                over = ("TooManyReplicas", many) if self.max <= limit else ("ScaleUpLimit", rate)
                self._put("ScalingLimited", True, *over)
                return top
        elif stable < current:
            limit = min(current, rules.down_limit(self.down_rules, current, ups, downs, self.now))
            bottom = max(self.min, limit)
            if stable < bottom:
                few = "the desired replica count is less than the minimum replica count"
                rate = "the desired replica count is decreasing faster than the maximum scale rate"
                under = ("TooFewReplicas", few) if self.min >= limit else ("ScaleDownLimit", rate)
                self._put("ScalingLimited", True, *under)
                return bottom
        elif stable < self.min or stable > self.max:
            return max(self.min, min(self.max, stable))
        self._put("ScalingLimited", False, "DesiredWithinRange", "the desired count is within the acceptable range")
        return stable

    def _steady(self, proposed: int) -> int:
        """The most that was asked for within the stabilization period, for an autoscaler without behaviour."""
        window = self.c.options.horizontal_pod_autoscaler_downscale_stabilization
        past = [(n, t) for n, t in self.c.recommendations.get(self.key, []) if self.now - t <= window]
        self.c.recommendations[self.key] = [*past, (proposed, self.now)]
        most = max([proposed, *(n for n, _ in past)])
        if most != proposed:
            message = "recent recommendations were higher than current one, applying the highest recent recommendation"
            self._put("AbleToScale", True, "ScaleDownStabilized", message)
        else:
            self._put("AbleToScale", True, "ReadyForNewScale", "recommended size matches current size")
        return most

    def _stabilized(self, current: int, proposed: int) -> int:
        """The proposal after the stabilization windows: the least that was asked for on the way up, the most down."""
        up_window = float(self.up_rules.get("stabilizationWindowSeconds") or 0)
        down_window = self.down_rules.get("stabilizationWindowSeconds")
        if down_window is None:
            down_window = self.c.options.horizontal_pod_autoscaler_downscale_stabilization
        longest = max(up_window, float(down_window))
        past = [(n, t) for n, t in self.c.recommendations.get(self.key, []) if self.now - t <= longest]
        least = min([proposed, *(n for n, t in past if self.now - t < up_window)])
        most = max([proposed, *(n for n, t in past if self.now - t < float(down_window))])
        self.c.recommendations[self.key] = [*past, (proposed, self.now)]
        result = current
        if result < least:
            result = least
        if result > most:
            result = most
        if result != proposed:
            way, extreme = ("Up", "lower") if proposed >= current else ("Down", "higher")
            edge = "lowest" if way == "Up" else "highest"
            message = (
                f"recent recommendations were {extreme} than current one, applying the {edge} recent recommendation"
            )
            self._put("AbleToScale", True, f"Scale{way}Stabilized", message)
        else:
            self._put("AbleToScale", True, "ReadyForNewScale", "recommended size matches current size")
        return result
