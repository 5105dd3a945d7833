"""Puts authentication, authorization, impersonation and the review resources into a server."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from longshore.api import times
from longshore.api.kinds import KINDS, Resource
from longshore.machinery.errors import StatusError
from longshore.machinery.http import Request, Response
from longshore.machinery.patch import managedfields
from longshore.master.apiserver import bodies, paths, rendering
from longshore.master.apiserver.auth import (
    AUTHENTICATION,
    AUTHORIZATION,
    Access,
    impersonation,
    key_set,
    openid_configuration,
)
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.context import Attributes, Authenticator, UserInfo
from longshore.master.apiserver.dispatch import verb_of
from longshore.master.apiserver.fieldtypes import FieldTypes
from longshore.master.apiserver.negotiation import negotiate
from longshore.master.apiserver.options import write_options
from longshore.master.apiserver.scheme import Endpoint, Storage

if TYPE_CHECKING:
    from longshore.master.apiserver.server import APIServer

Object = dict[str, Any]
Review = Callable[[Call, Object], Object | Awaitable[Object]]
_REVIEWS = (
    (AUTHORIZATION, "subjectaccessreviews", True),
    (AUTHORIZATION, "localsubjectaccessreviews", True),
    (AUTHORIZATION, "selfsubjectaccessreviews", True),
    (AUTHORIZATION, "selfsubjectrulesreviews", False),
    (AUTHENTICATION, "selfsubjectreviews", False),
    (AUTHENTICATION, "tokenreviews", True),
)


class _Everyone(Authenticator):
    """All ways of authentication as one; it always answers or raises."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def authenticate(self, request: Request) -> UserInfo | Awaitable[UserInfo | None]:
        return self._access.authentication.authenticate(request)


def attributes_of(request: Request, user: UserInfo) -> Attributes:
    """What a request asks for, before it is known whether there is such a thing."""
    info = paths.parse(request.raw_path)
    if not info.is_resource:
        return Attributes(user, request.method.lower(), path=request.path, is_resource=False)
    verb = verb_of(request, info) or request.method.lower()
    return Attributes(
        user, verb, info.group, info.version, info.resource, info.subresource, info.namespace, info.name, request.path,
        True, request.param("labelSelector"), request.param("fieldSelector"),
    )  # fmt: skip


