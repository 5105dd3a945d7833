"""MutatingAdmissionWebhook and ValidatingAdmissionWebhook: other servers are asked about what is written.

Source: staging apiserver pkg/admission/plugin/webhook/{generic,mutating,validating}. Redirects are never followed.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from longshore.api import decoding
from longshore.api.admissionmatching import VARIABLES
from longshore.client import config
from longshore.client.config import Config
from longshore.machinery.errors import StatusError, internal_error
from longshore.machinery.http import Client
from longshore.machinery.patch import jsonpatch
from longshore.machinery.selectors import SelectorError
from longshore.master.apiserver.admission import matching
from longshore.master.apiserver.admission.base import Object, Plugin
from longshore.master.apiserver.admission.configuration import PluginConfiguration
from longshore.master.apiserver.configfile import ConfigurationError
from longshore.master.apiserver.context import AdmissionRequest

_GROUP = "admissionregistration.k8s.io"
_MATCH = {k: VARIABLES[k] for k in ("object", "oldObject", "request", "authorizer", "authorizer.requestResource")}
MAX_ANSWER = 3 * 1024 * 1024


class CallFailed(Exception):
    """A webhook could not be asked, or made no sense; str() says why."""


class Refused(Exception):
    """A webhook refused."""

    def __init__(self, error: StatusError) -> None:
        super().__init__(error.message)
        self.error = error


class Credentials:
    """What this server shows webhooks: the users of a kubeconfig, by the webhooks' names and ports.

    Source: k8s.io/apiserver/pkg/util/webhook/authentication.go.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._folder = file.parent if file is not None else Path()
        self._users: dict[str, Object] = {}
        if file is not None:
            document = decoding.parse_yaml(file.read_bytes()).value
            users = document.get("users") or () if isinstance(document, dict) else ()
            self._users = {entry["name"]: entry.get("user") or {} for entry in users}

    @staticmethod
    def read(configuration: PluginConfiguration, plugin: str) -> Credentials:
        """The kubeconfig of a plugin's WebhookAdmissionConfiguration. ConfigurationError, OSError."""
        versions = ("apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1alpha1")
        given = configuration.of(plugin)
        kind = (
            "WebhookAdmission" if (given or {}).get("kind") == "WebhookAdmission" else "WebhookAdmissionConfiguration"
        )
        found = configuration.of(plugin, kind, versions)
        name = (found or {}).get("kubeConfigFile")
        if not name:
            return Credentials()
        if not Path(name).is_absolute():
            raise ConfigurationError(f'kubeConfigFile must be an absolute file path: "{name}"')
        try:
            return Credentials(Path(name))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{name}: {error}") from None

    def find(self, host: str, port: int) -> Config | None:
        """What to show a server, None for nothing."""
        if not self._users:
            return None
        names = [f"{host}:{port}", *([host] if port == 443 else [])]
        wild = [f"*.{part}" for name in names for part in _suffixes(name)]
        for name in (*names, *wild, "*"):
            if name in self._users:
                named = {"name": "webhook"}
                document = {
                    "current-context": "webhook", "clusters": [{**named, "cluster": {"server": "https://webhook"}}],
                    "contexts": [{**named, "context": {"cluster": "webhook", "user": "webhook"}}],
                    "users": [{**named, "user": self._users[name]}],
                }  # fmt: skip
                try:
                    return config.parse(document, base=self._folder)
                except config.ConfigError as error:
                    raise CallFailed(str(error)) from None
        return None


def _suffixes(name: str) -> list[str]:
    steps = name.split(".")
    return [".".join(steps[i:]) for i in range(1, len(steps))]


