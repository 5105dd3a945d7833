"""Figures for the autoscaler: resource metrics (metrics.k8s.io), custom and external ones, from the aggregated APIs.

Source: kubernetes pkg/controller/podautoscaler/metrics, paths and error texts.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from longshore.client.objects import seconds
from longshore.client.rest import Client
from longshore.client.selectors import as_text
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.machinery.quantity import Quantity, parse
from longshore.master.controllers.hparules import Figure

CUSTOM = "/apis/custom.metrics.k8s.io/v1beta2"
EXTERNAL = "/apis/external.metrics.k8s.io/v1beta1"
RESOURCE = "/apis/metrics.k8s.io/v1beta1"


class MetricsError(Exception):
    """There is no figure; str() is upstream's message."""


def milli(value: Any) -> int:
    return parse(str(value)).milli_value


def window(item: Object) -> float:
    text = str(item.get("window") or item.get("windowSeconds") or "60s")
    number = text.rstrip("smh")
    factor = {"m": 60.0, "h": 3600.0}.get(text[-1:], 1.0)
    try:
        return float(number) * factor
    except ValueError:
        return 60.0


class Metrics:
    """Asks the metrics APIs."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def _get(self, path: str, query: dict[str, str], what: str, api: str) -> Object:
        try:
            return await self.client.call("GET", path, query)
        except StatusError as error:
            text = error.message
            if error.code == 404 and not (error.details or {}).get("name"):
                text = f"the server could not find the requested resource (get {what})"
            raise MetricsError(f"unable to fetch metrics from {api} metrics API: {text}") from error
        except (OSError, TimeoutError) as error:
            raise MetricsError(f"unable to fetch metrics from {api} metrics API: {error}") from error

    async def resource(self, name: str, namespace: str, selector: str, container: str = "") -> dict[str, Figure]:
        """A resource's use by pod (or by one of its containers)."""
        path = f"{RESOURCE}/namespaces/{namespace}/pods"
        try:
            answer = await self._get(path, {"labelSelector": selector}, "pods.metrics.k8s.io", "resource")
        except MetricsError as error:
            raise MetricsError(f"unable to get metrics for resource {name}: {error}") from error
        items = answer.get("items") or []
        if not items:
            raise MetricsError(
                f"unable to get metrics for resource {name}: no metrics returned from resource metrics API"
            )
        result: dict[str, Figure] = {}
        for item in items:
            total, whole = 0, True
            for entry in item.get("containers") or ():
                if container and entry["name"] != container:
                    continue
                value = (entry.get("usage") or {}).get(name)
                if value is None:
                    whole = False
                    break
                total += milli(value)
            if whole:
                result[item["metadata"]["name"]] = Figure(total, seconds(item.get("timestamp")), window(item))
        return result

    async def pods(self, metric: Object, namespace: str, selector: str) -> dict[str, Figure]:
        """A custom metric by pod."""
        path = f"{CUSTOM}/namespaces/{namespace}/pods/*/{quote(metric['name'], safe='')}"
        query = {"labelSelector": selector, "metricLabelSelector": as_text(metric.get("selector"))}
        answer = await self._get(path, query, "pods.custom.metrics.k8s.io", "custom")
        items = answer.get("items") or []
        if not items:
            raise MetricsError("no metrics returned from custom metrics API")
        return {
            i["describedObject"]["name"]: Figure(milli(i["value"]), seconds(i.get("timestamp")), window(i))
            for i in items
        }

    async def object(self, metric: Object, namespace: str, plural: str, described: Object) -> int:
        """A custom metric of one object, in thousandths."""
        scope, name = "" if plural == "namespaces" else f"/namespaces/{namespace}", described["name"]
        path = f"{CUSTOM}{scope}/{plural}/{name}/{quote(metric['name'], safe='')}"
        query = {"metricLabelSelector": as_text(metric.get("selector"))}
        answer = await self._get(path, query, f"{plural}.custom.metrics.k8s.io", "custom")
        items = answer.get("items") or []
        if not items:
            raise MetricsError("no metrics returned from custom metrics API")
        return milli(items[0]["value"])

    async def external(self, metric: Object, namespace: str) -> int:
        """The sum of an external metric's values, in thousandths."""
        path = f"{EXTERNAL}/namespaces/{namespace}/{quote(metric['name'], safe='')}"
        query = {"labelSelector": as_text(metric.get("selector"))}
        answer = await self._get(path, query, f"{metric['name']}.external.metrics.k8s.io", "external")
        items = answer.get("items") or []
        if not items:
            raise MetricsError("no metrics returned from external metrics API")
        return sum(milli(i["value"]) for i in items)


def request_of(pod: Object, resource: str, container: str) -> int:
    """What a pod (or one of its containers) requests of a resource, in thousandths. Raises MetricsError."""
    name, spec = pod["metadata"]["name"], pod["spec"]
    whole = (spec.get("resources") or {}).get("requests") or {}
    if not container and resource in whole:
        return milli(whole[resource])
    total, seen = 0, False
    sidecars = (c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always")
    for entry in (*(spec.get("containers") or ()), *sidecars):
        if container and entry["name"] != container:
            continue
        value = ((entry.get("resources") or {}).get("requests") or {}).get(resource)
        if value is None and whole and not container:
            raise MetricsError(f"missing pod-level request for {resource} in Pod {name}")
        if value is None:
            raise MetricsError(f"missing request for {resource} in container {entry['name']} of Pod {name}")
        total, seen = total + milli(value), True
    if container and not seen:
        raise MetricsError(f"container {container} not found in Pod {name}")
    return total


def shown(milli: int, resource: str = "") -> str:
    return str(Quantity(milli * 10**6, "BinarySI" if resource == "memory" else "DecimalSI"))


def selector_words(selector: Object | None) -> str:
    """A label selector as Go prints it."""
    if selector is None:
        return "nil"
    labels = "".join(f"{k}: {v}," for k, v in sorted((selector.get("matchLabels") or {}).items()))
    terms = "".join(
        f"LabelSelectorRequirement{{Key:{t['key']},Operator:{t['operator']},Values:[{' '.join(t.get('values') or ())}],}},"
        for t in selector.get("matchExpressions") or ()
    )
    return f"&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{terms}}},}}"