class Installed:
    """The handlers that answer reviews, token requests and the discovery of the tokens' issuer."""

    def __init__(self, server: APIServer, access: Access) -> None:
        self.server = server
        self.access = access
        # What a TokenRequest is decoded as, and who owns its fields.
        token = Resource(AUTHENTICATION, "tokenrequests", "TokenRequest", namespaced=True, versions=("v1",))
        self._token = Endpoint(Storage(token), token, "v1")

    def impersonate(self, request: Request, user: UserInfo) -> UserInfo | Awaitable[UserInfo]:
        if not impersonation.wants(request.headers):
            return user
        return impersonation.impersonate(request, attributes_of(request, user), self.access.authorization.authorize)

    def review(self, group: str, plural: str, owned: bool) -> Callable[[Call], Awaitable[Response]]:
        """The handler of one kind of review. owned: whether the answer shows managedFields."""
        answers: dict[str, Review] = {
            "subjectaccessreviews": lambda c, o: self.access.reviews.subject_access(o),
            "localsubjectaccessreviews": lambda c, o: self.access.reviews.local_subject_access(o, c.namespace),
            "selfsubjectaccessreviews": lambda c, o: self.access.reviews.self_subject_access(o, c.user),
            "selfsubjectrulesreviews": lambda c, o: self.access.reviews.self_subject_rules(o, c.user),
            "selfsubjectreviews": lambda c, o: self.access.reviews.self_subject(o, c.user, times.now()),
            "tokenreviews": lambda c, o: self.access.reviews.token(o),
        }
        answer = answers[plural]

        async def handle(call: Call) -> Response:
            call.form = negotiate(call.request.headers.get("accept") or "", False, False)
            obj = await self._body(call, call.endpoint, "", owned)
            made = answer(call, obj)
            out = await made if inspect.isawaitable(made) else made
            return rendering.tree_answer(call, out, 201)

        return handle

    async def token(self, call: Call) -> Response:
        """POST serviceaccounts/NAME/token."""
        if self.access.issuer is None:
            raise StatusError(501, "NotImplemented", "the server has no service account signing key", {})
        call.form = negotiate(call.request.headers.get("accept") or "", False, False)
        obj = await self._body(call, self._token, "token", False)
        spec = obj.setdefault("spec", {})
        if spec.get("expirationSeconds") is None:
            spec["expirationSeconds"] = 3600
        metadata = obj.setdefault("metadata", {})
        if metadata.get("name") and metadata["name"] != call.name:
            raise StatusError(400, "BadRequest", "name in the object does not match the name of the service account")
        owned = self._owned(call, self._token, obj, "token")
        out = self.access.issuer.create(obj, call.namespace, call.name)
        account = self.server.api.get("", "serviceaccounts", call.namespace, call.name) or {"metadata": {}}
        out["metadata"] = {
            "name": call.name, "namespace": call.namespace, "uid": account["metadata"].get("uid", ""),
            "creationTimestamp": times.now(),
        } | ({"managedFields": owned} if owned else {})  # fmt: skip
        return rendering.tree_answer(call, out, 201)

    async def _body(self, call: Call, endpoint: Endpoint, subresource: str, owned: bool) -> Object:
        options = write_options(call.request, "CreateOptions")
        obj = await bodies.read_object(call, endpoint.resource, endpoint.version, options.validation)
        obj.pop("status", None)
        metadata = obj.setdefault("metadata", {})
        if call.namespace and not subresource:
            if metadata.get("namespace", call.namespace) != call.namespace:
                why = "the namespace of the provided object does not match the namespace sent on the request"
                raise StatusError(400, "BadRequest", why)
            metadata["namespace"] = call.namespace
        metadata.pop("creationTimestamp", None)
        if owned:
            self._owned(call, endpoint, obj, subresource)
        return obj

    def _owned(self, call: Call, endpoint: Endpoint, obj: Object, subresource: str) -> list[Object]:
        options = write_options(call.request, "CreateOptions")
        types = FieldTypes(self.server.scheme, endpoint, subresource)
        managedfields.update(types, None, obj, options.manager, endpoint.api_version, subresource, times.now())
        found: list[Object] = obj["metadata"].get("managedFields") or []
        return found

    # The issuer of service account tokens, for others that check them.

    def configuration(self, request: Request, parts: list[str]) -> Response | None:
        """/.well-known/openid-configuration"""
        if parts[1:] != ["openid-configuration"] or self.access.keys is None:
            return None
        uri = f"https://{self.server.discovery.server_address}/openid/v1/jwks"
        found = openid_configuration(self.access.options.issuers[0], uri, self.access.keys.all())
        return _public(found, "application/json")

    def jwks(self, request: Request, parts: list[str]) -> Response | None:
        """/openid/v1/jwks"""
        if parts[1:] != ["v1", "jwks"] or self.access.keys is None:
            return None
        return _public(key_set(self.access.keys.all()), "application/jwk-set+json")


def _public(value: Object, media: str) -> Response:
    answer = Response.json(value, 200, [("Cache-Control", "public, max-age=3600")])
    answer.content_type = media
    return answer


def install(server: APIServer) -> Access:
    """Wires a server whose caches are loaded. Add `access.plugins` behind the other admission plugins."""
    config = server.config
    access = Access.from_config(server.api, config)
    installed = Installed(server, access)
    server.authenticators[:] = [_Everyone(access)]
    server.authorizers[:] = [access.authorization]
    server.impersonate = installed.impersonate
    special = server.dispatcher.special
    for group, plural, owned in _REVIEWS:
        if (group, plural) in KINDS:
            special[group, plural, ""] = installed.review(group, plural, owned)
    special["", "serviceaccounts", "token"] = installed.token
    server.path_handlers[".well-known"] = installed.configuration
    server.path_handlers["openid"] = installed.jwks
    return access
