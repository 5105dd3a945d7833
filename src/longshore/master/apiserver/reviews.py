"""The virtual resources of the authentication and authorization groups, token requests and the issuer's documents."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from longshore.api import times
from longshore.machinery.errors import StatusError, bad_request
from longshore.machinery.http import Request, Response
from longshore.master.apiserver import bodies, options, rendering
from longshore.master.apiserver.admit import Admission
from longshore.master.apiserver.auth import AUTHENTICATION, AUTHORIZATION, Access, key_set, openid_configuration
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.scale import KindOnly

Object = dict[str, Any]
_TOKEN = KindOnly("authentication.k8s.io", "v1", "TokenRequest")
_PUBLIC = (("Cache-Control", "public, max-age=3600"),)


class ReviewHandlers:
    """Handlers by (group, plural, subresource), to be put among the dispatcher's special ones."""

    def __init__(self, access: Access, admission: Admission, advertise: Callable[[], str]) -> None:
        self.access = access
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
                raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
            request = self.admission.request(call, "CREATE", obj, None, chosen.as_object(), chosen.dry_run)
            await self.admission.admit(request)
            await self.admission.validate(request)
            out = answer(obj, call)
            if inspect.isawaitable(out):
                out = await out
            return rendering.respond(call, 201, rendering.encode(out, call.form, call.request), call.form.media)

        return handle

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
        request = self.admission.request(
            call, "CREATE", wanted, None, chosen.as_object(), chosen.dry_run, ("authentication.k8s.io", "v1", "TokenRequest")
        )
        await self.admission.admit(request)
        await self.admission.validate(request)
        out = self.access.issuer.create(request.object or wanted, call.namespace, call.name)
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
