"""Plugins that are off unless they are asked for: about images, namespaces, node selectors and the rate of events.

Source: plugin/pkg/admission/{alwayspullimages,podnodeselector,eventratelimit,imagepolicy,namespace,admit,deny,
extendedresourcetoleration}.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import orjson

from longshore.client.config import ConfigError
from longshore.machinery.errors import StatusError, bad_request, not_found
from longshore.master.apiserver.admission.base import PODS, Object, Plugin, refuse
from longshore.master.apiserver.admission.configuration import PluginConfiguration
from longshore.master.apiserver.configfile import ConfigurationError
from longshore.master.apiserver.context import AdmissionRequest
from longshore.master.apiserver.remote import Remembered, Remote
from longshore.master.apiserver.throttle import TokenBucket

_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")


class AlwaysAdmit(Plugin):
    """Says nothing."""

    name = "AlwaysAdmit"


class AlwaysDeny(Plugin):
    """Refuses everything."""

    name = "AlwaysDeny"
    operations = frozenset(("CREATE", "UPDATE", "DELETE", "CONNECT"))
    subresources = None

    async def admit(self, a: AdmissionRequest) -> None:
        raise refuse(a, "admission control is denying all modifications")

    async def validate(self, a: AdmissionRequest) -> None:
        raise refuse(a, "admission control is denying all modifications")


class AlwaysPullImages(Plugin):
    """Nobody runs an image that somebody else has pulled."""

    name = "AlwaysPullImages"
    resources = PODS
    subresources = frozenset(("", "ephemeralcontainers"))

    async def admit(self, a: AdmissionRequest) -> None:
        if a.object is None or self._same(a):
            return
        for kind in _CONTAINERS:
            for container in a.object["spec"].get(kind) or ():
                container["imagePullPolicy"] = "Always"
        for volume in a.object["spec"].get("volumes") or ():
            if volume.get("image") and volume["image"].get("reference"):
                volume["image"]["pullPolicy"] = "Always"

    async def validate(self, a: AdmissionRequest) -> None:
        if a.object is None or self._same(a):
            return
        for kind in _CONTAINERS:
            for i, container in enumerate(a.object["spec"].get(kind) or ()):
                policy = container.get("imagePullPolicy", "")
                if policy != "Always":
                    raise refuse(
                        a,
                        f'spec.{kind}[{i}].imagePullPolicy: Unsupported value: "{policy}": supported values: "Always"',
                    )

    @staticmethod
    def _same(a: AdmissionRequest) -> bool:
        """Whether an update brings no other image."""
        if a.operation != "UPDATE" or a.old is None:
            return False

        def images(pod: Object) -> set[str]:
            return {c.get("image", "") for kind in _CONTAINERS for c in pod["spec"].get(kind) or ()}

        return images(a.object or a.old) <= images(a.old)


class NamespaceExists(Plugin):
    """Refuses what is for a namespace that is not there."""

    name = "NamespaceExists"
    operations = frozenset(("CREATE", "UPDATE", "DELETE"))
    subresources = None

    async def validate(self, a: AdmissionRequest) -> None:
        namespace = a.attributes.namespace
        if not namespace or a.attributes.resource == "namespaces":
            return
        if await a.api.get_live("", "namespaces", "", namespace) is None:
            raise not_found("", "namespaces", namespace)


class NamespaceAutoProvision(Plugin):
    """Makes the namespace of what is created, when it is not there."""

    name = "NamespaceAutoProvision"
    operations = frozenset(("CREATE",))
    subresources = None

    async def admit(self, a: AdmissionRequest) -> None:
        namespace = a.attributes.namespace
        if a.dry_run or not namespace or a.attributes.resource == "namespaces":
            return
        if a.api.peek("", "namespaces", "", namespace) is not None:
            return
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        try:
            await a.api.create("", "namespaces", "", made)
        except StatusError as error:
            if error.reason != "AlreadyExists":
                raise


class ExtendedResourceToleration(Plugin):
    """Pods that ask for a device bear the taint of nodes that have it."""

    name = "ExtendedResourceToleration"
    resources = PODS

    async def admit(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        spec = a.object["spec"]
        names: set[str] = set()
        for kind in _CONTAINERS[:2]:
            for container in spec.get(kind) or ():
                names |= {n for n in (container.get("resources") or {}).get("requests") or () if _extended(n)}
        given = spec.get("tolerations") or []
        missing = [
            {"key": name, "operator": "Exists"} for name in sorted(names)
            if not any(t.get("key") == name and t.get("operator") == "Exists" and not t.get("effect") for t in given)
        ]  # fmt: skip
        if missing:
            spec["tolerations"] = [*given, *missing]


def _extended(name: str) -> bool:
    return "/" in name and "kubernetes.io/" not in name and not name.startswith("requests.")


class PodNodeSelector(Plugin):
    """A namespace's node selector is its pods' as well; a list says which labels they may ask for."""

    name = "PodNodeSelector"
    operations = frozenset(("CREATE",))
    resources = PODS
    annotation = "scheduler.alpha.kubernetes.io/node-selector"

    def __init__(self, configuration: PluginConfiguration) -> None:
        given = (configuration.of(self.name) or {}).get("podNodeSelectorPluginConfig") or {}
        self._selectors = {str(k): _labels(str(v)) for k, v in given.items()}

    async def admit(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        spec = a.object["spec"]
        wanted, mine = await self._wanted(a), spec.get("nodeSelector") or {}
        if any(mine.get(k, v) != v for k, v in wanted.items()):
            raise refuse(a, "pod node label selector conflicts with its namespace node label selector")
        if wanted:
            spec["nodeSelector"] = {**wanted, **mine}
        self._check_allowed(a)

    async def validate(self, a: AdmissionRequest) -> None:
        await self.admit(a)

    def _check_allowed(self, a: AdmissionRequest) -> None:
        allowed = self._selectors.get(a.attributes.namespace) or {}
        mine = ((a.object or {}).get("spec") or {}).get("nodeSelector") or {}
        if allowed and any(allowed.get(k) != v for k, v in mine.items()):
            raise refuse(a, "pod node label selector labels conflict with its namespace whitelist")

    async def _wanted(self, a: AdmissionRequest) -> dict[str, str]:
        name = a.attributes.namespace
        found = a.api.peek("", "namespaces", "", name) or await a.api.get_live("", "namespaces", "", name)
        if found is None:
            raise not_found("", "namespaces", name)
        text = (found["metadata"].get("annotations") or {}).get(self.annotation)
        if text is None:
            return self._selectors.get("clusterDefaultNodeSelector", {})
        try:
            return _labels(text)
        except ConfigurationError as error:
            raise bad_request(str(error)) from None


def _labels(text: str) -> dict[str, str]:
    out = {}
    for part in filter(None, text.split(",")):
        key, sep, value = part.partition("=")
        if not sep:
            raise ConfigurationError(f"invalid selector: [{part}]")
        out[key.strip()] = value.strip().lstrip("=")
    return out


class _Limit:
    """One limit on events: a bucket for each key that its type finds in a request."""

    def __init__(self, given: Object, at: str) -> None:
        self.kind = given.get("type")
        if self.kind not in ("Server", "Namespace", "User", "SourceAndObject"):
            raise ConfigurationError(
                f'{at}.type: Unsupported value: "{self.kind}": supported values: "Namespace", "Server", "SourceAndObject",'
                ' "User"'
            )
        self._rate, self._burst = given.get("qps") or 0, given.get("burst") or 0
        for name, value in (("burst", self._burst), ("qps", self._rate)):
            if value <= 0:
                raise ConfigurationError(f"{at}.{name}: Invalid value: {value}: must be positive")
        self._size = given.get("cacheSize") or 4096
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def problem(self, a: AdmissionRequest) -> str:
        key = self._key(a)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst)
            if len(self._buckets) > self._size:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return "" if bucket.take() else f"limit reached on type {self.kind} for key {key}"

    def _key(self, a: AdmissionRequest) -> str:
        if self.kind == "Namespace":
            return a.attributes.namespace
        if self.kind == "User":
            return a.attributes.user.name
        if self.kind == "Server":
            return ""
        event = a.object or {}
        source, about = event.get("source") or {}, event.get("involvedObject") or {}
        parts = [source.get("component"), source.get("host")]
        parts += [about.get(k) for k in ("kind", "namespace", "name", "uid", "apiVersion")]
        return "".join(p or "" for p in parts)


class EventRateLimit(Plugin):
    """Keeps events from drowning the server."""

    name = "EventRateLimit"
    resources = frozenset((("", "events"), ("events.k8s.io", "events")))

    def __init__(self, configuration: PluginConfiguration) -> None:
        given = configuration.of(self.name, "Configuration", ("eventratelimit.admission.k8s.io/v1alpha1",)) or {}
        limits = given.get("limits") or []
        if not limits:
            raise ConfigurationError("limits: Invalid value: []: must not be empty")
        self._limits = [_Limit(entry, f"limits[{i}]") for i, entry in enumerate(limits)]

    async def validate(self, a: AdmissionRequest) -> None:
        if a.dry_run:
            return
        problems = [p for p in (limit.problem(a) for limit in self._limits) if p]
        if problems:
            text = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
            raise StatusError(429, "TooManyRequests", f"Too many requests: {text}", {})


class ImagePolicyWebhook(Plugin):
    """Another server says which images may run."""

    name = "ImagePolicyWebhook"
    resources = PODS
    subresources = frozenset(("", "ephemeralcontainers"))
    key = "imagepolicywebhook.image-policy.k8s.io/"

    def __init__(self, configuration: PluginConfiguration) -> None:
        given = (configuration.of(self.name) or {}).get("imagePolicy")
        if given is None:
            raise ConfigurationError('couldn\'t init admission plugin "ImagePolicyWebhook": no config specified')
        wait = _ranged(given, "retryBackoff", 500, 1, 300_000) / 1000
        self._allow_seconds = _ranged(given, "allowTTL", 300, 1, 1800)
        self._deny_seconds = _ranged(given, "denyTTL", 30, 1, 1800)
        self._default = bool(given.get("defaultAllow"))
        self._remote = Remote(configuration.folder / str(given.get("kubeConfigFile", "")), first_wait=wait)
        try:
            self._remote.open()
        except ConfigError as error:
            raise ConfigurationError(str(error)) from None
        self._known = Remembered()

    async def validate(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        kinds = ("ephemeralContainers",) if a.attributes.subresource else ("containers", "initContainers")
        notes = (a.object["metadata"].get("annotations") or {}).items()
        spec: Object = {
            "containers": [{"image": c.get("image", "")} for kind in kinds for c in a.object["spec"].get(kind) or ()],
            "annotations": {k: v for k, v in notes if ".image-policy.k8s.io/" in k},
            "namespace": a.attributes.namespace,
        }
        spec = {k: v for k, v in spec.items() if v}
        status = await self._asked(a, spec)
        if status is None:
            return
        for key, value in (status.get("auditAnnotations") or {}).items():
            a.annotations[self.key + key] = str(value)
        if not status.get("allowed"):
            reason = status.get("reason")
            raise refuse(
                a,
                f"image policy webhook backend denied one or more images: {reason}"
                if reason
                else "one or more images rejected by webhook backend",
            )

    async def _asked(self, a: AdmissionRequest, spec: Object) -> Object | None:
        """The server's word, None when it could not be asked and that is no reason to refuse."""
        key = orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)
        found: Object | None = self._known.find(key)
        if found is not None:
            return found
        head = {"kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "metadata": {}}
        try:
            answer: Any = orjson.loads(await self._remote.post(orjson.dumps({**head, "spec": spec})))
            status: Object = answer["status"]
            allowed = bool(status.get("allowed"))
        except (OSError, ValueError, TimeoutError, KeyError, TypeError, AttributeError) as error:
            if not self._default:
                raise refuse(a, str(error)) from None
            a.annotations[self.key + "failed-open"] = "true"
            return None
        self._known.keep(key, status, self._allow_seconds if allowed else self._deny_seconds)
        return status


def _ranged(given: Object, name: str, default: int, low: int, high: int) -> int:
    value = given.get(name) or default
    if value == -1:
        return 0
    if not low <= value <= high:
        raise ConfigurationError(f"valid value for {name} is between {low} and {high}, got {value}")
    return int(value)
