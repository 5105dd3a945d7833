"""From a resource path and a method to the part that answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from longshore.api.times import parse_duration
from longshore.machinery.errors import StatusError, bad_request, method_not_allowed, not_found, route_not_found
from longshore.machinery.http import Request, Response
from longshore.master.apiserver import bodies, options, rendering
from longshore.master.apiserver.cache import Item
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.deletion import Deleter
from longshore.master.apiserver.keys import path
from longshore.master.apiserver.negotiation import negotiate
from longshore.master.apiserver.patching import Patcher
from longshore.master.apiserver.paths import PathInfo
from longshore.master.apiserver.reads import Reader
from longshore.master.apiserver.scheme import Endpoint, Scheme
from longshore.master.apiserver.watching import Watcher
from longshore.master.apiserver.writes import Writer

Object = dict[str, Any]
CallHandler = Callable[[Call], Awaitable[Response | None]]
Answer = Response | None
_WRITE_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_OBJECT_SUBRESOURCES = frozenset(("status", "finalize", "approval", "ephemeralcontainers", "resize"))
_REVIEWS = frozenset(("authentication.k8s.io", "authorization.k8s.io"))
_NO_COLUMNS = frozenset(("binding", "eviction", "token"))


def verb_of(request: Request, info: PathInfo) -> str:
    """The API verb; "" for methods that no resource has."""
    method = request.method
    if method == "GET" or (method == "HEAD" and info.subresource == "proxy"):
        if info.legacy_watch:
            return "watch"
        if info.name:
            return "get"
        if request.raw_query and "watch" in request.query and options.flag(request, "watch"):
            return "watch"
        return "list"
    verb = _WRITE_VERBS.get(method, "")
    if verb == "delete" and not info.name:
        return "deletecollection"
    return verb


def _without_columns(endpoint: Endpoint, subresource: str) -> bool:
    """Whether no table can show the answer: reviews, bindings, evictions and tokens."""
    return endpoint.group in _REVIEWS or endpoint.plural == "bindings" or subresource in _NO_COLUMNS


def _check_timeout(call: Call) -> None:
    """How long a client wants to wait, which must be a duration; nobody waits longer than the answer takes."""
    text = call.request.param("timeout")
    if text and call.verb != "watch":
        try:
            parse_duration(text)
        except ValueError as error:
            raise bad_request(f"invalid timeout specified in the request URL - {error}") from None


class Dispatcher:
    """Routes calls. `special`: handlers of subresources and virtual resources by (group, plural, subresource)."""

    def __init__(self, scheme: Scheme, reader: Reader, watcher: Watcher, writer: Writer, deleter: Deleter) -> None:
        self.scheme = scheme
        self.reader = reader
        self.watcher = watcher
        self.writer = writer
        self.deleter = deleter
        self.patcher = Patcher(writer)
        self.special: dict[tuple[str, str, str], CallHandler] = {}
        self.scale: CallHandler | None = None

    def locate(self, request: Request, info: PathInfo, verb: str) -> Call:
        """The call of a path; StatusError when there is no such path or it does not take the method."""
        endpoint = self.scheme.endpoints.get((info.group, info.version, info.resource))
        if endpoint is None or info.bad:
            raise route_not_found()
        if info.namespace and not endpoint.namespaced:
            raise route_not_found()
        if info.subresource:
            resource = endpoint.resource
            subs = resource.subresources_of(endpoint.version) if endpoint.custom else resource.subresources
            sub = subs.get(info.subresource)
            if sub is None:
                if endpoint.custom:
                    raise not_found(endpoint.group, endpoint.plural, info.name)
                raise route_not_found()
            wanted = "create" if verb == "create" else verb
            if info.subresource == "proxy":  # any method is carried through
                pass
            elif not verb or (wanted not in sub.verbs and not (verb == "watch" and "get" in sub.verbs)):
                raise method_not_allowed()
        else:
            if not verb or (verb not in endpoint.verbs):
                raise method_not_allowed()
            if verb == "create" and (info.name or (endpoint.namespaced and not info.namespace)):
                raise method_not_allowed()
            if verb in ("update", "patch") and not info.name:
                raise method_not_allowed()
        if endpoint.namespaced and not info.namespace and (info.name and verb != "watch"):
            raise route_not_found()
        call = Call(request, info, endpoint, verb)
        if endpoint.deprecation:
            call.warn(endpoint.deprecation)
        return call

    def answer(self, call: Call) -> Answer | Awaitable[Answer]:
        """Answer an authorized call."""
        return self._converted(call) if call.endpoint.foreign else self._answer(call)

    async def _converted(self, call: Call) -> Answer:
        """The same where a webhook converts what is kept: it is asked about everything that the call may show."""
        endpoint = call.endpoint
        conversions, cache = endpoint.storage.conversions, endpoint.cache
        assert conversions is not None and cache is not None
        if call.verb != "create":
            await self.writer.hub.fresh()
            one = cache.items.get(path(call.namespace, call.name)) if call.name else None
            chosen = [one] if one is not None else [] if call.name else cache.select(call.namespace)
            await conversions.fill(endpoint.version, chosen)
        answer = self._answer(call)
        return answer if answer is None or isinstance(answer, Response) else await answer

    def _answer(self, call: Call) -> Answer | Awaitable[Answer]:
        info, verb, endpoint = call.info, call.verb, call.endpoint
        if call.request.raw_query and "timeout=" in call.request.raw_query:
            _check_timeout(call)
        if endpoint.plural == "endpoints":
            call.warn("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        special = self.special.get((endpoint.group, endpoint.plural, info.subresource))
        if special is None and info.subresource == "scale":
            special = self.scale
        if special is None or info.subresource not in ("proxy", "log", "exec", "attach", "portforward"):
            lists = not info.name or verb == "watch"
            accept = call.request.headers.get("accept") or ""
            call.form = negotiate(accept, lists, endpoint.custom, not _without_columns(endpoint, info.subresource))
        if special is not None:
            return special(call)
        if endpoint.cache is None:
            raise StatusError(501, "NotImplemented", f"{endpoint.group_resource} is not implemented", {})
        if verb == "get":
            return self.reader.get(call)
        if verb == "list":
            return self.reader.list(call)
        if verb == "watch":
            return self.watcher.watch(call)
        if info.subresource and info.subresource not in _OBJECT_SUBRESOURCES:
            raise StatusError(501, "NotImplemented", f"{endpoint.plural}/{info.subresource} is not implemented", {})
        return self._write(call)

    async def _write(self, call: Call) -> Answer:
        verb, info, endpoint = call.verb, call.info, call.endpoint
        if verb == "create":
            chosen = options.write_options(call.request, "CreateOptions")
            obj = await bodies.read_object(call, endpoint.resource, endpoint.version, chosen.validation)
            out, item = await self.writer.create(call, obj, chosen)
            return self.written(call, out, item, 201)
        if verb == "update":
            chosen = options.write_options(call.request, "UpdateOptions")
            obj = await bodies.read_object(call, endpoint.resource, endpoint.version, chosen.validation)
            out, item, created = await self.writer.update(call, obj, chosen, info.subresource)
            return self.written(call, out, item, 201 if created else 200)
        if verb == "patch":
            from longshore.master.apiserver.patching import patch_type

            patch_type(call)
            body = call.body = await bodies.read(call.request)
            out, item, created = await self.patcher.patch(call, body, info.subresource)
            return self.written(call, out, item, 201 if created else 200)
        chosen_delete = options.delete_options(await bodies.delete_body(call), call.request)
        if verb == "deletecollection":
            return await self.deleter.delete_collection(call, chosen_delete)
        return await self.deleter.delete(call, chosen_delete)

    def written(self, call: Call, obj: Object, item: Item | None, status: int) -> Response:
        """The answer to a write: the bytes that were stored where there are some."""
        if item is not None:
            return rendering.object_answer(call, item, status)
        endpoint = call.endpoint
        if obj.get("apiVersion") != endpoint.api_version:
            obj = endpoint.convert(obj, endpoint.version)
        obj = {**obj, "metadata": rendering.ordered_metadata(obj["metadata"])}
        return rendering.tree_answer(call, obj, status)