class _Webhooks(Plugin):
    operations = frozenset(("CREATE", "UPDATE", "DELETE", "CONNECT"))
    subresources = None
    configurations = ""

    def __init__(self, api: Any, credentials: Credentials | None = None) -> None:
        self.api = api
        self._credentials = credentials or Credentials()
        self._generation = -1
        self._hooks: list[tuple[str, Object]] = []
        self._clients: dict[Any, Client] = {}

    def _current(self) -> list[tuple[str, Object]]:
        generation = self.api.generation(_GROUP, self.configurations)
        if generation != self._generation:
            listed = sorted(self.api.list(_GROUP, self.configurations), key=lambda c: c["metadata"]["name"])
            self._hooks = [(c["metadata"]["name"], hook) for c in listed for hook in c.get("webhooks") or ()]
            self._generation = generation
        return self._hooks

    async def _wanted(self, a: AdmissionRequest, hook: Object) -> matching.Target | None:
        """The form in which a webhook wants the request, None when it does not. StatusError when that cannot be told."""
        target = matching.find_target(a, hook.get("rules") or [], [], hook.get("matchPolicy") or "Equivalent")
        if target is None:
            return None
        try:
            if not matching.selected(a, hook):
                return None
        except SelectorError as error:
            raise internal_error(str(error)) from None
        conditions = hook.get("matchConditions") or []
        if conditions:
            known: dict[Any, Any] = {}
            values = matching.frame(a, target, str(uuid.uuid4()), known)
            holds, problem = await matching.conditions_hold(conditions, _MATCH, values, a, known)
            if problem:
                if hook.get("failurePolicy") == "Ignore":
                    return None
                raise StatusError(
                    403, "Forbidden", f"failed calling webhook, failing closed {hook['name']}: {problem}", {}
                )
            if not holds:
                return None
        return target

    def _client(self, hook: Object) -> tuple[Client, str]:
        """The client for a webhook, and its URL."""
        given = hook["clientConfig"]
        bundle = given.get("caBundle") or ""
        service = given.get("service")
        if service is not None:
            name = f"{service['name']}.{service['namespace']}.svc"
            found = self.api.get("", "services", service["namespace"], service["name"])
            if found is None:
                raise CallFailed(f'service "{service["name"]}" not found')
            address, port = self._resolve(found, service.get("port") or 443)
            host = f"[{address}]" if ":" in address else address
            url = f"https://{host}:{port}{service.get('path') or '/'}"
            target = (name, service.get("port") or 443)
        else:
            name, url = "", given["url"]
            parts = urlsplit(url)
            target = (parts.hostname or "", parts.port or 443)
        shown = self._credentials.find(*target)
        key = (name, bundle, target if shown is not None else None)
        client = self._clients.get(key)
        if client is None:
            if not bundle:
                context = ssl.create_default_context()
            else:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                try:
                    context.load_verify_locations(cadata=base64.b64decode(bundle).decode("utf-8", "replace"))
                except (ssl.SSLError, ValueError) as error:
                    raise CallFailed(f"unable to load root certificates: {error}") from None
            client = self._clients[key] = Client(
                ssl=context, headers=_shown(shown, context), server_hostname=name or None, connect_timeout=10
            )
        return client, url

    def _resolve(self, service: Object, port: int) -> tuple[str, int]:
        """An address behind a service: an endpoint that is ready, reached without the service's own address."""
        spec = service["spec"]
        if spec.get("type") == "ExternalName":
            return spec.get("externalName", ""), port
        wanted = next((p for p in spec.get("ports") or () if p.get("port") == port), None)
        if wanted is None:
            raise CallFailed(f'no service port {port} found for service "{service["metadata"]["name"]}"')
        labels = {"kubernetes.io/service-name": service["metadata"]["name"]}
        for part in self.api.list(
            "discovery.k8s.io", "endpointslices", service["metadata"].get("namespace", ""), labels
        ):
            number = next(
                (p.get("port") for p in part.get("ports") or () if (p.get("name") or "") == (wanted.get("name") or "")),
                None,
            )
            for endpoint in part.get("endpoints") or ():
                if (
                    (endpoint.get("conditions") or {}).get("ready") is not False
                    and endpoint.get("addresses")
                    and number
                ):
                    return endpoint["addresses"][0], number
        if spec.get("clusterIP") and spec["clusterIP"] != "None":
            return spec["clusterIP"], port
        raise CallFailed(f'no endpoints available for service "{service["metadata"]["name"]}"')

    async def _ask(self, a: AdmissionRequest, hook: Object, target: matching.Target) -> Object:
        """The webhook's response. CallFailed."""
        if a.dry_run and hook.get("sideEffects") not in ("None", "NoneOnDryRun"):
            raise Refused(
                StatusError(400, "BadRequest", f'admission webhook "{hook["name"]}" does not support dry run')
            )
        uid = str(uuid.uuid4())
        version = "v1" if "v1" in (hook.get("admissionReviewVersions") or ()) else "v1beta1"
        request = matching.request_value(a, target, uid)
        for key, obj in (("object", a.object), ("oldObject", a.old)):
            request[key] = matching.converted(a, obj, target)
        request["options"] = a.options or None
        review = {"kind": "AdmissionReview", "apiVersion": f"admission.k8s.io/{version}", "request": request}
        seconds = hook.get("timeoutSeconds") or 10
        try:
            client, url = self._client(hook)
            answer = await client.request(
                "POST",
                f"{url}{'&' if '?' in url else '?'}timeout={seconds}s",
                headers=[("Content-Type", "application/json"), ("Accept", "application/json")],
                body=orjson.dumps(review),
                timeout=seconds,
            )
            body = await answer.read(MAX_ANSWER)
        except TimeoutError:
            raise CallFailed("context deadline exceeded") from None
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError) as error:
            raise CallFailed(
                f'failed to call webhook: Post "{hook["clientConfig"].get("url", hook["name"])}?timeout={seconds}s": {error}'
            ) from None
        except ValueError as error:
            raise CallFailed(f"failed to call webhook: {error}") from None
        if answer.status != 200:
            raise CallFailed(
                f"failed to call webhook: an error on the server ({body[:256].decode('utf-8', 'replace')!r}) has prevented the request from succeeding"
                if answer.status >= 500
                else f"failed to call webhook: the server responded with the status code {answer.status} but did not return more information"
            )
        return self._response(body, uid, version)

    @staticmethod
    def _response(body: bytes, uid: str, version: str) -> Object:
        try:
            review = orjson.loads(body)
            response = review["response"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise CallFailed("Webhook response was absent") from None
        if not isinstance(response, dict):
            raise CallFailed("Webhook response was absent")
        if version == "v1":
            if review.get("kind") != "AdmissionReview" or review.get("apiVersion") != "admission.k8s.io/v1":
                raise CallFailed(
                    f"expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {review.get('apiVersion', '')}, Kind={review.get('kind', '')}"
                )
            if response.get("uid") != uid:
                raise CallFailed(f'expected response.uid="{uid}", got "{response.get("uid", "")}"')
            if response.get("patch") and response.get("patchType") != "JSONPatch":
                raise CallFailed('webhook returned response.patch but not response.patchType "JSONPatch"')
        return response

    def _apply_common(self, a: AdmissionRequest, hook: Object, response: Object) -> None:
        for text in response.get("warnings") or ():
            a.warnings.append(str(text))
        for key, value in (response.get("auditAnnotations") or {}).items():
            a.annotations[f"{hook['name']}/{key}"] = str(value)
        if response.get("allowed"):
            return
        result = response.get("status") or response.get("result") or {}
        text = f'admission webhook "{hook["name"]}" denied the request'
        message, reason = result.get("message", ""), result.get("reason", "")
        text += f": {message}" if message else f": {reason}" if reason else " without explanation"
        code = result.get("code") or 0
        if not 400 <= code < 600:
            code = 403 if not code else 400
        raise Refused(StatusError(code, reason or "Forbidden" if code == 403 else reason, text, result.get("details")))

    def _failed(self, a: AdmissionRequest, hook: Object, error: CallFailed) -> None:
        """A call that failed: let it pass, or refuse the request with it."""
        if hook.get("failurePolicy") == "Ignore":
            a.annotations[f"failed-open.{self.configurations}/{hook['name']}"] = hook["name"]
            return
        raise internal_error(f'failed calling webhook "{hook["name"]}": {error}')

    async def close(self) -> None:
        """Close the connections to webhooks."""
        for client in self._clients.values():
            await client.close()


def _shown(credentials: Config | None, context: ssl.SSLContext) -> list[tuple[str, str]]:
    """The header fields that go with credentials; their certificate goes into the context."""
    if credentials is None:
        return []
    if credentials.certificate is not None and credentials.key is not None:
        config.load_pair(context, credentials.certificate, credentials.key)
    field = credentials.authorization()
    return [("Authorization", field)] if field else []


class MutatingAdmissionWebhook(_Webhooks):
    """Asks one after the other, and again those that want to see what came after them."""

    name = "MutatingAdmissionWebhook"
    configurations = "mutatingwebhookconfigurations"

    async def admit(self, a: AdmissionRequest) -> None:
        hooks = self._current()
        if not hooks or matching.is_exempt(a):
            return
        called: list[Object] = []
        last_change = -1
        for index, (_, hook) in enumerate(hooks):
            changed = await self._call(a, hook)
            if changed is not None:
                called.append({"hook": hook, "index": index})
                if changed:
                    last_change = index
        for entry in called:
            if entry["hook"].get("reinvocationPolicy") == "IfNeeded" and entry["index"] < last_change:
                await self._call(a, entry["hook"])

    async def _call(self, a: AdmissionRequest, hook: Object) -> bool | None:
        """None when the webhook is not concerned, else whether it changed the object."""
        target = await self._wanted(a, hook)
        if target is None:
            return None
        try:
            response = await self._ask(a, hook, target)
            self._apply_common(a, hook, response)
            return self._patch(a, response, target)
        except Refused as refused:
            raise refused.error from None
        except CallFailed as error:
            self._failed(a, hook, error)
            return False

    @staticmethod
    def _patch(a: AdmissionRequest, response: Object, target: matching.Target) -> bool:
        if not response.get("patch") or a.object is None:
            return False
        at = a.attributes
        shown = matching.converted(a, a.object, target)
        try:
            operations = orjson.loads(base64.b64decode(response["patch"]))
            if not operations:
                return False
            changed = jsonpatch.apply(orjson.loads(orjson.dumps(shown)), operations)
        except (ValueError, jsonpatch.PatchFailed) as error:
            raise CallFailed(f"received invalid webhook response: {error}") from None
        resource = a.api.resource(target.group, target.resource)
        if resource is not None and not at.subresource:
            head = {k: (shown or {})[k] for k in ("apiVersion", "kind") if k in (shown or {})}
            changed = {**resource.decode(changed, target.version), **head}
            resource.default(changed, target.version)
            if (target.group, target.version) != (at.group, at.version):
                changed = a.api.resource(at.group, at.resource).convert(changed, at.version)  # type: ignore[union-attr]
        different = bool(changed != a.object)
        a.object = changed
        return different


class ValidatingAdmissionWebhook(_Webhooks):
    """Asks all at once."""

    name = "ValidatingAdmissionWebhook"
    configurations = "validatingwebhookconfigurations"

    async def validate(self, a: AdmissionRequest) -> None:
        hooks = self._current()
        if not hooks or matching.is_exempt(a):
            return
        wanted = []
        for _, hook in hooks:
            target = await self._wanted(a, hook)
            if target is not None:
                wanted.append((hook, target))
        if not wanted:
            return
        results = await asyncio.gather(
            *(self._call(a, hook, target) for hook, target in wanted), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _call(self, a: AdmissionRequest, hook: Object, target: matching.Target) -> None:
        try:
            self._apply_common(a, hook, await self._ask(a, hook, target))
        except Refused as refused:
            raise refused.error from None
        except CallFailed as error:
            self._failed(a, hook, error)


__all__ = ["MutatingAdmissionWebhook", "ValidatingAdmissionWebhook"]
