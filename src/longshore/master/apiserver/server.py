"""The API server put together: who asks, may they, what do they get."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import ssl as tls
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from longshore.api.validation.errors import quote
from longshore.machinery import renewal
from longshore.machinery.errors import StatusError, request_entity_too_large
from longshore.machinery.http import (
    BodyTooLarge,
    Request,
    Response,
    Server,
    accept_any_certificate,
    bind,
    server_context,
)
from longshore.master.apiserver import paths, rendering
from longshore.master.apiserver.admit import Admission
from longshore.master.apiserver.aggregation import Aggregator
from longshore.master.apiserver.allocation import ServiceAllocator
from longshore.master.apiserver.auth import Access, impersonation
from longshore.master.apiserver.auth.authorization import refusal
from longshore.master.apiserver.bootstrap import Bootstrap
from longshore.master.apiserver.cache import Hub
from longshore.master.apiserver.config import Config
from longshore.master.apiserver.context import (
    AdmissionPlugin,
    Attributes,
    Decision,
    UserInfo,
)
from longshore.master.apiserver.crds import Definitions
from longshore.master.apiserver.deletion import Deleter
from longshore.master.apiserver.discovery import Discovery
from longshore.master.apiserver.dispatch import Dispatcher, verb_of
from longshore.master.apiserver.fairness import Fairness, seated
from longshore.master.apiserver.flowschemas import FlowSchemaStatus
from longshore.master.apiserver.health import VERSION, Health
from longshore.master.apiserver.local import LocalAPI
from longshore.master.apiserver.metrics import Metrics
from longshore.master.apiserver.negotiation import negotiate
from longshore.master.apiserver.openapi import OpenAPI
from longshore.master.apiserver.reads import Reader
from longshore.master.apiserver.reloading import Reloading
from longshore.master.apiserver.scheme import KNOWN_GROUPS, Scheme
from longshore.master.apiserver.watching import Watcher
from longshore.master.apiserver.writes import Writer

if TYPE_CHECKING:
    from longshore.master.apiserver.audit.auditor import Auditor
    from longshore.master.apiserver.encryption.controller import Encryption

log = logging.getLogger("longshore.apiserver")
NOBODY = UserInfo("")
Answer = Response | None
PathHandler = Callable[[Request, list[str]], Response | Awaitable[Response | None] | None]


_LONG = frozenset(("exec", "attach", "portforward", "proxy", "log"))


class APIServer:
    """One API server on a store. Use: start(), handle() for each request, close()."""

    def __init__(self, store: Any, config: Config) -> None:
        self.encryption: Encryption | None = None
        if config.encryption_config is not None:
            from longshore.master.apiserver.encryption.controller import Encryption

            self.encryption = Encryption(store, config.encryption_config, automatic=config.encryption_reload)
            store = self.encryption.store
        self.store = store
        self.config = config
        self.scheme = Scheme()
        self.hub = Hub(store)
        for cache in self.scheme.caches():
            self.hub.add(cache)
        self.admission = Admission()
        self.writer = Writer(self.hub, self.scheme, self.admission)
        self.reader = Reader(self.hub)
        self.watcher = Watcher(self.hub)
        self.deleter = Deleter(self.writer)
        self.dispatcher = Dispatcher(self.scheme, self.reader, self.watcher, self.writer, self.deleter)
        self.api = LocalAPI(self.scheme, self.hub, self.writer, self.deleter)
        self.admission.api = self.api
        self.discovery = Discovery(self.scheme)
        self.health = Health(self.store_alive)
        self.path_handlers: dict[str, PathHandler] = {}
        self.access: Access | None = None
        self.aggregator: Aggregator | None = None
        self.auditor: Auditor | None = None
        self.allocator: ServiceAllocator | None = None
        self.openapi: OpenAPI | None = None
        self.definitions: Definitions | None = None
        self.bootstrap = Bootstrap(self)
        self.closers: list[Callable[[], Awaitable[None]]] = []
        self.metrics = Metrics()
        self.fairness = Fairness(self.api, config.max_in_flight + config.max_mutating_in_flight)
        self._tasks: set[asyncio.Task[Any]] = set()

    def set_admission(self, plugins: Sequence[AdmissionPlugin]) -> None:
        self.admission.set(plugins)

    def on_close(self, call: Callable[[], None]) -> None:
        """Call something when the server closes."""

        async def close() -> None:
            call()

        self.closers.append(close)

    def spawn(self, work: Any, name: str) -> None:
        """Run something for as long as the server runs."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def store_alive(self) -> str:
        failed = self.hub.failed
        return "etcd failed: the watch ended" if failed is not None and failed.done() else ""

    async def start(self) -> None:
        """Load the caches, make what must be there."""
        from longshore.master.apiserver.assembly import assemble

        if self.encryption is not None:
            await self.encryption.start()
            self.closers.append(self.encryption.close)
            if self.encryption.checked:
                self.health.add("kms-providers", self.encryption.check)
        await self.hub.start()
        await assemble(self)
        assert self.access is not None and self.allocator is not None
        await self.bootstrap.run()
        await self.hub.fresh()
        await self.access.bootstrap()
        if self.config.bootstrap_rbac is not None:
            await self.bootstrap.rbac(self.config.bootstrap_rbac)
        await self.allocator.repair()
        if self.store.shared:
            self.spawn(self.allocator.repair_shared(), "lost allocations")
        assert self.definitions is not None
        await self.definitions.start()
        await self.hub.fresh()
        self.spawn(FlowSchemaStatus(self.api).run(), "flow schemas")
        if self.config.compaction_seconds > 0:
            self.spawn(self._compact(), "compaction")
        if self.config.audit.policy is not None:
            from longshore.master.apiserver.audit.opening import open_auditor

            self.auditor = open_auditor(self.config.audit, self.config.audit.policy, self.metrics.count)
        self.health.started = True

    async def _compact(self) -> None:
        """Forget what is older than the interval, again and again.

        Looked at twice an interval, so that nothing stays longer than one and a half of it. Upstream's compactor looks
        once: a client that gives a continue token two intervals to expire may then wait in vain.
        """
        older, newer = 0, self.store.revision
        while True:
            await asyncio.sleep(self.config.compaction_seconds / 2)
            if older:
                with contextlib.suppress(Exception):
                    await self.store.compact(older)
            older, newer = newer, self.store.revision

    async def close(self) -> None:
        self.health.stopping = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for closer in reversed(self.closers):
            with contextlib.suppress(Exception):
                await closer()
        await self.hub.close()
        if self.auditor is not None:
            await self.auditor.close()

    # Requests.

    def handle(self, request: Request) -> Answer | Awaitable[Answer]:
        """The HTTP handler. Plain reads are answered without a task."""
        if self.auditor is not None:
            return self._audited(request, self.auditor)
        return self._handle(request)

    async def _audited(self, request: Request, auditor: Auditor) -> Answer:
        answer: Answer = None
        try:
            found = self._handle(request)
            answer = await found if inspect.isawaitable(found) else found
        finally:
            if answer is not None and answer.status == 401 and not auditor.knows(request):
                await auditor.refused(request, self._attributes(request, NOBODY)[2], answer)
            answer = await auditor.finish(request, answer)
        return answer

    def _handle(self, request: Request) -> Answer | Awaitable[Answer]:
        began = time.perf_counter()
        try:
            assert self.access is not None
            user = self.access.authentication.authenticate(request)
            if not isinstance(user, UserInfo):
                return self._handle_later(request, user, began)
            answer = self._authorized(request, user)
            if answer is not None and not isinstance(answer, Response):
                return self._guarded(request, answer, began)
        except StatusError as error:
            answer = self._error(request, error)
        except Exception:
            answer = self._panic(request)
        self.metrics.record(request, answer, began)
        return answer

    async def _guarded(self, request: Request, answer: Any, began: float) -> Answer:
        out: Answer = None
        try:
            out = await answer
        except StatusError as error:
            out = self._error(request, error)
        except BodyTooLarge:
            out = self._error(request, request_entity_too_large("limit is 3145728"))
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:
            out = self._store_error(request, error) or self._panic(request)
        self.metrics.record(request, out, began)
        return out

    async def _handle_later(self, request: Request, pending: Awaitable[UserInfo], began: float) -> Answer:
        async def go() -> Answer:
            answer = self._authorized(request, await pending)
            if inspect.isawaitable(answer):
                out: Answer = await answer
                return out
            return answer

        return await self._guarded(request, go(), began)

    def _error(self, request: Request, error: StatusError) -> Response:
        call = request.context
        return rendering.error_answer(error, request, getattr(call, "warnings", ()))

    def _panic(self, request: Request) -> Response:
        log.exception("a request failed: %s %s", request.method, request.raw_path)
        message = "This request caused apiserver to panic. Look in the logs for details."
        return rendering.error_answer(StatusError(500, "InternalError", message), request)

    def _store_error(self, request: Request, error: Exception) -> Response | None:
        """What the store refuses, as upstream's storage layer would say it."""
        code, text = getattr(error, "code", None), str(error)
        if not text.startswith("etcdserver"):
            return None
        if code == 14:
            return rendering.error_answer(StatusError(500, "", text), request)
        return rendering.error_answer(StatusError(500, "", f"rpc error: {text}"), request)

    def _authorized(self, request: Request, user: UserInfo) -> Answer | Awaitable[Answer]:
        info, verb, attributes = self._attributes(request, user)
        if self.auditor is not None:
            stored = self.auditor.begin(request, attributes)
            if stored is not True:
                return self._authorized_if(stored, request, info, verb, attributes)
        return self._decided(request, info, verb, attributes)

    def _attributes(self, request: Request, user: UserInfo) -> tuple[paths.PathInfo, str, Attributes]:
        """What is asked: the path's parts, the verb, and both with the user for authorizers."""
        info = paths.parse(request.raw_path)
        if info.is_resource:
            verb = verb_of(request, info)
            name = info.name
            if not name and request.raw_query and verb in ("list", "watch", "deletecollection"):
                name = _only_name(request)
            attributes = Attributes(
                user, verb or request.method.lower(), info.group, info.version, info.resource, info.subresource,
                info.namespace, name, request.path, True, request.param("labelSelector"), request.param("fieldSelector"),
            )  # fmt: skip
        else:
            verb = request.method.lower()
            attributes = Attributes(user, verb, path=request.path, is_resource=False)
        return info, verb, attributes

    async def _authorized_if(
        self, stored: bool | Awaitable[bool], request: Request, info: paths.PathInfo, verb: str, attributes: Attributes
    ) -> Answer:
        """Go on when the audit event has been stored."""
        if not (stored if isinstance(stored, bool) else await stored):
            self.metrics.count("apiserver_audit_requests_rejected_total")
            text = f"Internal Server Error: {quote(request.target)}: failed to store audit event\n"
            return Response(500, text.encode(), (rendering.NO_STORE,), "text/plain; charset=utf-8")
        answer = self._decided(request, info, verb, attributes)
        if inspect.isawaitable(answer):
            out: Answer = await answer
            return out
        return answer

    def _decided(
        self, request: Request, info: paths.PathInfo, verb: str, attributes: Attributes
    ) -> Answer | Awaitable[Answer]:
        if impersonation.wants(request.headers):
            return self._impersonated(request, info, verb, attributes)
        decision = self._decide(attributes)
        if not isinstance(decision, Decision):
            return self._authorized_later(request, attributes.user, info, verb, attributes, decision)
        return self._allowed(request, attributes.user, info, verb, attributes, decision)

    async def _impersonated(self, request: Request, info: paths.PathInfo, verb: str, attributes: Attributes) -> Answer:
        """Act as the user whom the headers name, if the real one may."""
        user, constraint = await impersonation.impersonate(request, attributes, self._decide)
        if self.auditor is not None:
            self.auditor.impersonated(request, user, constraint)
        attributes = replace(attributes, user=user)
        decision = self._decide(attributes)
        if not isinstance(decision, Decision):
            decision = await decision
        answer = self._allowed(request, user, info, verb, attributes, decision)
        if inspect.isawaitable(answer):
            out: Answer = await answer
            return out
        return answer

    async def _authorized_later(
        self, request: Request, user: UserInfo, info: paths.PathInfo, verb: str, attributes: Attributes, pending: Any
    ) -> Answer:
        answer = self._allowed(request, user, info, verb, attributes, await pending)
        if inspect.isawaitable(answer):
            out: Answer = await answer
            return out
        return answer

    def _decide(self, attributes: Attributes) -> Decision | Awaitable[Decision]:
        assert self.access is not None
        return self.access.authorization.authorize(attributes)

    def _allowed(
        self,
        request: Request,
        user: UserInfo,
        info: paths.PathInfo,
        verb: str,
        attributes: Attributes,
        decision: Decision,
    ) -> Answer | Awaitable[Answer]:
        if self.auditor is not None:
            self.auditor.decided(request, decision)
        if not decision.allowed:
            raise refusal(attributes, decision.reason)
        remote = self.dispatch_remote(request, user)
        if remote is not None:
            return remote
        if not info.is_resource:
            return self._path(request, user)
        if info.group not in KNOWN_GROUPS and (info.group, info.version, info.resource) not in self.scheme.endpoints:
            return not_found_page()
        call = self.dispatcher.locate(request, info, verb)
        call.user = user
        request.context = call
        answer = self.dispatcher.answer(call)
        if answer is None or isinstance(answer, Response):
            return answer
        if verb == "watch" or info.subresource in _LONG:
            return answer
        flow, level = self.fairness.classify(
            user, verb, info.group, info.resource, info.subresource, info.namespace, ""
        )
        try:
            turn = self.fairness.enter(flow, level, user, info.namespace)
        except StatusError:
            _drop(answer)
            raise
        return seated(self.fairness, level, turn, answer)

    def dispatch_remote(self, request: Request, user: UserInfo) -> Awaitable[Answer] | None:
        """The answer of an aggregated API server, None when the group is ours."""
        return self.aggregator.route(request, user) if self.aggregator is not None else None

    # Other paths.

    def _path(self, request: Request, user: UserInfo) -> Answer | Awaitable[Answer]:
        path = request.path
        parts = [p for p in path.split("/") if p]
        if "//" in path:
            return not_found_page()
        root = parts[0] if parts else ""
        handler = self.path_handlers.get(root)
        if handler is not None:
            answer = handler(request, parts)
            found: Answer | Awaitable[Answer] = _or_not_found(answer)
            return found
        if request.method not in ("GET", "HEAD"):
            if root in ("api", "apis", "version", "openapi"):
                raise StatusError(
                    405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {}
                )
            return not_found_page()
        if root in self.health.checks:
            return self.health.handle(request, parts) or not_found_page()
        if root == "version" and len(parts) == 1:
            form = negotiate("")
            body = orjson.dumps(VERSION, option=orjson.OPT_INDENT_2)
            return Response(200, body, (rendering.NO_STORE,), form.media)
        if root in ("api", "apis"):
            found = self.discovery.handle(request, parts)
            if found is not None:
                return found
            if (root == "api" and len(parts) == 2) or (len(parts) == 3 and parts[1] in self.scheme.groups):
                raise StatusError(404, "NotFound", "the server could not find the requested resource", {})
            return not_found_page()
        if not parts:
            return self._root()
        return not_found_page()

    def _root(self) -> Response:
        listed = ["/api", "/api/v1", "/apis", "/apis/", "/metrics", "/metrics/slis", "/openapi/v2", "/openapi/v3",
                  "/openapi/v3/", "/version", "/flagz", "/statusz", "/openid/v1/jwks", "/.well-known/openid-configuration"]  # fmt: skip
        for group, versions in self.discovery.groups():
            listed.append(f"/apis/{group}")
            listed += [f"/apis/{group}/{v}" for v in versions]
        listed += self.health.paths()
        body = orjson.dumps({"paths": sorted(listed)}, option=orjson.OPT_INDENT_2)
        return Response(200, body, (rendering.NO_STORE,), "application/json")


