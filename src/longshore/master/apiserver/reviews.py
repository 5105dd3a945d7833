"""The virtual resources of the authentication and authorization groups, token requests and the issuer's documents."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from longshore.api import times
from longshore.api.kinds import kind_schema
from longshore.machinery.errors import StatusError, bad_request
from longshore.machinery.http import Request, Response
from longshore.machinery.patch import fieldset, managedfields
from longshore.machinery.patch.managedfields import Filter
from longshore.machinery.patch.schema import Node
from longshore.master.apiserver import bodies, options, rendering
from longshore.master.apiserver.admit import Admission
from longshore.master.apiserver.auth import AUTHENTICATION, AUTHORIZATION, Access, key_set, openid_configuration
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.scale import KindOnly
from longshore.master.apiserver.scheme import Scheme

Object = dict[str, Any]
_TOKEN = KindOnly("authentication.k8s.io", "v1", "TokenRequest")
_PUBLIC = (("Cache-Control", "public, max-age=3600"),)


class _KindTypes:
    """What field management asks of a kind that is not stored."""

    def __init__(self, scheme: Scheme, group: str, version: str, kind: str) -> None:
        self._scheme, self._gvk = scheme, (group, version, kind)

    def node(self, api_version: str) -> Node | None:
        return self._scheme.kind_node(*self._gvk)

    def convert(self, obj: Object, api_version: str) -> Object:
        return obj

    def reset(self, api_version: str) -> Filter | None:
        return _without_status

    def empty(self, api_version: str) -> Object:
        out: Object = kind_schema(*self._gvk).decode({})
        return out


def _without_status(fields: fieldset.Set) -> fieldset.Set:
    return fieldset.recursive_difference(fields, _STATUS)


_STATUS = fieldset.path_set("status")


class ReviewHandlers:
    """Handlers by (group, plural, subresource), to be put among the dispatcher's special ones."""

    def __init__(self, access: Access, admission: Admission, scheme: Scheme, advertise: Callable[[], str]) -> None:
        self.access = access
        self.scheme = scheme
        self.admission = admission
        self.advertise = advertise
        reviews = access.reviews
        answers: dict[tuple[str, str], Callable[[Object, Call], Any]] = {
            (AUTHORIZATION, "subjectaccessreviews"): lambda o, c: reviews.subject_access(o),
            (AUTHORIZATION, "localsubjectaccessreviews"): lambda o, c: reviews.local_subject_access(o, c.namespace),
            (AUTHORIZATION, "selfsubjectaccessreviews"): lambda o, c: reviews.self_subject_access(o, c.user),
            (AUTHORIZATION, "selfsubjectrulesreviews"): lambda o, c: reviews.self_subject_rules(o, c.user),
            (AUTHENTICATION, "selfsubjectreviews"): lambda o, c: reviews.self_subject(o, c.user, times.now()),
            (AUTHENTICATION, "tokenreviews"): lambda o, c: reviews.token(o),
        }
        self.handlers: dict[tuple[str, str, str], Callable[[Call], Awaitable[Response]]] = {
            (group, plural, ""): self._review(answer) for (group, plural), answer in answers.items()
        }
        self.handlers["", "serviceaccounts", "token"] = self.token

    def _review(self, answer: Callable[[Object, Call], Any]) -> Callable[[Call], Awaitable[Response]]:
        async def handle(call: Call) -> Response:
            chosen = options.write_options(call.request, "CreateOptions")
            endpoint = call.endpoint
            obj = await bodies.read_object(call, endpoint.resource, endpoint.version, chosen.validation)
            namespace = (obj.get("metadata") or {}).get("namespace")
            if endpoint.namespaced and namespace and namespace != call.namespace:
                raise bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request"
                )
            obj.setdefault("metadata", {})
            self._own(call, obj, chosen.manager, "")
            request = self.admission.request(call, "CREATE", obj, None, chosen.as_object(), chosen.dry_run)
            await self.admission.admit(request)
            await self.admission.validate(request)
            out = answer(obj, call)
            if inspect.isawaitable(out):
                out = await out
            return rendering.respond(call, 201, rendering.encode(out, call.form, call.request), call.form.media)

        return handle

    def _own(self, call: Call, obj: Object, manager: str, subresource: str) -> None:
        """Note who set the fields, as on every creation."""
        group, _, version = obj["apiVersion"].rpartition("/")
        types = _KindTypes(self.scheme, group, version, obj["kind"])
        managedfields.update(types, None, obj, manager, obj["apiVersion"], subresource, times.now())

    async def token(self, call: Call) -> Response:
        """POST serviceaccounts/x/token."""
        if self.access.issuer is None:
            raise StatusError(501, "NotImplemented", "the API server has no service account signing key", {})
        chosen = options.write_options(call.request, "CreateOptions")
        wanted = await bodies.read_object(call, _TOKEN, "v1", chosen.validation)
        metadata = wanted.get("metadata") or {}
        if metadata.get("name") and metadata["name"] != call.name:
            raise bad_request("name in metadata must match name in URL")
        if metadata.get("namespace") and metadata["namespace"] != call.namespace:
            raise bad_request("namespace in metadata must match namespace in URL")
        spec = wanted.setdefault("spec", {})
        if spec.get("expirationSeconds") is None:
            spec["expirationSeconds"] = 3600
        account = (
            self.admission.api.get("", "serviceaccounts", call.namespace, call.name) if self.admission.api else None
        )
        metadata = wanted["metadata"] = {
            **metadata, "name": call.name, "namespace": call.namespace, "creationTimestamp": times.now(),
            "uid": (account or {}).get("metadata", {}).get("uid", ""),
        }  # fmt: skip
        self._own(call, wanted, chosen.manager, "token")
        request = self.admission.request(
            call,
            "CREATE",
            wanted,
            None,
            chosen.as_object(),
            chosen.dry_run,
            ("authentication.k8s.io", "v1", "TokenRequest"),
        )
        await self.admission.admit(request)
        await self.admission.validate(request)
        out = await self.access.issuer.issue(request.object or wanted, call.namespace, call.name)
        return rendering.respond(call, 201, rendering.encode(out, call.form, call.request), call.form.media)

    def well_known(self, request: Request, parts: list[str]) -> Response | None:
        """/.well-known/openid-configuration"""
        keys = self.access.keys
        if parts[1:] != ["openid-configuration"] or keys is None:
            return None
        issuer = self.access.options.issuers[0]
        uri = f"https://{self.advertise()}/openid/v1/jwks"
        document = openid_configuration(issuer, uri, keys.all())
        return Response(200, orjson.dumps(document), _PUBLIC, "application/json")

    def jwks(self, request: Request, parts: list[str]) -> Response | None:
        """/openid/v1/jwks"""
        keys = self.access.keys
        if parts[1:] != ["v1", "jwks"] or keys is None:
            return None
        return Response(200, orjson.dumps(key_set(keys.all())), _PUBLIC, "application/jwk-set+json")
