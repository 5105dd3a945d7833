"""The connect subresources as the dispatcher calls them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from longshore.machinery.errors import (
    StatusError,
    bad_request,
    generic_server_response,
    internal_error,
    not_found,
)
from longshore.machinery.http import ClientError, Duplex, Response
from longshore.machinery.streams import Options, Refused, connect_command, spdy, translate, websocket
from longshore.master.apiserver.admit import Admission
from longshore.master.apiserver.auth.authorization import refusal
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.context import API, Object
from longshore.wire import portforward

from . import podstreams, reverse, targets
from .kubelets import Kubelets

Handler = Callable[[Call], Awaitable[Response | None]]
MAX_ERROR = 50 * 1024


class Connects:
    """Answers the connect subresources.

    admission: asked with CONNECT before anything is opened. certificate, key, ca: see Kubelets.
    """

    def __init__(
        self,
        api: API,
        admission: Admission,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        ca: Path | None = None,
    ) -> None:
        self._api = api
        self._admission = admission
        self.kubelets = Kubelets(api, certificate=certificate, key=key, ca=ca)
        self.handlers: dict[tuple[str, str, str], Handler] = {
            ("", "pods", "exec"): self.exec,
            ("", "pods", "attach"): self.attach,
            ("", "pods", "portforward"): self.portforward,
            ("", "pods", "log"): self.log,
            ("", "pods", "proxy"): self.pod_proxy,
            ("", "services", "proxy"): self.service_proxy,
            ("", "nodes", "proxy"): self.node_proxy,
        }

    async def close(self) -> None:
        await self.kubelets.close()

    # ---- exec, attach, port-forward

    async def exec(self, call: Call) -> Response | None:
        return await self._command(call, podstreams.stream_options(call.request, "PodExecOptions"))

    async def attach(self, call: Call) -> Response | None:
        return await self._command(call, podstreams.stream_options(call.request, "PodAttachOptions"))

    async def _command(self, call: Call, options: Object) -> Response | None:
        request = call.request
        pod = self._pod(call)
        await self._connect(call, options)
        url = podstreams.stream_url(pod, options, self.kubelets)
        reverse.need_upgrade(request)
        await self._may_create(call)
        client = self.kubelets.client()
        if not translate.wants_translation(request):
            return await reverse.upgrade(request, client, url)
        tty = bool(options.get("tty"))
        streams = Options(
            stdin=bool(options.get("stdin")),
            stdout=bool(options.get("stdout")),
            stderr=bool(options.get("stderr")) and not tty,
            tty=tty,
        )

        async def dial() -> Any:
            try:
                return await connect_command(client, url, streams)
            except ClientError as error:
                raise spdy.UpgradeError(f"error dialing backend: {error}") from error

        try:
            await translate.remote_command(request, streams, dial)
        except Refused as refused:
            return refused.response
        return None

    async def portforward(self, call: Call) -> Response | None:
        request = call.request
        options = podstreams.forward_options(request)
        pod = self._pod(call)
        await self._connect(call, options)
        url = podstreams.forward_url(pod, options, self.kubelets)
        reverse.need_upgrade(request)
        await self._may_create(call)
        client = self.kubelets.client()
        if not translate.wants_tunnel(request):
            return await reverse.upgrade(request, client, url)

        async def dial() -> Duplex:
            try:
                duplex, _ = await spdy.upgrade(client, url, [portforward.PROTOCOL])
                return duplex
            except ClientError as error:
                raise StatusError(500, "", f"error dialing backend: {error}") from error
            except spdy.UpgradeError as error:
                raise StatusError(500, "", str(error)) from error

        try:
            await translate.port_forward(request, dial)
        except Refused as refused:
            return refused.response
        return None

    async def _may_create(self, call: Call) -> None:
        """A WebSocket comes as GET: that alone must not open what POST needs the right to create for."""
        if call.request.method != "GET":
            return
        a = replace(self._admission.attributes(call), verb="create")
        decision = await self._api.authorize(a)
        if not decision.allowed:
            raise refusal(a, decision.reason)

    # ---- logs

    async def log(self, call: Call) -> Response | None:
        request = call.request
        options = podstreams.log_options(request, call.name)
        pod = self._pod(call)
        url = podstreams.log_url(pod, options, self.kubelets)
        if url is None:
            return Response(204)
        client = self.kubelets.client(insecure=bool(options.get("insecureSkipTLSVerifyBackend")))
        try:
            response = await reverse.while_there(request, client.request("GET", url))
        except ClientError as error:
            raise StatusError(500, "", f'Get "{url}": {error}') from error
        async with response:
            if not 200 <= response.status <= 206:
                raise _log_error(response.status, call.name, await response.read(MAX_ERROR))
            if websocket.is_websocket(request):
                return await podstreams.log_messages(request, response)
            # as long as a log may flow, each piece goes out when it comes
            writer = await request.start(200, [("Content-Type", "text/plain"), ("Cache-Control", "no-cache, private")])
            async for piece in response.chunks():
                writer.write(piece)
                await writer.drain()
        return None

    # ---- proxies

    async def pod_proxy(self, call: Call) -> Response | None:
        found = targets.split(call.name)
        await self._connect(call, self._proxy_options(call, "PodProxyOptions"), found[1] if found else "")
        return await self._proxy(call, targets.pod_target(self._api, self.kubelets, call.namespace, call.name))

    async def service_proxy(self, call: Call) -> Response | None:
        await self._connect(call, self._proxy_options(call, "ServiceProxyOptions"))
        return await self._proxy(call, targets.service_target(self._api, self.kubelets, call.namespace, call.name))

    async def node_proxy(self, call: Call) -> Response | None:
        await self._connect(call, self._proxy_options(call, "NodeProxyOptions"))
        return await self._proxy(call, targets.node_target(self.kubelets, call.name))

    def _proxy_options(self, call: Call, kind: str) -> Object:
        return {"kind": kind, "apiVersion": "v1", "path": unquote(_split_path(call)[1])}

    async def _proxy(self, call: Call, target: targets.Target) -> Response | None:
        request = call.request
        prefix, rest = _split_path(call)
        query = f"?{request.raw_query}" if request.raw_query else ""
        if request.wants_upgrade:
            return await reverse.upgrade(request, target.client, target.location.url + (rest or "/") + query)
        if not rest:
            if request.method in ("GET", "HEAD"):
                return Response(301, b"", [("Location", f"{request.raw_path}/{query}")])
            rest = "/"
        url = target.location.url + rest + query
        return await reverse.carry(request, target.client, url, prefix=prefix)

    # ---- what all share

    def _pod(self, call: Call) -> Object:
        pod = self._api.get("", "pods", call.namespace, call.name)
        if pod is None:
            raise not_found("", "pods", call.name)
        return pod

    async def _connect(self, call: Call, options: Object, name: str = "") -> None:
        kind = ("", "v1", str(options["kind"]))
        asked = self._admission.request(call, "CONNECT", options, None, {}, False, kind)
        await self._admission.admit(asked)
        await self._admission.validate(asked)


def _split_path(call: Call) -> tuple[str, str]:
    """The path up to and with `/proxy`, and what follows it (escaped, "" or beginning with a slash)."""
    parts = call.request.raw_path.split("/")
    # /api/v1/nodes/NAME/proxy/... or /api/v1/namespaces/NS/pods/NAME/proxy/...
    at = 7 if call.info.namespace else 5
    prefix = "/".join(parts[: at + 1])
    rest = "/".join(parts[at + 1 :])
    return prefix, f"/{rest}" if len(parts) > at + 1 else ""


def _log_error(code: int, name: str, body: bytes) -> StatusError:
    """What a kubelet's refusal is to the client (genericrest.GenericHttpResponseChecker)."""
    text = body.decode("utf-8", "replace")
    if code == 500:
        return internal_error(text)
    if code == 400:
        return bad_request(text)
    return generic_server_response(code, "", "", "pods/log", name, text)