def _only_name(request: Request) -> str:
    """The name that a field selector on metadata.name pins down: authorization may be bound to it."""
    text = request.param("fieldSelector")
    if "metadata.name" not in text:
        return ""
    for part in text.split(","):
        key, sep, value = part.partition("=")
        if sep and key == "metadata.name":
            return value.removeprefix("=")
    return ""


def _drop(answer: Any) -> None:
    close = getattr(answer, "close", None)
    if close is not None:
        close()


def not_found_page() -> Response:
    headers = (rendering.NO_STORE, ("X-Content-Type-Options", "nosniff"))
    return Response(404, b"404 page not found\n", headers, "text/plain; charset=utf-8")


def _or_not_found(answer: Any) -> Any:
    if answer is None:
        return not_found_page()
    if isinstance(answer, Response):
        return answer

    async def wait() -> Answer:
        out: Answer = await answer
        return out

    return wait()


def _plain_error(status: int, message: str) -> Response:
    reason = {400: "BadRequest", 413: "RequestEntityTooLarge", 431: "BadRequest", 501: "NotImplemented"}.get(status, "")
    return rendering.error_answer(StatusError(status, reason, message))


async def serve(
    *,
    store: Any,
    config: Config,
    host: str = "127.0.0.1",
    port: int = 6443,
    sock: Any = None,
    ready: Callable[[APIServer, int], Any] | None = None,
) -> None:
    """Serve the Kubernetes API until cancelled.

    store: master.etcd.Store (it stays the caller's to close). ready: called with the server and its port once /readyz
    would say ok. OSError when the address is taken.
    """
    server = APIServer(store, config)
    http = Server(server.handle, error=_plain_error, idle_timeout=300.0)
    context: tls.SSLContext | None = None
    if config.certificate is not None and config.key is not None:
        authorities = [c for c in (config.client_ca, config.requestheader_ca) if c is not None]
        context = server_context(config.certificate, config.key, client_ca=authorities or None)
        if authorities and not accept_any_certificate(context):
            log.info("certificates that no CA vouches for fail the TLS handshake: Python's OpenSSL cannot be reached")
    began = time.monotonic()
    # Clients may connect from now on and are answered as soon as there is something true to say: nobody is told
    # "forbidden" because the roles are not there yet.
    sock = sock or bind(host, port)
    sock.listen(1024)
    bound = int(sock.getsockname()[1])
    if config.advertise[1] in (0, port):
        config.advertise = (config.advertise[0], bound)
    server.discovery.server_address = f"{config.advertise[0]}:{bound}"
    following = asyncio.create_task(renewal.follow(), name="renewal")
    try:
        await server.start()
        reloading = Reloading(server)
        reloading.start()
        server.on_close(reloading.close)
        await http.listen_tcp(host, port, ssl=context, sock=sock)
        log.info("serving on %s:%d after %.0f ms", host, bound, (time.monotonic() - began) * 1000)
        if ready is not None:
            called = ready(server, bound)
            if inspect.isawaitable(called):
                await called
        assert server.hub.failed is not None
        await asyncio.shield(server.hub.failed)
    finally:
        following.cancel()
        await http.close(grace=5.0)
        await server.close()
